//! The files of the registrations: a snapshot of all of them, and a journal of what has changed since.
//!
//! A snapshot names the journal that continues it, and a journal names itself in its first line. So a journal that was left
//! behind, because the process ended between a new snapshot and the removal of the old journal, is not mistaken for the new
//! one. A version that knows no journals writes snapshots that name none. At an orderly stop and before a hand-over the
//! snapshot is complete, so such a version finds everything in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::super::{
    data::log_some,
    disk::{self, Unusable},
    memory,
};
use crate::{
    catalog::source::registered::{self, Registered},
    escape::shorten,
    files::{self, Durability, Journal, Lines, Stamp, Tail},
};

/// What is to be written, in a folder.
pub(super) enum ToSave {
    /// All registrations.
    Snapshot(PathBuf, Vec<u8>),
    /// The first record of the journal of this name.
    First(PathBuf, String, String),
    /// A further record of that journal.
    Further(PathBuf, String),
}

/// Writes the files; there is one such writer, or the files would contradict each other.
#[derive(Default)]
pub(in crate::daemon) struct Writer {
    /// The snapshot that was written last, as it was then.
    snapshot: Option<Stamp>,
    /// Its journal, once it has records.
    journal: Option<Journal>,
}

/// What was kept in a folder.
pub(super) struct Kept {
    pub registered: Registered,
    /// Whether the snapshot alone says as much.
    pub is_snapshot_enough: bool,
}

/// The first line of a journal.
#[derive(Deserialize, Serialize)]
struct Head {
    #[serde(rename = "Version")]
    version: u32,
    #[serde(rename = "Journal")]
    journal: String,
}

impl Writer {
    /// Writes it beside those who serve. It is on the disk when this returns; after an error only a snapshot may follow.
    pub(super) async fn write(&mut self, to_save: ToSave) -> Result<(), String> {
        let mut writer = std::mem::take(self);
        let name = to_save.file().display().to_string();
        let write = move || {
            let outcome = writer.write_now(to_save);
            (writer, outcome)
        };
        let written = match tokio::task::spawn_blocking(write).await {
            Ok((writer, outcome)) => {
                *self = writer;
                outcome
            }
            Err(error) => Err(error.into()),
        };
        written.map_err(|error| format!("{name}: {error}"))
    }

    fn write_now(&mut self, to_save: ToSave) -> io::Result<()> {
        let Self { snapshot, journal } = std::mem::take(self);
        match to_save {
            ToSave::Snapshot(folder, contents) => {
                let file = snapshot_file(&folder);
                files::replace(&file, &contents, Durability::Disk)?;
                self.snapshot = Stamp::of(&file).ok();
                // It continues the snapshot before, and would be ignored.
                let _ = fs::remove_file(journal_file(&folder));
            }
            ToSave::First(folder, name, record) => {
                check_in_place(is_in_place(&folder, snapshot))?;
                let head = Head { version: JOURNAL_VERSION, journal: name };
                let journal = Journal::begin(journal_file(&folder), &serde_json::to_string(&head)?, &record)?;
                *self = Self { snapshot, journal: Some(journal) };
            }
            ToSave::Further(folder, record) => {
                let journal = journal.filter(|journal| is_in_place(&folder, snapshot) && journal.is_in_place());
                check_in_place(journal.is_some())?;
                let journal = journal.map(|journal| journal.append(&record)).transpose()?;
                *self = Self { snapshot, journal };
            }
        }
        Ok(())
    }
}

impl ToSave {
    fn file(&self) -> PathBuf {
        match self {
            Self::Snapshot(folder, _) => snapshot_file(folder),
            Self::First(folder, ..) | Self::Further(folder, _) => journal_file(folder),
        }
    }
}

