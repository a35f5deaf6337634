//! The heart with everything but sockets: queries in, outcomes of exchanges made up, replies read.

use std::{path::Path, sync::Arc, time::Duration};

use super::*;
use crate::{
    cache::{Epoch, Key, RuleId, Variant},
    clock::Moment,
    forward::{self, Exchange, Failure, Group, Outcome},
    metrics::Metrics,
    wire::{
        Answer, Class, ExtendedError, Name, Query, Question, Rcode, Received, Record, Response, Rtype, UpstreamQuery,
        flag,
    },
    zone::{self, Overlays, Zone},
};

const NOW: Moment = Moment::from_millis(100_000_000);
const LOCAL: Client = Client { is_loopback: true, size: ReplySize::Datagram { ceiling_bytes: 1232 }, sees_cache: true };
const REMOTE: Client = Client { is_loopback: false, ..LOCAL };

/// A resolver, the time, and who asks.
struct Bench {
    resolver: Resolver,
    now: Moment,
    client: Client,
}

/// What became of a query.
#[expect(clippy::large_enum_variant, reason = "one at a time, in tests")]
enum Asked {
    Reply(Received),
    Joined,
    Exchange(Exchange, Box<Job>),
    Wait(Pending, Box<Job>),
}

impl Asked {
    fn reply(self) -> Response {
        match self {
            Self::Reply(received) => received.response,
            _ => panic!("no reply at once"),
        }
    }

    fn job(self) -> Box<Job> {
        match self {
            Self::Exchange(_, job) => job,
            _ => panic!("no exchange"),
        }
    }
}

impl Bench {
    fn new(rules: Rules) -> Self {
        let resolver = Resolver::new(Cache::new(1 << 20), Tables::new(rules, Epoch(1)), 100);
        Self { resolver, now: NOW, client: LOCAL }
    }

    fn pass(&mut self, millis: u64) -> &mut Self {
        self.now = self.now + Duration::from_millis(millis);
        self
    }

    fn ask(&self, qname: &str, qtype: Rtype) -> Asked {
        self.ask_with(qname, qtype, |_| {})
    }

