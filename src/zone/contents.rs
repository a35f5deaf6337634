//! What a master file says, before it takes the form in which it is served: records in two allocations, by owner.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Problem, Rrset, error::Findings, names::Names, rdata::are_equal};
use crate::{
    files::{self, Stamp, Version},
    location::Location,
    wire::{Name, Rtype},
};

/// All that a file and the files it includes say.
pub(super) struct Contents {
    /// The apex.
    pub apex: Name,
    /// The owners.
    pub names: Names,
    /// The records by owner and type, otherwise in the order of the file.
    pub records: Vec<Entry>,
    /// The files read, as they were then.
    pub stamps: Stamps,
    /// Faults and warnings.
    pub findings: Findings,
    /// Whether an SOA record was read or, with a fault of its own, at least meant.
    pub mentions_soa: bool,
    /// All RDATA, one after the other.
    pub octets: Vec<u8>,
    /// The files by the numbers that records have of them.
    pub files: Vec<PathBuf>,
    /// Where files are read from.
    pub origin: Origin,
    /// How many more bytes its files may have.
    bytes_left: u64,
}

/// Where a file and its includes are read from.
pub(super) enum Origin {
    /// The disk.
    Disk,
    /// The disk; what is read is gathered here for a copy.
    Kept(Version),
    /// A copy of the last good version.
    Copy(Version),
}

/// A record, its parts lying in [`Contents`].
#[derive(Clone, Copy)]
pub(super) struct Entry {
    /// The number of its owner.
    pub owner: u32,
    /// The type.
    pub rtype: Rtype,
    /// The TTL in seconds.
    pub ttl: u32,
    /// Where its RDATA begins, and how long it is.
    pub rdata_at: u32,
    pub rdata_bytes: u16,
    /// The number of its file, and the line.
    pub file: u16,
    pub line: u32,
}

/// Files as they were when they were read; `None` for one that leads nowhere.
pub(super) type Stamps = Vec<(PathBuf, Option<Stamp>)>;

impl Contents {
    /// Nothing yet.
    pub fn new(apex: &Name, origin: Origin, most_bytes: u64) -> Self {
        Self {
            apex: apex.clone(),
            names: Names::default(),
            records: Vec::new(),
            stamps: Vec::new(),
            findings: Findings::default(),
            mentions_soa: false,
            octets: Vec::new(),
            files: Vec::new(),
            origin,
            bytes_left: most_bytes,
        }
    }

    /// Reads one of its files.
    pub fn read(&mut self, path: &Path) -> io::Result<Vec<u8>> {
        if let Origin::Copy(version) = &self.origin {
            return version.bytes(path).map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        let (bytes, stamp) = match files::read(path, self.bytes_left) {
            Ok((bytes, stamp)) => (Ok(bytes), Some(stamp)),
            Err(error) => {
                let stamp = stamp_of_unreadable(path, &error);
                (Err(error), stamp)
            }
        };
        self.bytes_left -= bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        self.stamps.push((path.to_path_buf(), stamp));
        if let (Origin::Kept(version), Ok(bytes)) = (&mut self.origin, &bytes) {
            version.push(path, bytes);
        }
        bytes
    }

    /// The RDATA of a record.
    pub fn rdata(&self, entry: &Entry) -> &[u8] {
        let start = entry.rdata_at as usize;
        self.octets.get(start..start + usize::from(entry.rdata_bytes)).unwrap_or_default()
    }

    /// Notes what is wrong with a record.
    pub fn blame(&mut self, entry: &Entry, problem: Problem) {
        self.blame_many(entry, problem, 1);
    }

    /// Notes a warning of which this record is the first of `count`.
    pub fn blame_many(&mut self, entry: &Entry, problem: Problem, count: usize) {
        let file = self.files.get(usize::from(entry.file)).cloned().unwrap_or_default();
        self.findings.add_many(problem.at(Location::line(file, entry.line as usize)), count);
    }

    /// Notes what is wrong with the file as a whole, if it could be read.
    pub fn blame_file(&mut self, problem: Problem) {
        if let Some(file) = self.files.first() {
            self.findings.add(problem.at(Location::file(file)));
        }
    }

    /// The RRsets of one owner, made of its records. What must not stand beside each other is noted.
    pub fn rrsets(&mut self, owner: &Name, entries: &[Entry]) -> Box<[Rrset]> {
        let is_beside_cname = |e: &&Entry| !matches!(e.rtype, Rtype::CNAME | Rtype::RRSIG | Rtype::NSEC);
        if entries.iter().any(|e| e.rtype == Rtype::CNAME)
            && let Some(other) = entries.iter().find(is_beside_cname)
        {
            self.blame(other, Problem::CnameBesideData { owner: owner.clone() });
        }
        // Signatures of different types are no RRset: each has the TTL of what it signs (RFC 4034 §3).
        let covered = |contents: &Self, entry: &Entry| match entry.rtype {
            Rtype::RRSIG | Rtype::SIG => contents.rdata(entry).first_chunk().copied().unwrap_or_default(),
            _ => [0; 2],
        };
        let mut sorted = Vec::new();
        let entries = if entries.iter().any(|entry| matches!(entry.rtype, Rtype::RRSIG | Rtype::SIG)) {
            sorted.extend_from_slice(entries);
            sorted.sort_by_key(|entry| (entry.rtype, covered(self, entry)));
            &sorted
        } else {
            entries
        };
        let mut rrsets = Vec::new();
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let is_same = |entry: &&Entry| entry.rtype == first.rtype && covered(self, entry) == covered(self, first);
            let count = rest.iter().take_while(is_same).count();
            let (entries, left) = rest.split_at(count);
            rest = left;
            rrsets.push(self.rrset(owner, entries));
        }
        rrsets.into()
    }

    fn rrset(&mut self, owner: &Name, entries: &[Entry]) -> Rrset {
        let rtype = entries[0].rtype;
        let mut rdatas: Vec<Arc<[u8]>> = Vec::with_capacity(entries.len());
        for entry in entries {
            let rdata = self.rdata(entry);
            // A record that is there twice is there once (RFC 2181 §5).
            if !rdatas.iter().any(|known| are_equal(rtype, known, rdata)) {
                rdatas.push(rdata.into());
            }
        }
        let ttl = entries.iter().map(|e| e.ttl).min().unwrap_or_default();
        if let Some(second) = entries.get(1) {
            if rdatas.len() > 1 && matches!(rtype, Rtype::CNAME | Rtype::DNAME) {
                self.blame(second, Problem::SecondAlias { owner: owner.clone(), rtype });
            }
            if let Some(other) = entries.iter().find(|e| e.ttl != entries[0].ttl) {
                self.blame(other, Problem::TtlsDiffer { owner: owner.clone(), rtype, ttl });
            }
        }
        Rrset { rtype, ttl, rdatas }
    }

    /// Appends what makes the RRsets of these records equal to those of others.
    pub fn fingerprint(&self, entries: &[Entry], out: &mut Vec<u8>) {
        for entry in entries {
            out.extend(entry.rtype.0.to_ne_bytes());
            out.extend(entry.ttl.to_ne_bytes());
            out.extend(entry.rdata_bytes.to_ne_bytes());
            out.extend_from_slice(self.rdata(entry));
        }
    }
}

/// The stamp of a file that cannot be read. One that may soon be readable, though nothing about it changes, has none: so it is
/// tried again.
pub(super) fn stamp_of_unreadable(path: &Path, error: &io::Error) -> Option<Stamp> {
    let is_passing = error.kind() == io::ErrorKind::WouldBlock;
    Stamp::of(path).ok().filter(|_| !is_passing)
}
