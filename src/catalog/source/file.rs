//! Definition files, as Consul reads them from `/etc/consul.d`.
//!
//! Every `*.json` and `*.hcl` in the folder and below it is read, in the order of the names. A file with faults is refused
//! with all of them, and what it said before stays: at a start that is found in its copy. A file that has not changed is not
//! read again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    mem::discriminant,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytesize::ByteSize;
use rpds::RedBlackTreeMapSync;

use super::{
    definition::{self, Contents, Reader},
    hcl,
    index::{Index, Unit},
    json,
    sidecar::Ports,
    value::Fault,
};
use crate::{
    catalog::{
        identity::{Agent, Identity},
        model::{Check, Host, Instance, InstanceKey, Node, NodeKey, Registration},
        registry::{CheckKey, Part, Set},
    },
    files::{self, Copies, Stamp, Version, access, is_folder, is_removed},
    location::Location,
};

pub use super::{definition::Define, index::Owner};

/// What the definition files of a folder say. `D` is what a check is for those who run it.
#[derive(Debug)]
pub struct Files<D> {
    /// By their paths, in whose order they count.
    files: RedBlackTreeMapSync<PathBuf, Loaded<D>>,
    index: Index<D>,
    faulty: Arc<BTreeMap<PathBuf, Faulty>>,
    /// The folders, which change when a file comes or goes.
    folders: Arc<BTreeMap<PathBuf, Option<Stamp>>>,
    /// The files that are symbolic links, whose targets may change elsewhere.
    links: Arc<BTreeSet<PathBuf>>,
    /// Whether every folder could be listed.
    is_whole: bool,
}

