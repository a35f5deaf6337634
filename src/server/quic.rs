//! DNS over QUIC (RFC 9250): a connection is a task, and each of its queries another.
//!
//! What comes by QUIC is answered as what comes by any stream: by the same call, from the same cache. Connections count among
//! those of TCP, with the same limits, and what waits for a client is charged to it: each open query from its first byte to
//! the moment at which the client has acknowledged the reply.
//!
//! Handshakes go side by side. While few are under way their clients need not prove their addresses; beyond that a client has
//! to return a token first (Retry, RFC 9000 §8.1.2), so that forged addresses cost nothing. Early data (0-RTT) is not accepted,
//! since it can be replayed (RFC 9250 §4.5). A client that breaks the rules of RFC 9250 §4.3.3 loses its connection.

use std::{io, net::UdpSocket, sync::Arc, time::Duration};

use hickory_server::net::quic::DoqErrorCode;
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, Incoming as Connecting, RecvStream, SendStream, ServerConfig,
    TokioRuntime, TransportConfig, crypto::rustls::QuicServerConfig,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::rustls;
use tokio_util::sync::CancellationToken;

use super::{Connections, Face, Identity, Incoming, connections::in_time, face::Fate};
use crate::{
    budget::{self, Account, Charge, Charged, Exceeded, Place},
    metrics::{Dropped, Refusal, Transport},
    tls,
    wire::{self, MAX_MESSAGE_BYTES},
};

/// Serves DNS over QUIC until `shutdown`. Connections end then; those with open queries, when these are replied to.
pub async fn serve(
    socket: Arc<UdpSocket>,
    identity: Arc<Identity>,
    face: Arc<Face>,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
) {
    while !shutdown.is_cancelled() {
        let error = match listen(&socket, identity.clone(), face.config().tcp_idle_timeout) {
            Ok(endpoint) => {
                let visit = Visit { face: face.clone(), connections: connections.clone(), shutdown: shutdown.clone() };
                shutdown.run_until_cancelled(visit.accept(&endpoint)).await;
                // A client that comes now is refused, and not kept waiting.
                endpoint.set_server_config(None);
                io::Error::other("its socket has failed")
            }
            Err(error) => error,
        };
        if shutdown.is_cancelled() {
            return;
        }
        tracing::warn!(address = socket.local_addr().ok().map(tracing::field::display), %error, "QUIC begins anew");
        shutdown.run_until_cancelled(sleep(PAUSE)).await;
    }
}

fn listen(socket: &UdpSocket, identity: Arc<Identity>, idle_timeout: Duration) -> io::Result<Endpoint> {
    let tls = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?;
    let mut tls = tls.with_no_client_auth().with_cert_resolver(identity);
    tls.alpn_protocols = vec![b"doq".to_vec()];
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(MOST_OPEN.into())
        // No client may open any (RFC 9250 §4.3.3).
        .max_concurrent_uni_streams(0u8.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(2 * MAX_MESSAGE_BYTES as u64)
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(idle_timeout).map_err(io::Error::other)?));
    let crypto = QuicServerConfig::try_from(Arc::new(tls)).map_err(io::Error::other)?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(Arc::new(transport))
        // What a client may hold is decided by its address.
        .migration(false)
        .max_incoming(MOST_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(MOST_INCOMING as u64 * INCOMING_BYTES);
    Endpoint::new(EndpointConfig::default(), Some(server), socket.try_clone()?, Arc::new(TokioRuntime))
}

/// What connections are served with.
#[derive(Clone)]
struct Visit {
    face: Arc<Face>,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
}

impl Visit {
    /// Accepts connections until the socket fails.
    async fn accept(&self, endpoint: &Endpoint) {
        let unproven = Arc::new(Semaphore::new(MOST_UNPROVEN));
        while let Some(incoming) = endpoint.accept().await {
            let peer = incoming.remote_address().ip();
            if self.face.stream_client(peer, &self.face.config()).is_none() {
                self.face.cells().refuse(Refusal::Acl);
                incoming.refuse();
                continue;
            }
            let permit = if incoming.remote_address_validated() {
                None
            } else if let Ok(permit) = unproven.clone().try_acquire_owned() {
                Some(permit)
            } else {
                // Never an error: a client whose address is not proven has not been asked to.
                let _ = incoming.retry();
                continue;
            };
            let visit = self.clone();
            self.face.tasks().spawn(async move { visit.welcome(incoming, permit).await });
        }
    }

