//! The fixtures, and the room's configuration.

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::wire::{Class, Question};

/// A fixture begins with the messages it must provoke, as comments: `; refused: ` for each fault, `; warned: ` for
/// each warning. One without is read in silence. The apex of all is `example.`.
#[test]
fn fixtures_provoke_exactly_the_messages_that_they_begin_with() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/zone");
    let mut count = 0;
    let mut failures = Vec::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let apex = "example.".parse().unwrap();
        let result = match path.extension().and_then(|extension| extension.to_str()) {
            Some("zone") => Zone::load(&path, &apex).map(|zone| zone.warnings().to_vec()),
            Some("overlay") => Overlay::load(&path, &apex).map(|overlay| overlay.warnings().to_vec()),
            _ => continue, // included by others
        };
        count += 1;
        let text = fs::read_to_string(&path).unwrap();
        let head = |prefix| text.lines().filter_map(move |line| line.strip_prefix(prefix)).collect::<Vec<_>>();
        let refused = head("; refused: ");
        let expected = [refused.clone(), head("; warned: ")].concat();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if result.is_err() == refused.is_empty() {
            failures.push(format!("{name} is refused: {}", result.is_err()));
        }
        // The message as the operator reads it, but for the folder.
        let mut messages: Vec<String> = result
            .unwrap_or_else(|errors| errors)
            .iter()
            .map(|error| error.to_string().replace(&format!("{}/", folder.display()), ""))
            .collect();
        for message in &expected {
            let found = messages.iter().position(|m| m.contains(message));
            match found {
                Some(found) => drop(messages.swap_remove(found)),
                None => failures.push(format!("{name} lacks: {message}")),
            }
        }
        failures.extend(messages.iter().map(|message| format!("{name} says more: {message}")));
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(count > 20, "{count} fixtures");
}

#[test]
fn examples_are_read_in_silence() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/zones");
    let outcome = Files::load(
        &Config { directory: Some(directory), hosts: Vec::new(), ..Config::default() },
        &[],
        None,
        &crate::files::Copies::default(),
    );
    assert_eq!((outcome.faults, outcome.warnings), (Vec::new(), Vec::new()));
    assert!(outcome.files.zones().count() >= 1);
}

#[test]
fn files_that_cannot_be_read_are_faults_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    for (path, expected) in [
        (folder.path().join("missing.zone"), "cannot be read: No such file or directory"),
        (folder.path().to_path_buf(), "not a regular file"),
    ] {
        let errors = Zone::load(&path, &Name::root()).err().unwrap();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].location.line, None, "{}", path.display());
        assert!(errors[0].to_string().contains(expected), "{}", errors[0]);
    }
}

#[test]
fn includes_are_followed_eight_files_deep() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..12 {
        fs::write(folder.path().join(i.to_string()), format!("$INCLUDE {}\nhost{i} CNAME .\n", i + 1)).unwrap();
    }
    let errors = Overlay::load(&folder.path().join("0"), &Name::root()).err().unwrap();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].location.file.ends_with("8"), "{}", errors[0]);
    assert_eq!(errors[0].problem, Problem::IncludeDepth(8));
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let overlay = Overlay::parse(Path::new("x"), "\u{feff}ads CNAME .\n", &Name::root()).ok().unwrap();
    let question = Question { qname: "ads".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
    assert!(Overlays::new(vec![Arc::new(overlay)], Vec::new()).answer(&question, Client::Remote).is_some());
}

#[test]
fn a_file_full_of_faults_is_given_up_on() {
    let text = "@ 60 A x\n".repeat(1000);
    let errors = Zone::parse(Path::new("x"), &text, &Name::root()).err().unwrap();
    assert!(errors.len() < 300, "{}", errors.len());
    assert!(errors.iter().any(|error| error.problem == Problem::MoreFaults));
}

#[test]
fn configuration_has_the_documented_names_and_defaults() {
    let config: Config = toml::from_str("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.hosts, [PathBuf::from("/etc/hosts")]);
    let zone: FileConfig = toml::from_str("apex = \"site.example\"\nfile = \"site.example.zone\"").unwrap();
    let source = zone.source(Path::new("/etc/watershed")).unwrap();
    assert_eq!(source.path, Path::new("/etc/watershed/site.example.zone"));
    assert_eq!((source.apex.to_string().as_str(), source.mode), ("site.example.", Mode::Zone));
    let overlay: FileConfig = toml::from_str("apex = \".\"\nfile = \"ads\"\nmode = \"overlay\"").unwrap();
    assert_eq!(overlay.mode, Mode::Overlay);
    assert!(toml::from_str::<Config>("directroy = \"x\"").is_err());
}

/// Text that looks like a master file, for bytes at random seldom get far.
fn any_text() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        3 => prop::sample::select(vec![
            "@", "www", "*", "a.example.", ".", "60", "1h", "IN", "CH", "A", "AAAA", "CNAME", "DNAME", "NS", "SOA", "MX", "TXT",
            "SRV", "CAA", "SVCB", "HTTPS", "NAPTR", "SSHFP", "TLSA", "DS", "DNSKEY", "RRSIG", "NSEC", "NSEC3", "HINFO", "LOC",
            "TYPE65280", "\\#", "0", "4", "0a000001", "192.0.2.1", "2001:db8::1", "\"text\"", "\"", "(", ")", "; c", "\\", "\\0",
            "\\255", "1-3", "${0,2,n}", "$", "LOC", "APL", "WKS", "HIP", "URI", "alpn=\"h2\"", "key65000=", "$ORIGIN", "$TTL", "$INCLUDE", "$GENERATE", "aGk=", "20260101000000", "\u{fc}",
        ]).prop_map(String::from),
        1 => "[ -~]{0,12}",
    ];
    let blank = prop::sample::select(vec![" ", " ", " ", "\t", "\n", "\n ", "\r\n", ""]);
    prop::collection::vec((word, blank), 0..60)
        .prop_map(|words| words.into_iter().map(|(word, blank)| word + blank).collect())
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in any_text()) {
        let apex = "example.".parse().unwrap();
        let _ = Zone::parse(Path::new("/nonexistent/x"), &text, &apex);
        let _ = Overlay::parse(Path::new("/nonexistent/x"), &text, &apex);
    }

    #[test]
    fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let apex = "example.".parse().unwrap();
        let _ = Zone::parse(Path::new("/nonexistent/x"), &String::from_utf8_lossy(&bytes), &apex);
        let _ = Hosts::parse(Path::new("x"), &bytes);
    }

    #[test]
    fn no_rdata_makes_the_reader_panic(rtype in any::<u16>(), rdata in "[ -~]{0,40}") {
        let text = format!("@ 60 IN TYPE{rtype} {rdata}\n");
        let _ = Zone::parse(Path::new("/nonexistent/x"), &text, &"example.".parse().unwrap());
    }
}
