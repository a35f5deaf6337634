use std::{
    io::{self, ErrorKind},
    net::IpAddr,
    sync::Arc,
};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{RootCertStore, pki_types::CertificateDer},
};

use super::*;
use crate::catalog::check::{Declaration, Kind, Scripts, connect::Resolving};
use Status::{Critical, Passing, Warning};

/// Names below `example` are on the loopback; all trust goes to one certificate.
fn dialer(root: Option<CertificateDer<'static>>) -> Dialer {
    let resolve = |host: &str| -> Resolving {
        let answer: io::Result<Vec<IpAddr>> = match host {
            "db.example" => Ok(vec!["127.0.0.1".parse().unwrap()]),
            // Nobody listens at the first.
            "two.example" => Ok(vec!["127.0.0.9".parse().unwrap(), "127.0.0.1".parse().unwrap()]),
            "none.example" => Ok(vec![]),
            _ => Err(ErrorKind::NotFound.into()),
        };
        Box::pin(async move { answer })
    };
    Dialer::with(Arc::new(resolve), move || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(root.clone());
        roots
    })
}

async fn try_with(keys: Value, patience: Duration, dialer: &Dialer) -> Outcome {
    let mut keys = keys;
    keys["interval"] = json!("1s");
    let definition = Declaration::deserialize(keys).unwrap().define(Scripts::Allowed).unwrap();
    let Kind::Probe { probe, .. } = definition.kind else { panic!("no probe") };
    run(&probe, patience, definition.output_bytes, dialer).await
}

async fn check(keys: Value) -> Outcome {
    try_with(keys, LONG, &dialer(None)).await
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn tcp_passes_where_somebody_listens() {
    let (_listener, port) = listen().await;
    for (host, port, status, reach, output) in [
        ("127.0.0.1", port, Passing, Reach::Answered, "Success"),
        ("db.example", port, Passing, Reach::Answered, "Success"),
        ("two.example", port, Passing, Reach::Answered, "Success"),
        ("127.0.0.1", CLOSED_PORT, Critical, Reach::Answered, "Connection refused"),
        ("none.example", port, Critical, Reach::Silent, "resolve none.example: no address"),
        ("fails.example", port, Critical, Reach::Silent, "resolve fails.example: "),
    ] {
        let outcome = check(json!({"tcp": format!("{host}:{port}")})).await;
        assert_eq!((outcome.status, outcome.reach), (status, reach), "{host}: {outcome:?}");
        assert!(outcome.output.contains(output), "{host}: {outcome:?}");
    }
}

#[tokio::test]
async fn udp_fails_only_where_the_host_says_so() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        let (length, peer) = socket.recv_from(&mut [0; 1]).await.unwrap();
        socket.send_to(b"here", peer).await.unwrap();
        (length, socket)
    });
    assert_eq!(check(json!({"udp": format!("127.0.0.1:{port}")})).await.status, Passing);
    let (length, silent) = answering.await.unwrap();
    assert_eq!(length, 0);

    // Silence is no failure. It must end before the patience does.
    let outcome = try_with(json!({"udp": format!("127.0.0.1:{port}")}), Duration::from_secs(5), &dialer(None)).await;
    assert_eq!(outcome.status, Passing, "{outcome:?}");
    drop(silent);
    let outcome = check(json!({"udp": format!("127.0.0.1:{CLOSED_PORT}")})).await;
    assert_eq!((outcome.status, outcome.reach), (Critical, Reach::Answered), "{outcome:?}");
}

/// Answers each connection with the next response, and returns the requests.
async fn serve(responses: Vec<String>) -> (u16, JoinHandle<Vec<String>>) {
    let (listener, port) = listen().await;
    let served = tokio::spawn(async move {
        let mut requests = Vec::new();
        for response in responses {
            let (mut stream, _) = listener.accept().await.unwrap();
            requests.push(read_request(&mut stream).await);
            stream.write_all(response.as_bytes()).await.unwrap();
        }
        requests
    });
    (port, served)
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&request);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text.into_owned();
            }
        }
        assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "half a request");
    }
}

