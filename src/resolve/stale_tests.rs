//! Stale answers under random timing: clients, exchanges and an upstream that comes and goes, with a clock of numbers.

use std::collections::{BTreeMap, HashMap};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::{
    forward::{Action, Event, PATIENCE},
    wire::{Ttls, UpstreamEdns, write_reply},
};

/// What the upstream does from a moment on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Answers,
    Silent,
    Refuses,
    Fails,
}

/// What the upstream has for the name.
#[derive(Clone, Copy)]
struct Data {
    /// The TTL of the address, the least and the most.
    ttls: [u32; 2],
    /// Whether there is an IPv6 address, too.
    has_ipv6: bool,
}

struct World {
    bench: Bench,
    rng: StdRng,
    data: Data,
    /// Since when the upstream does what, the latest last.
    moods: Vec<(Moment, Mood)>,
    running: BTreeMap<usize, (Exchange, Box<Job>)>,
    next_exchange: usize,
    /// When which attempt of which exchange hears what.
    incoming: Vec<(Moment, usize, usize, Option<Vec<u8>>)>,
    /// What is waited for, and since when.
    waiting: HashMap<u16, (Rtype, Moment)>,
    said: Vec<Said>,
}

/// What a client was told.
#[derive(Debug)]
struct Said {
    id: u16,
    qtype: Rtype,
    asked: Moment,
    told: Moment,
    rcode: Rcode,
    is_empty: bool,
}

impl Said {
    fn waited(&self) -> Duration {
        self.told.since(self.asked)
    }
}

impl World {
    fn new(seed: u64, data: Data, timeout: &str, moods: Vec<(Moment, Mood)>) -> Self {
        Self {
            bench: Bench::new(rules_with(timeout)),
            rng: StdRng::seed_from_u64(seed),
            data,
            moods,
            running: BTreeMap::new(),
            next_exchange: 0,
            incoming: Vec::new(),
            waiting: HashMap::new(),
            said: Vec::new(),
        }
    }

    fn mood(&self) -> Mood {
        self.moods.iter().rfind(|(since, _)| *since <= self.bench.now).map_or(Mood::Answers, |(_, mood)| *mood)
    }

    /// Lets time pass until then.
    fn pass_until(&mut self, end: Moment) {
        loop {
            let wakes = self.running.values().map(|(exchange, _)| exchange.wake_at());
            let due = wakes.chain(self.incoming.iter().map(|(at, ..)| *at)).min();
            let Some(now) = due.filter(|due| *due < end) else { break };
            self.bench.now = self.bench.now.max(now);
            let now = self.bench.now;
            for (_, key, attempt, wire) in self.incoming.extract_if(.., |(at, ..)| *at <= now).collect::<Vec<_>>() {
                let Some((exchange, _)) = self.running.get_mut(&key) else { continue };
                let event = match &wire {
                    Some(wire) => Event::Reply { attempt, wire },
                    None => Event::Failed { attempt, error: &"port closed" },
                };
                exchange.handle(event, now, &mut self.rng);
                self.act(key);
            }
            for key in self.running.keys().copied().collect::<Vec<_>>() {
                if let Some((exchange, _)) = self.running.get_mut(&key).filter(|(of, _)| of.wake_at() <= now) {
                    exchange.handle(Event::Time, now, &mut self.rng);
                    self.act(key);
                }
            }
        }
        self.bench.now = end;
    }

    fn drive(&mut self, exchange: Exchange, job: Box<Job>) {
        let key = self.next_exchange;
        self.next_exchange += 1;
        self.running.insert(key, (exchange, job));
        self.act(key);
    }

    fn act(&mut self, key: usize) {
        while let Some((exchange, job)) = self.running.get_mut(&key)
            && let Some(action) = exchange.next_action()
        {
            let now = self.bench.now;
            match action {
                Action::SendUdp { attempt, .. } | Action::SendStream { attempt, .. } => {
                    let mut query = Vec::new();
                    exchange.write_query(attempt, &mut query);
                    let heard = match self.mood() {
                        Mood::Silent => continue,
                        Mood::Refuses => None,
                        Mood::Answers => Some(self.reply_to(&query, false)),
                        Mood::Fails => Some(self.reply_to(&query, true)),
                    };
                    self.incoming.push((now + Duration::from_millis(5), key, attempt, heard));
                }
                Action::CloseUdp { .. } => {}
                Action::OutOfPatience => {
                    let settled = self.bench.resolver.lose_patience(job, now);
                    self.hear(settled);
                }
                Action::Finish(outcome) => {
                    let (_, job) = self.running.remove(&key).unwrap();
                    let Next::Settled(settled) = self.bench.resolver.finish(job, outcome, now, &mut self.rng) else {
                        panic!("there are no aliases")
                    };
                    self.hear(settled);
                }
            }
        }
    }

