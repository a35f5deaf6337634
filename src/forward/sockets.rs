//! The UDP sockets of one worker towards its upstreams, and who waits on them for what.
//!
//! A forger has to guess port and id. So a query to another host leaves by a socket chosen at random among 256, each
//! bound to a random port when it is first chosen and given up after eight queries or ten seconds. It stays open until
//! the last of its queries is over, for late replies are welcome; but three replies with ids that nobody has used there
//! mean that its port is known to a forger, and no query is sent by it any more. On loopback nobody can forge, and a few
//! sockets serve for as long as they are used, each once those before it are busy.
//!
//! All sockets are connected: the kernel drops what does not come from the upstream. What goes to loopback is gathered,
//! and leaves and comes in batches.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use foldhash::fast::RandomState;
use rand::{Rng, RngExt};
use slab::Slab;

use super::Registry;
use crate::{
    clock::Moment,
    sys::{Inbox, Outbox, connect_udp, is_exhaustion},
};

/// All sockets of a worker; the key of a socket is its number.
pub(super) struct Sockets {
    open: Slab<Socket>,
    /// Those with something gathered to send.
    unsent: Vec<usize>,
    slots: HashMap<SocketAddr, Vec<Option<usize>>, RandomState>,
    waiting: HashMap<(usize, u16), Waiting, RandomState>,
    first_token: u64,
    most: usize,
    swept_at: Moment,
}

struct Socket {
    socket: UdpSocket,
    /// What is gathered to be sent; there on loopback only.
    gathered: Option<Outbox>,
    opened_at: Moment,
    used_at: Moment,
    queries: u32,
    /// It is in no slot any more and closes with the last of its queries.
    is_retired: bool,
    /// How many replies are awaited.
    awaited: usize,
    /// The ids of queries that are over: a late reply to them is no forgery.
    over: Vec<u16>,
    /// How many replies had an id that no query from here has had.
    strays: u32,
}

/// The attempt that waits for a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    pub exchange: usize,
    pub attempt: usize,
}

/// For whom a datagram is.
#[derive(Debug)]
pub(super) enum Recipient {
    One(Waiting),
    /// Its id is nobody's: whoever waits here may be meant by a forger.
    Anyone,
    /// It came too late.
    Nobody,
}

impl Sockets {
    /// No socket yet; at most `most`, which are registered under tokens from `first_token` on.
    pub fn new(first_token: u64, most: usize) -> Self {
        Self {
            open: Slab::new(),
            unsent: Vec::new(),
            slots: HashMap::default(),
            waiting: HashMap::default(),
            first_token,
            most,
            swept_at: Moment::default(),
        }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.len()
    }

    /// The socket that was registered under this token, if it is still open.
    pub fn by_token(&self, token: u64) -> Option<usize> {
        let key = usize::try_from(token.checked_sub(self.first_token)?).ok()?;
        self.open.contains(key).then_some(key)
    }

    /// Finds or opens a socket on which nobody else uses this id, and notes who waits there.
    pub fn claim(
        &mut self,
        peer: SocketAddr,
        id: u16,
        waiting: Waiting,
        now: Moment,
        rng: &mut impl Rng,
        registry: &impl Registry,
    ) -> io::Result<usize> {
        let is_loopback = peer.ip().to_canonical().is_loopback();
        let slot_count = if is_loopback { LOOPBACK_SLOTS } else { SLOTS };
        for attempt in 0..MAX_TRIES {
            let slots = self.slots.entry(peer).or_insert_with(|| vec![None; slot_count]);
            // What goes by one socket goes in one batch, so the next one is for what is too much for one.
            let has_room = |slot: &Option<usize>| slot.is_none_or(|key| self.open[key].awaited < LOOPBACK_AWAITED);
            let with_room = slots.iter().position(has_room).filter(|_| is_loopback && attempt == 0);
            let slot = with_room.unwrap_or_else(|| rng.random_range(0..slots.len()));
            let key = match slots[slot] {
                Some(key) if !self.open[key].is_worn(now) => key,
                worn => {
                    let is_full = self.open.len() >= self.most;
                    let opened = match is_full {
                        true => Err(io::Error::other("too many sockets are open")),
                        false => Socket::connect(peer, is_loopback, now),
                    };
                    match opened {
                        // No room for a new one: one that is worn will do.
                        Err(error) if is_full || is_exhaustion(&error) => {
                            worn.or_else(|| slots.iter().flatten().next().copied()).ok_or(error)?
                        }
                        Err(error) => return Err(error),
                        Ok(socket) => {
                            let entry = self.open.vacant_entry();
                            registry.add(&socket.socket, self.first_token + entry.key() as u64)?;
                            let key = entry.key();
                            slots[slot] = Some(key);
                            entry.insert(socket);
                            if let Some(worn) = worn {
                                self.retire(worn);
                            }
                            key
                        }
                    }
                }
            };
            let socket = &mut self.open[key];
            let Entry::Vacant(place) = self.waiting.entry((key, id)) else { continue };
            if socket.over.contains(&id) {
                continue;
            }
            place.insert(waiting);
            socket.awaited += 1;
            socket.queries += 1;
            socket.used_at = now;
            return Ok(key);
        }
        Err(io::Error::other("too many queries are under way"))
    }

