//! Health checks, as Consul defines them, run by us.
//!
//! A [`Declaration`] is read from a file or the API and becomes a [`Definition`] if nothing is wrong with it. The
//! [`Runner`] probes what is due, bounded in how much it does at once, and publishes what is news. One task holds the
//! time of all checks; a check is a task of its own only while its probe runs.

mod connect;
mod declaration;
mod definition;
mod duration;
mod guard;
mod held;
mod http;
mod http2;
mod probe;
mod response;
mod saved;
mod schedule;
mod script;
mod slot;
mod state;
mod table;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc},
    task::{self, JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub use connect::{Dialer, Resolve, Resolving};
pub use declaration::Declaration;
pub use definition::{
    Alias, CHECK_HEADER, Definition, Http, Kind, Probe, Problem, Redirects, Scripts, Target, Thresholds, Tls, Trust,
    USER_AGENT,
};
pub use duration::GoDuration;
pub use guard::{Link, Reach, Sighting, cut_off_since};
pub use saved::Saved;

use crate::{catalog::health::Status, clock::Moment};
use table::{Job, Table, Ticket};

/// Which check: its id is unique on its node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub struct Id {
    /// The name of the node.
    pub node: Arc<str>,
    /// The id of the check on that node.
    pub check: Arc<str>,
}

/// A check with its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Which one it is.
    pub id: Id,
    /// The id of the service whose check it is; none, if it is the node's.
    pub service: Option<Arc<str>>,
    /// What it does.
    pub definition: Arc<Definition>,
    /// The status until the first result, if no state of the check is known.
    pub begins: Status,
}

impl Check {
    /// Whether the two do the same for the same.
    fn is_like(&self, other: &Self) -> bool {
        (&self.id, &self.service, &self.definition) == (&other.id, &other.service, &other.definition)
    }
}

/// The state of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which check.
    pub id: Id,
    /// How it is.
    pub status: Status,
    /// What it has said last.
    pub output: Arc<str>,
    /// Since when its status is what it is.
    pub at: Moment,
    /// Whether it has been critical for so long that its service is to be deregistered.
    pub is_overdue: bool,
}

/// Why a check cannot be told its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such check.
    #[error("the check is unknown")]
    Unknown,
    /// It finds out by itself.
    #[error("the check is not a TTL check")]
    NotTtl,
}

/// How much is done at once; what is due beyond that waits its turn. Probes for whose results questions wait may exceed each
/// limit by an eighth.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Probes of the network, each a socket. Enough for thousands of silent hosts.
    pub connections: usize,
    /// Commands, each a process or several.
    pub scripts: usize,
}

/// Runs checks.
///
/// News is published through a bounded channel. If nobody reads it, the checks go on, and the news of each is its
/// latest state: a check waits in line once, however often it changes.
pub struct Runner {
    table: Mutex<Table>,
    /// Something is to be done that was not when the task went to sleep.
    changed: Notify,
    events: mpsc::Sender<Event>,
    dialer: Arc<Dialer>,
    limits: Limits,
}

impl Runner {
    /// A runner without checks, and where its news comes out.
    pub fn new(dialer: Dialer, limits: Limits) -> (Self, mpsc::Receiver<Event>) {
        let (events, news) = mpsc::channel(NEWS_ROOM);
        let runner = Self { table: Mutex::default(), changed: Notify::new(), events, dialer: Arc::new(dialer), limits };
        (runner, news)
    }

    /// Makes these all the checks there are. Those that stay the same are left alone; of those that are defined anew
    /// the state remains until their first result. The status with which a new one begins is no news.
    pub fn replace(&self, checks: Vec<Check>) {
        let now = Moment::now();
        let mut table = self.table.lock();
        table.replace(checks, now, &mut rand::rng());
        // What is seen of an alias from the start is what it follows.
        table.follow(now);
        self.changed.notify_one();
    }

    /// Takes in the states that an earlier process has saved at `origin`. They count for checks that are started later.
    pub fn restore(&self, saved: Vec<Saved>, origin: Moment) {
        self.table.lock().restore(saved, origin);
    }

    /// What the next process has to know of the checks, with times relative to `now`.
    pub fn save(&self, now: Moment) -> Vec<Saved> {
        self.table.lock().save(now)
    }

    /// Whether anything has changed since then that is to be saved by now.
    pub fn is_unsaved(&self, now: Moment) -> bool {
        self.table.lock().is_unsaved(now)
    }

    /// Starts or changes one check.
    pub fn start(&self, check: Check) {
        self.table.lock().start(check, Moment::now(), &mut rand::rng());
        self.changed.notify_one();
    }

    /// Ends one check; a probe that runs is broken off.
    pub fn stop(&self, id: &Id) {
        self.table.lock().stop(id);
        self.changed.notify_one();
    }

    /// Tells a TTL check its state, and starts its time anew.
    pub fn tell(&self, id: &Id, status: Status, output: &str) -> Result<(), Error> {
        let told = self.table.lock().tell(id, status, output, Moment::now());
        self.changed.notify_one();
        told
    }

    /// The state of a check.
    pub fn state(&self, id: &Id) -> Option<Event> {
        self.table.lock().event(id, Moment::now())
    }

    /// When a TTL check is critical unless it is told something before.
    pub fn expires(&self, id: &Id) -> Option<Moment> {
        self.table.lock().expires(id)
    }

    /// What the probes of those checks have seen of their hosts for which there is a `T`, for [`cut_off_since`]; up to the
    /// first that has answered, which settles the matter.
    pub fn sightings<T>(&self, wanted: impl FnMut(&Check) -> Option<T>) -> Vec<(T, Sighting)> {
        self.table.lock().sightings(wanted)
    }