    fn reply_to(&mut self, wire: &[u8], fails: bool) -> Vec<u8> {
        let query = Query::parse(wire).unwrap();
        let qtype = query.qtype();
        let [least, most] = self.data.ttls;
        let ttl = self.rng.random_range(least..=most);
        let record = match qtype {
            Rtype::A => Some(a("www.example", ttl, 1)),
            Rtype::AAAA => self.data.has_ipv6.then(|| Record::new(name("www.example"), Rtype::AAAA, ttl, [7; 16])),
            _ => None,
        };
        let said = match (fails, record) {
            (true, _) => Response::error(&question("www.example", qtype), Rcode::SERVFAIL, &[]),
            (false, Some(record)) => says("www.example", qtype, &[record]),
            (false, None) => {
                let mut soa = soa("example");
                soa.ttl = self.rng.random_range(1..4);
                let answer = Answer { authority: vec![soa], ..Answer::default() };
                answer.encode(&question("www.example", qtype))
            }
        };
        let mut out = Vec::new();
        let asker = query.asker(LOCAL.size);
        write_reply(said.view(), &asker, query.question_bytes(), Ttls::Aged(0), &mut self.rng, &mut out);
        out
    }

    fn ask(&mut self, qtype: Rtype, client: Client) -> u16 {
        let id = (self.said.len() + self.waiting.len()) as u16;
        let now = self.bench.now;
        let mut wire = Vec::new();
        let qname = name("www.example");
        let edns = Some(UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: &[] });
        UpstreamQuery { id, qname: &qname, qtype, qclass: Class::IN, checking_disabled: false, edns }.write(&mut wire);
        let mut out = Vec::new();
        let waiter = |asker, question: &[u8]| Waiter {
            asker,
            question: question.into(),
            way: Way::Datagram { listener: 0, peer: "127.0.0.1:9".parse().unwrap(), local: None },
        };
        let query = Query::parse(&wire).unwrap();
        let asker = query.asker(client.size);
        self.waiting.insert(id, (qtype, now));
        let begun = match self.bench.resolver.at_once(query, asker, client, now, &mut self.rng, &mut out) {
            AtOnce::Reply(_, _, from) => {
                self.note(id, &Response::read(&out).unwrap().response);
                if let From::Expiring(key) = from
                    && let Some((exchange, job)) = self.bench.resolver.refresh(&key, client, now, &mut self.rng)
                {
                    self.drive(exchange, job);
                }
                return id;
            }
            AtOnce::Refusal(_) => panic!("refused"),
            AtOnce::Miss(miss) => self.bench.resolver.begin(&miss, waiter, now, &mut self.rng, &mut out),
        };
        match begun {
            Begun::Reply(..) => self.note(id, &Response::read(&out).unwrap().response),
            Begun::Exchange(exchange, job) => self.drive(exchange, job),
            Begun::Joined => {}
            Begun::Drop | Begun::Wait(..) => panic!("all of it is asked of the upstream"),
        }
        id
    }

    fn hear(&mut self, settled: Outgoing) {
        for Settled { response, waiters, .. } in settled {
            for waiter in waiters {
                self.note(waiter.asker.id, &response);
            }
        }
    }

    fn note(&mut self, id: u16, response: &Response) {
        let (qtype, asked) = self.waiting.remove(&id).expect("it waits");
        let told = self.bench.now;
        let is_empty = response.counts()[0] == 0;
        self.said.push(Said { id, qtype, asked, told, rcode: response.rcode(), is_empty });
    }
}

fn at(millis: u64) -> Moment {
    NOW + Duration::from_millis(millis)
}

