//! File systems that do not answer.
//!
//! An open or a read on a network file system, or of a file under a lease, may last for minutes, and nothing ends it. What
//! reads many files therefore runs on a thread of its own, under the eyes of the thread that waits for it. When one access
//! lasts too long, its path is noted as silent and the work is begun anew; an access to a silent path fails at once. The first
//! thread ends when its access comes back, and from then on the path is not silent any more.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// What a thread does with files, seen by the thread that waits for it.
#[derive(Default)]
struct Progress(Mutex<State>);

#[derive(Default)]
struct State {
    /// The access that is under way, and when it began.
    access: Option<(PathBuf, Instant)>,
    /// Whether nothing waits for the thread any more.
    is_given_up: bool,
}

thread_local! {
    /// That of this thread, if it is watched.
    static PROGRESS: RefCell<Option<Arc<Progress>>> = const { RefCell::new(None) };
}

/// The paths at which an access has not come back yet.
static SILENT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Does the work, which reads files, on another thread and returns its outcome. No access to a single path may last longer
/// than `patience`: then the work is begun anew, and finds that this path cannot be read.
///
/// Blocks. The work may run more than once at the same time, and has to be free of side effects.
pub fn patiently<T: Send + 'static>(patience: Duration, work: impl Fn() -> T + Send + Sync + 'static) -> T {
    let work = Arc::new(work);
    let mut patience = patience;
    loop {
        let progress = Arc::new(Progress::default());
        let (done, outcome) = channel();
        let thread = thread::Builder::new().name("files".into()).spawn({
            let (work, progress) = (work.clone(), progress.clone());
            move || {
                PROGRESS.set(Some(progress));
                // Once nothing waits for it, nothing hears it.
                let _ = done.send(work());
            }
        });
        let Ok(thread) = thread else { return work() };
        loop {
            match outcome.recv_timeout(LOOK_INTERVAL) {
                Ok(outcome) => return outcome,
                Err(RecvTimeoutError::Disconnected) => match thread.join() {
                    Err(panic) => resume_unwind(panic),
                    // It sends before it ends.
                    Ok(()) => return work(),
                },
                Err(RecvTimeoutError::Timeout) if progress.is_stuck_for(patience) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        // What lies beside a silent file is often silent as well.
        patience = patience.min(SHORT_PATIENCE);
    }
}

/// Accesses a path. Within [`patiently`] a path that is known to be silent fails at once.
pub fn access<T>(path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    PROGRESS.with_borrow(|progress| {
        let Some(progress) = progress else { return act() };
        progress.begin(path)?;
        let outcome = act();
        progress.end(path);
        outcome
    })
}

impl Progress {
    fn begin(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if state.is_given_up || is_silent(path) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer"));
        }
        state.access = Some((path.to_owned(), Instant::now()));
        Ok(())
    }

    fn end(&self, path: &Path) {
        let mut state = self.0.lock();
        state.access = None;
        if state.is_given_up {
            SILENT.lock().remove(path);
        }
    }

    /// True if the access under way has lasted this long: its path is silent then, and the thread is given up.
    fn is_stuck_for(&self, patience: Duration) -> bool {
        let mut state = self.0.lock();
        let Some((path, since)) = state.access.take() else { return false };
        if since.elapsed() < patience {
            state.access = Some((path, since));
            return false;
        }
        state.is_given_up = true;
        SILENT.lock().insert(path);
        true
    }
}

/// Whether an access to the path has not come back, or several to the files of its folder.
fn is_silent(path: &Path) -> bool {
    let silent = SILENT.lock();
    let beside = |folder: &Path| silent.iter().filter(|known| known.parent() == Some(folder)).count();
    !silent.is_empty() && (silent.contains(path) || path.parent().is_some_and(|folder| beside(folder) >= MOST_SILENT))
}

/// How often it is looked whether an access lasts too long.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The patience with a second silent path.
const SHORT_PATIENCE: Duration = Duration::from_millis(100);
/// With so many silent paths in a folder, its other files are not tried.
const MOST_SILENT: usize = 3;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Accesses to these paths wait until the gate is opened.
    fn reads(paths: &'static [&'static str], gate: Arc<Mutex<()>>) -> Vec<bool> {
        patiently(Duration::from_millis(50), move || {
            let act = |path: &str| {
                if path.contains("silent") {
                    drop(gate.lock());
                }
                Ok(())
            };
            paths.iter().map(|path| access(Path::new(path), || act(path)).is_ok()).collect()
        })
    }

    #[test]
    fn what_does_not_come_back_costs_itself_alone_until_it_does() {
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        let paths = &["/a/first", "/a/silent", "/a/last"];
        assert_eq!(reads(paths, gate.clone()), [true, false, true]);
        let begun = Instant::now();
        assert_eq!(reads(paths, gate.clone()), [true, false, true]);
        assert!(begun.elapsed() < Duration::from_millis(50), "it is known by now");
        drop(closed);
        while SILENT.lock().contains(Path::new("/a/silent")) {
            thread::yield_now();
        }
        assert_eq!(reads(paths, gate), [true; 3]);
    }

    #[test]
    fn a_folder_of_silent_files_is_not_tried_file_by_file() {
        let gate = Arc::new(Mutex::new(()));
        let _closed = gate.lock();
        let paths = &["/b/silent1", "/b/silent2", "/b/silent3", "/b/silent4", "/b/silent5", "/c/other"];
        assert_eq!(reads(paths, gate.clone()), [false, false, false, false, false, true]);
        assert_eq!(SILENT.lock().iter().filter(|path| path.starts_with("/b")).count(), MOST_SILENT);
    }

    #[test]
    fn work_without_a_silent_path_is_done_once_and_its_panic_goes_on() {
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        patiently(Duration::from_millis(50), move || {
            thread::sleep(Duration::from_millis(120)); // not an access
            counted.fetch_add(1, Ordering::Relaxed)
        });
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let work = || patiently(Duration::from_secs(1), || panic!("as it should"));
        assert!(std::panic::catch_unwind(work).is_err());
    }
}
