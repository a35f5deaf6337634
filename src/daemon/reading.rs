//! Everything that a start, a reload or a changed file reads, before anything is changed.
//!
//! Files are read beside the main task, which goes on to hear signals meanwhile. A file that does not answer costs itself alone
//! (see [`files::patiently`]), also at a reload, which may not take longer than a second for it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle, spawn_blocking},
};

use super::{
    catalog, exposure, interfaces,
    places::{Kept, registrations_place},
    watch::Watch,
};
use crate::{
    catalog::source::file::Scope,
    config::{Loaded, Refused, Upstreams},
    files::{self, Copies, Stamp, Version},
    forward,
    metrics::Metrics,
    server, zone,
};

/// What is in service, as far as what is read next depends on it.
#[derive(Clone)]
pub(super) struct Known {
    pub loaded: Arc<Loaded>,
    pub zones: Arc<zone::Files>,
    pub definitions: Option<catalog::Current>,
    pub groups: Vec<Arc<forward::Group>>,
    pub metrics: Arc<Metrics>,
}

/// All that a start or a reload reads.
pub(super) struct Fresh {
    pub loaded: Arc<Loaded>,
    pub data: DataFiles,
    pub groups: Vec<Arc<forward::Group>>,
    pub certificate: Option<server::Certificate>,
    /// What is odd in the configuration, but taken in.
    pub warnings: Vec<String>,
}

/// Data files, with what has not changed taken over.
pub(super) struct DataFiles {
    pub zones: zone::Outcome,
    pub definitions: Option<catalog::Loaded>,
    /// The files that may say who the system's upstreams are, as they were when that was read.
    pub system_files: Vec<(PathBuf, Option<Stamp>)>,
}

/// What a change of files comes to.
pub(super) struct Changed {
    pub data: DataFiles,
    /// The system's upstreams, if they are others now.
    pub system: Option<SystemUpstreams>,
}

/// The configuration with other upstreams of the system.
pub(super) struct SystemUpstreams {
    pub loaded: Loaded,
    /// What is made of them, or the faults.
    pub groups: Result<Vec<Arc<forward::Group>>, Vec<String>>,
}

/// Files that are being read.
pub(super) struct Reading {
    pub cause: Cause,
    task: JoinHandle<Outcome>,
}

/// Why they are read.
pub(super) enum Cause {
    /// A reload, and what waits for its outcome.
    Reload(Option<oneshot::Sender<Result<(), String>>>),
    /// Some have changed.
    Change,
}

/// What has been read.
pub(super) enum Outcome {
    Reload(Result<Box<Fresh>>),
    Change(Box<Changed>),
}

impl Reading {
    /// Begins to read everything anew for a reload.
    pub fn for_reload(known: Known, done: Option<oneshot::Sender<Result<(), String>>>) -> Self {
        let read = move || read_anew(&known).map(Box::new);
        let task = spawn_blocking(|| Outcome::Reload(files::patiently(RELOAD_PATIENCE, read)));
        Self { cause: Cause::Reload(done), task }
    }

    /// Begins to read the data files that have changed.
    pub fn for_change(known: Known, watch: &Watch) -> Self {
        let changed = watch.take_changed();
        let read = move || {
            let scope = changed.as_ref().map_or(Scope::All, Scope::Changed);
            let data = DataFiles::read(&known.loaded, &known, scope);
            let system = known.loaded.follow_system().map(|loaded| {
                let groups = forward::Group::build_all(&loaded.rules, &known.groups, &known.metrics);
                let groups = groups.map_err(|errors| errors.iter().map(ToString::to_string).collect());
                SystemUpstreams { loaded, groups }
            });
            Box::new(Changed { data, system })
        };
        Self { cause: Cause::Change, task: spawn_blocking(|| Outcome::Change(files::patiently(PATIENCE, read))) }
    }

    pub fn is_for_reload(&self) -> bool {
        matches!(self.cause, Cause::Reload(_))
    }

    /// Waits until all is read. An error is a panic of the reader.
    pub async fn outcome(&mut self) -> Result<Outcome, JoinError> {
        (&mut self.task).await
    }
}

/// Reads what a start needs besides the configuration, which blocks until it is read.
pub(super) fn read_at_start(loaded: Arc<Loaded>, metrics: Arc<Metrics>) -> Result<Fresh> {
    let known = Known { loaded, zones: Arc::default(), definitions: None, groups: Vec::new(), metrics };
    files::patiently(PATIENCE, move || Fresh::read(known.loaded.clone(), &known))
}

