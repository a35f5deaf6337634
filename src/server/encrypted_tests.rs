use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use bytesize::ByteSize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    runtime::Handle,
    sync::Notify,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    budget,
    cache::{self, Cache, Epoch},
    clock::Moment,
    forward::{self, Exchange, Group, Options},
    metrics::Metrics,
    resolve::{Resolver, Route, Rules, Tables},
    server::{Connections, Face, https, serve_quic, serve_tcp},
    wire::{Class, Name, Question, Rcode, Rtype},
};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};

/// Our listeners in front of an upstream, with a certificate for `dns.example`.
pub(in crate::server) struct House {
    pub folder: tempfile::TempDir,
    tls: SocketAddr,
    https: SocketAddr,
    pub quic: SocketAddr,
    pub metrics: Metrics,
    pub identity: Arc<Identity>,
    pub face: Arc<Face>,
    pub closing: tokio_util::sync::DropGuard,
    /// What serves QUIC.
    pub serving: tokio::task::JoinHandle<()>,
    /// Has the upstream answer what it is slow with.
    pub release: Arc<Notify>,
}

impl House {
    /// The upstream answers everything with these records; but names below `nx` do not exist, and for those below `slow` it
    /// takes its time.
    pub async fn open(records: &[&[u8]], change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        issue(folder.path());
        let mut config = Config {
            certificate: Some(folder.path().join("certificate.pem")),
            private_key: Some(folder.path().join("private_key.pem")),
            ..Config::default()
        };
        change(&mut config);
        let identity = Arc::new(Identity::default());
        identity.set(load_certificate(&config).unwrap());

        let metrics = Metrics::new();
        let release = Arc::<Notify>::default();
        let upstream = serve_records(records, release.clone()).await;
        let (rule, group) = rule(&format!("upstreams = ['tcp://{upstream}']"));
        let route = Route::new(&rule, group, cache::Config::default().policy(Duration::ZERO));
        let rules = Rules { forwards: vec![(vec![Name::root()], route)], ..Rules::default() };
        let resolver = Resolver::new(Cache::new(1 << 20), Tables::new(rules, Epoch(1)), 16);
        let face = Arc::new(Face::new(Arc::new(resolver), config, &metrics, Handle::current()));

        let closing = CancellationToken::new();
        let [(tls_listener, tls), (https_listener, https)] = [listen().await, listen().await];
        for (service, listener) in [(Service::Tls, tls_listener), (Service::Https, https_listener)] {
            let spoken = spoken(service, identity.clone());
            tokio::spawn(serve_tcp(listener.into(), spoken, face.clone(), Arc::default(), closing.clone()));
        }
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let quic = socket.local_addr().unwrap();
        let connections = Arc::new(Connections::new(face.budget().clone()));
        let serving =
            tokio::spawn(serve_quic(socket.into(), identity.clone(), face.clone(), connections, closing.clone()));
        let closing = closing.drop_guard();
        Self { folder, tls, https, quic, metrics, identity, face, closing, serving, release }
    }

    /// Asks a listener as our own forwarder does.
    async fn ask(&self, upstream: &str, qname: &str) -> forward::Outcome {
        let ca_file = self.folder.path().join("authority.pem");
        let (_, group) = rule(&format!("upstreams = ['{upstream}#dns.example']\nca_file = {ca_file:?}"));
        let question = Question { qname: qname.parse().unwrap(), qtype: Rtype::TXT, qclass: Class::IN };
        let timeout = Duration::from_millis(3500);
        let options = Options { dnssec_ok: false, checking_disabled: false, patience: None, timeout };
        let exchange = Exchange::new(group, &question, options, Moment::now(), &mut rand::rng());
        forward::run(exchange, || ()).await
    }
}

fn rule(text: &str) -> (forward::Rule, Arc<Group>) {
    let rule: forward::Config = toml::from_str(&format!("suffixes = ['.']\n{text}")).unwrap();
    let rule = rule.rule().unwrap();
    let group = Group::build_all(std::slice::from_ref(&rule), &[], &Metrics::new()).unwrap().remove(0);
    (rule, group)
}

