//! The loop of one worker: receive a batch, reply, drive the misses.
//!
//! A worker is a thread with a UDP socket of its own on every listener, and upstream sockets of its own. Hits are replied to as
//! they are read, in the same batch. A miss starts an exchange, whose datagrams leave by the worker's own sockets
//! and come back to the same wait; its response then goes to all who wait for it, whichever worker received them. Only
//! what needs a stream is handed to a task.
//!
//! A worker does not end before it is told to. After a panic it goes on where it was: the query it had at hand is
//! answered SERVFAIL, the rest of the batch as ever. If it was driving exchanges, or a system call has failed, what depends
//! on that is made anew and those who waited for it are told.

use std::{
    io, mem,
    net::UdpSocket,
    ops::Range,
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};

use super::{
    Desk, Face, Incoming, Taken,
    departure::{MOST_WAIT, Reply},
    face::{HeldBack, STOPPING},
};
use crate::{
    clock::Moment,
    forward::{Limits, News, UdpDriver},
    metrics::{Cells, Dropped, Transport},
    resolve::{Job, LOST, Next, Outgoing, Settled, Waiter, Way},
    sys::{self, Datagram, Inbox, Outbox, Poller, Waker},
    wire::{self, Rcode, Response, Ttls},
};

/// One thread that serves UDP.
struct Worker<I> {
    face: Arc<Face>,
    cells: Arc<Cells>,
    commands: mpsc::Receiver<Command>,
    waker: Waker,
    poller: Poller,
    listeners: Vec<Listener>,
    inbox: Inbox,
    outbox: Outbox,
    driver: UdpDriver<Box<Job>>,
    rng: StdRng,
    now: Moment,
    /// When to end, once told to.
    ends: Option<Moment>,
    /// The listeners that are to be served no more.
    leaving: Vec<u32>,
    /// Sees each query before anything else does.
    inspect: I,
    /// What of the inbox is not served yet.
    batch: Range<usize>,
    /// The place of the listener that the batch came by, or that the gathered replies leave by.
    current: Option<usize>,
    /// Whether the driver is at work.
    driving: bool,
}

/// How a worker is told things.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    waker: Waker,
}

/// What a worker can be told.
enum Command {
    Add(Listener),
    /// Say that what was told before is taken in.
    Confirm(mpsc::Sender<()>),
    Remove(u32),
    Stop(Duration),
}

#[derive(Clone)]
struct Listener {
    number: u32,
    socket: Arc<UdpSocket>,
}

/// Starts a worker, which ends when it is told to. `inspect` sees each query first: for tests, what it does nothing in costs
/// nothing.
pub fn spawn(
    number: usize,
    face: Arc<Face>,
    cells: Arc<Cells>,
    inspect: impl FnMut(&[u8]) + Send + 'static,
) -> io::Result<(Handle, thread::JoinHandle<()>)> {
    let (sender, commands) = mpsc::channel();
    let waker = Waker::new()?;
    let poller = Poller::new()?;
    poller.add(waker.as_fd(), WAKER_TOKEN)?;
    let handle = Handle { commands: sender, waker: waker.clone() };
    let thread = thread::Builder::new().name(format!("{WORKER}{number}")).spawn(move || {
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let driver = driver(face.config().workers, &mut rng);
        let mut worker = Worker {
            face,
            cells,
            commands,
            waker,
            poller,
            listeners: Vec::new(),
            inbox: Inbox::new(BATCH, QUERY_BYTES),
            outbox: Outbox::new(BATCH, REPLY_BYTES),
            driver,
            rng,
            now: Moment::now(),
            ends: None,
            leaving: Vec::new(),
            inspect,
            batch: 0..0,
            current: None,
            driving: false,
        };
        // Each attempt to recover tries less than the last, so that one ends well.
        let mut outcome = caught(|| worker.run());
        while let Err(error) = outcome {
            worker.cells.worker_failure();
            if let Some(error) = &error {
                tracing::error!(%error, "a worker has failed, and begins anew");
                thread::sleep(FAILURE_PAUSE);
            }
            outcome = caught(|| {
                worker.recover(error.is_some())?;
                worker.run()
            });
        }
    })?;
    Ok((handle, thread))
}

/// The error of a call, or none for a panic, which is logged where it happens.
fn caught(call: impl FnOnce() -> io::Result<()>) -> Result<(), Option<io::Error>> {
    // What a panic may leave unsound is made anew by `recover`.
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| None)?.map_err(Some)
}