/// A file that was refused.
#[derive(Debug, Clone)]
struct Faulty {
    /// As it was then; nothing if it leads nowhere.
    stamp: Option<Stamp>,
    faults: Vec<Error>,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// Every file.
    All,
    /// What has changed on the disk: of the files and folders, those with these paths.
    Changed(&'a BTreeSet<PathBuf>),
}

/// What loading came to.
#[derive(Debug)]
pub struct Outcome<D> {
    /// The files without faults, and the last good versions of the others.
    pub files: Files<D>,
    /// What the files say otherwise than before, or may.
    pub changed: HashSet<Owner>,
    /// Every fault.
    pub faults: Vec<Error>,
    /// What is odd in files that were read anew, but taken in.
    pub warnings: Vec<Error>,
    /// The files that were read anew and are good, if copies are kept.
    pub versions: Vec<Version>,
    /// The files that came, went or say something else than before.
    pub changed_files: BTreeSet<PathBuf>,
    /// Keys that mean something to Consul and nothing here, in files that were read anew: to be named once, together.
    pub unused: BTreeSet<String>,
}

impl<D> Default for Outcome<D> {
    /// Of no folder.
    fn default() -> Self {
        Self {
            files: Files::default(),
            changed: HashSet::new(),
            faults: Vec::new(),
            warnings: Vec::new(),
            versions: Vec::new(),
            changed_files: BTreeSet::new(),
            unused: BTreeSet::new(),
        }
    }
}

/// A fault of a definition file: `file:line: what is wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location}: {problem}")]
pub struct Error {
    /// The file, and the line that begins what is at fault.
    pub location: Location,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a definition file; [`Error`] prints it after its [`Location`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file cannot be opened or read.
    #[error("cannot be read: {0}; make it a regular file that this user may read")]
    Unreadable(String),
    /// The file is larger than it may be.
    #[error("larger than {}; split it, or raise catalog.files.max_file_bytes", .0.display().iec())]
    FileTooLarge(ByteSize),
    /// A folder cannot be listed.
    #[error("the folder cannot be listed: {0}; create it, or correct catalog.files.directory")]
    NoDirectory(String),
    /// Folders within folders without end.
    #[error("folders are nested deeper than {MAX_DEPTH}; is there a circle of links")]
    Depth,
    /// It is neither JSON nor HCL.
    #[error("{0}")]
    Syntax(String),
    /// A value that is none for its key.
    #[error("{key} has the wrong type; write {expected}")]
    Shape {
        /// The key.
        key: String,
        /// What could stand there.
        expected: &'static str,
    },
    /// A key that Consul does not know either.
    #[error("unknown key `{key}` in {what}; {remedy}")]
    UnknownKey {
        /// Where it stands.
        what: &'static str,
        /// The key.
        key: String,
        /// What to do.
        remedy: String,
    },
    /// A key that a version of Consul after 1.8 brought.
    #[error("key `{key}` in {what} has no effect here; Consul has it since a version after 1.8")]
    LaterKey {
        /// Where it stands.
        what: &'static str,
        /// The key.
        key: String,
    },
    /// A service without a name.
    #[error("the service has no name; add `name`")]
    NoName,
    /// A check of the node by which nobody could call it.
    #[error("the check has neither id nor name; add `id`")]
    NamelessCheck,
    /// An address that is none.
    #[error("{key} `{text}` is neither an address nor a name; write it without port or scheme")]
    BadHost {
        /// The key.
        key: String,
        /// As written.
        text: String,
    },
    /// A policy in the meta of a service.
    #[error("meta {key} is `{value}`; write {expected}")]
    Policy {
        /// The key.
        key: String,
        /// Its value.
        value: String,
        /// What could stand there.
        expected: &'static str,
    },
    /// A domain that is none.
    #[error("{0}")]
    Domain(String),
    /// A check that cannot be run.
    #[error("{0}")]
    Check(String),
    /// Two services, or two checks, with one id.
    #[error("{what} `{id}` stands at {first} already; give one of the two another id")]
    SameId {
        /// Service or check.
        what: &'static str,
        /// The id of both.
        id: Arc<str>,
        /// Where it stands first.
        first: Location,
    },
    /// A check that is not run here, of a service that this file does not define.
    #[error(
        "the check is not supported, and service id `{0}` stands in another file; remove the check, or put both in one file"
    )]
    RefusedCheck(Arc<str>),
    /// A sidecar that a service cannot have.
    #[error("{0}")]
    Sidecar(&'static str),
    /// The last example of faults or warnings of one kind, of which there are more.
    #[error("{first}; and {more} more of the kind")]
    More {
        /// The example.
        first: Box<Problem>,
        /// How many more.
        more: usize,
    },
    /// A check of a service that is not there.
    #[error("the check is for service id `{0}`, which no file defines; define it, or correct service_id")]
    NoService(Arc<str>),
}

#[derive(Debug)]
struct Loaded<D> {
    /// As it was when it was read; nothing if it was read from a copy.
    stamp: Option<Stamp>,
    /// Whether all that is in it is taken in.
    is_whole: bool,
    contents: Arc<Contents<D>>,
}

impl<D> Clone for Loaded<D> {
    fn clone(&self) -> Self {
        Self { stamp: self.stamp, is_whole: self.is_whole, contents: self.contents.clone() }
    }
}

impl<D> Default for Files<D> {
    /// Of no folder.
    fn default() -> Self {
        Self {
            files: RedBlackTreeMapSync::new_sync(),
            index: Index::new(),
            faulty: Arc::default(),
            folders: Arc::default(),
            links: Arc::default(),
            is_whole: true,
        }
    }
}

impl<D> Files<D> {
    /// Reads what is in a folder. `previous` is what has been loaded so far; what has not changed is taken from there, and
    /// nothing outside of the scope is looked at. No file may have more bytes than `most_bytes`. The last good version of a file that `previous` does not have is looked for
    /// among the copies.
    pub fn load(
        directory: &Path,
        most_bytes: u64,
        previous: Option<&Self>,
        scope: Scope<'_>,
        copies: &Copies,
        define: Define<'_, D>,
    ) -> Outcome<D> {
        let files = match previous {
            None => Self::default(),
            Some(previous) => previous.clone(),
        };
        let mut outcome = Outcome { files, ..Outcome::default() };
        let changed = match (previous, scope) {
            (Some(previous), Scope::Changed(changed)) => previous.definitions_among(directory, changed),
            _ => None,
        };
        let paths = changed.unwrap_or_else(|| outcome.list_all(directory, copies));
        for path in paths {
            outcome.load_one(&path, most_bytes, copies, define);
        }
        outcome.faults.extend(outcome.files.faulty.values().flat_map(|faulty| faulty.faults.iter().cloned()));
        outcome.faults.extend(count_many(outcome.files.index.faults()));
        outcome
    }

