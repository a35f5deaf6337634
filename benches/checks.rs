//! Health checks: what 2,000 at an interval of 10 s cost beyond the connections that they open.
//!
//! The checks run in one thread, as in the daemon but for the number of threads, against a server in another. A bare loop
//! then opens as many connections at the same pace and does no more with each than the check must. Both are measured by the
//! time that their threads were on a core. `--quick`, and a run as a test, are short: only the first, hasty, round is seen.

use std::{
    env, fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio_util::sync::CancellationToken;
use watershed::catalog::{
    check::{Check, Declaration, Dialer, Id, Limits, Runner, Scripts},
    health::Status,
};

const CHECKS: usize = 2000;

#[derive(Clone, Copy)]
enum Protocol {
    Tcp,
    Http,
}

fn main() {
    let has = |flag: &str| env::args().any(|argument| argument == flag);
    let is_full = has("--bench") && !has("--quick") && !has("--test");
    let span = Duration::from_secs(if is_full { 30 } else { 3 });
    for (name, protocol) in [("tcp", Protocol::Tcp), ("http", Protocol::Http)] {
        let (address, accepted) = serve(protocol);
        let checks = run_checks(protocol, address, span);
        let connections = accepted.swap(0, Relaxed);
        let bare = run_bare(protocol, address, connections, span);
        assert_eq!(accepted.load(Relaxed), connections, "the loop opens as many");
        let share = |cpu: Duration| cpu.as_secs_f64() / span.as_secs_f64() * 100.0;
        println!(
            "{CHECKS} {name} checks at 10 s: {connections} connections in {span:?}; {:.2} % of a core, {:.1} us each; \
             a bare loop {:.2} %, {:.1} us; beyond it {:.2} %",
            share(checks),
            checks.as_micros() as f64 / connections.max(1) as f64,
            share(bare),
            bare.as_micros() as f64 / connections.max(1) as f64,
            share(checks) - share(bare),
        );
        // Each has been run once at least within the first three seconds, and then at its interval.
        let least = CHECKS as u64 * if is_full { 3 } else { 1 };
        assert!(connections >= least * 9 / 10, "the checks fall behind: {connections} of {least}");
    }
}

/// How long the threads' work has kept a core busy.
fn on_core() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux says what a thread has used");
    let nanos = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanos.expect("the first number is the time on a core"))
}

/// A server that counts whom it accepts.
fn serve(protocol: Protocol) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    // The first round comes within 100 ms. A shorter queue would drop connections, which are tried again after a second.
    SockRef::from(&listener).listen(2 * CHECKS as i32).expect("a longer queue");
    let address = listener.local_addr().expect("it is bound");
    let accepted = Arc::new(AtomicU64::new(0));
    let count = accepted.clone();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            count.fetch_add(1, Relaxed);
            if let Protocol::Http = protocol {
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(RESPONSE);
            }
        }
    });
    (address, accepted)
}

fn run_checks(protocol: Protocol, address: SocketAddr, span: Duration) -> Duration {
    let check = |number: usize| {
        let what = match protocol {
            Protocol::Tcp => format!("\"tcp\": \"{address}\""),
            Protocol::Http => format!("\"http\": \"http://{address}/health\""),
        };
        let text = format!("{{{what}, \"interval\": \"10s\", \"timeout\": \"1s\"}}");
        let declaration: Declaration = serde_json::from_str(&text).expect("a check");
        let definition = declaration.define(Scripts::Refused).expect("a check without faults");
        let id = Id { node: "own".into(), check: format!("check{number}").into() };
        Check { id, service: None, definition: definition.into(), begins: Status::Unknown }
    };
    let checks = (0..CHECKS).map(check).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (runner, mut news) = Runner::new(Dialer::new(Arc::default()), Limits::default());
    let before = on_core();
    runtime.block_on(async {
        runner.replace(checks);
        let stop = CancellationToken::new();
        let end = async {
            tokio::time::sleep(span).await;
            stop.cancel();
        };
        let listen = async { while news.recv().await.is_some() {} };
        tokio::select! {
            _ = async { tokio::join!(runner.run(stop.clone()), end) } => {}
            () = listen => {}
        }
    });
    on_core() - before
}

/// The same connections, evenly spread over the time, and nothing else.
fn run_bare(protocol: Protocol, address: SocketAddr, connections: u64, span: Duration) -> Duration {
    let (start, before) = (Instant::now(), on_core());
    for number in 0..connections {
        let due = span.mul_f64(number as f64 / connections as f64);
        thread::sleep(due.saturating_sub(start.elapsed()));
        let mut stream = TcpStream::connect(address).expect("the server listens");
        if let Protocol::Http = protocol {
            stream.write_all(REQUEST).expect("the server listens");
            let _ = stream.read(&mut [0; 1024]);
        }
    }
    // The last may not have been accepted yet.
    thread::sleep(Duration::from_millis(100));
    on_core() - before
}

const REQUEST: &[u8] = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
