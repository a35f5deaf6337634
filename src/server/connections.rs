//! The TCP connections of clients: how many there are, whose they are, and which one goes when there are too many.
//!
//! A connection counts from its acceptance until its socket is closed. One more than there may be displaces another, fairly:
//! of the network (an IPv4 /24, an IPv6 /48) with the most connections, and in it the client (an IPv4 address, an IPv6 /64) with
//! the most, the connection that was idle longest is closed at once, whatever it is doing, and the new one is served when the
//! socket of the old one is gone. So a network that opens any number of connections displaces its own.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use super::{
    Config,
    limit::{self, Allowance, Limiter},
};
use crate::{
    budget::{Account, Budget, client_of, prefix_of},
    clock::Moment,
    metrics::Refusal,
    sys,
};

/// The connections that are open.
pub struct Connections {
    open: Mutex<Open>,
    /// A place has become free.
    freed: Notify,
    budget: Arc<Budget>,
    /// As many as leave descriptors for everything else.
    most: usize,
    rate: Limiter,
}

#[derive(Default)]
struct Open {
    seats: HashMap<u64, Arc<Seat>>,
    by_client: HashMap<IpAddr, usize>,
    by_network: HashMap<IpAddr, usize>,
    next: u64,
}

/// One connection's place among them. It is free again when this is dropped, which must not be before the socket is closed.
pub(super) struct Place {
    seat: Arc<Seat>,
    number: u64,
    all: Arc<Connections>,
}

struct Seat {
    client: IpAddr,
    network: IpAddr,
    account: Account,
    touched: AtomicU64,
}

impl Connections {
    /// None yet. What waits for them is charged to this budget.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            open: Mutex::default(),
            freed: Notify::new(),
            budget,
            most: (sys::open_files_limit() / 2).max(1),
            rate: Limiter::new(),
        }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.lock().seats.len()
    }

    /// Takes a place for a connection of this peer and tells whether another connection was displaced for it. An error says
    /// why the connection has to be closed.
    pub(super) async fn enter(self: &Arc<Self>, peer: IpAddr, config: &Config) -> Result<(Place, bool), Refusal> {
        let rate = limit::Config { responses_per_second: config.tcp_accept_rate, slip: 0, ..config.rate_limit.clone() };
        if self.rate.take(peer, &rate, Moment::now()) != Allowance::Reply {
            return Err(Refusal::Rate);
        }
        let mut has_displaced = false;
        loop {
            let freed = self.freed.notified();
            {
                let mut open = self.open.lock();
                if open.of_client(peer) >= config.tcp_connections_per_client {
                    return Err(Refusal::PerClient);
                }
                if open.seats.len() < config.tcp_connections.min(self.most) {
                    let account = self.budget.open(peer);
                    let (number, seat) = open.sit(peer, account);
                    return Ok((Place { seat, number, all: self.clone() }, has_displaced));
                }
                // Once: the connection is on its way out until its place is free.
                if !has_displaced {
                    has_displaced = open.displace();
                }
            }
            timeout(MOST_WAIT_FOR_PLACE, freed).await.map_err(|_| Refusal::Displaced)?;
        }
    }

    /// Closes the connection that [`enter`](Self::enter) would displace, because descriptors have run out.
    pub(super) fn displace(&self) {
        self.open.lock().displace();
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Open {
    fn of_client(&self, peer: IpAddr) -> usize {
        self.by_client.get(&client_of(peer)).copied().unwrap_or(0)
    }

    fn sit(&mut self, peer: IpAddr, account: Account) -> (u64, Arc<Seat>) {
        let (client, network) = (client_of(peer), prefix_of(peer, 24, 48));
        let touched = Moment::now().as_millis().into();
        let seat = Arc::new(Seat { client, network, account, touched });
        let number = self.next;
        self.next += 1;
        self.seats.insert(number, seat.clone());
        *self.by_client.entry(client).or_default() += 1;
        *self.by_network.entry(network).or_default() += 1;
        (number, seat)
    }

    fn leave(&mut self, number: u64) {
        let Some(seat) = self.seats.remove(&number) else { return };
        for (counts, key) in [(&mut self.by_client, seat.client), (&mut self.by_network, seat.network)] {
            if let Some(count) = counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&key);
                }
            }
        }
    }

    /// Closes a connection, fairly. Returns false if all of them are closing already.
    fn displace(&self) -> bool {
        let staying = self.seats.iter().filter(|(_, seat)| !seat.account.is_revoked());
        let count_of = |counts: &HashMap<IpAddr, usize>, key| counts.get(&key).copied().unwrap_or(0);
        let chosen = staying.min_by_key(|&(&number, seat)| {
            let of_network = count_of(&self.by_network, seat.network);
            let of_client = count_of(&self.by_client, seat.client);
            (usize::MAX - of_network, usize::MAX - of_client, seat.touched.load(Relaxed), number)
        });
        chosen.inspect(|(_, seat)| seat.account.revoke()).is_some()
    }
}

