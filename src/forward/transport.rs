//! From the URL of an upstream to a connection that exchanges messages: TCP, TLS and HTTPS.
//!
//! Each upstream has one connection, opened when it is first needed, kept open, and used by many queries at once. A
//! server may close it at any time, so a query that is open then goes out again on a new one (RFC 7766 §6.2.4), until its time
//! is up: at once if the connection had brought any answer, else as soon as the [pace](super::pace) of the upstream allows,
//! unless there is another upstream to be asked. A query that hears nothing for two seconds on a connection that was open
//! before goes out again, too, for the peer may be gone without a word. An upstream that answers few queries on a connection
//! gets several, at most eight with open queries.
//!
//! TCP and TLS are ours. HTTPS is hickory's, whose traps are: it sends all queries with the id zero, holds no more than 32
//! in its queue, and drops a message that it cannot decode to the last record.

use std::{
    io,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
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
use tokio::{
    net::TcpStream,
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, pki_types::ServerName},
};

use super::{
    pace::Pace,
    tcp::{self, End},
    trust::Trust,
    url::{Transport, UpstreamUrl},
};
use crate::wire::{put_u16, read_u16};

/// The connection to one upstream, open or not.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Who finds it broken puts a new cell in place of this one; who comes while it is opened waits for that.
    kept: Mutex<Arc<OnceCell<Open>>>,
    pace: Arc<Pace>,
    /// One for each stream with open queries.
    permits: Permits,
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

