//! The heart: from a query to the response that settles it, whoever gives it.
//!
//! A server hands each query to [`Resolver::at_once`], which writes the reply if it can be had without waiting. If
//! not, [`Resolver::begin`] joins those who ask the same, answers from local data, or gives out an
//! [`Exchange`](crate::forward::Exchange) with the [`Job`] it belongs to. Whoever drives the exchange brings its outcome to
//! [`Resolver::finish`], which says whom to reply what, or what to ask next.

mod chase;
mod confine;
mod hit;
mod inflight;
mod miss;
mod rebinding;
mod tables;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use arc_swap::ArcSwap;

pub use hit::{AtOnce, From, Miss};
pub use inflight::{Waiter, Waiters, Way};
pub use miss::{Begun, Job, LOST, Next, Outgoing, Pending, Reason, Settled};
pub use tables::{Catalog, Route, Rules, Tables};

use crate::{cache::Cache, clock::Moment, wire::ReplySize};
use inflight::InFlight;

/// Answers queries from the cache, from local data and from upstreams. Shared by all threads.
pub struct Resolver {
    cache: Cache,
    inflight: InFlight<Box<miss::Held>>,
    tables: ArcSwap<Tables>,
    /// Answers from which addresses were left out.
    withheld: AtomicU64,
}

/// Who asks, as far as answers depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    /// Asks from a loopback address, and so may be told loopback addresses.
    pub is_loopback: bool,
    /// Bounds its replies.
    pub size: ReplySize,
    /// True if it may be told what is cached. A client that may not is still told local data.
    pub sees_cache: bool,
}

impl Resolver {
    /// A resolver with these tables, in which at most `most_waiting` clients wait for upstreams at a time.
    pub fn new(cache: Cache, tables: Tables, most_waiting: usize) -> Self {
        Self {
            cache,
            inflight: InFlight::new(most_waiting),
            tables: ArcSwap::from_pointee(tables),
            withheld: AtomicU64::new(0),
        }
    }

    /// The tables in use.
    pub fn tables(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    /// Puts new tables in the place of the old, for all queries from now on.
    ///
    /// What a rule answered that is gone or changed is not found from this moment; [`retire`](Self::retire) drops it.
    pub fn swap_tables(&self, tables: Tables) {
        self.tables.store(Arc::new(tables));
    }

    /// Drops cached answers that the present tables would not give; returns how many. It walks the whole cache.
    pub fn retire(&self, now: Moment) -> usize {
        let tables = self.tables.load();
        self.cache.retire(tables.epoch(), |key, origin| tables.uphold(&key.question(), origin, now))
    }

    /// Lets at most so many queries wait for upstreams from now on, and so many of the clients at one address.
    pub fn set_most_waiting(&self, most_waiting: usize, most_per_client: usize) {
        self.inflight.set_most_waiting(most_waiting, most_per_client);
    }

    /// The response cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// From how many answers addresses within a site were left out.
    pub fn withheld(&self) -> u64 {
        self.withheld.load(Relaxed)
    }

    /// How many clients wait for upstreams, and how many questions for.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.inflight.waiting(), self.inflight.flights())
    }
}

#[cfg(test)]
mod tests;
