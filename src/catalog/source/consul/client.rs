//! Requests to an agent: on connections that are kept, and bounded in number.
//!
//! An agent closes the door to a client that holds 200 connections. A connection serves one request at a time, and a
//! request that waits for a change occupies its own; so there are as many as there are requests, and no more than
//! [`MOST_CONNECTIONS`].

use std::{
    future::pending,
    io::{self, BufReader},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem},
    },
};
use url::Url;

use super::{
    Config, Fault,
    api::{Reply, Response, What},
    config::host_of,
    size::Size,
};
use crate::{
    budget::{Account, Budget, Charge},
    files, tls,
};

/// What sends requests to the agents of one section.
pub(super) struct Client {
    config: Config,
    tls: Option<TlsConnector>,
    /// Connections that wait for a request, each with the place of its address.
    idle: Mutex<Vec<(usize, Connection)>>,
    permits: Semaphore,
    /// For responses that are too large to be held.
    large: Semaphore,
    /// For those that are a large part of what may be held.
    huge: Semaphore,
}

/// What is wrong with the files that the section `[catalog.consul]` names.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file that cannot be used.
    #[error("catalog.consul.{key}: {file}: {cause}; name a readable file in PEM format")]
    Pem {
        /// The key that names it.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Why not.
        cause: pem::Error,
    },
    /// Certificates or keys that TLS refuses.
    #[error("catalog.consul: the certificates or the key cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The token.
    #[error("catalog.consul.token_file: {file}: {cause}; make it readable for this user")]
    Token {
        /// The file.
        file: PathBuf,
        /// Why not.
        cause: io::Error,
    },
}

struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// Whoever waits for a response drives it.
    driver: Pin<Box<Driver>>,
    is_open: bool,
}

/// The head of a response and what it says.
type Exchanged = Result<(http::response::Parts, Result<Reply, Fault>), Fault>;

type Driver = http1::Connection<TokioIo<Box<dyn Stream>>, Empty<Bytes>>;