/// How often a query goes out again that is open when its server closes the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retries {
    /// As long as connections bring answers to any query: there is another upstream to be asked.
    Answered,
    /// For so long.
    For(Duration),
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
    pub async fn exchange(&self, url: &UpstreamUrl, query: &[u8], retries: Retries) -> Result<Vec<u8>, Error> {
        let was_closed = AtomicBool::new(false);
        let mut exchange = pin!(self.exchange_again(url, query, retries, &was_closed));
        if let Retries::For(left) = retries {
            match timeout(left.saturating_sub(FOR_THE_REASON), &mut exchange).await {
                Ok(result) => return result,
                // The caller is told while it can still say why there is no response.
                Err(_) if was_closed.load(Relaxed) => return Err(Error::Closed),
                Err(_) => {}
            }
        }
        exchange.await
    }

    /// `was_closed` becomes true when a server has closed a connection that brought nothing.
    async fn exchange_again(
        &self,
        url: &UpstreamUrl,
        query: &[u8],
        retries: Retries,
        was_closed: &AtomicBool,
    ) -> Result<Vec<u8>, Error> {
        let (mut sent, mut was_silent) = (0, false);
        while sent < MOST_SENDS {
            if retries == Retries::Answered && self.pace.open_at().is_some_and(|open_at| open_at > Instant::now()) {
                return Err(Error::Closed);
            }
            let kept = self.kept();
            let was_open = kept.initialized();
            let open = match kept.get_or_try_init(|| self.open(url)).await {
                Ok(open) => open,
                // The pace bounds how often that is.
                Err(Error::Closed) => {
                    sent += 1;
                    was_closed.store(true, Relaxed);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if !open.take_place() {
                self.replace(&kept);
                continue;
            }
            sent += 1;
            let most_silence = if was_open && !was_silent { SILENCE_ON_KEPT } else { Duration::MAX };
            match timeout(most_silence, open.exchange(query)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(failure)) => {
                    self.replace(&kept);
                    // Who finds a connection broken that was open before has not seen a new one fail.
                    if !failure.is_retried && !was_open {
                        return Err(failure.error);
                    }
                    was_closed.store(self.pace.open_at().is_some(), Relaxed);
                }
                Err(_) => {
                    self.replace(&kept);
                    was_silent = true;
                }
            }
        }
        Err(Error::Closed)
    }

    fn kept(&self) -> Arc<OnceCell<Open>> {
        let mut kept = self.kept.lock();
        if kept.get().is_some_and(Open::is_closed) {
            *kept = Arc::default();
        }
        Arc::clone(&kept)
    }

    async fn open(&self, url: &UpstreamUrl) -> Result<Open, Error> {
        if let Some(open_at) = self.pace.open_at() {
            sleep_until(open_at).await;
        }
        let permit = Arc::clone(&self.permits.0).acquire_owned().await.map_err(|_| Error::Closed)?;
        timeout(OPENING, self.connect(url, permit)).await.map_err(|_| Error::Timeout)?
    }

    fn replace(&self, broken: &Arc<OnceCell<Open>>) {
        let mut kept = self.kept.lock();
        if Arc::ptr_eq(&kept, broken) {
            *kept = Arc::default();
        }
    }

    async fn connect(&self, url: &UpstreamUrl, permit: OwnedSemaphorePermit) -> Result<Open, Error> {
        let pace = Arc::clone(&self.pace);
        match &url.transport {
            Transport::Udp | Transport::Tcp => {
                Ok(Open::Stream(tcp::spawn(open_tcp(url).await?, MAX_IDLE, pace, permit)))
            }
            Transport::Tls { server_name } => {
                let name = ServerName::try_from(server_name.clone());
                let name = name.map_err(|_| Error::ServerName(server_name.clone()))?;
                let connector = TlsConnector::from(self.tls()?);
                let stream =
                    connector.connect(name, open_tcp(url).await?).await.map_err(|error| match error.kind() {
                        // Closed in the handshake, as by a server that has too many connections.
                        io::ErrorKind::UnexpectedEof => {
                            self.pace.note_closed(0, true, Instant::now());
                            Error::Closed
                        }
                        _ => Error::Encrypted(error.to_string()),
                    })?;
                Ok(Open::Stream(tcp::spawn(stream, MAX_IDLE, pace, permit)))
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

    /// Takes a place for a query, if the server answers another one on this connection.
    fn take_place(&self) -> bool {
        match self {
            Self::Stream(sender) => sender.take_place(),
            Self::Https(_) => true,
        }
    }

    async fn exchange(&self, query: &[u8]) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Stream(sender) => sender.exchange(query).await.map_err(|end| match end {
                End::Closed | End::Reset => Failure { error: Error::Closed, is_retried: true },
                End::Broken | End::Idle => Failure { error: Error::Closed, is_retried: false },
            }),
            Self::Https(exchange) => {
                exchange_https(exchange, query).await.map_err(|error| Failure { error, is_retried: false })
            }
        }
    }
}

/// Why a query got no response on an open connection.
struct Failure {
    error: Error,
    /// True if it goes out again even from a connection that was new.
    is_retried: bool,
}

/// Bounds the streams of one upstream that have open queries.
#[derive(Debug)]
struct Permits(Arc<Semaphore>);

impl Default for Permits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST_STREAMS)))
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

