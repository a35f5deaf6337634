//! From the URL of an upstream to a connection that exchanges messages: TCP, TLS and HTTPS.
//!
//! Each upstream has one connection, opened when it is first needed, kept open, and used by many queries at once. A
//! server may close it at any time, so a query that fails on a connection that was open before goes out once more, on
//! a new one (RFC 7766 §6.2.4); and one that hears nothing there for two seconds does, too, for the peer may be gone
//! without a word.
//!
//! TCP is ours. TLS and HTTPS are hickory's, whose traps are: it draws ids of its own (zero for HTTPS), checks nothing
//! but the id, holds no more than 32 queries in its queue, and drops a message that it cannot decode to the last record.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use hickory_resolver::{
    TlsConfig,
    net::{
        DnsHandle, DnsMultiplexer, NetError,
        h2::HttpsClientStream,
        runtime::TokioRuntimeProvider,
        tls::tls_client_connect,
        xfer::{DnsExchange, FirstAnswer},
    },
    proto::op::{DnsRequest, DnsRequestOptions, Message},
};
use parking_lot::Mutex;
use tokio::{net::TcpStream, sync::OnceCell, time::timeout};

use super::{
    tcp,
    url::{Transport, UpstreamUrl},
};
use crate::wire::{put_u16, read_u16};

/// The connection to one upstream, open or not.
#[derive(Debug, Default)]
pub(super) struct Connection {
    /// Who finds it broken puts a new cell in place of this one; who comes while it is opened waits for that.
    kept: Mutex<Arc<OnceCell<Open>>>,
    tls: OnceLock<Tls>,
}

/// An open connection.
enum Open {
    Tcp(tcp::Sender),
    Encrypted(DnsExchange<TokioRuntimeProvider>),
}

/// The settings of TLS; shared by all connections to an upstream, so that sessions are resumed.
struct Tls(TlsConfig);

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
            Transport::Udp | Transport::Tcp => {
                let stream = TcpStream::connect(url.address).await?;
                stream.set_nodelay(true)?;
                Ok(Open::Tcp(tcp::spawn(stream, MAX_IDLE)))
            }
            Transport::Tls { server_name } => {
                let name = server_name.clone().try_into().map_err(|_| Error::ServerName(server_name.clone()))?;
                let config = Arc::new(self.tls()?.config.clone());
                let (stream, sender) = tls_client_connect(url.address, name, config, TokioRuntimeProvider::new());
                let streams = DnsMultiplexer::new(stream.await?, sender)
                    .with_timeout(ENCRYPTED_TIMEOUT)
                    .with_max_active_requests(MAX_IN_FLIGHT);
                let (exchange, background) = DnsExchange::from_stream(streams);
                tokio::spawn(background);
                Ok(Open::Encrypted(exchange))
            }
            Transport::Https { server_name, path } => {
                let config = Arc::new(self.tls()?.config.clone());
                let builder = HttpsClientStream::builder(config, TokioRuntimeProvider::new());
                let name = server_name.as_str().into();
                let exchange = builder.exchange(url.address, name, path.as_str().into()).await?;
                Ok(Open::Encrypted(exchange))
            }
        }
    }

    fn tls(&self) -> Result<&TlsConfig, Error> {
        if let Some(tls) = self.tls.get() {
            return Ok(&tls.0);
        }
        let config = TlsConfig::new()?;
        Ok(&self.tls.get_or_init(|| Tls(config)).0)
    }
}

impl Open {
    fn is_closed(&self) -> bool {
        match self {
            Self::Tcp(sender) => sender.is_closed(),
            // It says so when it is used.
            Self::Encrypted(_) => false,
        }
    }

    async fn exchange(&self, query: &[u8]) -> Result<Vec<u8>, Error> {
        match self {
            Self::Tcp(sender) => sender.exchange(query).await,
            Self::Encrypted(exchange) => exchange_encrypted(exchange, query).await,
        }
    }
}

async fn exchange_encrypted(exchange: &DnsExchange<TokioRuntimeProvider>, query: &[u8]) -> Result<Vec<u8>, Error> {
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

impl From<NetError> for Error {
    fn from(error: NetError) -> Self {
        Self::Encrypted(error.to_string())
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp(_) => "Tcp",
            Self::Encrypted(_) => "Encrypted",
        })
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

/// How long a connection may take to open: a lost SYN is sent again after one second.
const OPENING: Duration = Duration::from_millis(2500);
/// How long a query hears nothing on a connection that was open before it tries a new one.
const SILENCE_ON_KEPT: Duration = Duration::from_secs(2);
/// No query lives longer, so nothing that is still waiting then is waited for.
const ENCRYPTED_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a connection of ours is kept when nothing is said on it: servers keep theirs about as long.
const MAX_IDLE: Duration = Duration::from_secs(10);
const MAX_IN_FLIGHT: usize = 4096;

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn read_frame(stream: &mut TcpStream) -> Vec<u8> {
        let length = stream.read_u16().await.unwrap();
        let mut frame = vec![0; usize::from(length)];
        stream.read_exact(&mut frame).await.unwrap();
        frame
    }

    async fn write_frame(stream: &mut TcpStream, frame: &[u8]) {
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
