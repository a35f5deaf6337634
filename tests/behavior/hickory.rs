//! hickory-server as the upstream, over every transport: a server that shares no code with ours.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_server::{
    Server,
    proto::rr::{LowerName, Name},
    store::file::{FileConfig, FileZoneHandler},
    zone_handler::{AxfrPolicy, Catalog, ZoneType},
};
use tokio::{
    net::{TcpListener, UdpSocket},
    runtime::Runtime,
};
use tokio_rustls::rustls::{
    ServerConfig,
    crypto::{ring::default_provider, ring::sign::any_supported_type},
    pki_types::{CertificateDer, PrivateKeyDer},
    server::ResolvesServerCertUsingSni,
    sign::CertifiedKey,
};

use crate::harness::{message::TC, *};

const NAME: &str = "dns.example";
const ZONE: &str = "$ORIGIN site.example.\n$TTL 60\n@ IN SOA ns host 1 2 3 4 30\n@ IN NS ns\nns IN A 192.0.2.53\n\
                    www IN A 192.0.2.80\nwww IN AAAA 2001:db8::80\nalias IN CNAME www\n*.wild IN A 192.0.2.100\n\
                    mail IN MX 10 www\nservice IN SRV 1 2 443 www\n";

/// A server of the zone; it ends with this.
struct Hickory {
    /// For UDP and TCP, for TLS, and for HTTPS.
    addresses: [SocketAddr; 3],
    certificate: String,
    _server: Mutex<Server<Catalog>>,
    _runtime: Runtime,
}

impl Hickory {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let zone_path = folder.path().join("site.zone");
        let large: String = (0..99).map(|number| format!("large IN TXT \"{number:0>240}\"\n")).collect();
        std::fs::write(&zone_path, format!("{ZONE}{large}")).unwrap();
        let apex = Name::from_ascii("site.example.").unwrap();
        let config = FileConfig { zone_path };
        let zone = FileZoneHandler::try_from_config(apex.clone(), ZoneType::Primary, AxfrPolicy::Deny, None, &config);
        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::from(apex), vec![Arc::new(zone.unwrap())]);

        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let chain = vec![CertificateDer::from(made.cert.der().to_vec())];
        let certified = Arc::new(CertifiedKey::new(chain, any_supported_type(&key).unwrap()));
        let mut resolver = ResolvesServerCertUsingSni::new();
        resolver.add(NAME, CertifiedKey::clone(&certified)).unwrap();
        let resolver = Arc::new(resolver);
        let tls = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let tls = tls.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let tls = Arc::new(tls.with_cert_resolver(resolver.clone()));

        let runtime = Runtime::new().unwrap();
        let (plain, encrypted, https) = (free_address(), free_address(), free_address());
        let mut server = Server::new(catalog);
        let patience = Duration::from_secs(30);
        runtime.block_on(async {
            server.register_socket(UdpSocket::bind(plain).await.unwrap());
            server.register_listener(TcpListener::bind(plain).await.unwrap(), patience, 32);
            let listener = TcpListener::bind(encrypted).await.unwrap();
            server.register_tls_listener_with_tls_config(listener, patience, tls).unwrap();
            let listener = TcpListener::bind(https).await.unwrap();
            let path = "/dns-query".to_owned();
            server.register_https_listener(listener, patience, resolver, Some(NAME.to_owned()), path).unwrap();
        });
        Self {
            addresses: [plain, encrypted, https],
            certificate: made.cert.pem(),
            _server: server.into(),
            _runtime: runtime,
        }
    }

    /// This server as an upstream.
    fn urls(&self) -> [String; 4] {
        let [plain, encrypted, https] = self.addresses;
        [
            plain.to_string(),
            format!("tcp://{plain}"),
            format!("tls://{encrypted}#{NAME}"),
            format!("https://{https}#{NAME}"),
        ]
    }
}

#[test]
fn hickory_is_forwarded_to_over_every_transport() {
    let server = Hickory::start();
    for url in server.urls() {
        let ca_file = if url.contains('#') { "ca_file = \"ca.pem\"\n" } else { "" };
        let rule = format!("[[forward]]\nsuffixes = [\"site.example\"]\nupstreams = [\"{url}\"]\n{ca_file}");
        let daemon = Setup::new(&rule).file("ca.pem", &server.certificate).start();
        for (question, expected) in [
            ("www.site.example A", &["192.0.2.80"][..]),
            ("www.site.example AAAA", &["2001:db8::80"]),
            ("alias.site.example A", &["192.0.2.80", "www.site.example."]),
            ("any.wild.site.example A", &["192.0.2.100"]),
            ("mail.site.example MX", &["10 www.site.example."]),
            ("service.site.example SRV", &["1 2 443 www.site.example."]),
        ] {
            for reply in [daemon.ask(question), daemon.tcp(&query(question))] {
                let mut data = reply.data();
                data.sort();
                assert_eq!(
                    (data, reply.rcode_name()),
                    (expected.iter().map(ToString::to_string).collect(), "NOERROR"),
                    "{url}: {question}"
                );
            }
        }
        for (question, expected) in [("no.site.example A", "NXDOMAIN"), ("www.site.example MX", "NOERROR")] {
            let reply = daemon.ask(question);
            assert_eq!((reply.rcode_name(), reply.answer.len()), (expected, 0), "{url}: {question}");
            assert!(reply.soa().is_some(), "{url}: {question}");
        }
        // No datagram holds it: by UDP it is truncated, there and here.
        assert!(daemon.ask("large.site.example TXT").has(TC), "{url}");
        assert_eq!(daemon.tcp(&query("large.site.example TXT")).answer.len(), 99, "{url}");
    }
}
