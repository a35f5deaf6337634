//! Equal questions wait for one response.
//!
//! One table for all threads and transports, sharded by qname, so that A and AAAA of a name lie in the same shard. Whoever asks
//! first drives the exchange; the others leave a plain value that says how to reach them. Whoever completes the
//! exchange takes all of them and sends.
//!
//! Each waits for seconds at the most, but who asks for names that nobody answers could have all the room there is. So the
//! clients of one address have a bound of their own, and it falls as the room that is left does: many such clients leave
//! some to those who have little waiting.
//!
//! glibc asks A and AAAA together, and takes an empty answer beside a failure for "no such host" at once. So NODATA for
//! one of the two is held back while the other, asked at about the same time, is still open, and shares its failure.

use std::{
    hash::BuildHasher,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use foldhash::fast::FixedState;
use hashbrown::HashTable;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::Client;
use crate::{
    budget,
    cache::{Epoch, Key},
    clock::Moment,
    metrics::Transport,
    sys::Local,
    wire::Asker,
};

/// The questions in flight, and who waits for each. `H` is what is held back for a sister.
pub struct InFlight<H> {
    shards: Box<[Mutex<Shard<H>>]>,
    waiting: AtomicUsize,
    most_waiting: AtomicUsize,
    shares: Shares,
    most_per_client: AtomicUsize,
}

/// The flights of some names, by the print of their keys.
struct Shard<H>(HashTable<Flight<H>>);

/// Those who may share a response: they ask the same of the same tables, and may be told the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Party {
    /// What they ask.
    pub key: Key,
    /// Whether they ask from this host, and so may be told loopback addresses.
    pub is_loopback: bool,
    /// Whose tables are asked: after a reload nobody waits for what the old ones lead to.
    pub epoch: Epoch,
}

impl Party {
    pub fn new(key: &Key, client: Client, epoch: Epoch) -> Self {
        Self { key: key.clone(), is_loopback: client.is_loopback, epoch }
    }

    /// Whether these ask for the other address type, and else the same.
    fn is_sister_of(&self, other: &Self) -> bool {
        self.key.is_sister_of(&other.key) && self.is_loopback == other.is_loopback && self.epoch == other.epoch
    }
}

/// A client that waits for a response.
#[derive(Debug)]
pub struct Waiter {
    /// What its reply depends on.
    pub asker: Asker,
    /// Its question's bytes, in its letters.
    pub question: SmallVec<[u8; 48]>,
    /// How the reply reaches it.
    pub way: Way,
}

/// How a reply reaches its client.
#[derive(Debug)]
pub enum Way {
    /// By a UDP socket of the listener that the query came by.
    Datagram {
        /// The listener's number.
        listener: u32,
        /// The client.
        peer: SocketAddr,
        /// The address it asked, on wildcard listeners.
        local: Option<Local>,
    },
    /// To the task that writes its connection.
    Stream {
        /// How the query came.
        transport: Transport,
        /// The client.
        peer: IpAddr,
        /// Its task, which takes in fewer queries at a time than the queue has room for.
        replies: budget::Sender,
    },
}

impl Way {
    /// How the query came.
    pub fn transport(&self) -> Transport {
        match self {
            Self::Datagram { .. } => Transport::Udp,
            Self::Stream { transport, .. } => *transport,
        }
    }

    fn client(&self) -> IpAddr {
        match self {
            Self::Datagram { peer, .. } => peer.ip(),
            Self::Stream { peer, .. } => *peer,
        }
    }
}

/// Almost always one. They go through many hands, and so lie in a place of their own.
pub type Waiters = Vec<Waiter>;

struct Flight<H> {
    party: Party,
    started: Moment,
    /// When the first of those who wait has asked; a renewal that nobody waits for counts from its start.
    asked: Moment,
    waiters: Waiters,
    held: Option<H>,
    /// The sister failed while somebody waited for this.
    sister_failed: bool,
}

/// What became of an attempt to join.
#[derive(Debug)]
pub enum Join<T> {
    /// Nobody asks this yet: the caller has to, and to [`InFlight::land`] in the end.
    First,
    /// The waiter was taken in.
    Joined,
    /// It was answered in the meantime.
    Answered(T),
    /// Too many wait already; the waiter was not taken in.
    Full(Whose),
}

