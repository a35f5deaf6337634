//! One server: how fast it is, whether it answers at all, and what it does not understand.
//!
//! The round-trip time is smoothed as TCP does it (RFC 6298 §2). It is measured from the first time a query was sent,
//! even if it was sent again: that errs on the long side, and so costs nothing but patience.
//!
//! An upstream is down after three failures with no reply between them. Of whom a query is asked its client decides, and
//! there are names that a healthy server never answers, or closes its stream for. So queries that time out and streams
//! that break only raise the suspicion: from the second on the upstream is probed, once a second at most, with a query that
//! every server answers, and it is down if the probe has no reply either and the first failure was a second ago. A
//! datagram that the network refuses (the port is closed, the host cannot be reached) is beyond a client's power: three of
//! those count at once. Any reply makes the upstream up again, whatever it says.
//!
//! While it is down it is probed once a second, later as often as ten times in the span that it has been down, at least
//! every ten seconds. Down means asked last, not never.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rand::RngExt;
use tracing::{info, warn};

use super::{
    transport::Connection,
    trust::Trust,
    url::{Transport, UpstreamUrl},
};
use crate::{
    clock::Moment,
    metrics::{Failure, Metrics, UpstreamCells},
    wire::Rcode,
};

/// A server that queries are sent on to. It outlives reloads that keep its URL.
#[derive(Debug)]
pub struct Upstream {
    url: UpstreamUrl,
    cells: Arc<UpstreamCells>,
    is_down: AtomicBool,
    /// Whether queries to it came back to us since it was up last.
    is_loop: AtomicBool,
    /// How often in a row it has answered without EDNS what it had complained of with it.
    edns_complaints: AtomicU8,
    state: Mutex<State>,
    connection: Connection,
}

#[derive(Debug)]
struct State {
    round_trip: Option<RoundTrip>,
    /// How many replies have come, ever.
    replies: u64,
    /// Failures of any kind since the last reply.
    failures: u32,
    /// Those among them of datagrams that the network has refused.
    refusals: u32,
    failing_since: Moment,
    down_since: Moment,
    probe_at: Moment,
    loop_check_at: Moment,
    without_edns_until: Moment,
    without_letters_until: Moment,
    cookie: Cookie,
    cookie_until: Moment,
}

/// Smoothed time and its variation (RFC 6298 §2), in milliseconds.
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    smoothed: f32,
    variation: f32,
}

/// How to speak to an upstream, from what has been learned of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Habits {
    /// Send an OPT record.
    pub edns: bool,
    /// Mix the letters of the qname.
    pub mixed_letters: bool,
    /// The cookie to send.
    pub cookie: Cookie,
    /// How long to wait before the query is sent again.
    pub timeout: Duration,
}

/// The data of a COOKIE option (RFC 7873 §4): our part, and the server's once it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cookie {
    octets: [u8; 40],
    length: u8,
}

impl Upstream {
    /// A server of which nothing is known yet.
    pub(super) fn new(url: UpstreamUrl, trust: Trust, metrics: &Metrics) -> Self {
        let cells = metrics.upstream(&url.to_string());
        cells.set_up(true);
        Self {
            connection: Connection::new(trust),
            cells,
            url,
            is_down: AtomicBool::new(false),
            is_loop: AtomicBool::new(false),
            edns_complaints: AtomicU8::new(0),
            state: Mutex::new(State {
                round_trip: None,
                replies: 0,
                failures: 0,
                refusals: 0,
                failing_since: Moment::default(),
                down_since: Moment::default(),
                probe_at: Moment::default(),
                loop_check_at: Moment::default(),
                without_edns_until: Moment::default(),
                without_letters_until: Moment::default(),
                cookie: Cookie::new(rand::rng().random()),
                cookie_until: Moment::default(),
            }),
        }
    }

    /// Where it is.
    pub fn url(&self) -> &UpstreamUrl {
        &self.url
    }

    /// Who may have issued its certificate.
    pub(super) fn trust(&self) -> &Trust {
        self.connection.trust()
    }

    /// Whether it is thought to answer.
    pub fn is_up(&self) -> bool {
        !self.is_down.load(Ordering::Relaxed)
    }

