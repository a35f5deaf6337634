//! Connections to what is checked: names resolved by whom we are told, TCP, TLS.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UdpSocket},
    time::{Instant, timeout_at},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use super::{
    definition::{Target, Tls, Trust},
    guard::Reach,
};
use crate::{
    budget::{Account, Budget},
    tls,
};

/// Resolves a host name to its addresses. Literal addresses do not come here.
pub type Resolve = Arc<dyn Fn(&str) -> Resolving + Send + Sync>;

/// The addresses to come.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// What all probes share.
pub struct Dialer {
    resolve: Resolve,
    roots: Box<dyn Fn() -> RootCertStore + Send + Sync>,
    /// For [`Trust::Verified`] and [`Trust::Anyone`]; the roots take a while to read, and few checks need them.
    configs: [OnceLock<ClientConfig>; 2],
    /// What is kept of responses is charged to this.
    budget: Arc<Budget>,
}

/// One probe's use of it, up to a deadline.
pub(super) struct Dial<'a> {
    dialer: &'a Dialer,
    deadline: Instant,
    /// Whether the host of the target has shown a sign of life.
    is_reached: AtomicBool,
    /// The address of the first connection, to which all further ones go.
    peer: OnceLock<SocketAddr>,
    /// The account of the host, once there is a connection.
    account: OnceLock<Account>,
}

/// A stream with TLS or without.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why a probe has failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("resolve {host}: {cause}")]
    Resolve { host: String, cause: io::Error },
    #[error("resolve {host}: no address")]
    NoAddress { host: String },
    #[error("connect to {address}: {cause}")]
    Connect { address: SocketAddr, cause: io::Error },
    #[error("TLS with {target}: {cause}")]
    Tls { target: Target, cause: io::Error },
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{}", with_causes(.0))]
    Http2(#[from] h2::Error),
    #[error("{0}")]
    Response(String),
    #[error("more would be kept of its response than [limits] allow")]
    NoRoom,
}

impl Dialer {
    /// A dialer with the system's resolver and the system's roots of trust. What is kept of responses is charged to `budget`.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { budget, ..Self::with(Arc::new(resolve_by_system), tls::system_roots) }
    }

    /// A dialer with a resolver, and with roots of trust, which are read when the first check needs them.
    pub fn with(resolve: Resolve, roots: impl Fn() -> RootCertStore + Send + Sync + 'static) -> Self {
        let configs = [OnceLock::new(), OnceLock::new()];
        Self { resolve, roots: Box::new(roots), configs, budget: Arc::default() }
    }

    fn config(&self, trust: Trust) -> &ClientConfig {
        self.configs[trust as usize].get_or_init(|| {
            match trust {
                Trust::Verified => tls::client().with_root_certificates((self.roots)()),
                Trust::Anyone => {
                    let verifier = Arc::new(TrustAnyone(tls::provider()));
                    tls::client().dangerous().with_custom_certificate_verifier(verifier)
                }
            }
            .with_no_client_auth()
        })
    }
}

impl<'a> Dial<'a> {
    pub fn new(dialer: &'a Dialer, deadline: Instant) -> Self {
        let (peer, account) = Default::default();
        Self { dialer, deadline, is_reached: AtomicBool::new(false), peer, account }
    }

