//! One check in the table: what it is, how it is, and when it is due.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use tokio::sync::oneshot;

use super::{Check, Event, definition::Kind, guard::Sighting, saved::Saved, state::State};
use crate::{catalog::health::Status, clock::Moment};

/// A check with its state.
#[derive(Debug)]
pub(super) struct Slot {
    pub check: Check,
    pub state: State,
    pub usage: u64,
    /// When the probe is to start, or the TTL ends. None while the probe runs.
    pub due: Option<Moment>,
    pub running: Option<Running>,
    /// When the last probe that has ended was started.
    pub begun: Option<Moment>,
    /// When that probe ended.
    pub ended: Option<Moment>,
    /// Whether the next probe runs before those of other checks.
    pub is_urgent: bool,
    pub is_news: bool,
    /// Whether its state comes from an earlier process, and it has not followed any check since.
    pub is_restored_alias: bool,
    /// Whether it was said that the service should go.
    pub is_given_up: bool,
}

/// A probe that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub started: Moment,
    /// Dropped with the slot, it ends the probe.
    pub _canceler: oneshot::Sender<()>,
}

impl Slot {
    pub fn step(&mut self, interval: Duration, rng: &mut impl Rng) -> Duration {
        let (wait, pace) = self.state.pace.step(interval, rng);
        self.state.pace = pace;
        wait
    }

    pub fn gives_up_at(&self) -> Option<Moment> {
        let after = self.check.definition.deregister_after?;
        (self.state.status() == Status::Critical).then(|| self.state.since() + after)
    }

    pub fn is_overdue(&self, now: Moment) -> bool {
        self.gives_up_at().is_some_and(|at| at <= now)
    }

    /// What is kept of it; nothing if a probe has had no result yet.
    pub fn save(&self, now: Moment) -> Option<Saved> {
        let Check { id, definition, .. } = &self.check;
        let result = match definition.kind {
            // As long as a probe runs, the last result is as good as any.
            Kind::Probe { .. } if self.running.is_some() => self.ended.map(|_| now)?,
            Kind::Probe { .. } => self.ended?,
            Kind::Ttl(_) | Kind::Alias(_) => now,
        };
        let started = self.running.as_ref().map(|running| running.started);
        let mut saved = Saved::new(id, definition, self.state.save(now), result.offset(now));
        saved.due = self.due.or(started).map(|due| due.offset(now));
        saved.begun = self.begun.map(|begun| begun.offset(now));
        Some(saved)
    }

    pub fn sighting(&self) -> Option<Sighting> {
        let Kind::Probe { interval, timeout, .. } = self.check.definition.kind else { return None };
        let (reach, since) = self.state.reach();
        Some(Sighting { reach, since, delay: interval + timeout })
    }

    pub fn event(&self, now: Moment) -> Event {
        Event {
            id: self.check.id.clone(),
            status: self.state.status(),
            output: Arc::clone(self.state.output()),
            at: self.state.since(),
            is_overdue: self.is_overdue(now),
        }
    }
}
