//! What faces operators and their tools, over HTTP: metrics, health, and Consul's API.
//!
//! The listener has no accounts. It is bound to loopback unless told otherwise, nothing on it changes state without
//! loopback or a token, and a request must name us as its host, so that no page in a browser on this host can read it under
//! another name.

mod connections;
pub mod consul;
mod health;
mod hosts;
mod payload;
mod request;
mod stream;

use std::{
    error::Error as _,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use humantime_serde::re::humantime::Duration as HumanDuration;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use toml::Spanned;

use crate::{
    budget::{OutOfRange, Place},
    endpoint::{Endpoint, Malformed},
    metrics::Metrics,
    sys,
    wire::Name,
};
use connections::Closed;
pub use connections::Connections;
pub use health::Health;
pub use hosts::OwnHosts;
use request::Desk;
use stream::{MOST_HEAD_BYTES, Stream};

/// What faces operators, section `[control]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address on which `/metrics`, `/live`, `/ready` and Consul's API are served: `IP:PORT` or `[IPv6]:PORT`; `""` for none.
    /// Default "127.0.0.1:8653". Applies at reload.
    #[serde(serialize_with = "serialize_listen", deserialize_with = "deserialize_listen")]
    pub listen: Option<Endpoint>,
    /// A further address, on which only `/metrics`, `/live` and `/ready` are served: `IP:PORT` or `[IPv6]:PORT`. Clients that
    /// may scrape there cannot read the catalog. Default: none. Applies at reload.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "serialize_listen",
        deserialize_with = "deserialize_listen"
    )]
    pub metrics_listen: Option<Endpoint>,
    /// Further names of this host by which requests may address it, on all HTTP addresses. Addresses, `localhost`, the names
    /// of the host and those of the catalog need not be listed. Default: none. Applies at reload.
    pub hosts: Vec<Spanned<String>>,
    /// HTTP connections in all, on all addresses together, from 16 to 65536, but no more than an eighth of the descriptors
    /// (`limits.open_files`); one more closes one of the network that has the most. Four fifths of them may wait for a change
    /// (blocking queries). Default 5120. Applies at reload.
    pub connections: usize,
    /// HTTP connections of one client (an IPv4 address, an IPv6 /64), from 1 to 65536; one more closes the one of these that
    /// was idle longest. Loopback may have all. Default 256. Applies at reload.
    pub connections_per_client: usize,
    /// How long a connection may stay open without the complete head of a request, from "1s" to "10m".
    /// Default "30s". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How long a client may take to send the body of a request, and to read any 64 KiB of a response, from "100ms" to "1m".
    /// Default "10s". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub message_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: Some(Endpoint::new(Ipv4Addr::LOCALHOST.into(), 8653)),
            metrics_listen: None,
            hosts: Vec::new(),
            connections: 5120,
            connections_per_client: 256,
            idle_timeout: Duration::from_secs(30),
            message_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// The names of `hosts` that cannot be the host of a request.
    pub fn faulty_hosts(&self) -> impl Iterator<Item = &Spanned<String>> {
        let is_name = |host: &str| host.parse::<Name>().is_ok_and(|name| !name.is_root());
        self.hosts.iter().filter(move |host| !is_name(host.get_ref()) || host.get_ref().contains(NOT_IN_HOSTS))
    }

    /// Every limit that is out of range.
    pub fn problems(&self) -> Vec<OutOfRange> {
        let span = |key, value: Duration, least_ms, most_ms| {
            let [value, least, most] =
                [value, Duration::from_millis(least_ms), Duration::from_millis(most_ms)].map(HumanDuration::from);
            OutOfRange::of(key, value, least, most)
        };
        let found = [
            OutOfRange::of("connections", self.connections, 16, 65_536),
            OutOfRange::of("connections_per_client", self.connections_per_client, 1, 65_536),
            span("idle_timeout", self.idle_timeout, 1000, 600_000),
            span("message_timeout", self.message_timeout, 100, 60_000),
        ];
        found.into_iter().flatten().collect()
    }

    /// The names of `hosts`.
    pub fn host_names(&self) -> Vec<String> {
        self.hosts.iter().map(|host| host.get_ref().clone()).collect()
    }
}

/// Tells what is missing before every query can be answered as it should be, and which faults there are.
pub type Readiness = Arc<dyn Fn() -> Health + Send + Sync>;

