//! What is registered over the API while the daemon runs: taken in, kept in files, restored.
//!
//! Orders come through a bounded queue, and those that have gathered are carried out together: one snapshot, one save. A
//! registration is answered when it is in force and on the disk. What TTL checks were told is saved as results of checks are.

use std::{collections::BTreeSet, io, net::IpAddr, path::PathBuf, sync::Arc};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    catalog::{Shared, State, id_of},
    data::log_some,
    disk::{self, Unusable},
    memory::{self, Memory},
};
use crate::{
    catalog::{
        health::Status,
        source::{
            file::Owner,
            registered::{self, Refused, Registered},
        },
    },
    control::consul::{Command, Order},
    escape::shorten,
    files::{self, Durability},
};

/// What is registered, and where that is kept.
#[derive(Default)]
pub(super) struct Registrations {
    place: Place,
    registered: Registered,
    /// Whether the disk knows less.
    is_unsaved: bool,
}

/// Whether anything may be registered, and where it is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub is_enabled: bool,
    /// Without one, nothing survives a restart.
    pub folder: Option<PathBuf>,
}

impl Registrations {
    /// What is registered.
    pub fn registered(&self) -> &Registered {
        &self.registered
    }

    /// Whether these are kept there.
    pub fn are_at(&self, place: &Place) -> bool {
        self.place == *place
    }

    /// Where these are kept, if anywhere.
    pub fn folder(&self) -> Option<&PathBuf> {
        self.place.folder.as_ref()
    }

    /// As they are kept, for a successor; nothing if none can be made.
    pub fn to_text(&self) -> Option<String> {
        self.place.is_enabled.then(|| String::from_utf8_lossy(&self.registered.save()).into_owned())
    }

    /// Notes that something else is registered than what is saved.
    pub fn note_change(&mut self) {
        self.is_unsaved = true;
    }

    /// Takes out a service, and says whose state that changes.
    pub fn drop_service(&mut self, id: &str) -> BTreeSet<Owner> {
        self.is_unsaved = true;
        self.registered.drop_service(id)
    }

    /// What is kept at a place, or what a predecessor has passed on.
    pub fn load(place: Place, passed_on: Option<Vec<u8>>) -> Self {
        let mut registrations = Self { place, ..Self::default() };
        let Place { is_enabled, folder } = &registrations.place;
        if !is_enabled {
            return registrations;
        }
        if let Some(folder) = folder {
            files::remove_leftovers(folder);
        }
        let file = folder.as_ref().map(|folder| folder.join(REGISTRATIONS));
        // The disk may know less than a predecessor.
        registrations.is_unsaved = passed_on.is_some();
        let saved = passed_on.or_else(|| disk::read(file.as_ref()?));
        let Some(saved) = saved else { return registrations };
        let (registered, faults) = Registered::restore(&saved);
        registrations.registered = registered;
        let name = file.as_ref().map(|file| tracing::field::display(file.display()));
        log_some(faults.iter(), |fault| {
            tracing::error!(file = &name, error = shorten(fault, MOST_REASON), "registration not restored");
        });
        if let Some(file) = file.filter(|_| !faults.is_empty()) {
            let is_other = memory::version_of(&saved).is_some_and(|version| version != registered::VERSION);
            disk::set_aside(&file, if is_other { Unusable::UnknownVersion } else { Unusable::Damaged });
            registrations.is_unsaved = true;
        }
        registrations
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
        let memory = Memory::load(None, place.folder.as_deref());
        let registrations = Registrations::load(place, None);
        self.publish(|state| {
            // What runs already knows more than the disk; what is registered from now on does not.
            if let Some((findings, origin)) = memory.findings.and_then(|past| Some((past.saved, past.origin?))) {
                self.runner.restore(findings.checks, origin);
            }
            state.registrations = registrations;
            state.register(&self.runner);
        });
        self.unsaved.notify_one();
    }