/// All workers together have their share of the descriptors; there are four of them unless more are configured.
fn driver(workers: usize, rng: &mut StdRng) -> UdpDriver<Box<Job>> {
    let sockets = MOST_UPSTREAM_SOCKETS.min(sys::descriptors_for(sys::Use::Workers) / workers.max(4));
    let limits = Limits { exchanges: MOST_EXCHANGES, sockets };
    UdpDriver::new(FIRST_UPSTREAM_TOKEN, limits, StdRng::from_rng(rng))
}

impl<I: FnMut(&[u8])> Worker<I> {
    fn run(&mut self) -> io::Result<()> {
        let mut tokens = Vec::new();
        loop {
            if self.ends.is_some_and(|ends| self.driver.in_flight() == 0 || self.now >= ends) {
                self.abandon(STOPPING);
                return Ok(());
            }
            let wake_at = [self.driver.wake_at(), self.ends].into_iter().flatten().min();
            self.poller.wait(&mut tokens, wake_at.map(|at| at.since(self.now)))?;
            self.now = Moment::now();
            // Who asked first has waited longest: what upstreams have said goes out before new queries are read.
            for &token in tokens.iter().filter(|token| **token >= FIRST_UPSTREAM_TOKEN) {
                self.drive(|driver, now, poller| driver.readable(token, now, poller));
            }
            self.drive(UdpDriver::expire);
            self.take_reports();
            self.drive(|driver, _, _| driver.flush());
            for &token in tokens.iter().filter(|token| **token < FIRST_UPSTREAM_TOKEN) {
                if token == WAKER_TOKEN {
                    self.obey()?;
                } else if let Some(at) = self.listeners.iter().position(|l| u64::from(l.number) == token) {
                    self.serve(at)?;
                }
            }
            self.drive(|driver, _, _| driver.flush());
        }
    }

    /// Lets the driver work: it is not sound if it panics.
    fn drive(&mut self, work: impl FnOnce(&mut UdpDriver<Box<Job>>, Moment, &Poller)) {
        self.driving = true;
        work(&mut self.driver, self.now, &self.poller);
        self.driving = false;
    }

    /// Makes sound again what a panic or, if it `has_failed`, an error has left.
    fn recover(&mut self, has_failed: bool) -> io::Result<()> {
        let at_hand = self.batch.start.checked_sub(1);
        // Sent only once: this may be what panics.
        let mut gathered = mem::replace(&mut self.outbox, Outbox::new(BATCH, REPLY_BYTES));
        if let Some(listener) = self.current.and_then(|at| self.listeners.get(at)) {
            let is_query = |datagram: &Datagram<'_>| datagram.payload.len() >= 12 && datagram.payload[2] & 0x80 == 0;
            if let Some(datagram) = at_hand.and_then(|slot| self.inbox.get(slot)).filter(is_query)
                && !gathered.is_full()
            {
                wire::write_error(datagram.payload, Rcode::SERVFAIL, gathered.buffer());
                gathered.queue(datagram.peer, datagram.local);
                self.cells.reply(Transport::Udp, Rcode::SERVFAIL.0);
            }
            send(&mut gathered, &listener.socket, &self.cells);
        }
        if mem::take(&mut self.driving) || has_failed {
            self.poller = Poller::new()?;
            self.poller.add(self.waker.as_fd(), WAKER_TOKEN)?;
            for listener in &self.listeners {
                self.poller.add(listener.socket.as_fd(), listener.number.into())?;
            }
            self.abandon(LOST);
        }
        self.now = Moment::now();
        if let Some(at) = self.current.take().filter(|at| *at < self.listeners.len() && !self.batch.is_empty()) {
            self.serve(at)?;
        }
        // It may have been told more when it panicked.
        self.waker.wake();
        self.leave()
    }

    /// Tells all who wait for an upstream that it will not be; those exchanges end.
    fn abandon(&mut self, why: &str) {
        let ended = mem::replace(&mut self.driver, driver(self.face.config().workers, &mut self.rng));
        for job in ended.into_tags() {
            self.face.deliver(self.face.resolver().abandon(&job, why, self.now));
        }
    }

