//! TCP: pipelined, answers out of order, the same bytes as UDP (RFC 7766). TLS too, which is no different once its
//! handshake is done (RFC 7858). Connections for HTTPS are accepted here and counted with the others.
//!
//! A connection is one task. It reads what has come, writes all replies that can be had at once with a single call, and
//! goes on reading; replies that take longer come back by a queue and leave in the order of their coming. A connection
//! with as many open queries as that queue has room for is not read until some are settled, and one whose client does
//! not read is closed.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{Face, Incoming, face::Fate, https};
use crate::{
    clock::Moment,
    metrics::{Refusal, Transport},
    sys,
    wire::{read_frame, write_frame},
};

/// What is spoken on the connections of a listener.
#[derive(Clone)]
pub enum Spoken {
    /// DNS.
    Plain,
    /// DNS over TLS.
    Tls(TlsAcceptor),
    /// DNS over HTTPS.
    Https(TlsAcceptor),
}

/// Accepts connections until `shutdown`; those that are open then end when their queries are settled.
pub async fn serve(
    listener: Arc<TcpListener>,
    spoken: Spoken,
    face: Arc<Face>,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
) {
    let mut exhausted_at: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => {
                let config = face.config();
                // Who is not served by UDP is told so; here it would cost a handshake, or take the place of somebody who is.
                if face.stream_client(peer.ip(), &config).is_none() {
                    face.cells().refuse(Refusal::Acl);
                    continue;
                }
                let limits = (config.tcp_connections.min(connections.most), config.tcp_connections_per_client);
                let Some((place, displaced)) = connections.enter(peer.ip(), limits) else {
                    face.cells().refuse(Refusal::PerClient);
                    continue;
                };
                if displaced {
                    face.cells().refuse(Refusal::Displaced);
                }
                let (spoken, face, shutdown) = (spoken.clone(), face.clone(), shutdown.clone());
                face.tasks().clone().spawn(async move {
                    // A connection that fails is over; there is nobody to tell.
                    let _ = welcome(stream, spoken, peer.ip(), &place, &face, &shutdown).await;
                });
            }
            // Out of descriptors or memory: whoever holds them has to let go first, and trying at once would only spin.
            Err(error) if sys::is_exhaustion(&error) => {
                // Said once for as long as it lasts.
                if exhausted_at.is_none_or(|at| at.elapsed() > EXHAUSTION_MEMORY) {
                    tracing::warn!(%error, "cannot accept TCP connections; the idlest are closed, see LimitNOFILE=");
                }
                exhausted_at = Some(Instant::now());
                connections.close_idlest();
                tokio::time::sleep(EXHAUSTION_PAUSE).await;
            }
            // The client was gone before it was accepted.
            Err(_) => {}
        }
    }
}

async fn welcome(
    stream: TcpStream,
    spoken: Spoken,
    peer: IpAddr,
    place: &Place,
    face: &Arc<Face>,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (Spoken::Tls(tls) | Spoken::Https(tls)) = &spoken else {
        return converse(stream, Transport::Tcp, peer, place, face, shutdown).await;
    };
    let config = face.config();
    let mut stream = tokio::select! {
        accepted = timeout(config.tcp_message_timeout, tls.accept(stream)) => {
            accepted.inspect_err(|_| face.cells().refuse(Refusal::Slow))??
        }
        () = place.told_to_close(shutdown) => return Ok(()),
    };
    match spoken {
        Spoken::Https(_) => https::converse(&mut stream, peer, place, face, shutdown).await?,
        _ => converse(&mut stream, Transport::Tls, peer, place, face, shutdown).await?,
    }
    // The client shall know that this is the end, and nobody has cut it short.
    timeout(config.tcp_message_timeout, stream.shutdown()).await?
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    transport: Transport,
    peer: IpAddr,
    place: &Place,
    face: &Arc<Face>,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    let (sender, mut settled) = mpsc::channel::<Vec<u8>>(MOST_OPEN);
    let mut incoming = Vec::with_capacity(READ_BYTES);
    let mut outgoing = Vec::new();
    let mut reply = Vec::new();
    let mut open = 0;
    let mut active = Instant::now();
    // After the shutdown: until when it goes on for a client that is asking.
    let mut lingers_until = None;
    loop {
        let config = face.config();
        let begins = incoming.is_empty();
        // With queries open it is the client who waits for us.
        if lingers_until.is_none() && shutdown.is_cancelled() {
            active = Instant::now();
            lingers_until = Some(active + MOST_LINGERING);
        }
        let patience = match (open, begins) {
            (0, _) if lingers_until.is_some() => LINGERING,
            (0, true) => config.tcp_idle_timeout,
            (0, false) => config.tcp_message_timeout,
            _ => MOST_WAIT,
        };
        let is_ending = lingers_until.is_some_and(|until| Instant::now() >= until) || place.seat.closing.is_cancelled();
        if is_ending && open == 0 {
            return Ok(());
        }
        tokio::select! {
            Some(reply) = settled.recv() => {
                let mut next = Some(reply);
                while let Some(reply) = next {
                    write_frame(&reply, &mut outgoing);
                    open -= 1;
                    next = if outgoing.len() < MOST_OUTGOING_BYTES { settled.try_recv().ok() } else { None };
                }
            }
            read = stream.read_buf(&mut incoming), if open < MOST_OPEN && !is_ending => {
                if read? == 0 {
                    // The client has said all it will; what is open is still replied to.
                    place.seat.closing.cancel();
                } else if begins {
                    active = Instant::now();
                }
            }
            () = sleep_until(active + patience) => {
                if !begins {
                    face.cells().refuse(Refusal::Slow);
                }
                return Ok(());
            }
            () = shutdown.cancelled(), if lingers_until.is_none() => {}
            () = place.seat.closing.cancelled(), if !is_ending => {}
        }
        let client = face.stream_client(peer, &config);
        loop {
            let mut at = 0;
            while open < MOST_OPEN
                && outgoing.len() < MOST_OUTGOING_BYTES
                && let Some((message, end)) = read_frame(&incoming, at)
            {
                at = end;
                match face.take_stream(Incoming { wire: message, client, peer, transport }, &sender, &mut reply) {
                    Fate::Settled => write_frame(&reply, &mut outgoing),
                    Fate::Open => open += 1,
                    Fate::Silent => {}
                    Fate::Hopeless => {
                        // What was asked before is still replied to.
                        place.seat.closing.cancel();
                        at = incoming.len();
                    }
                }
            }
            incoming.drain(..at);
            if at > 0 {
                place.touch();
                active = Instant::now();
            }
            if outgoing.is_empty() {
                break;
            }
            let written = async {
                stream.write_all(&outgoing).await?;
                // TLS holds back what the socket does not take at once.
                stream.flush().await
            };
            timeout(config.tcp_message_timeout, written)
                .await
                .inspect_err(|_| face.cells().refuse(Refusal::Slow))??;
            outgoing.clear();
            outgoing.shrink_to(MOST_OUTGOING_BYTES);
            active = Instant::now();
        }
    }
}