/// Who has too many that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// All clients together.
    All,
    /// This client alone.
    Client,
}

/// How many wait of each client: by a hash of its address, so that the table has one size. Two clients that share a place
/// share their bound, which few do and nobody can choose.
#[derive(Debug)]
struct Shares {
    places: Box<[AtomicU32]>,
    hasher: FixedState,
}

impl Shares {
    fn new() -> Self {
        let hasher = FixedState::with_seed(rand::random());
        Self { places: (0..SHARES).map(|_| AtomicU32::new(0)).collect(), hasher }
    }

    /// A host has a whole /64 of IPv6 addresses to ask from.
    fn of(&self, client: IpAddr) -> &AtomicU32 {
        let client = match client.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64)),
            v4 => v4,
        };
        &self.places[self.hasher.hash_one(client) as usize % SHARES]
    }
}

/// How the question for the other address type stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sister {
    /// No client waits for it, or its NODATA is held back for the sake of this one.
    Idle,
    /// Clients wait for it. A NODATA of this question would be held back for it.
    Open,
    /// The same, but it was asked much later: a NODATA of this question would not be held back.
    OpenLate,
    /// It has failed while clients waited for this question.
    Failed,
}

/// How a question was settled, as far as its sister minds.
#[derive(Debug)]
pub enum Verdict<H> {
    /// With records, or the name does not exist.
    Plain,
    /// NODATA; to be held back if the sister is still open.
    NoData(H),
    /// Not at all.
    Failed,
}

/// Who is to be told, once a question is settled.
#[derive(Debug)]
pub struct Landing<H> {
    /// Those who wait for the question itself; `None` if the answer is held back.
    pub waiters: Option<Waiters>,
    /// The sister failed while they waited: they are not to be told NODATA beside that.
    pub sister_failed: bool,
    /// What had been held back for this question's sake, with those who wait for it.
    pub sister: Option<(H, Waiters)>,
}

