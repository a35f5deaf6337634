//! The UDP sockets of one worker towards its upstreams, and who waits on them for what.
//!
//! A forger has to guess port and id. So a query to another host has a socket of its own, with a random port, as BIND gives
//! it one: the port says nothing of any other query, and is given up with the last reply. The descriptor is kept for a while,
//! and gets another port when it is connected again, for a new one would cost a query half as much again. Only if there may be no more sockets
//! do queries share those that there are, each one chosen at random; three replies with ids that nobody has used there mean
//! that its port is known to a forger, and then no further query is sent by it. On loopback nobody can forge, and a few
//! sockets serve for as long as they are used, each once those before it are busy.
//!
//! All sockets are connected: the kernel drops what does not come from the upstream. What goes to loopback is gathered,
//! and leaves and comes in batches.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use foldhash::fast::RandomState;
use rand::{Rng, RngExt, seq::IteratorRandom};
use slab::Slab;

use super::Registry;
use crate::{
    clock::Moment,
    sys::{Inbox, Outbox, connect_udp, disconnect_udp, is_exhaustion},
};

/// All sockets of a worker; the key of a socket is its number.
pub(super) struct Sockets {
    open: Slab<Socket>,
    /// Those with something gathered to send.
    unsent: Vec<usize>,
    /// Those without a port, to be connected again.
    idle: Vec<usize>,
    /// Those to upstreams on loopback.
    slots: HashMap<SocketAddr, Vec<Option<usize>>, RandomState>,
    waiting: HashMap<(usize, u16), Waiting, RandomState>,
    first_token: u64,
    most: usize,
    swept_at: Moment,
    /// How many were ever opened.
    opened: u64,
}

struct Socket {
    socket: UdpSocket,
    peer: SocketAddr,
    /// Tells it from one that had its number before.
    serial: u64,
    /// What is gathered to be sent; there on loopback only.
    gathered: Option<Outbox>,
    used_at: Moment,
    /// No further query is sent by it.
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
            idle: Vec::new(),
            slots: HashMap::default(),
            waiting: HashMap::default(),
            first_token,
            most,
            swept_at: Moment::default(),
            opened: 0,
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

    /// Tells the socket that has this number, and its port, from those before; `None` if it has no port.
    pub fn serial(&self, key: usize) -> Option<u64> {
        self.open.get(key).filter(|socket| !socket.is_idle()).map(|socket| socket.serial)
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
        let key = if peer.ip().to_canonical().is_loopback() {
            self.loopback_socket(peer, id, now, rng, registry)?
        } else {
            match self.open(peer, false, now, registry) {
                Ok(key) => key,
                Err(error) if self.is_full() || is_exhaustion(&error) => self.shared_socket(peer, id, rng)?,
                Err(error) => return Err(error),
            }
        };
        let socket = &mut self.open[key];
        self.waiting.insert((key, id), waiting);
        socket.awaited += 1;
        socket.used_at = now;
        Ok(key)
    }

    /// One of the few to an upstream on loopback.
    fn loopback_socket(
        &mut self,
        peer: SocketAddr,
        id: u16,
        now: Moment,
        rng: &mut impl Rng,
        registry: &impl Registry,
    ) -> io::Result<usize> {
        for attempt in 0..MAX_TRIES {
            let slots = self.slots.entry(peer).or_insert_with(|| vec![None; LOOPBACK_SLOTS]);
            // What goes by one socket goes in one batch, so the next one is for what is too much for one.
            let has_room = |slot: &Option<usize>| slot.is_none_or(|key| self.open[key].awaited < LOOPBACK_AWAITED);
            let with_room = slots.iter().position(has_room).filter(|_| attempt == 0);
            let slot = with_room.unwrap_or_else(|| rng.random_range(0..slots.len()));
            let (known, other) = (slots[slot], slots.iter().flatten().next().copied());
            let key = match known {
                Some(key) if !self.open[key].is_unused(now) => key,
                _ => match self.open(peer, true, now, registry) {
                    Ok(key) => {
                        if let Some(unused) = self.slots.get_mut(&peer).and_then(|slots| slots[slot].replace(key)) {
                            self.retire(unused);
                        }
                        key
                    }
                    // No room for a new one: one that is there will do.
                    Err(error) if self.is_full() || is_exhaustion(&error) => known.or(other).ok_or(error)?,
                    Err(error) => return Err(error),
                },
            };
            if self.may_use(key, id) {
                return Ok(key);
            }
        }
        Err(io::Error::other(TOO_MANY_QUERIES))
    }