/// A stream with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    /// Reads the files that the section names.
    pub fn new(config: &Config) -> Result<Self, FileError> {
        config.read_token()?;
        let needs_tls = config.address.urls().iter().any(|url| url.scheme() == "https");
        let tls = needs_tls.then(|| tls_config(config)).transpose()?;
        Ok(Self {
            config: config.clone(),
            tls: tls.map(|config| TlsConnector::from(Arc::new(config))),
            idle: Mutex::new(Vec::new()),
            permits: Semaphore::new(MOST_CONNECTIONS),
            large: Semaphore::new(MOST_LARGE),
            huge: Semaphore::new(1),
        })
    }

    /// Asks the agent at this place among the addresses; `after` is the index that the response has to exceed. The response
    /// is charged to `budget` until it has been read.
    pub async fn ask(
        &self,
        place: usize,
        what: &What,
        after: Option<u64>,
        budget: &Arc<Budget>,
    ) -> Result<Response, Fault> {
        let account = budget.open_agent();
        tokio::select! {
            biased;
            () = account.revoked() => Err(Fault::NoRoom),
            response = self.ask_for(place, what, after, &account) => response,
        }
    }

    async fn ask_for(
        &self,
        place: usize,
        what: &What,
        after: Option<u64>,
        account: &Account,
    ) -> Result<Response, Fault> {
        let _permit = self.permits.acquire().await.map_err(|_| Fault::Closed)?;
        let url = self.config.address.urls().get(place).ok_or(Fault::Closed)?;
        let token = self.token().await?;
        let request = || self.request(url, &what.path(&self.config, after), token.clone());
        let kept = {
            let mut idle = self.idle.lock();
            let place = idle.iter().rposition(|(of, connection)| *of == place && !connection.sender.is_closed());
            place.map(|place| idle.swap_remove(place).1)
        };
        let outcome = match kept {
            // The agent may have closed it while nobody looked: then it has not seen the request.
            Some(mut connection) => match connection.exchange(request()?, self, what, account).await {
                Err(Fault::Http(_)) => None,
                outcome => Some((connection, outcome)),
            },
            None => None,
        };
        let (connection, outcome) = match outcome {
            Some(outcome) => outcome,
            None => {
                let mut connection = self.connect(url).await?;
                let outcome = connection.exchange(request()?, self, what, account).await;
                (connection, outcome)
            }
        };
        let (parts, reply) = outcome?;
        {
            let mut idle = self.idle.lock();
            idle.retain(|(of, _)| *of == place);
            if connection.is_open && idle.len() < MOST_IDLE {
                idle.push((place, connection));
            }
        }
        let index = parts.headers.get(INDEX).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let reply = reply?;
        if !parts.status.is_success() {
            return Ok(Response { reply, index: index.unwrap_or(0) });
        }
        let needs_index = matches!(reply, Reply::Services(_) | Reply::Nodes(_) | Reply::Members(_));
        match index {
            None if needs_index => Err(Fault::NoIndex),
            index => Ok(Response { reply, index: index.unwrap_or(0) }),
        }
    }

    /// Reads a response. The inner error is one of what it says, on a connection that is sound.
    async fn read(&self, what: &What, response: http::Response<Incoming>, account: &Account) -> Exchanged {
        let (parts, mut body) = response.into_parts();
        let most_bytes = self.config.max_response_bytes;
        if body.size_hint().lower() > most_bytes.as_u64() {
            return Err(Fault::TooLong(most_bytes));
        }
        let mut charge = account.charge(0).map_err(|_| Fault::NoRoom)?;
        let (start, is_whole) = read_start(&mut body, &mut charge).await?;
        let reply = if !parts.status.is_success() {
            // A denial is short; a long one is not read to its end.
            let status = parts.status.as_u16();
            let text = || String::from_utf8_lossy(&start[..start.len().min(200)]).trim().to_owned();
            what.read_denial(status, &start).ok_or_else(|| Fault::Status { status, text: text() })
        } else if is_whole {
            what.read(&start)
        } else {
            self.read_large(what, start, body, charge).await
        };
        Ok((parts, reply))
    }

    /// Reads a large response as it comes, on a thread of its own: the text is never held as a whole.
    ///
    /// What it says takes memory instead, of about the same size, and counts as the text does.
    async fn read_large(
        &self,
        what: &What,
        start: Bytes,
        mut body: Incoming,
        mut charge: Charge,
    ) -> Result<Reply, Fault> {
        // The others are not read meanwhile, and so wait at the agent.
        let _permit = self.large.acquire().await.map_err(|_| Fault::Closed)?;
        let mut huge_permit = None;
        let most_bytes = self.config.max_response_bytes;
        let mut read_bytes = start.len() as u64;
        let mut size = Size::new(most_bytes.as_u64(), what.list_depth());
        if !size.add(&start) {
            return Err(Fault::TooMany(most_bytes));
        }
        let (frames, coming) = mpsc::channel(FRAMES);
        let what = what.clone();
        let reader = BufReader::with_capacity(BUFFER_BYTES, Frames { rest: start, coming });
        let parser = tokio::task::spawn_blocking(move || what.read_stream(reader));
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(Fault::http)?.into_data() else { continue };
            read_bytes += data.len() as u64;
            if read_bytes > most_bytes.as_u64() {
                return Err(Fault::TooLong(most_bytes));
            }
            if !size.add(&data) {
                return Err(Fault::TooMany(most_bytes));
            }
            if read_bytes > HUGE_BYTES && huge_permit.is_none() {
                huge_permit = Some(self.huge.acquire().await.map_err(|_| Fault::Closed)?);
            }
            let counted = usize::try_from(read_bytes).unwrap_or(usize::MAX);
            charge.resize_response(counted).map_err(|_| Fault::NoRoom)?;
            if frames.send(data).await.is_err() {
                // It is at fault, which the parser says.
                break;
            }
        }
        drop(frames);
        parser.await.map_err(|panic| Fault::Json(panic.to_string()))?
    }

    /// The token for a request; a file is read each time.
    async fn token(&self) -> Result<Option<HeaderValue>, Fault> {
        let token = match &self.config.token_file {
            None => self.config.token.clone(),
            Some(_) => {
                let config = self.config.clone();
                let read = move || config.read_token().map_err(|error| error.to_string());
                beside(read).await?.map_err(Fault::Token)?
            }
        };
        let value = |token: String| {
            let mut value = HeaderValue::from_str(&token).map_err(|_| Fault::Token("not a token".to_owned()))?;
            value.set_sensitive(true);
            Ok(value)
        };
        token.map(value).transpose()
    }

    fn request(&self, url: &Url, path: &str, token: Option<HeaderValue>) -> Result<Request<Empty<Bytes>>, Fault> {
        let host = &url[url::Position::BeforeHost..url::Position::AfterPort];
        let prefix = url.path().trim_end_matches('/');
        let mut request = Request::get(format!("{prefix}{path}")).header(header::HOST, host);
        if let Some(token) = token {
            request = request.header(TOKEN, token);
        }
        request.body(Empty::new()).map_err(|error| Fault::Request(error.to_string()))
    }

    async fn connect(&self, url: &Url) -> Result<Connection, Fault> {
        let host = host_of(url);
        let port = url.port_or_known_default().unwrap_or(8500);
        let mut outcome = Err(Fault::Resolve(host.to_owned()));
        let addresses = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => {
                let host = host.to_owned();
                beside(move || resolve(&host)).await?
            }
        };
        for ip in addresses {
            let address = SocketAddr::new(ip, port);
            outcome = TcpStream::connect(address).await.map_err(|cause| Fault::Connect { address, cause });
            if outcome.is_ok() {
                break;
            }
        }
        let stream = outcome?;
        // Requests are one packet, and wait for nothing.
        stream.set_nodelay(true).map_err(Fault::Io)?;
        let stream: Box<dyn Stream> = match &self.tls {
            Some(tls) if url.scheme() == "https" => {
                let name = self.config.server_name.as_deref().unwrap_or(host).to_owned();
                let name = ServerName::try_from(name).map_err(|error| Fault::Tls(io::Error::other(error)))?;
                Box::new(tls.connect(name, stream).await.map_err(Fault::Tls)?)
            }
            _ => Box::new(stream),
        };
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(Fault::http)?;
        Ok(Connection { sender, driver: Box::pin(driver), is_open: true })
    }
}

