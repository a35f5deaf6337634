//! Tells when files change.
//!
//! Folders are watched, not files: editors put a new file in the old one's place. What is watched are the folders of the files,
//! the folder in which each watched folder lies, and each folder with a symbolic link on the way to a file: so a link that is
//! exchanged, a folder that is replaced, and a target in another folder are noticed. The system does not tell of everything: not
//! of what a mount hides or shows, nor of what another host does. So every two seconds the files are also compared with what they
//! were when they were read. Where the system cannot watch at all (inotify has run out), folders are looked at twice a second.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    ffi::OsString,
    fs, io, mem,
    path::{Component, Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use notify::{Config, ErrorKind, EventKind, PollWatcher, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::files::{self, Stamp};

/// Watches files until dropped.
pub(super) struct Watch {
    watched: Mutex<Watched>,
    wanted: Mutex<Wanted>,
    changed: Changed,
}

/// What is to be followed as soon as what was to be followed before is.
#[derive(Default)]
struct Wanted {
    next: Option<Followed>,
    /// Whether a thread sees to that.
    is_in_work: bool,
}

struct Watched {
    watcher: Box<dyn Watcher + Send>,
    /// The folders that are watched, by their real paths, as they were then.
    folders: BTreeMap<PathBuf, Stamp>,
}

/// What is to be followed.
#[derive(Default)]
pub(super) struct Followed {
    /// Folders in which every entry counts.
    pub folders: BTreeSet<PathBuf>,
    /// Files, and links to files.
    pub files: BTreeSet<PathBuf>,
    /// Files and folders as they were when they were read.
    pub stamps: Vec<(PathBuf, Option<Stamp>)>,
    /// Further comparisons with what was read: each gives the paths that have changed since.
    pub comparisons: Vec<Comparison>,
}

/// Gives the paths of what has changed since it was read.
pub(super) type Comparison = Arc<dyn Fn() -> Vec<PathBuf> + Send + Sync>;

/// What has changed, and whom to tell.
#[derive(Clone)]
struct Changed {
    /// `None` if that cannot be told path by path.
    paths: Arc<Mutex<Option<BTreeSet<PathBuf>>>>,
    interest: Arc<Mutex<Interest>>,
    compared: Arc<Mutex<Compared>>,
    word: mpsc::Sender<()>,
}

/// For whom an event in a watched folder is.
#[derive(Default)]
struct Interest {
    /// By the real path of a folder in which every entry counts: how it is called by those who read it.
    folders: HashMap<PathBuf, Vec<PathBuf>>,
    /// By the real path of an entry on the way to a file or folder: how that is called by those who read it.
    entries: HashMap<PathBuf, Vec<PathBuf>>,
}

/// What [`compare`] looks at, whatever that is at the time.
#[derive(Clone)]
pub(super) struct Comparing(Changed);

/// What is compared with the disk now and then.
#[derive(Clone, Default)]
struct Compared {
    stamps: Arc<Vec<(PathBuf, Option<Stamp>)>>,
    comparisons: Vec<Comparison>,
}

impl Watch {
    /// Watches nothing yet. There is a word after a change; it need not have room for more than one.
    pub fn new(word: mpsc::Sender<()>) -> notify::Result<Self> {
        let changed = Changed {
            paths: Arc::new(Mutex::new(Some(BTreeSet::new()))),
            interest: Arc::default(),
            compared: Arc::default(),
            word,
        };
        let watcher = RecommendedWatcher::new(handler(changed.clone()), Config::default());
        let watcher: Box<dyn Watcher + Send> = match watcher {
            Ok(watcher) => Box::new(watcher),
            Err(error) => polling(&changed, &error)?,
        };
        Ok(Self { watched: Watched { watcher, folders: BTreeMap::new() }.into(), wanted: Mutex::default(), changed })
    }

    /// Follows these instead of those so far, beside the caller: looking for the folders may take as long as a file system
    /// likes.
    pub fn follow(self: Arc<Self>, mut followed: Followed) {
        let (stamps, comparisons) = (mem::take(&mut followed.stamps), mem::take(&mut followed.comparisons));
        *self.changed.compared.lock() = Compared { stamps: stamps.into(), comparisons };
        let mut wanted = self.wanted.lock();
        wanted.next = Some(followed);
        if !mem::replace(&mut wanted.is_in_work, true) {
            drop(wanted);
            tokio::task::spawn_blocking(move || self.follow_wanted());
        }
    }

    fn follow_wanted(&self) {
        loop {
            let next = {
                let mut wanted = self.wanted.lock();
                wanted.is_in_work = wanted.next.is_some();
                wanted.next.take()
            };
            let Some(next) = next else { return };
            self.watched.lock().follow(next, &self.changed);
        }
    }

    /// The paths of all that has changed since this was asked last; `None` if it may be anything.
    pub fn take_changed(&self) -> Option<BTreeSet<PathBuf>> {
        self.changed.paths.lock().replace(BTreeSet::new())
    }

    /// Tells of a change that may be anything.
    pub fn note_change(&self) {
        self.changed.note(None);
    }

    /// For [`compare`].
    pub fn compared(&self) -> Comparing {
        Comparing(self.changed.clone())
    }
}

impl Watched {
    fn follow(&mut self, followed: Followed, changed: &Changed) {
        let mut ways = Ways::default();
        followed.folders.iter().for_each(|folder| ways.add_folder(folder));
        followed.files.iter().for_each(|file| ways.add_file(file));
        *changed.interest.lock() = ways.interest;
        if let Err(error) = self.change_to(&ways.watched, changed) {
            match polling(changed, &error) {
                Ok(watcher) => {
                    self.watcher = watcher;
                    self.folders.clear();
                    if let Err(error) = self.change_to(&ways.watched, changed) {
                        tracing::error!(%error, "cannot watch files; changes are noticed after some seconds");
                    }
                }
                Err(error) => tracing::error!(%error, "cannot watch files; changes are noticed after some seconds"),
            }
        }
    }

    fn change_to(&mut self, folders: &BTreeSet<PathBuf>, changed: &Changed) -> notify::Result<()> {
        let gone: Vec<_> = self.folders.keys().filter(|folder| !folders.contains(*folder)).cloned().collect();
        for folder in gone {
            // It may be gone from the disk as well, and then is not watched any more.
            let _ = self.watcher.unwatch(&folder);
            self.folders.remove(&folder);
        }
        for folder in folders {
            let Ok(stamp) = Stamp::of(folder) else { continue };
            if let Some(before) = self.folders.get(folder) {
                if before.is_same_file(&stamp) {
                    continue;
                }
                // Another folder has taken its place; the watch is that of the one which was there.
                let _ = self.watcher.unwatch(folder);
                self.folders.remove(folder);
            }
            match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.folders.insert(folder.clone(), stamp)),
                // It has gone meanwhile, or may not be read: then comparing has to do.
                Err(error) if is_of_folder(&error) => continue,
                Err(error) => return Err(error),
            }
            // What has changed in it after it was read, and before it was watched, nobody has told.
            changed.note(None);
        }
        Ok(())
    }
}