    /// Carries out orders until the catalog closes.
    pub(super) async fn follow_orders(&self, orders: &mut mpsc::Receiver<Order>, closing: CancellationToken) {
        loop {
            tokio::select! {
                () = closing.cancelled() => break,
                Some(first) = orders.recv() => {
                    let mut batch = vec![first];
                    while batch.len() < MOST_AT_ONCE && let Ok(next) = orders.try_recv() {
                        batch.push(next);
                    }
                    let mut outcomes = Vec::with_capacity(batch.len());
                    self.publish(|state| {
                        outcomes.extend(batch.into_iter().map(|Order { command, client, done }| {
                            // What a check is told is saved later, and holds without.
                            let is_saved_now = !matches!(command, Command::Tell { .. });
                            (state.obey(command, client, self), is_saved_now, done)
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
            }
        }
        // What fails is logged.
        let _ = self.save().await;
    }

    /// Saves what is registered, unless it is saved already.
    pub(super) async fn save(&self) -> Result<(), Refused> {
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
}

impl State {
    fn obey(&mut self, command: Command, client: Option<IpAddr>, shared: &Shared) -> Result<(), Refused> {
        let files = self.plan.files.clone();
        let registered = &mut self.registrations.registered;
        let client = client.map(tracing::field::display);
        let changed = match command {
            Command::Tell { check, status, output } => return self.tell(&check, status, &output, shared),
            Command::RegisterService(new, others) => {
                let id = new.id().to_owned();
                let changed = registered.put_service(new, others, &files)?;
                if !changed.is_empty() {
                    tracing::info!(service = id, client, "service registered");
                }
                changed
            }
            Command::DeregisterService(id) => {
                let changed = registered.remove_service(&id, &files)?;
                if !changed.is_empty() {
                    tracing::info!(service = id, client, "service deregistered");
                }
                changed
            }
            Command::RegisterCheck(new) => {
                let id = new.id().to_owned();
                let changed = registered.put_check(new, &files)?;
                if !changed.is_empty() {
                    tracing::info!(check = id, client, "check registered");
                }
                changed
            }
            Command::DeregisterCheck(id) => {
                let changed = registered.remove_check(&id, &files)?;
                if !changed.is_empty() {
                    tracing::info!(check = id, client, "check deregistered");
                }
                changed
            }
            Command::RegisterNode(new) => {
                let datacenter = &self.plan.identity.datacenter;
                let snapshot = self.registry.snapshot();
                let changed = registered.add_external(new, datacenter, |node| snapshot.node(node).is_some())?;
                tracing::info!(client, "external node registered");
                self.publish_external(changed);
                return Ok(());
            }
            Command::DeregisterNode(removal) => {
                if let Some(changed) = registered.remove_external(&removal, &self.plan.identity.datacenter)? {
                    tracing::info!(client, "external node deregistered");
                    self.publish_external(changed);
                }
                return Ok(());
            }
            Command::Maintain { service, reason } => {
                let owner: Owner = service.map(Arc::from);
                let changed = registered.maintain(owner.clone(), reason.as_deref(), &files)?;
                let reason = reason.as_deref().map(|reason| shorten(reason, MOST_REASON));
                tracing::info!(service = owner.as_deref(), is_on = reason.is_some(), reason, client, "maintenance");
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
        if let Some(event) = shared.runner.state(&id) {
            self.take_in(event, shared);
        }
        Ok(())
    }
}

/// Puts a file in the place of what it was, all of it or nothing, beside those who serve.
async fn write(file: PathBuf, contents: Vec<u8>) -> Result<(), String> {
    let name = file.display().to_string();
    let written = tokio::task::spawn_blocking(move || files::replace(&file, &contents, Durability::Disk)).await;
    written.map_err(io::Error::from).and_then(|written| written).map_err(|error| {
        tracing::error!(file = name, %error, "file not saved");
        format!("{name}: {error}")
    })
}

/// So many characters of the reason for maintenance are logged.
const MOST_REASON: usize = 200;
const REGISTRATIONS: &str = "registrations.json";
/// So many orders are carried out together.
const MOST_AT_ONCE: usize = 256;
