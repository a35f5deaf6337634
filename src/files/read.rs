//! Files read whole, and folders listed.

use std::{
    fs::{self, File, FileType, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;
use rustix::fs::OFlags;

use super::{patience::access, stamp::Stamp};

/// Reads a regular file of at most so many bytes, links followed, and tells how it was then.
///
/// Errors: `InvalidInput` for anything but a regular file, `FileTooLarge`, `WouldBlock` while another process holds a lease on
/// it (fcntl(2), F_SETLEASE), which the system ends after `/proc/sys/fs/lease-break-time`.
pub fn read(path: &Path, most_bytes: u64) -> io::Result<(Vec<u8>, Stamp)> {
    let examine = |metadata: Metadata| match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")),
    };
    let (file, metadata) = access(path, || {
        // Examined before it is opened, too: opening a device may do something.
        examine(fs::metadata(path)?)?;
        let file = open(path)?;
        let metadata = examine(file.metadata()?)?;
        Ok((file, metadata))
    })?;
    let mut bytes = Vec::new();
    let too_large = || {
        let message = format!("larger than {}", ByteSize::b(most_bytes).display().iec());
        io::Error::new(io::ErrorKind::FileTooLarge, message)
    };
    if metadata.len() > most_bytes {
        return Err(too_large());
    }
    bytes.try_reserve_exact(metadata.len() as usize + 1)?;
    // Chunk by chunk, so that a large file on a slow disk is not taken for a silent one.
    while access(path, || (&file).take(CHUNK_BYTES).read_to_end(&mut bytes))? > 0 {
        // It may grow while it is read.
        if bytes.len() as u64 > most_bytes {
            return Err(too_large());
        }
    }
    Ok((bytes, Stamp::new(&metadata)))
}

/// Reads a small regular file, such as a configuration or a secret, as text. `InvalidData` if it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let (bytes, _) = read(path, SMALL)?;
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

/// Opens a file without waiting: neither for the writer of a pipe nor for the end of a lease.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY).bits();
    OpenOptions::new().read(true).custom_flags(flags as i32).open(path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(error.kind(), "another process holds a lease on it"),
        _ => error,
    })
}

/// An entry of a folder.
#[derive(Debug)]
pub struct Listed {
    /// The folder's path with the name of the entry.
    pub path: PathBuf,
    /// What it is itself, links not followed; nothing if the file system does not say.
    pub file_type: Option<FileType>,
}

/// The entries of a folder, in any order.
pub fn list(folder: &Path) -> io::Result<Vec<Listed>> {
    let listed = |entry: fs::DirEntry| Listed { path: entry.path(), file_type: entry.file_type().ok() };
    access(folder, || fs::read_dir(folder)?.map(|entry| entry.map(listed)).collect())
}

/// The most bytes of a file that only a mistake makes large: configurations, certificates, secrets, resolv.conf, and hosts
/// files that no key names.
pub const SMALL: u64 = 4 << 20;
const CHUNK_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Instant};

    use super::*;

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("good"), [7; 1000]).unwrap();
        fs::create_dir(at("folder")).unwrap();
        assert!(Command::new("mkfifo").arg(at("pipe")).status().unwrap().success());
        std::os::unix::fs::symlink("/dev/zero", at("device")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        File::create(at("sparse")).unwrap().set_len(3 << 30).unwrap();
        let begun = Instant::now();
        for (name, most_bytes, expected) in [
            ("good", 1000, None),
            ("good", 999, Some(io::ErrorKind::FileTooLarge)),
            ("missing", 1000, Some(io::ErrorKind::NotFound)),
            ("folder", 1000, Some(io::ErrorKind::InvalidInput)),
            ("pipe", 1000, Some(io::ErrorKind::InvalidInput)),
            ("device", 1000, Some(io::ErrorKind::InvalidInput)),
            ("socket", 1000, Some(io::ErrorKind::InvalidInput)),
            ("sparse", 1 << 20, Some(io::ErrorKind::FileTooLarge)),
        ] {
            let read = read(&at(name), most_bytes);
            assert_eq!(read.as_ref().err().map(io::Error::kind), expected, "{name}");
        }
        assert!(begun.elapsed().as_secs() < 5, "nothing waits for a pipe or reads a device");
        assert_eq!(read(&at("good"), 1000).unwrap(), (vec![7; 1000], Stamp::of(&at("good")).unwrap()));
        // Files of the kernel have contents and no size.
        assert!(read_text(Path::new("/proc/self/status")).unwrap().contains("VmRSS"));
        fs::write(at("latin"), b"\xe9").unwrap();
        assert_eq!(read_text(&at("latin")).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
