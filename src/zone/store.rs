//! All files of local data as one value, and how the next value comes from it.
//!
//! Loading reads what has changed. A file whose every part (itself and what it includes) is as it was keeps its table and so
//! its generation. A file with faults keeps its last good version: the one in service or, at a start, its copy on disk. A zone
//! without either is answered with SERVFAIL, for its names are not for others to answer; an overlay or hosts file without
//! either holds no names, for nobody knows which. A folder that cannot be listed keeps its files.

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytesize::ByteSize;

use super::{
    Config, Error, Hosts, Mode, Ordered, Overlay, Overlays, Problem, Zone,
    contents::{Contents, Origin, Stamps, stamp_of_unreadable},
    file,
};
use crate::{
    files::{self, Copies, Stamp, Version, access, is_absent, is_removed},
    location::Location,
    wire::{Name, read_name},
};

/// A file of local data, and for which names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The master file.
    pub path: PathBuf,
    /// The name above which it says nothing.
    pub apex: Name,
    /// How much of what is below it claims.
    pub mode: Mode,
}

/// What has been read from the files of local data.
#[derive(Default)]
pub struct Files {
    zones: Vec<Loaded<Zone>>,
    overlays: Vec<Loaded<Overlay>>,
    hosts: Vec<Loaded<Hosts>>,
    faulty: Vec<Faulty>,
    /// Every file and folder that was looked at, as it was then.
    stamps: Stamps,
    /// [`Config::hosts_fallthrough`].
    hosts_fallthrough: bool,
    /// What `zones.order` says.
    order: Vec<PathBuf>,
    /// Warnings about the folder and the order, which are given again only when they change.
    notes: Vec<Error>,
}

/// What loading came to.
pub struct Outcome {
    /// The files without faults, and the last good versions of the others.
    pub files: Files,
    /// Every fault.
    pub faults: Vec<Error>,
    /// What is odd in the files that were read anew.
    pub warnings: Vec<Error>,
    /// The files that were read anew and are good, if copies are kept.
    pub versions: Vec<Version>,
    /// [`Config::max_file_bytes`].
    most_bytes: u64,
}

/// A file or folder with faults.
#[derive(Debug, Clone)]
pub struct Faulty {
    /// The file.
    pub path: PathBuf,
    /// Its faults, those of included files among them.
    pub faults: Vec<Error>,
    /// What is served in its place.
    pub instead: Instead,
    /// For which names it is; nothing if that cannot be said.
    source: Option<Source>,
    stamps: Stamps,
}

/// What is served in the place of a file with faults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Instead {
    /// Its last good version.
    LastGood,
    /// SERVFAIL for all names of this zone.
    Failure(Name),
    /// Nothing: names that it might hold are answered as if it were not there.
    Nothing,
}

/// What a file of local data holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The file, its apex, and how much of it is claimed.
    pub source: Source,
    /// How many records it has; of a hosts file, how many names, those of its addresses included.
    pub records: usize,
    /// Whether it is a hosts file.
    pub is_hosts: bool,
}

struct Loaded<T> {
    source: Source,
    /// The files as they were when they were read; nothing if they were read from a copy.
    stamps: Option<Stamps>,
    records: usize,
    value: Arc<T>,
}

/// What a load starts from.
#[derive(Clone, Copy)]
struct Before<'a> {
    files: &'a Files,
    copies: &'a Copies,
}