/// Writes `authority.pem`, and `certificate.pem` and `private_key.pem` for `dns.example`.
pub(in crate::server) fn issue(folder: &Path) {
    let mut authority = rcgen::CertificateParams::default();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["dns.example".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();
    for (file, text) in [
        ("authority.pem", authority.pem()),
        ("certificate.pem", certificate.pem()),
        ("private_key.pem", key.serialize_pem()),
    ] {
        fs::write(folder.join(file), text).unwrap();
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// An upstream by TCP.
async fn serve_records(records: &[&[u8]], release: Arc<Notify>) -> SocketAddr {
    let (listener, address) = listen().await;
    let (count, records) = (records.len() as u8, records.concat());
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut stream, replies) = stream.into_split();
        let replies = Arc::new(tokio::sync::Mutex::new(replies));
        while let Ok(length) = stream.read_u16().await {
            let mut message = vec![0; length.into()];
            stream.read_exact(&mut message).await.unwrap();
            let question_end = 12 + message[12..].iter().position(|&octet| octet == 0).unwrap() + 5;
            message.truncate(question_end);
            let starts_with = |label: &[u8]| message[12..].to_ascii_lowercase().starts_with(label);
            let (is_slow, exists) = (starts_with(b"\x04slow"), !starts_with(b"\x02nx"));
            let (rcode, count) = if exists { (0, count) } else { (3, 0) };
            message[2..12].copy_from_slice(&[0x81, 0x80 | rcode, 0, 1, 0, count, 0, 0, 0, 0]);
            if exists {
                message.extend_from_slice(&records);
            }
            let (release, replies) = (release.clone(), replies.clone());
            tokio::spawn(async move {
                if is_slow {
                    release.notified().await;
                }
                let mut replies = replies.lock().await;
                replies.write_u16(message.len() as u16).await.unwrap();
                replies.write_all(&message).await.unwrap();
            });
        }
    });
    address
}

/// Records of the qname: of an unknown type, of a private type, and a TXT with letters in both cases.
pub(in crate::server) const ODD_RECORDS: [&[u8]; 3] = [
    b"\xc0\x0c\xff\x00\x00\x01\x00\x00\x00\x3c\x00\x03abc",
    b"\xc0\x0c\xff\xfe\x00\x01\x00\x00\x00\x3c\x00\x02\x00\xff",
    b"\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x3c\x00\x03\x02aB",
];
/// Records that a reader may stumble over: one without RDATA, and an A record of another class, which is no address.
pub(in crate::server) const BROKEN_RECORDS: [&[u8]; 2] = [
    b"\xc0\x0c\xff\x01\x00\x01\x00\x00\x00\x3c\x00\x00",
    b"\xc0\x0c\x00\x01\x00\x03\x00\x00\x00\x3c\x00\x03\xc0\x00\x02",
];

#[tokio::test]
async fn every_record_passes_by_tls_and_https_from_end_to_end() {
    let every_record: Vec<_> = ODD_RECORDS.into_iter().chain(BROKEN_RECORDS).collect();
    // As an upstream, HTTPS is limited to what hickory can decode.
    for (scheme, records) in [("tls", &every_record[..]), ("https", &ODD_RECORDS)] {
        let house = House::open(records, |_| {}).await;
        let address = if scheme == "tls" { house.tls } else { house.https };
        for repetition in 1..=2 {
            let response = house.ask(&format!("{scheme}://{address}"), "odd.example").await.response.unwrap();
            assert_eq!(
                (response.rcode(), response.counts()),
                (Rcode::NOERROR, [records.len() as u16, 0, 0]),
                "{scheme}"
            );
            for (record, expected) in response.records().zip(records) {
                assert_eq!(record.rtype.0.to_be_bytes(), expected[2..4], "{scheme}");
                assert_eq!(response.message()[record.rdata], expected[12..], "{scheme}");
            }
            let text = house.metrics.render();
            let line =
                format!("watershed_server_replies_total{{transport=\"{scheme}\",rcode=\"NOERROR\"}} {repetition}");
            assert!(text.contains(&line), "{text}");
        }
    }
}

#[tokio::test]
async fn who_is_not_served_gets_no_handshake() {
    let house = House::open(&ODD_RECORDS, |config| {
        config.allow = toml::from_str::<Config>("allow = ['192.0.2.0/24']").unwrap().allow
    })
    .await;
    for upstream in [format!("https://{}", house.https), format!("tls://{}", house.tls)] {
        assert!(house.ask(&upstream, "odd.example").await.response.is_err(), "{upstream}");
    }
}

/// Nobody waits for a client who has no request open, however long it may be idle or take for one.
#[tokio::test]
async fn an_idle_connection_of_https_ends_with_its_listener() {
    let house = House::open(&ODD_RECORDS, |config| {
        (config.tcp_idle_timeout, config.tcp_message_timeout) = (Duration::from_secs(600), Duration::from_secs(60));
    })
    .await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(house.folder.path().join("authority.pem")).unwrap()).unwrap();
    let mut config = tls::client().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(house.https).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect("dns.example".try_into().unwrap(), stream).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let get = http::Request::get("https://dns.example/dns-query?dns=AAABAAABAAAAAAAAA29kZAdleGFtcGxlAAAQAAE");
    let (reply, _) = requests.send_request(get.body(()).unwrap(), true).unwrap();
    let mut body = reply.await.unwrap().into_body();
    assert!(body.data().await.unwrap().unwrap().len() > 30);
    let House { face, closing, .. } = house;
    drop(closing);
    face.tasks().close();
    let ended = tokio::time::timeout(Duration::from_secs(10), async { (connection.await, face.tasks().wait().await) });
    let (told, ()) = ended.await.expect("the end of all connections");
    assert!(told.unwrap().is_ok(), "not cut off, but told that this is the end");
}

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[tokio::test]
async fn a_client_of_https_that_never_speaks_is_counted_as_slow() {
    let house = House::open(&[], |config| config.tcp_message_timeout = Duration::from_millis(100)).await;
    let (place, _) = Arc::<Connections>::default().enter(CLIENT, &Config::default()).await.ok().unwrap();
    let (_client, ours) = tokio::io::duplex(1 << 16);
    assert!(https::converse(ours, CLIENT, &place, &house.face, &CancellationToken::new()).await.is_err());
    let counts = house.metrics.render();
    assert!(counts.contains("watershed_server_tcp_refused_total{reason=\"slow\"} 1"), "{counts}");
}

