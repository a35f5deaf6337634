//! Clients that hold connections, or have data wait for them: each attack from one address and from many.
//!
//! The byte limits are the default ones. The daemon is in a memory cgroup of 1 GiB, as its unit has `MemoryMax=1G`, and the
//! peak of its resident memory has to stay below half of that. All the while an honest client is answered by every
//! listener, `/live` answers within a second, and SIGTERM is obeyed within a second.

use std::{
    any::Any,
    error::Error,
    fs, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use quinn::crypto::rustls::QuicClientConfig;
use socket2::{Protocol, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    runtime::Runtime,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self,
        crypto::ring::default_provider,
        pki_types::{CertificateDer, ServerName},
    },
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    SECOND,
    large::{definitions, long_winded},
    live_after,
    origin::{Origin, SENDING, bound, connect, is_within_namespace},
    stop,
};
use crate::harness::{
    catalog::with_definitions,
    client::framed,
    flood::LONG,
    memory_group::MemoryGroup,
    message::{Message, query},
    *,
};

/// What is attacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Tcp,
    Tls,
    Https,
    Quic,
    Http,
}

/// What each connection of an attack does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    /// Sends nothing.
    Idle,
    /// Sends messages, requests or heads in part.
    Half,
    /// Over HTTP: bodies in part, where one is wanted.
    HalfBodies,
    /// Over HTTPS: bodies in part, to a path that does not exist.
    HalfBodiesElsewhere,
    /// Asks for much that is known here, and does not read.
    Unread,
    /// Asks for much that an upstream knows, and does not read.
    UnreadMisses,
    /// Over HTTP: blocking queries that are woken together, and not read.
    UnreadChanges,
}

/// What an attack makes the daemon hold for its connections.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    Nothing,
    /// Data within the limits.
    Held,
    /// More than the limits allow: connections are closed for it.
    Revoked,
}

/// What an attacker keeps open until it is dropped.
type Held = Box<dyn Any + Send>;

/// The daemon as its clients see it.
#[derive(Clone)]
struct Target {
    /// By [`Listener`], of IPv4 and IPv6.
    ports: [[u16; 2]; 5],
    trusted: CertificateDer<'static>,
}

impl Target {
    fn at(&self, listener: Listener, origin: Origin) -> SocketAddr {
        let ip = origin.server();
        SocketAddr::new(ip, self.ports[listener as usize][usize::from(ip.is_ipv6())])
    }

    fn tls(&self, protocol: &[u8]) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.trusted.clone()).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        config
    }

    async fn tcp(&self, listener: Listener, origin: Origin, number: usize) -> Option<TcpStream> {
        connect(origin.address(number), self.at(listener, origin)).await
    }

    async fn encrypted(&self, listener: Listener, origin: Origin, number: usize) -> Option<TlsStream<TcpStream>> {
        let stream = self.tcp(listener, origin, number).await?;
        let protocol: &[u8] = if listener == Listener::Https { b"h2" } else { b"dot" };
        let connector = TlsConnector::from(Arc::new(self.tls(protocol)));
        let name = ServerName::try_from("dns.example").unwrap();
        timeout(PATIENCE, connector.connect(name, stream)).await.ok()?.ok()
    }

    async fn http2(&self, origin: Origin, number: usize) -> Option<(h2::client::SendRequest<bytes::Bytes>, Held)> {
        let stream = self.encrypted(Listener::Https, origin, number).await?;
        let (requests, connection) = h2::client::handshake(stream).await.ok()?;
        let task = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let requests = timeout(PATIENCE, requests.ready()).await.ok()?.ok()?;
        Some((requests, Box::new(task)))
    }

    async fn quic(&self, origin: Origin, number: usize) -> Result<quinn::Connection, Box<dyn Error>> {
        let socket = bound(origin.address(number), Type::DGRAM, Protocol::UDP);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket.into(), runtime).unwrap();
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(self.tls(b"doq")).unwrap()));
        let connecting = endpoint.connect_with(config, self.at(Listener::Quic, origin), "dns.example").unwrap();
        Ok(timeout(PATIENCE, connecting).await??)
    }
}

/// Sends for a moment what the daemon may not take in.
async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    let _ = timeout(SENDING, async {
        stream.write_all(bytes).await?;
        stream.flush().await
    })
    .await;
}