impl Place {
    /// What waits for the client of this connection is charged to it; when it is revoked the connection has to be closed at
    /// once.
    pub(super) fn account(&self) -> &Account {
        &self.seat.account
    }

    /// Notes that the connection is not idle.
    pub(super) fn touch(&self) {
        self.seat.touched.store(Moment::now().as_millis(), Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn config(tcp_connections: usize, tcp_connections_per_client: usize) -> Config {
        Config { tcp_connections, tcp_connections_per_client, ..Config::default() }
    }

    async fn enter(all: &Arc<Connections>, peer: &str, config: &Config) -> Result<(Place, bool), Refusal> {
        all.enter(peer.parse().unwrap(), config).await
    }

    #[tokio::test]
    async fn a_client_has_as_many_places_as_it_may_and_ipv6_counts_by_64_bits() {
        let (all, config) = (Arc::<Connections>::default(), config(10, 2));
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
            let place = enter(&all, peer, &config).await;
            assert_eq!(place.is_ok(), expected, "{peer}");
            places.extend(place.ok());
        }
        assert_eq!(all.count(), 6);
        drop(places);
        assert_eq!(all.count(), 0);
        assert!(all.open.lock().by_client.is_empty() && all.open.lock().by_network.is_empty());
    }

    #[tokio::test]
    async fn one_more_displaces_the_idlest_of_the_largest_network_and_waits_until_it_is_gone() {
        let (all, config) = (Arc::<Connections>::default(), config(5, 5));
        let mut places = Vec::new();
        // Each from a /64 of its own, but all of one /48; the honest client came first and is the idlest.
        for peer in ["192.0.2.1", "2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:3::1", "2001:db8:0:4::1"] {
            places.push(enter(&all, peer, &config).await.unwrap().0);
        }
        places[1].seat.touched.store(u64::MAX, Relaxed);
        let entering = enter(&all, "2001:db8:0:5::1", &config);
        let mut entering = std::pin::pin!(entering);
        tokio::select! {
            biased;
            _ = &mut entering => panic!("there is no place yet"),
            () = std::future::ready(()) => {}
        }
        let revoked: Vec<_> = places.iter().map(|place| place.account().is_revoked()).collect();
        assert_eq!(revoked, [false, false, true, false, false]);
        assert_eq!(all.count(), 5, "it counts until it is gone");
        drop(places.remove(2));
        let (_place, has_displaced) = entering.await.unwrap();
        assert!(has_displaced);
        assert_eq!(all.count(), 5);
    }

    #[tokio::test]
    async fn a_network_opens_as_many_connections_a_second_as_it_may() {
        let (all, mut config) = (Arc::<Connections>::default(), config(1000, 1000));
        config.tcp_accept_rate = 10;
        for (peer, expected) in [("192.0.2.1", 10), ("192.0.3.1", 10), ("127.0.0.1", 30)] {
            let mut accepted = 0;
            for _ in 0..30 {
                accepted += usize::from(enter(&all, peer, &config).await.is_ok());
            }
            assert_eq!(accepted, expected, "{peer}");
        }
    }
}