    /// Whether a file defines a service of this id.
    pub fn has_service(&self, id: &str) -> bool {
        self.index.unit(&Some(id.into())).is_some_and(|unit| unit.service().is_some())
    }

    /// Whether a file defines a check of this id, of a service or of our own node.
    pub fn has_check(&self, id: &str) -> bool {
        self.index.has_check(id)
    }

    /// The folders to be watched, the files in which may change, come and go.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.keys().map(PathBuf::as_path)
    }

    /// The files that are symbolic links: what they lead to is to be watched, too.
    pub fn links(&self) -> impl Iterator<Item = &Path> {
        self.links.iter().map(PathBuf::as_path)
    }

    /// The files that are refused, in order.
    pub fn faulty(&self) -> impl Iterator<Item = &Path> {
        self.faulty.keys().map(PathBuf::as_path)
    }

    /// Returns true if this file is good, or its last good version is in service.
    pub fn is_served(&self, path: &Path) -> bool {
        self.files.contains_key(path)
    }

    /// The files whose copies are to be kept.
    pub fn kept(&self) -> HashSet<PathBuf> {
        self.files.keys().chain(self.faulty.keys()).cloned().collect()
    }

    /// The files and folders that are no longer as they were when they were read.
    pub fn changed_on_disk(&self) -> Vec<PathBuf> {
        let is_changed = |path: &Path, stamp: Option<Stamp>| Stamp::of(path).ok() != stamp;
        let folders = self.folders.iter().map(|(path, stamp)| (path, *stamp));
        let faulty = self.faulty.iter().map(|(path, faulty)| (path, faulty.stamp));
        let good = self.files.iter().filter(|(path, _)| !self.faulty.contains_key(*path));
        let all = folders.chain(faulty).chain(good.map(|(path, loaded)| (path, loaded.stamp)));
        all.filter(|(path, stamp)| is_changed(path, *stamp)).map(|(path, _)| path.clone()).collect()
    }

    /// What the agent keys say; of two files the later has the word.
    pub fn agent(&self) -> Agent {
        let mut agent = Agent::default();
        for said in self.index.agents().cloned() {
            agent.domain = said.domain.or(agent.domain);
            agent.alt_domain = said.alt_domain.or(agent.alt_domain);
            agent.datacenter = said.datacenter.or(agent.datacenter);
            agent.node_name = said.node_name.or(agent.node_name);
            agent.address = said.address.or(agent.address);
            agent.node_meta.extend(said.node_meta);
            agent.tagged.extend(said.tagged);
        }
        agent
    }

    /// All that the files define, on our own node. Checks are in their initial state.
    pub fn set(&self, identity: &Identity) -> Set {
        let node = self.node(identity);
        let key = node.key();
        let instances = self.units().filter_map(|unit| instance(unit, &key));
        Set { instances: instances.collect(), nodes: vec![node.into()] }
    }