    /// Sees a handshake through, which has a permit if anybody could have begun it, and serves the connection.
    async fn welcome(self, incoming: Connecting, permit: Option<OwnedSemaphorePermit>) {
        let peer = incoming.remote_address().ip();
        let config = self.face.config();
        // Only an address that is proven has places that can be taken in its name.
        let mut place = None;
        if permit.is_none() {
            place = self.enter(peer).await;
            if place.is_none() {
                return incoming.refuse();
            }
        }
        let handshake = async { incoming.accept()?.await };
        let handshake = self.shutdown.run_until_cancelled(timeout(config.tcp_message_timeout, handshake));
        let displaced = async {
            match &place {
                Some(place) => place.account().revoked().await,
                None => std::future::pending().await,
            }
        };
        let handshake = tokio::select! {
            outcome = handshake => outcome,
            // Its place is needed at once, and its client may never answer.
            () = displaced => return,
        };
        let connection = match handshake {
            Some(Ok(Ok(connection))) => connection,
            // A client that fails misses nothing.
            Some(Ok(Err(_))) | None => return,
            Some(Err(_)) => return self.face.cells().refuse(Refusal::Slow),
        };
        drop(permit);
        if place.is_none() {
            place = self.enter(peer).await;
        }
        // The connection is gone before the place is free.
        match &place {
            Some(place) => self.converse(connection, place).await,
            None => close(&connection, DoqErrorCode::ExcessiveLoad),
        }
    }

    async fn enter(&self, peer: std::net::IpAddr) -> Option<Place> {
        let config = self.face.config();
        let entered = tokio::select! {
            biased;
            entered = self.connections.enter(peer, &config) => entered,
            () = self.shutdown.cancelled() => return None,
        };
        match entered {
            Ok((place, has_displaced)) => {
                if has_displaced {
                    self.face.cells().refuse(Refusal::Displaced);
                }
                Some(place)
            }
            Err(refusal) => {
                self.face.cells().refuse(refusal);
                None
            }
        }
    }

    /// Serves one connection, until its client or the listener has enough.
    async fn converse(&self, connection: Connection, place: &Place) {
        let mut queries = JoinSet::new();
        let mut active = Instant::now();
        let mut is_ending = false;
        loop {
            if is_ending && queries.is_empty() {
                close(&connection, DoqErrorCode::NoError);
                // The client shall know that this is the end.
                return sleep(PARTING).await;
            }
            let idle_until = active + self.face.config().tcp_idle_timeout;
            tokio::select! {
                biased;
                () = place.account().revoked() => return close(&connection, DoqErrorCode::ExcessiveLoad),
                () = self.shutdown.cancelled(), if !is_ending => is_ending = true,
                Some(_) = queries.join_next() => {}
                accepted = connection.accept_bi(), if !is_ending => match accepted {
                    Ok((reply, query)) => {
                        let stream = Stream {
                            connection: connection.clone(),
                            account: place.account().clone(),
                            face: self.face.clone(),
                            shutdown: self.shutdown.clone(),
                        };
                        queries.spawn(stream.exchange(query, reply));
                    }
                    Err(_) => return,
                },
                // What keeps a connection of QUIC alive is no query.
                () = sleep_until(idle_until), if queries.is_empty() => return close(&connection, DoqErrorCode::NoError),
            }
            active = Instant::now();
            place.touch();
        }
    }
}

/// What one query is served with.
struct Stream {
    connection: Connection,
    account: Account,
    face: Arc<Face>,
    shutdown: CancellationToken,
}

/// Why a query is not read.
enum Fault {
    /// The client breaks a rule: its connection has to be closed.
    Protocol,
    /// The client takes it back, or is gone.
    Gone,
    /// More would be held than the limits allow: the connection is closed for that.
    OverLimit,
}

impl From<Exceeded> for Fault {
    fn from(_: Exceeded) -> Self {
        Self::OverLimit
    }
}

