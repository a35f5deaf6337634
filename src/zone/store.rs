//! All files of local data as one value, and how the next value comes from it.
//!
//! A reload reads what has changed. A file whose every part (itself and what it includes) is as it was keeps its table and so
//! its generation; a file with faults keeps the last version without, and so does a folder that cannot be listed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Config, Error, Hosts, Mode, Ordered, Overlay, Overlays, Problem, Zone,
    contents::{Contents, Stamp, Stamps},
    file,
};
use crate::{location::Location, wire::Name};

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
    /// Every file that was looked at, whatever came of it.
    paths: Vec<PathBuf>,
    /// What `zones.order` says.
    order: Vec<PathBuf>,
    /// Warnings about the folder and the order, which are given again only when they change.
    notes: Vec<Error>,
}

/// What loading came to.
pub struct Outcome {
    /// The files without faults, and the last good versions of the others.
    pub files: Files,
    /// Every fault. At start each is fatal; at reload the last good version stays in service.
    pub faults: Vec<Error>,
    /// What is odd in the files that were read anew.
    pub warnings: Vec<Error>,
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
    stamps: Stamps,
    records: usize,
    value: Arc<T>,
}

impl Files {
    /// Reads the files of `[[zone]]`, in their order, and those of `[zones]`.
    ///
    /// `previous` is what has been loaded so far; what has not changed is taken from there.
    pub fn load(config: &Config, zones: &[Source], previous: Option<&Self>) -> Outcome {
        let nothing = Self::default();
        let previous = previous.unwrap_or(&nothing);
        let mut outcome = Outcome { files: Self::default(), faults: Vec::new(), warnings: Vec::new() };
        let mut sources = zones.to_vec();
        sources.extend(outcome.list(config, previous));
        let may_be_ordered: Vec<PathBuf> = sources
            .iter()
            .filter(|source| source.mode == Mode::Overlay)
            .map(|source| source.path.clone())
            .chain(config.hosts.iter().cloned())
            .collect();
        for source in sources {
            match source.mode {
                Mode::Zone => outcome.load_zone(source, previous),
                Mode::Overlay => {
                    let loaded = outcome.load_one(source, &previous.overlays, Overlay::build, Overlay::warnings);
                    outcome.files.overlays.extend(loaded);
                }
            }
        }
        for path in &config.hosts {
            let source = Source { path: path.clone(), apex: Name::root(), mode: Mode::Overlay };
            let hosts = find_unchanged(&source, &previous.hosts).unwrap_or_else(|| {
                let (hosts, stamps) = Hosts::read(path);
                outcome.warnings.extend_from_slice(hosts.warnings());
                Loaded { source, stamps, records: hosts.name_count(), value: Arc::new(hosts) }
            });
            outcome.files.add_paths(&hosts.stamps);
            outcome.files.hosts.push(hosts);
        }
        outcome.files.order.clone_from(&config.order);
        outcome.files.notes = outcome.notes(config, &may_be_ordered);
        outcome.warnings.extend(outcome.files.notes.iter().filter(|note| !previous.notes.contains(note)).cloned());
        outcome
    }

    fn add_paths(&mut self, stamps: &Stamps) {
        self.paths.extend(stamps.iter().map(|(path, _)| path.clone()));
    }

