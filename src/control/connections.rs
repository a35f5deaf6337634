//! The HTTP connections of all listeners together, and the requests on them that wait for a change.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use parking_lot::Mutex;

use super::Config;
use crate::{
    budget::{Budget, ClientIsFull, Most, NoPlace, Place, Places},
    sys::{self, Use},
};

/// The HTTP connections of all listeners.
pub struct Connections {
    places: Arc<Places>,
    limits: Mutex<Config>,
    /// As many as leave descriptors for everything else.
    most: usize,
    waiting: AtomicUsize,
    /// How many were closed on our side, in the order of [`Closed`].
    closed: [AtomicU64; 3],
}

/// Why a connection was closed on our side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// For another one.
    Displaced,
    /// It found no place.
    NoPlace,
    /// Its client took too long to send a request or to take a response.
    Slow,
}

/// A request that waits for a change.
pub(super) struct Waiting(Arc<Connections>);

impl Connections {
    /// None yet. What waits for them is charged to this budget.
    pub fn new(budget: Arc<Budget>, config: &Config) -> Self {
        Self {
            places: Arc::new(Places::new(budget)),
            limits: Mutex::new(config.clone()),
            most: sys::descriptors_for(Use::Http),
            waiting: AtomicUsize::new(0),
            closed: Default::default(),
        }
    }

    /// Puts other limits in force.
    pub fn set_limits(&self, config: &Config) {
        *self.limits.lock() = config.clone();
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.places.count()
    }

    /// See [`Places::has_emptied`].
    pub fn has_emptied(&self) -> bool {
        self.places.has_emptied()
    }

    /// How many requests wait for a change.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// How many connections were displaced, found no place, and were too slow.
    pub fn closed(&self) -> [u64; 3] {
        self.closed.each_ref().map(|count| count.load(Relaxed))
    }

    pub(super) fn limits(&self) -> Config {
        self.limits.lock().clone()
    }

    pub(super) fn note(&self, closed: Closed) {
        self.closed[closed as usize].fetch_add(1, Relaxed);
    }

    /// Takes a place for a connection of this peer; nothing if it has to be closed.
    pub(super) async fn enter(&self, peer: IpAddr) -> Option<Place> {
        let entered = self.places.enter(peer, self.places_for(peer)).await;
        match entered {
            Ok((place, has_displaced)) => {
                if has_displaced {
                    self.note(Closed::Displaced);
                }
                Some(place)
            }
            Err(NoPlace::OfClient | NoPlace::InAll) => {
                self.note(Closed::NoPlace);
                None
            }
        }
    }

    /// Closes the connection that the next one would displace, because descriptors have run out.
    pub(super) fn displace(&self) {
        self.places.displace();
        self.note(Closed::Displaced);
    }

    /// Lets a request wait for a change, unless too many do. Some places are left for requests that do not wait.
    pub(super) fn begin_waiting(self: &Arc<Self>) -> Option<Waiting> {
        let most = self.in_all() / 5 * 4;
        let begun = self.waiting.fetch_update(Acquire, Relaxed, |waiting| (waiting < most).then_some(waiting + 1));
        begun.ok().map(|_| Waiting(self.clone()))
    }

    fn in_all(&self) -> usize {
        self.limits.lock().connections.min(self.most)
    }

    /// Loopback is many clients: it may have all places.
    fn places_for(&self, peer: IpAddr) -> Most {
        let in_all = self.in_all();
        let is_loopback = peer.to_canonical().is_loopback();
        let of_client = if is_loopback { in_all } else { self.limits.lock().connections_per_client };
        Most { in_all, of_client, then: ClientIsFull::Displace }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Release);
    }
}