/// Compares what is followed with what was read, now and then, until told to stop.
pub(super) async fn compare(Comparing(changed): Comparing, stopping: CancellationToken) {
    let mut pause = COMPARE_INTERVAL;
    while stopping.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let compared = changed.compared.lock().clone();
        let begun = Instant::now();
        let paths = tokio::task::spawn_blocking(|| files::patiently(PATIENCE, move || compared.changed_paths()));
        let Some(paths) = stopping.run_until_cancelled(paths).await else { return };
        let Ok(paths) = paths else { continue };
        // However many files there are, this takes no more than a hundredth of a core.
        pause = COMPARE_INTERVAL.max(100 * begun.elapsed()).min(LONGEST_COMPARE_INTERVAL);
        if !paths.is_empty() {
            changed.note(Some(paths));
        }
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

impl Compared {
    fn changed_paths(&self) -> Vec<PathBuf> {
        let is_changed = |(path, stamp): &&(PathBuf, Option<Stamp>)| Stamp::of(path).ok() != *stamp;
        let mut paths: Vec<PathBuf> = self.stamps.iter().filter(is_changed).map(|(path, _)| path.clone()).collect();
        paths.extend(self.comparisons.iter().flat_map(|compare| compare()));
        paths
    }
}

impl Interest {
    /// The paths, as those who read them call them, to which an event at a real path matters.
    fn concerned(&self, path: &Path) -> Vec<PathBuf> {
        let mut concerned: Vec<PathBuf> = self.entries.get(path).into_iter().flatten().cloned().collect();
        concerned.extend(self.folders.get(path).into_iter().flatten().cloned());
        if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
            concerned.extend(self.folders.get(folder).into_iter().flatten().map(|folder| folder.join(name)));
        }
        concerned
    }
}