    fn ask_with(&self, qname: &str, qtype: Rtype, change: impl FnOnce(&mut Vec<u8>)) -> Asked {
        let mut wire = Vec::new();
        let qname = name(qname);
        let edns = Some(crate::wire::UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: &[] });
        let query = UpstreamQuery { id: 7, qname: &qname, qtype, qclass: Class::IN, checking_disabled: false, edns };
        query.write(&mut wire);
        change(&mut wire);
        let mut out = Vec::new();
        let waiter = |asker, question: &[u8]| Waiter {
            asker,
            question: question.into(),
            way: Way::Datagram { listener: 0, peer: "127.0.0.1:9".parse().unwrap(), local: None },
        };
        let replied = |out: &[u8]| Asked::Reply(Response::read(out).unwrap());
        let query = Query::parse(&wire).unwrap();
        let asker = query.asker(self.client.size);
        match self.resolver.at_once(query, asker, self.client, self.now, &mut rand::rng(), &mut out) {
            AtOnce::Reply(..) | AtOnce::Refusal(_) => replied(&out),
            AtOnce::Miss(miss) => match self.resolver.begin(&miss, waiter, self.now, &mut rand::rng(), &mut out) {
                Begun::Reply(..) => replied(&out),
                Begun::Joined => Asked::Joined,
                Begun::Exchange(exchange, job) => Asked::Exchange(exchange, job),
                Begun::Wait(pending, job) => Asked::Wait(pending, job),
                Begun::Drop => panic!("dropped"),
            },
        }
    }

    fn finish(&self, job: Box<Job>, response: Result<Response, Failure>) -> Next {
        self.resolver.finish(job, Outcome { response, upstream: None }, self.now, &mut rand::rng())
    }

    /// Asks, has the upstream say this, and tells what the client got.
    fn forwarded(&self, qname: &str, qtype: Rtype, records: &[Record]) -> Response {
        let job = self.ask(qname, qtype).job();
        settled(self.finish(job, Ok(says(qname, qtype, records)))).remove(0).0
    }

    fn swap(&self, rules: Rules, epoch: u32) {
        self.resolver.swap_tables(Tables::new(rules, Epoch(epoch)));
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn a(owner: &str, ttl: u32, last: u8) -> Record {
    Record::new(name(owner), Rtype::A, ttl, [192, 0, 2, last])
}

fn cname(owner: &str, target: &str) -> Record {
    Record::new(name(owner), Rtype::CNAME, 300, name(target).wire())
}

fn soa(owner: &str) -> Record {
    let mname = name(owner);
    crate::wire::Soa { rname: mname.clone(), mname, serial: 1, refresh: 1, retry: 1, expire: 1, minimum: 60 }
        .record(name(owner))
}

fn question(qname: &str, qtype: Rtype) -> Question {
    Question { qname: name(qname), qtype, qclass: Class::IN }
}

/// A response of an upstream; without records it is NODATA.
fn says(qname: &str, qtype: Rtype, records: &[Record]) -> Response {
    let authority = if records.is_empty() { vec![soa(".")] } else { Vec::new() };
    let answer = Answer { answer: records.to_vec(), authority, authoritative: false, ..Answer::default() };
    answer.encode(&question(qname, qtype))
}

fn fails(qname: &str) -> Failure {
    let error = ExtendedError { code: 22, text: "made up".into() };
    Failure { response: Response::error(&question(qname, Rtype::A), Rcode::SERVFAIL, &[error]), was_sent: true }
}

/// What is said, and to how many.
fn settled(next: Next) -> Vec<(Response, usize)> {
    match next {
        Next::Settled(settled) => {
            settled.into_iter().map(|s| (Response::clone(&s.response), s.waiters.len())).collect()
        }
        Next::Exchange(..) | Next::Wait(..) => panic!("not settled"),
    }
}

fn answers(response: &Response) -> Vec<Record> {
    response.to_answer().unwrap().answer
}

fn rule(suffixes: &str, upstream: &str, serve_stale: u64) -> (Vec<Name>, Route) {
    let config: forward::Config =
        toml::from_str(&format!("suffixes = [{suffixes}]\nupstreams = ['{upstream}']")).unwrap();
    let rule = config.rule().unwrap();
    let group = Group::build_all(std::slice::from_ref(&rule), &[], &Metrics::new()).unwrap().remove(0);
    let lifetimes = crate::cache::Config::default().policy(Duration::from_secs(serve_stale));
    let suffixes = rule.suffixes.iter().map(|suffix| suffix.get_ref().clone()).collect();
    (suffixes, Route::new(&rule, group, lifetimes))
}

/// Snapshots of the cache hold it, and another build of the daemon reads them.
#[test]
fn a_route_has_the_same_identity_in_every_build() {
    let id = |suffixes, upstream, serve_stale| rule(suffixes, upstream, serve_stale).1.id;
    assert_eq!(id("'.'", "192.0.2.1", 0), RuleId(9_884_281_984_601_333_180));
    assert_eq!(id("'.'", "192.0.2.1", 0), id("'corp.test'", "192.0.2.1", 0));
    assert_ne!(id("'.'", "192.0.2.1", 0), id("'.'", "192.0.2.2", 0));
    assert_ne!(id("'.'", "192.0.2.1", 0), id("'.'", "192.0.2.1", 1));
}

/// `.` goes to one server, `corp.test` to another; `site.example` is a zone here.
fn rules() -> Rules {
    Rules {
        overlays: Overlays::default(),
        failed_zones: Vec::new(),
        zones: vec![site("1")],
        forwards: vec![rule("'.'", "192.0.2.53", 3600), rule("'corp.test'", "192.0.2.54", 0)],
        refused: vec![name("refused.test")],
        catalog: None,
        prefetch: true,
    }
}

fn site(last: &str) -> Arc<Zone> {
    let text = format!(
        "$TTL 300\n@ SOA ns host 1 1 1 1 60\n@ NS ns\nns A 192.0.2.1\nwww A 192.0.2.{last}\nout CNAME host.corp.test.\n"
    );
    Arc::new(Zone::parse(Path::new("site.example.zone"), &text, &name("site.example")).unwrap())
}

fn hosts(line: &str) -> Overlays {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), line).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = zone::Config {
        directory: Some(folder.path().to_owned()),
        hosts: vec![file.path().to_owned()],
        ..zone::Config::default()
    };
    zone::Files::load(&config, &[], None, &crate::files::Copies::default()).files.overlays()
}

