//! TCP: pipelined, answers out of order, the same bytes as UDP (RFC 7766). TLS too, which is no different once its
//! handshake is done (RFC 7858). Connections for HTTPS are accepted here and counted with the others.
//!
//! A connection is one task. It reads what has come, writes all replies that can be had at once with a single call, and
//! goes on reading; replies that take longer come back by a queue and leave in the order of their coming. A connection
//! with as many open queries as that queue has room for is not read until some are settled, and one whose client does
//! not read is closed.

use std::{future::ready, io, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep_until},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    Connections, Face, Incoming,
    connections::{LINGERING, MOST_LINGERING, MOST_WAIT, in_time, within},
    face::Fate,
    https,
};
use crate::{
    budget::{self, Place},
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
                let entered = tokio::select! {
                    // A client that was accepted is served, also when the shutdown comes at this moment.
                    biased;
                    entered = connections.enter(peer.ip(), &config) => entered,
                    () = shutdown.cancelled() => return,
                };
                let (place, has_displaced) = match entered {
                    Ok(entered) => entered,
                    Err(refusal) => {
                        face.cells().refuse(refusal);
                        continue;
                    }
                };
                if has_displaced {
                    face.cells().refuse(Refusal::Displaced);
                }
                let (spoken, face, shutdown) = (spoken.clone(), face.clone(), shutdown.clone());
                face.tasks().clone().spawn(async move {
                    // The socket is closed with this future, and the place is free after that.
                    let conversation = welcome(stream, spoken, peer.ip(), &place, &face, &shutdown);
                    // A connection that fails is over; there is nobody to tell.
                    let _ = async {
                        tokio::select! {
                            biased;
                            () = place.account().revoked() => {}
                            _ = conversation => {}
                        }
                    }
                    .await;
                });
            }
            // Out of descriptors or memory: whoever holds them has to let go first, and trying at once would only spin.
            Err(error) if sys::is_exhaustion(&error) => {
                // Said once for as long as it lasts.
                if exhausted_at.is_none_or(|at| at.elapsed() > EXHAUSTION_MEMORY) {
                    tracing::warn!(%error, "cannot accept TCP connections; the idlest are closed, see LimitNOFILE=");
                }
                exhausted_at = Some(Instant::now());
                connections.displace();
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
    let mut stream = in_time(face, shutdown, tls.accept(stream)).await??;
    match spoken {
        Spoken::Https(_) => https::converse(&mut stream, peer, place, face, shutdown).await?,
        _ => converse(&mut stream, Transport::Tls, peer, place, face, shutdown).await?,
    }
    // The client shall know that this is the end, and nobody has cut it short.
    within(config.tcp_message_timeout, shutdown, stream.shutdown()).await.unwrap_or(Ok(()))
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    transport: Transport,
    peer: IpAddr,
    place: &Place,
    face: &Arc<Face>,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    let (sender, mut settled) = budget::channel(place.account(), MOST_OPEN);
    // What has come of a query that is not whole yet.
    let mut unread = place.account().charge(0).map_err(|_| over_limit())?;
    let mut incoming = Vec::with_capacity(READ_BYTES);
    let mut outgoing = Vec::new();
    let mut reply = Vec::new();
    let mut open = 0;
    let mut active = Instant::now();
    // After the shutdown: until when it goes on for a client that is asking.
    let mut lingers_until = None;
    // The client has said all it will, or nothing that makes sense; what is open is still replied to.
    let mut has_finished = false;
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
        let is_ending = has_finished || lingers_until.is_some_and(|until| Instant::now() >= until);
        if is_ending && open == 0 {
            return Ok(());
        }
        tokio::select! {
            Some(reply) = settled.recv() => {
                let mut next = Some(reply);
                while let Some(reply) = next {
                    write_frame(&reply.data, &mut outgoing);
                    open -= 1;
                    next = if outgoing.len() < MOST_OUTGOING_BYTES { settled.try_recv().ok() } else { None };
                }
            }
            read = stream.read_buf(&mut incoming), if open < MOST_OPEN && !is_ending => {
                if read? == 0 {
                    has_finished = true;
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
                        has_finished = true;
                        at = incoming.len();
                    }
                }
            }
            incoming.drain(..at);
            if incoming.len() > READ_BYTES || unread.bytes() > 0 {
                unread.resize(incoming.len()).map_err(|_| over_limit())?;
            }
            if at > 0 {
                place.touch();
                active = Instant::now();
            }
            if outgoing.is_empty() {
                break;
            }
            let mut written = pin!(async {
                stream.write_all(&outgoing).await?;
                // TLS holds back what the socket does not take at once.
                stream.flush().await
            });
            tokio::select! {
                biased;
                outcome = &mut written => outcome?,
                () = ready(()) => {
                    let _charge = place.account().charge(outgoing.capacity()).map_err(|_| over_limit())?;
                    in_time(face, shutdown, written).await??;
                }
            }
            outgoing.clear();
            outgoing.shrink_to(MOST_OUTGOING_BYTES);
            active = Instant::now();
        }
    }
}

fn over_limit() -> io::Error {
    io::Error::other("more data waits for this connection than the limits allow")
}

/// Queries of one connection that may be open at a time.
const MOST_OPEN: usize = 256;
/// Replies that are gathered before they are written.
const MOST_OUTGOING_BYTES: usize = 64 << 10;
/// Room for the queries that come in one segment.
const READ_BYTES: usize = 4096;
/// How long it must have lasted no more to be worth another word.
const EXHAUSTION_MEMORY: Duration = Duration::from_secs(10);
/// How long nothing is accepted when descriptors have run out.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(100);