    /// Nobody waits for this id any more.
    pub fn release(&mut self, key: usize, id: u16) {
        let Some(socket) = self.open.get_mut(key) else { return };
        if self.waiting.remove(&(key, id)).is_some() {
            socket.awaited -= 1;
        }
        if !socket.is_loopback() {
            socket.over.truncate(MAX_OVER - 1);
            socket.over.insert(0, id);
        }
        self.close_if_done(key);
    }

    /// Sends a datagram that `write` writes, or gathers it for [`flush`](Self::flush). What the kernel has no room for
    /// counts as lost on the way.
    pub fn send(&mut self, key: usize, buffer: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let Some(Socket { socket, gathered, .. }) = self.open.get_mut(key) else { return Ok(()) };
        if let Some(outbox) = gathered {
            if outbox.is_full() {
                outbox.send(socket.as_fd());
            }
            if outbox.is_empty() {
                self.unsent.push(key);
            }
            write(outbox.buffer());
            outbox.queue_connected();
            return Ok(());
        }
        write(buffer);
        // A first error may be that of an earlier datagram, which this one must not suffer for.
        match socket.send(buffer).or_else(|_| socket.send(buffer)) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends what is gathered. A peer that is not there shows when its socket is read.
    pub fn flush(&mut self) {
        for key in self.unsent.drain(..) {
            if let Some(Socket { socket, gathered: Some(outbox), .. }) = self.open.get_mut(key) {
                outbox.send(socket.as_fd());
            }
        }
    }

    /// Receives datagrams, as many as are awaited or fewer. Returns how many; 0 if the socket is closed or has none.
    pub fn receive(&self, key: usize, inbox: &mut Inbox) -> io::Result<usize> {
        let Some(socket) = self.open.get(key) else { return Ok(0) };
        inbox.try_receive(socket.socket.as_fd(), socket.awaited.max(1))
    }

    /// For whom a datagram with this id is. With the third that is a forgery the socket is given up.
    pub fn recipient(&mut self, key: usize, id: u16) -> Recipient {
        if let Some(&waiting) = self.waiting.get(&(key, id)) {
            return Recipient::One(waiting);
        }
        let Some(socket) = self.open.get_mut(key).filter(|socket| !socket.is_loopback()) else {
            return Recipient::Nobody;
        };
        if socket.over.contains(&id) {
            return Recipient::Nobody;
        }
        socket.strays += 1;
        let recipient = if socket.awaited > 0 { Recipient::Anyone } else { Recipient::Nobody };
        if socket.strays == MAX_STRAYS {
            for slot in self.slots.values_mut().flatten().filter(|slot| **slot == Some(key)) {
                *slot = None;
            }
            self.retire(key);
        }
        recipient
    }

    /// Everyone who waits on a socket.
    pub fn waiting_on(&self, key: usize) -> Vec<Waiting> {
        self.waiting.iter().filter(|((socket, _), _)| *socket == key).map(|(_, waiting)| *waiting).collect()
    }

    /// Retires, once a second, the sockets that have had their time.
    pub fn sweep(&mut self, now: Moment) {
        if now.since(self.swept_at) < SWEEP_PAUSE {
            return;
        }
        self.swept_at = now;
        let mut worn = Vec::new();
        for slot in self.slots.values_mut().flatten() {
            worn.extend(slot.take_if(|key| self.open[*key].is_worn(now)));
        }
        self.slots.retain(|_, slots| slots.iter().any(Option::is_some));
        for key in worn {
            self.retire(key);
        }
    }

    fn retire(&mut self, key: usize) {
        self.open[key].is_retired = true;
        self.close_if_done(key);
    }

    /// Closing takes a socket off the poller as well.
    fn close_if_done(&mut self, key: usize) {
        if self.open[key].is_retired && self.open[key].awaited == 0 {
            self.open.remove(key);
        }
    }
}

impl Socket {
    fn connect(peer: SocketAddr, is_loopback: bool, now: Moment) -> io::Result<Self> {
        Ok(Self {
            socket: connect_udp(peer)?,
            gathered: is_loopback.then(|| Outbox::new(BATCH, QUERY_BYTES)),
            opened_at: now,
            used_at: now,
            queries: 0,
            is_retired: false,
            awaited: 0,
            over: Vec::new(),
            strays: 0,
        })
    }

