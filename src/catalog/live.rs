//! A catalog in service, as those see it who answer from it.
//!
//! The snapshot is swapped whole. Whoever keeps answers asks whether all that one was made of is as it was: for each slot
//! the version of its last change is noted here. And whoever needs what the snapshot does not hold wishes for it; the
//! sources hear that. Whoever needs results of checks that have none yet waits here until they are in the snapshot.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    model::ServiceKey,
    remote::Grasp,
    snapshot::{Awaited, SLOTS, Slot, Snapshot},
};
use crate::clock::Moment;

/// A catalog in service.
pub struct Live {
    id: u64,
    snapshot: ArcSwap<Snapshot>,
    /// For each slot the version of its last change.
    changed: Box<[AtomicU32]>,
    /// The version of the snapshot, for those who wait for another one.
    version: watch::Sender<u32>,
    wishes: mpsc::Sender<Wish>,
    /// Questions that wait for results, by the slot of the service.
    waiting: Mutex<HashMap<Slot, Vec<Waiting>>>,
    urgent: mpsc::Sender<ServiceKey>,
}

/// A question, and what to drop once it need not wait.
type Waiting = (Awaited, oneshot::Sender<()>);

/// What those who answer from a catalog ask of its sources.
pub struct Asked {
    /// Services and prepared queries whose present state is wanted.
    pub wishes: mpsc::Receiver<Wish>,
    /// Services for whose first results questions wait.
    pub urgent: mpsc::Receiver<ServiceKey>,
}

/// Somebody asks for this service, or prepared query, now.
#[derive(Debug)]
pub struct Wish {
    /// What is asked for.
    pub what: ServiceKey,
    /// To be told when the snapshot holds the present state of it, or it is known that it cannot be had; dropping it
    /// tells the same. Nothing if nobody waits, and it is only to be known that it is still asked for.
    pub done: Option<oneshot::Sender<()>>,
}

impl Live {
    /// A catalog that begins with this snapshot, and where what is asked of its sources comes out.
    pub fn new(snapshot: Snapshot) -> (Self, Asked) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (wishes, heard) = mpsc::channel(WISHES);
        let (urgent, urged) = mpsc::channel(WISHES);
        let changed = (0..SLOTS).map(|_| AtomicU32::new(0)).collect();
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let version = watch::Sender::new(snapshot.version());
        let (snapshot, waiting) = (ArcSwap::from_pointee(snapshot), Mutex::default());
        (Self { id, snapshot, changed, version, wishes, waiting, urgent }, Asked { wishes: heard, urgent: urged })
    }

    /// Tells this catalog from every other of the process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The catalog as it is now.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// Puts a snapshot in the place of the last one, from which it differs in these slots.
    ///
    /// The slots come first: from the moment that anybody can see the new snapshot, no kept answer is good that it
    /// voids.
    pub(super) fn store(&self, snapshot: Snapshot, slots: impl IntoIterator<Item = Slot>) {
        let slots: Vec<Slot> = slots.into_iter().collect();
        for slot in &slots {
            self.changed[slot.index()].store(snapshot.version(), Ordering::Release);
        }
        let version = snapshot.version();
        self.snapshot.store(Arc::new(snapshot));
        self.version.send_replace(version);
        self.tell_waiting(&slots);
    }

    /// Tells those who wait for results of these services, if they need not wait any longer.
    fn tell_waiting(&self, slots: &[Slot]) {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() {
            return;
        }
        let (snapshot, now) = (self.load(), Moment::now());
        for slot in slots {
            if let Some(of_slot) = waiting.get_mut(slot) {
                of_slot.retain(|(awaited, told)| !told.is_closed() && snapshot.still_awaits(awaited, now));
                if of_slot.is_empty() {
                    waiting.remove(slot);
                }
            }
        }
    }

    /// Has the checks of a service run first that have no result. What it gives ends when these results are in the snapshot.
    pub fn await_results(&self, awaited: Awaited) -> oneshot::Receiver<()> {
        let (done, told) = oneshot::channel();
        // If it is lost, the checks run in their turn.
        let _ = self.urgent.try_send(awaited.service.clone());
        let mut waiting = self.waiting.lock();
        let of_slot = waiting.entry(Slot::of_service(&awaited.service)).or_default();
        of_slot.retain(|(_, told)| !told.is_closed());
        // A snapshot that comes later finds it there.
        if self.load().still_awaits(&awaited, Moment::now()) {
            of_slot.push((awaited, done));
        } else if of_slot.is_empty() {
            waiting.remove(&Slot::of_service(&awaited.service));
        }
        told
    }

    /// Tells of every snapshot that takes the place of another, once it has.
    pub fn changes(&self) -> watch::Receiver<u32> {
        self.version.subscribe()
    }

    /// The version of the last change to a slot, by its index.
    pub fn last_change(&self, index: usize) -> u32 {
        self.changed.get(index).map_or(u32::MAX, |version| version.load(Ordering::Acquire))
    }

    /// Asks the sources for the present state of this. Nothing if so many ask already that nobody will hear it.
    pub fn wish(&self, what: ServiceKey) -> Option<oneshot::Receiver<()>> {
        let (done, told) = oneshot::channel();
        self.wishes.try_send(Wish { what, done: Some(done) }).ok().map(|()| told)
    }

    /// Has the snapshot hold the present state of this, if a source that can be asked knows more of it, or first results of
    /// its checks are to come; but does not wait for long.
    pub async fn learn(&self, what: &ServiceKey) {
        let grasp = self.load().remote.as_ref().map(|remote| remote.grasp(what, Moment::now()));
        match grasp {
            Some(Grasp::Unasked) => {
                if let Some(told) = self.wish(what.clone()) {
                    // Whoever was to tell may have gone; then there is what there is.
                    let _ = timeout(PATIENCE, told).await;
                }
            }
            Some(Grasp::Known(_)) => self.mention(what.clone()),
            Some(Grasp::Lost) | None => {}
        }
        let (snapshot, now) = (self.load(), Moment::now());
        if let Some(awaited) = snapshot.awaited(what, None, now) {
            let patience = awaited.until.since(now);
            let _ = timeout(patience, self.await_results(awaited)).await;
        }
    }

    /// Returns when the first results of the checks of all services are in the snapshot, or need not be waited for any longer.
    pub async fn await_first_round(&self) {
        let mut changes = self.changes();
        loop {
            let now = Moment::now();
            let Some(until) = self.load().first_round(now) else { return };
            // The next look tells whether the time or a change has ended it.
            let _ = timeout(until.since(now), changes.changed()).await;
        }
    }

    /// Lets the sources know that this is still asked for; it is no harm if that is lost.
    pub fn mention(&self, what: ServiceKey) {
        let _ = self.wishes.try_send(Wish { what, done: None });
    }
}

/// Longer than a source may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many wishes may wait to be heard.
const WISHES: usize = 1024;