impl Files {
    /// Reads the files of `[[zone]]`, in their order, and those of `[zones]`.
    ///
    /// `previous` is what has been loaded so far; what has not changed is taken from there. The last good version of a file
    /// that `previous` does not have is looked for among the copies.
    pub fn load(config: &Config, zones: &[Source], previous: Option<&Self>, copies: &Copies) -> Outcome {
        let nothing = Self::default();
        let before = Before { files: previous.unwrap_or(&nothing), copies };
        let files = Self { hosts_fallthrough: config.hosts_fallthrough, ..Self::default() };
        let most_bytes = config.max_file_bytes.as_u64();
        let mut outcome = Outcome { files, faults: Vec::new(), warnings: Vec::new(), versions: Vec::new(), most_bytes };
        let mut sources = zones.to_vec();
        sources.extend(outcome.list(config, zones, before));
        let may_be_ordered: Vec<PathBuf> = sources
            .iter()
            .filter(|source| source.mode == Mode::Overlay)
            .map(|source| source.path.clone())
            .chain(config.hosts.iter().cloned())
            .collect();
        for source in sources {
            match source.mode {
                Mode::Zone => outcome.load_zone(source, before),
                Mode::Overlay => {
                    let known = &before.files.overlays;
                    let loaded = outcome.load_one(source, known, before, Overlay::build, Overlay::warnings);
                    outcome.files.overlays.extend(loaded);
                }
            }
        }
        for path in &config.hosts {
            outcome.load_hosts(path, before);
        }
        outcome.files.order.clone_from(&config.order);
        outcome.files.notes = outcome.notes(config, &may_be_ordered);
        let known = &before.files.notes;
        outcome.warnings.extend(outcome.files.notes.iter().filter(|note| !known.contains(note)).cloned());
        outcome.faults = outcome.files.faulty.iter().flat_map(|faulty| faulty.faults.iter().cloned()).collect();
        outcome
    }

    /// The whole zones.
    pub fn zones(&self) -> impl Iterator<Item = &Arc<Zone>> {
        self.zones.iter().map(|loaded| &loaded.value)
    }

    /// The apexes of the zones that have faults and no good version.
    pub fn failed_zones(&self) -> impl Iterator<Item = &Name> {
        self.faulty.iter().filter_map(|faulty| match &faulty.instead {
            Instead::Failure(apex) => Some(apex),
            _ => None,
        })
    }

    /// The overlays and hosts files, those that `zones.order` lists first.
    pub fn overlays(&self) -> Overlays {
        let place = |source: &Source| self.order.iter().position(|entry| is_meant(entry, &source.path));
        let mut ordered = Vec::new();
        let (mut overlays, mut hosts) = (Vec::new(), Vec::new());
        for Loaded { source, value, .. } in &self.overlays {
            match place(source) {
                Some(place) => ordered.push((place, Ordered::Overlay(value.clone()))),
                None => overlays.push(value.clone()),
            }
        }
        for Loaded { source, value, .. } in &self.hosts {
            match place(source) {
                Some(place) => ordered.push((place, Ordered::Hosts(value.clone()))),
                None => hosts.push(value.clone()),
            }
        }
        ordered.sort_by_key(|&(place, _)| place);
        let ordered = ordered.into_iter().map(|(_, file)| file).collect();
        Overlays::new(overlays, hosts).with_ordered(ordered).with_hosts_fallthrough(self.hosts_fallthrough)
    }

    /// What each file holds, in the order in which they were read.
    pub fn summaries(&self) -> Vec<Summary> {
        fn of<T>(loaded: &Loaded<T>, is_hosts: bool) -> Summary {
            Summary { source: loaded.source.clone(), records: loaded.records, is_hosts }
        }
        let zones = self.zones.iter().map(|loaded| of(loaded, false));
        let overlays = self.overlays.iter().map(|loaded| of(loaded, false));
        zones.chain(overlays).chain(self.hosts.iter().map(|loaded| of(loaded, true))).collect()
    }

    /// The files and folders that have faults, each once.
    pub fn faulty(&self) -> &[Faulty] {
        &self.faulty
    }

    /// Every file that was read or should have been, included ones and folders too, as it was then: when one changes or
    /// appears, it is time to load again.
    pub fn stamps(&self) -> &[(PathBuf, Option<Stamp>)] {
        &self.stamps
    }

    /// The files whose copies are to be kept: all but those that were removed.
    pub fn kept(&self) -> HashSet<PathBuf> {
        let faulty = self.faulty.iter().filter(|faulty| !is_removed(&faulty.path));
        let loaded = self.tables().map(|(_, source)| source.path.clone()).filter(|path| !is_removed(path));
        loaded.chain(faulty.map(|faulty| faulty.path.clone())).collect()
    }

    /// The identity of each zone, overlay and hosts file.
    pub fn generations(&self) -> impl Iterator<Item = u64> {
        self.tables().map(|(generation, _)| generation)
    }

