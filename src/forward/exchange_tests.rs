use rand::{SeedableRng, rngs::StdRng};

use super::{
    super::testing::{NS, Reply, SOA, cookie_in, group},
    *,
};
use crate::wire::{Class, Query, Rtype};

const ONE: &str = "upstreams = ['192.0.2.1']";
const TWO: &str = "upstreams = ['192.0.2.1', '192.0.2.2']";
const ONE_MIXED: &str = "upstreams = ['192.0.2.1']\nmixed_case = true";
const TWO_MIXED: &str = "upstreams = ['192.0.2.1', '192.0.2.2']\nmixed_case = true";

/// An exchange and its clock.
struct Bench {
    exchange: Exchange,
    begun: Moment,
    now: Moment,
    rng: StdRng,
    outcome: Option<Outcome>,
}

impl Bench {
    fn new(group: &Arc<Group>) -> Self {
        Self::with(group, Options { dnssec_ok: false, checking_disabled: false, patience: None, timeout: TIMEOUT })
    }

    fn with(group: &Arc<Group>, options: Options) -> Self {
        let mut rng = StdRng::seed_from_u64(7);
        let question = Question { qname: "www.example.org".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        let now = Moment::from_millis(1_000_000);
        let exchange = Exchange::new(Arc::clone(group), &question, options, now, &mut rng);
        Self { exchange, begun: now, now, rng, outcome: None }
    }

    /// The actions that are due, in short.
    fn actions(&mut self) -> Vec<String> {
        let mut actions = Vec::new();
        while let Some(action) = self.exchange.next_action() {
            actions.push(match action {
                Action::SendUdp { attempt, .. } => format!("udp {attempt}"),
                Action::SendStream { attempt, .. } => format!("stream {attempt}"),
                Action::CloseUdp { attempt } => format!("close {attempt}"),
                Action::OutOfPatience => "out of patience".into(),
                Action::Finish(outcome) => {
                    let rcode = match &outcome.response {
                        Ok(response) => response.rcode(),
                        Err(failure) => failure.response.rcode(),
                    };
                    self.outcome = Some(outcome);
                    rcode.to_string()
                }
            });
        }
        actions
    }

    /// Lets time pass until the exchange is over or this many milliseconds after its start. Gives what was done when.
    fn pass_until(&mut self, millis: u64) -> Vec<(u64, String)> {
        let mut done = Vec::new();
        loop {
            let elapsed = self.now.since(self.begun).as_millis() as u64;
            done.extend(self.actions().into_iter().map(|action| (elapsed, action)));
            if self.outcome.is_some() || self.exchange.wake_at() > self.begun + Duration::from_millis(millis) {
                return done;
            }
            self.now = self.exchange.wake_at();
            self.exchange.handle(Event::Time, self.now, &mut self.rng);
        }
    }

    fn query(&self, attempt: usize) -> Vec<u8> {
        let mut query = Vec::new();
        self.exchange.write_query(attempt, &mut query);
        query
    }

    fn reply(&mut self, attempt: usize, reply: impl FnOnce(&[u8]) -> Reply) -> Vec<String> {
        let wire = reply(&self.query(attempt)).wire();
        self.exchange.handle(Event::Reply { attempt, wire: &wire }, self.now, &mut self.rng);
        self.actions()
    }

    fn fail(&mut self, attempt: usize) -> Vec<String> {
        self.exchange.handle(Event::Failed { attempt, error: &"port closed" }, self.now, &mut self.rng);
        self.actions()
    }

    fn failure(self) -> Response {
        self.outcome.unwrap().response.unwrap_err().response
    }
}

fn at(times: &[(u64, &str)]) -> Vec<(u64, String)> {
    times.iter().map(|&(millis, action)| (millis, action.to_owned())).collect()
}

/// The codes and texts of a response's extended errors.
fn extended_errors(response: &Response) -> Vec<(u16, String)> {
    let mut rest = response.extended_errors();
    let mut errors = Vec::new();
    while let [_, _, high, low, tail @ ..] = rest {
        let (data, tail) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        errors.push((u16::from_be_bytes([data[0], data[1]]), String::from_utf8_lossy(&data[2..]).into_owned()));
        rest = tail;
    }
    errors
}

const TIMEOUT: Duration = Duration::from_millis(3500);

#[test]
fn silence_is_met_by_resends_in_turn_until_the_deadline() {
    for (rule, expected) in [
        (ONE, at(&[(0, "udp 0"), (400, "udp 0"), (1200, "udp 0"), (2800, "udp 0"), (3500, "SERVFAIL")])),
        (TWO, at(&[(0, "udp 0"), (400, "udp 1"), (1200, "udp 0"), (2800, "udp 1"), (3500, "SERVFAIL")])),
        // Nothing is sent twice over a stream, and there is more patience with one.
        ("upstreams = ['tcp://192.0.2.1']", at(&[(0, "stream 0"), (3500, "SERVFAIL")])),
        (
            "upstreams = ['tls://192.0.2.1', '192.0.2.2']",
            at(&[(0, "stream 0"), (1200, "udp 1"), (2000, "udp 1"), (3500, "SERVFAIL")]),
        ),
    ] {
        let mut bench = Bench::new(&group(rule));
        assert_eq!(bench.pass_until(9999), expected, "{rule}");
        let errors = extended_errors(&bench.failure());
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].0, EDE_NO_REACHABLE_AUTHORITY, "{rule}");
    }
}