#[tokio::test]
async fn a_client_of_https_that_asks_and_asks_does_not_outlive_a_shutdown() {
    let house = House::open(&[], |config| config.tcp_message_timeout = Duration::from_millis(400)).await;
    let connections = Arc::<Connections>::default();
    let (place, _) = connections.enter(CLIENT, &Config::default()).await.ok().unwrap();
    let shutdown = CancellationToken::new();
    let stopping = shutdown.clone();
    let (mut client, ours) = tokio::io::duplex(1 << 16);
    let face = house.face.clone();
    let mut conversation = tokio::spawn(async move { https::converse(ours, CLIENT, &place, &face, &stopping).await });
    // Preface and SETTINGS (RFC 9113 §3.4). It says nothing to what it is told, not even to a PING.
    client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut asking = tokio::time::interval(Duration::from_millis(100));
    for stream in (1..200u8).step_by(2) {
        // Whose body never comes, so that one at least is always open.
        let post = b"\x83\x87\x04\x0a/dns-query\x0f\x10\x17application/dns-message";
        let head = [0, 0, post.len() as u8, 1, 4, 0, 0, 0, stream];
        tokio::select! {
            ended = &mut conversation => {
                assert!(shutdown.is_cancelled());
                return ended.unwrap().unwrap();
            }
            _ = asking.tick() => {}
        }
        // It may have ended meanwhile.
        let _ = client.write_all(&[&head[..], post].concat()).await;
        if stream == 5 {
            shutdown.cancel();
        }
    }
    panic!("it goes on");
}

#[tokio::test]
async fn bodies_are_kept_only_where_they_are_wanted_and_count_against_the_limits() {
    let house = House::open(&[], |config| config.tcp_message_timeout = Duration::from_secs(5)).await;
    let limits = budget::Config { connection_bytes: ByteSize::kib(512), ..budget::Config::default() };
    house.face.budget().set_limits(limits);
    let connections = Arc::new(Connections::new(house.face.budget().clone()));
    for (path, is_wanted) in [("/other", false), ("/dns-query", true)] {
        let (place, _) = connections.enter(CLIENT, &Config::default()).await.ok().unwrap();
        let account = place.account().clone();
        let (client, ours) = tokio::io::duplex(1 << 16);
        let (face, shutdown) = (house.face.clone(), CancellationToken::new());
        let serving = tokio::spawn(async move { https::converse(ours, CLIENT, &place, &face, &shutdown).await });
        let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        let mut bodies = Vec::new();
        for _ in 0..60 {
            requests = requests.ready().await.unwrap();
            let post = http::Request::post(format!("https://dns.example{path}"));
            let post = post.header("content-type", "application/dns-message").body(()).unwrap();
            let (_, mut body) = requests.send_request(post, false).unwrap();
            body.send_data(vec![0; 16_000].into(), false).unwrap();
            bodies.push(body);
        }
        // 60 bodies of 16,000 bytes that never end: none is kept for the wrong path, and for the right one they are too many.
        if is_wanted {
            tokio::time::timeout(Duration::from_secs(5), account.revoked()).await.expect("the limit to be met");
        } else {
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(house.face.budget().held_bytes(), 0);
            assert!(!account.is_revoked());
        }
        serving.abort();
    }
}

#[test]
fn faulty_certificates_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path());
    let other = tempfile::tempdir().unwrap();
    issue(other.path());
    let [certificate, key, other_key, missing] = [
        (&folder, "certificate.pem"),
        (&folder, "private_key.pem"),
        (&other, "private_key.pem"),
        (&other, "missing.pem"),
    ]
    .map(|(folder, file)| folder.path().join(file));
    for (certificate, private_key, expected) in [
        (&certificate, &key, None),
        (&missing, &key, Some("certificate is the path")),
        (&certificate, &missing, Some("private_key is the path")),
        (&key, &key, Some("certificate is the path")), // the one for the other
        (&certificate, &certificate, Some("private_key is the path")),
        (&certificate, &other_key, Some("take the certificate that was issued for this key")),
    ] {
        let (certificate, private_key) = (Some(certificate.clone()), Some(private_key.clone()));
        let error = load_certificate(&Config { certificate, private_key, ..Config::default() }).err();
        let error = error.map(|error| error.to_string());
        assert_eq!(error.is_some(), expected.is_some(), "{error:?}");
        assert!(error.unwrap_or_default().contains(expected.unwrap_or_default()), "{expected:?}");
    }
    assert!(load_certificate(&Config::default()).unwrap().is_none());
}
