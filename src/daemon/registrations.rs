//! What is registered over the API while the daemon runs: taken in, kept in files, restored.
//!
//! Orders come through a bounded queue, and those that have gathered are carried out together: one snapshot of the catalog, one
//! save. A registration is answered when it is in force and on the disk. What TTL checks were told is saved as results of
//! checks are.
//!
//! A save appends what has changed to a journal. When the journal has become as large as the snapshot that it continues, a new
//! snapshot is written: so the cost of a registration does not grow with their number.

mod files;

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc};

use rand::random;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub(super) use self::files::Writer;
use self::files::{Kept, ToSave};
use super::{
    catalog::{Shared, State, id_of},
    memory::Memory,
};
use crate::{
    catalog::{
        health::Status,
        source::{
            file::Owner,
            registered::{Refused, Registered},
        },
    },
    control::consul::{Command, Order},
    escape::shorten,
};

/// What is registered, and where that is kept.
#[derive(Default)]
pub(super) struct Registrations {
    place: Place,
    registered: Registered,
    /// What continues the snapshot on the disk; without one, the next save writes a snapshot.
    journal: Option<Growing>,
    /// Whether the next save writes a snapshot even if nothing has changed.
    is_snapshot_due: bool,
}

/// A journal, as far as it has been written.
struct Growing {
    name: String,
    records: usize,
    bytes: usize,
    /// When it would be larger, a new snapshot is written.
    most_bytes: usize,
}

/// What a save writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// What has changed.
    Changes,
    /// A snapshot that needs no journal, for a process that may know none.
    Whole,
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

    /// Takes out a service, and says whose state that changes.
    pub fn drop_service(&mut self, id: &str) -> BTreeSet<Owner> {
        self.registered.drop_service(id)
    }

    /// What is kept at a place, or what a predecessor has passed on.
    pub fn load(place: Place, passed_on: Option<Vec<u8>>) -> Self {
        let mut registrations = Self { place, ..Self::default() };
        let Place { is_enabled, folder } = &registrations.place;
        if !is_enabled {
            return registrations;
        }
        if let Some(passed_on) = passed_on {
            let (registered, faults) = Registered::restore(&passed_on);
            files::log_faults(None, &faults);
            registrations.registered = registered;
            // The disk may know less than a predecessor.
            registrations.is_snapshot_due = true;
        } else if let Some(folder) = folder {
            let Kept { registered, is_snapshot_enough } = files::load(folder);
            registrations.registered = registered;
            registrations.is_snapshot_due = !is_snapshot_enough;
        }
        registrations
    }

    /// Takes what is to be saved, if anything is.
    fn take_unsaved(&mut self, extent: Extent) -> Option<ToSave> {
        let Some(folder) = self.place.folder.as_ref().filter(|_| self.place.is_enabled) else {
            self.registered.forget_changes();
            return None;
        };
        let has_records = self.journal.as_ref().is_some_and(|journal| journal.records > 0);
        let is_snapshot_due = self.is_snapshot_due || extent == Extent::Whole && has_records;
        if !is_snapshot_due && !self.registered.has_changes() {
            return None;
        }
        if let Some(journal) = self.journal.as_mut().filter(|_| !is_snapshot_due && extent == Extent::Changes) {
            let record = self.registered.take_changes();
            if journal.bytes + record.len() <= journal.most_bytes {
                journal.records += 1;
                journal.bytes += record.len();
                return Some(match journal.records {
                    1 => ToSave::First(folder.clone(), journal.name.clone(), record),
                    _ => ToSave::Further(folder.clone(), record),
                });
            }
        }
        // A name that no journal has had, whatever is copied to or restored in the folder.
        let name = format!("{:016x}", random::<u64>());
        let contents = self.registered.take_snapshot(&name);
        let most_bytes = contents.len().max(SMALLEST_JOURNAL_BYTES);
        self.journal = Some(Growing { name, records: 0, bytes: 0, most_bytes });
        self.is_snapshot_due = false;
        Some(ToSave::Snapshot(folder.clone(), contents))
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
                    let saved = if is_to_save { self.save(Extent::Changes).await } else { Ok(()) };
                    for (outcome, is_saved_now, done) in outcomes {
                        let saved = if is_saved_now { saved.clone() } else { Ok(()) };
                        // Who has gone meanwhile does not hear it.
                        let _ = done.send(outcome.and(saved));
                    }
                }
                () = self.unsaved.notified() => drop(self.save(Extent::Changes).await),
            }
        }
        // What fails is logged.
        let _ = self.save(Extent::Whole).await;
    }

    /// Saves what is registered, unless it is saved already.
    pub(super) async fn save(&self, extent: Extent) -> Result<(), Refused> {
        let mut writing = self.writing.lock().await;
        if writing.files_left {
            return Ok(());
        }
        loop {
            let to_save = self.state.lock().registrations.take_unsaved(extent);
            let Some(to_save) = to_save else { return Ok(()) };
            let is_snapshot = matches!(to_save, ToSave::Snapshot(..));
            let Err(error) = writing.registrations.write(to_save).await else { return Ok(()) };
            self.state.lock().registrations.is_snapshot_due = true;
            if is_snapshot {
                // The next change tries again.
                tracing::error!(error, "registrations not saved");
                return Err(Refused::Unsaved(error));
            }
            tracing::warn!(error, "registrations not appended to their journal; a snapshot is written instead");
        }
    }

    /// The next save writes all registrations, whatever has become of the files.
    pub(super) fn save_registrations_anew(&self) {
        self.state.lock().registrations.is_snapshot_due = true;
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

/// So many characters of the reason for maintenance are logged.
const MOST_REASON: usize = 200;
/// A journal may always become so large, however little is registered.
const SMALLEST_JOURNAL_BYTES: usize = 1 << 20;
/// So many orders are carried out together.
const MOST_AT_ONCE: usize = 256;