impl Connection {
    async fn exchange(
        &mut self,
        request: Request<Empty<Bytes>>,
        client: &Client,
        what: &What,
        account: &Account,
    ) -> Exchanged {
        let exchange = async {
            self.sender.ready().await.map_err(Fault::http)?;
            let response = self.sender.send_request(request).await.map_err(Fault::http)?;
            client.read(what, response, account).await
        };
        let (driver, is_open) = (&mut self.driver, &mut self.is_open);
        tokio::select! {
            outcome = exchange => outcome,
            // What the connection ends with is told to the exchange, which may have got all it wanted.
            never = async { let _ = driver.await; *is_open = false; pending().await } => never,
        }
    }
}

/// Reads files beside the tasks: they may lie on a file system that does not answer.
async fn beside<T: Send + 'static>(read: impl Fn() -> T + Send + Sync + 'static) -> Result<T, Fault> {
    let reading = tokio::task::spawn_blocking(|| files::patiently(FILE_PATIENCE, read));
    reading.await.map_err(|_| Fault::Closed)
}

/// Reads a body until it ends, which is told, or is large.
async fn read_start(body: &mut Incoming, charge: &mut Charge) -> Result<(Bytes, bool), Fault> {
    let mut read = BytesMut::new();
    while read.len() < LARGE_BYTES {
        let Some(frame) = body.frame().await else { return Ok((read.freeze(), true)) };
        if let Ok(data) = frame.map_err(Fault::http)?.into_data() {
            charge.resize_response(read.len() + data.len()).map_err(|_| Fault::NoRoom)?;
            read.extend_from_slice(&data);
        }
    }
    Ok((read.freeze(), false))
}

