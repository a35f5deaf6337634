//! A short answer without what can be told from the rest: the form of most of what is cached.
//!
//! Most answers are one or a few records of the type asked for, all of one TTL, each with the question's name, and
//! nothing else. Of these are kept the name, the TTL once, and the RDATA; the records are written out again, to the
//! octet as they came, whenever a reply is made of them. What an answer shares with many others, by whose word it holds
//! and for how long it may be given stale, stands in a list of its own.

use smallvec::SmallVec;

use super::{
    Epoch, Key, Life, Origin,
    key::HEAD_BYTES,
    tick::{Tick, Times, ticks_of},
};
use crate::wire::{Class, HEADER_BYTES, Rcode, Rtype, View, read_u16, read_u32};

/// A short answer of an upstream, with its key.
///
/// Its fields fill what a [`Whole`](super::whole::Whole) takes without its octets; each octet more here is one less
/// for name and data.
pub(super) struct Packed {
    pub(super) inserted: Tick,
    /// Of each record, and so the answer's life.
    ttl_secs: u32,
    /// The header's, the response code among them.
    flags: u16,
    qtype: Rtype,
    /// What the key has besides question and class, which is IN.
    variant: [u8; 2],
    qname_bytes: u8,
    /// How many records there are.
    count: u8,
    /// How long the RDATA of each is.
    rdata_bytes: u8,
    /// Where in the [`Standings`] its own is.
    standing: u8,
    pub(super) hits: u8,
    pub(super) promoted: u8,
    /// The qname, then the RDATA of one record after the other.
    octets: [u8; ROOM_BYTES],
}

/// What many answers have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) origin: Origin,
    /// How long the answer may be given past its life.
    pub(super) stale_ticks: u32,
}

impl Standing {
    /// The same in another epoch.
    pub(super) fn in_epoch(self, epoch: Epoch) -> Self {
        Self { origin: Origin { epoch, ..self.origin }, ..self }
    }
}

/// The standings of the packed answers of a shard, each once.
#[derive(Default)]
pub(super) struct Standings(SmallVec<[Standing; 1]>);

/// Where the records of a packed answer are written out, to be lent.
pub(super) struct Scratch([u8; SCRATCH_BYTES]);

impl Scratch {
    /// With nothing in it.
    pub(super) const EMPTY: Self = Self([0; SCRATCH_BYTES]);
}

impl Packed {
    /// The answer in packed form, if it has the shape; `None` is said of those that have to be kept whole.
    pub(super) fn new(key: &Key, view: &View<'_>, life: Life, now: Tick) -> Option<(Self, u32)> {
        let Life::Timed { fresh, stale } = life else { return None };
        let [count, 0, 0] = view.counts else { return None };
        let qname = key.qname();
        let [_, _, _, _, variant @ ..] = key.head();
        let first = view.records.get(..RECORD_HEAD_BYTES)?;
        let ttl_secs = read_u32(first, 6)?;
        let rdata_bytes = u8::try_from(read_u16(first, 10)?).ok()?;
        let packed = Self {
            inserted: now,
            ttl_secs,
            flags: view.flags,
            qtype: key.qtype(),
            variant,
            qname_bytes: qname.len() as u8,
            count: u8::try_from(count).ok()?,
            rdata_bytes,
            standing: 0,
            hits: 0,
            promoted: now.second(),
            octets: [0; ROOM_BYTES],
        };
        let record_bytes = RECORD_HEAD_BYTES + usize::from(rdata_bytes);
        let is_alike = key.qclass() == Class::IN
            && view.rcode == packed.rcode()
            && view.extended_errors.is_empty()
            && view.plan.is_empty()
            && packed.expires() == now.after(fresh)
            && rdata_bytes >= LEAST_RDATA_BYTES
            && qname.len() + usize::from(count) * usize::from(rdata_bytes) <= ROOM_BYTES
            && view.records.len() == usize::from(count) * record_bytes
            && view.records.chunks_exact(record_bytes).all(|record| record.starts_with(&packed.record_head()));
        is_alike.then(|| (packed.filled(qname, view.records), ticks_of(stale)))
    }

    fn filled(mut self, qname: &[u8], records: &[u8]) -> Self {
        let (name, rest) = self.octets.split_at_mut(qname.len());
        name.copy_from_slice(qname);
        let rdata_bytes = usize::from(self.rdata_bytes);
        let rdata = records.chunks_exact(RECORD_HEAD_BYTES + rdata_bytes).map(|record| &record[RECORD_HEAD_BYTES..]);
        for (place, rdata) in rest.chunks_exact_mut(rdata_bytes).zip(rdata) {
            place.copy_from_slice(rdata);
        }
        self
    }

