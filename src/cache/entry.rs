//! One cached response, packed if it is short and plain, whole if not; and what its times mean for whoever asks.

use super::{
    Basis, Epoch, Found, Key, Life, MarksView, Origin, RuleId, State,
    lifetime::STALE_TTL_SECS,
    packed::{Packed, Scratch, Standing, Standings},
    tick::{Tick, Times},
    whole::{Kind, Whole},
};
use crate::wire::{Response, Ttls, View};

/// A response with its key.
///
/// Millions of these may be kept. The packed ones need no memory but this.
pub(super) enum Entry {
    Packed(Packed),
    Whole(Whole),
}

/// An entry on its way into a shard.
pub(super) struct Draft {
    entry: Entry,
    /// What its entry is to be given if it is packed.
    standing: Standing,
}

/// An answer on its way from or to a snapshot.
pub(super) struct Saved<'a> {
    pub key: &'a [u8],
    pub view: View<'a>,
    pub rule: RuleId,
    pub loopback_only: bool,
    pub age_secs: u32,
    pub fresh_secs: u32,
    pub stale_secs: u32,
}

impl Draft {
    /// For an answer.
    pub(super) fn answer(key: &Key, response: &Response, life: Life, basis: &Basis, now: Tick) -> Self {
        // NODATA has none of the records that are packed.
        let packed = if basis.marks.places.is_empty() { Packed::new(key, &response.view(), life, now) } else { None };
        let (entry, stale_ticks) = match packed {
            Some((packed, stale_ticks)) => (Entry::Packed(packed), stale_ticks),
            None => (Entry::Whole(Whole::answer(key, response, life, basis, now)), 0),
        };
        Self { entry, standing: Standing { origin: basis.origin, stale_ticks } }
    }

    /// The entry, for the shard that has these standings.
    pub(super) fn settle(mut self, standings: &mut Standings) -> Entry {
        self.entry.stand(self.standing, standings);
        self.entry
    }
}

impl Entry {
    /// An entry for a failure, which follows those that `before` knows of.
    pub(super) fn failure(key: &Key, response: &Response, basis: &Basis, before: Option<&Self>, now: Tick) -> Self {
        let before = match before {
            Some(Self::Whole(whole)) => Some(whole),
            // It knows of none.
            Some(Self::Packed(_)) | None => None,
        };
        Self::Whole(Whole::failure(key, response, basis, before, now))
    }

    /// Whether this is the entry of `key`: a print may be that of two.
    pub(super) fn is_of(&self, key: &Key) -> bool {
        match self {
            Self::Packed(packed) => packed.is_of(key),
            Self::Whole(whole) => whole.is_of(key),
        }
    }

    /// The key.
    pub(super) fn key(&self) -> Key {
        match self {
            Self::Packed(packed) => packed.key(),
            Self::Whole(whole) => whole.key(),
        }
    }

    /// The qname in wire form and lower case.
    pub(super) fn qname(&self) -> &[u8] {
        match self {
            Self::Packed(packed) => packed.qname(),
            Self::Whole(whole) => whole.qname(),
        }
    }

    /// Where the entry comes from.
    pub(super) fn origin(&self, standings: &Standings) -> Origin {
        match self {
            Self::Packed(packed) => packed.standing(standings).origin,
            Self::Whole(whole) => whole.origin(),
        }
    }

    fn times(&self, standings: &Standings) -> Times {
        match self {
            Self::Packed(packed) => packed.times(packed.standing(standings)),
            Self::Whole(whole) => whole.times,
        }
    }

    /// Its origin is good in `epoch` too.
    pub(super) fn confirm(&mut self, epoch: Epoch, standings: &mut Standings) {
        match self {
            Self::Packed(packed) => {
                let standing = packed.standing(standings).in_epoch(epoch);
                self.stand(standing, standings);
            }
            Self::Whole(whole) => whole.epoch = epoch,
        }
    }