/// The connections that are open, and how many there may be.
pub struct Connections {
    open: Mutex<HashMap<u64, Arc<Seat>>>,
    next: AtomicU64,
    /// As many as leave descriptors for everything else.
    most: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self { open: Mutex::default(), next: AtomicU64::default(), most: (sys::open_files_limit() / 2).max(1) }
    }
}

/// One connection's place among them; it is free again when this is dropped.
pub(super) struct Place {
    seat: Arc<Seat>,
    number: u64,
    all: Arc<Connections>,
}

struct Seat {
    peer: IpAddr,
    touched: AtomicU64,
    closing: CancellationToken,
}

impl Connections {
    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.lock().len()
    }

    /// Takes a place; `None` if this client has as many as it may. If all are taken, the one that was idle longest has
    /// to close, which is told.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: IpAddr,
        (most, most_per_client): (usize, usize),
    ) -> Option<(Place, bool)> {
        let mut open = self.open.lock();
        if open.values().filter(|seat| seat.peer == peer).count() >= most_per_client {
            return None;
        }
        let is_full = open.len() >= most;
        if is_full {
            let idlest = open.iter().min_by_key(|(_, seat)| seat.touched.load(Relaxed)).map(|(&number, _)| number)?;
            open.remove(&idlest)?.closing.cancel();
        }
        let number = self.next.fetch_add(1, Relaxed);
        let touched = Moment::now().as_millis().into();
        let seat = Arc::new(Seat { peer, touched, closing: CancellationToken::new() });
        open.insert(number, seat.clone());
        drop(open);
        Some((Place { seat, number, all: self.clone() }, is_full))
    }

    fn close_idlest(&self) {
        if let Some(seat) = self.open.lock().values().min_by_key(|seat| seat.touched.load(Relaxed)) {
            seat.closing.cancel();
        }
    }
}

impl Place {
    /// Waits until this connection, or all of its listener, shall end.
    pub(super) async fn told_to_close(&self, shutdown: &CancellationToken) {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.seat.closing.cancelled() => {}
        }
    }

    /// It is not idle.
    pub(super) fn touch(&self) {
        self.seat.touched.store(Moment::now().as_millis(), Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.open.lock().remove(&self.number);
    }
}

/// Queries of one connection that may be open at a time.
const MOST_OPEN: usize = 256;
/// Replies that are gathered before they are written.
const MOST_OUTGOING_BYTES: usize = 64 << 10;
/// No query is open for so long.
pub(super) const MOST_WAIT: Duration = Duration::from_secs(5);
/// How long a client must have been silent for its connection to be closed at a shutdown: one that has connected is about to
/// ask, and a query on its way when the connection closes is lost.
const LINGERING: Duration = Duration::from_millis(200);
/// How long a client that is never silent for so long may go on; it has to ask again elsewhere (RFC 7766 §6.2.4).
pub(super) const MOST_LINGERING: Duration = Duration::from_secs(1);
/// Room for the queries that come in one segment.
const READ_BYTES: usize = 4096;
/// How long it must have lasted no more to be worth another word.
const EXHAUSTION_MEMORY: Duration = Duration::from_secs(10);
/// How long nothing is accepted when descriptors have run out.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(100);