/// The ways to what is followed.
#[derive(Default)]
struct Ways {
    interest: Interest,
    watched: BTreeSet<PathBuf>,
    /// Where paths of folders lead, and by which steps.
    known: HashMap<PathBuf, Way>,
}

/// The way that a path leads.
#[derive(Clone, Default)]
struct Way {
    steps: Vec<Step>,
    /// Where it ends; nothing if it leads nowhere.
    end: Option<PathBuf>,
}

/// An entry on the way, by its real path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    entry: PathBuf,
    is_link: bool,
}

impl Ways {
    fn add_folder(&mut self, path: &Path) {
        let way = self.way_of(path);
        self.add(path, &way);
        if let Some(end) = way.end {
            self.watched.insert(end.clone());
            self.interest.folders.entry(end).or_default().push(path.to_owned());
        }
    }

    fn add_file(&mut self, path: &Path) {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return };
        // Many files lie in one folder.
        let mut way = self.way_of(folder);
        if let Some(end) = way.end.take() {
            let last = walk(end, [name.to_owned()].into());
            way.steps.extend(last.steps);
        }
        self.add(path, &way);
    }

    fn add(&mut self, path: &Path, way: &Way) {
        let last = way.steps.len().saturating_sub(1);
        for (number, step) in way.steps.iter().enumerate() {
            self.interest.entries.entry(step.entry.clone()).or_default().push(path.to_owned());
            // Folders further up are seldom moved and often busy: comparing has to do for those.
            if step.is_link || number == last {
                self.watched.extend(step.entry.parent().map(Path::to_owned));
            }
        }
    }

    fn way_of(&mut self, folder: &Path) -> Way {
        if let Some(way) = self.known.get(folder) {
            return way.clone();
        }
        let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let way = walk(PathBuf::from("/"), components(&absolute));
        self.known.insert(folder.to_owned(), way.clone());
        way
    }
}

/// Follows components from a real folder, link by link.
fn walk(from: PathBuf, mut components: VecDeque<OsString>) -> Way {
    let (mut here, mut steps, mut links) = (from, Vec::new(), 0);
    while let Some(component) = components.pop_front() {
        if component == ".." {
            here.pop();
            continue;
        }
        let entry = here.join(component);
        let target = fs::read_link(&entry);
        steps.push(Step { entry: entry.clone(), is_link: target.is_ok() });
        match target {
            Ok(target) => {
                links += 1;
                if links > MOST_LINKS {
                    return Way { steps, end: None };
                }
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                let mut way = self::components(&target);
                way.append(&mut components);
                components = way;
            }
            Err(_) if fs::symlink_metadata(&entry).is_err() => return Way { steps, end: None },
            Err(_) => here = entry,
        }
    }
    Way { steps, end: Some(here) }
}

/// The names in a path, and `..`.
fn components(path: &Path) -> VecDeque<OsString> {
    let is_step = |component: &Component<'_>| matches!(component, Component::Normal(_) | Component::ParentDir);
    path.components().filter(is_step).map(|component| component.as_os_str().to_owned()).collect()
}