fn read_anew(known: &Known) -> Result<Fresh> {
    let mut loaded = known.loaded.source.load().map_err(Refused::new)?;
    loaded.keep_system(&known.loaded);
    Fresh::read(Arc::new(loaded), known)
}

impl Fresh {
    fn read(loaded: Arc<Loaded>, known: &Known) -> Result<Self> {
        let data = DataFiles::read(&loaded, known, Scope::All);
        if let Some(definitions) = data.definitions.as_ref().filter(|loaded| !loaded.refusals.is_empty()) {
            return Err(Refused::new(&definitions.refusals).into());
        }
        let groups = forward::Group::build_all(&loaded.rules, &known.groups, &known.metrics).map_err(Refused::new)?;
        let certificate = server::load_certificate(&loaded.config.server).map_err(|error| Refused::new([error]))?;
        let warnings = odd(&loaded).chain(lasting(&loaded)).collect();
        Ok(Self { loaded, data, groups, certificate, warnings })
    }
}

impl DataFiles {
    fn read(loaded: &Loaded, known: &Known, scope: Scope<'_>) -> Self {
        let system_files = stamps_of_system(loaded);
        let copies = Kept::of(loaded);
        let zones = load_zones(loaded, Some(&known.zones), &copies.zones);
        let definitions = catalog::load(&loaded.config.catalog, known.definitions.as_ref(), scope, &copies.definitions);
        Self { zones, definitions, system_files }
    }

    /// The files that were read anew and are good: zones, and definition files.
    pub fn take_versions(&mut self) -> (Vec<Version>, Vec<Version>) {
        let definitions = self.definitions.as_mut().map(|loaded| std::mem::take(&mut loaded.versions));
        (std::mem::take(&mut self.zones.versions), definitions.unwrap_or_default())
    }

    /// What the definition files come to.
    pub fn take_plan(&mut self) -> Option<catalog::Plan> {
        let found = self.definitions.take()?;
        if !found.unused.is_empty() {
            let more = found.unused.len().saturating_sub(MOST_KEYS);
            let mut keys = found.unused.into_iter().take(MOST_KEYS).collect::<Vec<_>>().join(", ");
            if more > 0 {
                keys += &format!(" and {more} more");
            }
            tracing::info!(keys, "keys of definition files that mean nothing here");
        }
        found.plan
    }
}

pub(super) fn load_zones(loaded: &Loaded, previous: Option<&zone::Files>, copies: &Copies) -> zone::Outcome {
    zone::Files::load(&loaded.config.zones, &loaded.zones, previous, copies)
}

/// What is odd in a configuration and around it, but taken in.
pub(super) fn odd(loaded: &Loaded) -> impl Iterator<Item = String> {
    let missing = loaded.upstreams.missing().map(str::to_owned);
    let slow = loaded.config.forward.iter().filter_map(|rule| rule.rule().ok()?.warning());
    missing.into_iter().chain(interfaces::warnings(&loaded.config)).chain(slow).chain(exposure::warnings(loaded))
}

/// What a restart loses. Only a daemon that runs knows whether the service manager gives it a state directory.
fn lasting(loaded: &Loaded) -> Option<String> {
    let place = registrations_place(loaded);
    let lost = if place.is_enabled { ", registrations" } else { "" };
    (place.folder.is_none() && loaded.config.catalog.has_source()).then(|| {
        format!("results of checks, choices of policies{lost} will not survive a restart; set server.state_directory")
    })
}

/// The files that may say who the system's upstreams are, as they are now; none if the configuration says it.
fn stamps_of_system(loaded: &Loaded) -> Vec<(PathBuf, Option<Stamp>)> {
    if loaded.upstreams == Upstreams::Configured {
        return Vec::new();
    }
    let files = loaded.source.system.resolv_confs.iter();
    files.map(|file| (file.clone(), Stamp::of(file).ok())).collect()
}

/// A line names no more keys than this.
const MOST_KEYS: usize = 20;
/// How long one access to a file may take. A disk that wakes up takes some seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same at a reload: a file that does not answer is faulty until it does.
const RELOAD_PATIENCE: Duration = Duration::from_millis(400);