    /// The whole zones.
    pub fn zones(&self) -> impl Iterator<Item = &Arc<Zone>> {
        self.zones.iter().map(|loaded| &loaded.value)
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
        Overlays::new(overlays, hosts).with_ordered(ordered.into_iter().map(|(_, file)| file).collect())
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

    /// Every file that was read or should have been, included ones too: when one changes or appears, it is time to load again.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// The identity of each zone, overlay and hosts file.
    pub fn generations(&self) -> impl Iterator<Item = u64> {
        self.tables().map(|(generation, _)| generation)
    }

    /// The file from which the table of this generation was read.
    pub fn path_of(&self, generation: u64) -> Option<&Path> {
        self.tables().find(|&(known, _)| known == generation).map(|(_, source)| source.path.as_path())
    }

    fn tables(&self) -> impl Iterator<Item = (u64, &Source)> {
        let zones = self.zones.iter().map(|loaded| (loaded.value.generation(), &loaded.source));
        let overlays = self.overlays.iter().map(|loaded| (loaded.value.generation(), &loaded.source));
        zones.chain(overlays).chain(self.hosts.iter().map(|loaded| (loaded.value.generation(), &loaded.source)))
    }
}

impl Outcome {
    /// The files of the configured folder; if it cannot be listed, those that came from there before.
    fn list(&mut self, config: &Config, previous: &Files) -> Vec<Source> {
        let directory = config.directory();
        match list_directory(directory, &mut self.faults) {
            Ok(sources) => sources,
            Err(error) if error.kind() == io::ErrorKind::NotFound && config.directory.is_none() => Vec::new(),
            Err(error) => {
                self.faults.push(Problem::NoDirectory(error.to_string()).at(Location::file(directory)));
                let zones = previous.zones.iter().map(|loaded| &loaded.source);
                let overlays = previous.overlays.iter().map(|loaded| &loaded.source);
                zones.chain(overlays).filter(|source| source.path.parent() == Some(directory)).cloned().collect()
            }
        }
    }

    /// What is odd about the folder as a whole and about the order.
    fn notes(&self, config: &Config, may_be_ordered: &[PathBuf]) -> Vec<Error> {
        let directory = config.directory();
        let passed_over = list_passed_over(directory, &self.files.paths);
        let mut notes = Vec::new();
        if !passed_over.is_empty() {
            notes.push(Problem::PassedOver(passed_over).at(Location::file(directory)));
        }
        let is_known = |entry: &PathBuf| may_be_ordered.iter().any(|path| is_meant(entry, path));
        let unknown = config.order.iter().filter(|entry| !is_known(entry));
        notes.extend(unknown.map(|entry| Problem::OrderOfNothing(entry.clone()).at(Location::file(directory))));
        notes
    }

    fn load_zone(&mut self, source: Source, previous: &Files) {
        if let Some(other) = self.files.zones.iter().find(|loaded| loaded.source.apex == source.apex) {
            let problem = Problem::SameApex { apex: source.apex, other: other.source.path.clone() };
            self.faults.push(problem.at(Location::file(source.path)));
            return;
        }
        let loaded = self.load_one(source, &previous.zones, Zone::build, Zone::warnings);
        self.files.zones.extend(loaded);
    }

    fn load_one<T>(
        &mut self,
        source: Source,
        previous: &[Loaded<T>],
        build: fn(Contents) -> Result<T, Vec<Error>>,
        warnings: fn(&T) -> &[Error],
    ) -> Option<Loaded<T>> {
        if let Some(unchanged) = find_unchanged(&source, previous) {
            self.files.add_paths(&unchanged.stamps);
            return Some(unchanged);
        }
        let mut contents = file::read(&source.path, &source.apex, source.mode);
        let stamps = std::mem::take(&mut contents.stamps);
        let records = contents.records.len();
        self.files.add_paths(&stamps);
        match build(contents) {
            Ok(value) => {
                self.warnings.extend_from_slice(warnings(&value));
                Some(Loaded { source, stamps, records, value: Arc::new(value) })
            }
            Err(errors) => {
                let (warnings, faults): (Vec<_>, Vec<_>) = errors.into_iter().partition(|e| e.problem.is_warning());
                self.warnings.extend(warnings);
                self.faults.extend(faults);
                previous.iter().find(|loaded| loaded.source == source).cloned()
            }
        }
    }
}

impl<T> Clone for Loaded<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), source: self.source.clone(), stamps: self.stamps.clone(), ..*self }
    }
}

/// What was read from `source` before, if every file that took part is as it was.
fn find_unchanged<T>(source: &Source, previous: &[Loaded<T>]) -> Option<Loaded<T>> {
    let loaded = previous.iter().find(|loaded| &loaded.source == source)?;
    let is_same = |(path, stamp): &(PathBuf, Option<Stamp>)| Stamp::of(path).ok() == *stamp;
    loaded.stamps.iter().all(is_same).then(|| loaded.clone())
}

