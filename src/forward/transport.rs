//! From the URL of an upstream to a connection that exchanges messages: TCP, TLS and HTTPS.
//!
//! Each upstream has one connection, opened when it is first needed, kept open, and used by many queries at once. A
//! server may close it at any time, so a query that fails on a connection that was open before goes out once more, on
//! a new one (RFC 7766 §6.2.4); and one that hears nothing there for two seconds does, too, for the peer may be gone
//! without a word.
//!
//! TCP and TLS are ours. HTTPS is hickory's, whose traps are: it sends all queries with the id zero, holds no more than 32
//! in its queue, and drops a message that it cannot decode to the last record.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hickory_resolver::{
    net::{
        DnsHandle, NetError,
        h2::HttpsClientStream,
        runtime::TokioRuntimeProvider,
        xfer::{DnsExchange, FirstAnswer},
    },
    proto::op::{DnsRequest, DnsRequestOptions, Message},
};
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::OnceCell, time::timeout};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, pki_types::ServerName},
};

use super::{
    tcp,
    trust::Trust,
    url::{Transport, UpstreamUrl},
};
use crate::wire::{put_u16, read_u16};

/// The connection to one upstream, open or not.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Who finds it broken puts a new cell in place of this one; who comes while it is opened waits for that.
    kept: Mutex<Arc<OnceCell<Open>>>,
    trust: Trust,
    /// Made when it is first needed.
    tls: OnceLock<Arc<ClientConfig>>,
}

/// An open connection.
enum Open {
    Stream(tcp::Sender),
    Https(DnsExchange<TokioRuntimeProvider>),
}

/// Why a stream has brought no response.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection cannot be opened or has broken.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other end has closed it.
    #[error("connection closed")]
    Closed,
    /// Opening it took too long.
    #[error("connection timed out")]
    Timeout,
    /// TLS or HTTPS has failed.
    #[error("{0}")]
    Encrypted(String),
    /// The name after `#` cannot be the name of a certificate.
    #[error("{0:?} is not a server name")]
    ServerName(String),
}

impl Connection {
    /// Not yet open.
    pub fn new(trust: Trust) -> Self {
        Self { trust, ..Self::default() }
    }

    /// Whose certificates are believed.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Sends a query and waits for the message that has its id. The caller sets the time limit.
    pub async fn exchange(&self, url: &UpstreamUrl, query: &[u8]) -> Result<Vec<u8>, Error> {
        let kept = self.kept();
        if let Some(open) = kept.get() {
            match timeout(SILENCE_ON_KEPT, open.exchange(query)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(_)) | Err(_) => self.replace(&kept),
            }
        }
        let kept = self.kept();
        let connecting = || async { timeout(OPENING, self.connect(url)).await.map_err(|_| Error::Timeout)? };
        let result = kept.get_or_try_init(connecting).await?.exchange(query).await;
        if result.is_err() {
            self.replace(&kept);
        }
        result
    }

    fn kept(&self) -> Arc<OnceCell<Open>> {
        let mut kept = self.kept.lock();
        if kept.get().is_some_and(Open::is_closed) {
            *kept = Arc::default();
        }
        Arc::clone(&kept)
    }

    fn replace(&self, broken: &Arc<OnceCell<Open>>) {
        let mut kept = self.kept.lock();
        if Arc::ptr_eq(&kept, broken) {
            *kept = Arc::default();
        }
    }

    async fn connect(&self, url: &UpstreamUrl) -> Result<Open, Error> {
        match &url.transport {
            Transport::Udp | Transport::Tcp => Ok(Open::Stream(tcp::spawn(open_tcp(url).await?, MAX_IDLE))),
            Transport::Tls { server_name } => {
                let name = ServerName::try_from(server_name.clone());
                let name = name.map_err(|_| Error::ServerName(server_name.clone()))?;
                let connector = TlsConnector::from(self.tls()?);
                let stream = connector.connect(name, open_tcp(url).await?).await;
                let stream = stream.map_err(|error| Error::Encrypted(error.to_string()))?;
                Ok(Open::Stream(tcp::spawn(stream, MAX_IDLE)))
            }
            Transport::Https { server_name, path } => {
                let builder = HttpsClientStream::builder(self.tls()?, TokioRuntimeProvider::new());
                let stream =
                    builder.build(url.address.resolve()?, server_name.as_str().into(), path.as_str().into()).await?;
                // The builder's own `exchange` ends this task as soon as it returns.
                let (exchange, background) = DnsExchange::from_stream(stream);
                tokio::spawn(background);
                Ok(Open::Https(exchange))
            }
        }
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, Error> {
        if let Some(config) = self.tls.get() {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.trust.client_config()?);
        Ok(Arc::clone(self.tls.get_or_init(|| config)))
    }
}