    /// The smoothed round-trip time, if it has ever answered.
    pub fn round_trip(&self) -> Option<Duration> {
        self.state.lock().round_trip.map(|known| Duration::from_secs_f32(known.smoothed / 1000.0))
    }

    /// Whether a probe is due, of one that is down or suspected to be; if so, the next one is set for later.
    pub fn take_probe(&self, now: Moment) -> bool {
        let is_up = self.is_up();
        let mut state = self.state.lock();
        if now < state.probe_at || is_up && state.failures < FAILURES_UNTIL_PROBED {
            return false;
        }
        let span = if is_up { Duration::ZERO } else { now.since(state.down_since) };
        state.probe_at = now + (span / 10).clamp(MIN_PROBE_PAUSE, MAX_PROBE_PAUSE);
        true
    }

    /// How many replies have come until a probe begins: to be told to [`end_probe`](Self::end_probe).
    pub(super) fn begin_probe(&self) -> u64 {
        self.state.lock().replies
    }

    /// A probe is over. If nothing was heard since it began, what was suspected is true.
    pub(super) fn end_probe(&self, replies: u64, now: Moment) {
        let mut state = self.state.lock();
        let has_failed = state.failures >= FAILURES_UNTIL_DOWN && now.since(state.failing_since) >= FAILING_UNTIL_DOWN;
        if state.replies == replies && has_failed {
            self.mark_down(&mut state, now, &"no reply, nor to a probe");
        }
    }