impl<H> InFlight<H> {
    /// An empty table in which at most `most_waiting` clients wait.
    pub fn new(most_waiting: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard(HashTable::new()))).collect(),
            waiting: AtomicUsize::new(0),
            most_waiting: most_waiting.into(),
            shares: Shares::new(),
            most_per_client: most_waiting.into(),
        }
    }

    /// Waits with those who asked the same, or becomes the first.
    ///
    /// `look_again` looks into the cache under the lock: the answer may have come since the caller looked. It may ask whether
    /// the sister is open. The first one's waiter is taken in as well; a refresh has none.
    pub fn join<T>(
        &self,
        party: &Party,
        now: Moment,
        waiter: Option<impl FnOnce() -> Waiter>,
        look_again: impl FnOnce(&dyn Fn() -> bool) -> Option<T>,
    ) -> Join<T> {
        let waiter = waiter.map(|waiter| waiter());
        if let Some(full) = waiter.as_ref().and_then(|waiter| self.full_for(waiter)) {
            return Join::Full(full);
        }
        let mut shard = self.shard(party).lock();
        let waiter = || {
            waiter.inspect(|waiter| {
                self.waiting.fetch_add(1, Relaxed);
                self.shares.of(waiter.way.client()).fetch_add(1, Relaxed);
            })
        };
        if let Some(flight) = shard.find_mut(party) {
            if flight.waiters.is_empty() {
                flight.asked = now;
            }
            flight.waiters.extend(waiter());
            return Join::Joined;
        }
        if let Some(answered) = look_again(&|| shard.waits_for_sister(party)) {
            return Join::Answered(answered);
        }
        let waiters = waiter().into_iter().collect();
        let party = party.clone();
        shard.insert(Flight { party, started: now, asked: now, waiters, held: None, sister_failed: false });
        Join::First
    }

    /// Whose bound it is that leaves no room for this one. Of those who come at the same moment, one or the other may be too
    /// many.
    ///
    /// A client may have as many as its bound while nobody else has any. When others have some, its bound falls with the square
    /// of the room that is left: each greedy client takes less than the one before, and so they come to no end of it. If the
    /// bound fell in proportion, a few dozen would.
    fn full_for(&self, waiter: &Waiter) -> Option<Whose> {
        let (all, most) = (self.waiting.load(Relaxed) as u64, self.most_waiting.load(Relaxed) as u64);
        if all >= most {
            return Some(Whose::All);
        }
        let share = u64::from(self.shares.of(waiter.way.client()).load(Relaxed));
        let most_of_one = (self.most_per_client.load(Relaxed) as u64).min(most);
        // None of them exceeds 2^20, so this fits.
        let is_above_bound = share * (most - most_of_one).pow(2) >= most_of_one * (most - all).pow(2);
        (share >= most_of_one || is_above_bound && share >= ALWAYS_ALLOWED).then_some(Whose::Client)
    }

    /// Whether somebody waits for the other address type of the same name.
    pub fn is_sister_open(&self, party: &Party) -> bool {
        self.shard(party).lock().waits_for_sister(party)
    }

    /// How the question for the other address type of the same name stands.
    pub fn sister(&self, party: &Party) -> Sister {
        let mut shard = self.shard(party).lock();
        let own = shard.find_mut(party).map(|flight| (flight.asked, flight.sister_failed));
        match (own, shard.find_sister(party)) {
            (Some((_, true)), _) => Sister::Failed,
            (own, Some(sister)) if sister.held.is_none() && !sister.waiters.is_empty() => match own {
                Some((asked, _)) if sister.asked <= asked + PAIR_SPAN => Sister::Open,
                _ => Sister::OpenLate,
            },
            _ => Sister::Idle,
        }
    }

    /// Takes those who wait so far; the question stays in flight. For a stale answer that is given meanwhile.
    pub fn take_waiters(&self, party: &Party) -> Landing<H> {
        let mut shard = self.shard(party).lock();
        let waiters = shard.find_mut(party).map(|flight| std::mem::take(&mut flight.waiters));
        let sister = shard.release(party);
        self.counted_out(Landing { waiters, sister_failed: false, sister })
    }

    /// Takes a settled question out of flight, with all who wait for it.
    ///
    /// `keep` is called under the lock and puts the answer into the cache, so that whoever joins later finds it there.
    /// It is not called for an answer that is held back, nor is that one's flight over.
    pub fn land(&self, party: &Party, verdict: Verdict<H>, keep: impl FnOnce()) -> Landing<H> {
        let mut shard = self.shard(party).lock();
        let is_failure = matches!(verdict, Verdict::Failed);
        let sister_failed = shard.find_mut(party).is_some_and(|flight| flight.sister_failed);
        if let Verdict::NoData(held) = verdict
            && !sister_failed
        {
            let asked = shard.find_mut(party).map(|flight| flight.asked);
            // A renewal that nobody waits for binds nobody.
            let is_open = |flight: &Flight<H>| {
                flight.held.is_none()
                    && !flight.waiters.is_empty()
                    && asked.is_some_and(|asked| flight.asked <= asked + PAIR_SPAN)
            };
            if shard.find_sister(party).is_some_and(is_open)
                && let Some(flight) = shard.find_mut(party)
            {
                flight.held = Some(held);
                return Landing { waiters: None, sister_failed, sister: None };
            }
        }
        keep();
        let waiters = shard.remove(party).map(|flight| flight.waiters).unwrap_or_default();
        let sister = shard.release(party);
        if is_failure && let Some(flight) = shard.find_sister_mut(party) {
            flight.sister_failed |= !flight.waiters.is_empty();
        }
        self.counted_out(Landing { waiters: Some(waiters), sister_failed, sister })
    }

    /// Takes out of flight the questions that are open for so long that nobody can be seeing to them any more, with those
    /// who wait for them.
    pub fn take_lost(&self, now: Moment) -> Vec<(Party, Waiters)> {
        let mut lost = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let overdue = shard.0.extract_if(|flight| flight.started + LOST_AFTER < now);
            lost.extend(overdue.map(|flight| (flight.party, flight.waiters)));
        }
        self.count_out(lost.iter().flat_map(|(_, waiters)| waiters));
        lost
    }

    /// Lets so many wait from now on, and so many of one client.
    pub fn set_most_waiting(&self, most_waiting: usize, most_per_client: usize) {
        self.most_waiting.store(most_waiting, Relaxed);
        self.most_per_client.store(most_per_client, Relaxed);
    }

    /// How many clients wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// How many questions are in flight.
    pub fn flights(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().0.len()).sum()
    }

    fn counted_out(&self, landing: Landing<H>) -> Landing<H> {
        let sisters = landing.sister.iter().flat_map(|(_, waiters)| waiters);
        self.count_out(landing.waiters.iter().flatten().chain(sisters));
        landing
    }

    fn count_out<'a>(&self, waiters: impl Iterator<Item = &'a Waiter>) {
        let mut gone = 0;
        for waiter in waiters {
            self.shares.of(waiter.way.client()).fetch_sub(1, Relaxed);
            gone += 1;
        }
        self.waiting.fetch_sub(gone, Relaxed);
    }

    fn shard(&self, party: &Party) -> &Mutex<Shard<H>> {
        // Bits that the table within the shard uses last.
        &self.shards[(party.key.name_hash() >> 32) as usize % SHARDS]
    }
}