/// What the routes show.
#[derive(Clone)]
pub struct Shown {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/ready`.
    pub readiness: Readiness,
    /// For `/v1/`.
    pub catalog: consul::Feed,
    /// For `/v1/agent/reload`.
    pub reloads: consul::Reloads,
    /// The names under which requests are served.
    pub hosts: OwnHosts,
    /// The connections of all listeners.
    pub connections: Arc<Connections>,
}

/// What is served at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// Everything.
    Control,
    /// Metrics and health.
    Metrics,
    /// Consul's API.
    Consul,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

/// Serves what a face shows until `shutdown`, and requests that have begun for a moment more.
pub async fn serve(listener: Arc<TcpListener>, face: Face, shown: Shown, shutdown: CancellationToken) {
    let (hosts, connections) = (shown.hosts.clone(), shown.connections.clone());
    serve_routes(listener, routes(face, shown, shutdown.clone()), hosts, connections, shutdown).await;
}

async fn serve_routes(
    listener: Arc<TcpListener>,
    routes: Router,
    hosts: OwnHosts,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
) {
    let routes = TowerToHyperService::new(routes);
    let mut serving = JoinSet::new();
    // Given up for one connection more when descriptors have run out.
    let mut spare = spare_descriptor(&listener);
    loop {
        tokio::select! {
            // A connection that comes after the shutdown may be meant for the process that serves the address next.
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = serving.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    spare = spare.or_else(|| spare_descriptor(&listener));
                    let place = tokio::select! {
                        // A client that was accepted has its request served if it has come already.
                        biased;
                        place = connections.enter(peer.ip()) => place,
                        () = shutdown.cancelled() => break,
                    };
                    let Some(place) = place else { continue };
                    let visit = Visit {
                        peer,
                        routes: routes.clone(),
                        hosts: hosts.clone(),
                        connections: connections.clone(),
                        shutdown: shutdown.clone(),
                    };
                    serving.spawn(async move {
                        // The socket is closed with the inner future, and the place is free after that.
                        tokio::select! {
                            biased;
                            () = place.account().revoked() => {}
                            () = visit.serve(stream, &place) => {}
                        }
                    });
                }
                Err(error) if sys::is_exhaustion(&error) => {
                    connections.displace();
                    if spare.take().is_none() {
                        tokio::time::sleep(EXHAUSTION_PAUSE).await;
                    }
                }
                // The client was gone before it was accepted.
                Err(_) => {}
            }
        }
    }
    // Those that are left are broken off.
    let _ = timeout(GRACE, async { while serving.join_next().await.is_some() {} }).await;
}

fn spare_descriptor(listener: &TcpListener) -> Option<OwnedFd> {
    listener.as_fd().try_clone_to_owned().ok()
}

/// What a connection is served with.
struct Visit {
    peer: SocketAddr,
    routes: TowerToHyperService<Router>,
    hosts: OwnHosts,
    connections: Arc<Connections>,
    shutdown: CancellationToken,
}

impl Visit {
    /// Serves a connection until the client closes it, or is silent for too long between requests or within one.
    async fn serve(self, stream: TcpStream, place: &Place) {
        let limits = self.connections.limits();
        // Until something has come, a connection costs no buffers.
        tokio::select! {
            // A request that has come is served, also when the shutdown comes at this moment.
            biased;
            readable = timeout(limits.idle_timeout, stream.readable()) => match readable {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            },
            () = self.shutdown.cancelled() => return,
        }
        // A response is not to wait for what acknowledges the last.
        let _ = stream.set_nodelay(true);
        let Ok((stream, unread)) = Stream::new(stream, place.account(), limits.message_timeout) else { return };
        let desk = Desk {
            routes: self.routes,
            hosts: self.hosts,
            peer: self.peer,
            account: place.account().clone(),
            patience: limits.message_timeout,
        };
        let service = service_fn(|request| {
            let (desk, unread) = (&desk, &unread);
            unread.reset();
            place.occupy();
            async move {
                let response = request::respond(desk, request).await;
                unread.reset();
                place.touch();
                response.ok_or_else(|| io::Error::other("more would wait for this client than the limits allow"))
            }
        });
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.idle_timeout)
                .max_buf_size(MOST_HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service)
        );
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if outcome.is_err_and(|error| is_slowness(&error)) {
            self.connections.note(Closed::Slow);
        }
    }
}

/// True if the client did not read in time. How a connection ends otherwise is the client's affair.
fn is_slowness(error: &hyper::Error) -> bool {
    let error = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    error.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

/// The one list of routes.
fn routes(face: Face, shown: Shown, shutdown: CancellationToken) -> Router {
    let mut routes = Router::new();
    if matches!(face, Face::Control | Face::Consul) {
        routes = routes.merge(consul::routes(shown.clone(), shutdown));
    }
    if matches!(face, Face::Control | Face::Metrics) {
        let own = Router::new()
            .route("/live", get(health::live))
            .route("/ready", get(health::ready))
            .route("/metrics", get(metrics));
        routes = routes.merge(own.with_state(shown));
    }
    routes
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shown.metrics.render())
}

fn serialize_listen<S: Serializer>(listen: &Option<Endpoint>, serializer: S) -> Result<S::Ok, S::Error> {
    match listen {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_str(""),
    }
}

fn deserialize_listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Endpoint>, D::Error> {
    deserializer.deserialize_str(ListenVisitor)
}

struct ListenVisitor;

impl de::Visitor<'_> for ListenVisitor {
    type Value = Option<Endpoint>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IP:PORT or [IPv6]:PORT, or \"\" for none")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<Endpoint>, E> {
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|error| match error {
            Malformed::Address => E::invalid_value(de::Unexpected::Str(text), &self),
            error => E::custom(format_args!("{text:?} {error}")),
        })
    }
}

/// What is part of a URL or a pattern, and no name.
const NOT_IN_HOSTS: [char; 6] = ['/', ':', '*', '@', '?', ' '];
/// How long nothing is accepted when descriptors have run out.
const EXHAUSTION_PAUSE: Duration = Duration::from_millis(50);
/// How long requests that have begun may take to end after the shutdown: no longer than queries may wait for upstreams.
const GRACE: Duration = Duration::from_millis(450);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_routes_answer_until_the_shutdown() {
        let health = Health { missing: vec!["no upstream".to_owned()], faults: vec!["a:1: b".to_owned()] };
        let health = Arc::new(std::sync::Mutex::new(health));
        let readiness = health.clone();
        let readiness: Readiness = Arc::new(move || readiness.lock().unwrap().clone());
        let (_, catalog) = tokio::sync::watch::channel(None);
        let hosts = OwnHosts::new(&[], catalog.clone());
        let (reloads, _) = tokio::sync::mpsc::channel(1);
        let connections = Arc::new(Connections::new(Arc::default(), &Config::default()));
        let shown = Shown { metrics: Arc::new(Metrics::new()), readiness, catalog, reloads, hosts, connections };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener.into(), Face::Control, shown, shutdown.clone()));
        let ask = async |path: &str, host: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).await.unwrap();
            response
        };
        for (path, host, status, text) in [
            ("/live", "localhost", 200, "live"),
            ("/ready", "localhost", 503, "no upstream\nfault: a:1: b\n"),
            ("/metrics", "127.0.0.1:8653", 200, "\nwatershed_build_info{"),
            ("/metrics", "attacker.example", 421, "not ours"),
            ("/v1/catalog/services", "localhost", 503, "there is no catalog here"),
            ("/v1/catalog/services", "attacker.example", 421, "not ours"),
            ("/nothing", "localhost", 404, ""),
            ("/v1/nothing", "localhost", 501, "/v1/nothing is not served"),
        ] {
            let response = ask(path, host).await;
            assert!(
                response.starts_with(&format!("HTTP/1.1 {status} ")) && response.contains(text),
                "{path}: {response}"
            );
        }
        health.lock().unwrap().missing.clear();
        let response = ask("/ready", "localhost").await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.contains("ready\nfault: a:1: b\n"), "{response}");
        // Connections on which nothing happens do not hold it up.
        let _idle = TcpStream::connect(address).await.unwrap();
        shutdown.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn who_does_not_go_on_with_a_request_is_not_waited_for() {
        let routes = Router::new().route("/", get(async || "here"));
        let hosts = OwnHosts::new(&[], tokio::sync::watch::channel(None).1);
        let shutdown = CancellationToken::new();
        for (sent, received) in [
            ("", ""),
            ("GET / HTTP/1.1\r\nHost: loc", ""),
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "here"), // a connection is kept, but not forever
            ("GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /", "here"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let config = Config { idle_timeout: Duration::from_millis(300), ..Config::default() };
            let connections = Arc::new(Connections::new(Arc::default(), &config));
            tokio::spawn(serve_routes(listener.into(), routes.clone(), hosts.clone(), connections, shutdown.clone()));
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).await.unwrap();
            assert!(response.ends_with(received), "{sent:?}: {response}");
        }
        shutdown.cancel();
    }
}