    /// Whether it is to be found out if it forwards to us: it has failed often enough to be down, though perhaps not for
    /// long enough. If so, the next time is set.
    pub fn take_loop_check(&self, now: Moment) -> bool {
        let mut state = self.state.lock();
        let is_due = state.failures >= FAILURES_UNTIL_DOWN && now >= state.loop_check_at;
        if is_due {
            state.loop_check_at = now + LOOP_CHECK_PAUSE;
        }
        is_due
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Whether it is asked by datagrams.
    pub(super) fn takes_datagrams(&self) -> bool {
        self.url.transport == Transport::Udp
    }

    pub(super) fn habits(&self, now: Moment) -> Habits {
        let state = self.state.lock();
        Habits {
            edns: now >= state.without_edns_until,
            mixed_letters: now >= state.without_letters_until,
            cookie: if now < state.cookie_until { state.cookie } else { state.cookie.completed_by(&[]) },
            timeout: state.round_trip.map_or(INITIAL_TIMEOUT, RoundTrip::timeout),
        }
    }

    pub(super) fn note_sent(&self, again: bool) {
        if again { self.cells.resent() } else { self.cells.sent() }
    }

    /// A valid reply has come, whatever it says; `elapsed` is `None` if its time says nothing of the usual way there.
    pub(super) fn note_reply(&self, rcode: Rcode, elapsed: Option<Duration>) {
        self.cells.responded(rcode.0, elapsed);
        let mut state = self.state.lock();
        if let Some(elapsed_ms) = elapsed.map(|elapsed| elapsed.as_millis() as u64) {
            state.round_trip = Some(RoundTrip::update(state.round_trip, elapsed_ms as f32));
        }
        state.replies += 1;
        state.failures = 0;
        state.refusals = 0;
        if self.is_down.swap(false, Ordering::Relaxed) {
            self.cells.set_up(true);
            self.is_loop.store(false, Ordering::Relaxed);
            info!(upstream = %self.url, "upstream up");
        }
    }

    /// A query has waited for its reply longer than replies take.
    pub(super) fn note_timeout(&self, now: Moment) {
        self.cells.timed_out();
        self.state.lock().count_failure(now);
    }

    /// A stream to it cannot be opened, or has ended without a reply.
    pub(super) fn note_broken(&self, now: Moment) {
        self.cells.failed(Failure::Network);
        self.state.lock().count_failure(now);
    }

    /// The network has refused a datagram.
    pub(super) fn note_refused(&self, error: &dyn fmt::Display, now: Moment) {
        self.cells.failed(Failure::Network);
        let mut state = self.state.lock();
        state.count_failure(now);
        state.refusals = state.refusals.saturating_add(1);
        if state.refusals >= FAILURES_UNTIL_DOWN {
            self.mark_down(&mut state, now, error);
        }
    }

    /// A query to it came back to us.
    pub(super) fn note_loop(&self) {
        self.cells.looped();
        if !self.is_loop.swap(true, Ordering::Relaxed) {
            warn!(upstream = %self.url, "a loop: the upstream forwards to us what we forward to it; name another upstream in one of the two");
        }
    }

    pub(super) fn note_wrong(&self) {
        self.cells.failed(Failure::Mismatch);
    }

    /// It has answered without EDNS what it complained of with it. The complaint may have been forged, so this is
    /// remembered when it comes a second time; and for minutes, in which the server may be replaced.
    pub(super) fn note_without_edns(&self, now: Moment) {
        let complaints = self.edns_complaints.load(Ordering::Relaxed).saturating_add(1);
        self.edns_complaints.store(complaints, Ordering::Relaxed);
        if complaints >= COMPLAINTS_UNTIL_LEARNED {
            self.state.lock().without_edns_until = now + WITHOUT_EDNS_FOR;
        }
    }

    /// It has answered with EDNS.
    pub(super) fn note_edns(&self) {
        if self.edns_complaints.load(Ordering::Relaxed) > 0 {
            self.edns_complaints.store(0, Ordering::Relaxed);
        }
    }

    /// It does not repeat the letters it is asked with.
    pub(super) fn learn_without_letters(&self, now: Moment) {
        self.state.lock().without_letters_until = now + LEARNED_FOR;
    }

    /// It has sent its part of the cookie, or by a safe way shown that it has none (any more). That it has to send one
    /// holds for an hour and is then learned anew: a server whose streams are closed could not show that it has none.
    pub(super) fn learn_cookie(&self, cookie: Cookie, now: Moment) {
        let mut state = self.state.lock();
        (state.cookie, state.cookie_until) = (cookie, now + LEARNED_FOR);
    }

    fn mark_down(&self, state: &mut State, now: Moment, error: &dyn fmt::Display) {
        if !self.is_down.swap(true, Ordering::Relaxed) {
            state.down_since = now;
            state.probe_at = now + MIN_PROBE_PAUSE;
            self.cells.set_up(false);
            warn!(upstream = %self.url, %error, "upstream down");
        }
    }
}

impl State {
    fn count_failure(&mut self, now: Moment) {
        if self.failures == 0 {
            self.failing_since = now;
        }
        self.failures = self.failures.saturating_add(1);
    }
}

impl RoundTrip {
    fn update(known: Option<Self>, sample: f32) -> Self {
        match known {
            None => Self { smoothed: sample, variation: sample / 2.0 },
            Some(Self { smoothed, variation }) => Self {
                smoothed: smoothed + (sample - smoothed) / 8.0,
                variation: variation + ((sample - smoothed).abs() - variation) / 4.0,
            },
        }
    }

    fn timeout(self) -> Duration {
        Duration::from_secs_f32((self.smoothed + 4.0 * self.variation) / 1000.0).clamp(MIN_TIMEOUT, MAX_TIMEOUT)
    }
}

impl Cookie {
    pub fn new(client: [u8; CLIENT_COOKIE_BYTES]) -> Self {
        let mut octets = [0; 40];
        octets[..CLIENT_COOKIE_BYTES].copy_from_slice(&client);
        Self { octets, length: CLIENT_COOKIE_BYTES as u8 }
    }

    pub fn octets(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }

    /// Whether the server's part is known, and so demanded of every reply.
    pub fn is_complete(&self) -> bool {
        usize::from(self.length) > CLIENT_COOKIE_BYTES
    }

    /// Whether a reply's cookie has our part in it.
    pub fn is_repeated_by(&self, reply: &[u8]) -> bool {
        reply.get(..CLIENT_COOKIE_BYTES) == self.octets.get(..CLIENT_COOKIE_BYTES)
    }