impl<H> Shard<H> {
    fn find_mut(&mut self, party: &Party) -> Option<&mut Flight<H>> {
        self.0.find_mut(party.key.print(), |flight| flight.party == *party)
    }

    fn insert(&mut self, flight: Flight<H>) {
        self.0.insert_unique(flight.party.key.print(), flight, |flight| flight.party.key.print());
    }

    fn remove(&mut self, party: &Party) -> Option<Flight<H>> {
        let found = self.0.find_entry(party.key.print(), |flight| flight.party == *party).ok()?;
        Some(found.remove().0)
    }

    fn find_sister(&self, party: &Party) -> Option<&Flight<H>> {
        self.0.find(party.key.sister_print()?, |flight| flight.party.is_sister_of(party))
    }

    fn find_sister_mut(&mut self, party: &Party) -> Option<&mut Flight<H>> {
        self.0.find_mut(party.key.sister_print()?, |flight| flight.party.is_sister_of(party))
    }

    /// Whether somebody waits for the other address type.
    fn waits_for_sister(&self, party: &Party) -> bool {
        self.find_sister(party).is_some_and(|flight| !flight.waiters.is_empty())
    }

    /// Takes out the sister, if its answer is held back, with that and those who wait for it.
    fn release(&mut self, party: &Party) -> Option<(H, Waiters)> {
        let is_held = |flight: &Flight<H>| flight.held.is_some() && flight.party.is_sister_of(party);
        let (flight, _) = self.0.find_entry(party.key.sister_print()?, is_held).ok()?.remove();
        flight.held.map(|held| (held, flight.waiters))
    }
}

