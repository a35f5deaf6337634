//! Bodies of responses, shared by all requests that ask the same of one snapshot.
//!
//! A change wakes thousands of blocking queries at once. The first that looks renders the body, and all others are sent the
//! same bytes. A body stays for as long as a response with it has not left, and the last ones a bit longer.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Arc, Weak},
};

use lru::LruCache;
use parking_lot::Mutex;

use super::asked::Identity;
use crate::{
    budget::Shared,
    catalog::{ServiceKey, Snapshot},
};

/// The body of a response, and what it was made of.
#[derive(Clone)]
pub(super) struct Rendered {
    pub basis: Basis,
    pub body: Arc<Shared>,
}

/// What a response is made of, and so by what another one is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Basis {
    /// The instances of a service: an index.
    Service(ServiceKey),
    /// Anything: an index.
    All,
    /// Something of an agent's own, with this hash.
    Hash(String),
}

/// The bodies.
pub(super) struct Bodies(Mutex<Kept>);

struct Kept {
    known: LruCache<Identity, Known>,
    /// The last bodies, which no response need hold.
    recent: VecDeque<Arc<Shared>>,
    recent_bytes: usize,
}

struct Known {
    /// While it is held, no other snapshot has the same address.
    snapshot: Weak<Snapshot>,
    basis: Basis,
    body: Weak<Shared>,
}

impl Default for Bodies {
    fn default() -> Self {
        let known = LruCache::new(MOST_KNOWN);
        Self(Mutex::new(Kept { known, recent: VecDeque::new(), recent_bytes: 0 }))
    }
}

impl Bodies {
    /// The body of the response to this request, if it was made of this snapshot already.
    pub fn find(&self, request: &Identity, snapshot: &Arc<Snapshot>) -> Option<Rendered> {
        let mut kept = self.0.lock();
        let known = kept.known.get(request).filter(|known| known.snapshot.as_ptr() == Arc::as_ptr(snapshot))?;
        Some(Rendered { basis: known.basis.clone(), body: known.body.upgrade()? })
    }

    /// Keeps the body of a response for others.
    pub fn keep(&self, request: &Identity, snapshot: &Arc<Snapshot>, rendered: &Rendered) {
        let Rendered { basis, body } = rendered.clone();
        let mut kept = self.0.lock();
        let known = Known { snapshot: Arc::downgrade(snapshot), basis, body: Arc::downgrade(&body) };
        kept.known.put(request.clone(), known);
        kept.recent_bytes += body.data().len();
        kept.recent.push_back(body);
        while kept.recent_bytes > MOST_RECENT_BYTES || kept.recent.len() > MOST_KNOWN.get() {
            let Some(oldest) = kept.recent.pop_front() else { return };
            kept.recent_bytes -= oldest.data().len();
        }
    }
}

/// More requests than tools have kinds of.
const MOST_KNOWN: NonZeroUsize = NonZeroUsize::new(256).expect("it is not zero");
/// How much is kept that no response holds.
const MOST_RECENT_BYTES: usize = 8 << 20;
