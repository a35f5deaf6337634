use std::{collections::HashMap, net::SocketAddr, os::fd::AsRawFd, sync::Arc, time::Duration};

use rand::SeedableRng;

use super::{
    super::{
        Group, Options,
        testing::{Reply, group},
    },
    *,
};
use crate::wire::{Class, Question, Rcode, Rtype, flag};

/// The tokens of sockets in their order of opening. What a poller would find readable, the test knows.
#[derive(Default)]
struct Tokens(std::cell::RefCell<HashMap<i32, u64>>);

impl Registry for Tokens {
    fn add(&self, socket: &UdpSocket, token: u64) -> io::Result<()> {
        self.0.borrow_mut().insert(socket.as_raw_fd(), token);
        Ok(())
    }
}

/// A driver whose time the test sets, and an upstream on loopback.
struct Bench {
    driver: UdpDriver<u32>,
    tokens: Tokens,
    now: Moment,
    server: UdpSocket,
    group: Arc<Group>,
}

impl Bench {
    fn new() -> Self {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let group = group(&format!("upstreams = ['{}']", server.local_addr().unwrap()));
        let limits = Limits { exchanges: 100, sockets: 100 };
        let driver = UdpDriver::new(1000, limits, StdRng::seed_from_u64(3));
        Self { driver, tokens: Tokens::default(), now: Moment::from_millis(1_000_000), server, group }
    }

    fn start(&mut self, tag: u32) {
        let qname = format!("host-{tag}.example.org").parse().unwrap();
        let question = Question { qname, qtype: Rtype::A, qclass: Class::IN };
        let patience = Some(Duration::from_millis(1800));
        let timeout = Duration::from_millis(3500);
        let options = Options { dnssec_ok: false, checking_disabled: false, patience, timeout };
        let rng = &mut StdRng::seed_from_u64(u64::from(tag));
        let exchange = Exchange::new(Arc::clone(&self.group), &question, options, self.now, rng);
        self.driver.start(tag, exchange, self.now, &self.tokens);
        self.driver.flush();
    }

    /// Takes a query as the upstream.
    fn take(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = [0; 1500];
        let (length, client) = self.server.recv_from(&mut buffer).unwrap();
        (buffer[..length].to_vec(), client)
    }

    /// Replies as the upstream.
    fn reply(&mut self, (query, client): &(Vec<u8>, SocketAddr), reply: impl FnOnce(&[u8]) -> Reply) {
        self.server.send_to(&reply(query).wire(), client).unwrap();
    }

    fn poll(&mut self) {
        let tokens: Vec<u64> = self.tokens.0.borrow().values().copied().collect();
        tokens.into_iter().for_each(|token| self.driver.readable(token, self.now, &self.tokens));
        self.driver.flush();
    }

    /// Polls until something is reported.
    fn await_report(&mut self) -> Report<u32> {
        let begun = std::time::Instant::now();
        loop {
            self.poll();
            match self.driver.next_report() {
                Some(report) => return report,
                None if begun.elapsed() > Duration::from_secs(10) => panic!("nothing is reported"),
                None => std::thread::yield_now(),
            }
        }
    }

    /// The next report, in short.
    fn next(&mut self) -> (u32, String) {
        short(self.await_report())
    }

    fn pass(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        while let Some(at) = self.driver.wake_at().filter(|&at| at <= end) {
            self.now = at;
            self.driver.expire(at, &self.tokens);
            self.driver.flush();
        }
        self.now = end;
    }

    /// The reports so far, in short.
    fn reports(&mut self) -> Vec<(u32, String)> {
        std::iter::from_fn(|| self.driver.next_report()).map(short).collect()
    }
}

fn short(Report { tag, news }: Report<u32>) -> (u32, String) {
    let news = match news {
        News::OutOfPatience => "out of patience".into(),
        News::NeedsStream(_) => "needs stream".into(),
        News::Done(Outcome { response: Ok(response), .. }) => response.rcode().to_string(),
        News::Done(Outcome { response: Err(failure), .. }) => format!("failed {}", failure.response.rcode()),
    };
    (tag, news)
}