    /// What the files define of some owners, on our own node, and what is no longer theirs.
    pub fn part<'a>(&self, owners: impl IntoIterator<Item = &'a Owner>, identity: &Identity) -> Part {
        let node = identity.node().key();
        let mut part = Part::default();
        for owner in owners {
            let Some(id) = owner else {
                part.nodes.push(self.node(identity).into());
                continue;
            };
            match self.index.unit(owner).and_then(|unit| instance(unit, &node)) {
                Some(instance) => part.instances.push(instance),
                None => part.gone.push(InstanceKey { node: node.clone(), id: id.clone() }),
            }
        }
        part
    }

    /// The checks that are to be run, on our own node.
    pub fn definitions<'a>(&'a self, identity: &Identity) -> impl Iterator<Item = (CheckKey, &'a Arc<D>)> {
        let node = identity.node().key();
        let of_node = self.index.unit(&None).map(|unit| (None, unit));
        let of_services = self.units().filter_map(|unit| Some((Some(unit.service()?.id.clone()), unit)));
        of_services.chain(of_node).flat_map(move |(owner, unit)| definitions(owner, unit, node.clone()))
    }

    /// Those of them that are an owner's.
    pub fn definitions_of<'a>(
        &'a self,
        owner: &Owner,
        identity: &Identity,
    ) -> impl Iterator<Item = (CheckKey, &'a Arc<D>)> {
        let (node, owner) = (identity.node().key(), owner.clone());
        let unit = self.index.unit(&owner).filter(|unit| owner.is_none() || unit.service().is_some());
        unit.into_iter().flat_map(move |unit| definitions(owner.clone(), unit, node.clone()))
    }

    /// The address of a service's own, if it has one.
    pub fn address(&self, owner: &Owner) -> Option<&Host> {
        self.index.unit(owner)?.service()?.address.as_ref()
    }

    /// The services with their ports.
    pub(super) fn ports(&self) -> impl Iterator<Item = (&str, u16)> {
        let services = self.files.values().flat_map(|loaded| &loaded.contents.services);
        services.map(|service| (&*service.id, service.port))
    }

    /// The ports that are not for the sidecars of a file: those of all others, and which of its own had which.
    fn ports_but_of(&self, path: &Path) -> Ports {
        let mut ports = Ports::default();
        for (file, loaded) in self.files.iter() {
            for service in &loaded.contents.services {
                if file == path {
                    ports.remember(&service.id, service.port);
                } else {
                    ports.note(&service.id, service.port);
                }
            }
        }
        ports
    }

    /// Whether two checks have one id; then what one owner's checks are depends on the other's.
    pub fn has_shared_ids(&self) -> bool {
        self.index.has_shared_ids()
    }

    /// All that is said of each service, in the order of the files.
    fn units(&self) -> impl Iterator<Item = &Unit<D>> {
        let services = self.files.values().flat_map(|loaded| &loaded.contents.services);
        services.filter_map(|service| {
            let unit = self.index.unit(&Some(service.id.clone()))?;
            unit.service().filter(|first| Arc::ptr_eq(first, service)).map(|_| unit)
        })
    }

    fn node(&self, identity: &Identity) -> Node {
        let checks = self.index.unit(&None).into_iter().flat_map(Unit::checks);
        Node { checks: checks.map(|check| check.begin()).collect(), ..identity.node() }
    }

    /// The definition files among changed paths, which are absolute; `None` if they do not tell which may have changed.
    fn definitions_among(&self, directory: &Path, changed: &BTreeSet<PathBuf>) -> Option<BTreeSet<PathBuf>> {
        if directory.is_relative() {
            return None;
        }
        let mut definitions = BTreeSet::new();
        for path in changed.iter().filter(|path| path.starts_with(directory) || directory.starts_with(path)) {
            let is_known_folder = path.parent().is_some_and(|folder| self.folders.contains_key(folder));
            let is_symlink = || access(path, || path.symlink_metadata()).is_ok_and(|metadata| metadata.is_symlink());
            let is_link = self.links.contains(path) || is_symlink();
            if !is_known_folder
                || self.folders.contains_key(path)
                || is_folder(path)
                || is_link
                || is_link_of_links(path)
            {
                return None;
            }
            if is_definition(path) {
                definitions.insert(path.clone());
            }
        }
        definitions.extend(self.faulty.keys().cloned());
        // Their faults stay known.
        let in_part = self.files.iter().filter(|(_, loaded)| !loaded.is_whole);
        definitions.extend(in_part.map(|(path, _)| path.clone()));
        // What could not be listed has to be looked at again.
        self.is_whole.then_some(definitions)
    }
}