    fn is_loopback(&self) -> bool {
        self.gathered.is_some()
    }

    fn is_worn(&self, now: Moment) -> bool {
        if self.is_loopback() {
            now.since(self.used_at) >= MAX_UNUSED
        } else {
            self.queries >= MAX_QUERIES || now.since(self.opened_at) >= MAX_AGE
        }
    }
}

const SLOTS: usize = 256;
/// Few, so that a batch of queries makes few batches here.
const LOOPBACK_SLOTS: usize = 4;
/// So many replies, and not more, find room in a receive buffer of the default size.
const LOOPBACK_AWAITED: usize = 128;
/// Datagrams gathered for one socket.
const BATCH: usize = 64;
/// Room for most queries.
const QUERY_BYTES: usize = 128;
const MAX_QUERIES: u32 = 8;
const MAX_AGE: Duration = Duration::from_secs(10);
/// A loopback socket that nobody has used for so long belongs to an upstream that is gone.
const MAX_UNUSED: Duration = Duration::from_secs(60);
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// How many ids of queries that are over a socket remembers.
const MAX_OVER: usize = 16;
/// So many forged replies may come by a socket.
const MAX_STRAYS: u32 = 3;
/// How often another socket is tried for an id that is taken.
const MAX_TRIES: usize = 16;

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::HashSet};

    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    /// Remembers the tokens it was given.
    #[derive(Default)]
    struct Tokens(RefCell<Vec<u64>>);

    impl Registry for Tokens {
        fn add(&self, _: &UdpSocket, token: u64) -> io::Result<()> {
            self.0.borrow_mut().push(token);
            Ok(())
        }
    }

    const WAITING: Waiting = Waiting { exchange: 0, attempt: 0 };

    fn at(millis: u64) -> Moment {
        Moment::from_millis(1_000_000 + millis)
    }

    /// Claims a socket for each id in turn, as one that is not on loopback: only the address decides that.
    fn claim(sockets: &mut Sockets, ids: std::ops::Range<u16>, is_loopback: bool, now: Moment) -> Vec<usize> {
        let mut rng = StdRng::seed_from_u64(u64::from(ids.start));
        let peer = if is_loopback { "127.0.0.1:9" } else { "192.0.2.1:9" }.parse().unwrap();
        let tokens = Tokens::default();
        ids.map(|id| sockets.claim(peer, id, WAITING, now, &mut rng, &tokens).unwrap()).collect()
    }

    #[test]
    fn a_socket_to_another_host_serves_eight_queries() {
        let mut sockets = Sockets::new(100, 10_000);
        let keys = claim(&mut sockets, 0..4000, false, at(0));
        let distinct: HashSet<usize> = keys.iter().copied().collect();
        assert!(distinct.len() >= 4000 / 8, "{}", distinct.len());
        assert!(distinct.iter().all(|key| keys.iter().filter(|of| *of == key).count() <= 8));
        assert_eq!(sockets.count(), distinct.len(), "they stay open while they are waited on");
        for (id, key) in (0..).zip(keys) {
            sockets.release(key, id);
        }
        assert!(sockets.count() <= SLOTS);
        sockets.sweep(at(10_000));
        assert_eq!(sockets.count(), 0, "ten seconds old");
    }

    #[test]
    fn loopback_sockets_are_kept() {
        let mut sockets = Sockets::new(100, 10_000);
        let keys = claim(&mut sockets, 0..4000, true, at(0));
        assert_eq!(sockets.count(), LOOPBACK_SLOTS);
        for (id, key) in (0..).zip(keys) {
            sockets.release(key, id);
        }
        sockets.sweep(at(59_000));
        assert_eq!(sockets.count(), LOOPBACK_SLOTS);
        sockets.sweep(at(60_000));
        assert_eq!(sockets.count(), 0, "a minute without use");
    }

    #[test]
    fn an_id_is_never_used_twice_on_a_socket() {
        let mut sockets = Sockets::new(0, 1);
        let key = claim(&mut sockets, 7..8, false, at(0))[0];
        let mut again = || {
            let peer = "192.0.2.1:9".parse().unwrap();
            sockets.claim(peer, 7, WAITING, at(0), &mut StdRng::seed_from_u64(1), &Tokens::default())
        };
        assert!(again().is_err(), "the only socket there may be has a query with this id");
        assert_eq!(again().unwrap_err().to_string(), "too many queries are under way");
        assert!(matches!(sockets.recipient(key, 8), Recipient::Anyone));
        sockets.release(key, 7);
        assert!(matches!(sockets.recipient(key, 7), Recipient::Nobody), "a late reply");
    }

    #[test]
    fn a_socket_whose_port_is_known_to_a_forger_is_given_up() {
        for (is_loopback, is_awaited, left) in [
            (false, false, [true, true, false, false]),
            (false, true, [true; 4]), // it closes with the last of its queries
            (true, false, [true; 4]), // nobody forges there
        ] {
            let mut sockets = Sockets::new(0, 10);
            let key = claim(&mut sockets, 7..8, is_loopback, at(0))[0];
            if !is_awaited {
                sockets.release(key, 7);
            }
            for (id, left) in (100..).zip(left) {
                assert!(matches!(sockets.recipient(key, 7), Recipient::Nobody | Recipient::One(_)), "not counted");
                let recipient = sockets.recipient(key, id);
                assert_eq!(matches!(recipient, Recipient::Anyone), is_awaited, "{id}");
                assert_eq!(sockets.count(), usize::from(left), "{id}, {is_loopback} {is_awaited}");
            }
            sockets.release(key, 7);
            assert_eq!(sockets.count(), usize::from(is_loopback));
            assert_ne!(sockets.slots.values().flatten().any(|slot| *slot == Some(key)), !is_loopback);
        }
    }

    #[test]
    fn the_number_of_sockets_is_bounded() {
        let mut sockets = Sockets::new(0, 20);
        claim(&mut sockets, 0..1000, false, at(0));
        assert_eq!(sockets.count(), 20, "worn ones go on");
        let other = "192.0.2.2:9".parse().unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        let error = sockets.claim(other, 0, WAITING, at(0), &mut rng, &Tokens::default()).unwrap_err();
        assert_eq!(error.to_string(), "too many sockets are open");
    }

    #[test]
    fn tokens_lead_to_sockets() {
        let mut sockets = Sockets::new(100, 20);
        let tokens = Tokens::default();
        let peer = "127.0.0.1:9".parse().unwrap();
        let key = sockets.claim(peer, 5, WAITING, at(0), &mut StdRng::seed_from_u64(1), &tokens).unwrap();
        let token = tokens.0.borrow()[0];
        assert_eq!(sockets.by_token(token), Some(key));
        assert!(matches!(sockets.recipient(key, 5), Recipient::One(WAITING)));
        for token in [0, 99, token + 1, u64::MAX] {
            assert_eq!(sockets.by_token(token), None, "{token}");
        }
    }
}
