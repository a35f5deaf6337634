//! All checks with their states: what is to run now, and what is news.
//!
//! This is the runner without clock, sockets and tasks.

use std::collections::{HashMap, HashSet, VecDeque};

use rand::Rng;
use slab::Slab;
use tokio::sync::oneshot;

use super::{
    Check, Error, Event, Id,
    definition::{Alias, Kind, Probe},
    guard::{Reach, Sighting},
    saved::{Saved, timing_delay},
    schedule::{Pace, Schedule, next_start, resumed_start},
    slot::{Running, Slot},
    state::{Outcome, State, head},
};
use crate::{catalog::health::Status, clock::Moment};

/// All checks.
#[derive(Debug, Default)]
pub(super) struct Table {
    slots: Slab<Slot>,
    keys: HashMap<Id, usize>,
    schedule: Schedule,
    /// Slots with `is_news`, in the order in which they have become so; a slot may have been removed since.
    news: VecDeque<usize>,
    aliases: HashSet<usize>,
    /// Whether something has changed that aliases may follow.
    aliases_lag: bool,
    /// Probes that have been handed out and are to be run before the others, if they have not begun.
    urgent: HashSet<Ticket>,
    /// Numbers the uses of slots, for the same key may mean another check when a probe ends.
    uses: u64,
    /// States of an earlier process, and when they were saved, for checks that have not been started yet.
    saved: (Moment, HashMap<Id, Saved>),
    unsaved: Unsaved,
    /// What all outputs take.
    output_bytes: usize,
}

/// What has changed since the last [`Table::save`].
#[derive(Debug, Default)]
struct Unsaved {
    /// States, or which checks there are.
    has_news: bool,
    /// When the first result came that only repeats what was known.
    timing_since: Option<Moment>,
}

/// A probe to be run.
#[derive(Debug)]
pub(super) struct Job {
    pub check: Check,
    pub ticket: Ticket,
    /// Questions wait for the result.
    pub is_urgent: bool,
    /// Ends, when the result is not wanted any more.
    pub canceled: oneshot::Receiver<()>,
}

/// Whose result it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket {
    key: usize,
    usage: u64,
}

impl Table {
    /// Starts a check. One with the same id is replaced and leaves its state behind.
    pub fn start(&mut self, check: Check, now: Moment, rng: &mut impl Rng) {
        self.uses += 1;
        let mut resumed = None;
        let key = match self.keys.get(&check.id) {
            Some(&key) => {
                let slot = &mut self.slots[key];
                if slot.check.is_like(&check) {
                    return;
                }
                slot.check = check;
                slot.state.start_over();
                (slot.running, slot.usage) = (None, self.uses);
                key
            }
            None => {
                let (origin, saved) = &mut self.saved;
                let saved = saved.remove(&check.id);
                resumed = saved.filter(|saved| saved.counts_for(&check.definition, *origin, now));
                let state = match &resumed {
                    Some(saved) => State::restore(saved.state.clone(), *origin),
                    None => State::new(check.begins, now),
                };
                let (id, usage) = (check.id.clone(), self.uses);
                let slot = Slot {
                    check,
                    state,
                    usage,
                    due: None,
                    running: None,
                    begun: resumed.as_ref().and_then(|saved| saved.begun).map(|begun| origin.at(begun)),
                    ended: resumed.as_ref().map(|saved| origin.at(saved.result)),
                    is_urgent: false,
                    is_news: false,
                    is_restored_alias: resumed.is_some(),
                    is_given_up: false,
                };
                self.output_bytes += slot.state.output().len();
                let key = self.slots.insert(slot);
                self.keys.insert(id, key);
                key
            }
        };
        self.aliases.remove(&key);
        self.aliases_lag = true;
        self.unsaved.has_news = true;
        let origin = self.saved.0;
        let was_due = resumed.map(|saved| (saved.due.map(|due| origin.at(due)), origin.at(saved.result)));
        let slot = &mut self.slots[key];
        slot.due = match (&slot.check.definition.kind, was_due) {
            (&Kind::Probe { interval, .. }, Some((Some(due), result))) => {
                Some(resumed_start(due, result, interval, now, rng))
            }
            (&Kind::Probe { interval, .. }, _) => Some(now + slot.step(interval, rng)),
            (&Kind::Ttl(ttl), Some((Some(due), _))) => Some(due.min(now + ttl)),
            (&Kind::Ttl(ttl), _) => Some(now + ttl),
            (Kind::Alias(_), _) => {
                self.aliases.insert(key);
                None
            }
        };
        self.arm(key);
    }