#[test]
fn a_kept_nodata_waits_for_its_sister_that_is_open() {
    let bench = Bench::new(rules());
    let empty = bench.forwarded("host.corp.test", Rtype::AAAA, &[]);
    assert_eq!(empty.rcode(), Rcode::NOERROR);
    assert!(answers(&bench.ask("host.corp.test", Rtype::AAAA).reply()).is_empty(), "it is kept");
    // As when A has a TTL of 0, and is asked for each time.
    let first = bench.ask("host.corp.test", Rtype::A).job();
    let second = bench.ask("host.corp.test", Rtype::AAAA).job();
    let held = settled(bench.finish(second, Ok(says("host.corp.test", Rtype::AAAA, &[]))));
    assert!(held.is_empty(), "it is held back");
    let both = settled(bench.finish(first, Err(fails("host.corp.test"))));
    let rcodes: Vec<_> = both.iter().map(|(response, waiters)| (response.rcode(), *waiters)).collect();
    assert_eq!(rcodes, [(Rcode::SERVFAIL, 1), (Rcode::SERVFAIL, 1)]);
}

#[test]
fn a_nodata_that_comes_long_after_its_sister_failed_is_not_told_to_those_who_asked_both() {
    let mut bench = Bench::new(rules());
    let first = bench.ask("host.corp.test", Rtype::A).job();
    let second = bench.ask("host.corp.test", Rtype::AAAA).job();
    settled(bench.finish(first, Err(fails("host.corp.test"))));
    // The failure itself is forgotten by then.
    bench.pass(2500);
    let said = settled(bench.finish(second, Ok(says("host.corp.test", Rtype::AAAA, &[]))));
    assert_eq!((said[0].0.rcode(), said[0].1), (Rcode::SERVFAIL, 1));
    assert_eq!(bench.ask("host.corp.test", Rtype::AAAA).reply().rcode(), Rcode::NOERROR, "it is kept for others");
}

#[test]
fn who_wants_nobody_asked_is_told_a_kept_nodata_though_its_sister_is_open() {
    let bench = Bench::new(rules());
    bench.forwarded("host.corp.test", Rtype::AAAA, &[]);
    bench.ask("host.corp.test", Rtype::A).job();
    let known = bench.ask_with("host.corp.test", Rtype::AAAA, |wire| wire[2] &= !1).reply();
    assert_eq!(known.rcode(), Rcode::NOERROR);
}

#[test]
fn a_response_is_kept_and_its_ttl_counts_down() {
    let mut bench = Bench::new(rules());
    assert_eq!(answers(&bench.forwarded("www.example", Rtype::A, &[a("www.example", 60, 1)]))[0].ttl, 60);
    let hit = bench.pass(10_500).ask("WWW.Example", Rtype::A).reply();
    assert_eq!(answers(&hit), [a("www.example", 50, 1)]);
    assert_eq!(hit.question_bytes()[..13], *name("WWW.Example").wire(), "in the letters asked");
    bench.pass(60_000).ask("www.example", Rtype::A).job();
}

#[test]
fn equal_queries_wait_for_one_response_even_if_it_is_not_kept() {
    let bench = Bench::new(rules());
    let job = bench.ask("www.example", Rtype::A).job();
    for _ in 0..3 {
        assert!(matches!(bench.ask("www.EXAMPLE", Rtype::A), Asked::Joined));
    }
    let said = settled(bench.finish(job, Ok(says("www.example", Rtype::A, &[a("www.example", 0, 1)]))));
    assert_eq!(said[0].1, 4);
    bench.ask("www.example", Rtype::A).job();
}

#[test]
fn a_failure_is_kept_for_a_second_and_then_asked_again() {
    let mut bench = Bench::new(rules());
    let job = bench.ask("www.example", Rtype::A).job();
    assert_eq!(settled(bench.finish(job, Err(fails("www.example"))))[0].0.rcode(), Rcode::SERVFAIL);
    assert_eq!(bench.pass(500).ask("www.example", Rtype::A).reply().rcode(), Rcode::SERVFAIL);
    bench.pass(1500).ask("www.example", Rtype::A).job();
}

#[test]
fn local_data_answers_at_once_and_does_not_age() {
    let mut bench = Bench::new(rules());
    for _ in 0..2 {
        let response = bench.pass(100_000).ask("www.site.example", Rtype::A).reply();
        assert_eq!(answers(&response), [a("www.site.example", 300, 1)]);
        assert!(response.has_flag(flag::AA));
    }
    let denial = bench.ask("nope.site.example", Rtype::A).reply();
    assert_eq!((denial.rcode(), denial.soa()), (Rcode::NXDOMAIN, Some((60, 60))));
    assert_eq!(bench.ask("www.refused.test", Rtype::A).reply().rcode(), Rcode::REFUSED);
}

