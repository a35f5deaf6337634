//! A file of lines that changes are appended to. Each line is on the disk before its change counts as saved.
//!
//! A line is a checksum of 16 hexadecimal digits, a space, and a text. The first line is the head: it says what the journal
//! continues. Only whole lines are written, each in one append. So after a crash at most the last line is incomplete, and it
//! lacks its end of line; a whole line with a wrong checksum is damage.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    checksum::checksum,
    read::read,
    replace::{Durability, replace_and_keep},
};

/// A journal that is open to be appended to.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
}

/// What a journal holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Lines {
    /// The first line; nothing if it is damaged.
    pub head: Option<String>,
    /// The other lines that are good, in the order in which they were appended.
    pub lines: Vec<String>,
    /// How the file ends.
    pub tail: Tail,
    /// How many lines are damaged, the head included.
    pub damaged: usize,
}

/// How a journal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// With a whole line.
    Whole,
    /// With an incomplete line of so many bytes: the process or the host ended while it was appended.
    Torn(usize),
}

impl Journal {
    /// Puts a journal of these two lines in the place of what was there. It is on the disk when this returns.
    pub fn begin(path: PathBuf, head: &str, line: &str) -> io::Result<Self> {
        let text = line_of(head)? + &line_of(line)?;
        let file = replace_and_keep(&path, text.as_bytes(), Durability::Disk)?;
        Ok(Self { path, file, bytes: text.len() as u64 })
    }

    /// Appends a line. It is on the disk when this returns.
    ///
    /// After an error the file may end with a part of the line, which nothing must follow: the journal is closed.
    pub fn append(mut self, line: &str) -> io::Result<Self> {
        let text = line_of(line)?;
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        self.bytes += text.len() as u64;
        Ok(self)
    }

    /// Returns true if the path still leads to this file, as this process has written it.
    pub fn is_in_place(&self) -> bool {
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino(), metadata.len());
        match (fs::metadata(&self.path).map(identity), self.file.metadata().map(identity)) {
            (Ok(found), Ok(own)) => found == own && own.2 == self.bytes,
            _ => false,
        }
    }

    /// A journal to which nothing can be appended.
    #[cfg(test)]
    pub fn on_full_disk() -> Self {
        let path = PathBuf::from("/dev/full");
        let file = File::options().write(true).open(&path).expect("every Linux has this device");
        Self { path, file, bytes: 0 }
    }

    /// Reads a journal of at most so many bytes. The errors are those of [`read`].
    pub fn read(path: &Path, most_bytes: u64) -> io::Result<Lines> {
        let (bytes, _) = read(path, most_bytes)?;
        Ok(Lines::of(&bytes))
    }
}

impl Lines {
    fn of(bytes: &[u8]) -> Self {
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (whole, torn) = bytes.split_at(end);
        let mut texts = whole.split_inclusive(|byte| *byte == b'\n').map(text_of);
        let head = texts.next().flatten();
        let (mut lines, mut damaged) = (Vec::new(), usize::from(head.is_none()));
        for text in texts {
            match text {
                Some(text) => lines.push(text),
                None => damaged += 1,
            }
        }
        let tail = if torn.is_empty() { Tail::Whole } else { Tail::Torn(torn.len()) };
        Self { head, lines, tail, damaged }
    }
}

fn line_of(text: &str) -> io::Result<String> {
    match text.contains('\n') {
        true => Err(io::Error::new(io::ErrorKind::InvalidInput, "a line of a journal contains an end of line")),
        false => Ok(format!("{:016x} {text}\n", checksum(text.as_bytes()))),
    }
}

/// The text of a whole line; nothing if the line is damaged.
fn text_of(line: &[u8]) -> Option<String> {
    let line = str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (_, text) = line.split_once(' ')?;
    (line.len() == CHECKSUM_DIGITS + 1 + text.len() && line_of(text).ok()?.strip_suffix('\n') == Some(line))
        .then(|| text.to_owned())
}

const CHECKSUM_DIGITS: usize = 16;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn lines(head: Option<&str>, lines: &[&str], tail: Tail, damaged: usize) -> Lines {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        Lines { head: head.map(str::to_owned), lines, tail, damaged }
    }

    fn journal(folder: &Path) -> PathBuf {
        let path = folder.join("journal");
        let journal = Journal::begin(path.clone(), "head", "first").unwrap();
        drop(journal.append("second, längere").unwrap().append("{\"third\": 3}").unwrap());
        path
    }

    #[test]
    fn lines_are_read_in_the_order_in_which_they_were_appended() {
        let folder = tempfile::tempdir().unwrap();
        let path = journal(folder.path());
        let expected = lines(Some("head"), &["first", "second, längere", "{\"third\": 3}"], Tail::Whole, 0);
        assert_eq!(Journal::read(&path, 1000).unwrap(), expected);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Journal::read(&path, 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        drop(Journal::begin(path.clone(), "other", "").unwrap());
        assert_eq!(Journal::read(&path, 1000).unwrap(), lines(Some("other"), &[""], Tail::Whole, 0));
        let refused = Journal::begin(path, "head", "two\nlines").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_journal_cut_at_any_byte_of_its_last_line_is_torn_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = fs::read(journal(folder.path())).unwrap();
        let last = bytes.len() - line_of("{\"third\": 3}").unwrap().len();
        for end in last..bytes.len() {
            let tail = if end == last { Tail::Whole } else { Tail::Torn(end - last) };
            let expected = lines(Some("head"), &["first", "second, längere"], tail, 0);
            assert_eq!(Lines::of(&bytes[..end]), expected, "{end}");
        }
    }

    #[test]
    fn a_changed_byte_damages_its_line_alone() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = fs::read(journal(folder.path())).unwrap();
        for (at, bit) in (0..bytes.len()).flat_map(|at| [(at, 0x01), (at, 0x20), (at, 0x80)]) {
            let mut bytes = bytes.clone();
            bytes[at] ^= bit;
            let found = Lines::of(&bytes);
            let good = found.lines.len() + usize::from(found.head.is_some());
            assert!(found.damaged > 0 || found.tail != Tail::Whole, "{at}: {found:?}");
            assert!(good >= 2, "{at}: an end of line costs two lines, any other byte one: {found:?}");
        }
        // What file systems leave of a write that a power failure cut short.
        let zeros = [&bytes[..], &[0; 20]].concat();
        assert_eq!(Lines::of(&zeros).tail, Tail::Torn(20));
        for (bytes, damaged, tail) in [(&b""[..], 1, Tail::Whole), (b"x", 1, Tail::Torn(1)), (b"\n\n", 2, Tail::Whole)]
        {
            assert_eq!(Lines::of(bytes), lines(None, &[], tail, damaged));
        }
    }

    #[test]
    fn a_journal_that_was_replaced_removed_or_written_to_is_not_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let begin = || Journal::begin(path.clone(), "head", "first").unwrap();
        let journal = begin().append("second").unwrap();
        assert!(journal.is_in_place());
        fs::remove_file(&path).unwrap();
        assert!(!journal.is_in_place());
        let other = begin();
        assert!(other.is_in_place() && !journal.is_in_place());
        fs::write(&path, "more").unwrap();
        assert!(!other.is_in_place());
    }

    #[test]
    fn a_full_disk_closes_the_journal() {
        let error = Journal::on_full_disk().append("line").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
