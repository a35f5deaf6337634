//! The last good version of each data file, on disk for the next start.
//!
//! A data file that was good when the process last read it may be faulty at the next start. Its last good version is then
//! read from a copy in the state directory. A copy holds the file and all files that it included, as bytes, under a name made
//! of the file's path. It is written beside its place and renamed, and ends with a checksum; a copy that is damaged or of
//! another format is set aside and ignored.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use super::{
    checksum::checksum,
    patience::access,
    read::{list, read},
    replace::{Durability, remove_leftovers, replace},
};

/// A folder of copies, or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copies {
    folder: Option<PathBuf>,
}

/// A data file as it was read: the file first, then each file that it included.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    parts: Vec<(PathBuf, Vec<u8>)>,
}

/// What saving came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Saved {
    /// Copies written.
    pub written: usize,
    /// Copies removed.
    pub removed: usize,
}

impl Version {
    /// Adds a file.
    pub fn push(&mut self, path: &Path, bytes: &[u8]) {
        self.parts.push((path.to_owned(), bytes.to_vec()));
    }

    /// The path of the data file itself.
    pub fn path(&self) -> Option<&Path> {
        self.parts.first().map(|(path, _)| path.as_path())
    }

    /// The bytes of one of its files.
    pub fn bytes(&self, path: &Path) -> Option<&[u8]> {
        self.parts.iter().find(|(known, _)| known == path).map(|(_, bytes)| bytes.as_slice())
    }

    fn size_bytes(&self) -> usize {
        self.parts.iter().map(|(path, bytes)| path.as_os_str().len() + bytes.len()).sum()
    }
}

impl Copies {
    /// Keeps copies in this folder, which is created when it is needed.
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder }
    }

    /// Returns true if copies are kept.
    pub fn are_kept(&self) -> bool {
        self.folder.is_some()
    }

    /// The copy of a data file, if there is a sound one.
    pub fn find(&self, path: &Path) -> Option<Version> {
        let file = self.folder.as_ref()?.join(name_of(path));
        let version = self.read(&file)?;
        (version.path() == Some(path)).then_some(version)
    }

    /// The path of each data file that has a sound copy, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        let files = self.files().unwrap_or_default();
        let mut paths: Vec<PathBuf> =
            files.iter().filter_map(|file| self.read(file)?.path().map(Path::to_owned)).collect();
        paths.sort();
        paths
    }

    /// Writes the copies that differ from these versions, and removes those of files that are not `wanted`.
    pub fn save(&self, versions: &[Version], wanted: &HashSet<PathBuf>) -> io::Result<Saved> {
        let mut saved = Saved::default();
        let Some(folder) = &self.folder else { return Ok(saved) };
        let names: HashSet<String> = wanted.iter().map(|path| name_of(path)).collect();
        let mut total_bytes = 0;
        for file in self.files().unwrap_or_default() {
            let is_wanted = file.file_name().and_then(OsStr::to_str).is_some_and(|name| names.contains(name));
            if is_wanted {
                total_bytes += fs::metadata(&file).map_or(0, |metadata| metadata.len());
            } else {
                fs::remove_file(&file)?;
                saved.removed += 1;
            }
        }
        if versions.is_empty() {
            return Ok(saved);
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        remove_leftovers(folder);
        // Each sync of thousands of files would take minutes on a slow disk; their checksums tell what a crash has damaged.
        let is_synced = versions.len() <= MOST_SYNCED;
        for version in versions {
            let Some(path) = version.path() else { continue };
            let file = folder.join(name_of(path));
            let size_bytes = version.size_bytes() as u64;
            let known_bytes = fs::metadata(&file).map_or(0, |metadata| metadata.len());
            let total_after = total_bytes.saturating_sub(known_bytes) + size_bytes;
            if total_after > MOST_BYTES {
                tracing::warn!(file = %path.display(), "no room for a copy of its last good version");
                // An older version must not pass for the last one.
                let _ = fs::remove_file(&file);
                continue;
            }
            let bytes = encode(version);
            if read(&file, bytes.len() as u64).is_ok_and(|(known, _)| known == bytes) {
                continue;
            }
            replace(&file, &bytes, if is_synced { Durability::Contents } else { Durability::Process })?;
            total_bytes = total_after;
            saved.written += 1;
        }
        Ok(saved)
    }

    /// The files of copies.
    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let paths = list(folder)?.into_iter().map(|entry| entry.path);
        Ok(paths.filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION)).collect())
    }

    fn read(&self, file: &Path) -> Option<Version> {
        let (bytes, _) = read(file, MOST_BYTES).ok()?;
        let version = decode(&bytes);
        if version.is_none() {
            tracing::warn!(file = %file.display(), "damaged or of another format; set aside and ignored");
            let _ = access(file, || fs::rename(file, file.with_extension("damaged")));
        }
        version
    }
}

