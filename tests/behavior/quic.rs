//! DNS over QUIC, as `kdig` speaks it: answered, counted, reloaded, begun anew by the next process, closed.

use std::{net::SocketAddr, path::Path, process::Command};

use crate::harness::{daemon::forward, *};

/// What a client that trusts this certificate is told, if it is told anything.
fn ask(quic: SocketAddr, certificate: &Path) -> String {
    let (ip, port) = (quic.ip(), quic.port());
    // The last of its options on transports is the one that holds.
    let words = format!("@{ip} -p {port} +tls-hostname=dns.example +padding +time=2 +retry=0 www.example A +quic");
    let trusted = format!("+tls-ca={}", certificate.display());
    let output = Command::new("kdig").arg(trusted).args(words.split(' ')).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn quic_is_served_to_kdig_through_reload_and_hand_over_until_it_is_closed() {
    let Some(_) = require::program("kdig") else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let [plain, quic, control] = [(); 3].map(|()| free_address());
    let server = format!(
        "[server]\nlisten = [\"{plain}\"]\nworkers = 2\nquic_listen = [\"{quic}\"]\ncertificate = \"<DIR>/certificate\"\n\
         private_key = \"<DIR>/key\"\n[control]\nlisten = \"{control}\"\n"
    );
    let issue = || rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    let (first, second) = (issue(), issue());
    let mut daemon = Setup::new(&(server + &forward(".", &[upstream.address()])))
        .file("certificate", &first.cert.pem())
        .file("key", &first.signing_key.serialize_pem())
        .file("first", &first.cert.pem())
        .file("second", &second.cert.pem())
        .reachable_by_all()
        .start();
    let trusting = |daemon: &Daemon, which: &str| ask(quic, &daemon.folder().join(which));
    let is_answered = |text: &str| text.contains("status: NOERROR") && text.contains("\t192.0.2.1\n");

    for from in ["upstream", "cache"] {
        let text = trusting(&daemon, "first");
        assert!(is_answered(&text), "from the {from}: {text}");
        assert!(text.contains(" QUIC ") && text.contains("PADDING"), "{text}");
    }
    for name in ["received", "queries", "replies"] {
        let metric = format!("watershed_server_{name}_total");
        assert_eq!(daemon.metric(&metric, &[("transport", "quic")]), 2.0, "{name}");
    }

    daemon.write("certificate", &second.cert.pem());
    daemon.write("key", &second.signing_key.serialize_pem());
    assert!(daemon.reload().contains("reloaded"));
    assert!(is_answered(&trusting(&daemon, "second")));
    assert!(!is_answered(&trusting(&daemon, "first")), "the certificate is another");

    daemon.hand_over();
    assert!(is_answered(&trusting(&daemon, "second")), "by the next process");

    let line = format!("quic_listen = [\"{quic}\"]\n");
    daemon.edit_config(|config| config.replace(&line, ""));
    assert!(daemon.reload().contains("no longer listening"));
    assert!(!is_answered(&trusting(&daemon, "second")), "closed");
    daemon.edit_config(|config| config.replace("workers = 2\n", &format!("workers = 2\n{line}")));
    assert!(daemon.reload().contains("reloaded"));
    assert!(is_answered(&trusting(&daemon, "second")), "open again");
    let mut log = daemon.log_from(0);
    log.retain(|line| !line.contains("any user may read the secret"));
    assert!(!log.iter().any(|line| line.contains(" WARN ") || line.contains(" ERROR ")), "{log:#?}");
}