#[test]
fn what_is_known_of_the_round_trip_time_sets_the_pace() {
    let group = group(ONE);
    group.upstreams()[0].note_reply(Rcode::NOERROR, Some(Duration::from_millis(4)));
    let mut bench = Bench::new(&group);
    let expected = [(0, "udp 0"), (30, "udp 0"), (90, "udp 0"), (210, "udp 0"), (450, "udp 0"), (930, "udp 0")];
    assert_eq!(bench.pass_until(1000), at(&expected));
}

#[test]
fn a_query_is_sent_again_to_the_letter() {
    let mut bench = Bench::new(&group(TWO));
    let first = bench.query(0);
    bench.pass_until(3000);
    assert_eq!(bench.query(0), first);
    assert_ne!(bench.query(1)[..2], first[..2], "each upstream has an id of its own");
}

#[test]
fn a_late_reply_wins() {
    let group = group(TWO);
    let mut bench = Bench::new(&group);
    assert_eq!(bench.pass_until(500).len(), 2);
    assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"]);
    let outcome = bench.outcome.unwrap();
    assert!(Arc::ptr_eq(&outcome.upstream.unwrap(), &group.upstreams()[0]));
}

#[test]
fn who_does_not_answer_the_question_is_passed_over_at_once() {
    type Change = fn(Reply) -> Reply;
    let cases: [(&str, Change); 5] = [
        ("SERVFAIL", |reply| reply.rcode(Rcode::SERVFAIL)),
        ("REFUSED", |reply| reply.rcode(Rcode::REFUSED)),
        ("NOTAUTH", |reply| reply.rcode(Rcode::NOTAUTH)),
        ("lame", |reply| reply.record(1, NS).without_flag(flag::RA)),
        ("broken", |reply| reply.record(0, b"\xc0").without_edns()),
    ];
    for (fault, change) in cases {
        let mut bench = Bench::new(&group(TWO));
        assert_eq!(bench.actions(), ["udp 0"]);
        assert_eq!(bench.reply(0, |query| change(Reply::to(query))), ["close 0", "udp 1"], "{fault}");
        assert!(bench.reply(0, Reply::answering).is_empty(), "{fault}: that attempt is over");
        assert_eq!(bench.reply(1, Reply::answering), ["NOERROR"], "{fault}");
    }
    let mut bench = Bench::new(&group(TWO));
    bench.actions();
    assert_eq!(bench.fail(0), ["close 0", "udp 1"], "a network error");
}

