//! Files in the state directory: replaced as a whole, and set aside if they cannot be read.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// What a replaced file survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// The end of this process. After a power failure the file may be damaged.
    Process,
    /// A power failure: the contents are on the disk before this returns.
    Disk,
}

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
    match fs::read(file) {
        Ok(contents) => Some(contents),
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

/// Replaces a file as a whole: whatever happens, it holds the old contents or the new. Only this user can read it.
pub(super) fn replace(file: &Path, contents: &[u8], durability: Durability) -> io::Result<()> {
    let part = beside(file, ".part");
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut written = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        written.write_all(contents)?;
        if durability == Durability::Disk {
            written.sync_all()?;
        }
        fs::rename(&part, file)
    };
    if let Err(error) = write() {
        // Half a file is of no use, and takes up space.
        let _ = fs::remove_file(&part);
        return Err(error);
    }
    match file.parent() {
        // The name is part of the directory, which is a file of its own.
        Some(folder) if durability == Durability::Disk => fs::File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        for (contents, durability) in [("first", Durability::Disk), ("2nd", Durability::Process)] {
            replace(&file, contents.as_bytes(), durability).unwrap();
            assert_eq!(read(&file).unwrap(), contents.as_bytes());
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else remains");
        }
        // A directory cannot be replaced by a file.
        let blocked = folder.path().join("blocked");
        fs::create_dir(&blocked).unwrap();
        fs::write(blocked.join("in it"), "").unwrap();
        assert!(replace(&blocked, b"new", Durability::Process).is_err());
        assert!(!folder.path().join("blocked.part").exists(), "half a file is removed");
    }

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