#[test]
fn a_changed_zone_voids_its_answers_and_no_others() {
    let bench = Bench::new(rules());
    bench.ask("www.site.example", Rtype::A).reply();
    bench.forwarded("www.example", Rtype::A, &[a("www.example", 60, 1)]);
    bench.swap(Rules { zones: vec![site("2")], ..rules() }, 2);
    assert_eq!(answers(&bench.ask("www.site.example", Rtype::A).reply()), [a("www.site.example", 300, 2)]);
    bench.ask("www.example", Rtype::A).reply(); // its rule is as it was
    assert_eq!(bench.resolver.retire(NOW), 0);
}

#[test]
fn what_another_rule_claims_now_is_void() {
    let bench = Bench::new(rules());
    let names = ["a.example", "b.example", "c.example", "d.example"];
    for qname in names {
        bench.forwarded(qname, Rtype::A, &[a(qname, 60, 1)]);
    }
    bench.swap(
        Rules {
            overlays: hosts("192.0.2.9 a.example"),
            refused: vec![name("b.example")],
            forwards: [rules().forwards, vec![rule("'c.example'", "192.0.2.55", 0)]].into_iter().flatten().collect(),
            ..rules()
        },
        2,
    );
    assert_eq!(answers(&bench.ask("a.example", Rtype::A).reply())[0].rdata[..], [192, 0, 2, 9]);
    assert_eq!(bench.ask("b.example", Rtype::A).reply().rcode(), Rcode::REFUSED);
    bench.ask("c.example", Rtype::A).job();
    bench.ask("d.example", Rtype::A).reply();
}

#[test]
fn retiring_drops_what_nobody_would_answer_so() {
    let bench = Bench::new(rules());
    for qname in ["a.example", "b.corp.test"] {
        bench.forwarded(qname, Rtype::A, &[a(qname, 60, 1)]);
    }
    bench.swap(Rules { forwards: vec![rule("'.'", "192.0.2.53", 3600)], ..rules() }, 2);
    assert_eq!(bench.resolver.retire(NOW), 1);
    assert_eq!(bench.resolver.cache().usage().entries, 1);
}

#[test]
fn an_answer_of_old_tables_is_not_taken_for_one_of_new_tables() {
    let bench = Bench::new(rules());
    let job = bench.ask("www.example", Rtype::A).job();
    bench.swap(Rules { overlays: hosts("192.0.2.9 www.example"), ..rules() }, 2);
    settled(bench.finish(job, Ok(says("www.example", Rtype::A, &[a("www.example", 60, 1)]))));
    assert_eq!(answers(&bench.ask("www.example", Rtype::A).reply())[0].rdata[..], [192, 0, 2, 9]);
}

#[test]
fn a_chain_is_followed_into_the_rule_of_its_target() {
    let bench = Bench::new(rules());
    let job = bench.ask("www.example", Rtype::A).job();
    let poisoned = [cname("www.example", "host.corp.test"), a("host.corp.test", 60, 66)];
    let Next::Exchange(exchange, job) = bench.finish(job, Ok(says("www.example", Rtype::A, &poisoned))) else {
        panic!("believed an upstream that has no say over the target");
    };
    assert_eq!(exchange.group().name(), "corp.test.");
    assert_eq!(exchange.question().qname, name("host.corp.test"));
    let told = [a("host.corp.test", 30, 1)];
    let said = settled(bench.finish(job, Ok(says("host.corp.test", Rtype::A, &told)))).remove(0).0;
    assert_eq!(answers(&said), [cname("www.example", "host.corp.test"), told[0].clone()]);
    assert!(!said.has_flag(flag::AA) && !said.has_flag(flag::AD));
    // Its target answers on its own account, and a chain is void with any change of rules.
    bench.ask("www.example", Rtype::A).reply();
    bench.ask("host.corp.test", Rtype::A).job();
    bench.swap(rules(), 2);
    bench.ask("www.example", Rtype::A).job();
}

