use std::{
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::Instant as Clock,
};

use quinn::{Connection, ConnectionError, Endpoint, crypto::rustls::QuicClientConfig};
use tokio_rustls::rustls::{
    self,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::*;
use crate::{
    budget,
    server::{
        Config,
        encrypted::{
            load_certificate,
            tests::{BROKEN_RECORDS, House, ODD_RECORDS, issue},
        },
    },
    wire::Rcode,
};

/// Connects as a client that trusts the authority of this folder.
async fn connect(address: SocketAddr, folder: &Path) -> Result<Connection, ConnectionError> {
    connect_for(address, folder, b"doq").await
}

async fn connect_for(address: SocketAddr, folder: &Path, protocol: &[u8]) -> Result<Connection, ConnectionError> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("authority.pem")).unwrap()).unwrap();
    let mut config = tls::client().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    timeout(LIMIT, endpoint.connect_with(config, address, "dns.example").unwrap()).await.expect("an end")
}

/// The error code with which a connection is closed.
async fn code_of_end(connection: &Connection) -> u64 {
    match timeout(LIMIT, connection.closed()).await.expect("the end of the connection") {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        error => panic!("{error}"),
    }
}

/// What comes back for a query, to the end of its stream: a message, or nothing.
async fn ask(connection: &Connection, query: &[u8]) -> Vec<u8> {
    let exchange = async {
        let (mut out, mut back) = connection.open_bi().await.unwrap();
        out.write_all(&[&(query.len() as u16).to_be_bytes(), query].concat()).await.unwrap();
        out.finish().unwrap();
        back.read_to_end(MAX_MESSAGE_BYTES + 2).await.unwrap()
    };
    let back = timeout(LIMIT, exchange).await.expect("the end of the stream");
    match back.split_first_chunk() {
        None => Vec::new(),
        Some((length, message)) => {
            assert_eq!(usize::from(u16::from_be_bytes(*length)), message.len());
            message.to_vec()
        }
    }
}

/// A query for TXT records of `LABEL.example.`, with these options in its OPT record.
fn query(id: u16, label: &str, options: &[u8]) -> Vec<u8> {
    let name = [&[label.len() as u8], label.as_bytes(), b"\x07example\0"].concat();
    let opt = [&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, options.len() as u8], options].concat();
    [&id.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 1], &name, &[0, 16, 0, 1], &opt].concat()
}

fn read(reply: &[u8]) -> wire::Response {
    let received = wire::Response::read(reply).unwrap();
    assert_eq!((received.id, received.has_question, received.has_edns), (0, true, true));
    received.response
}