    /// The cookie with the server's part of a reply; without one if the reply has none of proper length.
    pub fn completed_by(self, reply: &[u8]) -> Self {
        let mut cookie = self;
        cookie.length = CLIENT_COOKIE_BYTES as u8;
        if let (true, 16..=40) = (self.is_repeated_by(reply), reply.len()) {
            cookie.octets[..reply.len()].copy_from_slice(reply);
            cookie.length = reply.len() as u8;
        }
        cookie
    }
}

/// The wait for a server of which nothing is known.
pub(super) const INITIAL_TIMEOUT: Duration = Duration::from_millis(400);
/// Below this, what the network does to a datagram now and then would be taken for its loss.
const MIN_TIMEOUT: Duration = Duration::from_millis(30);
/// Between two questions whether an upstream that does not answer forwards to us.
const LOOP_CHECK_PAUSE: Duration = Duration::from_secs(10);
/// Above this, one slow server would leave no time for the others.
const MAX_TIMEOUT: Duration = Duration::from_secs(1);
const FAILURES_UNTIL_PROBED: u32 = 2;
const FAILURES_UNTIL_DOWN: u32 = 3;
const FAILING_UNTIL_DOWN: Duration = Duration::from_secs(1);
const MIN_PROBE_PAUSE: Duration = Duration::from_secs(1);
const MAX_PROBE_PAUSE: Duration = Duration::from_secs(10);
const COMPLAINTS_UNTIL_LEARNED: u8 = 2;
const WITHOUT_EDNS_FOR: Duration = Duration::from_secs(300);
const LEARNED_FOR: Duration = Duration::from_secs(3600);
const CLIENT_COOKIE_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(1_000_000 + millis)
    }

    fn upstream() -> Upstream {
        Upstream::new("192.0.2.53".parse().unwrap(), Trust::Public, &Metrics::new())
    }

    fn reply_after(upstream: &Upstream, millis: u64) {
        upstream.note_reply(Rcode::NOERROR, Some(Duration::from_millis(millis)));
    }

    #[test]
    fn the_timeout_follows_the_round_trip_time() {
        let upstream = upstream();
        let timeout = || upstream.habits(at(0)).timeout.as_millis();
        assert_eq!(timeout(), 400, "nothing is known");
        reply_after(&upstream, 100);
        assert_eq!(timeout(), 300, "the first sample, and four times half of it");
        (0..50).for_each(|_| reply_after(&upstream, 100));
        assert_eq!(timeout(), 100, "a steady time needs no margin");
        (0..50).for_each(|_| reply_after(&upstream, 0));
        assert_eq!(timeout(), 30, "the floor");
        (0..50).for_each(|_| reply_after(&upstream, 3000));
        assert_eq!(timeout(), 1000, "the ceiling");
        assert_eq!(upstream.round_trip().unwrap().as_secs(), 2);
    }

    #[test]
    fn three_failures_and_a_failed_probe_make_it_down_and_one_reply_makes_it_up() {
        type Step = fn(&Upstream, Moment);
        let timeout: Step = |upstream, now| upstream.note_timeout(now);
        let broken: Step = |upstream, now| upstream.note_broken(now);
        let refused: Step = |upstream, now| upstream.note_refused(&"port closed", now);
        let reply: Step = |upstream, _| upstream.note_reply(Rcode::REFUSED, None);
        let silent_probe: Step = |upstream, now| upstream.end_probe(upstream.begin_probe(), now);
        let answered_probe: Step = |upstream, now| {
            let replies = upstream.begin_probe();
            upstream.note_reply(Rcode::REFUSED, None);
            (0..3).for_each(|_| upstream.note_timeout(now - Duration::from_secs(2)));
            upstream.end_probe(replies, now);
        };
        for (steps, up) in [
            (vec![(0, timeout), (400, timeout), (1000, timeout), (9000, timeout)], true), // a client may choose such names
            (vec![(0, timeout), (10, timeout), (20, timeout), (30, silent_probe)], true), // a burst is one event
            (vec![(0, timeout), (10, timeout), (2000, silent_probe)], true),              // two may be lost
            (vec![(0, timeout), (10, timeout), (500, timeout), (1000, silent_probe)], false),
            (vec![(0, broken), (10, broken), (500, broken), (900, timeout)], true),
            (vec![(0, broken), (10, broken), (500, broken), (1000, silent_probe)], false),
            (vec![(0, timeout), (10, timeout), (500, timeout), (9000, answered_probe)], true),
            (vec![(0, timeout), (10, timeout), (900, reply), (1000, timeout), (1010, silent_probe)], true),
            (vec![(0, refused), (0, refused), (0, refused)], false), // a closed port is no accident
            (vec![(0, refused), (0, timeout), (0, timeout), (0, refused)], true),
            (vec![(0, refused), (0, refused), (0, refused), (1, reply)], true),
            (vec![(0, refused), (0, refused), (0, reply), (0, refused)], true),
        ] {
            let upstream = upstream();
            for &(millis, step) in &steps {
                step(&upstream, at(millis));
            }
            assert_eq!(upstream.is_up(), up, "{:?}", steps.iter().map(|step| step.0).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_suspect_is_probed_once_a_second_and_one_that_is_down_later_every_ten() {
        let upstream = upstream();
        let probes = |span: std::ops::Range<u64>| -> Vec<u64> {
            span.step_by(250).filter(|&millis| upstream.take_probe(at(millis))).collect()
        };
        upstream.note_timeout(at(0));
        assert!(probes(0..5000).is_empty(), "one may be lost");
        upstream.note_timeout(at(5000));
        assert_eq!(probes(5000..8000), [5000, 6000, 7000], "however many queries fail");
        reply_after(&upstream, 1);
        assert!(probes(8000..20_000).is_empty(), "it answers");
        (0..3).for_each(|_| upstream.note_refused(&"port closed", at(20_000)));
        let probes = probes(20_000..220_000);
        assert_eq!(
            probes[..12],
            [21_000, 22_000, 23_000, 24_000, 25_000, 26_000, 27_000, 28_000, 29_000, 30_000, 31_000, 32_250]
        );
        assert_eq!(probes[probes.len() - 1] - probes[probes.len() - 2], 10_000);
        reply_after(&upstream, 1);
        assert!(!upstream.take_probe(at(300_000)), "it is up again");
    }

    #[test]
    fn what_is_learned_is_tried_again_after_a_while() {
        let upstream = upstream();
        upstream.note_without_edns(at(0));
        assert!(upstream.habits(at(0)).edns, "the complaint may be forged");
        upstream.note_edns();
        upstream.note_without_edns(at(0));
        assert!(upstream.habits(at(0)).edns, "it was");
        upstream.note_without_edns(at(0));
        assert!(!upstream.habits(at(299_000)).edns);
        assert!(upstream.habits(at(300_000)).edns);
        upstream.learn_without_letters(at(0));
        let ours = upstream.habits(at(0)).cookie;
        let learned = ours.completed_by(&[ours.octets(), &[9; 8]].concat());
        upstream.learn_cookie(learned, at(0));
        let habits = upstream.habits(at(3_599_000));
        assert!(!habits.mixed_letters);
        assert_eq!(habits.cookie, learned);
        let habits = upstream.habits(at(3_600_000));
        assert!(habits.mixed_letters);
        assert_eq!(habits.cookie.octets(), ours.octets());
    }

    #[test]
    fn a_cookie_is_completed_only_by_a_server_part_of_proper_length() {
        let cookie = Cookie::new([7; 8]);
        let reply = |length: usize| [vec![7; 8], vec![9; length]].concat();
        assert!(!cookie.is_complete() && cookie.is_repeated_by(&reply(0)));
        for (server_part, complete) in [(0, false), (7, false), (8, true), (32, true), (33, false)] {
            assert_eq!(cookie.completed_by(&reply(server_part)).is_complete(), complete, "{server_part}");
        }
        assert!(!cookie.completed_by(&[8; 24]).is_complete(), "another client's");
        let complete = cookie.completed_by(&reply(8));
        assert_eq!(complete.octets(), reply(8));
        assert!(!complete.completed_by(&[]).is_complete(), "a server may stop sending cookies");
    }
}