    fn obey(&mut self) -> io::Result<()> {
        self.waker.clear();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Add(listener) => {
                    self.poller.add(listener.socket.as_fd(), listener.number.into())?;
                    self.listeners.push(listener);
                }
                Command::Confirm(done) => {
                    // Nobody may wait for it any more.
                    let _ = done.send(());
                }
                Command::Remove(number) => self.leaving.push(number),
                Command::Stop(patience) => {
                    self.leaving.extend(self.listeners.iter().map(|listener| listener.number));
                    self.ends = Some(self.now + patience);
                }
            }
            self.leave()?;
        }
        Ok(())
    }

    /// Lets the listeners go that are to be served no more.
    fn leave(&mut self) -> io::Result<()> {
        while let Some(&number) = self.leaving.last() {
            if let Some(at) = self.listeners.iter().position(|l| l.number == number) {
                self.let_go(at)?;
            }
            self.leaving.pop();
        }
        Ok(())
    }

    /// Serves what is queued at a listener, and then no more.
    fn let_go(&mut self, at: usize) -> io::Result<()> {
        self.serve(at)?;
        self.current = None;
        let listener = self.listeners.remove(at);
        self.poller.remove(listener.socket.as_fd())
    }

    /// Takes in what waits at a listener, a few batches at most, for the others shall have their turn.
    fn serve(&mut self, at: usize) -> io::Result<()> {
        let number = self.listeners[at].number;
        let config = self.face.config();
        let is_limited = config.rate_limit.is_on();
        for _ in 0..BATCHES_PER_TURN {
            self.current = Some(at);
            // After a panic there may be a rest, and more in the socket.
            let mut received = self.inbox.room();
            if self.batch.is_empty() {
                received = self.inbox.receive(self.listeners[at].socket.as_fd())?;
                self.cells.received(Transport::Udp, received);
                self.batch = 0..received;
            }
            while let Some(slot) = self.batch.next() {
                let datagram = self.inbox.get(slot).filter(|datagram| is_answerable(datagram.peer.port()));
                let Some(datagram) = datagram else {
                    self.cells.dropped(Dropped::Port);
                    continue;
                };
                (self.inspect)(datagram.payload);
                let (peer, local) = (datagram.peer, datagram.local);
                let way = Way::Datagram { listener: number, peer, local };
                let waiter = |asker, question: &[u8]| Waiter { asker, question: question.into(), way };
                let client = self.face.datagram_client(peer.ip(), &config);
                let incoming = Incoming { wire: datagram.payload, client, peer: peer.ip(), transport: Transport::Udp };
                let mut desk = Desk { now: self.now, rng: &mut self.rng, cells: &self.cells };
                if is_limited {
                    let out = self.outbox.buffer();
                    match self.face.hold_back(incoming, &config, &mut desk, out) {
                        HeldBack::Nothing => {}
                        HeldBack::Reply => {
                            self.outbox.queue(peer, local);
                            continue;
                        }
                        HeldBack::All => continue,
                    }
                }
                let exchange = match self.face.take(incoming, waiter, &mut desk, self.outbox.buffer()) {
                    Taken::Reply(refresh) => {
                        self.outbox.queue(peer, local);
                        refresh
                    }
                    Taken::Exchange(exchange, job) => Some((exchange, job)),
                    Taken::Wait(pending, job) => {
                        self.face.drive(Next::Wait(pending, job));
                        None
                    }
                    Taken::Joined | Taken::Dropped | Taken::NoQuery => None,
                };
                if let Some((exchange, job)) = exchange {
                    self.drive(|driver, now, poller| driver.start(job, exchange, now, poller));
                }
            }
            self.batch = 0..0;
            self.send_gathered();
            self.take_reports();
            if received < self.inbox.room() {
                break;
            }
        }
        Ok(())
    }

    /// Brings what has come of exchanges to where it belongs.
    fn take_reports(&mut self) {
        self.current = None;
        while let Some(report) = self.driver.next_report() {
            let job = report.tag;
            match report.news {
                News::OutOfPatience => {
                    let settled = self.face.resolver().lose_patience(&job, self.now);
                    self.deliver(settled);
                }
                News::NeedsStream(exchange) => self.face.drive(Next::Exchange(*exchange, job)),
                News::Done(outcome) => match self.face.resolver().finish(job, outcome, self.now, &mut self.rng) {
                    Next::Settled(settled) => self.deliver(settled),
                    Next::Exchange(exchange, job) => {
                        self.drive(|driver, now, poller| driver.start(job, exchange, now, poller));
                    }
                    wait @ Next::Wait(..) => self.face.drive(wait),
                },
            }
        }
        self.send_gathered();
    }

    /// Replies to all who wait: those of UDP from the own socket of the listener that they asked. Replies are gathered
    /// for the current one, and sent when another has its turn.
    fn deliver(&mut self, settled: Outgoing) {
        let mut elsewhere = Outgoing::new();
        for mut settled in settled {
            let Settled { response, ttls, waiters } = &mut settled;
            waiters.retain(|waiter| !self.reply(response, *ttls, waiter));
            if !settled.waiters.is_empty() {
                elsewhere.push(settled);
            }
        }
        if !elsewhere.is_empty() {
            self.face.deliver(elsewhere);
        }
    }

    /// Replies to somebody who waits; false if that is not for this worker to do.
    fn reply(&mut self, response: &Response, ttls: Ttls, waiter: &Waiter) -> bool {
        let Way::Datagram { listener, peer, local } = waiter.way else { return false };
        let is_other = self.current.is_none_or(|at| self.listeners[at].number != listener);
        if is_other || self.outbox.is_full() {
            self.send_gathered();
        }
        if is_other {
            self.current = self.listeners.iter().position(|own| own.number == listener);
        }
        if self.current.is_none() {
            return false;
        }
        let is_due = self.face.may_depart(&waiter.asker, peer.ip(), self.now);
        let mut held = Vec::new();
        let out = if is_due { self.outbox.buffer() } else { &mut held };
        wire::write_reply(response.view(), &waiter.asker, &waiter.question, ttls, &mut self.rng, out);
        let rcode = response.rcode().0;
        if is_due {
            self.cells.reply(Transport::Udp, rcode);
            self.outbox.queue(peer, local);
        } else {
            let expires = self.now + MOST_WAIT;
            self.face.hold(Reply { message: held, rcode, listener, peer, local, expires });
        }
        true
    }

    /// Sends the replies that are gathered for the current listener.
    fn send_gathered(&mut self) {
        if let Some(at) = self.current {
            send(&mut self.outbox, &self.listeners[at].socket, &self.cells);
        }
    }
}