/// The rules of the other tests, but that the upstream of all names has another timeout.
fn rules_with(timeout: &str) -> Rules {
    let text = format!("suffixes = ['.']\nupstreams = ['192.0.2.53']\ntimeout = '{timeout}'");
    let rule = toml::from_str::<forward::Config>(&text).unwrap().rule().unwrap();
    let group = Group::build_all(std::slice::from_ref(&rule), &[], &Metrics::new()).unwrap().remove(0);
    let lifetimes = crate::cache::Config::default().policy(Duration::from_secs(3600));
    Rules { forwards: vec![(vec![Name::root()], Route::new(&rule, group, lifetimes))], ..rules() }
}

fn any_client(rng: &mut StdRng) -> Client {
    *[LOCAL, REMOTE, Client { size: ReplySize::Stream, ..REMOTE }].choose(rng).unwrap()
}

/// An upstream that answers for two seconds, and then comes and goes.
fn moods(rng: &mut StdRng) -> Vec<(Moment, Mood)> {
    let mut moods = Vec::new();
    let mut millis = 2000;
    while millis < SPAN_MS {
        let mood = [Mood::Silent, Mood::Silent, Mood::Refuses, Mood::Fails].choose(rng).unwrap();
        moods.push((at(millis), *mood));
        millis += rng.random_range(100..9000);
        if rng.random_bool(0.5) {
            moods.push((at(millis), Mood::Answers));
            millis += rng.random_range(1..3000);
        }
    }
    moods
}

#[test]
fn whoever_waits_for_a_name_with_a_stale_answer_gets_it_in_time() {
    let (mut by_patience, mut stale) = (0, 0);
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let data = Data { ttls: [1, 5], has_ipv6: rng.random() };
        let timeout = ["100ms", "3500ms", "10s"].choose(&mut rng).unwrap();
        let mut world = World::new(seed, data, timeout, moods(&mut rng));
        world.ask(Rtype::A, LOCAL);
        world.ask(Rtype::AAAA, LOCAL);
        let pause_ms = *[30, 100, 400, 1500].choose(&mut rng).unwrap();
        let mut millis = 100;
        while millis < SPAN_MS {
            world.pass_until(at(millis));
            for qtype in [Rtype::A, Rtype::AAAA] {
                if rng.random_bool(0.7) {
                    world.ask(qtype, any_client(&mut rng));
                }
            }
            millis += rng.random_range(1..=2 * pause_ms);
        }
        world.pass_until(at(SPAN_MS + 12_000));
        assert!(world.waiting.is_empty(), "{seed}: {:?}", world.waiting);
        assert_eq!(world.bench.resolver.in_flight(), (0, 0), "{seed}");
        for said in &world.said {
            assert_eq!(said.rcode, Rcode::NOERROR, "{seed}: {said:?} {:?}", world.moods);
            assert_eq!(said.is_empty, said.qtype == Rtype::AAAA && !data.has_ipv6, "{seed}: {said:?}");
            assert!(said.waited() <= PATIENCE, "{seed}: {said:?} {:?}", world.moods);
            by_patience += usize::from(said.waited() > Duration::from_millis(500));
            stale += usize::from(said.waited() == PATIENCE);
        }
    }
    assert!(by_patience > 80 && stale > 20, "the upstream was seldom silent: {by_patience} {stale}");
}

#[test]
fn no_client_sees_an_empty_answer_beside_a_failure() {
    let mut failures = 0;
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        // What is not kept leaves nothing to fall back on (RFC 8767 §6).
        let data = Data { ttls: [0, 0], has_ipv6: false };
        let mut world = World::new(seed, data, "3500ms", moods(&mut rng));
        let mut pairs = Vec::new();
        let mut millis = 0;
        while millis < SPAN_MS {
            world.pass_until(at(millis));
            let client = any_client(&mut rng);
            pairs.push([world.ask(Rtype::A, client), world.ask(Rtype::AAAA, client)]);
            millis += rng.random_range(1..1500);
        }
        world.pass_until(at(SPAN_MS + 12_000));
        assert!(world.waiting.is_empty(), "{seed}: {:?}", world.waiting);
        for ids in pairs {
            let [four, six] = ids.map(|id| world.said.iter().find(|said| said.id == id).unwrap());
            let failed = |said: &Said| said.rcode == Rcode::SERVFAIL;
            // An address beside a failure is no more than it was: libc takes the address.
            assert!(!failed(four) || failed(six), "{seed}: {four:?} {six:?} {:?}", world.moods);
            failures += usize::from(failed(four));
        }
    }
    assert!(failures > 80, "the upstream seldom failed: {failures}");
}

const SPAN_MS: u64 = 40_000;
