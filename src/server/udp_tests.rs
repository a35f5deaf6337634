use std::{fs::File, net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use tokio::runtime::Runtime;

use super::*;
use crate::{
    cache::{self, Cache, Epoch},
    forward::{self, Group},
    metrics::Metrics,
    resolve::{Resolver, Route, Rules, Tables},
    server::Config,
    wire::Name,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A worker that serves one socket.
struct House {
    handle: Handle,
    thread: thread::JoinHandle<()>,
    socket: Arc<UdpSocket>,
    metrics: Metrics,
    upstream: UdpSocket,
    _runtime: Runtime,
}

impl House {
    /// Its worker panics at queries with `panic` in them.
    fn open() -> Self {
        Self::with(|query| assert!(!is_about(query, "panic"), "as the test wants"))
    }

    fn with(inspect: impl FnMut(&[u8]) + Send + 'static) -> Self {
        let runtime = Runtime::new().unwrap();
        let metrics = Metrics::new();
        let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
        upstream.set_read_timeout(Some(PATIENCE)).unwrap();
        let config = format!("suffixes = ['.']\nupstreams = ['{}']", upstream.local_addr().unwrap());
        let config: forward::Config = toml::from_str(&config).unwrap();
        let rules = vec![config.rule().unwrap()];
        let group = Group::build_all(&rules, &[], &metrics).unwrap().remove(0);
        let route = Route::new(&rules[0], group, cache::Config::default().policy(Duration::ZERO));
        let rules = Rules { forwards: vec![(vec![Name::root()], route)], ..Rules::default() };
        let resolver = Resolver::new(Cache::new(1 << 20), Tables::new(rules, Epoch(1)), 16);
        let face = Face::new(Arc::new(resolver), Config::default(), &metrics, runtime.handle().clone());
        let (handle, thread) = spawn(0, Arc::new(face), metrics.cells(), inspect).unwrap();
        let socket = Arc::new(crate::sys::bind_udp("127.0.0.1:0".parse().unwrap()).unwrap());
        Self { handle, thread, socket, metrics, upstream, _runtime: runtime }
    }

    fn serve(&self) {
        self.handle.add(0, self.socket.clone());
    }

    fn client(&self) -> UdpSocket {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(self.socket.local_addr().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// The response to what the upstream is asked next, and whom to send it to: the question as it was asked, and nothing
    /// more, which is NODATA.
    fn asked_upstream(&self) -> (Vec<u8>, SocketAddr) {
        let mut message = [0; 512];
        let (length, worker) = self.upstream.recv_from(&mut message).unwrap();
        message[2..4].copy_from_slice(&0x8180u16.to_be_bytes());
        (message[..length].to_vec(), worker)
    }

    fn failures(&self) -> String {
        let text = self.metrics.render();
        let line = text.lines().find(|line| line.starts_with("watershed_server_worker_failures_total"));
        line.unwrap().split(' ').next_back().unwrap().to_owned()
    }

    fn end(self) {
        self.handle.stop(PATIENCE);
        self.thread.join().unwrap();
    }
}

fn query(id: u16, qname: &str) -> Vec<u8> {
    let header = [id, 0x0100, 1, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes);
    header.chain(qname.parse::<Name>().unwrap().wire().iter().copied()).chain([0, 1, 0, 1]).collect()
}

fn is_about(query: &[u8], text: &str) -> bool {
    query.windows(text.len()).any(|octets| octets == text.as_bytes())
}

fn receive(client: &UdpSocket) -> (u16, u8) {
    let mut reply = [0; 512];
    client.recv(&mut reply).expect("a reply");
    (u16::from_be_bytes([reply[0], reply[1]]), reply[3] & 0x0f)
}

#[test]
fn a_panic_costs_the_query_at_hand_and_none_of_its_batch() {
    let house = House::open();
    let client = house.client();
    // They are queued before the worker has the socket, so they come as one batch.
    for (id, qname) in
        [(1, "localhost"), (2, "panic.localhost"), (3, "localhost"), (4, "panic.localhost"), (5, "a.localhost")]
    {
        client.send(&query(id, qname)).unwrap();
    }
    house.serve();
    let mut replies: Vec<_> = (0..5).map(|_| receive(&client)).collect();
    replies.sort_unstable();
    assert_eq!(replies, [(1, 0), (2, 2), (3, 0), (4, 2), (5, 0)]);
    client.send(&query(6, "localhost")).unwrap();
    assert_eq!(receive(&client), (6, 0));
    assert_eq!(house.failures(), "2");
    house.end();
}

#[test]
fn a_worker_that_panics_while_it_is_told_to_end_serves_what_is_queued_and_ends() {
    let house = House::open();
    let client = house.client();
    for (id, qname) in [(1, "localhost"), (2, "panic.localhost"), (3, "localhost")] {
        client.send(&query(id, qname)).unwrap();
    }
    // Both in one go: it serves the listener for the first time when it lets it go.
    house.serve();
    house.handle.stop(PATIENCE);
    let mut replies: Vec<_> = (0..3).map(|_| receive(&client)).collect();
    replies.sort_unstable();
    assert_eq!(replies, [(1, 0), (2, 2), (3, 0)]);
    house.thread.join().unwrap();
}

#[test]
fn a_panic_costs_none_of_those_who_wait_for_an_upstream() {
    let house = House::open();
    house.serve();
    let waiting = house.client();
    waiting.send(&query(1, "www.example")).unwrap();
    let (response, worker) = house.asked_upstream();
    let other = house.client();
    other.send(&query(2, "panic.example")).unwrap();
    assert_eq!(receive(&other), (2, 2));
    house.upstream.send_to(&response, worker).unwrap();
    assert_eq!(receive(&waiting), (1, 0));
    house.end();
}

#[test]
fn what_an_upstream_has_said_goes_out_before_new_queries_are_read() {
    let (holds, held) = mpsc::channel();
    let (let_go, is_let_go) = mpsc::channel();
    let (looks, looked) = mpsc::channel();
    let (lends, lent) = mpsc::channel::<UdpSocket>();
    let house = House::with(move |query| {
        if is_about(query, "hold") {
            holds.send(()).unwrap();
            is_let_go.recv_timeout(PATIENCE).unwrap();
        } else if is_about(query, "look") {
            let waiting = lent.recv_timeout(PATIENCE).unwrap();
            // Nothing comes while this is waited for, but what is on its way.
            waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            looks.send(waiting.recv(&mut [0; 512]).is_ok()).unwrap();
        }
    });
    house.serve();
    let (waiting, client) = (house.client(), house.client());
    waiting.send(&query(1, "www.example")).unwrap();
    let (response, worker) = house.asked_upstream();
    client.send(&query(2, "hold.localhost")).unwrap();
    held.recv_timeout(PATIENCE).unwrap();
    // While the worker is held up, both come in, the query first.
    client.send(&query(3, "look.localhost")).unwrap();
    house.upstream.send_to(&response, worker).unwrap();
    lends.send(waiting).unwrap();
    let_go.send(()).unwrap();
    assert!(looked.recv_timeout(PATIENCE).unwrap(), "no reply as yet");
    assert_eq!((receive(&client), receive(&client)), ((2, 0), (3, 0)));
    house.end();
}

#[test]
fn a_settled_worker_has_done_what_it_was_told() {
    let house = House::open();
    for _ in 0..100 {
        house.serve();
        house.handle.remove(0);
        assert!(house.handle.settle(), "not within a second");
        assert_eq!(Arc::strong_count(&house.socket), 1, "the worker has let go of it");
    }
    house.end();
}

#[test]
fn a_system_call_that_fails_costs_none_of_the_other_sockets() {
    let house = House::open();
    house.serve();
    let client = house.client();
    client.send(&query(1, "localhost")).unwrap();
    assert_eq!(receive(&client), (1, 0));
    // epoll takes no files, so the worker cannot serve this one.
    let file = UdpSocket::from(OwnedFd::from(File::open("/dev/null").unwrap()));
    house.handle.add(1, Arc::new(file));
    client.send(&query(2, "localhost")).unwrap();
    assert_eq!(receive(&client), (2, 0));
    let deadline = std::time::Instant::now() + PATIENCE;
    while house.failures() == "0" && std::time::Instant::now() < deadline {
        thread::yield_now();
    }
    assert_eq!(house.failures(), "1");
    house.end();
}

#[test]
fn a_worker_that_drives_exchanges_badly_tells_those_who_wait() {
    let mut driven =
        UdpDriver::new(FIRST_UPSTREAM_TOKEN, Limits { exchanges: 0, sockets: 0 }, StdRng::from_rng(&mut rand::rng()));
    let upstream: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let config: forward::Config = toml::from_str(&format!("suffixes = ['.']\nupstreams = ['{upstream}']")).unwrap();
    let group = Group::build_all(&[config.rule().unwrap()], &[], &Metrics::new()).unwrap().remove(0);
    let question = crate::wire::Question {
        qname: "www.example".parse().unwrap(),
        qtype: crate::wire::Rtype::A,
        qclass: crate::wire::Class::IN,
    };
    let options = forward::Options { dnssec_ok: false, checking_disabled: false, patience: None, timeout: PATIENCE };
    let now = Moment::now();
    let exchange = forward::Exchange::new(group, &question, options, now, &mut rand::rng());
    driven.start("tag", exchange, now, &Poller::new().unwrap());
    assert_eq!(driven.into_tags().collect::<Vec<_>>(), ["tag"]);
}
