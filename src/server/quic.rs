//! DNS over QUIC (RFC 9250): hickory-server's listener, handing us its requests.
//!
//! What comes by QUIC is answered as what comes by a stream: by the same call, from the same cache, and counted alike. Each
//! reply is a task's, because the listener reads the next query of a connection only when it has handed over the one before.
//!
//! The listener's traps: it sees one handshake through before the next, for up to 5 s; it bounds connections by nothing but
//! their silence, and ends each after 100 queries; it knows no access control before the handshake that could be changed;
//! what it cannot decode it answers with FORMERR itself; and it sends messages of its own making alone, so that a reply is
//! taken apart into records whose RDATA it does not look into.

use std::{fmt::Display, io, net::UdpSocket, slice, sync::Arc, time::Duration};

use async_trait::async_trait;
use hickory_server::{
    Server,
    net::runtime::Time,
    proto::{
        ProtoError,
        op::{Header, HeaderCounts, Metadata},
        rr::{
            DNSClass, Name, RData, Record, RecordType,
            rdata::{NULL, opt::EdnsCode},
        },
        serialize::binary::{BinDecodable, BinDecoder, BinEncoder},
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::{MessageResponse, MessageResponseBuilder, Queries},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{Face, Identity, Incoming, face::Fate};
use crate::{
    budget,
    metrics::{Dropped, Transport},
    wire::{self, Class, MAX_MESSAGE_BYTES, OPTION_PADDING, Rtype},
};

/// Serves DNS over QUIC until `shutdown`. Connections end then; on those with open queries, when these are replied to.
pub async fn serve(socket: Arc<UdpSocket>, identity: Arc<Identity>, face: Arc<Face>, shutdown: CancellationToken) {
    while !shutdown.is_cancelled() {
        let ended = match listen(&socket, identity.clone(), face.clone()) {
            Err(error) => Err(error.to_string()),
            Ok(mut server) => tokio::select! {
                ended = server.block_until_done() => ended.map_err(|error| error.to_string()),
                () = shutdown.cancelled() => {
                    let ended = server.shutdown_gracefully().await;
                    // The clients shall know that this is the end.
                    sleep(PARTING).await;
                    ended.map_err(|error| error.to_string())
                }
            },
        };
        if shutdown.is_cancelled() {
            return;
        }
        let error = ended.err().unwrap_or_else(|| "its socket has failed".into());
        tracing::warn!(address = socket.local_addr().ok().map(tracing::field::display), error, "QUIC begins anew");
        shutdown.run_until_cancelled(sleep(PAUSE)).await;
    }
}

fn listen(socket: &UdpSocket, identity: Arc<Identity>, face: Arc<Face>) -> io::Result<Server<Handler>> {
    let socket = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
    // How long a connection may have nothing to ask, and a query may take to come in.
    let patience = face.config().tcp_idle_timeout;
    let mut server = Server::new(Handler(face));
    server.register_quic_listener(socket, patience, identity)?;
    Ok(server)
}

struct Handler(Arc<Face>);

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut client: R) -> ResponseInfo {
        let Self(face) = self;
        let config = face.config();
        // It is only for a log of its own that the listener wants to know what became of a query.
        let info = Header { metadata: request.metadata, counts: HeaderCounts::default() }.into();
        let has = |code| request.edns.as_ref().is_some_and(|edns| edns.option(code).is_some());
        // Either is a fatal error (RFC 9250 §4.3.3). The connection is not ours to abort; the stream ends without a reply.
        if request.metadata.id != 0 || has(EdnsCode::Keepalive) {
            face.cells().received(Transport::Quic, 1);
            face.cells().dropped(Dropped::NotAQuery);
            return info;
        }
        let is_padded = has(EdnsCode::Padding);
        let peer = request.src().ip();
        let incoming = Incoming {
            wire: request.as_slice(),
            client: face.stream_client(peer, &config),
            peer,
            transport: Transport::Quic,
        };
        let (sender, mut settled) = budget::channel(&face.budget().open(peer), 1);
        let mut reply = Vec::new();
        let is_open = match face.take_stream(incoming, &sender, &mut reply) {
            Fate::Settled => false,
            Fate::Open => true,
            Fate::Silent | Fate::Hopeless => return info,
        };
        // Whoever settles it has a sender of its own; without this one, that one's end is noticed.
        drop(sender);
        face.tasks().spawn(async move {
            if is_open {
                match settled.recv().await {
                    Some(late) => reply = late.data,
                    None => return,
                }
            }
            // A client that is gone, or does not read, misses nothing.
            if let Ok(reply) = Reply::read(&reply, is_padded) {
                let _ = timeout(config.tcp_message_timeout, client.send_response(reply.response())).await;
            }
            // With the last of its streams goes a connection that the listener is done with, and what has not left yet is lost.
            sleep(PARTING).await;
        });
        info
    }
}