    /// Runs the probes of some checks soon, as if they were new.
    pub fn hurry<'a>(&self, ids: impl IntoIterator<Item = &'a Id>) {
        let mut table = self.table.lock();
        let (now, rng) = (Moment::now(), &mut rand::rng());
        ids.into_iter().for_each(|id| table.hurry(id, now, rng));
        self.changed.notify_one();
    }

    /// Runs the probes of some checks before all others, unless these have had a result. They may go a little beyond the limits.
    pub fn hasten(&self, ids: impl IntoIterator<Item = Id>) {
        let mut table = self.table.lock();
        let now = Moment::now();
        ids.into_iter().for_each(|id| table.hasten(&id, now));
        drop(table);
        self.changed.notify_one();
    }

    /// Whether a check's probe was started since, or shows that its host is there; `None` for a check that has no probe.
    pub fn is_fresh(&self, id: &Id, since: Moment) -> Option<bool> {
        self.table.lock().is_fresh(id, since)
    }

    /// Runs the checks until the token fires or nobody holds the receiver of the news.
    pub async fn run(&self, shutdown: CancellationToken) {
        let mut network = Lane::new(self.limits.connections);
        let mut scripts = Lane::new(self.limits.scripts);
        let mut probes = JoinSet::new();
        let mut tickets = HashMap::new();
        loop {
            let (next, has_news) = {
                let mut table = self.table.lock();
                let now = Moment::now();
                while let Some(job) = table.next_job(now) {
                    if job.is_script() { &mut scripts } else { &mut network }.take(job);
                }
                let urgent = table.take_urgent();
                [&mut network, &mut scripts].into_iter().for_each(|lane| lane.hasten(&urgent));
                table.follow(now);
                (table.next_due(), table.has_news())
            };
            for lane in [&mut network, &mut scripts] {
                while let Some((job, permit)) = lane.next() {
                    let ticket = job.ticket;
                    tickets.insert(probes.spawn(run_job(job, Arc::clone(&self.dialer), permit)).id(), ticket);
                }
            }
            let wake = next.map_or(LONG, |next| next.since(Moment::now()));
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = sleep_until(Instant::now() + wake) => {}
                Some(ended) = probes.join_next_with_id() => {
                    let (probe, outcome) = outcome_of(ended);
                    if let (Some(ticket), Some(outcome)) = (tickets.remove(&probe), outcome) {
                        self.table.lock().finish(ticket, outcome, Moment::now(), &mut rand::rng());
                    }
                }
                room = self.events.reserve(), if has_news => match room {
                    Ok(room) => {
                        if let Some(event) = self.table.lock().next_news(Moment::now()) {
                            room.send(event);
                        }
                    }
                    Err(_) => return,
                }
            }
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 2048, scripts: 32 }
    }
}

/// Probes of one sort, some of which run, while the others wait.
struct Lane {
    permits: Arc<Semaphore>,
    /// For urgent probes alone, so that they need not wait for the end of slow ones.
    reserve: Arc<Semaphore>,
    urgent: VecDeque<Job>,
    waiting: VecDeque<Job>,
}

impl Lane {
    fn new(permits: usize) -> Self {
        let reserve = permits.div_ceil(RESERVE_PART);
        let [permits, reserve] = [permits, reserve].map(|count| Arc::new(Semaphore::new(count)));
        Self { permits, reserve, urgent: VecDeque::new(), waiting: VecDeque::new() }
    }

    fn take(&mut self, job: Job) {
        if job.is_urgent { &mut self.urgent } else { &mut self.waiting }.push_back(job);
    }

    /// Has these run first, if they wait here.
    fn hasten(&mut self, urgent: &HashSet<Ticket>) {
        if !urgent.is_empty() {
            let (first, others) = self.waiting.drain(..).partition(|job: &Job| urgent.contains(&job.ticket));
            self.waiting = others;
            self.urgent.extend::<VecDeque<Job>>(first);
        }
    }

    fn next(&mut self) -> Option<(Job, OwnedSemaphorePermit)> {
        let acquire = |from: &Arc<Semaphore>| Arc::clone(from).try_acquire_owned().ok();
        if !self.urgent.is_empty() {
            let permit = acquire(&self.permits).or_else(|| acquire(&self.reserve))?;
            return self.urgent.pop_front().map(|job| (job, permit));
        }
        if self.waiting.is_empty() {
            return None;
        }
        let permit = acquire(&self.permits)?;
        self.waiting.pop_front().map(|job| (job, permit))
    }
}

async fn run_job(job: Job, dialer: Arc<Dialer>, _permit: OwnedSemaphorePermit) -> Option<state::Outcome> {
    let Job { check, canceled, .. } = job;
    let Kind::Probe { probe, timeout, .. } = &check.definition.kind else { return None };
    tokio::select! {
        biased; // What was canceled while it waited must not begin.
        _ = canceled => None,
        outcome = probe::run(probe, *timeout, check.definition.output_bytes, &dialer) => Some(outcome),
    }
}

/// What a probe has found that has ended; nothing if it was canceled. One that has panicked has failed, lest its check stand
/// still.
fn outcome_of(ended: Result<(task::Id, Option<state::Outcome>), JoinError>) -> (task::Id, Option<state::Outcome>) {
    let panicked = || state::Outcome {
        status: Status::Critical,
        output: "the check has panicked; the log has more".to_owned(),
        reach: Reach::Unknown,
    };
    ended.unwrap_or_else(|fault| (fault.id(), fault.is_panic().then(panicked)))
}

/// A reader that is only slow finds this much; then news waits in the table.
const NEWS_ROOM: usize = 64;
/// This part of a limit may be exceeded by urgent probes.
const RESERVE_PART: usize = 8;
/// Nothing is due.
const LONG: std::time::Duration = std::time::Duration::from_secs(3600);

#[cfg(test)]
mod tests;
