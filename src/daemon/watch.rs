//! Tells when files change.
//!
//! Folders are watched, not files: editors put a new file in the old one's place. Where the system cannot watch (inotify has
//! run out, or the file system does not tell), the files are looked at twice a second.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{Config, EventKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Watches files until dropped.
pub(super) struct Watch {
    watcher: Box<dyn Watcher + Send>,
    folders: BTreeSet<PathBuf>,
    changed: Changed,
}

/// What has changed, and whom to tell.
#[derive(Clone)]
struct Changed {
    /// `None` if that cannot be told path by path.
    paths: Arc<Mutex<Option<BTreeSet<PathBuf>>>>,
    word: mpsc::Sender<()>,
}

impl Watch {
    /// Watches nothing yet. There is a word after a change; it need not have room for more than one.
    pub fn new(word: mpsc::Sender<()>) -> notify::Result<Self> {
        let changed = Changed { paths: Arc::new(Mutex::new(Some(BTreeSet::new()))), word };
        let watcher = RecommendedWatcher::new(handler(changed.clone()), Config::default());
        let watcher: Box<dyn Watcher + Send> = match watcher {
            Ok(watcher) => Box::new(watcher),
            Err(error) => polling(&changed, &error)?,
        };
        Ok(Self { watcher, folders: BTreeSet::new(), changed })
    }

    /// Watches the folders of these paths, and those that are folders, instead of those so far.
    pub fn follow<'p>(&mut self, paths: impl Iterator<Item = &'p Path>) {
        let folders: BTreeSet<PathBuf> = paths.filter_map(folder_of).collect();
        if let Err(error) = self.change_to(&folders) {
            match polling(&self.changed, &error) {
                Ok(watcher) => {
                    self.watcher = watcher;
                    self.folders.clear();
                    if let Err(error) = self.change_to(&folders) {
                        tracing::error!(%error, "cannot watch files; reload by SIGHUP after changes");
                    }
                }
                Err(error) => tracing::error!(%error, "cannot watch files; reload by SIGHUP after changes"),
            }
        }
    }

    /// The paths of all that has changed since this was asked last; `None` if it may be anything.
    pub fn take_changed(&self) -> Option<BTreeSet<PathBuf>> {
        self.changed.paths.lock().replace(BTreeSet::new())
    }

    fn change_to(&mut self, folders: &BTreeSet<PathBuf>) -> notify::Result<()> {
        for gone in self.folders.difference(folders) {
            // It may be gone from the disk as well, and then is not watched any more.
            let _ = self.watcher.unwatch(gone);
        }
        for new in folders.difference(&self.folders) {
            self.watcher.watch(new, RecursiveMode::NonRecursive)?;
            // What has changed in it after it was read, and before it was watched, nobody has told.
            self.changed.note(None);
        }
        self.folders.clone_from(folders);
        Ok(())
    }
}

impl Changed {
    fn note(&self, paths: Option<Vec<PathBuf>>) {
        let mut changed = self.paths.lock();
        match (&mut *changed, paths) {
            (Some(changed), Some(paths)) => changed.extend(paths),
            (changed, _) => *changed = None,
        }
        if changed.as_ref().is_some_and(|changed| changed.len() > MOST_PATHS) {
            *changed = None;
        }
        // If there is no room, a word of an earlier change waits to be heard.
        let _ = self.word.try_send(());
    }
}

fn polling(changed: &Changed, error: &notify::Error) -> notify::Result<Box<dyn Watcher + Send>> {
    tracing::warn!(%error, "cannot be told of changed files; looking at them twice a second");
    let config = Config::default().with_poll_interval(POLL_INTERVAL);
    Ok(Box::new(PollWatcher::new(handler(changed.clone()), config)?))
}

fn handler(changed: Changed) -> impl notify::EventHandler {
    move |event: notify::Result<notify::Event>| match event {
        // Reading a file is no change, and we read them ourselves.
        Ok(event) if matches!(event.kind, EventKind::Access(_)) => {}
        Ok(event) if !event.need_rescan() && !event.paths.is_empty() => changed.note(Some(event.paths)),
        _ => changed.note(None),
    }
}

/// The folder to watch; the nearest that exists, to learn when a missing one appears.
fn folder_of(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return Some(path.to_owned());
    }
    // A link is replaced where it lies, its target where that lies; the file's own folder is the one that operators touch.
    path.ancestors().skip(1).find(|folder| folder.is_dir()).map(Path::to_owned)
}

/// More paths are not worth their memory: everything is looked at then.
const MOST_PATHS: usize = 10_000;
/// Leaves half a second of "within a second" for reading.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