/// A pair of A and AAAA, while there is room at all.
const ALWAYS_ALLOWED: u64 = 2;
/// Enough that clients seldom meet, in 256 KiB.
const SHARES: usize = 1 << 16;
/// No question is open for so long, unless whoever saw to it has panicked: a rule's timeout is 10 s at most.
const LOST_AFTER: Duration = Duration::from_secs(12);
/// Enough that workers seldom meet.
const SHARDS: usize = 64;
/// How much later than its sister a question may have been asked to count as asked together. It bounds how much longer
/// than the one deadline a client can be made to wait.
const PAIR_SPAN: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cache::Variant,
        wire::{Class, Rtype},
    };

    const NOW: Moment = Moment::from_millis(1_000_000);

    fn key(qtype: Rtype) -> Party {
        let key = Key::new(b"\x03www\x07example\x00", qtype, Class::IN, Variant::default());
        Party { key, is_loopback: true, epoch: Epoch(1) }
    }

    fn waiter(id: u16) -> Option<impl FnOnce() -> Waiter> {
        waiter_at("127.0.0.1:1", id)
    }

    fn waiter_at(peer: &str, id: u16) -> Option<impl FnOnce() -> Waiter + use<>> {
        let peer = peer.parse().unwrap();
        Some(move || Waiter {
            asker: Asker {
                id,
                recursion_desired: true,
                checking_disabled: false,
                wants_ad: false,
                edns: None,
                options: Default::default(),
                limit_bytes: 512,
            },
            question: SmallVec::new(),
            way: Way::Datagram { listener: 0, peer, local: None },
        })
    }

    fn join(table: &InFlight<&'static str>, qtype: Rtype, id: u16, now: Moment) -> Join<()> {
        table.join(&key(qtype), now, waiter(id), |_| None)
    }

    fn ids(waiters: &[Waiter]) -> Vec<u16> {
        waiters.iter().map(|waiter| waiter.asker.id).collect()
    }

    #[test]
    fn equal_questions_wait_for_the_first() {
        let table = InFlight::new(10);
        assert!(matches!(join(&table, Rtype::A, 1, NOW), Join::First));
        assert!(matches!(join(&table, Rtype::A, 2, NOW), Join::Joined));
        assert!(matches!(join(&table, Rtype::TXT, 3, NOW), Join::First));
        assert_eq!((table.flights(), table.waiting()), (2, 3));
        let landing = table.land(&key(Rtype::A), Verdict::Plain, || {});
        assert_eq!(ids(&landing.waiters.unwrap()), [1, 2]);
        assert_eq!((table.flights(), table.waiting()), (1, 1));
    }

    #[test]
    fn a_question_answered_meanwhile_is_not_asked_again() {
        let table = InFlight::<()>::new(10);
        let joined = table.join(&key(Rtype::A), NOW, waiter(1), |_| Some("cached"));
        assert!(matches!(joined, Join::Answered("cached")));
        assert_eq!((table.flights(), table.waiting()), (0, 0));
    }

    #[test]
    fn waiters_are_capped() {
        let table = InFlight::new(2);
        join(&table, Rtype::A, 1, NOW);
        join(&table, Rtype::A, 2, NOW);
        assert!(matches!(join(&table, Rtype::A, 3, NOW), Join::Full(Whose::All)));
        assert_eq!(ids(&table.land(&key(Rtype::A), Verdict::Plain, || {}).waiters.unwrap()), [1, 2]);
        assert!(matches!(join(&table, Rtype::A, 4, NOW), Join::First));
    }

    #[test]
    fn one_client_does_not_take_the_room_of_all() {
        let mut table = InFlight::<()>::new(100);
        table.shares.hasher = FixedState::with_seed(1); // in which none of these meet
        table.set_most_waiting(100, 2);
        let join = |peer: &str, id| table.join(&key(Rtype::A), NOW, waiter_at(peer, id), |_| None::<()>);
        for (peer, is_full) in [
            ("192.0.2.1:1", false),
            ("192.0.2.1:2", false),
            ("192.0.2.1:3", true), // whatever the port
            ("[::ffff:192.0.2.1]:3", true),
            ("192.0.2.2:1", false),
            ("[2001:db8::1]:1", false),
            ("[2001:db8::2]:1", false),
            ("[2001:db8:0:0:3::]:1", true), // a host may have all of a /64
            ("[2001:db8:0:1::1]:1", false),
        ] {
            assert_eq!(matches!(join(peer, 1), Join::Full(Whose::Client)), is_full, "{peer}");
        }
        assert_eq!(table.waiting(), 6);
        assert_eq!(table.land(&key(Rtype::A), Verdict::Plain, || {}).waiters.unwrap().len(), 6);
        assert!(table.shares.places.iter().all(|place| place.load(Relaxed) == 0));
        assert!(matches!(join("192.0.2.1:1", 7), Join::First));
    }

    #[test]
    fn a_question_that_nobody_sees_to_any_more_is_given_up() {
        let table = InFlight::new(10);
        join(&table, Rtype::A, 1, NOW);
        join(&table, Rtype::A, 2, NOW + Duration::from_secs(4));
        join(&table, Rtype::TXT, 3, NOW + Duration::from_secs(1));
        assert!(table.take_lost(NOW + LOST_AFTER).is_empty());
        let lost = table.take_lost(NOW + LOST_AFTER + Duration::from_millis(1));
        assert_eq!(lost.iter().map(|(_, waiters)| ids(waiters)).collect::<Vec<_>>(), [[1, 2]]);
        assert_eq!((table.flights(), table.waiting()), (1, 1));
        // Whoever saw to it after all finds nobody to tell.
        assert!(table.land(&key(Rtype::A), Verdict::Plain, || {}).waiters.unwrap().is_empty());
    }

    #[test]
    fn many_clients_leave_room_for_one_that_has_little_waiting() {
        let mut table = InFlight::<()>::new(1000);
        table.shares.hasher = FixedState::with_seed(1);
        table.set_most_waiting(1000, 250);
        let join = |peer: String| {
            let is_taken = table.join(&key(Rtype::A), NOW, waiter_at(&peer, 1), |_| None::<()>);
            matches!(is_taken, Join::First | Join::Joined)
        };
        let greedy =
            |number: usize| std::iter::repeat_n(number, 1000).take_while(|n| join(format!("192.0.2.{n}:1"))).count();
        assert_eq!(greedy(1), 250, "alone");
        assert_eq!(greedy(2), 157, "250 by the square of what is left then, 593 of 750");
        for _ in 0..300 {
            for number in 3..=40 {
                join(format!("192.0.2.{number}:1"));
            }
        }
        assert!((800..900).contains(&table.waiting()), "{}", table.waiting());
        for number in 41..=60 {
            greedy(number);
        }
        assert!(table.waiting() < 1000);
        assert_eq!((join("198.51.100.1:1".to_owned()), join("198.51.100.1:1".to_owned())), (true, true), "a pair");
    }

    #[test]
    fn nodata_waits_for_its_open_sister() {
        let table = InFlight::new(10);
        join(&table, Rtype::A, 1, NOW);
        join(&table, Rtype::AAAA, 2, NOW);
        let kept = || panic!("held back, not kept");
        let landing = table.land(&key(Rtype::AAAA), Verdict::NoData("empty"), kept);
        assert!(landing.waiters.is_none() && landing.sister.is_none());
        // Who asks now waits as well.
        assert!(matches!(join(&table, Rtype::AAAA, 3, NOW), Join::Joined));
        let landing = table.land(&key(Rtype::A), Verdict::Failed, || {});
        assert_eq!(ids(&landing.waiters.unwrap()), [1]);
        let (held, waiters) = landing.sister.unwrap();
        assert_eq!((held, ids(&waiters)), ("empty", vec![2, 3]));
        assert_eq!((table.flights(), table.waiting()), (0, 0));
    }

    #[test]
    fn two_nodata_do_not_wait_for_each_other() {
        let table = InFlight::new(10);
        join(&table, Rtype::A, 1, NOW);
        join(&table, Rtype::AAAA, 2, NOW);
        assert!(table.land(&key(Rtype::AAAA), Verdict::NoData("six"), || {}).waiters.is_none());
        let landing = table.land(&key(Rtype::A), Verdict::NoData("four"), || {});
        assert_eq!(ids(&landing.waiters.unwrap()), [1]);
        assert_eq!(landing.sister.unwrap().0, "six");
    }

    #[test]
    fn nodata_is_belied_by_a_sister_that_failed_while_somebody_waited_for_it() {
        let table = InFlight::new(10);
        for (asks, fails) in [(true, true), (true, false), (false, true)] {
            join(&table, Rtype::A, 1, NOW);
            if asks {
                join(&table, Rtype::AAAA, 2, NOW);
            }
            table.land(&key(Rtype::A), if fails { Verdict::Failed } else { Verdict::Plain }, || {});
            join(&table, Rtype::AAAA, 3, NOW);
            let landing = table.land(&key(Rtype::AAAA), Verdict::NoData("empty"), || {});
            assert_eq!((landing.waiters.is_some(), landing.sister_failed), (true, asks && fails));
        }
    }

    #[test]
    fn nodata_does_not_wait_for_a_renewal_of_its_sister() {
        let table = InFlight::new(10);
        assert!(matches!(table.join(&key(Rtype::A), NOW, None::<fn() -> Waiter>, |_| None::<()>), Join::First));
        join(&table, Rtype::AAAA, 1, NOW);
        assert!(table.land(&key(Rtype::AAAA), Verdict::NoData("empty"), || {}).waiters.is_some());
    }

    #[test]
    fn only_those_who_may_be_told_the_same_share_a_response() {
        let table = InFlight::<()>::new(10);
        let party = key(Rtype::A);
        let not_on_this_host = Party { is_loopback: false, ..party.clone() };
        let after_a_reload = Party { epoch: Epoch(2), ..party.clone() };
        for other in [party, not_on_this_host, after_a_reload] {
            assert!(matches!(table.join(&other, NOW, waiter(1), |_| None::<()>), Join::First), "{other:?}");
        }
    }

    #[test]
    fn nodata_does_not_wait_for_a_sister_asked_much_later() {
        let table = InFlight::new(10);
        join(&table, Rtype::AAAA, 1, NOW);
        join(&table, Rtype::A, 2, NOW + Duration::from_secs(3));
        assert!(table.land(&key(Rtype::AAAA), Verdict::NoData("empty"), || {}).waiters.is_some());
    }
}
