//! What is registered over the API while the daemon runs: taken in, kept in files, restored.
//!
//! Orders come through a bounded queue, and those that have gathered are carried out together: one snapshot, one save. A
//! registration is answered when it is in force and on the disk. What TTL checks were told is saved a moment later, and
//! what of it a crash loses is told again within their TTLs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::catalog::{Shared, State, id_of};
use crate::{
    catalog::{
        health::Status,
        source::{
            file::Owner,
            registered::{Refused, Registered},
        },
    },
    clock::{Moment, unix_seconds},
    control::consul::{Command, Order},
};

/// What is registered, and where that is kept.
#[derive(Default)]
pub(super) struct Registrations {
    place: Place,
    registered: Registered,
    /// Whether the disk knows less.
    is_unsaved: bool,
    /// TTL checks that were told something, by their ids.
    told: BTreeSet<Arc<str>>,
}

/// Whether anything may be registered, and where it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub is_enabled: bool,
    /// Without one, nothing survives a restart.
    pub folder: Option<PathBuf>,
}

/// What a TTL check was told last, as it is kept while no process runs.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    status: Status,
    output: String,
    /// In seconds since 1970.
    expires: u64,
}

type States = BTreeMap<String, Told>;

impl Registrations {
    /// What is registered.
    pub fn registered(&self) -> &Registered {
        &self.registered
    }

    /// Whether these are kept there.
    pub fn are_at(&self, place: &Place) -> bool {
        self.place == *place
    }

    /// TTL checks that were told something.
    #[cfg(test)]
    pub fn remembered(&self) -> Vec<&str> {
        self.told.iter().map(|check| &**check).collect()
    }

    /// Takes out a service.
    pub fn drop_service(&mut self, id: &str) {
        self.is_unsaved = true;
        self.registered.drop_service(id);
    }

    /// What is kept at a place, and what TTL checks were told.
    fn load(place: Place) -> (Self, States) {
        let mut registrations = Self { place, ..Self::default() };
        let Place { is_enabled, folder } = &registrations.place;
        if *is_enabled && folder.is_none() {
            tracing::warn!("registrations will not survive a restart; set server.state_directory");
        }
        let Some(folder) = folder.clone() else { return (registrations, States::new()) };
        let file = folder.join(REGISTRATIONS);
        if *is_enabled && let Some(saved) = read(&file) {
            let (registered, faults) = Registered::restore(&saved);
            registrations.registered = registered;
            for fault in &faults {
                tracing::error!(file = %file.display(), error = fault, "registration not restored");
            }
            if !faults.is_empty() {
                set_aside(&file);
                registrations.is_unsaved = true;
            }
        }
        let file = folder.join(STATES);
        let states = read(&file).map(|saved| serde_json::from_slice(&saved)).unwrap_or_else(|| Ok(States::new()));
        let states = states.unwrap_or_else(|error| {
            tracing::warn!(file = %file.display(), %error, "states of TTL checks not restored");
            set_aside(&file);
            States::new()
        });
        (registrations, states)
    }

    /// The file and the contents that are to be saved.
    fn take_unsaved(&mut self) -> Option<(PathBuf, Vec<u8>)> {
        let is_unsaved = std::mem::take(&mut self.is_unsaved) && self.place.is_enabled;
        let folder = self.place.folder.as_ref().filter(|_| is_unsaved)?;
        Some((folder.join(REGISTRATIONS), self.registered.save()))
    }
}

impl Shared {
    /// Keeps registrations at this place from now on, which is looked at once.
    pub(super) fn keep_registrations(&self, place: Place) {
        if self.state.lock().registrations.are_at(&place) {
            return;
        }
        let (registrations, states) = Registrations::load(place);
        self.publish(|state| {
            let mut known = std::mem::replace(&mut state.registrations, registrations).told;
            state.register(&self.runner);
            known.retain(|check| state.checks.contains_key(check));
            state.registrations.told.clone_from(&known);
            let now = unix_seconds();
            // What was told to this process is newer than what is on the disk.
            let is_news = |check: &str, told: &Told| told.expires > now && !known.contains(check);
            for (check, told) in states.into_iter().filter(|(check, told)| is_news(check, told)) {
                // One that is gone, or finds out by itself, has no use for it.
                let _ = state.tell(&check, told.status, &told.output, self);
            }
        });
        self.unsaved.notify_one();
    }