    /// Whether this is the answer to `key`.
    #[inline]
    pub(super) fn is_of(&self, key: &Key) -> bool {
        self.qname() == key.qname() && self.head() == key.head()
    }

    /// The key.
    pub(super) fn key(&self) -> Key {
        Key::from_parts(self.head(), self.qname())
    }

    fn head(&self) -> [u8; HEAD_BYTES] {
        let ([t0, t1], [c0, c1]) = (self.qtype.0.to_be_bytes(), Class::IN.0.to_be_bytes());
        let [dnssec_flags, view] = self.variant;
        [t0, t1, c0, c1, dnssec_flags, view]
    }

    /// The qname in wire form and lower case.
    #[inline]
    pub(super) fn qname(&self) -> &[u8] {
        &self.octets[..usize::from(self.qname_bytes)]
    }

    /// Its lives. It knows of no failures.
    #[inline]
    pub(super) fn times(&self, standing: Standing) -> Times {
        let expires = self.expires();
        let stale_until = expires.after_ticks(standing.stale_ticks);
        Times { inserted: self.inserted, expires, stale_until, failing_until: self.inserted }
    }

    fn expires(&self) -> Tick {
        self.inserted.after_seconds(self.ttl_secs)
    }

    /// The response, its records written out into `scratch`.
    #[inline]
    pub(super) fn view<'a>(&self, scratch: &'a mut Scratch) -> View<'a> {
        let rdata_bytes = usize::from(self.rdata_bytes);
        let record_bytes = RECORD_HEAD_BYTES + rdata_bytes;
        let records = &mut scratch.0[..usize::from(self.count) * record_bytes];
        let head = self.record_head();
        // Without the divisions that chunks of a length known only here would take.
        let mut places = &mut *records;
        let mut rdata = &self.octets[usize::from(self.qname_bytes)..];
        for _ in 0..self.count {
            let (place, next) = places.split_at_mut(record_bytes);
            place[..RECORD_HEAD_BYTES].copy_from_slice(&head);
            place[RECORD_HEAD_BYTES..].copy_from_slice(&rdata[..rdata_bytes]);
            (places, rdata) = (next, &rdata[rdata_bytes..]);
        }
        View {
            flags: self.flags,
            rcode: self.rcode(),
            counts: [self.count.into(), 0, 0],
            records,
            extended_errors: &[],
            plan: &[],
        }
    }

    fn rcode(&self) -> Rcode {
        Rcode(self.flags & 0x0f)
    }

    /// What stands before the RDATA of each record. The owner is a pointer to the question.
    fn record_head(&self) -> [u8; RECORD_HEAD_BYTES] {
        let ([t0, t1], [c0, c1]) = (self.qtype.0.to_be_bytes(), Class::IN.0.to_be_bytes());
        let [l0, l1, l2, l3] = self.ttl_secs.to_be_bytes();
        [0xc0, HEADER_BYTES as u8, t0, t1, c0, c1, l0, l1, l2, l3, 0, self.rdata_bytes]
    }

    /// Its standing.
    #[inline]
    pub(super) fn standing(&self, standings: &Standings) -> Standing {
        standings.0[usize::from(self.standing)]
    }

    /// Gives it a standing, and says whether the list had room for it.
    pub(super) fn stand(&mut self, standing: Standing, standings: &mut Standings) -> bool {
        let place = standings.place(standing);
        self.standing = place.unwrap_or_default();
        place.is_some()
    }
}

impl Standings {
    fn place(&mut self, standing: Standing) -> Option<u8> {
        let place = self.0.iter().position(|known| *known == standing).unwrap_or(self.0.len());
        let number = u8::try_from(place).ok()?;
        if place == self.0.len() {
            self.0.push(standing);
        }
        Some(number)
    }
}

/// For qname and RDATA: the name of 36 octets with one address of IPv4, of 24 octets with one of IPv6.
const ROOM_BYTES: usize = 40;
/// A pointer, type, class, TTL and the RDATA's length.
const RECORD_HEAD_BYTES: usize = 12;
/// An address of IPv4. With still shorter records so many would fit in that the scratch space had to be large.
const LEAST_RDATA_BYTES: u8 = 4;
const SCRATCH_BYTES: usize = ROOM_BYTES / LEAST_RDATA_BYTES as usize * RECORD_HEAD_BYTES + ROOM_BYTES;