#[test]
fn a_local_alias_is_completed_by_the_upstreams_of_its_target() {
    let mut bench = Bench::new(rules());
    let Asked::Exchange(exchange, job) = bench.ask("out.site.example", Rtype::A) else { panic!("no exchange") };
    assert_eq!(exchange.question().qname, name("host.corp.test"));
    let said = settled(bench.finish(job, Ok(says("host.corp.test", Rtype::A, &[a("host.corp.test", 20, 1)]))));
    assert_eq!(answers(&said[0].0).len(), 2);
    bench.pass(19_000).ask("out.site.example", Rtype::A).reply();
    bench.pass(2_000).ask("out.site.example", Rtype::A).job(); // it lives as long as its forwarded part
}

#[test]
fn without_rd_only_what_is_known_is_told() {
    let bench = Bench::new(rules());
    let clear_rd = |wire: &mut Vec<u8>| wire[2] &= !1;
    assert_eq!(bench.ask_with("www.example", Rtype::A, clear_rd).reply().rcode(), Rcode::REFUSED);
    assert_eq!(answers(&bench.ask_with("www.site.example", Rtype::A, clear_rd).reply()).len(), 1);
    let alias = bench.ask_with("out.site.example", Rtype::A, clear_rd).reply();
    assert_eq!(answers(&alias), [cname("out.site.example", "host.corp.test")]);
    bench.forwarded("www.example", Rtype::A, &[a("www.example", 60, 1)]);
    assert_eq!(answers(&bench.ask_with("www.example", Rtype::A, clear_rd).reply()).len(), 1);
}

#[test]
fn a_stale_answer_is_better_than_a_failure_or_a_long_wait() {
    let mut bench = Bench::new(rules());
    bench.forwarded("www.example", Rtype::A, &[a("www.example", 60, 1)]);
    let is_stale = |response: &Response| {
        assert_eq!(response.extended_errors()[4..6], [0, 3]);
        assert_eq!(answers(response)[0].rdata[..], [192, 0, 2, 1]);
    };
    let job = bench.pass(61_000).ask("www.example", Rtype::A).job();
    let impatient = bench.resolver.lose_patience(&job, bench.now);
    assert_eq!((impatient[0].waiters.len(), impatient[0].ttls), (1, crate::wire::Ttls::Fixed(30)));
    is_stale(&impatient[0].response);
    // Others get it at once meanwhile, and so they do when the upstreams have failed.
    is_stale(&bench.ask("www.example", Rtype::A).reply());
    assert_eq!(settled(bench.finish(job, Err(fails("www.example"))))[0].1, 0);
    is_stale(&bench.ask("www.example", Rtype::A).reply());
    // Then the upstreams are tried again, and their answer takes its place.
    let job = bench.pass(10_000).ask("www.example", Rtype::A).job();
    let said = settled(bench.finish(job, Err(fails("www.example"))));
    is_stale(&said[0].0);
    bench.pass(10_000).forwarded("www.example", Rtype::A, &[a("www.example", 60, 2)]);
    assert_eq!(answers(&bench.ask("www.example", Rtype::A).reply())[0].rdata[3], 2);
}

#[test]
fn a_and_aaaa_fail_together() {
    let mut bench = Bench::new(rules());
    let (four, six) = (bench.ask("www.example", Rtype::A).job(), bench.ask("www.example", Rtype::AAAA).job());
    assert_eq!(settled(bench.finish(six, Ok(says("www.example", Rtype::AAAA, &[])))), [], "held back");
    let said = settled(bench.finish(four, Err(fails("www.example"))));
    assert_eq!(said.iter().map(|(r, count)| (r.rcode(), *count)).collect::<Vec<_>>(), [(Rcode::SERVFAIL, 1); 2]);
    // While the failure is in force, a late NODATA is none either.
    let six = bench.ask("www.example", Rtype::AAAA).job();
    assert_eq!(settled(bench.finish(six, Ok(says("www.example", Rtype::AAAA, &[]))))[0].0.rcode(), Rcode::SERVFAIL);
    assert_eq!(bench.ask("www.example", Rtype::AAAA).reply().rcode(), Rcode::SERVFAIL);
    // And both are there when the name is back.
    bench.pass(5_000).forwarded("www.example", Rtype::A, &[a("www.example", 60, 1)]);
    assert_eq!(bench.ask("www.example", Rtype::AAAA).reply().rcode(), Rcode::NOERROR);
}