impl Attack {
    /// One connection of it. Nothing if the daemon does not take it.
    async fn begin(
        self,
        target: Target,
        listener: Listener,
        origin: Origin,
        number: usize,
        index: u64,
    ) -> Option<Held> {
        match listener {
            Listener::Tcp | Listener::Http => {
                let mut stream = target.tcp(listener, origin, number).await?;
                let sent = match listener {
                    Listener::Tcp => self.messages(origin, number),
                    _ => self.requests(number, index),
                };
                send(&mut stream, &sent).await;
                Some(Box::new(stream))
            }
            Listener::Tls if self == Self::Idle => Some(Box::new(target.tcp(listener, origin, number).await?)),
            Listener::Tls => {
                let mut stream = target.encrypted(listener, origin, number).await?;
                send(&mut stream, &self.messages(origin, number)).await;
                Some(Box::new(stream))
            }
            Listener::Https => self.streams(&target, origin, number).await,
            Listener::Quic => self.quic_streams(&target, origin, number).await,
        }
    }

    /// What it makes the daemon hold.
    fn effect(self, listener: Listener) -> Effect {
        match (self, listener) {
            (Self::Idle | Self::HalfBodiesElsewhere, _) => Effect::Nothing,
            (Self::UnreadMisses, _) | (Self::HalfBodies | Self::Unread, Listener::Https) => Effect::Revoked,
            (Self::Unread, Listener::Quic) => Effect::Revoked,
            _ => Effect::Held,
        }
    }

