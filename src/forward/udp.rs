//! Exchanges driven by a worker thread itself, on its own sockets, in the loop it is in.
//!
//! No task, no channel, no lock held: the worker starts an exchange, tells of sockets that are readable and of time that
//! has passed, and takes out what has come of it. What needs a stream comes back to be continued by [`super::run`].

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use rand::rngs::StdRng;
use slab::Slab;
use smallvec::SmallVec;

use super::{
    Action, Event, Exchange, Outcome,
    sockets::{Recipient, Sockets, Waiting},
    wheel::Wheel,
};
use crate::{
    clock::Moment,
    sys::{Inbox, Poller},
    wire::{MAX_MESSAGE_BYTES, read_u16},
};

/// The exchanges of one worker, each with a tag that says whom its outcome is for.
pub struct UdpDriver<T> {
    running: Slab<Running<T>>,
    timers: Wheel,
    sockets: Sockets,
    reports: VecDeque<Report<T>>,
    outgoing: Vec<u8>,
    /// Lent out while what came in is delivered.
    incoming: Option<Inbox>,
    limits: Limits,
    rng: StdRng,
}

/// What bounds the driver's use of memory and descriptors. Beyond it a query fails at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Exchanges at a time.
    pub exchanges: usize,
    /// Open sockets at a time.
    pub sockets: usize,
}

/// Where sockets are registered to be told when they are readable (level-triggered) or in error. They unregister
/// themselves by being closed.
pub trait Registry {
    /// Begins to report this socket as `token`.
    fn add(&self, socket: &UdpSocket, token: u64) -> io::Result<()>;
}

impl Registry for Poller {
    fn add(&self, socket: &UdpSocket, token: u64) -> io::Result<()> {
        Poller::add(self, socket.as_fd(), token)
    }
}

/// What there is to say of an exchange.
#[derive(Debug)]
pub struct Report<T> {
    /// The tag it was started with.
    pub tag: T,
    /// What has happened.
    pub news: News,
}

/// What has become of an exchange.
#[derive(Debug)]
pub enum News {
    /// A stale answer should go out now. The exchange goes on, and will report again.
    OutOfPatience,
    /// It is over.
    Done(Outcome),
    /// It has to go on over a stream; the driver has let go of it.
    NeedsStream(Box<Exchange>),
}

#[derive(Debug)]
struct Running<T> {
    tag: T,
    exchange: Exchange,
    /// When its timer is set for.
    timer_at: Moment,
    places: SmallVec<[Place; 1]>,
}

/// Where the replies to an attempt come in.
#[derive(Debug, Clone, Copy)]
struct Place {
    attempt: usize,
    socket: usize,
    id: u16,
}

impl<T: Clone> UdpDriver<T> {
    /// A driver without exchanges, whose sockets are registered under tokens from `first_token` on.
    pub fn new(first_token: u64, limits: Limits, rng: StdRng) -> Self {
        Self {
            running: Slab::new(),
            timers: Wheel::new(),
            sockets: Sockets::new(first_token, limits.sockets),
            reports: VecDeque::new(),
            outgoing: Vec::with_capacity(512),
            incoming: Some(Inbox::new(BATCH, MAX_MESSAGE_BYTES)),
            limits,
            rng,
        }
    }

    /// How many exchanges are under way.
    pub fn in_flight(&self) -> usize {
        self.running.len()
    }

    /// How many sockets are open.
    pub fn open_sockets(&self) -> usize {
        self.sockets.count()
    }

    /// Takes on an exchange. If it cannot go on here, or there is no room, the report of that is there at once.
    pub fn start(&mut self, tag: T, exchange: Exchange, now: Moment, registry: &impl Registry) {
        if self.running.len() >= self.limits.exchanges {
            let outcome = exchange.give_up("too many queries are under way");
            self.reports.push_back(Report { tag, news: News::Done(outcome) });
            return;
        }
        let key = self.running.insert(Running { tag, exchange, timer_at: NEVER, places: SmallVec::new() });
        self.act(key, now, registry);
    }

    /// Reads what has come in on the socket of this token.
    pub fn readable(&mut self, token: u64, now: Moment, registry: &impl Registry) {
        let Some(socket) = self.sockets.by_token(token) else { return };
        let Some(mut inbox) = self.incoming.take() else { return };
        let serial = self.sockets.serial(socket);
        match self.sockets.receive(socket, &mut inbox) {
            // If there are more, the socket is readable still.
            Ok(received) => {
                for datagram in (0..received).filter_map(|slot| inbox.get(slot)) {
                    // What was delivered may have closed it, and another may have its number.
                    if self.sockets.serial(socket) != serial {
                        break;
                    }
                    self.deliver(socket, datagram.payload, now, registry);
                }
            }
            Err(error) => {
                for waiting in self.sockets.waiting_on(socket) {
                    self.tell(waiting.exchange, Event::of_error(waiting.attempt, &error), now, registry);
                }
            }
        }
        self.incoming = Some(inbox);
    }

    /// Sends what has been gathered: to be called when all that has come in is taken in.
    pub fn flush(&mut self) {
        self.sockets.flush();
    }