#[tokio::test]
async fn http_is_judged_by_its_status() {
    for (status, body, expected) in [
        ("200 OK", "synced", Passing),
        ("204 No Content", "", Passing),
        ("429 Too Many Requests", "busy", Warning),
        ("301 Moved Permanently", "without location", Critical),
        ("404 Not Found", "", Critical),
        ("503 Service Unavailable", "not leader", Critical),
    ] {
        let (port, served) = serve(vec![format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n{body}")]).await;
        let outcome = check(json!({"http": format!("http://127.0.0.1:{port}/health")})).await;
        served.await.unwrap();
        assert_eq!(outcome.status, expected, "{status}");
        let expected = format!("HTTP GET http://127.0.0.1:{port}/health: {status} Output: {body}");
        assert_eq!(outcome.output, expected);
    }
}

#[tokio::test]
async fn http_sends_what_the_definition_says() {
    let (port, served) = serve(vec!["HTTP/1.0 200 OK\r\n\r\n".to_owned()]).await;
    let keys = json!({"http": format!("http://us:pw@db.example:{port}/a?b=c#d"), "method": "PUT", "body": "{\"x\":1}",
                      "header": {"X-Two": ["1", "2"], "Host": ["vhost.example"], "Watershed-Check": ["0"]}});
    assert_eq!(check(keys).await.status, Passing);
    let requests = served.await.unwrap();
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().collect();
    lines[1..].sort_unstable();
    let expected = [
        "PUT /a?b=c HTTP/1.1",
        "accept: text/plain, text/*, */*",
        "authorization: Basic dXM6cHc=",
        "connection: close",
        "content-length: 7",
        "host: vhost.example",
        "user-agent: Consul Health Check",
        "watershed-check: 1",
        "x-two: 1",
        "x-two: 2",
    ];
    assert_eq!((lines.as_slice(), body), (&expected[..], "{\"x\":1}"));
}

#[tokio::test]
async fn http_redirects_are_followed_within_the_server_unless_they_are_disabled() {
    let (port, served) = serve(vec![
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 302 Found\r\nLocation: /c\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 302 Found\r\nLocation: /b\r\nContent-Length: 0\r\n\r\n".to_owned(),
    ])
    .await;
    let mut keys = json!({"http": format!("http://u:p@127.0.0.1:{port}/a"), "method": "POST", "body": "x"});
    assert_eq!(check(keys.clone()).await.status, Passing);
    keys["disable_redirects"] = json!(true);
    let outcome = check(keys).await;
    assert!(outcome.status == Critical && outcome.output.contains("302 Found"), "{outcome:?}");

    let here = served.await.unwrap();
    assert!(here[0].starts_with("POST /a ") && here[0].ends_with("\r\n\r\nx"), "{}", here[0]);
    assert!(here[1].starts_with("POST /b ") && here[1].contains("authorization: "), "{}", here[1]);
    assert!(here[2].starts_with("GET /c ") && here[2].contains("authorization: "), "{}", here[2]);
}

#[tokio::test]
async fn http_redirects_to_another_server_are_not_followed() {
    let (victim, port) = listen().await;
    for location in [
        format!("http://127.0.0.1:{port}/v1/agent/maintenance?enable=true"),
        format!("//127.0.0.1:{port}/"),
        format!("http://localhost:{port}/"),
        format!("https://127.0.0.1:{port}/"),
    ] {
        let (own, _served) = serve(vec![format!("HTTP/1.1 307 X\r\nLocation: {location}\r\n\r\n")]).await;
        for method in ["GET", "PUT"] {
            let outcome = check(json!({"http": format!("http://127.0.0.1:{own}/"), "method": method})).await;
            assert_eq!(outcome.status, Critical, "{location}: {outcome:?}");
            let is_told = outcome.output.contains("redirects to another server") || method == "PUT";
            assert!(is_told, "{location}: {outcome:?}");
        }
    }
    let visit = tokio::time::timeout(Duration::from_millis(50), victim.accept()).await;
    assert!(visit.is_err(), "nothing has connected to the other server");
}

#[tokio::test]
async fn http_redirects_end_somewhere() {
    let (port, served) = serve(vec!["HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n".to_owned(); 4]).await;
    let outcome = check(json!({"http": format!("http://127.0.0.1:{port}/")})).await;
    assert!(outcome.output.ends_with("more than 3 redirects"), "{outcome:?}");
    assert_eq!(served.await.unwrap().len(), 4);
}

#[tokio::test]
async fn http_output_is_cut_and_a_broken_body_changes_nothing() {
    let response = format!("HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n{}", "€".repeat(3000));
    let (port, _served) = serve(vec![response]).await;
    let outcome = check(json!({"http": format!("http://127.0.0.1:{port}/"), "output_max_size": 100})).await;
    assert_eq!(outcome.status, Passing);
    assert!((90..150).contains(&outcome.output.len()) && outcome.output.contains("€ ... (captured"), "{outcome:?}");
}

#[tokio::test]
async fn what_is_not_http_is_critical() {
    let (port, _served) = serve(vec!["SSH-2.0-OpenSSH_9.2\r\n".to_owned()]).await;
    let outcome = check(json!({"http": format!("http://127.0.0.1:{port}/")})).await;
    assert_eq!((outcome.status, outcome.reach), (Critical, Reach::Answered), "{outcome:?}");
}

#[tokio::test]
async fn a_server_that_accepts_and_is_silent_is_critical() {
    let (_listener, port) = listen().await;
    for keys in [
        json!({"http": format!("http://127.0.0.1:{port}/")}),
        json!({"http": format!("https://127.0.0.1:{port}/")}),
        json!({"grpc": format!("127.0.0.1:{port}")}),
        json!({"h2ping": format!("127.0.0.1:{port}"), "h2ping_use_tls": false}),
        json!({"tcp": format!("127.0.0.1:{port}"), "tcp_use_tls": true}),
    ] {
        let outcome = try_with(keys.clone(), Duration::from_millis(200), &dialer(None)).await;
        assert_eq!((outcome.status, outcome.reach), (Critical, Reach::Answered), "{keys}: {outcome:?}");
        assert!(outcome.output.ends_with("no answer within 200ms"), "{outcome:?}");
    }
}

/// Accepts TLS for `db.example` on one port; returns the certificate, which is its own root.
async fn listen_tls(protocol: &[u8]) -> (TcpListener, TlsAcceptor, u16, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["db.example".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let mut config = crate::tls::server()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], made.signing_key.into())
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    let (listener, port) = listen().await;
    (listener, TlsAcceptor::from(Arc::new(config)), port, certificate)
}

#[tokio::test]
async fn tls_is_verified_unless_it_shall_not_be() {
    let (listener, acceptor, port, root) = listen_tls(b"http/1.1").await;
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Some clients are expected not to like the certificate.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let (trusting, strange) = (dialer(Some(root)), dialer(None));
    for (url, more, dialer, expected) in [
        ("https://db.example", json!({}), &trusting, Passing),
        ("https://db.example", json!({}), &strange, Critical), // an unknown issuer
        ("https://db.example", json!({"tls_skip_verify": true}), &strange, Passing),
        ("https://127.0.0.1", json!({}), &trusting, Critical), // another name
        ("https://127.0.0.1", json!({"tls_server_name": "db.example"}), &trusting, Passing),
        ("http://db.example", json!({}), &trusting, Critical),
        ("db.example", json!({"tcp_use_tls": true}), &trusting, Passing),
        ("db.example", json!({"tcp_use_tls": true}), &strange, Critical),
    ] {
        let mut keys = more.clone();
        keys[if url.starts_with("http") { "http" } else { "tcp" }] = format!("{url}:{port}").into();
        let outcome = try_with(keys, LONG, dialer).await;
        assert_eq!((outcome.status, outcome.reach), (expected, Reach::Answered), "{url} {more}: {outcome:?}");
    }
    server.abort();
}

/// What a gRPC server does with the one request it gets.
#[derive(Debug, Clone, Copy)]
enum Grpc {
    Status(u8),
    Trailer(&'static str),
    HeaderOnly(&'static str),
    Http(u16),
    Garbage,
    Close,
}

/// Serves one request and returns what it asked.
async fn answer_grpc(stream: impl super::super::connect::Stream + 'static, answer: Grpc) -> Option<Bytes> {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (request, mut respond) = connection.accept().await?.unwrap();
    // The connection does its work only while it is polled.
    let asked = tokio::spawn(async move {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(
            (&request.headers()["content-type"], &request.headers()["te"]),
            (&http_value("application/grpc"), &http_value("trailers"),)
        );
        let message = request.into_body().data().await.unwrap().unwrap();
        let headers = ::http::Response::builder().header("content-type", "application/grpc");
        let trailers = |status| ::http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), http_value(status))]);
        match answer {
            Grpc::Status(status) => {
                let mut body = respond.send_response(headers.body(()).unwrap(), false).unwrap();
                body.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]), false).unwrap();
                body.send_trailers(trailers("0")).unwrap();
            }
            Grpc::Trailer(status) => {
                let mut body = respond.send_response(headers.body(()).unwrap(), false).unwrap();
                body.send_trailers(trailers(status)).unwrap();
            }
            Grpc::HeaderOnly(status) => {
                respond.send_response(headers.header("grpc-status", status).body(()).unwrap(), true).unwrap();
            }
            Grpc::Http(status) => {
                respond.send_response(headers.status(status).body(()).unwrap(), true).unwrap();
            }
            Grpc::Garbage => {
                let mut body = respond.send_response(headers.body(()).unwrap(), false).unwrap();
                body.send_data(Bytes::from_static(b"\0\0\0\0\x02\x08\xff"), false).unwrap();
                body.send_trailers(trailers("0")).unwrap();
            }
            Grpc::Close => respond.send_reset(h2::Reason::CANCEL),
        }
        message
    });
    while connection.accept().await.is_some() {}
    asked.await.ok()
}

