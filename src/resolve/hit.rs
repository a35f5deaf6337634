//! All that can be said at once: cached answers, and queries that are not resolved at all.
//!
//! One pass over the query, one look into the cache under one shard's lock, one copy into the reply. Nothing here waits or
//! logs. What allocates is rare: the key of a name of more than 90 octets, and once in a life that of an answer to be renewed.

use rand::Rng;

use super::{Client, Resolver, inflight::Party};
use crate::{
    cache::{Found, Key, Origin, State, Variant},
    clock::Moment,
    wire::{self, Asker, Class, Query, Rcode, Rtype, Ttls, View, flag},
};

/// What became of a query.
#[expect(clippy::large_enum_variant, reason = "it lives on the stack for one call")]
pub enum AtOnce<'q> {
    /// The reply to a query of this type is written.
    Reply(Rcode, Rtype, From),
    /// There is nothing to resolve, or it is not served; the reply that says so is written.
    Refusal(Rcode),
    /// It has to be looked for; see [`Resolver::begin`].
    Miss(Miss<'q>),
}

/// Where a reply written at once comes from.
pub enum From {
    /// The cache.
    Cache,
    /// The cache, and its entry ends soon: see [`Resolver::refresh`].
    Expiring(Box<Key>),
    /// The cache, past its time: the upstreams failed lately.
    Stale,
}

/// A query that could not be answered at once.
pub struct Miss<'q> {
    pub(super) query: Query<'q>,
    pub(super) asker: Asker,
    pub(super) key: Key,
    pub(super) client: Client,
}

impl Miss<'_> {
    /// The type asked for.
    pub fn qtype(&self) -> Rtype {
        self.query.qtype()
    }

    /// The name asked for, in wire form.
    pub fn qname(&self) -> &[u8] {
        self.query.qname()
    }
}

impl Resolver {
    /// Writes the reply into `out`, if it needs no looking for. `asker` is the query's, with what its options are told.
    pub fn at_once<'q>(
        &self,
        query: Query<'q>,
        asker: Asker,
        client: Client,
        now: Moment,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> AtOnce<'q> {
        if let Some(rcode) = refuse_unserved(&query, &asker, rng, out) {
            return AtOnce::Refusal(rcode);
        }
        let key = key(&query);
        let asking = Asking { key: &key, asker: &asker, question: query.question_bytes(), client };
        let start = out.len();
        match self.reply_from_cache(asking, now, rng, out) {
            FromCache::Reply(_, _, Denial::OfType)
                if query.recursion_desired() && self.is_sister_open(&key, client) =>
            {
                // Nobody knows yet whether that one fails, and the two may not differ in that. But who wants nobody asked is
                // told what is known.
                out.truncate(start);
                AtOnce::Miss(Miss { query, asker, key, client })
            }
            FromCache::Reply(rcode, from, _) => AtOnce::Reply(rcode, query.qtype(), from),
            FromCache::Miss => AtOnce::Miss(Miss { query, asker, key, client }),
        }
    }

    /// The same for a client that may not be told what is cached: [`Resolver::begin`] tells it local data.
    pub fn at_once_without_cache<'q>(
        &self,
        query: Query<'q>,
        asker: Asker,
        client: Client,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> AtOnce<'q> {
        if let Some(rcode) = refuse_unserved(&query, &asker, rng, out) {
            return AtOnce::Refusal(rcode);
        }
        let client = Client { sees_cache: false, ..client };
        let key = key(&query);
        AtOnce::Miss(Miss { query, asker, key, client })
    }

    /// Whether somebody waits for the other address type of the same name. Where nobody waits for anything, that costs
    /// nothing.
    fn is_sister_open(&self, key: &Key, client: Client) -> bool {
        self.inflight.waiting() > 0
            && self.inflight.is_sister_open(&Party::new(key, client, self.tables.load().epoch()))
    }

    pub(super) fn reply_from_cache(
        &self,
        asking: Asking<'_>,
        now: Moment,
        rng: &mut impl Rng,
        out: &mut Vec<u8>,
    ) -> FromCache {
        let Asking { key, client, .. } = asking;
        let tables = self.tables.load();
        let epoch = tables.epoch();
        let found = self.cache.find(key, now, epoch, |found| {
            if found.origin.loopback_only && !client.is_loopback {
                return Use::Done(FromCache::Miss);
            }
            if found.state != State::Doubtful && !(tables.hold(found.marks) && tables.hold(found.belied)) {
                return Use::Done(FromCache::Miss);
            }
            Use::of(found, asking, rng, out)
        });
        match found {
            None => FromCache::Miss,
            Some(Use::Done(done)) => done,
            Some(Use::Confirm(origin)) => {
                // Written under other tables: good if the same rule still answers this name, else it is gone.
                if tables.uphold(&key.question(), origin, now) {
                    self.cache.confirm(key, origin, epoch);
                    self.reply_from_cache(asking, now, rng, out)
                } else {
                    self.cache.remove(key);
                    FromCache::Miss
                }
            }
        }
    }
}