impl Stream {
    async fn exchange(self, mut query: RecvStream, mut reply: SendStream) {
        let (face, cells) = (&self.face, self.face.cells());
        let patience = face.config().tcp_message_timeout;
        let reading = timeout(patience, self.read(&mut query));
        let (message, _held) = match self.shutdown.run_until_cancelled(reading).await {
            Some(Ok(Ok(message))) => message,
            Some(Ok(Err(Fault::Gone | Fault::OverLimit))) | None => return,
            Some(Ok(Err(Fault::Protocol))) => return close(&self.connection, DoqErrorCode::ProtocolError),
            Some(Err(_)) => {
                cells.refuse(Refusal::Slow);
                return close(&self.connection, DoqErrorCode::ProtocolError);
            }
        };
        let has_keepalive = || wire::Query::parse(&message).is_ok_and(|query| query.options().keepalive);
        if wire::read_u16(&message, 0) != Some(0) || has_keepalive() {
            cells.received(Transport::Quic, 1);
            cells.dropped(Dropped::NotAQuery);
            return close(&self.connection, DoqErrorCode::ProtocolError);
        }
        let answer = match self.answer(&message).await {
            Answer::Reply(answer) => answer,
            Answer::None => {
                let _ = reply.reset(DoqErrorCode::InternalError.into());
                return;
            }
            Answer::Hopeless => return close(&self.connection, DoqErrorCode::ProtocolError),
        };
        let mut framed = Vec::with_capacity(2 + answer.data.len());
        wire::write_frame(&answer.data, &mut framed);
        let sent = in_time(face, &self.shutdown, async {
            // A client that is gone, or has taken its query back, misses nothing.
            if reply.write_all(&framed).await.is_ok() && reply.finish().is_ok() {
                // The charge stands until the client has acknowledged the reply.
                let _ = reply.stopped().await;
            }
        });
        if sent.await.is_err() {
            let _ = reply.reset(DoqErrorCode::ExcessiveLoad.into());
        }
    }

    /// Reads one message with its length before it, and the end of the stream after it (RFC 9250 §4.2).
    async fn read(&self, query: &mut RecvStream) -> Result<(Vec<u8>, Charge), Fault> {
        let mut held = self.account.charge(STREAM_BYTES)?;
        let mut framed = Vec::new();
        loop {
            match query.read_chunk(2 + MAX_MESSAGE_BYTES - framed.len() + 1, true).await {
                Ok(Some(chunk)) => framed.extend_from_slice(&chunk.bytes),
                Ok(None) => break,
                Err(_) => return Err(Fault::Gone),
            }
            let announced = wire::read_u16(&framed, 0).map_or(MAX_MESSAGE_BYTES, usize::from);
            if framed.len() > 2 + announced {
                return Err(Fault::Protocol);
            }
            held.resize(STREAM_BYTES + framed.capacity())?;
        }
        if wire::read_u16(&framed, 0).is_none_or(|announced| framed.len() != 2 + usize::from(announced)) {
            return Err(Fault::Protocol);
        }
        framed.drain(..2);
        Ok((framed, held))
    }

    async fn answer(&self, message: &[u8]) -> Answer {
        let (face, peer) = (&self.face, self.connection.remote_address().ip());
        let client = face.stream_client(peer, &face.config());
        let incoming = Incoming { wire: message, client, peer, transport: Transport::Quic };
        let (sender, mut settled) = budget::channel(&self.account, 1);
        let mut reply = Vec::new();
        match face.take_stream(incoming, &sender, &mut reply) {
            Fate::Settled => Charged::new(reply, &self.account).map_or(Answer::None, Answer::Reply),
            // Whoever settles it has a sender of its own; without this one, that one's end is noticed.
            Fate::Open => {
                drop(sender);
                settled.recv().await.map_or(Answer::None, Answer::Reply)
            }
            Fate::Silent => Answer::None,
            Fate::Hopeless => Answer::Hopeless,
        }
    }
}

/// What a message gets.
enum Answer {
    Reply(Charged),
    None,
    /// It is no query.
    Hopeless,
}

fn close(connection: &Connection, code: DoqErrorCode) {
    connection.close(code.into(), &[]);
}

/// Queries of one connection that may be open at a time: as many as by HTTPS.
const MOST_OPEN: u8 = 100;
/// What an open query is charged besides its bytes: a task, and the state of its stream.
const STREAM_BYTES: usize = 2 << 10;
/// How much of a stream, and of all streams of a connection, may have come without being read.
const STREAM_WINDOW_BYTES: u32 = 16 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 10;
/// Handshakes at a time of clients whose addresses are not proven; others have to prove theirs first.
const MOST_UNPROVEN: usize = 64;
/// Connections that have begun and wait to be looked at, and how much each may have sent.
const MOST_INCOMING: usize = 256;
const INCOMING_BYTES: u64 = 16 << 10;
/// How long a connection that is over is kept for what has not left yet.
const PARTING: Duration = Duration::from_millis(100);
/// How long it takes to listen anew after a failure.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
#[path = "quic_tests.rs"]
mod tests;
