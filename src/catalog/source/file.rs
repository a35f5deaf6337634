//! Definition files, as Consul reads them from `/etc/consul.d`.
//!
//! Every `*.json` and `*.hcl` in the folder and below it is read, in the order of the names. A file with faults is refused
//! with all of them, and what it said before stays; a file that has not changed is not read again.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    definition::{self, Contents, Reader},
    hcl, json,
    value::Fault,
};
use crate::{
    catalog::{
        identity::{Agent, Identity},
        model::{Check, Instance, NodeKey, Registration},
        registry::{CheckKey, Set},
    },
    location::Location,
};

pub use definition::Define;

/// What the definition files of a folder say. `D` is what a check is for those who run it.
#[derive(Debug)]
pub struct Files<D> {
    files: Vec<Loaded<D>>,
    /// The folders, which change when a file comes or goes.
    folders: Vec<PathBuf>,
}

/// What loading came to.
#[derive(Debug)]
pub struct Outcome<D> {
    /// The files without faults, and the last good versions of the others.
    pub files: Files<D>,
    /// Every fault. At start each is fatal; at reload the last good version stays in service.
    pub faults: Vec<Error>,
    /// Keys that mean something to Consul and nothing here, in files that were read anew: to be named once, together.
    pub unused: BTreeSet<String>,
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
    #[error("unknown key `{key}` in {what}; correct or remove it")]
    UnknownKey {
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
    /// A check of a service that is not there.
    #[error("the check is for service id `{0}`, which no file defines; define it, or correct service_id")]
    NoService(Arc<str>),
}

#[derive(Debug)]
struct Loaded<D> {
    path: PathBuf,
    /// As it was when it was read; nothing if it is to be read again in any case.
    stamp: Option<Stamp>,
    contents: Arc<Contents<D>>,
}

impl<D> Clone for Loaded<D> {
    fn clone(&self) -> Self {
        Self { path: self.path.clone(), stamp: self.stamp, contents: self.contents.clone() }
    }
}

impl<D> Files<D> {
    /// Reads what is in a folder. `previous` is what has been loaded so far; what has not changed is taken from there.
    pub fn load(directory: &Path, previous: Option<&Self>, define: Define<'_, D>) -> Outcome<D> {
        let previous: HashMap<&Path, &Loaded<D>> =
            previous.iter().flat_map(|files| &files.files).map(|loaded| (&*loaded.path, loaded)).collect();
        let files = Self { files: Vec::new(), folders: Vec::new() };
        let mut outcome = Outcome { files, faults: Vec::new(), unused: BTreeSet::new() };
        let mut paths = Vec::new();
        if !outcome.list(directory, 0, &mut paths) {
            // Nobody knows what is in there now: what was there stays.
            let lost = previous.keys().filter(|path| path.starts_with(directory));
            paths.extend(lost.map(|path| path.to_path_buf()));
        }
        paths.sort();
        paths.dedup();
        for path in paths {
            let known = previous.get(&*path).copied();
            let loaded = outcome.load_one(&path, known, define);
            outcome.files.files.extend(loaded);
        }
        outcome.check_ids();
        outcome
    }

    /// The folders to be watched, the files in which may change, come and go.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// What the agent keys say; of two files the later has the word.
    pub fn agent(&self) -> Agent {
        let mut agent = Agent::default();
        for loaded in &self.files {
            let said = loaded.contents.agent.clone();
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
        let mut node = identity.node();
        let key = node.key();
        let own = |definitions: &[&definition::Check<D>]| definitions.iter().map(|check| check.begin()).collect();
        let mut by_service = HashMap::<&str, Vec<&definition::Check<D>>>::new();
        let mut of_node = Vec::new();
        for check in self.checks() {
            match &check.service_id {
                Some(service) => by_service.entry(service).or_default().push(check),
                None => of_node.push(check),
            }
        }
        node.checks = own(&of_node);
        let instance = |service: &definition::Service<D>| {
            let mut checks: Vec<_> = service.checks.iter().collect();
            checks.extend(by_service.get(&*service.id).into_iter().flatten());
            Instance { registration: service.register(key.clone()).into(), checks: own(&checks) }.into()
        };
        Set { instances: self.services().map(instance).collect(), nodes: vec![node.into()] }
    }

    /// The checks that are to be run, on our own node.
    pub fn definitions<'a>(&'a self, identity: &'a Identity) -> impl Iterator<Item = (CheckKey, &'a Arc<D>)> {
        let node = identity.node().key();
        let of_services = self
            .services()
            .flat_map(|service| service.checks.iter().map(move |check| (Some(service.id.clone()), check)));
        let others = self.checks().map(|check| (check.service_id.clone(), check));
        of_services.chain(others).map(move |(service_id, check)| {
            (CheckKey { node: node.clone(), service_id, check: check.id.clone() }, &check.definition)
        })
    }