#[test]
fn when_all_fail_the_best_failure_is_the_response() {
    let (silent, refused, servfail) = ("silence", "REFUSED", "SERVFAIL");
    let (network, broken) = ("network", "broken");
    for (fates, rcode, code, text) in [
        ([network, network], Rcode::SERVFAIL, 23, "of 2 upstreams 2 unreachable"),
        ([network, broken], Rcode::SERVFAIL, 22, "of 2 upstreams 1 unreachable, 1 failing"),
        ([refused, network], Rcode::REFUSED, 22, "of 2 upstreams 1 unreachable, 1 failing"),
        ([refused, servfail], Rcode::SERVFAIL, 22, "of 2 upstreams 2 failing"),
        ([servfail, refused], Rcode::SERVFAIL, 22, "of 2 upstreams 2 failing"),
        ([refused, silent], Rcode::REFUSED, 22, "of 2 upstreams 1 silent, 1 failing"),
    ] {
        let mut bench = Bench::new(&group(TWO));
        for (attempt, fate) in fates.into_iter().enumerate() {
            bench.actions();
            match fate {
                "network" => bench.fail(attempt),
                "REFUSED" => bench.reply(attempt, |query| Reply::to(query).rcode(Rcode::REFUSED)),
                "SERVFAIL" => {
                    bench.reply(attempt, |query| Reply::to(query).rcode(Rcode::SERVFAIL).option(15, b"\0\x06bogus"))
                }
                "broken" => bench.reply(attempt, |query| Reply::to(query).record(0, b"\xc0").without_edns()),
                _ => Vec::new(),
            };
        }
        bench.pass_until(9999);
        let response = bench.failure();
        assert_eq!(response.rcode(), rcode, "{fates:?}");
        assert!(!response.has_flag(flag::AA));
        let mut errors = extended_errors(&response);
        assert_eq!(errors.pop(), Some((code, text.to_owned())), "{fates:?}");
        let upstreams_own =
            if rcode == Rcode::SERVFAIL && fates.contains(&servfail) { vec![(6, "bogus".into())] } else { vec![] };
        assert_eq!(errors, upstreams_own, "{fates:?}");
    }
}

#[test]
fn a_server_without_edns_is_asked_without_and_remembered_at_the_second_time() {
    for rcode in [Rcode::FORMERR, Rcode::NOTIMP] {
        let group = group(TWO);
        let complaint = |query: &[u8]| Reply::to(query).rcode(rcode).without_edns();
        for is_known in [false, true] {
            let mut bench = Bench::new(&group);
            bench.actions();
            assert_eq!(bench.reply(0, complaint), ["udp 0"], "the same upstream again");
            assert_eq!(Query::parse(&bench.query(0)).unwrap().edns(), None);
            assert!(group.upstreams()[0].habits(bench.now).edns, "nothing is proven yet");
            assert_eq!(bench.reply(0, |query| Reply::answering(query).without_edns()), ["NOERROR"]);
            assert_eq!(group.upstreams()[0].habits(bench.now).edns, !is_known);
        }
        let next = Bench::new(&group);
        assert_eq!(Query::parse(&next.query(0)).unwrap().edns(), None);
    }
    // One that complains without EDNS as well has another complaint.
    let group = group(TWO);
    let mut bench = Bench::new(&group);
    bench.actions();
    let complaint = |query: &[u8]| Reply::to(query).rcode(Rcode::FORMERR).without_edns();
    assert_eq!(bench.reply(0, complaint), ["udp 0"]);
    assert_eq!(bench.reply(0, complaint), ["close 0", "udp 1"]);
    assert!(group.upstreams()[0].habits(bench.now).edns);
}

