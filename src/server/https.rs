//! DNS over HTTPS (RFC 8484), over HTTP/2: one connection, a task for each of its requests.
//!
//! Requests are answered out of order as they come; what a reply is made of is bytes, as everywhere. Connections stand among
//! those of TCP and are bounded with them. A client that does not read its replies loses them after a while, and one
//! with as many open requests as it may have is not heard until some are settled.

use std::{future::poll_fn, io, net::IpAddr, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use data_encoding::BASE64URL_NOPAD;
use h2::{
    Reason, RecvStream,
    server::{Builder, SendResponse},
};
use http::{
    HeaderMap, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE},
    request::Parts,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Face, Incoming,
    connections::{LINGERING, MOST_LINGERING, MOST_WAIT, in_time, within},
    face::Fate,
};
use crate::{
    budget::{self, Account, Charged, Place},
    metrics::{Dropped, Transport},
    wire::{self, MAX_MESSAGE_BYTES, Section},
};

/// Serves one connection, until its client or the listener has enough.
pub(super) async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: IpAddr,
    place: &Place,
    face: &Arc<Face>,
    shutdown: &CancellationToken,
) -> io::Result<()> {
    let mut http = Builder::new();
    http.max_concurrent_streams(MOST_OPEN as u32)
        .max_header_list_size(MOST_HEADER_BYTES)
        .max_send_buffer_size(MAX_MESSAGE_BYTES);
    let message_timeout = face.config().tcp_message_timeout;
    let mut http = in_time(face, shutdown, http.handshake(stream)).await?.map_err(io::Error::other)?;
    // Those whose connection is gone end with it.
    let mut requests = JoinSet::new();
    let mut active = Instant::now();
    let mut phase = Phase::Open;
    // After it was told to close: until when it goes on for a client that is asking.
    let mut lingers_until = None;
    loop {
        let patience = match (phase, requests.len()) {
            (Phase::Open, 0) => face.config().tcp_idle_timeout,
            (Phase::Ending, 0) => Duration::ZERO,
            (Phase::Over, _) if shutdown.is_cancelled() => LINGERING,
            (Phase::Over, _) => message_timeout,
            _ => MOST_WAIT,
        };
        let takes_more = requests.len() < MOST_OPEN && lingers_until.is_none_or(|until| Instant::now() < until);
        tokio::select! {
            // In this order, so that replies have left before the end, and no client puts it off by what it sends.
            biased;
            () = shutdown.cancelled(), if phase == Phase::Open => {
                phase = Phase::Ending;
                lingers_until = Some(Instant::now() + MOST_LINGERING);
                if !requests.is_empty() {
                    http.graceful_shutdown();
                }
            }
            // A client may take back requests that are still seen to, and make others: no more of them, but replies leave.
            accepted = poll_fn(|context| match takes_more {
                true => http.poll_accept(context),
                false => http.poll_closed(context).map(|closed| closed.err().map(Err)),
            }) => match accepted {
                Some(request) => {
                    let (request, respond) = request.map_err(io::Error::other)?;
                    let (account, face, shutdown) = (place.account().clone(), face.clone(), shutdown.clone());
                    requests.spawn(respond_to(request, respond, peer, account, face, shutdown));
                }
                None => return Ok(()),
            },
            Some(_) = requests.join_next() => {}
            () = sleep_until(active + patience) => {
                if phase == Phase::Over || !requests.is_empty() {
                    return Ok(());
                }
                phase = Phase::Over;
                http.abrupt_shutdown(Reason::NO_ERROR);
            }
        }
        active = Instant::now();
        place.touch();
    }
}

/// How far a connection is on its way.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Soon no further requests, whether the client heeds that or not; those that are open are replied to.
    Ending,
    /// The client has to be told so, and then it is closed.
    Over,
}

async fn respond_to(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    peer: IpAddr,
    account: Account,
    face: Arc<Face>,
    shutdown: CancellationToken,
) {
    let patience = face.config().tcp_message_timeout;
    let is_get = request.method() == Method::GET;
    let no_query = |status| {
        face.cells().received(Transport::Https, 1);
        face.cells().dropped(Dropped::NotAQuery);
        Err(status)
    };
    // The body stays until the response is complete: h2 takes a request whose body is dropped before that for a canceled one.
    let (head, mut body) = request.into_parts();
    // The head decides where it can: nothing is kept of a body that is not wanted.
    let query = match query_of(&head) {
        Ok(Query::Uri(query)) => Ok(query),
        Ok(Query::Body) => {
            let query = within(patience, &shutdown, read_body(&mut body, &account)).await;
            query.unwrap_or(Err(StatusCode::REQUEST_TIMEOUT))
        }
        Err(status) => {
            within(patience, &shutdown, discard(&mut body, 0)).await;
            Err(status)
        }
    };
    let outcome = match query {
        Ok(query) => reply_to(&query, peer, &account, &face).await,
        Err(status) => no_query(status),
    };
    let mut response = Response::new(());
    // The charge stands until the client has taken the reply.
    let (mut reply, _charge) = match outcome {
        Ok(Some(Charged { data: reply, charge })) => {
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(DNS_MESSAGE));
            headers.insert(CONTENT_LENGTH, reply.len().into());
            // What is posted is not kept by anybody.
            if is_get && let Ok(value) = format!("max-age={}", freshness(&reply)).try_into() {
                headers.insert(CACHE_CONTROL, value);
            }
            (Bytes::from(reply), Some(charge))
        }
        // An overlay will have nothing said to it.
        Ok(None) => return respond.send_reset(Reason::CANCEL),
        Err(status) => {
            *response.status_mut() = status;
            if status == StatusCode::METHOD_NOT_ALLOWED {
                response.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET, POST"));
            }
            (Bytes::new(), None)
        }
    };
    // A client that is gone, or does not read, misses nothing.
    let Ok(mut stream) = respond.send_response(response, reply.is_empty()) else { return };
    let sent = within(patience, &shutdown, async {
        while !reply.is_empty() {
            stream.reserve_capacity(reply.len());
            let Some(Ok(room)) = poll_fn(|context| stream.poll_capacity(context)).await else { return };
            let part = reply.split_to(room.min(reply.len()));
            if stream.send_data(part, reply.is_empty()).is_err() {
                return;
            }
        }
    });
    if sent.await.is_none() {
        stream.send_reset(Reason::CANCEL);
    }
}