/// The zone and overlay files in a folder, in the order of their names.
///
/// Hidden files and all that do not end with `.zone` or `.overlay`, as the backup copies of editors, are passed over.
fn list_directory(directory: &Path, faults: &mut Vec<Error>) -> io::Result<Vec<Source>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        let mode = match path.extension().and_then(|extension| extension.to_str()) {
            Some("zone") => Mode::Zone,
            Some("overlay") => Mode::Overlay,
            _ => continue,
        };
        // Without UTF-8 it is no apex, and says so.
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(['.', '#']) {
            continue;
        }
        let apex = if name.starts_with('@') { Ok(Name::root()) } else { name.parse() };
        match apex {
            Ok(apex) => sources.push(Source { path, apex, mode }),
            Err(error) => faults.push(Problem::BadFileName(error).at(Location::file(path))),
        }
    }
    Ok(sources)
}

/// Whether an entry of `zones.order` means the file at `path`: by its name, or by its path.
fn is_meant(entry: &Path, path: &Path) -> bool {
    entry == path || path.file_name().is_some_and(|name| entry.as_os_str() == name)
}

/// The names of the files in a folder that are neither listed by [`list_directory`] nor among those read, `read`, and that
/// are no leftovers of editors either.
fn list_passed_over(directory: &Path, read: &[PathBuf]) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_none_or(|extension| extension != "zone" && extension != "overlay"))
        .filter(|path| !read.contains(path) && path.is_file())
        .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with(['.', '#']) && !name.ends_with('~'))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
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
            Files::load(&config, &[], previous)
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
        assert_eq!(first.files.paths().len(), 5);
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
        assert!(good.files.paths().contains(&folder.0.path().join("a.zone")));
        assert_eq!((apexes(&gone.files), gone.faults.len()), (vec!["a.".to_string()], 2));
    }

    #[test]
    fn two_files_for_the_same_zone_are_a_fault() {
        let folder = Folder::new();
        folder.write("a.zone", SOA);
        let other = Source { path: folder.0.path().join("a.zone"), apex: "A.".parse().unwrap(), mode: Mode::Zone };
        let config = Config { directory: Some(folder.0.path().to_path_buf()), hosts: Vec::new(), ..Config::default() };
        let outcome = Files::load(&config, &[other], None);
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
        let config = Config { directory: Some(folder.0.path().to_path_buf()), hosts, order };
        let first = Files::load(&config, &[], None);
        let warnings: Vec<String> = first.warnings.iter().map(|warning| warning.problem.to_string()).collect();
        let expected = [
            "2 files are passed over: README, b.zone.rpmsave; name them APEX.zone, APEX.overlay or @NAME.overlay, or move \
             them away",
            "zones.order names `a.zone`, which is no overlay or hosts file; correct or remove it",
            "zones.order names `gone.overlay`, which is no overlay or hosts file; correct or remove it",
        ];
        assert_eq!(warnings, expected);
        assert_eq!(Files::load(&config, &[], Some(&first.files)).warnings, []);
        folder.write("c.txt", "");
        let warnings = Files::load(&config, &[], Some(&first.files)).warnings;
        assert!(warnings.len() == 1 && warnings[0].to_string().contains("3 files are passed over"), "{warnings:?}");
    }

    #[test]
    fn the_order_names_files_or_their_paths() {
        let folder = Folder::new();
        folder.write("@block.overlay", "*.test CNAME .\nads.test CNAME .\n");
        folder.write("@allow.overlay", "*.test CNAME rpz-passthru.\n");
        let path = folder.0.path().join("@allow.overlay");
        for order in [vec![PathBuf::from("@allow.overlay")], vec![path]] {
            let config = Config { directory: Some(folder.0.path().to_path_buf()), hosts: Vec::new(), order };
            let overlays = Files::load(&config, &[], None).files.overlays();
            let qname = "ads.test".parse().unwrap();
            let question =
                crate::wire::Question { qname, qtype: crate::wire::Rtype::A, qclass: crate::wire::Class::IN };
            let ruling = overlays.answer(&question, super::super::Client::Remote);
            assert_eq!(ruling, Some(super::super::Ruling::PassThrough));
        }
    }
}