    /// The file from which the table of this generation was read.
    pub fn path_of(&self, generation: u64) -> Option<&Path> {
        self.tables().find(|&(known, _)| known == generation).map(|(_, source)| source.path.as_path())
    }

    /// Each table's generation and file.
    pub fn tables(&self) -> impl Iterator<Item = (u64, &Source)> {
        let zones = self.zones.iter().map(|loaded| (loaded.value.generation(), &loaded.source));
        let overlays = self.overlays.iter().map(|loaded| (loaded.value.generation(), &loaded.source));
        zones.chain(overlays).chain(self.hosts.iter().map(|loaded| (loaded.value.generation(), &loaded.source)))
    }
}

impl Outcome {
    /// The files of the configured folder; if it cannot be listed, those that came from there before.
    fn list(&mut self, config: &Config, zones: &[Source], before: Before<'_>) -> Vec<Source> {
        let directory = config.directory();
        let stamp = Stamp::of(directory).ok();
        self.files.stamps.push((directory.to_path_buf(), stamp));
        let error = match list_directory(directory) {
            Ok(listed) => {
                let (sources, misnamed): (Vec<_>, Vec<_>) = listed.into_iter().partition(Result::is_ok);
                for error in misnamed.into_iter().filter_map(Result::err) {
                    let path = error.location.file.clone();
                    self.refuse(path, None, vec![error], Instead::Nothing, Vec::new());
                }
                return sources.into_iter().flatten().collect();
            }
            Err(_) if config.directory.is_none() && is_absent(directory) => return Vec::new(),
            Err(error) => Problem::NoDirectory(error.to_string()).at(Location::file(directory)),
        };
        self.refuse(directory.to_path_buf(), None, vec![error], Instead::Nothing, Vec::new());
        let is_from_here = |path: &Path| path.parent() == Some(directory);
        let known = before.files.tables().map(|(_, source)| source);
        let faulty = before.files.faulty.iter().filter_map(|faulty| faulty.source.as_ref());
        let mut sources: Vec<Source> =
            known.chain(faulty).filter(|source| is_from_here(&source.path)).cloned().collect();
        let copied = before.copies.paths().into_iter().filter(|path| is_from_here(path));
        sources.extend(copied.filter_map(|path| source_of(path)?.ok()));
        // Files of [[zone]] and hosts files may lie in the folder, too. Each file counts once.
        let mut seen: HashSet<PathBuf> = zones.iter().map(|source| source.path.clone()).collect();
        sources.retain(|source| source_of(source.path.clone()).is_some() && seen.insert(source.path.clone()));
        sources.sort_by(|a, b| a.path.cmp(&b.path));
        sources
    }

    /// What is odd about the folder as a whole and about the order.
    fn notes(&self, config: &Config, may_be_ordered: &[PathBuf]) -> Vec<Error> {
        let directory = config.directory();
        let passed_over = list_passed_over(directory, &self.files.stamps);
        let mut notes = Vec::new();
        if !passed_over.is_empty() {
            notes.push(Problem::PassedOver(passed_over).at(Location::file(directory)));
        }
        let is_known = |entry: &PathBuf| may_be_ordered.iter().any(|path| is_meant(entry, path));
        let unknown = config.order.iter().filter(|entry| !is_known(entry));
        notes.extend(unknown.map(|entry| Problem::OrderOfNothing(entry.clone()).at(Location::file(directory))));
        notes
    }

    fn load_zone(&mut self, source: Source, before: Before<'_>) {
        let served = self.files.zones.iter().map(|loaded| &loaded.source);
        let failed = self.files.faulty.iter().filter_map(|faulty| faulty.source.as_ref());
        let failed = failed.filter(|source| source.mode == Mode::Zone);
        if let Some(other) = served.chain(failed).find(|other| other.apex == source.apex) {
            let problem = Problem::SameApex { apex: source.apex.clone(), other: other.path.clone() };
            let error = problem.at(Location::file(&source.path));
            return self.refuse(source.path, None, vec![error], Instead::Nothing, Vec::new());
        }
        let loaded = self.load_one(source, &before.files.zones, before, Zone::build, Zone::warnings);
        self.files.zones.extend(loaded);
    }