    /// Carries out orders until the catalog closes.
    pub(super) async fn follow_orders(&self, orders: &mut mpsc::Receiver<Order>, closing: CancellationToken) {
        let mut states_due = None;
        loop {
            let states_are_due = sleep_until(states_due.unwrap_or_else(Instant::now));
            tokio::select! {
                () = closing.cancelled() => break,
                Some(first) = orders.recv() => {
                    let mut batch = vec![first];
                    while batch.len() < MOST_AT_ONCE && let Ok(next) = orders.try_recv() {
                        batch.push(next);
                    }
                    if batch.iter().any(|order| matches!(order.command, Command::Tell { .. })) {
                        states_due.get_or_insert(Instant::now() + STATES_DELAY);
                    }
                    let mut outcomes = Vec::with_capacity(batch.len());
                    self.publish(|state| {
                        outcomes.extend(batch.into_iter().map(|Order { command, done }| {
                            // What a check is told is saved later, and holds without.
                            let is_saved_now = !matches!(command, Command::Tell { .. });
                            (state.obey(command, self), is_saved_now, done)
                        }));
                    });
                    let is_to_save = outcomes.iter().any(|(_, is_saved_now, _)| *is_saved_now);
                    let saved = if is_to_save { self.save().await } else { Ok(()) };
                    for (outcome, is_saved_now, done) in outcomes {
                        let saved = if is_saved_now { saved.clone() } else { Ok(()) };
                        // Who has gone meanwhile does not hear it.
                        let _ = done.send(outcome.and(saved));
                    }
                }
                () = self.unsaved.notified() => drop(self.save().await),
                () = states_are_due, if states_due.is_some() => {
                    states_due = None;
                    self.save_states().await;
                }
            }
        }
        self.save_all().await;
    }

    /// Saves all that is not saved yet.
    pub(super) async fn save_all(&self) {
        // What fails is logged, and tried again with the next change.
        let _ = self.save().await;
        self.save_states().await;
    }

    async fn save(&self) -> Result<(), Refused> {
        let files_left = self.files_left.lock().await;
        if *files_left {
            return Ok(());
        }
        let to_save = self.state.lock().registrations.take_unsaved();
        let Some((file, contents)) = to_save else { return Ok(()) };
        write(file, contents).await.map_err(|error| {
            // The next change tries again.
            self.state.lock().registrations.is_unsaved = true;
            Refused::Unsaved(error)
        })
    }

    async fn save_states(&self) {
        let files_left = self.files_left.lock().await;
        if *files_left {
            return;
        }
        let to_save = {
            let mut state = self.state.lock();
            let folder = state.registrations.place.folder.clone();
            folder.map(|folder| (folder.join(STATES), state.told(self)))
        };
        if let Some((file, states)) = to_save
            && let Ok(contents) = serde_json::to_vec_pretty(&states)
        {
            let _ = write(file, contents).await;
        }
    }
}