    /// One to this upstream, at random, that has room for the id.
    fn shared_socket(&self, peer: SocketAddr, id: u16, rng: &mut impl Rng) -> io::Result<usize> {
        let may_share = |key: usize| {
            let leads_there = |socket: &&Socket| socket.peer == peer && !socket.is_idle() && !socket.is_retired;
            self.open.get(key).filter(leads_there).is_some() && self.may_use(key, id)
        };
        // Under a flood most are to one upstream, and the slab has no gaps.
        let at_random = (0..MAX_TRIES).map(|_| rng.random_range(0..self.open.capacity().max(1)));
        if let Some(key) = at_random.into_iter().find(|&key| may_share(key)) {
            return Ok(key);
        }
        let others = self.open.iter().map(|(key, _)| key).filter(|&key| may_share(key));
        let has_any = self.open.iter().any(|(_, socket)| socket.peer == peer && !socket.is_idle());
        others.choose(rng).ok_or_else(|| io::Error::other(if has_any { TOO_MANY_QUERIES } else { TOO_MANY_SOCKETS }))
    }

    fn open(
        &mut self,
        peer: SocketAddr,
        is_loopback: bool,
        now: Moment,
        registry: &impl Registry,
    ) -> io::Result<usize> {
        self.opened += 1;
        if !is_loopback && let Some(key) = self.reconnect(peer) {
            return Ok(key);
        }
        if self.is_full() {
            // The idle ones may be of another address family.
            let idle = self.idle.pop().ok_or_else(|| io::Error::other(TOO_MANY_SOCKETS))?;
            self.open.remove(idle);
        }
        let socket = Socket::connect(peer, is_loopback, self.opened, now)?;
        let entry = self.open.vacant_entry();
        let key = entry.key();
        registry.add(&socket.socket, self.first_token + key as u64)?;
        entry.insert(socket);
        Ok(key)
    }

    /// Connects one that is idle.
    fn reconnect(&mut self, peer: SocketAddr) -> Option<usize> {
        let is_alike = |key: &usize| self.open[*key].peer.is_ipv4() == peer.is_ipv4();
        let key = self.idle.swap_remove(self.idle.iter().rposition(is_alike)?);
        let socket = &mut self.open[key];
        if socket.socket.connect(peer).is_err() {
            // A new one will say why.
            self.open.remove(key);
            return None;
        }
        (socket.peer, socket.serial, socket.strays) = (peer, self.opened, 0);
        socket.over.clear();
        Some(key)
    }

    fn is_full(&self) -> bool {
        self.open.len() >= self.most
    }

    /// Whether no query with this id is, or was lately, on a socket.
    fn may_use(&self, key: usize, id: u16) -> bool {
        !self.waiting.contains_key(&(key, id)) && !self.open[key].over.contains(&id)
    }