async fn open_tcp(url: &UpstreamUrl) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(url.address.resolve()?).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Open {
    fn is_closed(&self) -> bool {
        match self {
            Self::Stream(sender) => sender.is_closed(),
            // It says so when it is used.
            Self::Https(_) => false,
        }
    }

    async fn exchange(&self, query: &[u8]) -> Result<Vec<u8>, Error> {
        match self {
            Self::Stream(sender) => sender.exchange(query).await,
            Self::Https(exchange) => exchange_https(exchange, query).await,
        }
    }
}

async fn exchange_https(exchange: &DnsExchange<TokioRuntimeProvider>, query: &[u8]) -> Result<Vec<u8>, Error> {
    let message = Message::from_vec(query).map_err(NetError::from)?;
    let request = DnsRequest::new(message, DnsRequestOptions::default());
    loop {
        match exchange.send(request.clone()).first_answer().await {
            Ok(response) => {
                let mut message = response.into_buffer();
                put_u16(&mut message, 0, read_u16(query, 0).unwrap_or(0));
                return Ok(message);
            }
            // Its queue is full for the moment: the task that empties it has to run.
            Err(NetError::Busy) => tokio::task::yield_now().await,
            Err(error) => return Err(error.into()),
        }
    }
}

impl From<rustls::Error> for Error {
    fn from(error: rustls::Error) -> Self {
        Self::Encrypted(error.to_string())
    }
}

impl From<NetError> for Error {
    fn from(error: NetError) -> Self {
        Self::Encrypted(error.to_string())
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stream(_) => "Stream",
            Self::Https(_) => "Https",
        })
    }
}

