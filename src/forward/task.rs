//! An exchange driven to its end on tokio: for upstreams reached by streams, and for what has to wait anyway.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::mpsc,
    task::{AbortHandle, JoinSet},
};

use super::{Action, Event, Exchange, Group, Options, Outcome, Upstream};
use crate::{
    clock::Moment,
    sys::{self, Use},
    wire::{Class, MAX_MESSAGE_BYTES, Name, Question, Rtype},
};

/// Drives an exchange to its end, on a new socket for every upstream asked by UDP, each with a random port.
///
/// An exchange that a worker could not finish is continued; its datagrams in flight are forgotten, not so what was
/// learned from it. `out_of_patience` is called each time that stale answers should go out.
pub async fn run(mut exchange: Exchange, mut out_of_patience: impl FnMut() + Send) -> Outcome {
    let (reports, mut reported) = mpsc::channel(16);
    let mut attempts = Attempts { reports, running: JoinSet::new(), sockets: Vec::new(), buffer: Vec::new() };
    loop {
        while let Some(action) = exchange.next_action() {
            match action {
                Action::SendUdp { attempt, upstream } => {
                    if let Err(error) = attempts.send_udp(attempt, &upstream, &exchange).await {
                        exchange.handle(Event::of_error(attempt, &error), Moment::now(), &mut rand::rng());
                    }
                }
                Action::SendStream { attempt, upstream } => attempts.send_stream(attempt, upstream, &exchange),
                Action::CloseUdp { attempt } => attempts.close_udp(attempt),
                Action::OutOfPatience => out_of_patience(),
                Action::Finish(outcome) => return outcome,
            }
        }
        let wait = exchange.wake_at().since(Moment::now());
        let report = tokio::time::timeout(wait, reported.recv()).await;
        // The generator is the thread's and must not be held across an await.
        let (now, rng) = (Moment::now(), &mut rand::rng());
        match report {
            Ok(Some((attempt, Ok(wire)))) => exchange.handle(Event::Reply { attempt, wire: &wire }, now, rng),
            Ok(Some((attempt, Err(super::Error::Io(error))))) => {
                exchange.handle(Event::of_error(attempt, &error), now, rng);
            }
            Ok(Some((attempt, Err(error)))) => exchange.handle(Event::Failed { attempt, error: &error }, now, rng),
            // The channel does not close: this function holds a sender.
            Ok(None) | Err(_) => exchange.handle(Event::Time, now, rng),
        }
    }
}

/// Asks an upstream that is down, or seems to be, for the name servers of the root, which every resolver has at hand. Any
/// valid reply makes it up again, even REFUSED: it is there. If there is none, one that seems to be down is; but not if the
/// probe could not be sent.
pub async fn probe(upstream: Arc<Upstream>) {
    let question = Question { qname: Name::root(), qtype: Rtype::NS, qclass: Class::IN };
    let timeout = if upstream.is_up() { SUSPECT_TIMEOUT } else { PROBE_TIMEOUT };
    let options = Options { dnssec_ok: false, checking_disabled: false, patience: None, timeout };
    let replies = upstream.begin_probe();
    let group = Arc::new(Group::of_one(upstream.clone()));
    let exchange = Exchange::new(group, &question, options, Moment::now(), &mut rand::rng());
    let outcome = run(exchange, || ()).await;
    if outcome.response.map_or_else(|failure| failure.was_sent, |_| true) {
        upstream.end_probe(replies, Moment::now());
    }
}

/// What waits for replies. Dropped, it ends its tasks.
struct Attempts {
    reports: mpsc::Sender<(usize, Result<Vec<u8>, super::Error>)>,
    running: JoinSet<()>,
    sockets: Vec<(usize, Arc<Socket>, AbortHandle)>,
    buffer: Vec<u8>,
}

impl Attempts {
    async fn send_udp(&mut self, attempt: usize, upstream: &Upstream, exchange: &Exchange) -> io::Result<()> {
        exchange.write_query(attempt, &mut self.buffer);
        if let Some((_, socket, _)) = self.sockets.iter().find(|socket| socket.0 == attempt) {
            return socket.udp.send(&self.buffer).await.map(|_| ());
        }
        let socket = Arc::new(connect(upstream.url().address.resolve()?).await?);
        let receiving = self.running.spawn(receive(Arc::clone(&socket), attempt, self.reports.clone()));
        self.sockets.push((attempt, Arc::clone(&socket), receiving));
        socket.udp.send(&self.buffer).await.map(|_| ())
    }

    fn send_stream(&mut self, attempt: usize, upstream: Arc<Upstream>, exchange: &Exchange) {
        let mut query = Vec::new();
        exchange.write_query(attempt, &mut query);
        let reports = self.reports.clone();
        let retries = exchange.stream_retries(Moment::now());
        self.running.spawn(async move {
            let response = upstream.connection().exchange(upstream.url(), &query, retries).await;
            // An error means that the exchange is over.
            let _ = reports.send((attempt, response)).await;
        });
    }

    fn close_udp(&mut self, attempt: usize) {
        self.sockets.retain(|(of, _, receiving)| {
            if *of == attempt {
                receiving.abort();
            }
            *of != attempt
        });
    }
}

/// A UDP socket of a task. All of them together take no more than their share of the descriptors.
struct Socket {
    udp: UdpSocket,
    /// Dropped after the socket is closed.
    _place: Place,
}

/// The place of a socket among those of all tasks.
struct Place;

impl Place {
    /// An error, the same that the kernel has for it, says that there is none.
    fn take() -> io::Result<Self> {
        let most = sys::descriptors_for(Use::Tasks);
        let taken = SOCKETS.fetch_update(Relaxed, Relaxed, |open| (open < most).then_some(open + 1));
        taken.map(|_| Self).map_err(|_| sys::exhaustion())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        SOCKETS.fetch_sub(1, Relaxed);
    }
}

/// A socket with a port of the system's choice, which is random, that hears nobody but `peer`.
async fn connect(peer: SocketAddr) -> io::Result<Socket> {
    let any = match peer {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let place = Place::take()?;
    let udp = UdpSocket::bind(any).await?;
    udp.connect(peer).await?;
    Ok(Socket { udp, _place: place })
}

async fn receive(socket: Arc<Socket>, attempt: usize, reports: mpsc::Sender<(usize, Result<Vec<u8>, super::Error>)>) {
    loop {
        let received = match socket.udp.readable().await {
            Ok(()) => receive_now(&socket.udp),
            Err(error) => Err(error),
        };
        let report = match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            received => received.map_err(Into::into),
        };
        let is_over = report.is_err();
        if reports.send((attempt, report)).await.is_err() || is_over {
            return;
        }
    }
}

/// The room for whatever may come is taken when something has: thousands may wait for upstreams that never answer.
fn receive_now(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    let length = socket.try_recv(&mut buffer)?;
    buffer.truncate(length);
    buffer.shrink_to_fit();
    Ok(buffer)
}

/// Sockets that are open in all tasks.
static SOCKETS: AtomicUsize = AtomicUsize::new(0);
/// Queries may still be waiting for one that only seems to be down.
const SUSPECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A probe that takes longer is none.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
