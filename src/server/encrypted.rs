//! TLS and HTTPS: what proves who we are, and hickory-server's HTTPS listener, handing us its requests.
//!
//! DNS over TLS (RFC 7858) is served by [`super::tcp`] behind a handshake: there it is pipelined, answered out of order,
//! bounded, and relayed as bytes. Hickory's own listener answers one query of a connection at a time.
//!
//! DNS over HTTPS (RFC 8484) is hickory's, whose traps are: it sends messages of its own making alone, so that a reply is
//! taken apart into records whose RDATA it does not look into; it takes POST, not GET, and only from clients that accept
//! `application/dns-message` by name; it has no bound on connections but their idle timeout.

use std::{fmt::Display, io, path::PathBuf, sync::Arc};

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use hickory_server::{
    Server,
    net::{runtime::Time, tls::default_provider},
    proto::{
        ProtoError,
        op::{Header, HeaderCounts, Metadata},
        rr::{DNSClass, Name, RData, Record, RecordType, rdata::NULL},
        serialize::binary::{BinDecodable, BinDecoder},
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo, default_tls_server_config},
    zone_handler::MessageResponseBuilder,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};
use tokio_util::sync::CancellationToken;

use super::{Config, Face, Incoming, face::Fate};
use crate::{metrics::Transport, wire};

/// What encrypted listeners show to prove who we are. A reload replaces it under them.
#[derive(Debug, Default)]
pub struct Identity(ArcSwapOption<CertifiedKey>);

/// A certificate with the chain to its authority, and its private key.
pub type Certificate = Arc<CertifiedKey>;

/// What is wrong with the files that prove who we are.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file that cannot be read, or is not what it should be.
    #[error("{file}: {error}; {key} is the path of {what} in PEM format, readable for this user")]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        error: pem::Error,
        /// The key of the configuration that names it.
        key: &'static str,
        /// What should be in it.
        what: &'static str,
    },
    /// Files that do not belong together, or a key that is not supported.
    #[error(
        "{certificate} and {private_key} cannot be used: {error}; take the certificate that was issued for this key"
    )]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
}

impl Identity {
    /// Shows this certificate from now on; connections that are open keep theirs.
    pub fn set(&self, certificate: Option<Certificate>) {
        self.0.store(certificate);
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Reads the certificate of a configuration, if it names one.
pub fn load_certificate(config: &Config) -> Result<Option<Certificate>, CertificateError> {
    let (Some(certificate), Some(private_key)) = (&config.certificate, &config.private_key) else { return Ok(None) };
    let fault = |file: &PathBuf, key, what| {
        let file = file.clone();
        move |error| CertificateError::File { file, error, key, what }
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .and_then(|chain: Vec<_>| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
        .map_err(fault(certificate, "certificate", "our certificate and those between it and its authority"))?;
    let key = PrivateKeyDer::from_pem_file(private_key).map_err(fault(
        private_key,
        "private_key",
        "the private key of the certificate",
    ))?;
    match CertifiedKey::from_der(chain, key, &default_provider()) {
        Ok(certified) => Ok(Some(Arc::new(certified))),
        Err(error) => {
            Err(CertificateError::Pair { certificate: certificate.clone(), private_key: private_key.clone(), error })
        }
    }
}

/// What a TCP listener needs to speak TLS.
pub fn tls_acceptor(identity: Arc<Identity>) -> io::Result<TlsAcceptor> {
    Ok(TlsAcceptor::from(Arc::new(default_tls_server_config(b"dot", identity)?)))
}

/// Serves DNS over HTTPS until `shutdown`, by the future that it returns.
pub fn serve_https(
    listener: TcpListener,
    identity: Arc<Identity>,
    face: Arc<Face>,
    shutdown: CancellationToken,
) -> io::Result<impl Future<Output = ()>> {
    // One timeout for the handshake, the body of a request, and the silence between two.
    let patience = face.config().tcp_idle_timeout;
    let mut server = Server::new(Handler(face));
    server.register_https_listener(listener, patience, identity, None, HTTPS_PATH.into())?;
    Ok(async move {
        shutdown.cancelled().await;
        // Its only errors are those of a listener that is gone, as this one shall be.
        let _ = server.shutdown_gracefully().await;
    })
}

struct Handler(Arc<Face>);

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(&self, request: &Request, mut client: R) -> ResponseInfo {
        let mut info = Header { metadata: request.metadata, counts: HeaderCounts::default() }.into();
        // Without a response the client sees its request canceled; it is gone anyway if it takes none.
        if let Some(reply) = self.reply_to(request).await
            && let Ok((metadata, [answer, authority, additional])) = take_apart(&reply)
        {
            let response = MessageResponseBuilder::from_message_request(request);
            let response = response.build(metadata, &answer, &authority, [], &additional);
            info = client.send_response(response).await.unwrap_or(info);
        }
        info
    }
}

impl Handler {
    async fn reply_to(&self, request: &Request) -> Option<Vec<u8>> {
        let Self(face) = self;
        let client = face.stream_client(request.src().ip(), &face.config());
        let incoming = Incoming { wire: request.as_slice(), client, transport: Transport::Https };
        let (sender, mut settled) = mpsc::channel(1);
        let mut reply = Vec::new();
        match face.take_stream(incoming, &sender, &mut reply) {
            Fate::Settled => Some(reply),
            Fate::Open => settled.recv().await,
            Fate::Silent | Fate::Hopeless => None,
        }
    }
}

/// A reply as hickory wants it: its header and its sections. Only names are decoded; whatever a record holds passes through.
fn take_apart(reply: &[u8]) -> Result<(Metadata, [Vec<Record>; 3]), ProtoError> {
    let unreadable = |error: &dyn Display| ProtoError::from(error.to_string());
    let metadata = Header::read(&mut BinDecoder::new(reply))?.metadata;
    let received = wire::Response::read(reply).map_err(|error| unreadable(&error))?;
    let answer = received.response.to_answer().map_err(|error| unreadable(&error))?;
    let decode = |record: &wire::Record| -> Result<Record, ProtoError> {
        let code = RecordType::from(record.rtype.0);
        let rdata = match &*record.rdata {
            [] => RData::Update0(code), // its word for nothing
            octets => RData::Unknown { code, rdata: NULL::with(octets.to_vec()) },
        };
        let mut decoded = Record::from_rdata(Name::from_bytes(record.owner.wire())?, record.ttl, rdata);
        decoded.dns_class = DNSClass::from(record.class.0);
        Ok(decoded)
    };
    let section = |records: &[wire::Record]| records.iter().map(decode).collect::<Result<Vec<_>, _>>();
    let mut additional = section(&answer.additional)?;
    // The OPT record, which is the last one in replies of ours.
    if let Some(opt) = reply.get(received.response.message().len()..).filter(|_| received.has_edns) {
        additional.push(Record::from_bytes(opt)?);
    }
    Ok((metadata, [section(&answer.answer)?, section(&answer.authority)?, additional]))
}

/// Where RFC 8484 §4.1.1 has its examples, and every client looks by itself.
const HTTPS_PATH: &str = "/dns-query";

#[cfg(test)]
#[path = "encrypted_tests.rs"]
mod tests;