    /// Ends a check.
    pub fn stop(&mut self, id: &Id) {
        if let Some(key) = self.keys.remove(id) {
            self.output_bytes -= self.slots.remove(key).state.output().len();
            self.schedule.set(key, None);
            self.aliases.remove(&key);
            self.aliases_lag = true;
            self.unsaved.has_news = true;
        }
    }

    /// Takes in the states that an earlier process has saved at `origin`. They are for checks that are started later.
    pub fn restore(&mut self, saved: Vec<Saved>, origin: Moment) {
        self.saved = (origin, saved.into_iter().map(|saved| (saved.id(), saved)).collect());
    }

    /// What the next process has to know, with times relative to `now`.
    pub fn save(&mut self, now: Moment) -> Vec<Saved> {
        self.unsaved = Unsaved::default();
        self.slots.iter().filter_map(|(_, slot)| slot.save(now)).collect()
    }

    /// Whether there is anything to save by now.
    pub fn is_unsaved(&self, now: Moment) -> bool {
        let timing_is_due = |since: Moment| {
            let interval = |slot: &Slot| match slot.check.definition.kind {
                Kind::Probe { interval, .. } => Some(interval),
                _ => None,
            };
            let shortest = self.slots.iter().filter_map(|(_, slot)| interval(slot)).min();
            shortest.is_some_and(|shortest| now.since(since) >= timing_delay(shortest))
        };
        self.unsaved.has_news || self.unsaved.timing_since.is_some_and(timing_is_due)
    }

    /// Ends all checks but these, and starts those of them that do not run as they should.
    pub fn replace(&mut self, checks: Vec<Check>, now: Moment, rng: &mut impl Rng) {
        let wanted: HashSet<&Id> = checks.iter().map(|check| &check.id).collect();
        let gone: Vec<Id> = self.keys.keys().filter(|id| !wanted.contains(id)).cloned().collect();
        for id in gone {
            self.stop(&id);
        }
        for check in checks {
            self.start(check, now, rng);
        }
    }

    /// Tells a TTL check its state.
    pub fn tell(&mut self, id: &Id, status: Status, output: &str, now: Moment) -> Result<(), Error> {
        let &key = self.keys.get(id).ok_or(Error::Unknown)?;
        let slot = &mut self.slots[key];
        let Kind::Ttl(ttl) = slot.check.definition.kind else { return Err(Error::NotTtl) };
        slot.due = Some(now + ttl);
        self.unsaved.has_news = true;
        let is_news = self.change(key, |slot, room| {
            let output = head(output, room.min(slot.check.definition.output_bytes));
            slot.state.tell(status, output.into(), now)
        });
        self.follow_up(key, is_news);
        Ok(())
    }

    /// Does what is due, up to the next probe that is to start.
    pub fn next_job(&mut self, now: Moment) -> Option<Job> {
        while let Some(key) = self.schedule.take_due(now) {
            let slot = &mut self.slots[key];
            if slot.is_overdue(now) {
                slot.is_given_up = true;
                self.mark_news(key);
            }
            let slot = &mut self.slots[key];
            if slot.due.is_none_or(|due| due > now) {
                self.arm(key);
                continue;
            }
            slot.due = None;
            if let Kind::Probe { .. } = slot.check.definition.kind {
                let (canceler, canceled) = oneshot::channel();
                slot.running = Some(Running { started: now, _canceler: canceler });
                let is_urgent = std::mem::take(&mut slot.is_urgent);
                let ticket = Ticket { key, usage: slot.usage };
                let job = Job { check: slot.check.clone(), ticket, is_urgent, canceled };
                self.arm(key);
                return Some(job);
            }
            let is_news = self.change(key, |slot, _| slot.state.expire(now));
            self.follow_up(key, is_news);
        }
        None
    }

    /// Takes the result of a probe.
    pub fn finish(&mut self, ticket: Ticket, mut outcome: Outcome, now: Moment, rng: &mut impl Rng) {
        let Some(slot) = self.slots.get_mut(ticket.key).filter(|slot| slot.usage == ticket.usage) else { return };
        let (Some(running), &Kind::Probe { interval, .. }) = (slot.running.take(), &slot.check.definition.kind) else {
            return;
        };
        (slot.begun, slot.ended) = (Some(running.started), Some(now));
        let thresholds = slot.check.definition.thresholds;
        let before = slot.state.weight(thresholds);
        let is_news = self.change(ticket.key, |slot, room| {
            if outcome.output.len() > room {
                outcome.output = head(&outcome.output, room).into_owned();
            }
            slot.state.settle(outcome, thresholds, now)
        });
        let slot = &mut self.slots[ticket.key];
        match before == slot.state.weight(thresholds) && !is_news {
            true => drop(self.unsaved.timing_since.get_or_insert(now)),
            false => self.unsaved.has_news = true,
        }
        let wait = slot.step(interval, rng);
        slot.due = Some(next_start(running.started, wait, now));
        self.follow_up(ticket.key, is_news);
    }