fn report(tag: u32, news: &str) -> (u32, String) {
    (tag, news.to_owned())
}

#[test]
fn each_reply_finds_its_exchange() {
    let mut bench = Bench::new();
    (0..50).for_each(|tag| bench.start(tag));
    let mut queries: Vec<_> = (0..50).map(|_| bench.take()).collect();
    queries.rotate_left(7);
    for (query, client) in queries {
        // The first label, `host-` and the tag, follows its length.
        let label = &query[13..13 + usize::from(query[12])];
        let tag = std::str::from_utf8(&label[5..]).unwrap().parse().unwrap();
        bench.reply(&(query, client), |query| Reply::to(query).rcode(Rcode::NXDOMAIN));
        assert_eq!(bench.next(), report(tag, "NXDOMAIN"));
    }
    assert_eq!(bench.driver.in_flight(), 0);
    assert!(bench.driver.open_sockets() <= 16, "loopback needs no more");
}

#[test]
fn time_brings_resends_the_end_of_patience_and_the_deadline() {
    let mut bench = Bench::new();
    bench.start(1);
    bench.pass(400);
    let (first, second) = (bench.take(), bench.take());
    assert_eq!(first, second, "the same message from the same socket");
    assert_eq!(bench.reports(), []);
    bench.pass(1400);
    assert_eq!(bench.reports(), [report(1, "out of patience")]);
    bench.pass(1700);
    assert_eq!(bench.reports(), [report(1, "failed SERVFAIL")]);
    assert_eq!(bench.driver.wake_at(), None);
    assert_eq!([bench.take(), bench.take()], [first.clone(), first.clone()], "at 1200 and 2800 ms");
    // Its late reply does no harm.
    bench.reply(&first, Reply::answering);
    bench.start(2);
    let query = bench.take();
    bench.reply(&query, Reply::answering);
    assert_eq!(bench.next(), report(2, "NOERROR"));
}

#[test]
fn a_reply_from_elsewhere_is_not_heard() {
    let mut bench = Bench::new();
    bench.start(1);
    let (query, client) = bench.take();
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    stranger.send_to(&Reply::answering(&query).wire(), client).unwrap();
    bench.reply(&(query, client), |query| Reply::to(query).rcode(Rcode::NXDOMAIN));
    assert_eq!(bench.next(), report(1, "NXDOMAIN"));
}

#[test]
fn a_closed_port_is_an_error_at_once() {
    let mut bench = Bench::new();
    let address = bench.server.local_addr().unwrap();
    bench.server = UdpSocket::bind("127.0.0.1:0").unwrap();
    for tag in 0..20 {
        bench.start(tag);
    }
    for _ in 0..20 {
        assert_eq!(bench.next().1, "failed SERVFAIL");
    }
    assert!(!bench.group.upstreams()[0].is_up());
    // The port opens: the same sockets serve.
    bench.server = UdpSocket::bind(address).unwrap();
    bench.start(99);
    let query = bench.take();
    bench.reply(&query, Reply::answering);
    assert_eq!(bench.next(), report(99, "NOERROR"));
    assert!(bench.group.upstreams()[0].is_up());
}

#[test]
fn what_needs_a_stream_is_handed_back_and_can_be_continued() {
    let mut bench = Bench::new();
    bench.start(1);
    let query = bench.take();
    bench.reply(&query, |query| Reply::to(query).flag(flag::TC));
    let Report { tag: 1, news: News::NeedsStream(mut exchange) } = bench.await_report() else {
        panic!("no stream is asked for");
    };
    assert!(matches!(exchange.next_action(), Some(Action::SendStream { attempt: 0, .. })));
    assert_eq!(bench.driver.in_flight(), 0);

    bench.group = group("upstreams = ['tls://127.0.0.1']");
    bench.start(2);
    assert_eq!(bench.reports(), [report(2, "needs stream")]);
}

#[test]
fn what_there_is_no_room_for_fails_at_once() {
    let mut bench = Bench::new();
    (0..101).for_each(|tag| bench.start(tag));
    assert_eq!(bench.reports(), [report(100, "failed SERVFAIL")]);
    assert_eq!(bench.driver.in_flight(), 100);
}