    /// When to call [`Self::expire`] at the latest.
    pub fn wake_at(&self) -> Option<Moment> {
        self.timers.next()
    }

    /// Tells the exchanges that wait for a time that it has come.
    pub fn expire(&mut self, now: Moment, registry: &impl Registry) {
        while let Some(key) = self.timers.take_due(now) {
            let Some(running) = self.running.get_mut(key) else { continue };
            running.timer_at = NEVER;
            if running.exchange.wake_at() <= now {
                self.tell(key, Event::Time, now, registry);
            } else {
                self.set_timer(key, now);
            }
        }
        self.sockets.sweep(now);
    }

    /// Ends all exchanges, and says whom their outcomes were for. What is in the midst of being told may not be sound.
    pub fn into_tags(self) -> impl Iterator<Item = T> {
        let reports = self.reports.into_iter().map(|report| report.tag);
        reports.chain(self.running.into_iter().map(|(_, running)| running.tag))
    }

    /// Takes the next report.
    pub fn next_report(&mut self) -> Option<Report<T>> {
        self.reports.pop_front()
    }

    fn deliver(&mut self, socket: usize, wire: &[u8], now: Moment, registry: &impl Registry) {
        let reply = |attempt| Event::Reply { attempt, wire };
        match self.sockets.recipient(socket, read_u16(wire, 0).unwrap_or(0)) {
            Recipient::One(Waiting { exchange, attempt }) => self.tell(exchange, reply(attempt), now, registry),
            Recipient::Anyone => {
                for Waiting { exchange, attempt } in self.sockets.waiting_on(socket) {
                    self.tell(exchange, reply(attempt), now, registry);
                }
            }
            Recipient::Nobody => {}
        }
    }

    fn tell(&mut self, key: usize, event: Event<'_>, now: Moment, registry: &impl Registry) {
        if let Some(running) = self.running.get_mut(key) {
            running.exchange.handle(event, now, &mut self.rng);
            self.act(key, now, registry);
        }
    }

    /// Does what the exchange wants done.
    fn act(&mut self, key: usize, now: Moment, registry: &impl Registry) {
        while let Some(action) = self.running.get_mut(key).and_then(|running| running.exchange.next_action()) {
            match action {
                Action::SendUdp { attempt, upstream } => {
                    let peer = upstream.url().address.resolve();
                    let sent = peer.and_then(|peer| self.send(key, attempt, peer, now, registry));
                    if let (Err(error), Some(running)) = (sent, self.running.get_mut(key)) {
                        running.exchange.handle(Event::of_error(attempt, &error), now, &mut self.rng);
                    }
                }
                Action::CloseUdp { attempt } => self.close(key, attempt),
                Action::OutOfPatience => {
                    let tag = self.running[key].tag.clone();
                    self.reports.push_back(Report { tag, news: News::OutOfPatience });
                }
                Action::SendStream { .. } => {
                    let mut running = self.let_go(key);
                    running.exchange.put_back(action);
                    let news = News::NeedsStream(Box::new(running.exchange));
                    self.reports.push_back(Report { tag: running.tag, news });
                    return;
                }
                Action::Finish(outcome) => {
                    let running = self.let_go(key);
                    self.reports.push_back(Report { tag: running.tag, news: News::Done(outcome) });
                    return;
                }
            }
        }
        self.set_timer(key, now);
    }

    fn send(
        &mut self,
        key: usize,
        attempt: usize,
        peer: SocketAddr,
        now: Moment,
        registry: &impl Registry,
    ) -> io::Result<()> {
        let Running { exchange, places, .. } = &mut self.running[key];
        let socket = match places.iter().find(|place| place.attempt == attempt) {
            Some(place) => place.socket,
            None => {
                let (id, waiting) = (exchange.id(attempt), Waiting { exchange: key, attempt });
                let socket = self.sockets.claim(peer, id, waiting, now, &mut self.rng, registry)?;
                places.push(Place { attempt, socket, id });
                socket
            }
        };
        self.sockets.send(socket, &mut self.outgoing, |out| exchange.write_query(attempt, out))
    }

    fn close(&mut self, key: usize, attempt: usize) {
        let places = &mut self.running[key].places;
        if let Some(at) = places.iter().position(|place| place.attempt == attempt) {
            let place = places.swap_remove(at);
            self.sockets.release(place.socket, place.id);
        }
    }

    fn let_go(&mut self, key: usize) -> Running<T> {
        let running = self.running.remove(key);
        self.timers.cancel(key);
        for place in &running.places {
            self.sockets.release(place.socket, place.id);
        }
        running
    }

    /// Sets a timer unless one is set that comes early enough; that one will set the next.
    fn set_timer(&mut self, key: usize, now: Moment) {
        let Some(running) = self.running.get_mut(key) else { return };
        let wake_at = running.exchange.wake_at();
        if wake_at < running.timer_at {
            running.timer_at = wake_at;
            self.timers.set(key, wake_at, now);
        }
    }
}

/// Datagrams received with one call.
const BATCH: usize = 64;
const NEVER: Moment = Moment::from_millis(u64::MAX);

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