/// Whether what comes from this port may be replied to. Nobody waits at port 0, to which the kernel sends nothing; and
/// echo, daytime, qotd, chargen and time answer whatever they are sent, so that a forged query would begin a loop.
fn is_answerable(port: u16) -> bool {
    !matches!(port, 0 | 7 | 13 | 17 | 19 | 37)
}

fn send(outbox: &mut Outbox, socket: &UdpSocket, cells: &Cells) {
    if !outbox.is_empty() {
        for _ in 0..outbox.send(socket.as_fd()).dropped {
            cells.unsent();
        }
    }
}

impl Handle {
    /// Serve this socket of a listener as well.
    pub fn add(&self, number: u32, socket: Arc<UdpSocket>) {
        self.tell(Command::Add(Listener { number, socket }));
    }

    /// Waits until the worker has taken in what it was told, and says whether it has: not longer than a moment, for it may
    /// be at work.
    pub fn settle(&self) -> bool {
        let (done, heard) = mpsc::channel();
        self.tell(Command::Confirm(done));
        heard.recv_timeout(SETTLING).is_ok()
    }

    /// Serve this listener no more, but for what is queued.
    pub fn remove(&self, number: u32) {
        self.tell(Command::Remove(number));
    }

    /// Reply to what is queued and to those who wait, a failure to those who still wait after `patience`, then end.
    pub fn stop(&self, patience: Duration) {
        self.tell(Command::Stop(patience));
    }

    fn tell(&self, command: Command) {
        // A worker that has ended needs no telling.
        if self.commands.send(command).is_ok() {
            self.waker.wake();
        }
    }
}

/// Datagrams received, and replied to, with one system call.
const BATCH: usize = 64;
/// Batches from one listener before the others have their turn.
const BATCHES_PER_TURN: usize = 8;
/// Longer queries are cut, and so malformed: a query holds one name and an OPT record.
const QUERY_BYTES: usize = 4096;
/// Room for most replies; the buffers grow for larger ones.
const REPLY_BYTES: usize = 1500;
/// Exchanges of one worker: as many as there may be clients that wait for them.
const MOST_EXCHANGES: usize = 1 << 20;
/// Upstream sockets of one worker: each query to another host has one, as long as there are any left.
const MOST_UPSTREAM_SOCKETS: usize = 4096;
/// Between a system call that has failed and the next.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// How long a worker may take to take in what it is told.
const SETTLING: Duration = Duration::from_secs(1);
/// What the names of the workers' threads begin with.
pub const WORKER: &str = "udp-";
/// Listeners are reported by their numbers, which lie below.
const WAKER_TOKEN: u64 = 1 << 32;
const FIRST_UPSTREAM_TOKEN: u64 = WAKER_TOKEN + 1;

#[cfg(test)]
#[path = "udp_tests.rs"]
mod tests;