/// The sum of the samples of a counter of what came, or went, by QUIC.
fn count(house: &House, counter: &str) -> u64 {
    let text = house.metrics.render();
    let samples = text.lines().filter_map(|line| line.strip_prefix(counter)?.rsplit_once(' '));
    samples.filter(|(labels, _)| labels.contains("quic")).map(|(_, value)| value.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn every_record_passes_by_quic_from_end_to_end() {
    let every_record: Vec<_> = ODD_RECORDS.into_iter().chain(BROKEN_RECORDS).collect();
    // As many and as long as a message holds, of different letters, which nothing compresses.
    let long: Vec<Vec<u8>> = (0..230u8)
        .map(|number| [&b"\xc0\x0c\x00\x10\x00\x01\x00\x00\x00\x3c\x00\xf1\xf0"[..], &[number; 240]].concat())
        .collect();
    let long: Vec<&[u8]> = long.iter().map(Vec::as_slice).collect();
    for (label, records, rcode) in [
        ("odd", &every_record[..], Rcode::NOERROR),
        ("long", &long, Rcode::NOERROR),
        ("none", &[], Rcode::NOERROR),
        ("nx", &[], Rcode::NXDOMAIN),
    ] {
        let house = House::open(records, |_| {}).await;
        let connection = connect(house.quic, house.folder.path()).await.unwrap();
        for repetition in 1..=2 {
            let response = read(&ask(&connection, &query(0, label, &[])).await);
            assert_eq!((response.rcode(), response.counts()), (rcode, [records.len() as u16, 0, 0]), "{label}");
            for (record, expected) in response.records().zip(records) {
                assert_eq!(record.rtype.0.to_be_bytes(), expected[2..4], "{label}");
                assert_eq!(response.message()[record.rdata], expected[12..], "{label}");
            }
            for counter in ["received_total", "replies_total", "queries_total"] {
                assert_eq!(count(&house, &format!("watershed_server_{counter}")), repetition, "{label}: {counter}");
            }
        }
    }
}

#[tokio::test]
async fn who_is_not_served_gets_no_connection() {
    let change =
        |config: &mut Config| config.allow = toml::from_str::<Config>("allow = ['192.0.2.0/24']").unwrap().allow;
    let house = House::open(&ODD_RECORDS, change).await;
    let refused = connect(house.quic, house.folder.path()).await;
    assert!(matches!(refused, Err(ConnectionError::ConnectionClosed(_))), "{refused:?}");
    assert!(house.metrics.render().contains("watershed_server_tcp_refused_total{reason=\"acl\"} 1"));
}

#[tokio::test]
async fn options_are_answered_as_quic_has_them() {
    let house = House::open(&ODD_RECORDS, |_| {}).await;
    let connection = connect(house.quic, house.folder.path()).await.unwrap();
    for (what, options, expected) in
        [("none", &[][..], false), ("padding", &[0, 12, 0, 3, 0, 0, 0], true), ("empty padding", &[0, 12, 0, 0], true)]
    {
        let reply = ask(&connection, &query(0, "odd", options)).await;
        assert_eq!(read(&reply).counts(), [3, 0, 0], "{what}");
        assert_eq!(reply.len() % 468 == 0, expected, "{what}: {}", reply.len());
    }
    let [received, replies] =
        ["received", "replies"].map(|name| count(&house, &format!("watershed_server_{name}_total")));
    assert_eq!((received, replies), (3, 3));
}

#[tokio::test]
async fn a_client_that_breaks_a_rule_loses_its_connection() {
    let house = House::open(&ODD_RECORDS, |_| {}).await;
    let framed = |query: Vec<u8>| [&(query.len() as u16).to_be_bytes()[..], &query].concat();
    let whole = framed(query(0, "odd", &[]));
    let mut cases = JoinSet::new();
    // RFC 9250 §4.3.3
    for (what, sent, has_end) in [
        ("a message id", framed(query(1, "odd", &[])), true),
        ("the option edns-tcp-keepalive", framed(query(0, "odd", &[0, 11, 0, 0])), true),
        ("more than one query", whole.repeat(2), true),
        ("an early end", whole[..20].to_vec(), true),
        ("nothing but an end", Vec::new(), true),
        ("an end that never comes", whole.clone(), false),
        ("a query that is not complete", whole[..20].to_vec(), false),
        ("no query", framed(vec![0; 5]), true),
    ] {
        let (server, folder) = (house.quic, house.folder.path().to_owned());
        cases.spawn(async move {
            let connection = connect(server, &folder).await.unwrap();
            let (mut out, _back) = connection.open_bi().await.unwrap();
            // It may be closed before all is written.
            let _ = out.write_all(&sent).await;
            if has_end {
                let _ = out.finish();
            }
            assert_eq!(code_of_end(&connection).await, 2, "{what}");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
    // A query that is taken back breaks none.
    let connection = connect(house.quic, house.folder.path()).await.unwrap();
    let (mut out, _back) = connection.open_bi().await.unwrap();
    out.write_all(&whole[..20]).await.unwrap();
    out.reset(3u8.into()).unwrap();
    assert_eq!(read(&ask(&connection, &query(0, "odd", &[])).await).counts(), [3, 0, 0]);
}

#[tokio::test]
async fn half_sent_queries_count_against_the_limits() {
    let house = House::open(&ODD_RECORDS, |config| config.tcp_message_timeout = Duration::from_secs(60)).await;
    let limits = budget::Config { connection_bytes: bytesize::ByteSize::kib(512), ..budget::Config::default() };
    house.face.budget().set_limits(limits);
    let honest = connect(house.quic, house.folder.path()).await.unwrap();
    let attacker = connect(house.quic, house.folder.path()).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..100 {
        let Ok((mut out, back)) = attacker.open_bi().await else { break };
        let _ = timeout(Duration::from_secs(1), out.write_all(&[&[255, 255][..], &[0; 20_000]].concat())).await;
        assert!(house.face.budget().held_bytes() <= 512 << 10);
        streams.push((out, back));
    }
    assert_eq!(code_of_end(&attacker).await, 4, "an excessive load");
    let is_free = async {
        while house.face.budget().held_bytes() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, is_free).await.expect("what was held is free");
    assert_eq!(read(&ask(&honest, &query(0, "odd", &[])).await).counts(), [3, 0, 0]);
}

#[tokio::test]
async fn connections_count_among_those_of_tcp() {
    let house = House::open(&ODD_RECORDS, |config| config.tcp_connections_per_client = 2).await;
    let mut connections = Vec::new();
    for _ in 0..2 {
        let connection = connect(house.quic, house.folder.path()).await.unwrap();
        assert_eq!(read(&ask(&connection, &query(0, "odd", &[])).await).counts(), [3, 0, 0]);
        connections.push(connection);
    }
    let third = connect(house.quic, house.folder.path()).await.unwrap();
    assert_eq!(code_of_end(&third).await, 4);
    assert!(house.metrics.render().contains("watershed_server_tcp_refused_total{reason=\"per_client\"} 1"));
}

/// The first datagrams of so many clients are sent to the server, and nothing that it replies comes back to them. Beyond some,
/// the server asks for a proof of the address.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stall_delay_no_other_and_beyond_some_addresses_have_to_be_proven() {
    let house = House::open(&ODD_RECORDS, |config| config.tcp_message_timeout = Duration::from_secs(60)).await;
    let (mut stalled, mut datagram) = (Vec::new(), [0; 2048]);
    for number in 0..MOST_UNPROVEN + 1 {
        let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
        relay.set_read_timeout(Some(LIMIT)).unwrap();
        let (at, folder) = (relay.local_addr().unwrap(), house.folder.path().to_owned());
        let connecting = tokio::spawn(async move { connect(at, &folder).await });
        let length = tokio::task::block_in_place(|| relay.recv(&mut datagram).unwrap());
        connecting.abort();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.send_to(&datagram[..length], house.quic).unwrap();
        let reply = tokio::task::block_in_place(|| client.recv(&mut datagram).map(|_| datagram[0]).unwrap());
        // RFC 9000 §17.2: a long header, whose type is 3 for Retry.
        assert_eq!(reply & 0xf0 == 0xf0, number == MOST_UNPROVEN, "{number}: {reply:#x}");
        stalled.push(client);
    }
    let start = Clock::now();
    let connection = connect(house.quic, house.folder.path()).await.unwrap();
    assert_eq!(read(&ask(&connection, &query(0, "odd", &[])).await).counts(), [3, 0, 0]);
    assert!(start.elapsed() < LIMIT / 4, "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_new_connections() {
    let house = House::open(&ODD_RECORDS, |_| {}).await;
    let old = connect(house.quic, house.folder.path()).await.unwrap();
    let other = tempfile::tempdir().unwrap();
    issue(other.path());
    assert!(connect(house.quic, other.path()).await.is_err());
    house.identity.set(load_certificate(&certified(other.path())).unwrap());
    let new = connect(house.quic, other.path()).await.unwrap();
    assert!(connect(house.quic, house.folder.path()).await.is_err());
    for connection in [old, new] {
        assert_eq!(read(&ask(&connection, &query(0, "odd", &[])).await).counts(), [3, 0, 0]);
    }
    let spoken = connect_for(house.quic, other.path(), b"h3").await;
    assert!(matches!(spoken, Err(ConnectionError::ConnectionClosed(_))), "{spoken:?}: only DNS is spoken here");
}

fn certified(folder: &Path) -> Config {
    let [certificate, private_key] = ["certificate.pem", "private_key.pem"].map(|file| Some(folder.join(file)));
    Config { certificate, private_key, ..Config::default() }
}

#[tokio::test]
async fn a_slow_query_delays_no_other_and_is_answered_after_the_listeners_end() {
    let house = House::open(&ODD_RECORDS, |_| {}).await;
    let connection = connect(house.quic, house.folder.path()).await.unwrap();
    let slow = tokio::spawn({
        let connection = connection.clone();
        async move { ask(&connection, &query(0, "slow", &[])).await }
    });
    let is_asked = async {
        while count(&house, "watershed_server_queries_total") == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, is_asked).await.expect("a query");
    assert_eq!(read(&ask(&connection, &query(0, "odd", &[])).await).counts(), [3, 0, 0]);
    assert!(!slow.is_finished());
    drop(house.closing);
    timeout(LIMIT, house.serving).await.expect("its end").unwrap();
    house.release.notify_one();
    assert_eq!(read(&slow.await.unwrap()).counts(), [3, 0, 0]);
    let end = timeout(LIMIT, connection.closed()).await.expect("the end of the connection");
    assert!(matches!(end, ConnectionError::ApplicationClosed(_)), "{end}: the client is told");
}

#[tokio::test]
async fn a_connection_serves_any_number_of_queries() {
    let house = House::open(&ODD_RECORDS, |_| {}).await;
    let connection = connect(house.quic, house.folder.path()).await.unwrap();
    for number in 1..=250 {
        assert_eq!(read(&ask(&connection, &query(0, "odd", &[])).await).counts(), [3, 0, 0], "{number}");
    }
}

const LIMIT: Duration = Duration::from_secs(20);
