//! A file replaced as a whole: it holds the old contents or the new, whatever happens.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rand::random;

/// What a replaced file survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The end of this process. After a power failure the file may be damaged.
    Process,
    /// A power failure, but perhaps as it was before.
    Contents,
    /// A power failure: the contents are on the disk before this returns.
    Disk,
}

/// Replaces a file as a whole. Only this user can read it.
///
/// The new contents are written to a file beside it, whose name cannot be guessed and which must not exist: a link that
/// another user has put there is not followed.
pub fn replace(file: &Path, contents: &[u8], durability: Durability) -> io::Result<()> {
    replace_and_keep(file, contents, durability).map(drop)
}

/// Does the same, and returns the new file, open to be written to at its end.
pub(super) fn replace_and_keep(file: &Path, contents: &[u8], durability: Durability) -> io::Result<File> {
    let part = part_of(file);
    // `create_new` is O_EXCL, which does not follow a link either (open(2)).
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    let mut write = || {
        written.write_all(contents)?;
        match durability {
            Durability::Process => {}
            Durability::Contents => written.sync_data()?,
            Durability::Disk => written.sync_all()?,
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
        Some(folder) if durability == Durability::Disk => File::open(folder)?.sync_all()?,
        _ => {}
    }
    Ok(written)
}

/// Removes half-written files from a folder: those of processes that were killed. A young one may be another process's.
pub fn remove_leftovers(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_part = entry.file_name().as_bytes().ends_with(PART.as_bytes());
        let age = |metadata: fs::Metadata| SystemTime::now().duration_since(metadata.modified().ok()?).ok();
        let is_old = || entry.metadata().ok().and_then(age).is_some_and(|age| age > LEFT_FOR);
        if is_part && entry.file_type().is_ok_and(|known| !known.is_dir()) && is_old() {
            // What cannot be removed does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn part_of(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(format!(".{:016x}{PART}", random::<u64>()));
    name.into()
}

const PART: &str = ".part";
/// No process takes so long to write a file.
const LEFT_FOR: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        for (contents, durability) in
            [("first", Durability::Disk), ("2nd", Durability::Process), ("third", Durability::Contents)]
        {
            replace(&file, contents.as_bytes(), durability).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), contents);
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else remains");
        }
        // A directory cannot be replaced by a file.
        let blocked = folder.path().join("blocked");
        fs::create_dir(&blocked).unwrap();
        fs::write(blocked.join("in it"), "").unwrap();
        assert!(replace(&blocked, b"new", Durability::Process).is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "half a file is removed");
    }

    #[test]
    fn no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, victim) = (folder.path().join("state.json"), folder.path().join("victim"));
        fs::write(&victim, "untouched").unwrap();
        for name in ["state.json", "state.json.part", &format!("state.{}.part", std::process::id())] {
            let _ = fs::remove_file(folder.path().join(name));
            symlink(&victim, folder.path().join(name)).unwrap();
        }
        replace(&file, b"new", Durability::Disk).unwrap();
        assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
        assert!(!file.is_symlink(), "the link itself is replaced");
        assert_ne!(part_of(&file), part_of(&file), "the name cannot be guessed");
    }

    #[test]
    fn old_leftovers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let old = SystemTime::now() - 2 * LEFT_FOR;
        for (name, time) in [("a.1.part", old), ("b.2.part", SystemTime::now()), ("c", old)] {
            File::create(folder.path().join(name)).unwrap().set_modified(time).unwrap();
        }
        fs::create_dir(folder.path().join("d.part")).unwrap();
        remove_leftovers(folder.path());
        let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["b.2.part", "c", "d.part"]);
    }
}