/// A body for a parser on another thread, frame by frame.
struct Frames {
    rest: Bytes,
    coming: mpsc::Receiver<Bytes>,
}

impl io::Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            let Some(next) = self.coming.blocking_recv() else { return Ok(0) };
            self.rest = next;
        }
        let taken = self.rest.split_to(buffer.len().min(self.rest.len()));
        buffer[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// The addresses of a host: itself if it is one, else what the hosts file says. Nobody else is asked: he might be us.
pub(super) fn resolve(host: &str) -> Vec<IpAddr> {
    if let Ok(ip) = host.parse() {
        return vec![ip];
    }
    let hosts = files::read(Path::new("/etc/hosts"), files::SMALL).map(|(hosts, _)| hosts).unwrap_or_default();
    let mut found = find_host(&String::from_utf8_lossy(&hosts), host);
    if found.is_empty() && host.eq_ignore_ascii_case("localhost") {
        found = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    }
    found
}

fn find_host(hosts: &str, host: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    let found = lines.filter_map(|mut words| {
        let ip = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(host)).then_some(ip)
    });
    found.collect()
}

fn tls_config(config: &Config) -> Result<ClientConfig, FileError> {
    let roots = match &config.ca_file {
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for authority in certificates("ca_file", file)? {
                roots.add(authority)?;
            }
            roots
        }
        None => tls::system_roots(),
    };
    let builder = tls::client().with_root_certificates(roots);
    Ok(match (&config.cert_file, &config.key_file) {
        (Some(certificate), Some(key)) => {
            let chain = certificates("cert_file", certificate)?;
            let key = files::read_private_key(key).map_err(|cause| FileError::Pem {
                key: "key_file",
                file: key.clone(),
                cause,
            })?;
            builder.with_client_auth_cert(chain, key)?
        }
        _ => builder.with_no_client_auth(),
    })
}

fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    files::read_certificates(file).map_err(|cause| FileError::Pem { key, file: file.to_owned(), cause })
}

const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
/// Every service that is followed, what is followed always, and some for all else.
pub(super) const MOST_CONNECTIONS: usize = super::plan::MOST_FOLLOWED + 3 + super::plan::MOST_FETCHES;
const MOST_IDLE: usize = 8;
/// A response beyond this is read as it comes.
const LARGE_BYTES: usize = 64 << 10;
/// So many large responses are read at a time.
const MOST_LARGE: usize = 2;
/// One response at a time is read beyond this. With the beginnings of all others, a large one, and three quarters of
/// `limits.total_bytes` for this one, the default of that limit is not exceeded.
const HUGE_BYTES: u64 = 8 << 20;
/// So many frames wait for the parser.
const FRAMES: usize = 4;
const BUFFER_BYTES: usize = 64 << 10;
/// How long one access to the token or the hosts file may take.
const FILE_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_the_hosts_file_alone() {
        let hosts = "127.0.0.1 localhost # agent\n192.0.2.7\tagent.example Agent\n2001:db8::7 agent\n";
        assert_eq!(find_host(hosts, "agent").len(), 2);
        assert_eq!(find_host(hosts, "AGENT.example"), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(find_host(hosts, "other"), [] as [IpAddr; 0]);
        assert_eq!(resolve("2001:db8::1"), ["2001:db8::1".parse::<IpAddr>().unwrap()]);
        assert!(!resolve("localhost").is_empty());
        assert_eq!(resolve("no.such.host.example"), [] as [IpAddr; 0]);
    }
}