    /// By TCP or TLS.
    fn messages(self, origin: Origin, number: usize) -> Vec<u8> {
        match self {
            Self::Half => [&[255; 2], &[0; 60_000][..]].concat(),
            Self::Unread => framed(&query("big.site.example TXT").to_wire()).repeat(256),
            Self::UnreadMisses => (0..16)
                .flat_map(|at| framed(&query(&format!("n{at}.c{number}.{origin:?}.example TXT")).to_wire()))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// By HTTP, to the API.
    fn requests(self, number: usize, index: u64) -> Vec<u8> {
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes();
        match self {
            Self::Half => format!("GET /live HTTP/1.1\r\nHost: localhost\r\nX: {}", "x".repeat(15_000)).into_bytes(),
            Self::HalfBodies => {
                let head =
                    "PUT /v1/agent/service/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n";
                [head.as_bytes(), &[b' '; 400_000]].concat()
            }
            // Each with a body of its own.
            Self::Unread => get(&format!("/v1/catalog/services?other={number}")).repeat(3),
            Self::UnreadChanges => get(&format!("/v1/catalog/services?index={index}&wait=10m")),
            _ => Vec::new(),
        }
    }

    /// By HTTPS: as many streams as there may be.
    async fn streams(self, target: &Target, origin: Origin, number: usize) -> Option<Held> {
        if self == Self::Idle {
            return Some(Box::new(target.encrypted(Listener::Https, origin, number).await?));
        }
        let (requests, connection) = target.http2(origin, number).await?;
        let path = if self == Self::HalfBodiesElsewhere { "/elsewhere" } else { "/dns-query" };
        let unread = BASE64URL_NOPAD.encode(&query("big.site.example TXT").to_wire());
        let mut streams = Vec::new();
        for _ in 0..40 {
            let Ok(Ok(mut ready)) = timeout(SENDING, requests.clone().ready()).await else { break };
            let request = ::http::Request::builder().header("content-type", "application/dns-message");
            let (request, is_get) = match self {
                Self::Unread => (request.uri(format!("https://dns.example/dns-query?dns={unread}")), true),
                _ => (request.method("POST").uri(format!("https://dns.example{path}")), false),
            };
            let Ok((response, mut body)) = ready.send_request(request.body(()).unwrap(), is_get) else { break };
            if !is_get {
                let _ = body.send_data(vec![0; 60_000].into(), false);
            }
            streams.push((response, body));
        }
        tokio::time::sleep(SENDING).await;
        Some(Box::new((requests, connection, streams)))
    }

    async fn quic_streams(self, target: &Target, origin: Origin, number: usize) -> Option<Held> {
        let connection = target.quic(origin, number).await.ok()?;
        let mut streams = Vec::new();
        let opening = async {
            for _ in 0..if self == Self::Idle { 0 } else { 40 } {
                let Ok((mut out, back)) = connection.open_bi().await else { break };
                let mut asked = query("big.site.example TXT");
                asked.id = 0;
                let sent = match self {
                    Self::Unread => framed(&asked.to_wire()),
                    _ => vec![255; 20_000],
                };
                let _ = timeout(SENDING / 10, out.write_all(&sent)).await;
                if self == Self::Unread {
                    let _ = out.finish();
                }
                streams.push((out, back));
            }
        };
        let _ = timeout(2 * SENDING, opening).await;
        Some(Box::new((connection, streams)))
    }
}

/// Asks each listener as an honest client, from a network of its own.
async fn ask_honestly(target: &Target, listener: Listener) -> Result<Message, Box<dyn Error>> {
    let asked = query("www.site.example A");
    let framed_query = framed(&asked.to_wire());
    let wire = match listener {
        Listener::Tcp | Listener::Http => {
            exchange(target.tcp(Listener::Tcp, Origin::Honest, 0).await.ok_or(NOT_TAKEN)?, &framed_query).await?
        }
        Listener::Tls => {
            exchange(target.encrypted(listener, Origin::Honest, 0).await.ok_or(NOT_TAKEN)?, &framed_query).await?
        }
        Listener::Https => {
            let (mut requests, _connection) = target.http2(Origin::Honest, 0).await.ok_or(NOT_TAKEN)?;
            let path = format!("https://dns.example/dns-query?dns={}", BASE64URL_NOPAD.encode(&asked.to_wire()));
            let request = ::http::Request::builder().uri(path).body(()).unwrap();
            let (response, _) = requests.send_request(request, true)?;
            let mut body = response.await?.into_body();
            body.data().await.ok_or(NOT_TAKEN)??.to_vec()
        }
        Listener::Quic => {
            let connection = target.quic(Origin::Honest, 0).await?;
            let (mut out, mut back) = connection.open_bi().await?;
            let mut asked = asked.clone();
            asked.id = 0;
            out.write_all(&framed(&asked.to_wire())).await?;
            out.finish()?;
            back.read_to_end(65_537).await?.split_off(2)
        }
    };
    Ok(Message::from_wire(&wire)?)
}

async fn exchange(mut stream: impl AsyncReadExt + AsyncWrite + Unpin, framed_query: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(framed_query).await?;
    stream.flush().await?;
    let length = stream.read_u16().await?;
    let mut wire = vec![0; length.into()];
    stream.read_exact(&mut wire).await?;
    Ok(wire)
}

/// A daemon under attack, and what it was like before.
struct Siege {
    daemon: Daemon,
    target: Target,
    runtime: Runtime,
    rss_mib: u64,
    descriptors: usize,
    most_held_kib: AtomicU64,
    // Removed after the daemon has ended.
    group: Option<MemoryGroup>,
}

impl Siege {
    fn begin(attack: Attack) -> Self {
        let certified = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
        let text = format!("\"{}\" ", "x".repeat(250)).repeat(240);
        let zone =
            format!("$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nbig TXT {text}\nwww A 192.0.2.1\n");
        let group = MemoryGroup::new(1 << 30);
        let mut config = CONFIG.replace("UPSTREAM", &long_winded().to_string());
        if attack == Attack::UnreadMisses {
            // Limits that are met soon, since each miss takes its time.
            config += "[limits]\nconnection_bytes = \"512KiB\"\nclient_bytes = \"2MiB\"\ntotal_bytes = \"8MiB\"\n";
        }
        let setup = with_definitions(&config, &[("all.json", &definitions())])
            .file("site.zone", &zone)
            .file("certificate", &certified.cert.pem())
            .file("key", &certified.signing_key.serialize_pem());
        let daemon = match &group {
            Some(group) => group.around(setup).start(),
            None => setup.start(),
        };
        let api = daemon.wait_for_log(0, |line| line.contains("serving Consul's API"));
        let api = api.split("address=").nth(1).unwrap().split(' ').next().unwrap().parse::<SocketAddr>().unwrap();
        let ports: Vec<u16> = daemon.addresses.iter().map(SocketAddr::port).collect();
        let mut ports: Vec<[u16; 2]> = ports.chunks(2).map(|pair| [pair[0], pair[1]]).collect();
        ports.push([daemon.control.unwrap().port(), api.port()]);
        let target = Target { ports: ports.try_into().expect("five listeners"), trusted: certified.cert.der().clone() };
        assert_eq!(daemon.get("/v1/catalog/services").0, 200);
        let rss_mib = daemon.resident_kib() >> 10;
        let runtime = Runtime::new().unwrap();
        let most_held_kib = AtomicU64::new(0);
        let mut siege = Self { daemon, target, runtime, rss_mib, descriptors: 0, most_held_kib, group };
        siege.descriptors = siege.open_descriptors();
        siege
    }

    fn open_descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.daemon.pid())).unwrap().count()
    }

    /// Holds as many connections as it may, and asks what an honest client asks after each third of them.
    fn attack(&self, case: &str, listener: Listener, attack: Attack, origin: Origin) -> Vec<Held> {
        let index = http::send(self.daemon.control.unwrap(), "GET /v1/catalog/services", &[], "", PATIENCE).unwrap();
        let index = index.field("X-Consul-Index").unwrap().parse().unwrap();
        let mut held = Vec::new();
        // Each miss takes its time.
        let batches = if attack == Attack::UnreadMisses { 1 } else { 3 };
        for batch in 0..batches {
            let attackers: JoinSet<Option<Held>> = (0..CONNECTIONS / 3)
                .map(|number| {
                    let number = batch * CONNECTIONS / 3 + number;
                    attack.begin(self.target.clone(), listener, origin, number, index)
                })
                .fold(JoinSet::new(), |mut all, one| {
                    all.spawn_on(one, self.runtime.handle());
                    all
                });
            held.extend(self.runtime.block_on(attackers.join_all()).into_iter().flatten());
            self.examine(&format!("{case}, {batch}"), listener);
        }
        if attack == Attack::UnreadChanges {
            let body = format!("{{\"Name\": \"{origin:?}\"}}");
            let registered = http::request(self.daemon.control.unwrap(), "PUT", "/v1/agent/service/register", &body);
            assert_eq!(registered.unwrap().0, 200, "{case}");
            wait_until("the queries to be woken", PATIENCE, || {
                (self.daemon.metric("watershed_control_waiting", &[]) == 0.0).then_some(())
            });
            self.examine(&format!("{case}, woken"), listener);
        }
        assert!(held.len() > PLACES / 3, "{case}: {} connections", held.len());
        let expected = attack.effect(listener);
        wait_until(&format!("{case}: {expected:?}"), LONG, || (self.effect() >= expected).then_some(()));
        held
    }

    /// What has been held at most, and whether connections were closed for it, in all attacks on this daemon.
    fn effect(&self) -> Effect {
        let held_kib = self.daemon.metric("watershed_budget_held_bytes", &[]) as u64 >> 10;
        let most_held_kib = self.most_held_kib.fetch_max(held_kib, Relaxed).max(held_kib);
        match self.daemon.metric("watershed_budget_exceeded_total", &[]) > 0.0 {
            true => Effect::Revoked,
            false if most_held_kib >= 64 => Effect::Held,
            false => Effect::Nothing,
        }
    }

    fn examine(&self, case: &str, listener: Listener) {
        self.effect();
        let held_kib = self.most_held_kib.load(Relaxed);
        assert!(held_kib <= (TOTAL_MIB << 10) * 5 / 4, "{case}: {held_kib} KiB held");
        let open = self.open_descriptors();
        let most = self.descriptors + 2 * PLACES + 20;
        assert!(open <= most, "{case}: {} descriptors, then {open}", self.descriptors);
        assert_eq!(self.daemon.ask("www.site.example A").one(), "192.0.2.1", "{case}");
        let honest = async { timeout(PATIENCE, ask_honestly(&self.target, listener)).await? };
        let reply = self.runtime.block_on(honest).unwrap_or_else(|error| panic!("{case}: an honest client: {error:?}"));
        assert_eq!(reply.one(), "192.0.2.1", "{case}");
        let live = live_after(&self.daemon);
        assert!(live < SECOND, "{case}: /live took {live:?}");
    }

    /// Whether all of it has had the effect that it has to have, and no more.
    fn judge(&self, case: &str, listener: Listener, attack: Attack) {
        let (effect, held_kib) = (self.effect(), self.most_held_kib.load(Relaxed));
        assert_eq!(effect, attack.effect(listener), "{case}: {held_kib} KiB held");
        let peak = self.peak_mib();
        assert!(peak < 512, "{case}: {peak} MiB");
        assert_eq!(self.group.as_ref().map_or(0, MemoryGroup::times_met), 0, "{case}");
        eprintln!("{case}: at most {held_kib} KiB held, {peak} MiB resident");
    }

    /// Ends the daemon while all of this is held, and tells how long it takes.
    fn end(self, case: &str, held: Vec<Held>) -> Duration {
        let took = stop(self.daemon, case);
        eprintln!("{case}: stopped after {took:?}");
        self.runtime.block_on(async { drop(held) });
        took
    }

    fn peak_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
    }
}