/// How long a connection may take to open: a lost SYN is sent again after one second.
const OPENING: Duration = Duration::from_millis(2500);
/// How long a query hears nothing on a connection that was open before it tries a new one.
const SILENCE_ON_KEPT: Duration = Duration::from_secs(2);
/// How long a connection of ours is kept when nothing is said on it: servers keep theirs about as long.
const MAX_IDLE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
        let length = stream.read_u16().await.unwrap();
        let mut frame = vec![0; usize::from(length)];
        stream.read_exact(&mut frame).await.unwrap();
        frame
    }

    async fn write_frame(stream: &mut (impl AsyncWrite + Unpin), frame: &[u8]) {
        stream.write_u16(frame.len() as u16).await.unwrap();
        stream.write_all(frame).await.unwrap();
    }

    async fn listen() -> (TcpListener, UpstreamUrl) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("tcp://{}", listener.local_addr().unwrap()).parse().unwrap();
        (listener, url)
    }

    #[tokio::test]
    async fn queries_share_a_connection_and_are_answered_out_of_order() {
        let (listener, url) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let frames = [read_frame(&mut stream).await, read_frame(&mut stream).await];
            assert_ne!(frames[0][..2], frames[1][..2], "equal ids are told apart on the way");
            for frame in frames.iter().rev() {
                write_frame(&mut stream, frame).await;
            }
        });
        let connection = Connection::default();
        let (first, second) =
            tokio::join!(connection.exchange(&url, b"\x00\x01first"), connection.exchange(&url, b"\x00\x01second"));
        assert_eq!(first.unwrap(), b"\x00\x01first");
        assert_eq!(second.unwrap(), b"\x00\x01second");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_kept_connection_that_breaks_is_opened_anew() {
        let (listener, url) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let frame = read_frame(&mut stream).await;
            write_frame(&mut stream, &frame).await;
            // The next query arrives, and is met by the end.
            read_frame(&mut stream).await;
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            let frame = read_frame(&mut stream).await;
            write_frame(&mut stream, &frame).await;
        });
        let connection = Connection::default();
        assert_eq!(connection.exchange(&url, b"\x00\x01first").await.unwrap(), b"\x00\x01first");
        assert_eq!(connection.exchange(&url, b"\x00\x02second").await.unwrap(), b"\x00\x02second");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn errors_are_told_and_do_not_last() {
        let (listener, url) = listen().await;
        let address = listener.local_addr().unwrap();
        drop(listener);
        let connection = Connection::default();
        assert!(matches!(connection.exchange(&url, b"\x00\x01query").await, Err(Error::Io(_))));

        let listener = TcpListener::bind(address).await.unwrap();
        let server = tokio::spawn(async move {
            drop(listener.accept().await.unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            let frame = read_frame(&mut stream).await;
            write_frame(&mut stream, &frame).await;
        });
        assert!(connection.exchange(&url, b"\x00\x01query").await.is_err(), "a new connection is not tried twice");
        assert_eq!(connection.exchange(&url, b"\x00\x01query").await.unwrap(), b"\x00\x01query");
        server.await.unwrap();
    }

    /// The acceptor of a server whose certificate bears a name, and the authority that issued it.
    fn certified(name: &str) -> (TlsAcceptor, Trust) {
        let authority_key = rcgen::KeyPair::generate().unwrap();
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(authority, authority_key).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        (TlsAcceptor::from(Arc::new(config)), Trust::Only(vec![authority.der().clone()]))
    }

    #[tokio::test]
    async fn a_certificate_bears_the_name_and_comes_from_an_authority_that_is_believed() {
        let (acceptor, issuer) = certified("dns.example");
        let (_, stranger) = certified("dns.example");
        for (scheme, name, trust, expected) in [
            ("tls", "#dns.example", &issuer, None),
            ("tls", "#evil.example", &issuer, Some("not valid for name")),
            ("tls", "", &issuer, Some("not valid for name")), // the address, then
            ("tls", "#dns.example", &stranger, Some("BadSignature")), // it bears the issuer's name
            ("tls", "#dns.example", &Trust::Public, Some("UnknownIssuer")),
            ("https", "#evil.example", &issuer, Some("not valid for name")),
            ("https", "#dns.example", &stranger, Some("BadSignature")),
            ("https", "#dns.example", &Trust::Public, Some("UnknownIssuer")),
        ] {
            let (listener, url) = listen().await;
            let url: UpstreamUrl = format!("{scheme}://{}{name}", url.address).parse().unwrap();
            let server = async {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let frame = read_frame(&mut stream).await;
                write_frame(&mut stream, &frame).await;
                stream.flush().await.unwrap();
            };
            let connection = Connection::new(trust.clone());
            let query = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";
            let (result, ()) = tokio::join!(connection.exchange(&url, query), server);
            match expected {
                None => assert_eq!(result.unwrap(), query, "{url}"),
                Some(expected) => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains(expected), "{url}: {error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn encryption_with_a_server_that_has_none_fails() {
        for scheme in ["tls", "https"] {
            let (listener, url) = listen().await;
            let url: UpstreamUrl = format!("{scheme}://{}#dns.example", url.address).parse().unwrap();
            let server = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"220 mail.example\r\n").await.unwrap();
                stream
            });
            let query = b"\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01";
            let error = Connection::default().exchange(&url, query).await.unwrap_err();
            assert!(matches!(error, Error::Encrypted(_)), "{scheme}: {error}");
            server.await.unwrap();
        }
    }
}