/// Where a request has its message.
enum Query {
    /// In its URI, decoded already.
    Uri(Bytes),
    /// In its body.
    Body,
}

/// Where the message of a request is by its head (RFC 8484 §4.1), or the status that refuses it.
fn query_of(head: &Parts) -> Result<Query, StatusCode> {
    if head.uri.path() != PATH {
        return Err(StatusCode::NOT_FOUND);
    }
    match head.method {
        Method::GET => {
            let parameters = head.uri.query().unwrap_or_default().split('&');
            let message = parameters.filter_map(|pair| pair.strip_prefix("dns=")).next();
            // The encoding must not be padded (RFC 8484 §6).
            let message = message.and_then(|text| BASE64URL_NOPAD.decode(text.as_bytes()).ok());
            message.map(|message| Query::Uri(message.into())).ok_or(StatusCode::BAD_REQUEST)
        }
        Method::POST if !is_dns_message(&head.headers) => Err(StatusCode::UNSUPPORTED_MEDIA_TYPE),
        Method::POST if stated_length(&head.headers) > MAX_MESSAGE_BYTES => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Method::POST => Ok(Query::Body),
        _ => Err(StatusCode::METHOD_NOT_ALLOWED),
    }
}

/// Reads the body of a request, unless it is longer than any message. What has come is charged to the connection.
async fn read_body(body: &mut RecvStream, account: &Account) -> Result<Bytes, StatusCode> {
    let mut message = BytesMut::new();
    let mut held = account.charge(0).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    while let Some(part) = body.data().await {
        let part = part.map_err(|_| StatusCode::BAD_REQUEST)?;
        if message.len() + part.len() > MAX_MESSAGE_BYTES {
            let _ = body.flow_control().release_capacity(part.len());
            let length = message.len() + part.len();
            drop((message, held));
            discard(body, length).await;
            return Err(StatusCode::PAYLOAD_TOO_LARGE);
        }
        message.extend_from_slice(&part);
        // Most bodies come in one part, and are served at once.
        if !body.is_end_stream() {
            held.resize(message.capacity()).map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
        }
        let _ = body.flow_control().release_capacity(part.len());
    }
    Ok(message.freeze())
}

/// Reads on to the end of a body of which `length` bytes have come, and keeps nothing of it: curl reports a broken stream
/// instead of our status if it gets that while it still sends. A body that is longer still is cut off.
async fn discard(body: &mut RecvStream, mut length: usize) {
    while length <= MOST_BODY_BYTES
        && let Some(Ok(part)) = body.data().await
    {
        let _ = body.flow_control().release_capacity(part.len());
        length += part.len();
    }
}

fn stated_length(headers: &HeaderMap) -> usize {
    let stated = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    stated.unwrap_or(0)
}

fn is_dns_message(headers: &HeaderMap) -> bool {
    let stated = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    stated.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case(DNS_MESSAGE))
}

/// The reply to a message; none if there shall be none.
async fn reply_to(
    query: &[u8],
    peer: IpAddr,
    account: &Account,
    face: &Arc<Face>,
) -> Result<Option<Charged>, StatusCode> {
    let client = face.stream_client(peer, &face.config());
    let incoming = Incoming { wire: query, client, peer, transport: Transport::Https };
    let (sender, mut settled) = budget::channel(account, 1);
    let mut reply = Vec::new();
    match face.take_stream(incoming, &sender, &mut reply) {
        Fate::Settled => Charged::new(reply, account).map(Some).map_err(|_| StatusCode::SERVICE_UNAVAILABLE),
        // Whoever settles it has a sender of its own; without this one, that one's end is noticed.
        Fate::Open => {
            drop(sender);
            Ok(settled.recv().await)
        }
        Fate::Silent => Ok(None),
        Fate::Hopeless => Err(StatusCode::BAD_REQUEST),
    }
}

/// How many seconds a cache of HTTP may keep a reply: as long as what it answers or denies lives (RFC 8484 §5.1).
fn freshness(reply: &[u8]) -> u32 {
    let Ok(received) = wire::Response::read_own(reply) else { return 0 };
    let response = received.response;
    let answers = response.records().filter(|record| record.section == Section::Answer);
    let least = answers.map(|record| record.ttl).min();
    least.or_else(|| response.soa().map(|(ttl, minimum)| ttl.min(minimum))).unwrap_or(0)
}

/// Where RFC 8484 §4.1.1 has its examples, and every client looks by itself.
const PATH: &str = "/dns-query";
const DNS_MESSAGE: &str = "application/dns-message";
/// Requests of one connection that may be open at a time: as many as HTTP/2 would have at least (RFC 9113 §6.5.2).
const MOST_OPEN: usize = 100;
/// How much of a body that is not wanted is read and discarded.
const MOST_BODY_BYTES: usize = 4 * MAX_MESSAGE_BYTES;
/// The headers of a request: a GET has the whole message in its URI, half as long again.
const MOST_HEADER_BYTES: u32 = 16 << 10;