/// Lets a listener be attacked so from everywhere, as the test of this name.
fn withstand(test: &str, listener: Listener, attacks: &[Attack]) {
    if !is_within_namespace(&format!("abuse::clients::{test}")) {
        return;
    }
    for &attack in attacks {
        let siege = Siege::begin(attack);
        for origin in [Origin::OneIpv4, Origin::OneIpv6Network, Origin::ManyIpv4] {
            let case = format!("{listener:?} {attack:?} from {origin:?}");
            let held = siege.attack(&case, listener, attack, origin);
            siege.runtime.block_on(async { drop(held) });
            wait_until(&format!("{case}: connections and memory to be free"), LONG, || {
                let connections = ["watershed_control_connections", "watershed_server_tcp_connections"]
                    .map(|metric| siege.daemon.metric(metric, &[]));
                let has_ended = connections.iter().sum::<f64>() <= 2.0;
                (has_ended && siege.daemon.resident_kib() >> 10 < siege.rss_mib + 64).then_some(())
            });
        }
        let origin = Origin::ManyIpv6Networks;
        let case = format!("{listener:?} {attack:?} from {origin:?}");
        let held = siege.attack(&case, listener, attack, origin);
        siege.judge(&case, listener, attack);
        let mut took = siege.end(&case, held);
        // The machine may stand still for a moment, but hardly each time.
        for _ in 0..2 {
            if took >= SECOND {
                let siege = Siege::begin(attack);
                let held = siege.attack(&case, listener, attack, origin);
                took = siege.end(&case, held);
            }
        }
        assert!(took < SECOND, "{case}: stopped after {took:?}");
    }
}