impl<D> Clone for Files<D> {
    fn clone(&self) -> Self {
        Self {
            files: self.files.clone(),
            index: self.index.clone(),
            faulty: self.faulty.clone(),
            folders: self.folders.clone(),
            links: self.links.clone(),
            is_whole: self.is_whole,
        }
    }
}

/// A service with its checks, on a node.
fn instance<D>(unit: &Unit<D>, node: &NodeKey) -> Option<Arc<Instance>> {
    let registration = unit.service()?.register(node.clone()).into();
    Some(Instance { registration, checks: unit.checks().map(|check| check.begin()).collect() }.into())
}

fn definitions<D>(service_id: Owner, unit: &Unit<D>, node: NodeKey) -> impl Iterator<Item = (CheckKey, &Arc<D>)> {
    unit.checks().map(move |check| {
        let key = CheckKey { node: node.clone(), service_id: service_id.clone(), check: check.id.clone() };
        (key, &check.definition)
    })
}

impl<D> Outcome<D> {
    /// Lists all definition files, and those that were: they may be gone.
    fn list_all(&mut self, directory: &Path, copies: &Copies) -> BTreeSet<PathBuf> {
        let mut listing = Listing::default();
        let is_all = self.list(directory, 0, &mut listing);
        let Listing { folders, mut paths, links } = listing;
        // Where nobody knows what is in there now, what was there stays.
        let is_left = |path: &&PathBuf| is_all || !path.starts_with(directory);
        let known = self.files.files.keys().chain(self.files.faulty.keys());
        let gone: Vec<_> = known.filter(is_left).filter(|path| !paths.contains(*path)).cloned().collect();
        for path in gone {
            self.forgive(&path);
            self.put(&path, None);
        }
        if !is_all {
            let known = self.files.files.keys().chain(self.files.faulty.keys()).cloned();
            let copied = copies.paths().into_iter().filter(|path| is_definition(path));
            // What was removed from a folder that can be listed is gone.
            let is_missing = |path: &PathBuf| path.starts_with(directory) && !is_removed(path);
            paths.extend(known.chain(copied).filter(is_missing));
        }
        self.files.folders = folders.into();
        self.files.links = links.into();
        self.files.is_whole = is_all;
        paths
    }

    /// Lists the definition files in a folder and below; false if not all could be seen.
    fn list(&mut self, folder: &Path, depth: usize, listing: &mut Listing) -> bool {
        let mut blame = |problem| self.faults.push(Error { location: Location::file(folder), problem });
        if depth > MAX_DEPTH {
            blame(Problem::Depth);
            return false;
        }
        listing.folders.insert(folder.to_owned(), Stamp::of(folder).ok());
        let entries = match files::list(folder) {
            Ok(entries) => entries,
            Err(error) => {
                blame(Problem::NoDirectory(error.to_string()));
                return false;
            }
        };
        let mut is_all = true;
        for entry in entries {
            let path = entry.path;
            // Only a link has to be followed to know what it is.
            let is_link = entry.file_type.is_some_and(|known| known.is_symlink());
            let is_folder = match entry.file_type {
                Some(known) if !known.is_symlink() => known.is_dir(),
                _ => is_folder(&path),
            };
            if is_hidden(&path) {
                continue;
            } else if is_folder {
                is_all &= self.list(&path, depth + 1, listing);
            } else if is_definition(&path) {
                if is_link {
                    listing.links.insert(path.clone());
                }
                listing.paths.insert(path);
            }
        }
        is_all
    }

