//! Places for the connections of clients: how many there are, whose they are, and which connection goes when there are too
//! many.
//!
//! A connection counts from its acceptance until its socket is closed. One more than there may be displaces another, fairly:
//! of the network (an IPv4 /24, an IPv6 /48) with the most connections, and in it the client (an IPv4 address, an IPv6 /64) with
//! the most, the connection that was idle longest is closed at once, whatever it is doing, and the new one is served when the
//! socket of the old one is gone. So a network that opens any number of connections displaces its own. Loopback counts as
//! sixteen networks, since many programs share its address.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use super::{Account, Budget, client_of, prefix_of};

/// The connections that are open.
pub struct Places {
    open: Mutex<Open>,
    /// A place has become free.
    freed: Notify,
    budget: Arc<Budget>,
    began: Instant,
}

/// How many places there are.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// For all clients together.
    pub in_all: usize,
    /// For one client.
    pub of_client: usize,
    /// What a connection beyond those of its client means.
    pub then: ClientIsFull,
}

/// What one connection more of a client that has all its places means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientIsFull {
    /// The new connection is closed.
    Refuse,
    /// The connection of this client that was idle longest is closed.
    Displace,
}

/// Why a connection gets no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPlace {
    /// Its client has all that it may have.
    OfClient,
    /// The connection that it displaces does not end.
    InAll,
}

/// One connection's place among them. It is free again when this is dropped, which must not be before the socket is closed.
pub struct Place {
    seat: Arc<Seat>,
    number: u64,
    all: Arc<Places>,
}

#[derive(Default)]
struct Open {
    seats: HashMap<u64, Arc<Seat>>,
    by_client: HashMap<IpAddr, Arc<AtomicUsize>>,
    by_network: HashMap<IpAddr, Arc<AtomicUsize>>,
    next: u64,
    /// The most that there were since memory was last given back.
    peak: usize,
    /// Places that are about to be free and belong to those who wait for them.
    promised: usize,
}

/// A displaced connection's place, kept for the connection that displaced it. No other connection may take it.
struct Promise<'a>(&'a Places);

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        self.0.open.lock().promised -= 1;
    }
}

struct Seat {
    client: IpAddr,
    network: IpAddr,
    /// How many the client has, and the network.
    of_client: Arc<AtomicUsize>,
    of_network: Arc<AtomicUsize>,
    account: Account,
    /// When it was last active, in milliseconds; later than any time while its client waits for us.
    touched: AtomicU64,
}