#[test]
fn clients_of_tcp_cost_no_more_than_they_may() {
    use Attack::*;
    withstand("clients_of_tcp_cost_no_more_than_they_may", Listener::Tcp, &[Idle, Half, Unread, UnreadMisses]);
}

#[test]
fn clients_of_tls_cost_no_more_than_they_may() {
    use Attack::*;
    withstand("clients_of_tls_cost_no_more_than_they_may", Listener::Tls, &[Idle, Half, Unread]);
}

#[test]
fn clients_of_https_cost_no_more_than_they_may() {
    use Attack::*;
    let attacks = [Idle, HalfBodies, HalfBodiesElsewhere, Unread];
    withstand("clients_of_https_cost_no_more_than_they_may", Listener::Https, &attacks);
}

#[test]
fn clients_of_quic_cost_no_more_than_they_may() {
    use Attack::*;
    withstand("clients_of_quic_cost_no_more_than_they_may", Listener::Quic, &[Idle, Half, Unread]);
}

#[test]
fn clients_of_http_cost_no_more_than_they_may() {
    use Attack::*;
    let attacks = [Idle, Half, HalfBodies, Unread, UnreadChanges];
    withstand("clients_of_http_cost_no_more_than_they_may", Listener::Http, &attacks);
}

const NOT_TAKEN: &str = "the connection is not taken";
/// All listeners at any address, with fewer places than by default, so that they are taken.
const CONFIG: &str = "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n\
                      [[forward]]\nsuffixes = [\".\"]\nupstreams = [\"tcp://UPSTREAM\"]\n\
                      [server]\nallow = [\"0.0.0.0/0\", \"::/0\"]\nworkers = 2\n\
                      listen = [\"0.0.0.0:0\", \"[::]:0\"]\ntls_listen = [\"0.0.0.0:0\", \"[::]:0\"]\n\
                      https_listen = [\"0.0.0.0:0\", \"[::]:0\"]\nquic_listen = [\"0.0.0.0:0\", \"[::]:0\"]\n\
                      certificate = \"<DIR>/certificate\"\nprivate_key = \"<DIR>/key\"\n\
                      tcp_connections = 40\ntcp_connections_per_client = 20\ntcp_message_timeout = \"1m\"\n\
                      [control]\nlisten = \"0.0.0.0:0\"\nconnections = 40\nconnections_per_client = 20\n\
                      [catalog.api]\nlisten = \"[::]:0\"\nenable_registration = true\n";
/// Places of each kind.
const PLACES: usize = 40;
/// So many connections each attack tries to hold.
const CONNECTIONS: usize = 60;
/// The default of `limits.total_bytes`.
const TOTAL_MIB: u64 = 96;