/// Returns true if the error is that of one folder, not of watching.
fn is_of_folder(error: &notify::Error) -> bool {
    match &error.kind {
        ErrorKind::PathNotFound => true,
        ErrorKind::Io(error) => {
            use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
            matches!(error.kind(), NotFound | PermissionDenied | NotADirectory)
        }
        _ => false,
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
        Ok(event) if !event.need_rescan() && !event.paths.is_empty() => {
            let interest = changed.interest.lock();
            let concerned: Vec<_> = event.paths.iter().flat_map(|path| interest.concerned(path)).collect();
            drop(interest);
            if !concerned.is_empty() {
                changed.note(Some(concerned));
            }
        }
        _ => changed.note(None),
    }
}

/// More paths are not worth their memory: everything is looked at then.
const MOST_PATHS: usize = 10_000;
/// As many as the kernel follows.
const MOST_LINKS: usize = 40;
/// Leaves half a second of "within a second" for reading.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often files are compared with what they were when they were read, if there are not very many.
const COMPARE_INTERVAL: Duration = Duration::from_secs(2);
const LONGEST_COMPARE_INTERVAL: Duration = Duration::from_secs(60);
/// How long one comparison may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder by its real path, in which `what` was done.
    fn folder(what: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        what(&real);
        (folder, real)
    }

    fn concerned(ways: &Ways, path: &Path) -> bool {
        let folder = path.parent().unwrap();
        ways.watched.contains(folder) && !ways.interest.concerned(path).is_empty()
    }

    #[test]
    fn every_link_on_the_way_to_a_file_is_watched() {
        let (_kept, root) = folder(|root| {
            fs::create_dir_all(root.join("real/..v1")).unwrap();
            fs::write(root.join("real/..v1/site.zone"), "").unwrap();
            symlink("..v1", root.join("real/..data")).unwrap();
            symlink("..data/site.zone", root.join("real/site.zone")).unwrap();
            symlink(root.join("real"), root.join("zones")).unwrap();
        });
        let mut ways = Ways::default();
        let file = root.join("zones/site.zone");
        ways.add_file(&file);
        for (entry, expected) in [
            ("zones", true),               // the folder's link
            ("real/site.zone", true),      // the file's link
            ("real/..data", true),         // the link on its way
            ("real/..v1/site.zone", true), // what it leads to
            ("real/other.zone", false),
            ("other", false),
        ] {
            assert_eq!(concerned(&ways, &root.join(entry)), expected, "{entry}");
        }
        assert_eq!(ways.interest.concerned(&root.join("real/..data")), [file]);
    }

    #[test]
    fn a_folder_is_watched_with_its_entries_under_the_name_it_is_read_by() {
        let (_kept, root) = folder(|root| {
            fs::create_dir_all(root.join("rev1/zones")).unwrap();
            symlink("rev1", root.join("current")).unwrap();
        });
        let mut ways = Ways::default();
        ways.add_folder(&root.join("current/zones"));
        for (entry, expected) in [
            ("rev1/zones/a.zone", "current/zones/a.zone"),
            ("rev1/zones", "current/zones"), // replaced
            ("current", "current/zones"),    // exchanged
        ] {
            assert!(ways.watched.contains(root.join(entry).parent().unwrap()), "{entry}");
            assert!(ways.interest.concerned(&root.join(entry)).contains(&root.join(expected)), "{entry}");
        }
        assert!(ways.interest.concerned(&root.join("rev1/other")).is_empty());
    }

    #[test]
    fn the_nearest_folder_of_what_is_missing_is_watched() {
        let (_kept, root) = folder(|root| {
            fs::create_dir(root.join("there")).unwrap();
            symlink("../there/missing", root.join("there/link")).unwrap();
            symlink("circle", root.join("circle")).unwrap();
        });
        for (path, entry) in [
            ("missing/zones", "missing"),
            ("there/link", "there/missing"), // a link to nowhere
            ("circle", "circle"),
        ] {
            let mut ways = Ways::default();
            ways.add_folder(&root.join(path));
            assert!(concerned(&ways, &root.join(entry)), "{path}");
            let mut ways = Ways::default();
            ways.add_file(&root.join(path));
            assert!(concerned(&ways, &root.join(entry)), "{path}");
        }
    }
}