    /// Goes from one list of standings to another, and into `epoch` if there is one.
    pub(super) fn take_over(&mut self, epoch: Option<Epoch>, from: &Standings, to: &mut Standings) {
        match self {
            Self::Packed(packed) => {
                let standing = packed.standing(from);
                self.stand(epoch.map_or(standing, |epoch| standing.in_epoch(epoch)), to);
            }
            Self::Whole(whole) => whole.epoch = epoch.unwrap_or(whole.epoch),
        }
    }

    /// Gives it a standing if it is packed. If the list has no room for it, it can no longer be.
    fn stand(&mut self, standing: Standing, standings: &mut Standings) {
        if let Self::Packed(packed) = self
            && !packed.stand(standing, standings)
        {
            *self = Self::Whole(Whole::unpacked(packed, standing));
        }
    }

    /// Whether it may be served, even if only stale.
    pub(super) fn is_servable(&self, now: Tick, standings: &Standings) -> bool {
        self.times(standings).are_not_over(now)
    }

    /// Whether it says that the name lacks the type.
    pub(super) fn is_nodata(&self) -> bool {
        self.kind() == Kind::Nodata
    }

    /// Whether it is a failure that somebody may just have been told, and not void by a reload.
    pub(super) fn belies_its_sister(&self, now: Tick, epoch: Epoch) -> bool {
        match self {
            Self::Packed(_) => false,
            Self::Whole(whole) => {
                let until = whole.times.expires.after_ticks(PAIR_TICKS);
                whole.kind == Kind::Failure && now < until && whole.epoch == epoch
            }
        }
    }

    /// Whether it is an answer, which no failure may displace while it can be served.
    pub(super) fn outlasts_failures(&self, now: Tick, standings: &Standings) -> bool {
        self.kind() != Kind::Failure && self.is_servable(now, standings)
    }

    /// Another failure; it stands for longer if it follows others.
    pub(super) fn note_failure(&mut self, now: Tick, standings: &Standings) {
        if let Self::Packed(packed) = self {
            *self = Self::Whole(Whole::unpacked(packed, packed.standing(standings)));
        }
        if let Self::Whole(whole) = self {
            whole.note_failure(now);
        }
    }

