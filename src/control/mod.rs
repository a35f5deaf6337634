//! What faces operators and their tools, over HTTP: metrics, health, and Consul's API.
//!
//! The listener has no accounts. It is bound to loopback unless told otherwise, nothing on it changes state without
//! loopback or a token, and a request must name us as its host, so that no page in a browser on this host can read it under
//! another name.

pub mod consul;
mod health;
mod hosts;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, State},
    http::{Request, StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use toml::Spanned;

use crate::{metrics::Metrics, wire::Name};
pub use health::Health;
pub use hosts::OwnHosts;

/// What faces operators, section `[control]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address on which `/metrics`, `/live`, `/ready` and Consul's API are served: `IP:PORT` or `[IPv6]:PORT`; `""` for none.
    /// Default "127.0.0.1:8653". Applies at reload.
    #[serde(serialize_with = "serialize_listen", deserialize_with = "deserialize_listen")]
    pub listen: Option<SocketAddr>,
    /// A further address, on which only `/metrics`, `/live` and `/ready` are served: `IP:PORT` or `[IPv6]:PORT`. Clients that
    /// may scrape there cannot read the catalog. Default: none. Applies at reload.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "serialize_listen",
        deserialize_with = "deserialize_listen"
    )]
    pub metrics_listen: Option<SocketAddr>,
    /// Further names of this host by which requests may address it, on all HTTP addresses. Addresses, `localhost`, the names
    /// of the host and those of the catalog need not be listed. Default: none. Applies at reload.
    pub hosts: Vec<Spanned<String>>,
}

impl Default for Config {
    fn default() -> Self {
        Self { listen: Some((Ipv4Addr::LOCALHOST, 8653).into()), metrics_listen: None, hosts: Vec::new() }
    }
}

impl Config {
    /// The names of `hosts` that cannot be the host of a request.
    pub fn faulty_hosts(&self) -> impl Iterator<Item = &Spanned<String>> {
        let is_name = |host: &str| host.parse::<Name>().is_ok_and(|name| !name.is_root());
        self.hosts.iter().filter(move |host| !is_name(host.get_ref()) || host.get_ref().contains(NOT_IN_HOSTS))
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

/// Serves what a face shows until `shutdown`, and requests that have begun for one second more.
pub async fn serve(listener: TcpListener, face: Face, shown: Shown, shutdown: CancellationToken) -> io::Result<()> {
    let hosts = shown.hosts.clone();
    serve_routes(listener, routes(face, shown, shutdown.clone()), hosts, HEADER_PATIENCE, shutdown).await
}

/// `patience` is for the header of a request.
async fn serve_routes(
    listener: TcpListener,
    routes: Router,
    hosts: OwnHosts,
    patience: Duration,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let guarded = routes.layer(from_fn_with_state(hosts, refuse_foreign_hosts)).layer(from_fn(take_body));
    let service = TowerToHyperService::new(guarded);
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|accepted| (place, accepted))
        };
        tokio::select! {
            // Who comes after the shutdown may be meant for whoever serves the address next.
            biased;
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = accepted => match accepted {
                Ok((place, (stream, peer))) => {
                    let serving = serve_connection(stream, peer, service.clone(), patience, shutdown.clone());
                    connections.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                // What lasts, as a lack of file handles does, is not to be tried again and again.
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    }
    drop(listener);
    // Those that are left are broken off.
    let _ = tokio::time::timeout(GRACE, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Serves a connection until the client closes it, or is silent for too long between requests or within a header.
async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    service: TowerToHyperService<Router>,
    patience: Duration,
    shutdown: CancellationToken,
) {
    // A response is not to wait for what acknowledges the last.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        service.call(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(patience)
            .serve_connection(TokioIo::new(stream), service)
    );
    // How a connection ends is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
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

/// Refuses requests under a name that is not ours; clients that send no host are no browsers.
async fn refuse_foreign_hosts(State(hosts): State<OwnHosts>, request: Request<Body>, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let host = request.uri().host().or(host);
    match host {
        Some(host) if !hosts.include(host) => {
            let advice = "this host name is not ours; use an address, localhost or the name of the host, or add the name to \
                          control.hosts\n";
            (StatusCode::MISDIRECTED_REQUEST, advice).into_response()
        }
        _ => next.run(request).await,
    }
}

/// Takes in all that a client sends before it is answered, whatever the answer is: of what is closed while the client
/// still sends, the client may never see the answer.
async fn take_body(request: Request<Body>, next: Next) -> Response {
    let (parts, mut body) = request.into_parts();
    let (mut taken, mut passed_over) = (Vec::new(), 0);
    let taking = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.ok()?;
            let Some(data) = frame.data_ref() else { continue };
            if taken.len() + data.len() <= MOST_BODY_BYTES {
                taken.extend_from_slice(data);
            } else {
                passed_over += data.len();
                if passed_over > MOST_PASSED_OVER_BYTES {
                    break;
                }
            }
        }
        Some(())
    };
    match tokio::time::timeout(BODY_PATIENCE, taking).await {
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "the request was not sent in time\n").into_response(),
        Ok(None) => (StatusCode::BAD_REQUEST, "the request was broken off\n").into_response(),
        Ok(Some(())) if passed_over > 0 => (StatusCode::PAYLOAD_TOO_LARGE, "the request is too long\n").into_response(),
        Ok(Some(())) => next.run(Request::from_parts(parts, taken.into())).await,
    }
}

fn serialize_listen<S: Serializer>(listen: &Option<SocketAddr>, serializer: S) -> Result<S::Ok, S::Error> {
    match listen {
        Some(address) => serializer.collect_str(address),
        None => serializer.serialize_str(""),
    }
}

fn deserialize_listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    deserializer.deserialize_str(ListenVisitor)
}

struct ListenVisitor;

impl de::Visitor<'_> for ListenVisitor {
    type Value = Option<SocketAddr>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IP:PORT or [IPv6]:PORT, or \"\" for none")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<SocketAddr>, E> {
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

/// What is part of a URL or a pattern, and no name.
const NOT_IN_HOSTS: [char; 6] = ['/', ':', '*', '@', '?', ' '];
/// As long as what Consul takes.
const MOST_BODY_BYTES: usize = 512 << 10;
/// Who sends more than this beyond is not waited for.
const MOST_PASSED_OVER_BYTES: usize = 8 << 20;
/// How long a client may take to send the header of a request, or to begin one.
const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a client may take to send the body of a request.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Beyond these a client waits until another has gone: room for all who wait for a change, and for others.
const MOST_CONNECTIONS: usize = consul::MOST_WAITING + 1024;
/// After a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long requests that have begun may take to end after the shutdown.
const GRACE: Duration = Duration::from_secs(1);

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
        let shown = Shown { metrics: Arc::new(Metrics::new()), readiness, catalog, reloads, hosts };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(listener, Face::Control, shown, shutdown.clone()));
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
        server.await.unwrap().unwrap();
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
            let patience = Duration::from_millis(300);
            tokio::spawn(serve_routes(listener, routes.clone(), hosts.clone(), patience, shutdown.clone()));
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut response = String::new();
            stream.read_to_string(&mut response).await.unwrap();
            assert!(response.ends_with(received), "{sent:?}: {response}");
        }
        shutdown.cancel();
    }
}