/// How long before the end of its time a query fails whose connections were closed.
const FOR_THE_REASON: Duration = Duration::from_millis(100);
/// How often a query is sent at most. At the slowest pace that takes longer than a query may.
const MOST_SENDS: u32 = 16;
/// Servers bound the connections of a client; dnsmasq has twenty in all.
const MOST_STREAMS: usize = 8;
/// How long a connection may take to open: a lost SYN is sent again after one second.
const OPENING: Duration = Duration::from_millis(2500);
/// How long a query hears nothing on a connection that was open before it tries a new one.
const SILENCE_ON_KEPT: Duration = Duration::from_secs(2);
/// How long a connection of ours is kept when nothing is said on it: servers keep theirs about as long.
const MAX_IDLE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, task::Poll};

    use tokio::{
        io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
        net::TcpListener,
    };
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const LONG: Retries = Retries::For(Duration::from_secs(60));

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
        let (first, second) = tokio::join!(
            connection.exchange(&url, b"\x00\x01first", LONG),
            connection.exchange(&url, b"\x00\x01second", LONG)
        );
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
        assert_eq!(connection.exchange(&url, b"\x00\x01first", LONG).await.unwrap(), b"\x00\x01first");
        assert_eq!(connection.exchange(&url, b"\x00\x02second", LONG).await.unwrap(), b"\x00\x02second");
        server.await.unwrap();
    }

    /// A server that answers so many queries on each connection, and reads on but closes it then.
    async fn serve_few(listener: TcpListener, answers: impl Fn() -> usize + Send + 'static, opened: Arc<AtomicUsize>) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            opened.fetch_add(1, Relaxed);
            let answers = answers();
            tokio::spawn(async move {
                for _ in 0..answers {
                    let frame = read_frame(&mut stream).await;
                    write_frame(&mut stream, &frame).await;
                }
                stream.shutdown().await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
        }
    }

    #[tokio::test]
    async fn queries_that_a_server_leaves_open_go_out_again_on_another_connection() {
        for answers in [1, 2, 7] {
            let (listener, url) = listen().await;
            let opened = Arc::new(AtomicUsize::new(0));
            let server = tokio::spawn(serve_few(listener, move || answers, Arc::clone(&opened)));
            let connection = Connection::default();
            let queries: Vec<[u8; 4]> = (0..200u16).map(|number| [0, 1, (number >> 8) as u8, number as u8]).collect();
            let exchanges = queries.iter().map(|query| connection.exchange(&url, query, LONG));
            let responses = join_all(exchanges).await;
            for (query, response) in queries.iter().zip(responses) {
                assert_eq!(response.unwrap(), query, "{answers}");
            }
            let least = 200 / answers;
            let opened = opened.load(Relaxed);
            assert!((least..=least + 20).contains(&opened), "{opened} connections for 200 queries, {answers} on each");
            server.abort();
        }
    }

    /// Drives all of them at a time.
    async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
        let mut futures: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
        std::future::poll_fn(|context| {
            for (future, output) in futures.iter_mut().filter(|(_, output)| output.is_none()) {
                if let Poll::Ready(value) = future.as_mut().poll(context) {
                    *output = Some(value);
                }
            }
            if futures.iter().all(|(_, output)| output.is_some()) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        futures.into_iter().filter_map(|(_, output)| output).collect()
    }

    #[tokio::test]
    async fn a_server_that_closes_at_once_is_not_flooded() {
        let (listener, url) = listen().await;
        let opened = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(serve_few(listener, || 0, Arc::clone(&opened)));
        let connection = Connection::default();
        let exchanges =
            (0..50).map(|_| timeout(Duration::from_millis(800), connection.exchange(&url, b"\x00\x01query", LONG)));
        let responses = join_all(exchanges).await;
        assert!(responses.iter().all(Result::is_err), "until the caller's time is up");
        let opened = opened.load(Relaxed);
        assert!((1..=5).contains(&opened), "{opened} connections in 0.8 s");
        server.abort();
    }

    #[tokio::test]
    async fn errors_are_told_and_do_not_last() {
        let (listener, url) = listen().await;
        let address = listener.local_addr().unwrap();
        drop(listener);
        let connection = Connection::default();
        assert!(matches!(connection.exchange(&url, b"\x00\x01query", LONG).await, Err(Error::Io(_))));

        let listener = TcpListener::bind(address).await.unwrap();
        let server = tokio::spawn(async move {
            // Closed with a query unread, it is reset.
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_u8().await.unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().await.unwrap();
            let frame = read_frame(&mut stream).await;
            write_frame(&mut stream, &frame).await;
        });
        assert!(connection.exchange(&url, b"\x00\x01query", LONG).await.is_err(), "a new connection that is reset");
        assert_eq!(connection.exchange(&url, b"\x00\x01query", LONG).await.unwrap(), b"\x00\x01query");
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
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config =
            crate::tls::server().with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
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
            let (result, ()) = tokio::join!(connection.exchange(&url, query, LONG), server);
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
            let error = Connection::default().exchange(&url, query, LONG).await.unwrap_err();
            assert!(matches!(error, Error::Encrypted(_)), "{scheme}: {error}");
            server.await.unwrap();
        }
    }
}
