//! The heart: a client's query, and upstreams that say whatever they like.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};
use watershed::{
    cache::{self, Cache, Epoch},
    clock::Moment,
    forward::{self, Action, Event, Exchange, Group, Outcome},
    metrics::Metrics,
    resolve::{AtOnce, Begun, Client, Job, Next, Resolver, Route, Rules, Settled, Tables, Waiter, Way},
    wire::{Asker, Class, Name, Query, Rtype, UpstreamEdns, UpstreamQuery, write_reply},
    zone::{Overlay, Overlays, Zone},
};

use super::{
    messages::check_reply,
    octets::{DATAGRAM, Octets, name},
};

/// Whatever upstreams say, the client has one reply that answers its question in its letters; no name is asked of upstreams
/// that have no say over it; and what is cached is found again.
pub(crate) fn resolver(octets: &[u8]) {
    let mut octets = Octets(octets);
    let mut bench = Bench::new();
    let query = query(&mut octets);
    let Some((exchange, job)) = bench.ask(&query) else { return };
    let settled = bench.drive(exchange, job, &mut octets);
    let replies: usize = settled.iter().map(|settled| settled.waiters.len()).sum();
    assert_eq!(replies, 1, "one client asked");
    for Settled { response, ttls, waiters } in &settled {
        for waiter in waiters {
            let mut out = Vec::new();
            write_reply(response.view(), &waiter.asker, &waiter.question, *ttls, &mut bench.rng, &mut out);
            check_reply(&out, &waiter.asker, Query::parse(&query).expect("it was resolved").question_bytes());
        }
    }
    assert_eq!(bench.resolver.in_flight(), (0, 0), "nobody waits any more");
    // Now and when all TTLs are over.
    for later in [0, 1, 100_000] {
        bench.now = bench.now + Duration::from_secs(later);
        if let Some((exchange, job)) = bench.ask(&query) {
            bench.drive(exchange, job, &mut Octets(&[]));
        }
    }
}

struct Bench {
    resolver: Resolver,
    now: Moment,
    rng: StdRng,
}

impl Bench {
    fn new() -> Self {
        let resolver = Resolver::new(Cache::new(1 << 20), Tables::new(rules(), Epoch(1)), 100);
        Self { resolver, now: Moment::from_millis(2_000_000_000), rng: StdRng::seed_from_u64(1) }
    }

    /// What is to be asked of upstreams; nothing if there is a reply at once, or none at all.
    fn ask(&mut self, query: &[u8]) -> Option<(Exchange, Box<Job>)> {
        let client = Client { is_loopback: true, size: DATAGRAM, sees_cache: true };
        let (now, rng, mut out) = (self.now, &mut self.rng, Vec::new());
        let query = Query::parse(query).ok()?;
        let asker = query.asker(DATAGRAM);
        let letters = query.question_bytes();
        let miss = match self.resolver.at_once(query, asker, client, now, rng, &mut out) {
            AtOnce::Reply(..) => {
                check_reply(&out, &asker, letters);
                return None;
            }
            AtOnce::Refusal(_) => return None,
            AtOnce::Miss(miss) => miss,
        };
        let waiter = |asker: Asker, question: &[u8]| Waiter {
            asker,
            question: question.into(),
            way: Way::Datagram { listener: 0, peer: "127.0.0.1:9".parse().expect("an address"), local: None },
        };
        match self.resolver.begin(&miss, waiter, now, rng, &mut out) {
            Begun::Reply(..) => {
                check_reply(&out, &asker, letters);
                None
            }
            Begun::Drop => None,
            Begun::Joined => panic!("nobody else asks"),
            Begun::Exchange(exchange, job) => Some((exchange, job)),
            Begun::Wait(..) => panic!("there is no catalog to wait for"),
        }
    }

    /// Goes on until the client has its reply.
    fn drive(&mut self, mut exchange: Exchange, mut job: Box<Job>, octets: &mut Octets<'_>) -> Vec<Settled> {
        let mut settled = Vec::new();
        for _ in 0..MOST_STEPS {
            is_asked_where_it_belongs(&exchange);
            let outcome = self.end(&mut exchange, octets);
            match self.resolver.finish(job, outcome, self.now, &mut self.rng) {
                Next::Settled(more) => {
                    settled.extend(more);
                    return settled;
                }
                Next::Exchange(next, same) => (exchange, job) = (next, same),
                Next::Wait(..) => panic!("there is no catalog to wait for"),
            }
        }
        panic!("a chain without end");
    }