    /// The next moment at which something is due.
    pub fn next_due(&self) -> Option<Moment> {
        self.schedule.next()
    }

    pub fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    /// The state of a check that has news. What has changed since the news came up is in it.
    pub fn next_news(&mut self, now: Moment) -> Option<Event> {
        loop {
            let key = self.news.pop_front()?;
            if let Some(slot) = self.slots.get_mut(key).filter(|slot| slot.is_news) {
                slot.is_news = false;
                return Some(slot.event(now));
            }
        }
    }

    /// Lets the aliases follow, if there is anything new to follow.
    pub fn follow(&mut self, now: Moment) {
        if !std::mem::take(&mut self.aliases_lag) || self.aliases.is_empty() {
            return;
        }
        let index = self.index();
        let verdicts: Vec<_> = self.aliases.iter().map(|&key| (key, self.verdict(key, &index))).collect();
        for (key, (status, output)) in verdicts {
            let slot = &mut self.slots[key];
            let is_restored = std::mem::take(&mut slot.is_restored_alias);
            if status == Status::Unknown {
                // What it follows has no result yet: no news. What it followed in an earlier process may have become too old.
                if is_restored {
                    self.change(key, |slot, _| slot.state = State::new(slot.check.begins, now));
                }
                continue;
            }
            let is_news = self.change(key, |slot, room| {
                let output = head(&output, room.min(slot.check.definition.output_bytes));
                slot.state.tell(status, output.into(), now)
            });
            self.arm(key);
            if is_news {
                self.mark_news(key);
            }
        }
    }

    /// The state of a check.
    pub fn event(&self, id: &Id, now: Moment) -> Option<Event> {
        self.keys.get(id).map(|&key| self.slots[key].event(now))
    }

    /// When a TTL check expires.
    pub fn expires(&self, id: &Id) -> Option<Moment> {
        let slot = self.keys.get(id).and_then(|&key| self.slots.get(key))?;
        slot.due.filter(|_| matches!(slot.check.definition.kind, Kind::Ttl(_)))
    }

    /// What the probes of those checks have seen for which there is a `T`, up to the first whose host has answered.
    pub fn sightings<T>(&self, mut wanted: impl FnMut(&Check) -> Option<T>) -> Vec<(T, Sighting)> {
        let mut sightings = Vec::new();
        for (_, slot) in &self.slots {
            let Some(sighting) = slot.sighting() else { continue };
            let Some(of) = wanted(&slot.check) else { continue };
            sightings.push((of, sighting));
            if sighting.reach == Reach::Answered {
                break;
            }
        }
        sightings
    }

    /// Runs the probe of a check soon, as if it were new.
    pub fn hurry(&mut self, id: &Id, now: Moment, rng: &mut impl Rng) {
        let Some(&key) = self.keys.get(id) else { return };
        let slot = &mut self.slots[key];
        let Kind::Probe { interval, .. } = slot.check.definition.kind else { return };
        slot.state.pace = Pace::Soon;
        // One that runs now was started too early, and is followed by another.
        if slot.running.is_none() {
            let soon = now + slot.step(interval, rng);
            slot.due = Some(slot.due.map_or(soon, |due| due.min(soon)));
            self.arm(key);
        }
    }

    /// Whether a check's probe was started since, or shows that its host is there; `None` for a check that has no probe.
    pub fn is_fresh(&self, id: &Id, since: Moment) -> Option<bool> {
        let slot = self.keys.get(id).map(|&key| &self.slots[key])?;
        let Kind::Probe { .. } = slot.check.definition.kind else { return None };
        let has_answered = slot.state.reach().0 == Reach::Answered;
        Some(has_answered || slot.begun.is_some_and(|begun| begun >= since))
    }