/// A reply as hickory wants it. Only names are decoded; whatever a record holds passes through.
struct Reply {
    metadata: Metadata,
    queries: Queries,
    answer: Vec<Record>,
    authority: Vec<Record>,
    additional: Vec<Record>,
}

type Records<'a> = slice::Iter<'a, Record>;

impl Reply {
    fn read(reply: &[u8], is_padded: bool) -> Result<Self, ProtoError> {
        let unreadable = |error: &dyn Display| ProtoError::from(error.to_string());
        let mut decoder = BinDecoder::new(reply);
        let Header { metadata, counts } = Header::read(&mut decoder)?;
        let queries = Queries::read(&mut decoder, counts.queries.into())?;
        let received = wire::Response::read_own(reply).map_err(|error| unreadable(&error))?;
        let answer = received.response.to_answer().map_err(|error| unreadable(&error))?;
        let decode = |records: &[wire::Record]| records.iter().map(decode).collect::<Result<Vec<_>, _>>();
        let mut whole = Self {
            metadata,
            queries,
            answer: decode(&answer.answer)?,
            authority: decode(&answer.authority)?,
            additional: decode(&answer.additional)?,
        };
        // The OPT record is the last one in replies of ours.
        let opt = reply.get(received.response.message().len()..).filter(|_| received.has_edns);
        if let Some(opt) = opt.and_then(read_opt) {
            whole.add_opt(opt, is_padded)?;
        }
        Ok(whole)
    }

    /// Adds the OPT record and in it, if asked for, as much padding as what hickory makes of the rest needs.
    fn add_opt(&mut self, mut opt: wire::Record, is_padded: bool) -> Result<(), ProtoError> {
        self.additional.push(decode(&opt)?);
        if is_padded {
            let mut encoded = Vec::new();
            let mut encoder = BinEncoder::new(&mut encoded);
            encoder.set_max_size(u16::MAX);
            self.response().destructive_emit(&mut encoder)?;
            if let Some(octets) = wire::padding(encoded.len(), MAX_MESSAGE_BYTES) {
                let head = [OPTION_PADDING, octets as u16].map(u16::to_be_bytes);
                opt.rdata = [&opt.rdata[..], &head.concat(), &vec![0; octets]].concat().into();
                self.additional.pop();
                self.additional.push(decode(&opt)?);
            }
        }
        Ok(())
    }

    fn response(&self) -> MessageResponse<'_, '_, Records<'_>, Records<'_>, Records<'_>, Records<'_>> {
        let Self { metadata, queries, answer, authority, additional } = self;
        MessageResponseBuilder::new(queries, None).build(*metadata, answer, authority, &[], additional)
    }
}

fn read_opt(opt: &[u8]) -> Option<wire::Record> {
    Some(wire::Record {
        owner: wire::Name::root(),
        rtype: Rtype::OPT,
        class: Class(wire::read_u16(opt, 3)?),
        ttl: wire::read_u32(opt, 5)?,
        rdata: opt.get(11..)?.into(),
    })
}

fn decode(record: &wire::Record) -> Result<Record, ProtoError> {
    let code = RecordType::from(record.rtype.0);
    let rdata = match &*record.rdata {
        [] => RData::Update0(code), // its word for nothing
        octets => RData::Unknown { code, rdata: NULL::with(octets.to_vec()) },
    };
    let mut decoded = Record::from_rdata(Name::from_bytes(record.owner.wire())?, record.ttl, rdata);
    decoded.dns_class = DNSClass::from(record.class.0);
    Ok(decoded)
}

/// How long a connection that is over is kept for what has not left yet.
const PARTING: Duration = Duration::from_millis(100);
/// How long it takes to listen anew after a failure.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
#[path = "quic_tests.rs"]
mod tests;