    fn load_one<T>(
        &mut self,
        source: Source,
        known: &[Loaded<T>],
        before: Before<'_>,
        build: fn(Contents) -> Result<T, Vec<Error>>,
        warnings: fn(&T) -> &[Error],
    ) -> Option<Loaded<T>> {
        if let Some(unchanged) = find_unchanged(&source, known) {
            self.files.stamps.extend(unchanged.stamps.iter().flatten().cloned());
            return Some(unchanged);
        }
        let last_good = || known.iter().find(|loaded| loaded.source == source).cloned();
        // What was faulty and is as it was need not be read to know that.
        if let Some(faulty) = find_faulty(&source, &before.files.faulty) {
            self.files.stamps.extend(faulty.stamps.iter().cloned());
            self.files.faulty.push(faulty.clone());
            return last_good();
        }
        let origin = if before.copies.are_kept() { Origin::Kept(Version::default()) } else { Origin::Disk };
        let mut contents = file::read(&source.path, &source.apex, source.mode, origin, self.most_bytes);
        let stamps = std::mem::take(&mut contents.stamps);
        let records = contents.records.len();
        let origin = std::mem::replace(&mut contents.origin, Origin::Disk);
        let errors = match build(contents) {
            Ok(value) => {
                self.files.stamps.extend(stamps.iter().cloned());
                self.warnings.extend_from_slice(warnings(&value));
                if let Origin::Kept(version) = origin {
                    self.versions.push(version);
                }
                return Some(Loaded { source, stamps: Some(stamps), records, value: Arc::new(value) });
            }
            Err(errors) => errors,
        };
        let (warned, faults): (Vec<_>, Vec<_>) = errors.into_iter().partition(|error| error.problem.is_warning());
        self.warnings.extend(warned);
        // A file that was removed and is still configured has no last good version at a start: it was meant to go.
        let last_good = last_good().or_else(|| {
            let version = before.copies.find(&source.path).filter(|_| !is_removed(&source.path))?;
            let origin = Origin::Copy(version);
            let contents = file::read(&source.path, &source.apex, source.mode, origin, self.most_bytes);
            let records = contents.records.len();
            Some(Loaded { source: source.clone(), stamps: None, records, value: Arc::new(build(contents).ok()?) })
        });
        let instead = match (&last_good, source.mode) {
            (Some(_), _) => Instead::LastGood,
            (None, Mode::Zone) => Instead::Failure(source.apex.clone()),
            (None, Mode::Overlay) => Instead::Nothing,
        };
        self.refuse(source.path.clone(), Some(source), faults, instead, stamps);
        last_good
    }

    fn load_hosts(&mut self, path: &Path, before: Before<'_>) {
        let source = Source { path: path.to_path_buf(), apex: Name::root(), mode: Mode::Overlay };
        if let Some(unchanged) = find_unchanged(&source, &before.files.hosts) {
            self.files.stamps.extend(unchanged.stamps.iter().flatten().cloned());
            self.files.hosts.push(unchanged);
            return;
        }
        let hosts = match files::read(path, self.most_bytes) {
            Ok((bytes, stamp)) => {
                if before.copies.are_kept() {
                    let mut version = Version::default();
                    version.push(path, &bytes);
                    self.versions.push(version);
                }
                let hosts = Hosts::parse(path, &bytes);
                self.warnings.extend_from_slice(hosts.warnings());
                let records = hosts.name_count();
                Loaded {
                    source,
                    stamps: Some(vec![(path.to_path_buf(), Some(stamp))]),
                    records,
                    value: Arc::new(hosts),
                }
            }
            // One that is not there is an empty one.
            Err(_) if is_absent(path) => {
                let hosts = Hosts::parse(path, b"");
                Loaded { source, stamps: Some(vec![(path.to_path_buf(), None)]), records: 0, value: Arc::new(hosts) }
            }
            Err(error) => {
                let stamps = vec![(path.to_path_buf(), stamp_of_unreadable(path, &error))];
                let problem = match error.kind() {
                    io::ErrorKind::FileTooLarge => Problem::FileTooLarge(None, ByteSize::b(self.most_bytes)),
                    _ => Problem::Unreadable(error.to_string()),
                };
                let faults = vec![problem.at(Location::file(path))];
                let known = before.files.hosts.iter().find(|loaded| loaded.source == source).cloned();
                let last_good = known.or_else(|| {
                    let version = before.copies.find(path)?;
                    let hosts = Hosts::parse(path, version.bytes(path)?);
                    let records = hosts.name_count();
                    Some(Loaded { source: source.clone(), stamps: None, records, value: Arc::new(hosts) })
                });
                let instead = if last_good.is_some() { Instead::LastGood } else { Instead::Nothing };
                self.refuse(path.to_path_buf(), Some(source), faults, instead, stamps);
                self.files.hosts.extend(last_good);
                return;
            }
        };
        self.files.stamps.extend(hosts.stamps.iter().flatten().cloned());
        self.files.hosts.push(hosts);
    }