fn http_value(text: &'static str) -> ::http::HeaderValue {
    ::http::HeaderValue::from_static(text)
}

#[tokio::test]
async fn grpc_passes_only_what_is_serving() {
    for (answer, expected, output) in [
        (Grpc::Status(1), Passing, "success"),
        (Grpc::Status(2), Critical, "NOT_SERVING"),
        (Grpc::Status(3), Critical, "SERVICE_UNKNOWN"),
        (Grpc::Status(0), Critical, "UNKNOWN"),
        (Grpc::Trailer("14"), Critical, "gRPC status 14"),
        (Grpc::HeaderOnly("12"), Critical, "without health service"),
        (Grpc::HeaderOnly("5"), Critical, "does not know the service"),
        (Grpc::Http(502), Critical, "502"),
        (Grpc::Garbage, Critical, "not a response of the health service"),
        (Grpc::Close, Critical, "stream"),
    ] {
        let (listener, port) = listen().await;
        let server = tokio::spawn(async move { answer_grpc(listener.accept().await.unwrap().0, answer).await });
        let outcome = check(json!({"grpc": format!("127.0.0.1:{port}/a.B")})).await;
        assert_eq!(outcome.status, expected, "{answer:?}: {outcome:?}");
        assert!(outcome.output.contains(output), "{answer:?}: {outcome:?}");
        assert_eq!(server.await.unwrap().unwrap()[..], b"\0\0\0\0\x05\x0a\x03a.B"[..], "{answer:?}");
    }
}