    /// Nobody waits for this id any more.
    pub fn release(&mut self, key: usize, id: u16) {
        let Some(socket) = self.open.get_mut(key) else { return };
        if self.waiting.remove(&(key, id)).is_some() {
            socket.awaited -= 1;
        }
        if !socket.is_loopback() && socket.awaited > 0 {
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

    /// For whom a datagram with this id is. After the third that is a forgery no query is sent by the socket any more.
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
        socket.is_retired |= socket.strays == MAX_STRAYS;
        recipient
    }

    /// Everyone who waits on a socket.
    pub fn waiting_on(&self, key: usize) -> Vec<Waiting> {
        self.waiting.iter().filter(|((socket, _), _)| *socket == key).map(|(_, waiting)| *waiting).collect()
    }

    /// Closes, once a second, the sockets that nobody uses any more.
    pub fn sweep(&mut self, now: Moment) {
        if now.since(self.swept_at) < SWEEP_PAUSE {
            return;
        }
        self.swept_at = now;
        let open = &mut self.open;
        self.idle.retain(|&key| {
            let is_kept = now.since(open[key].used_at) < MAX_IDLE_AGE;
            if !is_kept {
                open.remove(key);
            }
            is_kept
        });
        let mut unused = Vec::new();
        for slot in self.slots.values_mut().flatten() {
            unused.extend(slot.take_if(|key| self.open[*key].is_unused(now)));
        }
        self.slots.retain(|_, slots| slots.iter().any(Option::is_some));
        for key in unused {
            self.retire(key);
        }
    }

    fn retire(&mut self, key: usize) {
        self.open[key].is_retired = true;
        self.close_if_done(key);
    }

    /// Closing takes a socket off the poller as well.
    fn close_if_done(&mut self, key: usize) {
        let socket = &self.open[key];
        if socket.awaited > 0 || socket.is_loopback() && !socket.is_retired {
            return;
        }
        if !socket.is_retired && self.idle.len() < MAX_IDLE && socket.give_up_port() {
            self.idle.push(key);
        } else {
            self.open.remove(key);
        }
    }
}

impl Socket {
    fn connect(peer: SocketAddr, is_loopback: bool, serial: u64, now: Moment) -> io::Result<Self> {
        Ok(Self {
            socket: connect_udp(peer)?,
            peer,
            serial,
            gathered: is_loopback.then(|| Outbox::new(BATCH, QUERY_BYTES)),
            used_at: now,
            is_retired: false,
            awaited: 0,
            over: Vec::new(),
            strays: 0,
        })
    }

    fn is_loopback(&self) -> bool {
        self.gathered.is_some()
    }

    /// Whether it waits to be connected again.
    fn is_idle(&self) -> bool {
        self.awaited == 0 && !self.is_loopback()
    }

    /// Takes it from its port, with what has come in there. If that fails, it is to be closed.
    fn give_up_port(&self) -> bool {
        // From then on nothing comes in, and what was there is little.
        disconnect_udp(&self.socket).is_ok()
            && (0..MAX_LATE)
                .any(|_| self.socket.recv(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock))
    }

    /// Whether a loopback socket belongs to an upstream that is gone.
    fn is_unused(&self, now: Moment) -> bool {
        now.since(self.used_at) >= MAX_UNUSED
    }
}

const TOO_MANY_QUERIES: &str = "too many queries are under way";
const TOO_MANY_SOCKETS: &str = "too many sockets are open";
/// Few, so that a batch of queries makes few batches here.
const LOOPBACK_SLOTS: usize = 4;
/// So many replies, and not more, find room in a receive buffer of the default size.
const LOOPBACK_AWAITED: usize = 128;
/// Datagrams gathered for one socket.
const BATCH: usize = 64;
/// Room for most queries.
const QUERY_BYTES: usize = 128;
/// A loopback socket that nobody has used for so long belongs to an upstream that is gone.
const MAX_UNUSED: Duration = Duration::from_secs(60);
/// So many may wait to be connected again, and for so long.
const MAX_IDLE: usize = 256;
const MAX_IDLE_AGE: Duration = Duration::from_secs(10);
/// A socket that has more than this in its buffer is closed.
const MAX_LATE: usize = 8;
const SWEEP_PAUSE: Duration = Duration::from_secs(1);
/// How many ids of queries that are over a socket remembers.
const MAX_OVER: usize = 16;
/// So many forged replies may come by a socket.
const MAX_STRAYS: u32 = 3;
/// How often another socket is tried for an id that is taken.
const MAX_TRIES: usize = 16;

#[cfg(test)]
#[path = "sockets_tests.rs"]
mod tests;