    fn refuse(&mut self, path: PathBuf, source: Option<Source>, faults: Vec<Error>, instead: Instead, stamps: Stamps) {
        self.files.stamps.extend(stamps.iter().cloned());
        self.files.faulty.push(Faulty { path, faults, instead, source, stamps });
    }
}

impl Faulty {
    /// Returns true if this is a file, and not the folder of files.
    pub fn is_file(&self) -> bool {
        !self.faults.iter().any(|fault| matches!(fault.problem, Problem::NoDirectory(_)))
    }
}

impl<T> Clone for Loaded<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), source: self.source.clone(), stamps: self.stamps.clone(), ..*self }
    }
}

/// What was read from `source` before, if every file that took part is as it was.
fn find_unchanged<T>(source: &Source, known: &[Loaded<T>]) -> Option<Loaded<T>> {
    let loaded = known.iter().find(|loaded| &loaded.source == source)?;
    loaded.stamps.as_ref().is_some_and(are_unchanged).then(|| loaded.clone())
}

/// The faults of `source` before, if every file that took part is as it was.
fn find_faulty<'a>(source: &Source, faulty: &'a [Faulty]) -> Option<&'a Faulty> {
    let is_same = |faulty: &&Faulty| faulty.source.as_ref() == Some(source) && are_unchanged(&faulty.stamps);
    faulty.iter().find(is_same)
}

fn are_unchanged(stamps: &Stamps) -> bool {
    !stamps.is_empty() && stamps.iter().all(|(path, stamp)| Stamp::of(path).ok() == *stamp)
}

/// The zone and overlay files in a folder, in the order of their names.
fn list_directory(directory: &Path) -> io::Result<Vec<Result<Source, Error>>> {
    let mut paths: Vec<PathBuf> = files::list(directory)?.into_iter().map(|entry| entry.path).collect();
    paths.sort();
    Ok(paths.into_iter().filter_map(source_of).collect())
}

/// What a file in a folder is by its name.
///
/// Hidden files and all that do not end with `.zone` or `.overlay`, as the backup copies of editors, are passed over.
fn source_of(path: PathBuf) -> Option<Result<Source, Error>> {
    let mode = match path.extension().and_then(|extension| extension.to_str()) {
        Some("zone") => Mode::Zone,
        Some("overlay") => Mode::Overlay,
        _ => return None,
    };
    // Without UTF-8 it is no apex, and says so.
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if name.starts_with(['.', '#']) {
        return None;
    }
    let apex = if name.starts_with('@') { Ok(Name::root()) } else { read_name(&name) };
    Some(match apex {
        Ok(apex) => Ok(Source { path, apex, mode }),
        Err(error) => Err(Problem::BadFileName(error).at(Location::file(path))),
    })
}

/// Whether an entry of `zones.order` means the file at `path`: by its name, or by its path.
fn is_meant(entry: &Path, path: &Path) -> bool {
    entry == path || path.file_name().is_some_and(|name| entry.as_os_str() == name)
}