    fn load_one(&mut self, path: &Path, most_bytes: u64, copies: &Copies, define: Define<'_, D>) {
        let mut stamp = Stamp::of(path).ok();
        // One that has gone says nothing any more; but if its folder is gone too, nobody knows what was meant.
        if stamp.is_none() && is_removed(path) {
            self.forgive(path);
            return self.put(path, None);
        }
        let known = self.files.files.get(path);
        let faulty = self.files.faulty.get(path);
        if faulty.is_some_and(|faulty| faulty.stamp == stamp) {
            return;
        }
        if known.is_some_and(|known| known.is_whole && known.stamp.is_some() && known.stamp == stamp) {
            return self.forgive(path);
        }
        let read = files::read(path, most_bytes);
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            // It may soon be readable, though nothing about it changes.
            stamp = None;
        }
        let parsed = read.as_ref().map_err(|error| vec![Error::of_unreadable(path, error, most_bytes)]);
        let parsed = parsed.and_then(|(bytes, _)| parse(path, bytes, &|| self.files.ports_but_of(path), define));
        let faults = match parsed {
            Ok(parsed) => {
                self.unused.extend(parsed.unused);
                self.warnings.extend(parsed.warnings);
                if let Some((bytes, _)) = read.ok().filter(|_| copies.are_kept()) {
                    let mut version = Version::default();
                    version.push(path, &bytes);
                    self.versions.push(version);
                }
                self.forgive(path);
                // A file with checks that are refused is read again each time, so that they stay known.
                let is_whole = parsed.refused.is_empty();
                self.faults.extend(parsed.refused);
                let loaded = |contents: Contents<D>| Loaded { stamp, is_whole, contents: contents.into() };
                return self.put(path, parsed.contents.map(loaded));
            }
            Err(faults) => faults,
        };
        if known.is_none()
            && let Some(version) = copies.find(path)
            && let Some(bytes) = version.bytes(path)
            && let Ok(Parsed { contents: Some(contents), .. }) =
                parse(path, bytes, &|| self.files.ports_but_of(path), define)
        {
            self.put(path, Some(Loaded { stamp: None, is_whole: true, contents: contents.into() }));
        }
        Arc::make_mut(&mut self.files.faulty).insert(path.to_owned(), Faulty { stamp, faults });
    }

    /// A file has no faults any more.
    fn forgive(&mut self, path: &Path) {
        if self.files.faulty.contains_key(path) {
            Arc::make_mut(&mut self.files.faulty).remove(path);
        }
    }

    /// Puts a file in place of what it was.
    fn put(&mut self, path: &Path, new: Option<Loaded<D>>) {
        let old = self.files.files.get(path).map(|loaded| loaded.contents.clone());
        let contents = new.as_ref().map(|new| &*new.contents);
        for contents in [old.as_deref(), contents].into_iter().flatten() {
            self.changed.extend(contents.services.iter().map(|service| Some(service.id.clone())));
            self.changed.extend(contents.checks.iter().map(|check| check.service_id.clone()));
        }
        self.files.index.exchange(path, old.as_deref(), contents);
        if old.is_some() || contents.is_some() {
            self.changed_files.insert(path.to_owned());
        }
        match new {
            Some(new) => self.files.files.insert_mut(path.to_owned(), new),
            None => drop(self.files.files.remove_mut(path)),
        }
    }
}

/// What is in a folder and below.
#[derive(Default)]
struct Listing {
    folders: BTreeMap<PathBuf, Option<Stamp>>,
    /// The definition files.
    paths: BTreeSet<PathBuf>,
    /// Those that are symbolic links.
    links: BTreeSet<PathBuf>,
}

impl Error {
    fn of_file(path: &Path, fault: Fault) -> Self {
        let location = Location { line: fault.line, ..Location::file(path) };
        Self { location, problem: Problem::Syntax(fault.message) }
    }

    fn of_unreadable(path: &Path, error: &io::Error, most_bytes: u64) -> Self {
        let problem = match error.kind() {
            io::ErrorKind::FileTooLarge => Problem::FileTooLarge(ByteSize::b(most_bytes)),
            _ => Problem::Unreadable(error.to_string()),
        };
        Self { location: Location::file(path), problem }
    }
}

/// Editors keep copies and locks under such names, and Kubernetes its earlier versions.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.to_string_lossy().starts_with(['.', '#']))
}