    /// When a failure no longer [belies its sister](Self::belies_its_sister).
    pub(super) fn belies_until(&self, standings: &Standings) -> Tick {
        self.times(standings).failing_until.after_ticks(PAIR_TICKS)
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Packed(_) => Kind::Answer,
            Self::Whole(whole) => whole.kind,
        }
    }

    fn is_local(&self) -> bool {
        match self {
            Self::Packed(_) => false,
            Self::Whole(whole) => whole.is_local(),
        }
    }

    /// Counts a hit, and says in what state the entry is; `None` past all its lives.
    pub(super) fn hit(&mut self, now: Tick, epoch: Epoch, standings: &Standings) -> Option<State> {
        let times = self.times(standings);
        if !times.are_not_over(now) {
            None
        } else if self.origin(standings).epoch != epoch {
            Some(State::Doubtful)
        } else if now < times.expires {
            Some(State::Fresh { prefetch_due: self.is_prefetch_due(now, times) })
        } else if now < times.failing_until {
            Some(State::StaleNow)
        } else {
            Some(State::Stale)
        }
    }

    /// Whether a popular answer is in the last tenth of its life: true once in each.
    fn is_prefetch_due(&mut self, now: Tick, times: Times) -> bool {
        let is_prefetched = self.kind() != Kind::Failure && !self.is_local();
        let hits = self.hits();
        if *hits == SIGNALLED || !is_prefetched {
            return false;
        }
        *hits = (*hits + 1).min(POPULAR_HITS);
        let life = times.expires.ticks_since(times.inserted);
        let due = *hits == POPULAR_HITS && times.expires.ticks_since(now) <= life / 10;
        if due {
            *hits = SIGNALLED;
        }
        due
    }

    /// Hits of this life as far as they matter: up to [`POPULAR_HITS`], or [`SIGNALLED`].
    fn hits(&mut self) -> &mut u8 {
        match self {
            Self::Packed(packed) => &mut packed.hits,
            Self::Whole(whole) => &mut whole.hits,
        }
    }

    /// Whether it is to become the youngest in the order of eviction: true once a second.
    pub(super) fn take_promotion(&mut self, now: Tick) -> bool {
        // The low bits of the second in which the entry was last promoted.
        let promoted = match self {
            Self::Packed(packed) => &mut packed.promoted,
            Self::Whole(whole) => &mut whole.promoted,
        };
        let due = *promoted != now.second();
        *promoted = now.second();
        due
    }

    /// What a reply is written from.
    pub(super) fn found<'a>(
        &'a self,
        state: State,
        now: Tick,
        standings: &Standings,
        scratch: &'a mut Scratch,
    ) -> Found<'a> {
        let times = self.times(standings);
        let ttls = if self.is_local() {
            Ttls::Aged(0)
        } else if now < times.expires {
            Ttls::Aged(now.seconds_since(times.inserted))
        } else {
            Ttls::Fixed(STALE_TTL_SECS)
        };
        let (view, marks) = match self {
            Self::Packed(packed) => (packed.view(scratch), MarksView::default()),
            Self::Whole(whole) => whole.view(),
        };
        Found {
            view,
            ttls,
            state,
            origin: self.origin(standings),
            marks,
            belied: MarksView::default(),
            is_nodata: self.is_nodata(),
        }
    }

    /// What it was made of.
    pub(super) fn marks(&self) -> MarksView<'_> {
        match self {
            Self::Packed(_) => MarksView::default(),
            Self::Whole(whole) => whole.view().1,
        }
    }

    /// Lends it as a snapshot keeps it, unless it does not outlive the process.
    pub(super) fn save(&self, now: Tick, standings: &Standings, f: impl FnOnce(&Saved<'_>)) {
        let times = self.times(standings);
        let origin = self.origin(standings);
        let mut scratch = Scratch::EMPTY;
        let view = match self {
            Self::Packed(packed) if !origin.chained => packed.view(&mut scratch),
            Self::Whole(whole) if whole.is_lasting() => whole.view().0,
            _ => return,
        };
        if times.are_not_over(now) {
            f(&Saved {
                key: self.key().as_bytes(),
                view,
                rule: origin.rule,
                loopback_only: origin.loopback_only,
                age_secs: now.seconds_since(times.inserted),
                fresh_secs: times.expires.seconds_since(times.inserted),
                stale_secs: times.stale_until.seconds_since(times.expires),
            });
        }
    }

    /// The memory that the entry takes, with all that it takes for it to be found and ordered.
    pub(super) fn cost_bytes(&self) -> usize {
        // The table's slots are two pointers and an octet, and at the worst 7 in 16 of them are in use.
        const SLOT_BYTES: usize = 17 * 16 / 7;
        // The node of `lru`: its key, the entry, and two pointers.
        const NODE_BYTES: usize = allocated(size_of::<(u64, Entry, [usize; 2])>());
        let octets = match self {
            Self::Packed(_) => 0,
            Self::Whole(whole) => allocated(whole.octets_bytes()),
        };
        SLOT_BYTES + NODE_BYTES + octets
    }
}

impl Times {
    /// Whether it can be served, even if only stale.
    fn are_not_over(self, now: Tick) -> bool {
        now < self.expires || now < self.stale_until
    }
}

/// What the allocator takes for so many octets: glibc's, whose blocks are a length and multiples of 16, 32 at least.
const fn allocated(bytes: usize) -> usize {
    let block = (bytes + 8).next_multiple_of(16);
    if block < 32 { 32 } else { block }
}

/// How long after a failure has ended its sister's NODATA is still belied: of two queries sent together one may be answered
/// before the end and one after it, and a failure beside an empty answer is "no such host" to libc.
const PAIR_TICKS: u32 = 2;

/// An answer asked for so often in one life is worth a prefetch.
const POPULAR_HITS: u8 = 3;
/// In place of the hits: the prefetch of this life has been signalled.
const SIGNALLED: u8 = u8::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_an_entry_stay_few() {
        assert_eq!(size_of::<Entry>(), 64);
        assert_eq!(size_of::<Whole>(), 64);
    }
}
