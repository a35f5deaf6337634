//! Files in the state directory, which are set aside if they cannot be read.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use crate::files;

/// Why a saved file is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It is not what was written.
    Damaged,
    /// Another version of this program has written it, in a format that this one does not know.
    UnknownVersion,
}

/// The contents of a file; nothing if it does not exist, or cannot be read and so is set aside.
pub(super) fn read(file: &Path) -> Option<Vec<u8>> {
    match files::read(file, MOST_BYTES) {
        Ok((contents, _)) => Some(contents),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "saved file not read");
            // Or the next save would overwrite it.
            set_aside(file, Unusable::Damaged);
            None
        }
    }
}

/// Renames a file that cannot be used, so that it is kept for a person or for the program that can. One that was set aside
/// before is overwritten.
pub(super) fn set_aside(file: &Path, why: Unusable) {
    let aside = beside(
        file,
        match why {
            Unusable::Damaged => ".damaged",
            Unusable::UnknownVersion => ".unknown-version",
        },
    );
    match fs::rename(file, &aside) {
        Ok(()) => tracing::warn!(file = %file.display(), renamed = %aside.display(), "saved file renamed"),
        Err(error) => tracing::warn!(file = %file.display(), %error, "unusable saved file cannot be renamed"),
    }
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    name.into()
}

/// More than any state of ours comes to, within the limits of what is registered and what an agent may say.
pub(super) const MOST_BYTES: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        assert_eq!(read(&file), None);
        for (why, name) in [
            (Unusable::Damaged, "state.json.damaged"),
            (Unusable::Damaged, "state.json.damaged"), // again
            (Unusable::UnknownVersion, "state.json.unknown-version"),
        ] {
            fs::write(&file, name).unwrap();
            set_aside(&file, why);
            assert!(!file.exists());
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), name);
        }
        let blocked = folder.path().join("blocked");
        fs::create_dir(&blocked).unwrap();
        assert_eq!(read(&blocked), None, "a directory is no file");
        assert!(!blocked.exists() && folder.path().join("blocked.damaged").exists());
    }
}