/// A reply, how it is made, and what is done because of it in the end.
type Unasked = (&'static str, fn(Reply) -> Reply, &'static [&'static str]);

/// Twelve octets and at most an OPT record: whoever knows port and id can send them, knowing nothing of the question.
const UNASKED: [Unasked; 8] = [
    ("REFUSED", |reply| reply.rcode(Rcode::REFUSED).without_edns(), &["close 0", "udp 1"]),
    ("SERVFAIL", |reply| reply.rcode(Rcode::SERVFAIL).without_edns(), &["close 0", "udp 1"]),
    ("NOERROR", |reply| reply.without_edns(), &["close 0", "udp 1"]),
    ("a query", |reply| reply.without_flag(flag::QR).without_edns(), &["close 0", "udp 1"]),
    ("TC", |reply| reply.flag(flag::TC).without_edns(), &["close 0", "stream 0"]),
    ("FORMERR", |reply| reply.rcode(Rcode::FORMERR).without_edns(), &["udp 0"]),
    ("NOTIMP", |reply| reply.rcode(Rcode::NOTIMP).without_edns(), &["udp 0"]),
    ("BADVERS", |reply| reply.rcode(Rcode::BADVERS), &["udp 0"]),
];

#[test]
fn a_reply_without_the_question_counts_if_no_better_one_comes_in_a_resend_interval() {
    for (reply, change, expected) in UNASKED {
        // The answer is on its way.
        let group_of_two = group(TWO);
        let mut bench = Bench::new(&group_of_two);
        bench.actions();
        assert!(bench.reply(0, |query| change(Reply::to(query)).without_question()).is_empty(), "{reply}");
        assert_eq!(bench.pass_until(300), [], "{reply}");
        assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"], "{reply}");
        assert!(group_of_two.upstreams()[0].habits(bench.now).edns, "{reply}");

        // No other comes: the usual time of the upstream is 30 ms.
        let group = group(TWO);
        group.upstreams()[0].note_reply(Rcode::NOERROR, Some(Duration::from_millis(1)));
        let mut bench = Bench::new(&group);
        bench.actions();
        bench.now = bench.now + Duration::from_millis(10);
        assert!(bench.reply(0, |query| change(Reply::to(query)).without_question()).is_empty(), "{reply}");
        let done: Vec<(u64, String)> = bench.pass_until(40).into_iter().filter(|(millis, _)| *millis == 40).collect();
        let done: Vec<String> = done.into_iter().map(|(_, action)| action).collect();
        // By then the query was sent to the other one, for it was due.
        let expected: Vec<&&str> = expected.iter().filter(|action| **action != "udp 1").collect();
        assert_eq!(
            done.iter().map(|action| &**action).collect::<Vec<_>>(),
            expected.into_iter().copied().collect::<Vec<_>>(),
            "{reply}"
        );
        assert_eq!(bench.reply(1, Reply::answering), ["NOERROR"], "{reply}");
    }
}

#[test]
fn that_a_server_has_no_edns_is_remembered_only_once_it_is_confirmed() {
    let group = group(ONE);
    let header = |query: &[u8]| Reply::to(query).rcode(Rcode::FORMERR).without_edns().without_question();
    for (complains, is_remembered) in [(true, false), (false, false), (true, false), (true, true)] {
        let mut bench = Bench::new(&group);
        bench.actions();
        if complains {
            assert!(bench.reply(0, header).is_empty());
            bench.pass_until(400);
            assert_eq!(Query::parse(&bench.query(0)).unwrap().edns(), None);
            assert_eq!(bench.reply(0, |query| Reply::answering(query).without_edns()), ["NOERROR"]);
        } else {
            // So the complaint was forged.
            assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"]);
        }
        assert_eq!(!group.upstreams()[0].habits(Moment::from_millis(1_000_500)).edns, is_remembered);
    }
    assert!(group.upstreams()[0].habits(Moment::from_millis(1_300_400)).edns, "for five minutes");
}

#[test]
fn what_mixed_letters_bring_is_confirmed_in_plain_ones_unless_it_is_an_answer() {
    type Change = fn(Reply) -> Reply;
    let cases: [(&str, Change); 7] = [
        ("NXDOMAIN", |reply| reply.rcode(Rcode::NXDOMAIN).record(1, SOA)),
        ("NOERROR", |reply| reply.record(1, SOA)),
        ("REFUSED", |reply| reply.rcode(Rcode::REFUSED)),
        ("SERVFAIL", |reply| reply.rcode(Rcode::SERVFAIL)),
        ("FORMERR", |reply| reply.rcode(Rcode::FORMERR).without_edns()),
        ("NOTAUTH", |reply| reply.rcode(Rcode::NOTAUTH)),
        ("broken", |reply| reply.record(0, b"\xc0").without_edns()),
    ];
    let is_plain = |bench: &Bench, attempt: usize| {
        Query::parse(&bench.query(attempt)).unwrap().qname() == bench.exchange.question().qname.wire()
    };
    for (said, change) in cases {
        for over_stream in [false, true] {
            let group = group(TWO_MIXED);
            let mut bench = Bench::new(&group);
            bench.actions();
            assert!(!is_plain(&bench, 0));
            let mut expected = vec!["close 0", "udp 1"];
            if over_stream {
                bench.reply(0, |query| Reply::answering(query).flag(flag::TC));
                expected.remove(0);
            }
            if (said, over_stream) == ("broken", true) {
                continue;
            }
            assert_eq!(bench.reply(0, |query| change(Reply::to(query))), expected, "{said}");
            assert!(is_plain(&bench, 1), "{said}");
            assert_ne!(bench.exchange.id(1), bench.exchange.id(0), "{said}: a forger has to guess again");
            assert_eq!(bench.reply(1, Reply::answering), ["NOERROR"], "{said}");
            let outcome = bench.outcome.unwrap();
            assert!(Arc::ptr_eq(&outcome.upstream.unwrap(), &group.upstreams()[0]), "{said}: the same is asked");
            assert!(group.upstreams()[0].habits(bench.now).edns, "{said}");
        }
        // What is confirmed is believed.
        let mut bench = Bench::new(&group(TWO_MIXED));
        bench.actions();
        bench.reply(0, |query| change(Reply::to(query)));
        let confirmed = bench.reply(1, |query| change(Reply::to(query)));
        match said {
            "NXDOMAIN" | "NOERROR" => assert_eq!(confirmed, [said]),
            "FORMERR" => assert_eq!(confirmed, ["udp 1"], "without EDNS"),
            _ => assert_eq!(confirmed, ["close 1", "udp 2"], "{said}: the other one is asked"),
        }
    }
    // An answer needs no confirmation.
    let mut bench = Bench::new(&group(TWO_MIXED));
    bench.actions();
    assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"]);
}

#[test]
fn whoever_is_silent_to_mixed_letters_is_asked_in_plain_ones() {
    let expected = [(0, "udp 0"), (400, "udp 1"), (1200, "udp 1"), (2800, "udp 1"), (3500, "SERVFAIL")];
    let mut bench = Bench::new(&group(ONE_MIXED));
    assert_eq!(bench.pass_until(9999), at(&expected));
    assert_eq!(extended_errors(&bench.failure())[0].1, "of 1 upstreams 1 silent");
    // Over a stream, too.
    let mut bench = Bench::new(&group(ONE_MIXED));
    bench.actions();
    bench.reply(0, |query| Reply::answering(query).flag(flag::TC));
    assert_eq!(bench.pass_until(450), at(&[(400, "udp 1")]));
    assert_eq!(bench.reply(1, Reply::answering), ["NOERROR"]);
    let expected = [(0, "udp 0"), (400, "udp 1"), (1200, "udp 2"), (2800, "udp 1"), (3500, "SERVFAIL")];
    let group = group(TWO_MIXED);
    let mut bench = Bench::new(&group);
    assert_eq!(bench.pass_until(9999), at(&expected));
    // A late answer is welcome; a late denial is not believed.
    let mut bench = Bench::new(&group);
    bench.pass_until(1200);
    assert_eq!(bench.reply(0, |query| Reply::to(query).rcode(Rcode::NXDOMAIN).record(1, SOA)), ["close 0"]);
    assert_eq!(bench.reply(2, Reply::answering), ["NOERROR"]);
    let mut bench = Bench::new(&group);
    bench.pass_until(1200);
    assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"]);
}

#[test]
fn a_timeout_short_or_long_leaves_time_for_another_upstream() {
    for (timeout_ms, expected) in [
        (100, at(&[(0, "udp 0"), (40, "udp 1"), (100, "SERVFAIL")])),
        (500, at(&[(0, "udp 0"), (200, "udp 1"), (500, "SERVFAIL")])),
        (
            10_000,
            at(&[
                (0, "udp 0"),
                (400, "udp 1"),
                (1200, "udp 0"),
                (2800, "udp 1"),
                (6000, "udp 0"),
                (10_000, "SERVFAIL"),
            ]),
        ),
    ] {
        let timeout = Duration::from_millis(timeout_ms);
        let options = Options { dnssec_ok: false, checking_disabled: false, patience: None, timeout };
        let mut bench = Bench::with(&group(TWO), options);
        assert_eq!(bench.pass_until(99_999), expected, "{timeout_ms} ms");
    }
}

#[test]
fn truncation_goes_on_over_the_stream() {
    let mut bench = Bench::new(&group(TWO));
    bench.actions();
    assert_eq!(bench.reply(0, |query| Reply::answering(query).flag(flag::TC)), ["close 0", "stream 0"]);
    assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"]);
    // A stream that fails is a failure like any other.
    let mut bench = Bench::new(&group(TWO));
    bench.actions();
    bench.reply(0, |query| Reply::answering(query).flag(flag::TC));
    assert_eq!(bench.fail(0), ["udp 1"]);
}

#[test]
fn three_wrong_replies_close_udp() {
    let group = group(TWO);
    let mut bench = Bench::new(&group);
    bench.actions();
    assert!(bench.reply(0, |query| Reply::answering(query).id(|id| id ^ 1)).is_empty());
    assert!(bench.reply(0, |query| Reply::answering(query).question(|question| question[1] = b'x')).is_empty());
    assert_eq!(bench.reply(0, |query| Reply::answering(query).id(|id| id ^ 2)), ["close 0", "stream 0"]);
    assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"]);
}

#[test]
fn letters_that_come_back_changed_are_checked_by_stream_and_then_left_alone() {
    let group = group(ONE_MIXED);
    let lowered = |query: &[u8]| Reply::answering(query).question(|question| question.make_ascii_lowercase());
    let mut bench = Bench::new(&group);
    bench.actions();
    assert_eq!(bench.reply(0, lowered), ["close 0", "stream 0"]);
    assert!(group.upstreams()[0].habits(bench.now).mixed_letters, "nothing is proven yet");
    assert_eq!(bench.reply(0, lowered), ["NOERROR"]);
    let mut next = Bench::new(&group);
    next.actions();
    assert_eq!(Query::parse(&next.query(0)).unwrap().qname(), next.exchange.question().qname.wire());
    assert_eq!(next.reply(0, lowered), ["NOERROR"]);
}

/// Such a server is found in many a home router.
#[test]
fn a_server_that_keeps_no_letters_and_has_no_stream_is_asked_once_more_without() {
    let group = group(TWO_MIXED);
    let lowered = |query: &[u8]| Reply::answering(query).question(|question| question.make_ascii_lowercase());
    let mut bench = Bench::new(&group);
    bench.actions();
    assert_eq!(bench.reply(0, lowered), ["close 0", "stream 0"]);
    assert_eq!(bench.fail(0), ["udp 1"], "the others first");
    assert_eq!(bench.fail(1), ["close 1", "udp 2"]);
    assert_ne!(bench.exchange.id(2), bench.exchange.id(0), "a forger has to guess again");
    assert_eq!(bench.reply(2, lowered), ["NOERROR"]);
    assert!(group.upstreams()[0].habits(bench.now).mixed_letters, "that he has forged nothing is not proven");
    // The same letters in vain: that is the end, and each upstream is counted once.
    let mut bench = Bench::new(&group);
    bench.actions();
    bench.reply(0, lowered);
    bench.fail(0);
    bench.fail(1);
    let raised = |query: &[u8]| Reply::answering(query).question(|question| question[1..4].make_ascii_uppercase());
    assert_eq!(bench.reply(2, raised), ["close 2", "stream 2"]);
    assert_eq!(bench.fail(2), ["SERVFAIL"]);
    assert_eq!(extended_errors(&bench.failure())[0].1, "of 2 upstreams 2 unreachable");
}

#[test]
fn forged_letters_do_not_talk_us_out_of_mixing_them() {
    let group = group(ONE_MIXED);
    let mut bench = Bench::new(&group);
    bench.actions();
    let forged = |query: &[u8]| Reply::answering(query).question(|question| question.make_ascii_lowercase());
    assert_eq!(bench.reply(0, forged), ["close 0", "stream 0"]);
    assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"]);
    assert!(group.upstreams()[0].habits(bench.now).mixed_letters);
}

#[test]
fn a_cookie_is_learned_demanded_and_forgotten_only_by_stream() {
    let group = group(ONE);
    let complete = |query: &[u8]| [&cookie_in(query)[..8], &[9; 8]].concat();
    let mut bench = Bench::new(&group);
    bench.actions();
    assert_eq!(cookie_in(&bench.query(0)).len(), 8);
    assert_eq!(bench.reply(0, |query| Reply::answering(query).cookie(&complete(query))), ["NOERROR"]);

    let mut bench = Bench::new(&group);
    bench.actions();
    assert_eq!(cookie_in(&bench.query(0)), complete(&bench.query(0)), "the server's part is sent back");
    assert!(bench.reply(0, |query| Reply::answering(query).cookie(&[1; 16])).is_empty(), "a forgery");
    assert_eq!(bench.reply(0, Reply::answering), ["close 0", "stream 0"], "a forgery, or a server that has changed");
    assert_eq!(bench.reply(0, Reply::answering), ["NOERROR"]);

    let bench = Bench::new(&group);
    assert_eq!(cookie_in(&bench.query(0)).len(), 8, "it has changed");
}

#[test]
fn a_refused_cookie_is_replaced_once() {
    let group = group(ONE);
    let refused = |query: &[u8]| {
        let cookie = [&cookie_in(query)[..8], &[9; 8]].concat();
        Reply::to(query).rcode(Rcode::BADCOOKIE).cookie(&cookie)
    };
    let mut bench = Bench::new(&group);
    bench.actions();
    assert_eq!(bench.reply(0, refused), ["udp 0"]);
    assert_eq!(cookie_in(&bench.query(0)).len(), 16, "with the new cookie");
    assert_eq!(bench.reply(0, refused), ["close 0", "stream 0"]);
}

#[test]
fn resends_are_held_back_beyond_the_budget_but_first_attempts_never() {
    let group = group("upstreams = ['192.0.2.1', '192.0.2.2', '192.0.2.3']");
    let begun = Moment::from_millis(1_000_000);
    while group.take_resend(begun + TIMEOUT) {}
    let mut bench = Bench::new(&group);
    let expected = [(0, "udp 0"), (400, "udp 1"), (1200, "udp 2"), (3500, "SERVFAIL")];
    assert_eq!(bench.pass_until(9999), at(&expected));
}

#[test]
fn patience_ends_again_and_again_and_the_exchange_goes_on() {
    for (timeout_ms, first_ms, ends) in [(3500, 1800, &[1800][..]), (10_000, 300, &[300, 2100, 3900, 5700, 7500, 9300])]
    {
        let (patience, timeout) = (Some(Duration::from_millis(first_ms)), Duration::from_millis(timeout_ms));
        let options = Options { dnssec_ok: false, checking_disabled: false, patience, timeout };
        let mut bench = Bench::with(&group(ONE), options);
        let done = bench.pass_until(99_999);
        let said = |what: &str| done.iter().filter(|(_, of)| of == what).map(|(at, _)| *at).collect::<Vec<u64>>();
        assert_eq!(said("out of patience"), ends);
        assert_eq!(said("SERVFAIL"), [timeout_ms]);
    }
}

#[test]
fn a_query_asks_for_what_the_client_may_need() {
    for (rule, options, udp_size, encrypted) in [
        (ONE, (false, true), 1232, false),
        ("upstreams = ['127.0.0.1']", (true, false), 16_384, false),
        ("upstreams = ['tls://192.0.2.1']", (true, false), 1232, true),
    ] {
        let (dnssec_ok, checking_disabled) = options;
        let options = Options { dnssec_ok, checking_disabled, patience: None, timeout: TIMEOUT };
        let bench = Bench::with(&group(rule), options);
        let wire = bench.query(0);
        let query = Query::parse(&wire).unwrap();
        let edns = query.edns().unwrap();
        assert!(query.recursion_desired() && query.flags() & flag::AD != 0);
        assert_eq!((query.dnssec_ok(), query.checking_disabled()), (dnssec_ok, checking_disabled), "{rule}");
        assert_eq!(edns.udp_size, udp_size, "{rule}");
        assert_eq!(cookie_in(&wire).is_empty(), encrypted, "{rule}");
        assert!(query.qname().eq_ignore_ascii_case(bench.exchange.question().qname.wire()));
        assert_eq!(query.qname(), bench.exchange.question().qname.wire(), "{rule}: letters are left alone");
        let mixed = Bench::new(&group(&format!("{rule}\nmixed_case = true")));
        let wire = mixed.query(0);
        let is_mixed = Query::parse(&wire).unwrap().qname() != mixed.exchange.question().qname.wire();
        assert_eq!(is_mixed, !encrypted, "{rule}: unless that is wanted where somebody can forge");
    }
}

#[test]
fn the_response_is_ready_to_be_kept() {
    for (rule, trusted) in [
        (ONE, false),
        ("upstreams = ['127.0.0.1']", true),
        ("upstreams = ['127.0.0.1']\ntrust_ad = false", false),
        ("upstreams = ['192.0.2.1']\ntrust_ad = true", true),
    ] {
        let mut bench = Bench::new(&group(rule));
        bench.actions();
        let reply = |query: &[u8]| Reply::answering(query).flag(flag::AA).flag(flag::AD).without_flag(flag::RA);
        assert_eq!(bench.reply(0, reply), ["NOERROR"]);
        let response = bench.outcome.unwrap().response.unwrap();
        assert!(!response.has_flag(flag::AA) && response.has_flag(flag::RA));
        assert_eq!(response.has_flag(flag::AD), trusted, "{rule}");
        assert_eq!(response.question_bytes(), b"\x03www\x07example\x03org\x00\x00\x01\x00\x01");
        assert_eq!(response.counts(), [1, 0, 0]);
    }
}

#[test]
fn an_exchange_that_is_over_stays_over() {
    let mut bench = Bench::new(&group(TWO));
    bench.pass_until(500);
    bench.reply(0, Reply::answering);
    assert!(bench.reply(1, Reply::answering).is_empty());
    assert!(bench.fail(1).is_empty());
    bench.exchange.handle(Event::Time, bench.now + TIMEOUT, &mut bench.rng);
    assert!(bench.actions().is_empty());
}

#[test]
fn a_query_that_could_not_be_sent_says_nothing_of_the_upstreams() {
    for (unsent, was_sent) in [(&[0, 1][..], false), (&[0], true), (&[1], true)] {
        let group = group(TWO);
        let mut bench = Bench::new(&group);
        bench.actions();
        for attempt in [0, 1] {
            match unsent.contains(&attempt) {
                true => bench.exchange.handle(Event::Unsent { attempt }, bench.now, &mut bench.rng),
                false => drop(bench.fail(attempt)),
            }
            bench.actions();
        }
        let failure = bench.outcome.unwrap().response.unwrap_err();
        assert_eq!(failure.was_sent, was_sent, "{unsent:?}");
        assert_eq!(extended_errors(&failure.response)[0].0, EDE_NETWORK_ERROR, "{unsent:?}");
    }
}
