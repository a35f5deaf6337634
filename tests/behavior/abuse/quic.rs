//! Clients of QUIC that send queries only in part.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint, crypto::rustls::QuicClientConfig};
use tokio::{runtime::Runtime, time::timeout};
use tokio_rustls::rustls::{self, crypto::ring::default_provider, pki_types::CertificateDer};

use crate::harness::{
    flood::{LONG, loopback},
    *,
};

/// Connects from this address as a client that trusts this certificate.
async fn connect(from: IpAddr, server: SocketAddr, trusted: &CertificateDer<'static>) -> Option<Connection> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"doq".to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let endpoint = Endpoint::client(SocketAddr::new(from, 0)).unwrap();
    timeout(PATIENCE, endpoint.connect_with(config, server, "dns.example").unwrap()).await.ok()?.ok()
}

/// What a query gets on a connection.
async fn ask(connection: &Connection, question: &str) -> Message {
    let (mut out, mut back) = connection.open_bi().await.unwrap();
    let mut wire = query(question).to_wire();
    wire[..2].fill(0);
    out.write_all(&client::framed(&wire)).await.unwrap();
    out.finish().unwrap();
    Message::from_wire(&back.read_to_end(65_537).await.unwrap()[2..]).unwrap()
}

#[test]
fn half_sent_streams_are_bounded_and_an_honest_client_is_answered() {
    let quic = free_address();
    let certified = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    let config = format!(
        "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n\
         [server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\nquic_listen = [\"{quic}\"]\ncertificate = \"<DIR>/certificate\"\n\
         private_key = \"<DIR>/key\"\ntcp_message_timeout = \"1m\"\n\
         [limits]\nconnection_bytes = \"1MiB\"\nclient_bytes = \"4MiB\"\ntotal_bytes = \"16MiB\"\n"
    );
    let zone = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";
    let daemon = Setup::new(&config)
        .file("site.zone", zone)
        .file("certificate", &certified.cert.pem())
        .file("key", &certified.signing_key.serialize_pem())
        .start();
    let trusted = certified.cert.der().clone();
    let rss = daemon.resident_kib() >> 10;
    let runtime = Runtime::new().unwrap();
    for (case, clients, limit_kib) in [("one client", 1, 4 << 10), ("many clients", 40, 16 << 10)] {
        let mut attackers = Vec::new();
        for number in 0..40 {
            runtime.block_on(async {
                let attacker = connect(loopback(number % clients), quic, &trusted).await.expect("a connection");
                let mut streams = Vec::new();
                for _ in 0..30 {
                    let Ok((mut out, back)) = attacker.open_bi().await else { break };
                    let _ = timeout(Duration::from_millis(100), out.write_all(&[255; 20_000])).await;
                    streams.push((out, back));
                }
                attackers.push((attacker, streams));
            });
            let held_kib = daemon.metric("watershed_budget_held_bytes", &[]) as usize >> 10;
            assert!(held_kib <= limit_kib * 5 / 4, "{case}: {held_kib} KiB held");
            let now = daemon.resident_kib() >> 10;
            assert!(now < rss + 150, "{case}: {rss} MiB, then {now}");
            if number % 10 == 9 {
                let start = Instant::now();
                let reply = runtime.block_on(async {
                    let honest = connect(loopback(200), quic, &trusted).await.expect("a connection");
                    timeout(PATIENCE, ask(&honest, "www.site.example A")).await.expect("a reply")
                });
                assert_eq!(reply.one(), "192.0.2.1", "{case} after {:?}", start.elapsed());
                assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.1", "{case}");
            }
        }
        let exceeded = daemon.metric("watershed_budget_exceeded_total", &[]);
        assert!(exceeded > 0.0, "{case}");
        runtime.block_on(async { drop(attackers) });
        wait_until("what was held to be free", LONG, || {
            (daemon.metric("watershed_budget_held_bytes", &[]) == 0.0).then_some(())
        });
    }
}