    /// Runs the probe of a check before all others, if it has no result yet; of an alias, the probes that it follows.
    pub fn hasten(&mut self, id: &Id, now: Moment) {
        let Some(&key) = self.keys.get(id) else { return };
        let keys = match self.slots[key].check.definition.kind {
            Kind::Alias(_) => self.followed(key, &self.index()),
            _ => vec![key],
        };
        for key in keys {
            let slot = &mut self.slots[key];
            let is_probe = matches!(slot.check.definition.kind, Kind::Probe { .. });
            if !is_probe || slot.state.has_result() {
                continue;
            }
            if slot.running.is_some() {
                self.urgent.insert(Ticket { key, usage: slot.usage });
            } else {
                (slot.is_urgent, slot.due) = (true, Some(now));
                self.arm(key);
            }
        }
    }

    /// The probes handed out that have become urgent since this was asked last.
    pub fn take_urgent(&mut self) -> HashSet<Ticket> {
        std::mem::take(&mut self.urgent)
    }

    /// Changes the state of a check, and counts its output. The change is told how long the output may be.
    fn change<T>(&mut self, key: usize, change: impl FnOnce(&mut Slot, usize) -> T) -> T {
        let slot = &mut self.slots[key];
        let others = self.output_bytes - slot.state.output().len();
        let changed = change(slot, MOST_OUTPUT_BYTES.saturating_sub(others));
        self.output_bytes = others + slot.state.output().len();
        changed
    }

    fn follow_up(&mut self, key: usize, is_news: bool) {
        self.arm(key);
        if is_news {
            self.mark_news(key);
            self.aliases_lag = true;
        }
    }

    fn mark_news(&mut self, key: usize) {
        self.unsaved.has_news = true;
        if !std::mem::replace(&mut self.slots[key].is_news, true) {
            self.news.push_back(key);
        }
    }

    fn arm(&mut self, key: usize) {
        let slot = &mut self.slots[key];
        if slot.state.status() != Status::Critical {
            slot.is_given_up = false;
        }
        let wake = [slot.due, slot.gives_up_at().filter(|_| !slot.is_given_up)].into_iter().flatten().min();
        self.schedule.set(key, wake);
    }

    /// The checks of each service, and of each node itself.
    fn index(&self) -> HashMap<(String, Option<&str>), Vec<usize>> {
        let mut index: HashMap<_, Vec<usize>> = HashMap::new();
        for (key, slot) in &self.slots {
            let place = (slot.check.id.node.to_ascii_lowercase(), slot.check.service.as_deref());
            index.entry(place).or_default().push(key);
        }
        index
    }

    /// The checks at the end of all aliases that an alias leads to.
    fn followed(&self, alias: usize, index: &HashMap<(String, Option<&str>), Vec<usize>>) -> Vec<usize> {
        let (mut seen, mut to_follow) = (HashSet::from([alias]), vec![alias]);
        let mut ends = Vec::new();
        while let Some(key) = to_follow.pop() {
            let slot = &self.slots[key];
            let Kind::Alias(Alias { node, service }) = &slot.check.definition.kind else {
                ends.push(key);
                continue;
            };
            let node = node.as_deref().unwrap_or(&slot.check.id.node).to_ascii_lowercase();
            let places = [Some((node.clone(), None)), service.as_deref().map(|service| (node, Some(service)))];
            let followed = places.iter().flatten().filter_map(|place| index.get(place)).flatten();
            to_follow.extend(followed.filter(|&&key| seen.insert(key)));
        }
        ends
    }

    /// What an alias says. It stands for the checks at the end of all aliases that it leads to, so that a circle of
    /// them cannot keep itself critical.
    fn verdict(&self, alias: usize, index: &HashMap<(String, Option<&str>), Vec<usize>>) -> (Status, String) {
        let mut worst: Option<&Slot> = None;
        for key in self.followed(alias, index) {
            let slot = &self.slots[key];
            if worst.is_none_or(|worst| worst.state.status() < slot.state.status()) {
                worst = Some(slot);
            }
        }
        match worst {
            None => (Status::Passing, "No checks found.".to_owned()),
            Some(slot) if slot.state.status() == Status::Passing => (Status::Passing, "All checks passing.".to_owned()),
            Some(slot) => {
                let name = slot.check.definition.name.as_deref().unwrap_or(&slot.check.id.check);
                (slot.state.status(), format!("Aliased check {name:?} failing: {}", slot.state.output()))
            }
        }
    }
}

impl Job {
    pub fn is_script(&self) -> bool {
        matches!(self.check.definition.kind, Kind::Probe { probe: Probe::Script(_), .. })
    }
}

/// What the outputs of all checks may take; beyond that each is cut to what is left, and a note says so. Clients can register
/// checks, and decide what comes out of them.
const MOST_OUTPUT_BYTES: usize = 16 << 20;

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