#[test]
fn loopback_addresses_of_hosts_files_stay_on_the_host() {
    let overlays = || hosts("127.0.1.1 myhost.example\n192.0.2.7 other.example");
    let mut bench = Bench::new(Rules { overlays: overlays(), ..rules() });
    for _ in 0..2 {
        bench.client = REMOTE;
        bench.forwarded("myhost.example", Rtype::A, &[a("myhost.example", 60, 7)]);
        bench.client = LOCAL;
        assert_eq!(answers(&bench.ask("myhost.example", Rtype::A).reply())[0].rdata[..], [127, 0, 1, 1]);
    }
    bench.client = REMOTE;
    assert_eq!(answers(&bench.ask("other.example", Rtype::A).reply())[0].rdata[..], [192, 0, 2, 7]);
}

#[test]
fn any_is_answered_by_one_rrset_or_by_none() {
    let bench = Bench::new(Rules {
        forwards: vec![rule("'.'", "192.0.2.53", 0), rule("'consul'", "127.0.0.1:8600", 0)],
        ..rules()
    });
    assert_eq!(answers(&bench.ask("site.example", Rtype::ANY).reply()).len(), 1);
    let minimal = answers(&bench.ask("www.example", Rtype::ANY).reply());
    assert_eq!((minimal.len(), minimal[0].rtype), (1, Rtype::HINFO));
    bench.ask("web.service.consul", Rtype::ANY).job();
}

#[test]
fn a_popular_answer_is_renewed_before_it_ends() {
    let mut bench = Bench::new(rules());
    bench.forwarded("www.example", Rtype::A, &[a("www.example", 100, 1)]);
    for _ in 0..5 {
        bench.ask("www.example", Rtype::A).reply();
    }
    bench.pass(95_000);
    let mut wire = Vec::new();
    let qname = name("www.example");
    UpstreamQuery { id: 7, qname: &qname, qtype: Rtype::A, qclass: Class::IN, checking_disabled: false, edns: None }
        .write(&mut wire);
    let query = Query::parse(&wire).unwrap();
    let asker = query.asker(LOCAL.size);
    let AtOnce::Reply(_, _, From::Expiring(key)) =
        bench.resolver.at_once(query, asker, LOCAL, bench.now, &mut rand::rng(), &mut Vec::new())
    else {
        panic!("not told to renew it")
    };
    let (_, job) = bench.resolver.refresh(&key, LOCAL, bench.now, &mut rand::rng()).unwrap();
    assert!(bench.resolver.refresh(&key, LOCAL, bench.now, &mut rand::rng()).is_none(), "one does so already");
    settled(bench.finish(job, Ok(says("www.example", Rtype::A, &[a("www.example", 100, 2)]))));
    assert_eq!(answers(&bench.ask("www.example", Rtype::A).reply()), [a("www.example", 100, 2)]);
}

#[test]
fn special_names_are_kept_from_public_upstreams_alone() {
    let public = Bench::new(Rules { forwards: vec![rule("'.'", "8.8.8.8", 0)], ..rules() });
    let private = Bench::new(Rules { forwards: vec![rule("'.'", "10.0.0.53", 0)], ..rules() });
    for qname in ["printer.local", "x.home.arpa", "9.2.0.10.in-addr.arpa", "x.test"] {
        assert_eq!(public.ask(qname, Rtype::A).reply().rcode(), Rcode::NXDOMAIN, "{qname}");
        private.ask(qname, Rtype::A).job();
    }
    for bench in [&public, &private] {
        assert_eq!(answers(&bench.ask("x.localhost", Rtype::A).reply())[0].rdata[..], [127, 0, 0, 1]);
        assert_eq!(bench.ask("x.onion", Rtype::A).reply().rcode(), Rcode::NXDOMAIN);
    }
}

#[test]
fn a_rule_keeps_its_identity_until_it_asks_others_or_keeps_answers_otherwise() {
    let id = |suffixes: &str, upstream: &str, stale| rule(suffixes, upstream, stale).1.id;
    let own = id("'.'", "192.0.2.53", 0);
    assert_eq!(own, id("'.', 'x.test'", "192.0.2.53", 0));
    assert_ne!(own, id("'.'", "192.0.2.54", 0));
    assert_ne!(own, id("'.'", "192.0.2.53", 60));
    assert_ne!(own, RuleId(site("1").generation()));
}

#[path = "catalog_tests.rs"]
mod catalog;

#[path = "change_tests.rs"]
mod changes;

#[path = "stale_tests.rs"]
mod stale;