#[tokio::test]
async fn grpc_and_pings_speak_tls() {
    let (listener, acceptor, port, root) = listen_tls(b"h2").await;
    let server = tokio::spawn(async move {
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(stream).await.unwrap();
            answer_grpc(stream, Grpc::Status(1)).await;
        }
    });
    let dialer = dialer(Some(root));
    for keys in [
        json!({"grpc": format!("db.example:{port}"), "grpc_use_tls": true}),
        json!({"h2ping": format!("db.example:{port}")}),
    ] {
        let outcome = try_with(keys, LONG, &dialer).await;
        assert_eq!(outcome.status, Passing, "{outcome:?}");
    }
    server.await.unwrap();
}

#[tokio::test]
async fn pings_pass_with_an_echo_only() {
    let (listener, port) = listen().await;
    let keys = json!({"h2ping": format!("127.0.0.1:{port}"), "h2ping_use_tls": false});
    let server = tokio::spawn(async move {
        answer_grpc(listener.accept().await.unwrap().0, Grpc::Close).await;
        drop(listener.accept().await.unwrap());
    });
    assert_eq!(check(keys.clone()).await.status, Passing);
    let outcome = check(keys).await;
    assert_eq!((outcome.status, outcome.reach), (Critical, Reach::Answered), "{outcome:?}");
    server.await.unwrap();
}

#[tokio::test]
async fn commands_are_run() {
    let outcome = check(json!({"args": ["/bin/sh", "-c", "echo $0; exit 1"], "timeout": "5s"})).await;
    assert_eq!(outcome, Outcome { status: Warning, output: "/bin/sh\n".to_owned(), reach: Reach::Unknown });
}

/// Nobody listens there, nor can anybody be given it by chance, as a port that was in use before.
const CLOSED_PORT: u16 = 1;
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(60);