impl State {
    fn obey(&mut self, command: Command, shared: &Shared) -> Result<(), Refused> {
        let files = self.plan.files.clone();
        let registered = &mut self.registrations.registered;
        let changed = match command {
            Command::Tell { check, status, output } => return self.tell(&check, status, &output, shared),
            Command::RegisterService(new, others) => {
                let id = new.id().to_owned();
                let changed = registered.put_service(new, others, &files)?;
                if !changed.is_empty() {
                    tracing::info!(service = id, "service registered");
                }
                changed
            }
            Command::DeregisterService(id) => {
                let changed = registered.remove_service(&id, &files)?;
                if !changed.is_empty() {
                    tracing::info!(service = id, "service deregistered");
                }
                changed
            }
            Command::RegisterCheck(new) => registered.put_check(new, &files)?,
            Command::DeregisterCheck(id) => registered.remove_check(&id, &files)?,
            Command::Maintain { service, reason } => {
                let owner: Owner = service.map(Arc::from);
                let changed = registered.maintain(owner.clone(), reason.as_deref(), &files)?;
                tracing::info!(service = owner.as_deref(), is_on = reason.is_some(), "maintenance");
                changed
            }
        };
        if !changed.is_empty() {
            self.registrations.is_unsaved = true;
            self.register_some(&changed.into_iter().collect(), &shared.runner);
        }
        Ok(())
    }

    /// Tells a TTL check its state, which counts at once.
    fn tell(&mut self, check: &str, status: Status, output: &str, shared: &Shared) -> Result<(), Refused> {
        let no_ttl = || Refused::NotTtl(check.to_owned());
        let known = self.checks.get(check).ok_or_else(no_ttl)?;
        let id = id_of(&known.key);
        shared.runner.tell(&id, status, output).map_err(|_| no_ttl())?;
        self.registrations.told.insert(id.check.clone());
        if let Some(event) = shared.runner.state(&id) {
            self.take_in(event, shared);
        }
        Ok(())
    }

    /// What TTL checks were told, as far as it still holds.
    fn told(&mut self, shared: &Shared) -> States {
        let now = Moment::now();
        // Ids come and go, in some places with every process.
        self.registrations.told.retain(|check| self.checks.contains_key(check));
        let told = self.registrations.told.iter().filter_map(|check| {
            let id = id_of(&self.checks.get(check)?.key);
            let (event, expires) = (shared.runner.state(&id)?, shared.runner.expires(&id)?);
            let expires = unix_seconds() + expires.since(now).as_secs();
            Some((check.to_string(), Told { status: event.status, output: event.output.to_string(), expires }))
        });
        told.collect()
    }
}

/// The contents of a file, if there is one that can be read.
fn read(file: &Path) -> Option<Vec<u8>> {
    match fs::read(file) {
        Ok(saved) => Some(saved),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::error!(file = %file.display(), %error, "saved file not read");
            // Or the next save would put another in its place.
            set_aside(file);
            None
        }
    }
}

/// Keeps a damaged file for whoever can read it.
fn set_aside(file: &Path) {
    let aside = file.with_extension("damaged");
    match fs::rename(file, &aside) {
        Ok(()) => tracing::warn!(file = %aside.display(), "damaged file kept"),
        Err(error) => tracing::warn!(file = %file.display(), %error, "damaged file cannot be kept"),
    }
}

/// Puts a file in the place of what it was, all of it or nothing, beside those who serve.
async fn write(file: PathBuf, contents: Vec<u8>) -> Result<(), String> {
    let name = file.display().to_string();
    let written = tokio::task::spawn_blocking(move || replace(&file, &contents)).await;
    written.map_err(io::Error::from).and_then(|written| written).map_err(|error| {
        tracing::error!(file = name, %error, "file not saved");
        format!("{name}: {error}")
    })
}

fn replace(file: &Path, contents: &[u8]) -> io::Result<()> {
    let part = file.with_extension("part");
    let mut options = fs::OpenOptions::new();
    let mut written = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    written.write_all(contents)?;
    written.sync_all()?;
    fs::rename(&part, file)?;
    // The name is in the folder, which is a file of its own.
    file.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

const REGISTRATIONS: &str = "registrations.json";
const STATES: &str = "check_states.json";
/// So many orders are carried out together.
const MOST_AT_ONCE: usize = 256;
/// How long what TTL checks are told is gathered before it is saved.
const STATES_DELAY: Duration = Duration::from_secs(1);
