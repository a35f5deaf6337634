//! A memory cgroup for a daemon: what it may take at most, as `MemoryMax=` of a unit has it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use super::{Setup, require};

/// A memory cgroup (version 1) with a limit. It is removed when this is dropped, which has to be after the daemon's end.
pub struct MemoryGroup {
    folder: PathBuf,
}

impl MemoryGroup {
    /// A group with this limit; `None`, and a line that says so, where the machine lets nobody make one. Tests then have
    /// the peak of the resident memory alone.
    pub fn new(limit_bytes: u64) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = Path::new(ROOT).join(format!("watershed-test-{}-{number}", std::process::id()));
        let is_made = require::root() && fs::create_dir(&folder).is_ok();
        let group = is_made.then_some(Self { folder });
        let group = group
            .filter(|group| fs::write(group.folder.join("memory.limit_in_bytes"), limit_bytes.to_string()).is_ok());
        if group.is_none() {
            eprintln!("no memory cgroup of version 1 can be made at {ROOT}: the resident memory is measured alone");
        }
        group
    }

    /// Has the daemon run inside of it.
    pub fn around(&self, setup: Setup) -> Setup {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.folder.display());
        setup.by(&["sh", "-c", &script, "sh"])
    }

    /// How often the limit was met, which may have ended a process.
    pub fn times_met(&self) -> u64 {
        let text = fs::read_to_string(self.folder.join("memory.failcnt")).expect("the group's counter");
        text.trim().parse().expect("a number")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

const ROOT: &str = "/sys/fs/cgroup/memory";