/// Reads what is kept in a folder. Files that cannot be used are renamed, and what is good in them counts.
pub(super) fn load(folder: &Path) -> Kept {
    files::remove_leftovers(folder);
    let (file, journal_file) = (snapshot_file(folder), journal_file(folder));
    let (saved, journal) = read_pair(&file, &journal_file);
    let Some(saved) = saved else {
        if journal.is_some() {
            tracing::error!(file = %journal_file.display(), "journal without its snapshot not used");
            disk::set_aside(&journal_file, Unusable::Damaged);
        }
        return Kept { registered: Registered::default(), is_snapshot_enough: true };
    };
    let (mut registered, faults) = Registered::restore(&saved);
    log_faults(Some(&file), &faults);
    let mut kept_in = journal.map(|lines| follow(&mut registered, lines, &journal_file));
    if !faults.is_empty() {
        let is_other = memory::version_of(&saved).is_some_and(|version| version != registered::VERSION);
        let why = if is_other { Unusable::UnknownVersion } else { Unusable::Damaged };
        disk::set_aside(&file, why);
        if let Some(Fate::Done) = kept_in {
            kept_in = Some(Fate::Aside(why));
        }
    }
    if let Some(Fate::Aside(why)) = kept_in {
        disk::set_aside(&journal_file, why);
    }
    Kept { registered, is_snapshot_enough: faults.is_empty() && kept_in.is_none() }
}

/// What becomes of a journal that was found; the next snapshot removes it.
enum Fate {
    Done,
    Ignored,
    /// It is kept for a person, or for the version that knows it.
    Aside(Unusable),
}

/// Does what a journal says, if it continues the snapshot.
fn follow(registered: &mut Registered, lines: Lines, file: &Path) -> Fate {
    let name = tracing::field::display(file.display());
    let Lines { head, lines, tail, damaged } = lines;
    if damaged > 0 {
        tracing::error!(file = name, lines = damaged, "damaged lines of the journal not used");
    }
    let Some(head) = head else { return Fate::Aside(Unusable::Damaged) };
    match memory::version_of(head.as_bytes()) {
        Some(JOURNAL_VERSION) => {}
        version => {
            tracing::error!(file = name, version, "journal of an unknown format not used");
            return Fate::Aside(Unusable::UnknownVersion);
        }
    }
    let is_next = serde_json::from_str(&head).is_ok_and(|head: Head| registered.journal() == Some(&head.journal));
    if !is_next {
        tracing::warn!(file = name, "journal of another snapshot ignored; the snapshot is newer");
        return Fate::Ignored;
    }
    let faults: Vec<String> = lines.iter().flat_map(|line| registered.replay(line)).collect();
    log_faults(Some(file), &faults);
    if let Tail::Torn(bytes) = tail {
        // It was not answered.
        tracing::info!(file = name, bytes, "incomplete last line of the journal dropped");
    }
    if damaged > 0 || !faults.is_empty() { Fate::Aside(Unusable::Damaged) } else { Fate::Done }
}

/// Reads both files. A writer that is about to stop may replace the snapshot meanwhile; then they are read again.
fn read_pair(file: &Path, journal_file: &Path) -> (Option<Vec<u8>>, Option<Lines>) {
    let mut pair = (None, None);
    for _ in 0..MOST_READS {
        let before = Stamp::of(file).ok();
        pair = (disk::read(file), read_journal(journal_file));
        if before == Stamp::of(file).ok() {
            break;
        }
    }
    pair
}

fn read_journal(file: &Path) -> Option<Lines> {
    match Journal::read(file, disk::MOST_BYTES) {
        Ok(lines) => Some(lines),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "journal not read");
            disk::set_aside(file, Unusable::Damaged);
            None
        }
    }
}

/// Logs what could not be restored, from a file or from what a predecessor has passed on.
pub(super) fn log_faults(file: Option<&Path>, faults: &[String]) {
    let file = file.map(|file| tracing::field::display(file.display()));
    log_some(faults.iter(), |fault| {
        tracing::error!(file = &file, error = shorten(fault, MOST_REASON), "registration not restored");
    });
}

/// Whether the snapshot is the one that was written last. Another process, or a person, may have replaced it.
fn is_in_place(folder: &Path, snapshot: Option<Stamp>) -> bool {
    snapshot.is_some() && Stamp::of(&snapshot_file(folder)).ok() == snapshot
}

fn check_in_place(is_in_place: bool) -> io::Result<()> {
    match is_in_place {
        true => Ok(()),
        false => Err(io::Error::other("the files are not as this process has left them")),
    }
}

fn snapshot_file(folder: &Path) -> PathBuf {
    folder.join("registrations.json")
}

fn journal_file(folder: &Path) -> PathBuf {
    folder.join("registrations.journal")
}

/// Of the format of the journal.
const JOURNAL_VERSION: u32 = 1;
/// The files are read so often at most.
const MOST_READS: usize = 3;
/// So many characters of a fault are logged.
const MOST_REASON: usize = 200;

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