fn is_definition(path: &Path) -> bool {
    !is_hidden(path) && matches!(path.extension().and_then(|extension| extension.to_str()), Some("json" | "hcl"))
}

/// Whether files may lead through this: Kubernetes changes all files of a folder by exchanging the link `..data`.
fn is_link_of_links(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.to_string_lossy().starts_with(".."))
}

impl<D> definition::Service<D> {
    pub(super) fn register(&self, node: NodeKey) -> Registration {
        Registration {
            node,
            id: self.id.clone(),
            service: self.name.clone(),
            tags: self.tags.clone(),
            address: self.address.clone(),
            port: self.port,
            tagged: self.tagged.clone(),
            meta: self.meta.clone(),
            weights: self.weights,
            role: self.role.clone(),
        }
    }
}

impl<D> definition::Check<D> {
    /// The check before it has run.
    pub(super) fn begin(&self) -> Check {
        Check {
            id: self.id.clone(),
            name: self.name.clone(),
            notes: self.notes.clone(),
            kind: self.kind.into(),
            status: self.initial,
            output: "".into(),
        }
    }
}

/// What a file says.
struct Parsed<D> {
    /// Nothing if there is nothing in it.
    contents: Option<Contents<D>>,
    /// The faults of what is left out.
    refused: Vec<Error>,
    warnings: Vec<Error>,
    /// The keys that mean nothing here.
    unused: Vec<String>,
}

/// What a file says, or its faults.
fn parse<D>(
    path: &Path,
    bytes: &[u8],
    ports: &dyn Fn() -> Ports,
    define: Define<'_, D>,
) -> Result<Parsed<D>, Vec<Error>> {
    let root = read_value(path, bytes).map_err(|fault| vec![Error::of_file(path, fault)])?;
    let mut reader = Reader::new(Location::file(path), define);
    reader.ports = ports;
    let contents = root.map(|root| reader.contents(&root));
    let refused = reader.refused.into_iter().map(|refused| refused.error);
    if !reader.errors.is_empty() {
        reader.errors.extend(refused);
        reader.errors.sort_by_key(|error| error.location.line);
        // A sidecar is read within its service and as a service.
        reader.errors.dedup();
        return Err(count_many(reader.errors));
    }
    reader.warnings.dedup();
    let (refused, warnings) = (count_many(refused.collect()), count_many(reader.warnings));
    Ok(Parsed { contents, refused, warnings, unused: reader.unused })
}

/// The errors, but of each kind in each file a few with their lines and the number of the others.
fn count_many(errors: Vec<Error>) -> Vec<Error> {
    if errors.len() <= MOST_EXAMPLES {
        return errors;
    }
    // How many of a kind there are, and the place of the last that is kept.
    let mut kinds = HashMap::new();
    let mut kept: Vec<Error> = Vec::new();
    for error in errors {
        let kind = (error.location.file.clone(), discriminant(&error.problem));
        let (count, last) = kinds.entry(kind).or_insert((0, 0));
        *count += 1;
        if *count <= MOST_EXAMPLES {
            *last = kept.len();
            kept.push(error);
        }
    }
    for (count, last) in kinds.into_values().filter(|(count, _)| *count > MOST_EXAMPLES) {
        if let Some(error) = kept.get_mut(last) {
            let first = Box::new(error.problem.clone());
            error.problem = Problem::More { first, more: count - MOST_EXAMPLES };
        }
    }
    kept
}

/// The value in a file; nothing if there is nothing in it.
fn read_value(path: &Path, bytes: &[u8]) -> Result<Option<super::value::Value>, Fault> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|octet| **octet == b'\n').count();
        Fault::at(line, "not UTF-8 text; save it as that")
    })?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    if is_json { json::read(text) } else { hcl::read(text) }.map(Some)
}

/// So many faults of one kind in one file have a line each.
const MOST_EXAMPLES: usize = 10;
/// Deeper folders hold no definitions.
const MAX_DEPTH: usize = 16;

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