    fn end(&mut self, exchange: &mut Exchange, octets: &mut Octets<'_>) -> Outcome {
        for _ in 0..MOST_ACTIONS {
            match exchange.next_action() {
                Some(Action::Finish(outcome)) => return outcome,
                Some(Action::SendUdp { attempt, .. } | Action::SendStream { attempt, .. }) => {
                    let mut asked = Vec::new();
                    exchange.write_query(attempt, &mut asked);
                    Query::parse(&asked).expect("we write queries that we read");
                    if let Some(wire) = message(&asked, octets) {
                        exchange.handle(Event::Reply { attempt, wire: &wire }, self.now, &mut self.rng);
                    }
                }
                Some(Action::CloseUdp { .. } | Action::OutOfPatience) => {}
                None => {
                    self.now = self.now.max(exchange.wake_at());
                    exchange.handle(Event::Time, self.now, &mut self.rng);
                }
            }
        }
        panic!("an exchange without end");
    }
}

/// What the next octets say to a query: nothing, themselves, or a response whose id and question are as they have to be.
fn message(query: &[u8], octets: &mut Octets<'_>) -> Option<Vec<u8>> {
    let (form, length) = (octets.byte(), octets.word());
    let said = octets.take(length.into());
    match form % 4 {
        0 => None,
        1 => Some(said.to_vec()),
        _ => {
            let question = Query::parse(query).expect("one of ours").question_bytes();
            let (head, records) = said.split_at_checked(8)?;
            let flags = [head[0] | 0x80, head[1]];
            Some([&query[..2], &flags, &[0, 1], &head[2..8], question, records].concat())
        }
    }
}

/// A client's query: raw octets, or a well-formed one for a name below some suffix.
fn query(octets: &mut Octets<'_>) -> Vec<u8> {
    let form = octets.byte();
    if form == 0 {
        let length = octets.word();
        return octets.take(length.into()).to_vec();
    }
    let suffix = SUFFIXES[usize::from(form) % SUFFIXES.len()];
    let qname = octets.name(&name(suffix));
    let qtype = [Rtype::A, Rtype::AAAA, Rtype::CNAME, Rtype::TXT, Rtype::ANY, Rtype(octets.word())];
    let qtype = qtype[usize::from(octets.byte()) % qtype.len()];
    let flags = octets.byte();
    let edns =
        (flags & 1 == 1).then(|| UpstreamEdns { udp_size: octets.word(), dnssec_ok: flags & 2 == 2, cookie: &[] });
    let mut wire = Vec::new();
    let checking_disabled = flags & 4 == 4;
    UpstreamQuery { id: 7, qname: &qname, qtype, qclass: Class::IN, checking_disabled, edns }.write(&mut wire);
    wire
}

/// Names below `corp.test` are asked of the upstream that they belong to, and no others are.
fn is_asked_where_it_belongs(exchange: &Exchange) {
    let is_corp = exchange.question().qname.is_at_or_below(&name("corp.test"));
    let asked = exchange.group().upstreams()[0].url().to_string();
    assert_eq!(asked.contains("192.0.2.54"), is_corp, "{:?} is asked of {asked}", exchange.question());
    for elsewhere in ["site.example", "refused.test", "localhost"] {
        assert!(!exchange.question().qname.is_at_or_below(&name(elsewhere)), "{:?}", exchange.question());
    }
}

fn rules() -> Rules {
    let site = "$TTL 300\n@ SOA ns host 1 1 1 1 60\n@ NS ns\nns A 192.0.2.1\nout CNAME host.corp.test.\n";
    let ads = "a.ads.example. CNAME .\nb.ads.example. CNAME *.\nc.ads.example. CNAME x.corp.test.\n";
    let zone = Zone::parse(Path::new("site.example.zone"), site, &name("site.example")).expect("a zone");
    let overlay = Overlay::parse(Path::new("ads.overlay"), ads, &Name::root()).expect("an overlay");
    Rules {
        overlays: Overlays::new(vec![overlay.into()], Vec::new()),
        failed_zones: Vec::new(),
        zones: vec![zone.into()],
        forwards: vec![forward_to("192.0.2.53", "."), forward_to("192.0.2.54", "corp.test")],
        refused: vec![name("refused.test")],
        catalog: None,
        prefetch: true,
    }
}

fn forward_to(upstream: &str, suffix: &str) -> (Vec<Name>, Route) {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    let text = format!("suffixes = ['{suffix}']\nupstreams = ['{upstream}']");
    let rule = toml::from_str::<forward::Config>(&text).expect("a rule").rule().expect("without a fault");
    let groups = Group::build_all(std::slice::from_ref(&rule), &[], METRICS.get_or_init(Metrics::new));
    let group: Arc<Group> = groups.expect("a group").remove(0);
    let lifetimes = cache::Config::default().policy(Duration::from_secs(3600));
    (vec![name(suffix)], Route::new(&rule, group, lifetimes))
}

const SUFFIXES: &[&str] =
    &[".", "example", "corp.test", "site.example", "ads.example", "refused.test", "out.site.example"];
/// A chain is followed at most sixteen times.
const MOST_STEPS: usize = 18;
/// Far more than any exchange takes until its deadline.
const MOST_ACTIONS: usize = 1000;
