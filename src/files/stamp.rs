//! What tells a file that has changed from one that has not.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::patience::access;

/// The identity, size and times of a file or folder, links followed.
///
/// The status change time shows changes that keep size and modification time, and changes of permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    status_changed: (i64, i64),
}

impl Stamp {
    /// The stamp of what a path leads to now.
    pub fn of(path: &Path) -> io::Result<Self> {
        access(path, || fs::metadata(path)).map(|metadata| Self::new(&metadata))
    }

    /// The stamp of an open file.
    pub fn new(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            status_changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Returns true if both are the same file, whatever has become of its contents.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Returns true if a file was removed: its folder is there, and nothing has its name, not even a link to nowhere.
pub fn is_removed(path: &Path) -> bool {
    is_absent(path) && path.parent().is_some_and(|folder| folder.as_os_str().is_empty() || is_folder(folder))
}

/// Whether a path leads to a folder.
pub fn is_folder(path: &Path) -> bool {
    access(path, || fs::metadata(path)).is_ok_and(|metadata| metadata.is_dir())
}

/// Returns true if nothing has this name, not even a link to nowhere.
pub fn is_absent(path: &Path) -> bool {
    access(path, || fs::symlink_metadata(path)).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_of_a_file_shows_in_its_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let first = Stamp::of(&path).unwrap();
        assert_eq!(Stamp::of(&path).unwrap(), first);
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(Stamp::of(&link).unwrap(), first, "links are followed");
        fs::write(&path, "three").unwrap();
        let second = Stamp::of(&path).unwrap();
        assert_ne!(second, first);
        assert!(second.is_same_file(&first));
        fs::write(folder.path().join("new"), "three").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(!Stamp::of(&path).unwrap().is_same_file(&first));
    }

    #[test]
    fn a_file_is_removed_only_if_its_folder_is_there_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        assert!(is_removed(&file));
        assert!(!is_removed(&folder.path().join("gone/file")), "the folder is gone, too");
        std::os::unix::fs::symlink("nowhere", &file).unwrap();
        assert!(!is_removed(&file), "a link to nowhere is a fault");
        fs::remove_file(&file).unwrap();
        fs::write(&file, "").unwrap();
        assert!(!is_removed(&file));
    }
}