    /// Opens a connection.
    pub async fn connect(&self, target: &Target) -> Result<TcpStream, Error> {
        let addresses = match self.peer.get() {
            Some(peer) => vec![*peer],
            None => self.resolve(target).await?,
        };
        let mut failure = Error::NoAddress { host: target.host.clone() };
        for (index, &address) in addresses.iter().enumerate() {
            // An address that does not answer must leave time for the others.
            let left = self.deadline.saturating_duration_since(Instant::now());
            let share = Instant::now() + left / (addresses.len() - index) as u32;
            let connected = timeout_at(share, TcpStream::connect(address)).await;
            match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) if is_ourselves(stream.local_addr(), address) => failure = refused(address),
                Ok(stream) => {
                    self.is_reached.store(true, Ordering::Relaxed);
                    self.peer.get_or_init(|| address);
                    self.account.get_or_init(|| self.dialer.budget.open_checked(address.ip()));
                    return Ok(stream);
                }
                Err(cause) => failure = Error::Connect { address, cause },
            }
        }
        Err(failure)
    }

    /// Opens a connection with TLS, if so wanted, offering an application protocol.
    pub async fn connect_with(
        &self,
        target: &Target,
        tls: Option<&Tls>,
        protocol: &[u8],
    ) -> Result<Box<dyn Stream>, Error> {
        let stream = self.connect(target).await?;
        let Some(tls) = tls else { return Ok(Box::new(stream)) };
        let fail = |cause| Error::Tls { target: target.clone(), cause };
        let name = match &tls.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(target.host.clone()).map_err(|cause| fail(io::Error::other(cause)))?,
        };
        let mut config = self.dialer.config(tls.trust).clone();
        if !protocol.is_empty() {
            config.alpn_protocols = vec![protocol.to_vec()];
        }
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(fail)?;
        Ok(Box::new(stream))
    }

    /// The account of the host that is checked. `None` before the first connection.
    pub fn account(&self) -> Option<&Account> {
        self.account.get()
    }

    /// A socket that hears nobody but the target, and its host's errors.
    pub async fn udp(&self, target: &Target) -> Result<UdpSocket, Error> {
        let addresses = self.resolve(target).await?;
        let &address = addresses.first().ok_or_else(|| Error::NoAddress { host: target.host.clone() })?;
        let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(address).await.map_err(|cause| Error::Connect { address, cause })?;
        if is_ourselves(socket.local_addr(), address) { Err(refused(address)) } else { Ok(socket) }
    }

    /// What has been learned about the way to the target, in the end.
    pub fn reach(&self, result: Result<(), &Error>) -> Reach {
        match result {
            _ if self.is_reached.load(Ordering::Relaxed) => Reach::Answered,
            Ok(()) => Reach::Answered,
            Err(error) => error.reach(),
        }
    }

    async fn resolve(&self, target: &Target) -> Result<Vec<SocketAddr>, Error> {
        let addresses = match target.host.parse() {
            Ok(literal) => vec![literal],
            Err(_) => (self.dialer.resolve)(&target.host)
                .await
                .map_err(|cause| Error::Resolve { host: target.host.clone(), cause })?,
        };
        Ok(addresses.into_iter().map(|address| SocketAddr::new(address, target.port)).collect())
    }
}

impl Error {
    fn reach(&self) -> Reach {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, NetworkDown, NetworkUnreachable};
        match self {
            Self::Connect { cause, .. } | Self::Io(cause) => match cause.kind() {
                ConnectionRefused | ConnectionReset => Reach::Answered,
                NetworkUnreachable | NetworkDown => Reach::NoRoute,
                // EHOSTUNREACH is what a single dead neighbor looks like.
                _ => Reach::Silent,
            },
            Self::Resolve { .. } | Self::NoAddress { .. } => Reach::Silent,
            Self::Tls { .. } | Self::Http2(_) | Self::Response(_) | Self::NoRoom => Reach::Answered,
        }
    }
}

/// Whether a socket is connected to itself. Where nobody listens on a port of this host, the system may choose that very
/// port for the probe, which then finds somebody; at a check every ten seconds, once in some days.
fn is_ourselves(local: io::Result<SocketAddr>, peer: SocketAddr) -> bool {
    local.is_ok_and(|local| local == peer)
}

fn refused(address: SocketAddr) -> Error {
    Error::Connect { address, cause: io::ErrorKind::ConnectionRefused.into() }
}

/// Their own messages name the part of the protocol that failed; why it did, only their causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn resolve_by_system(host: &str) -> Resolving {
    let host = host.to_owned();
    Box::pin(async move {
        let addresses = tokio::net::lookup_host((host, 0)).await?;
        Ok(addresses.map(|address| address.ip()).collect())
    })
}

/// Takes any certificate, as `tls_skip_verify` demands; that the server holds its key is still checked.
#[derive(Debug)]
struct TrustAnyone(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer,
        _: &[CertificateDer],
        _: &ServerName,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
