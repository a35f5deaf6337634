//! The configuration file.

use watershed::config::{Source, System};

use super::octets::Scratch;

/// A configuration is refused with all its faults, or it is the same when it is written out and read again.
pub(crate) fn config(octets: &[u8]) {
    let Some(loaded) = load(octets) else { return };
    let written = toml::to_string(&loaded).expect("a configuration can be written");
    let again = load(written.as_bytes()).unwrap_or_else(|| panic!("it is refused when it is written out:\n{written}"));
    // Places in the text are another text's.
    assert_eq!(toml::to_string(&again).expect("a configuration can be written"), written);
}

fn load(octets: &[u8]) -> Option<watershed::config::Config> {
    let folder = Scratch::new();
    let file = folder.file("watershed.toml", octets);
    // What this machine says of itself is no part of the input.
    let system = System { resolv_confs: Vec::new(), is_local: |address| address.ip().is_loopback() };
    match (Source { file: Some(file), system, ..Source::default() }).load() {
        Ok(loaded) => Some(loaded.config),
        Err(faults) => {
            assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.to_string().is_empty()));
            None
        }
    }
}
