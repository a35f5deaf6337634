//! What is made of the octets at the beginning of an input: the choices that it is tried with.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use watershed::wire::{Asker, ClientEdns, Cookie, Name, ReplyOptions, ReplySize};

/// Octets, taken from the front. Past their end all are zero.
pub(crate) struct Octets<'a>(pub &'a [u8]);

impl<'a> Octets<'a> {
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    pub fn bit(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A name of up to four labels of up to 15 octets, below `apex`.
    pub fn name(&mut self, apex: &Name) -> Name {
        let labels = self.byte() % 5;
        let child = |name: Name, label: &[u8]| name.child(label).unwrap_or(name);
        (0..labels).fold(apex.clone(), |name, _| {
            let length = usize::from(self.byte() % 16);
            child(name, self.take(length))
        })
    }

    /// A client that asks by UDP, or by TCP.
    pub fn asker(&mut self) -> Asker {
        let flags = self.byte();
        let has = |bit: u8| flags & 1 << bit != 0;
        let edns = ClientEdns { udp_size: self.word(), version: 0, dnssec_ok: has(0) };
        let edns = has(1).then_some(edns);
        // As `Query::asker` bounds it; what that does is looked at with queries.
        let limit_bytes = match edns {
            _ if has(2) => 65_535,
            None => 512,
            Some(edns) => usize::from(edns.udp_size.min(1232)).max(512),
        };
        Asker {
            id: self.word(),
            recursion_desired: has(3),
            checking_disabled: has(4),
            wants_ad: has(5),
            edns,
            options: ReplyOptions {
                cookie: (edns.is_some() && has(6)).then_some(Cookie { data: [7; 24], is_proof: false }),
                keepalive: None,
                padded: edns.is_some() && has(7),
            },
            limit_bytes,
        }
    }
}

/// A folder that is gone when this is, in memory where that is possible: each input makes one.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("watershed-fuzz-{}-{number}", std::process::id()));
        fs::create_dir(&path).expect("a folder of our own");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into it.
    pub fn file(&self, name: &str, octets: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, octets).expect("a folder to write to");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind costs memory, and is no fault of what is tried.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Bounds replies as servers do by default.
pub(crate) const DATAGRAM: ReplySize = ReplySize::Datagram { ceiling_bytes: 1232 };

/// The name in this text.
pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}