fn encode(version: &Version) -> Vec<u8> {
    let mut out = Vec::with_capacity(version.size_bytes() + MAGIC.len() + 16 * (1 + version.parts.len()));
    out.extend_from_slice(MAGIC);
    for (path, bytes) in &version.parts {
        for octets in [path.as_os_str().as_bytes(), bytes] {
            out.extend((octets.len() as u64).to_be_bytes());
            out.extend_from_slice(octets);
        }
    }
    let sum = checksum(&out);
    out.extend(sum.to_be_bytes());
    out
}

fn decode(bytes: &[u8]) -> Option<Version> {
    let (payload, sum) = bytes.split_last_chunk()?;
    let mut rest = payload.strip_prefix(MAGIC)?;
    if checksum(payload) != u64::from_be_bytes(*sum) {
        return None;
    }
    let mut version = Version::default();
    while !rest.is_empty() {
        let mut field = || {
            let (length, after) = rest.split_first_chunk()?;
            let (field, after) = after.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)?;
            rest = after;
            Some(field)
        };
        let path = PathBuf::from(OsStr::from_bytes(field()?));
        version.parts.push((path, field()?.to_vec()));
    }
    version.path().is_some().then_some(version)
}

fn name_of(path: &Path) -> String {
    format!("{:016x}.{EXTENSION}", checksum(path.as_os_str().as_bytes()))
}

const MAGIC: &[u8] = b"watershed data file 1\n";
const EXTENSION: &str = "copy";
/// All copies together take no more than this.
const MOST_BYTES: u64 = 1 << 30;
/// So many copies at a time are forced onto the disk, one by one.
const MOST_SYNCED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn version(path: &str, text: &str) -> Version {
        let mut version = Version::default();
        version.push(Path::new(path), text.as_bytes());
        version.push(Path::new("/etc/more.inc"), b"included\xff");
        version
    }

    fn wanted(paths: &[&str]) -> HashSet<PathBuf> {
        paths.iter().map(PathBuf::from).collect()
    }

    #[test]
    fn a_copy_is_found_by_its_path_until_it_is_not_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let copies = Copies::new(Some(folder.path().join("zones")));
        assert_eq!(copies.find(Path::new("/etc/a.zone")), None);
        let (a, b) = (version("/etc/a.zone", "a"), version("/etc/b.zone", ""));
        let saved = copies.save(&[a.clone(), b.clone()], &wanted(&["/etc/a.zone", "/etc/b.zone"])).unwrap();
        assert_eq!(saved, Saved { written: 2, removed: 0 });
        assert_eq!(copies.find(Path::new("/etc/a.zone")), Some(a.clone()));
        assert_eq!(copies.find(Path::new("/etc/a.zone")).unwrap().bytes(Path::new("/etc/more.inc")).unwrap().len(), 9);
        assert_eq!(copies.paths(), [Path::new("/etc/a.zone"), Path::new("/etc/b.zone")]);
        let again = copies.save(&[a], &wanted(&["/etc/a.zone", "/etc/b.zone"])).unwrap();
        assert_eq!(again, Saved::default(), "what is the same is not written");
        let saved = copies.save(&[version("/etc/b.zone", "new")], &wanted(&["/etc/b.zone"])).unwrap();
        assert_eq!(saved, Saved { written: 1, removed: 1 });
        assert_eq!(copies.paths(), [Path::new("/etc/b.zone")]);
        assert_eq!(Copies::default().save(&[b], &wanted(&[])).unwrap(), Saved::default());
    }

    #[test]
    fn a_damaged_or_foreign_copy_is_set_aside_and_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let copies = Copies::new(Some(folder.path().to_path_buf()));
        let path = Path::new("/etc/a.zone");
        let good = version("/etc/a.zone", "some text");
        let file = folder.path().join(name_of(path));
        let bytes = encode(&good);
        let mut damaged: Vec<Vec<u8>> = (0..bytes.len()).map(|length| bytes[..length].to_vec()).collect();
        damaged.extend((0..bytes.len()).map(|at| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            bytes
        }));
        damaged.push(b"watershed data file 2\nfrom the future".to_vec());
        for bytes in damaged {
            fs::write(&file, &bytes).unwrap();
            assert_eq!(copies.find(path), None);
            assert!(!file.exists() && file.with_extension("damaged").exists());
        }
        copies.save(std::slice::from_ref(&good), &wanted(&["/etc/a.zone"])).unwrap();
        assert_eq!(copies.find(path), Some(good));
    }

    #[test]
    fn a_copy_of_another_file_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let copies = Copies::new(Some(folder.path().to_path_buf()));
        fs::write(folder.path().join(name_of(Path::new("/a"))), encode(&version("/b", ""))).unwrap();
        assert_eq!(copies.find(Path::new("/a")), None);
    }
}