/// The names of the files in a folder that are neither listed by [`list_directory`] nor among those read, `read`, and that
/// are no leftovers of editors either.
fn list_passed_over(directory: &Path, read: &Stamps) -> Vec<String> {
    let Ok(entries) = files::list(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .into_iter()
        .map(|entry| entry.path)
        .filter(|path| path.extension().is_none_or(|extension| extension != "zone" && extension != "overlay"))
        .filter(|path| !read.iter().any(|(known, _)| known == path))
        .filter(|path| access(path, || path.metadata()).is_ok_and(|metadata| metadata.is_file()))
        .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with(['.', '#']) && !name.ends_with('~'))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const SOA: &str = "@ 60 IN SOA @ nobody.invalid. 1 1h 20m 1w 1m\n";

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, name: &str, text: &str) {
            // Another inode, as editors do it: the clock of the file system may be coarse.
            fs::write(self.0.path().join("new"), text).unwrap();
            fs::rename(self.0.path().join("new"), self.0.path().join(name)).unwrap();
        }

        fn load(&self, previous: Option<&Files>) -> Outcome {
            let hosts = vec![self.0.path().join("hosts")];
            let config = Config { directory: Some(self.0.path().to_path_buf()), hosts, ..Config::default() };
            Files::load(&config, &[], previous, &Copies::default())
        }
    }

    fn apexes(files: &Files) -> Vec<String> {
        files.zones().map(|zone| zone.apex().to_string()).collect()
    }

    fn generations(files: &Files) -> Vec<u64> {
        let overlays = files.overlays.iter().map(|loaded| loaded.value.generation());
        let hosts = files.hosts.iter().map(|loaded| loaded.value.generation());
        files.zones().map(|zone| zone.generation()).chain(overlays).chain(hosts).collect()
    }

    #[test]
    fn file_names_give_apexes_and_backup_copies_are_passed_over() {
        let folder = Folder::new();
        for name in
            ["b.example.zone", "a.example.zone", ".#a.example.zone", "#a.example.zone#", "a.example.zone~", "README"]
        {
            folder.write(name, SOA);
        }
        folder.write("@ads.overlay", "ads.test CNAME .\n");
        folder.write("a..b.zone", SOA);
        let outcome = folder.load(None);
        assert_eq!(apexes(&outcome.files), ["a.example.", "b.example."]);
        assert_eq!(outcome.files.overlays[0].source.apex, Name::root());
        assert_eq!(outcome.faults.len(), 1);
        assert!(matches!(outcome.faults[0].problem, Problem::BadFileName(_)));
    }

    #[test]
    fn unchanged_files_keep_their_generation_and_changed_ones_do_not() {
        let folder = Folder::new();
        folder.write("a.zone", &format!("{SOA}$INCLUDE more.inc\n"));
        folder.write("more.inc", "www 60 IN A 192.0.2.1\n");
        folder.write("b.zone", SOA);
        folder.write("c.overlay", "@ A 192.0.2.1\n");
        let first = folder.load(None);
        assert_eq!(first.faults, []);
        assert_eq!(first.files.stamps().len(), 6);
        assert_eq!(first.files.path_of(generations(&first.files)[0]), Some(&*folder.0.path().join("a.zone")));
        let second = folder.load(Some(&first.files));
        assert_eq!(generations(&second.files), generations(&first.files));
        folder.write("more.inc", "www 60 IN A 192.0.2.2\n");
        folder.write("hosts", "192.0.2.1 host.example\n"); // was not there, and is looked for
        let third = folder.load(Some(&second.files));
        let changed =
            generations(&third.files).iter().zip(generations(&second.files)).map(|(a, b)| *a != b).collect::<Vec<_>>();
        assert_eq!(changed, [true, false, false, true]);
        fs::remove_file(folder.0.path().join("b.zone")).unwrap();
        assert_eq!(apexes(&folder.load(Some(&third.files)).files), ["a."]);
    }

    #[test]
    fn the_last_good_version_stays_while_a_file_is_faulty() {
        let folder = Folder::new();
        folder.write("a.zone", SOA);
        let good = folder.load(None);
        folder.write("a.zone", "@ 60 IN A 192.0.2\n");
        folder.write("b.zone", "@ 60 IN A 192.0.2\n");
        for _ in 0..2 {
            let faulty = folder.load(Some(&good.files));
            assert_eq!(apexes(&faulty.files), ["a."], "b has no good version");
            assert_eq!(generations(&faulty.files)[0], generations(&good.files)[0]);
            assert_eq!(faulty.faults.len(), 4, "all faults of both, each time: {:?}", faulty.faults);
        }
        fs::remove_dir_all(folder.0.path()).unwrap();
        let gone = folder.load(Some(&good.files));
        assert!(good.files.stamps().iter().any(|(path, _)| *path == folder.0.path().join("a.zone")));
        assert_eq!((apexes(&gone.files), gone.faults.len()), (vec!["a.".to_string()], 2));
    }

    #[test]
    fn two_files_for_the_same_zone_are_a_fault() {
        let folder = Folder::new();
        folder.write("a.zone", SOA);
        let other = Source { path: folder.0.path().join("a.zone"), apex: "A.".parse().unwrap(), mode: Mode::Zone };
        let config = Config { directory: Some(folder.0.path().to_path_buf()), hosts: Vec::new(), ..Config::default() };
        let outcome = Files::load(&config, &[other], None, &Copies::default());
        assert_eq!(apexes(&outcome.files), ["A."]);
        assert!(matches!(outcome.faults[0].problem, Problem::SameApex { .. }));
    }

    #[test]
    fn files_that_are_passed_over_and_an_order_of_nothing_are_said_once() {
        let folder = Folder::new();
        folder.write("a.zone", &format!("{SOA}$INCLUDE more.inc\n"));
        folder.write("more.inc", "");
        for name in ["b.zone.rpmsave", "README", ".hidden", "a.zone~", "#a.zone#"] {
            folder.write(name, "");
        }
        folder.write("allow.overlay", "@ CNAME rpz-passthru.\n");
        folder.write("hosts", "");
        let order = ["allow.overlay", "a.zone", "hosts", "gone.overlay"].map(PathBuf::from).to_vec();
        let hosts = vec![folder.0.path().join("hosts")];
        let config = Config { directory: Some(folder.0.path().to_path_buf()), hosts, order, ..Config::default() };
        let first = Files::load(&config, &[], None, &Copies::default());
        let warnings: Vec<String> = first.warnings.iter().map(|warning| warning.problem.to_string()).collect();
        let expected = [
            "2 files are passed over: README, b.zone.rpmsave; name them APEX.zone, APEX.overlay or @NAME.overlay, or move \
             them away",
            "zones.order names `a.zone`, which is no overlay or hosts file; correct or remove it",
            "zones.order names `gone.overlay`, which is no overlay or hosts file; correct or remove it",
        ];
        assert_eq!(warnings, expected);
        assert_eq!(Files::load(&config, &[], Some(&first.files), &Copies::default()).warnings, []);
        folder.write("c.txt", "");
        let warnings = Files::load(&config, &[], Some(&first.files), &Copies::default()).warnings;
        assert!(warnings.len() == 1 && warnings[0].to_string().contains("3 files are passed over"), "{warnings:?}");
    }

    #[test]
    fn the_order_names_files_or_their_paths() {
        let folder = Folder::new();
        folder.write("@block.overlay", "*.test CNAME .\nads.test CNAME .\n");
        folder.write("@allow.overlay", "*.test CNAME rpz-passthru.\n");
        let path = folder.0.path().join("@allow.overlay");
        for order in [vec![PathBuf::from("@allow.overlay")], vec![path]] {
            let config = Config {
                directory: Some(folder.0.path().to_path_buf()),
                hosts: Vec::new(),
                order,
                ..Config::default()
            };
            let overlays = Files::load(&config, &[], None, &Copies::default()).files.overlays();
            let qname = "ads.test".parse().unwrap();
            let question =
                crate::wire::Question { qname, qtype: crate::wire::Rtype::A, qclass: crate::wire::Class::IN };
            let ruling = overlays.answer(&question, super::super::Client::Remote);
            assert_eq!(ruling, Some(super::super::Ruling::PassThrough));
        }
    }
}