impl Places {
    /// No connection yet. What waits for them is charged to this budget.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { open: Mutex::default(), freed: Notify::new(), budget, began: Instant::now() }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.lock().seats.len()
    }

    /// True once after there were many connections and most of them are gone: the allocator may have memory to give back, for
    /// each has buffers that are not charged.
    pub fn has_emptied(&self) -> bool {
        let mut open = self.open.lock();
        let has_emptied = open.peak >= WORTH_RELEASING && open.seats.len() <= open.peak / 4;
        if has_emptied {
            open.peak = open.seats.len();
        }
        has_emptied
    }

    /// Takes a place for a connection of this peer and tells whether another connection was displaced for it. An error says
    /// why the connection has to be closed.
    pub async fn enter(self: &Arc<Self>, peer: IpAddr, most: Most) -> Result<(Place, bool), NoPlace> {
        let mut promise: Option<Promise> = None;
        loop {
            let freed = self.freed.notified();
            {
                let mut open = self.open.lock();
                let is_client_full = open.of_client(peer) >= most.of_client;
                if is_client_full && most.then == ClientIsFull::Refuse {
                    return Err(NoPlace::OfClient);
                }
                // Newcomers that arrive all the while would otherwise take each place before the one that waits wakes up.
                let taken = open.seats.len() + if promise.is_none() { open.promised } else { 0 };
                if !is_client_full && taken < most.in_all {
                    let (number, seat) = open.sit(peer, self.budget.open(peer), self.now());
                    return Ok((Place { seat, number, all: self.clone() }, promise.is_some()));
                }
                // Once: the connection is on its way out until its place is free.
                if promise.is_none() && open.displace(is_client_full.then(|| client_of(peer))) {
                    open.promised += 1;
                    promise = Some(Promise(self));
                }
            }
            timeout(MOST_WAIT_FOR_PLACE, freed).await.map_err(|_| NoPlace::InAll)?;
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Closes the connection that [`enter`](Self::enter) would displace, because descriptors have run out.
    pub fn displace(&self) {
        self.open.lock().displace(None);
    }
}

impl Default for Places {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Open {
    fn of_client(&self, peer: IpAddr) -> usize {
        self.by_client.get(&client_of(peer)).map_or(0, |count| count.load(Relaxed))
    }

    fn sit(&mut self, peer: IpAddr, account: Account, now: u64) -> (u64, Arc<Seat>) {
        let (client, network) = (client_of(peer), prefix_of(peer, 24, 48));
        let of_client = self.by_client.entry(client).or_default().clone();
        let of_network = self.by_network.entry(network).or_default().clone();
        for count in [&of_client, &of_network] {
            count.fetch_add(1, Relaxed);
        }
        let seat = Arc::new(Seat { client, network, of_client, of_network, account, touched: now.into() });
        let number = self.next;
        self.next += 1;
        self.seats.insert(number, seat.clone());
        self.peak = self.peak.max(self.seats.len());
        (number, seat)
    }

    fn leave(&mut self, number: u64) {
        let Some(seat) = self.seats.remove(&number) else { return };
        if seat.of_client.fetch_sub(1, Relaxed) == 1 {
            self.by_client.remove(&seat.client);
        }
        if seat.of_network.fetch_sub(1, Relaxed) == 1 {
            self.by_network.remove(&seat.network);
        }
    }

    /// Closes a connection, fairly, or one of this client. Returns false if all of them are closing already.
    fn displace(&self, only: Option<IpAddr>) -> bool {
        let is_chosen = |seat: &Seat| only.is_none_or(|client| seat.client == client) && !seat.account.is_revoked();
        let staying = self.seats.iter().filter(|(_, seat)| is_chosen(seat));
        let chosen = staying.min_by_key(|&(&number, seat)| {
            // The /64 of ::1 holds no other address of a client.
            let is_loopback = seat.client.is_loopback() || seat.client.is_unspecified();
            let weight = if is_loopback { 1 } else { LOOPBACK_NETWORKS };
            let [of_network, of_client] =
                [&seat.of_network, &seat.of_client].map(|count| Reverse(count.load(Relaxed) * weight));
            (of_network, of_client, seat.touched.load(Relaxed), number)
        });
        chosen.inspect(|(_, seat)| seat.account.revoke()).is_some()
    }
}

impl Place {
    /// What waits for the client of this connection is charged to it; when it is revoked the connection has to be closed at
    /// once.
    pub fn account(&self) -> &Account {
        &self.seat.account
    }

    /// Notes that the connection is not idle.
    pub fn touch(&self) {
        self.seat.touched.store(self.all.now(), Relaxed);
    }

    /// Notes that the client waits for us, until [`touch`](Self::touch) is called: idle connections are displaced first.
    pub fn occupy(&self) {
        self.seat.touched.store(OCCUPIED + self.all.now(), Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.open.lock().leave(self.number);
        // Listeners wait for it side by side, each for its own connection.
        self.all.freed.notify_waiters();
    }
}

/// How long a new connection waits for the socket of the one that it displaces to be closed, which takes the time to schedule a
/// task.
const MOST_WAIT_FOR_PLACE: Duration = Duration::from_secs(1);
/// The buffers of fewer connections the allocator may keep.
const WORTH_RELEASING: usize = 128;
/// As many networks loopback counts as.
const LOOPBACK_NETWORKS: usize = 16;
/// Later than any time.
const OCCUPIED: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    fn most(in_all: usize, of_client: usize) -> Most {
        Most { in_all, of_client, then: ClientIsFull::Refuse }
    }

    async fn enter(all: &Arc<Places>, peer: &str, most: Most) -> Result<(Place, bool), NoPlace> {
        all.enter(peer.parse().unwrap(), most).await
    }

    #[tokio::test]
    async fn a_client_has_as_many_places_as_it_may_and_ipv6_counts_by_64_bits() {
        let all = Arc::<Places>::default();
        let mut places = Vec::new();
        for (peer, expected) in [
            ("192.0.2.1", true),
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", false),
            ("192.0.2.2", true),
            ("2001:db8::1", true),
            ("2001:db8::2", true),
            ("2001:db8::3", false),
            ("2001:db8:0:1::1", true),
        ] {
            let place = enter(&all, peer, most(10, 2)).await;
            assert_eq!(place.is_ok(), expected, "{peer}");
            places.extend(place.ok());
        }
        assert_eq!(all.count(), 6);
        drop(places);
        assert_eq!(all.count(), 0);
        assert!(all.open.lock().by_client.is_empty() && all.open.lock().by_network.is_empty());
    }

    /// One more connection of this peer, and which of those that are there is closed for it.
    async fn displaced(all: &Arc<Places>, places: &mut Vec<Place>, peer: &str, most: Most) -> Option<usize> {
        let mut entering = std::pin::pin!(enter(all, peer, most));
        tokio::select! {
            biased;
            _ = &mut entering => panic!("there is no place yet"),
            () = std::future::ready(()) => {}
        }
        let before = all.count();
        let revoked = places.iter().position(|place| place.account().is_revoked());
        assert_eq!(all.count(), before, "it counts until it is gone");
        drop(places.remove(revoked?));
        let (place, has_displaced) = entering.await.ok().unwrap();
        assert!(has_displaced);
        places.push(place);
        revoked
    }

    #[tokio::test]
    async fn one_more_displaces_the_idlest_of_the_largest_network_and_waits_until_it_is_gone() {
        let (all, most) = (Arc::<Places>::default(), most(5, 5));
        let mut places = Vec::new();
        // Each from a /64 of its own, but all of one /48; the honest client came first and is the idlest.
        for peer in ["192.0.2.1", "2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1", "2001:db8:0:4::1"] {
            places.push(enter(&all, peer, most).await.ok().unwrap().0);
        }
        places[1].occupy();
        assert_eq!(displaced(&all, &mut places, "2001:db8:0:5::1", most).await, Some(2));
        assert_eq!(all.count(), 5);
    }

    #[tokio::test]
    async fn memory_is_given_back_once_after_many_connections() {
        let (all, most) = (Arc::<Places>::default(), most(1000, 1000));
        let mut places = Vec::new();
        for _ in 0..WORTH_RELEASING {
            places.push(enter(&all, "192.0.2.1", most).await.ok().unwrap().0);
        }
        assert!(!all.has_emptied(), "all are there");
        places.truncate(10);
        assert!(all.has_emptied() && !all.has_emptied());
    }

    #[tokio::test]
    async fn loopback_counts_as_many_networks() {
        let (all, most) = (Arc::<Places>::default(), most(18, 18));
        let mut places = Vec::new();
        for number in 0..18 {
            let peer = if number < 16 { "127.0.0.1" } else { "192.0.2.1" };
            places.push(enter(&all, peer, most).await.ok().unwrap().0);
        }
        assert_eq!(displaced(&all, &mut places, "127.0.0.1", most).await, Some(16), "two of a network are more");
        assert_eq!(displaced(&all, &mut places, "127.0.0.1", most).await, Some(0));
    }

    #[tokio::test]
    async fn where_a_client_displaces_its_own_others_lose_nothing() {
        let (all, most) = (Arc::<Places>::default(), Most { then: ClientIsFull::Displace, ..most(10, 2) });
        let mut places = Vec::new();
        for peer in ["192.0.2.1", "192.0.2.2", "192.0.2.2"] {
            places.push(enter(&all, peer, most).await.ok().unwrap().0);
        }
        places[1].occupy();
        assert_eq!(displaced(&all, &mut places, "192.0.2.2", most).await, Some(2));
        places[2].occupy();
        assert_eq!(displaced(&all, &mut places, "192.0.2.2", most).await, Some(1), "all wait for us: the first");
    }
}
