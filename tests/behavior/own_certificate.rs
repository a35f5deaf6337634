//! A self-signed certificate as its own `ca_file`, as operators make it with one line of `openssl`.

use std::{fs, process::Command};

use crate::harness::*;

const ZONE: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";

/// A certificate and its key, in PEM format.
type Pair = (String, String);

/// What `openssl req -x509` makes with these arguments.
fn openssl(arguments: &[&str]) -> Option<Pair> {
    let program = require::program("openssl")?;
    let folder = tempfile::tempdir().unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
    let mut command = Command::new(program);
    command.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
    ]);
    command.args(["-subj", "/CN=dns.example"]).args(arguments).arg("-out").arg(&cert).arg("-keyout").arg(&key);
    run(&mut command);
    Some((fs::read_to_string(cert).unwrap(), fs::read_to_string(key).unwrap()))
}

fn by_rcgen(names: &[&str]) -> Pair {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

/// A server of TLS and HTTPS with this certificate.
fn serving((certificate, key): &Pair) -> Daemon {
    let config = "[[zone]]\napex = \"site.example\"\nfile = \"site.zone\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n\
                  workers = 1\ntls_listen = [\"127.0.0.1:0\"]\nhttps_listen = [\"127.0.0.1:0\"]\n\
                  certificate = \"cert.pem\"\nprivate_key = \"key.pem\"\n";
    Setup::new(config).file("site.zone", ZONE).file("cert.pem", certificate).file("key.pem", key).start()
}

/// What a daemon is told over TLS and over HTTPS by that server, as this name, if it believes this certificate.
fn ask(server: &Daemon, name: &str, believed: &Pair) -> [&'static str; 2] {
    ["tls", "https"].map(|scheme| {
        let address = server.addresses[if scheme == "tls" { 1 } else { 2 }];
        let rule = format!(
            "[[forward]]\nsuffixes = [\".\"]\nupstreams = [\"{scheme}://{address}#{name}\"]\nca_file = \"ca.pem\"\n"
        );
        Setup::new(&rule).file("ca.pem", &believed.0).start().ask("www.site.example A").rcode_name()
    })
}

#[test]
fn a_certificate_that_stands_in_ca_file_is_believed_as_it_is() {
    let (Some(usual), Some(leaf), Some(nameless)) = (
        openssl(&["-addext", "subjectAltName=DNS:dns.example"]), // CA:TRUE
        openssl(&["-addext", "subjectAltName=DNS:dns.example", "-addext", "basicConstraints=critical,CA:FALSE"]),
        openssl(&[]),
    ) else {
        return;
    };
    let (good, bad) = (["NOERROR"; 2], ["SERVFAIL"; 2]);
    for (shape, pair, other_name) in [
        ("openssl req -x509", &usual, bad),
        ("CA:FALSE", &leaf, bad),
        ("no subjectAltName", &nameless, good),
        ("rcgen", &by_rcgen(&["dns.example"]), bad),
    ] {
        let server = serving(pair);
        assert_eq!(ask(&server, "dns.example", pair), good, "{shape}");
        assert_eq!(ask(&server, "other.example", pair), other_name, "{shape}");
        assert_eq!(ask(&server, "dns.example", &by_rcgen(&["dns.example"])), bad, "{shape}: another certificate");
    }
}