/// Who asks what.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub key: &'a Key,
    pub asker: &'a Asker,
    /// The question in its letters.
    pub question: &'a [u8],
    pub client: Client,
}

/// What the cache has for a client.
pub(super) enum FromCache {
    Reply(Rcode, From, Denial),
    Miss,
}

/// What a reply denies.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Denial {
    /// That the name has records of the type asked for.
    OfType,
    /// Nothing, or more.
    Other,
}

enum Use {
    Done(FromCache),
    Confirm(Origin),
}

impl Use {
    /// Runs under the shard's lock.
    fn of(found: Found<'_>, asking: Asking<'_>, rng: &mut impl Rng, out: &mut Vec<u8>) -> Self {
        let Asking { key, asker, question, .. } = asking;
        let rcode = found.view.rcode;
        let denial = if found.is_nodata { Denial::OfType } else { Denial::Other };
        let from = match found.state {
            State::Fresh { prefetch_due: false } | State::SisterFails => From::Cache,
            State::Fresh { prefetch_due: true } => From::Expiring(key.clone().into()),
            State::StaleNow => {
                // AD is not vouched for any more, and the client is told (RFC 8767 §4, RFC 8914 §4.4).
                let view = View { flags: found.view.flags & !flag::AD, extended_errors: STALE_ANSWER, ..found.view };
                wire::write_reply(view, asker, question, found.ttls, rng, out);
                return Self::Done(FromCache::Reply(rcode, From::Stale, denial));
            }
            State::Stale => return Self::Done(FromCache::Miss),
            State::Doubtful => return Self::Confirm(found.origin),
        };
        wire::write_reply(found.view, asker, question, found.ttls, rng, out);
        Self::Done(FromCache::Reply(rcode, from, denial))
    }
}

/// Writes the reply to a query that is not resolved here, if it is one.
#[inline]
fn refuse_unserved(query: &Query<'_>, asker: &Asker, rng: &mut impl Rng, out: &mut Vec<u8>) -> Option<Rcode> {
    let rcode = unserved(query)?;
    wire::write_reply(View::bare(rcode, &[]), asker, query.question_bytes(), Ttls::Aged(0), rng, out);
    Some(rcode)
}

#[inline]
fn key(query: &Query<'_>) -> Key {
    let variant =
        Variant { dnssec_ok: query.dnssec_ok(), checking_disabled: query.checking_disabled(), view: DEFAULT_VIEW };
    Key::new(query.qname(), query.qtype(), query.qclass(), variant)
}

/// The response code for a well-formed query that is not resolved here.
fn unserved(query: &Query<'_>) -> Option<Rcode> {
    if query.edns().is_some_and(|edns| edns.version > 0) {
        return Some(Rcode::BADVERS); // RFC 6891 §6.1.3
    }
    if !query.has_question() {
        return Some(Rcode::NOERROR); // RFC 7873 §5.4: all that it wants is in the OPT record
    }
    if query.qclass() != Class::IN {
        return Some(Rcode::REFUSED);
    }
    match query.qtype() {
        Rtype::ANY => None,
        Rtype::AXFR | Rtype::IXFR => Some(Rcode::REFUSED),
        // RFC 6895 §3.1: no type at all; and records that belong to a message, and are never asked for.
        Rtype(0) | Rtype::OPT | Rtype::TKEY | Rtype::TSIG => Some(Rcode::FORMERR),
        meta if meta.is_meta() => Some(Rcode::NOTIMP),
        _ => None,
    }
}

/// The only view as yet.
pub(super) const DEFAULT_VIEW: u8 = 0;
/// Extended error 3, Stale Answer (RFC 8914 §4.4), encoded.
pub(super) const STALE_ANSWER: &[u8] = &[0, 15, 0, 2, 0, 3];
