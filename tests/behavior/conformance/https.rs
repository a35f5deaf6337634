//! DNS over HTTPS and TLS, as programs of others speak it: `curl`, `kdig` and `dig`.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::PathBuf,
    process::{Command, Stdio},
};

use data_encoding::BASE64URL_NOPAD;

use crate::harness::{daemon::forward, *};

/// A daemon that proves to be `dns.example`.
struct Encrypted {
    daemon: Daemon,
}

impl Encrypted {
    /// With these keys in the section `[server]`.
    fn new(upstream: &Upstream, keys: &str) -> Self {
        let mut authority = rcgen::CertificateParams::default();
        // Else it bears the same name as what it certifies, which looks as if that had certified itself.
        authority.distinguished_name.push(rcgen::DnType::CommonName, "an authority");
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = rcgen::CertifiedIssuer::self_signed(authority, rcgen::KeyPair::generate().unwrap()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(["dns.example".to_owned()]).unwrap();
        let certificate = certificate.signed_by(&key, &authority).unwrap();
        let server = "[server]\nlisten = [\"127.0.0.1:0\"]\ntls_listen = [\"127.0.0.1:0\"]\n\
                      https_listen = [\"127.0.0.1:0\"]\ncertificate = \"certificate.pem\"\nprivate_key = \"key.pem\"\n";
        let config = format!("{}{server}{keys}", forward(".", &[upstream.address()]));
        let daemon = Setup::new(&config)
            .file("authority.pem", &authority.pem())
            .file("certificate.pem", &certificate.pem())
            .file("key.pem", &key.serialize_pem())
            .start();
        Self { daemon }
    }

    fn authority(&self) -> PathBuf {
        self.daemon.folder().join("authority.pem")
    }

    fn command(&self, arguments: &[&str], path: &str) -> Command {
        let port = self.daemon.addresses[2].port();
        let mut command = Command::new("curl");
        command.args(["-s", "-S", "--http2", "--cacert"]).arg(self.authority());
        command.args(["--resolve", &format!("dns.example:{port}:127.0.0.1"), "--noproxy", "*"]);
        command.args(arguments).arg(format!("https://dns.example:{port}{path}"));
        command
    }

    /// What `curl` is told with these arguments of a path, on standard output.
    #[track_caller]
    fn curl(&self, arguments: &[&str], path: &str) -> Vec<u8> {
        let mut command = self.command(arguments, path);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[track_caller]
    fn get(&self, query: &[u8]) -> Vec<u8> {
        self.curl(&[], &format!("/dns-query?dns={}", BASE64URL_NOPAD.encode(query)))
    }

    #[track_caller]
    fn post(&self, query: &[u8]) -> Vec<u8> {
        fs::write(self.daemon.folder().join("query"), query).unwrap();
        let body = format!("@{}", self.daemon.folder().join("query").display());
        self.curl(&["-H", "content-type: application/dns-message", "--data-binary", &body], "/dns-query")
    }
}

#[test]
fn get_and_post_are_answered_with_the_octets_of_tcp() {
    let Some(_) = require::program("curl") else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let encrypted = Encrypted::new(&upstream, "");
    // Local data does not age from one reply to the next.
    for asked in [
        query("localhost A"),
        query("localhost A").edns(1232).dnssec_ok(),
        query("no.localhost TXT"),
        query("no.invalid A").edns(512),
        query("localhost AXFR").edns(1232),
    ] {
        let asked = asked.to_wire();
        let mut tcp = Tcp::connect(encrypted.daemon.address());
        tcp.stream.write_all(&client::framed(&asked)).unwrap();
        let expected = tcp.receive_wire().unwrap();
        assert_eq!(encrypted.get(&asked), expected);
        assert_eq!(encrypted.post(&asked), expected);
    }
    // What has to be forwarded, too.
    let reply = Message::from_wire(&encrypted.get(&query("www.example A").to_wire())).unwrap();
    assert_eq!(reply.one(), "192.0.2.1");
    assert_eq!(encrypted.daemon.metric("watershed_server_queries_total", &[("transport", "https")]), 9.0);
}

#[test]
fn what_is_no_dns_request_has_its_status() {
    let Some(_) = require::program("curl") else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let encrypted = Encrypted::new(&upstream, "");
    let good = BASE64URL_NOPAD.encode(&query("www.example A").to_wire());
    let response = BASE64URL_NOPAD.encode(&query("www.example A").respond().to_wire());
    fs::write(encrypted.daemon.folder().join("large"), [0; 70_000]).unwrap();
    let large = format!("@{}", encrypted.daemon.folder().join("large").display());
    let message = "content-type: application/dns-message";
    for (case, arguments, path, expected) in [
        ("a query", &[][..], format!("/dns-query?dns={good}"), "200"),
        ("a query among other parameters", &[], format!("/dns-query?ct=x&dns={good}"), "200"),
        ("any type accepted", &["-H", "accept: */*"], format!("/dns-query?dns={good}"), "200"),
        ("another path", &[], format!("/other?dns={good}"), "404"),
        ("no query", &[], "/dns-query".to_owned(), "400"),
        ("an encoding with padding", &[], format!("/dns-query?dns={good}=="), "400"), // RFC 8484 §6
        ("no encoding", &[], "/dns-query?dns=%00".to_owned(), "400"),
        ("a response", &[], format!("/dns-query?dns={response}"), "400"),
        ("half a header", &[], "/dns-query?dns=AAAB".to_owned(), "400"),
        ("two questions", &[], "/dns-query?dns=AAABAAACAAAAAAAA".to_owned(), "200"), // FORMERR is an answer
        ("another method", &["-X", "PUT"], format!("/dns-query?dns={good}"), "405"),
        ("another type", &["-H", "content-type: text/plain", "-d", "x"], "/dns-query".to_owned(), "415"),
        ("no message", &["-H", message, "-d", ""], "/dns-query".to_owned(), "400"),
        ("a body beyond all messages", &["-H", message, "--data-binary", &large], "/dns-query".to_owned(), "413"),
    ] {
        let output = encrypted.daemon.folder().join("output").display().to_string();
        let status = encrypted.curl(&[arguments, &["-w", "%{http_code}", "-o", &output]].concat(), &path);
        assert_eq!(String::from_utf8_lossy(&status), expected, "{case}");
    }
}

/// Told of a failure while it sends, `curl` tells of a broken stream instead.
#[test]
fn a_body_that_is_not_wanted_is_heard_to_its_end() {
    let Some(_) = require::program("curl") else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let encrypted = Encrypted::new(&upstream, "");
    for (case, method, path, expected) in [
        ("another type", "POST", "/dns-query", "415"),
        ("another path", "POST", "/other", "404"),
        ("another method", "PUT", "/dns-query", "405"),
    ] {
        let arguments = ["-v", "-X", method, "-H", "content-type: text/plain", "-T", "-", "-w", "%{http_code}"];
        let mut command = encrypted.command(&arguments, path);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        told.find(|line| line.starts_with("> content-type")).expect("the request");
        for part in ["some", "more"] {
            child.stdin.as_mut().unwrap().write_all(part.as_bytes()).unwrap();
        }
        drop(child.stdin.take());
        let rest: Vec<String> = told.collect();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{case}: {rest:?}");
        assert!(output.status.success(), "{case}: {rest:?}");
    }
}

#[test]
fn a_reply_to_get_may_be_kept_as_long_as_what_it_says() {
    let Some(_) = require::program("curl") else { return };
    let upstream = Upstream::holding(&["www.example. 60 A 192.0.2.1", "www.example. 30 A 192.0.2.2"]);
    let encrypted = Encrypted::new(&upstream, "[cache]\nmax_ttl = \"1d\"\n");
    for (question, expected) in [
        ("www.example A", "max-age=30"),   // the least of the answer (RFC 8484 §5.1)
        ("www.example TXT", "max-age=60"), // the SOA minimum
        ("www.example AXFR", "max-age=0"), // nothing is said of how long that is so
    ] {
        let path = format!("/dns-query?dns={}", BASE64URL_NOPAD.encode(&query(question).to_wire()));
        let output = encrypted.daemon.folder().join("output").display().to_string();
        let headers = String::from_utf8(encrypted.curl(&["-D", "-", "-o", &output], &path)).unwrap();
        let lines: Vec<&str> = headers.lines().map(str::trim).collect();
        assert!(lines.contains(&format!("cache-control: {expected}").as_str()), "{question}: {headers}");
        assert!(lines.contains(&"content-type: application/dns-message"), "{headers}");
    }
}

#[test]
fn kdig_and_dig_are_answered_by_tls_and_https() {
    let (Some(_), Some(_)) = (require::program("kdig"), require::program("dig")) else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let encrypted = Encrypted::new(&upstream, "");
    let [_, tls, https] = encrypted.daemon.addresses[..] else { panic!("three listeners") };
    let ca = encrypted.authority().display().to_string();
    for (program, port, options) in [
        ("kdig", tls.port(), vec![format!("+tls-ca={ca}"), "+tls-host=dns.example".into()]),
        ("kdig", https.port(), vec!["+https".into(), format!("+tls-ca={ca}"), "+tls-host=dns.example".into()]),
        ("kdig", https.port(), vec!["+https-get".into(), format!("+tls-ca={ca}"), "+tls-host=dns.example".into()]),
        ("dig", tls.port(), vec!["+tls".into(), format!("+tls-ca={ca}"), "+tls-hostname=dns.example".into()]),
        ("dig", https.port(), vec!["+https".into(), format!("+tls-ca={ca}"), "+tls-hostname=dns.example".into()]),
        ("dig", https.port(), vec!["+https-get".into(), format!("+tls-ca={ca}"), "+tls-hostname=dns.example".into()]),
    ] {
        let mut command = Command::new(program);
        command.args(["@127.0.0.1", "-p", &port.to_string(), "+short", "+time=5"]).args(&options);
        assert_eq!(run(command.arg("www.example")).trim(), "192.0.2.1", "{command:?}");
    }
}

/// RFC 7830 §4, in the blocks of RFC 8467 §4.1.
#[test]
fn replies_are_padded_where_queries_were_and_nobody_can_read_them() {
    let (Some(_), Some(_)) = (require::program("kdig"), require::program("curl")) else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let encrypted = Encrypted::new(&upstream, "");
    let options = |wire: &[u8]| {
        let options = Message::from_wire(wire).unwrap().edns.unwrap().options;
        options.into_iter().map(|(code, data)| (code, data.len())).collect::<Vec<_>>()
    };
    for asked in [query("www.example A"), query("a.longer.name.example TXT").dnssec_ok()] {
        let padded = asked.clone().option(12, &[0; 20]).to_wire();
        for reply in [encrypted.get(&padded), encrypted.post(&padded)] {
            assert_eq!(reply.len(), 468, "{:?}", options(&reply));
            assert!(options(&reply).iter().any(|(code, _)| *code == 12));
        }
        let with_cookie = asked.clone().option(12, &[]).option(10, &[1; 8]).to_wire();
        let reply = encrypted.get(&with_cookie);
        assert_eq!((reply.len(), options(&reply)[0]), (468, (10, 24)));
        let plain = encrypted.get(&asked.edns(1232).to_wire());
        assert!(plain.len() < 200 && options(&plain).is_empty());
    }
    let ca = format!("+tls-ca={}", encrypted.authority().display());
    let port = encrypted.daemon.addresses[1].port().to_string();
    for (padding, is_padded) in [("+padding=128", true), ("+nopadding", false)] {
        let mut command = Command::new("kdig");
        command.args(["@127.0.0.1", "-p", &port, "+edns", padding, &ca, "+tls-host=dns.example", "www.example"]);
        let text = run(&mut command);
        assert_eq!(text.contains("Received 468 B"), is_padded, "{text}");
    }
}

#[test]
fn connections_of_https_are_bounded_like_those_of_tcp() {
    let upstream = Upstream::saying("192.0.2.1");
    let limits = "tcp_connections_per_client = 3\ntcp_message_timeout = \"2s\"\n";
    let encrypted = Encrypted::new(&upstream, limits);
    let https = encrypted.daemon.addresses[2];
    let open = || encrypted.daemon.metric("watershed_server_tcp_connections", &[]);
    let mut idle: Vec<Tcp> = (0..3).map(|_| Tcp::connect(https)).collect();
    wait_until("three connections", PATIENCE, || (open() == 3.0).then_some(()));
    assert!(Tcp::connect(https).receive_wire().is_none(), "one too many");
    // Who begins no handshake in time is let go.
    assert!(idle.iter_mut().all(|connection| connection.receive_wire().is_none()));
    wait_until("their places", PATIENCE, || (open() == 0.0).then_some(()));
    let Some(_) = require::program("curl") else { return };
    let reply = encrypted.get(&query("www.example A").to_wire());
    assert_eq!(Message::from_wire(&reply).unwrap().one(), "192.0.2.1");
}