    /// The services, of those with one id the first.
    fn services(&self) -> impl Iterator<Item = &definition::Service<D>> {
        let mut known = HashSet::new();
        self.files.iter().flat_map(|loaded| &loaded.contents.services).filter(move |service| known.insert(&service.id))
    }

    /// The checks that stand beside the services.
    fn checks(&self) -> impl Iterator<Item = &definition::Check<D>> {
        self.files.iter().flat_map(|loaded| &loaded.contents.checks)
    }
}

impl<D> Outcome<D> {
    /// Lists the definition files in a folder and below; false if not all could be seen.
    fn list(&mut self, folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> bool {
        let mut blame = |problem| self.faults.push(Error { location: Location::file(folder), problem });
        if depth > MAX_DEPTH {
            blame(Problem::Depth);
            return false;
        }
        let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                blame(Problem::NoDirectory(error.to_string()));
                return false;
            }
        };
        self.files.folders.push(folder.to_owned());
        let mut is_all = true;
        for path in entries.into_iter().map(|entry| entry.path()) {
            // Editors keep copies and locks there, and Kubernetes its earlier versions.
            let is_hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with(['.', '#']));
            let extension = path.extension().and_then(|extension| extension.to_str());
            if is_hidden {
                continue;
            } else if path.is_dir() {
                is_all &= self.list(&path, depth + 1, paths);
            } else if matches!(extension, Some("json" | "hcl")) {
                paths.push(path);
            }
        }
        is_all
    }

    fn load_one(&mut self, path: &Path, known: Option<&Loaded<D>>, define: Define<'_, D>) -> Option<Loaded<D>> {
        let stamp = Stamp::of(path).ok();
        if let Some(known) = known.filter(|known| known.stamp.is_some() && known.stamp == stamp) {
            return Some(known.clone());
        }
        let location = Location::file(path);
        let mut reader = Reader { location: location.clone(), define, errors: Vec::new(), unused: Vec::new() };
        let contents = match read(path) {
            Ok(Some(root)) => Some(reader.contents(&root)),
            Ok(None) => None,
            Err(fault) => {
                let location = Location { line: fault.line, ..location };
                let problem = if fault.line.is_some() {
                    Problem::Syntax(fault.message)
                } else {
                    Problem::Unreadable(fault.message)
                };
                reader.errors.push(Error { location, problem });
                None
            }
        };
        if !reader.errors.is_empty() {
            reader.errors.sort_by_key(|error| error.location.line);
            self.faults.append(&mut reader.errors);
            return known.map(|known| Loaded { stamp: None, ..known.clone() });
        }
        self.unused.extend(reader.unused);
        contents.map(|contents| Loaded { path: path.to_owned(), stamp, contents: contents.into() })
    }

    /// Each id is one service's or one check's, and each check of a service has one.
    fn check_ids(&mut self) {
        let mut services = HashMap::<&str, &Location>::new();
        let mut checks = HashMap::<&str, &Location>::new();
        let mut faults = Vec::new();
        let mut blame = |location: &Location, problem| faults.push(Error { location: location.clone(), problem });
        for service in self.files.files.iter().flat_map(|loaded| &loaded.contents.services) {
            match services.get(&*service.id) {
                None => drop(services.insert(&service.id, &service.location)),
                Some(&first) => {
                    let problem = Problem::SameId { what: "service", id: service.id.clone(), first: first.clone() };
                    blame(&service.location, problem);
                }
            }
        }
        for check in self.files.services().flat_map(|service| &service.checks).chain(self.files.checks()) {
            if let Some(first) = checks.insert(&check.id, &check.location) {
                let problem = Problem::SameId { what: "check", id: check.id.clone(), first: first.clone() };
                blame(&check.location, problem);
            }
            if let Some(service) = check.service_id.as_ref().filter(|id| !services.contains_key(&***id)) {
                blame(&check.location, Problem::NoService(service.clone()));
            }
        }
        self.faults.extend(faults);
    }
}

impl<D> definition::Service<D> {
    fn register(&self, node: NodeKey) -> Registration {
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
    fn begin(&self) -> Check {
        Check {
            id: self.id.clone(),
            name: self.name.clone(),
            notes: self.notes.clone(),
            status: self.initial,
            output: "".into(),
        }
    }
}

/// Reads a file; nothing if there is nothing in it.
fn read(path: &Path) -> Result<Option<super::value::Value>, Fault> {
    let unreadable = |error: io::Error| Fault { line: None, message: error.to_string() };
    // Looked at before it is opened, for opening a pipe waits for its writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::other("not a regular file")));
    }
    let bytes = fs::read(path).map_err(unreadable)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|octet| **octet == b'\n').count();
        Fault::at(line, "not UTF-8 text; save it as that")
    })?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    if is_json { json::read(&text) } else { hcl::read(&text) }.map(Some)
}

/// By what a changed file is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size_bytes: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// Deeper folders hold no definitions.
const MAX_DEPTH: usize = 16;

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
