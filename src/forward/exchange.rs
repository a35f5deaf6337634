//! The attempts of one query, as logic without socket or clock.
//!
//! The first upstream in order is asked. When its reply is overdue (srtt + 4 rttvar, then doubling) the next one is
//! asked, and when all have been, those that are silent are asked again in turn, as far as the group's budget for
//! resends goes. An upstream is asked with the same id, letters and socket each time, and every attempt stays open until
//! the deadline: a late reply is as good as any. A network error, or a reply that says no more than "ask somebody
//! else", sends the query on at once. When nobody is left, the best of the failures is the response, with an
//! extended error (RFC 8914).
//!
//! Two kinds of replies are not believed at once. A datagram without the question may come from a forger who knows no more
//! than port and id: a better one is waited for, for one resend interval. And some servers, behind recursors above all,
//! compare the letters of names: where the first query has mixed letters, what it brings is believed only if that is an
//! answer. A denial, a failure or silence has the same upstream asked once more, in plain letters.
//!
//! Whoever drives an exchange does its [`Action`]s and tells it [`Event`]s; an attempt is known by its number.

use std::{sync::Arc, time::Duration};

use rand::{Rng, RngExt};
use smallvec::SmallVec;

use super::{
    Group, Upstream,
    attempt::{Attempt, Doubtful, Reason, State, mix_letters},
    event::{Action, Event, Failure, Options, Outcome, PATIENCE},
    group::Order,
    transport::Retries,
    upstream::INITIAL_TIMEOUT,
    verdict::{Doubt, Over, Verdict, is_complaint, judge},
};
use crate::{
    clock::Moment,
    wire::{ExtendedError, Match, Question, Rcode, Received, Response, flag},
};

/// A query on its way to a response.
#[derive(Debug)]
pub struct Exchange {
    group: Arc<Group>,
    question: Question,
    options: Options,
    deadline: Moment,
    patience_ends: Option<Moment>,
    /// Places in the group; those before `attempts.len()` have been asked. One that stands here again is asked once more.
    order: Order,
    attempts: SmallVec<[Attempt; 1]>,
    /// The attempt sent last: it is the one whose reply is awaited.
    current: usize,
    resend_at: Moment,
    /// How often the wait for a reply has been in vain.
    overdue: u32,
    best_failure: Option<Box<Response>>,
    /// In the order in which they are to be done.
    actions: SmallVec<[Action; 1]>,
    is_finished: bool,
}

impl Exchange {
    /// Begins: the first action is there to be taken.
    pub fn new(group: Arc<Group>, question: &Question, options: Options, now: Moment, rng: &mut impl Rng) -> Self {
        let mut exchange = Self {
            order: group.order(rng),
            group,
            question: question.clone(),
            options,
            deadline: now + options.timeout,
            patience_ends: options.patience.map(|patience| now + patience),
            attempts: SmallVec::new(),
            current: 0,
            resend_at: now,
            overdue: 0,
            best_failure: None,
            actions: SmallVec::new(),
            is_finished: false,
        };
        if !exchange.ask_next(now, rng) {
            exchange.fail();
        }
        exchange
    }

    /// What is asked.
    pub fn question(&self) -> &Question {
        &self.question
    }

    /// Who is asked.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Takes the next action; `None` until the next event.
    pub fn next_action(&mut self) -> Option<Action> {
        (!self.actions.is_empty()).then(|| self.actions.remove(0))
    }

    /// Puts back an action that another driver shall do.
    pub(super) fn put_back(&mut self, action: Action) {
        self.actions.insert(0, action);
    }

    /// When to tell it [`Event::Time`].
    pub fn wake_at(&self) -> Moment {
        let doubtful = self.attempts.iter().filter_map(|attempt| Some(attempt.doubtful.as_ref()?.until)).min();
        let next = self.deadline.min(self.resend_at).min(doubtful.unwrap_or(self.deadline));
        self.patience_ends.map_or(next, |patience_ends| next.min(patience_ends))
    }

    /// How often a query goes out again that a server leaves open when it closes the stream.
    pub(super) fn stream_retries(&self, now: Moment) -> Retries {
        match self.attempts.len() < self.order.len() {
            true => Retries::Answered,
            false => Retries::For(self.deadline.since(now)),
        }
    }

    /// The id of an attempt's query.
    pub fn id(&self, attempt: usize) -> u16 {
        self.attempts.get(attempt).map_or(0, |attempt| attempt.id)
    }

    /// Writes an attempt's query into `out`, which is emptied first.
    pub fn write_query(&self, attempt: usize, out: &mut Vec<u8>) {
        out.clear();
        if let Some(attempt) = self.attempts.get(attempt) {
            let url = self.group.upstreams()[attempt.place].url();
            attempt.query(&self.question, self.options, url).write(out);
        }
    }

    /// Takes in what has happened. Afterwards there may be actions, and another time to wake at.
    pub fn handle(&mut self, event: Event<'_>, now: Moment, rng: &mut impl Rng) {
        if self.is_finished {
            return;
        }
        match event {
            Event::Time => self.on_time(now, rng),
            Event::Failed { attempt, error } if self.is_waiting(attempt) => {
                match self.attempts[attempt].state {
                    State::Waiting(Over::Udp) => self.upstream(attempt).note_refused(error, now),
                    _ => self.upstream(attempt).note_broken(now),
                }
                self.fail_attempt(attempt, Reason::Network, now, rng);
            }
            Event::Reply { attempt, wire } if self.is_waiting(attempt) => self.on_reply(attempt, wire, now, rng),
            Event::Unsent { attempt } if self.is_waiting(attempt) => {
                self.fail_attempt(attempt, Reason::Unsent, now, rng);
            }
            // Of an attempt that is over.
            Event::Failed { .. } | Event::Unsent { .. } | Event::Reply { .. } => {}
        }
    }

    /// Ends at once: there is no room for this query.
    pub fn give_up(mut self, reason: &str) -> Outcome {
        self.best_failure = None;
        self.failure(ExtendedError { code: EDE_OTHER, text: reason.into() })
    }

    fn is_waiting(&self, attempt: usize) -> bool {
        self.attempts.get(attempt).is_some_and(|attempt| matches!(attempt.state, State::Waiting(_)))
    }

    fn upstream(&self, attempt: usize) -> &Arc<Upstream> {
        &self.group.upstreams()[self.attempts[attempt].place]
    }

    /// Asks the next upstream that has not been asked; false if there is none.
    fn ask_next(&mut self, now: Moment, rng: &mut impl Rng) -> bool {
        let Some(&place) = self.order.get(self.attempts.len()) else { return false };
        let upstream = &self.group.upstreams()[place];
        let habits = upstream.habits(now);
        let over = if upstream.takes_datagrams() { Over::Udp } else { Over::Stream };
        // Whatever follows the first attempt follows it because that has failed, perhaps for its letters.
        let mixes = over == Over::Udp && habits.mixed_letters && self.group.mixes_letters() && self.attempts.is_empty();
        let qname = if mixes { mix_letters(&self.question.qname, rng) } else { self.question.qname.clone() };
        let is_mixed = qname.wire() != self.question.qname.wire();
        self.attempts.push(Attempt { is_mixed, ..Attempt::new(place, over, rng.random(), qname, habits, now) });
        self.group.note_send();
        upstream.note_sent(false);
        self.send(self.attempts.len() - 1, habits.timeout, now);
        true
    }

    fn send_again(&mut self, index: usize, now: Moment) {
        let upstream = self.upstream(index);
        upstream.note_sent(true);
        let timeout = upstream.habits(now).timeout;
        self.send(index, timeout, now);
    }

    /// Sends again what is not the same any more: its time counts from now.
    fn send_changed(&mut self, index: usize, now: Moment) {
        let attempt = &mut self.attempts[index];
        attempt.sent_at = now;
        attempt.doubtful = None;
        self.send_again(index, now);
    }

    /// `timeout` is the upstream's.
    fn send(&mut self, index: usize, timeout: Duration, now: Moment) {
        let upstream = Arc::clone(self.upstream(index));
        self.actions.push(match self.attempts[index].state {
            State::Waiting(Over::Stream) => Action::SendStream { attempt: index, upstream },
            _ => Action::SendUdp { attempt: index, upstream },
        });
        self.current = index;
        self.resend_at = now + self.patience_with(index, timeout);
    }

    /// How long to wait for the reply to an attempt just sent.
    fn patience_with(&self, index: usize, timeout: Duration) -> Duration {
        let timeout = match self.attempts[index].state {
            // A stream may have to be opened first, which takes a round trip or two more.
            State::Waiting(Over::Stream) => (3 * timeout).max(INITIAL_TIMEOUT),
            _ => timeout,
        };
        self.resend_pause(timeout) * (1 << self.overdue.min(MAX_DOUBLINGS))
    }

    /// The usual wait for a reply, but no more than leaves time for another before a deadline that is short.
    fn resend_pause(&self, timeout: Duration) -> Duration {
        timeout.min(self.options.timeout * 2 / 5)
    }

    fn on_time(&mut self, now: Moment, rng: &mut impl Rng) {
        if now >= self.deadline {
            for index in 0..self.attempts.len() {
                if self.is_waiting(index) {
                    self.note_overdue(index, now);
                    self.attempts[index].state = State::Failed(Reason::Silence);
                }
            }
            self.fail();
            return;
        }
        for index in 0..self.attempts.len() {
            if let Some(doubtful) = self.attempts[index].doubtful.take_if(|doubtful| now >= doubtful.until)
                && let State::Waiting(over) = self.attempts[index].state
            {
                self.take_in(index, over, *doubtful.verdict, None, now, rng);
            }
        }
        if self.is_finished {
            return;
        }
        if self.patience_ends.is_some_and(|patience_ends| now >= patience_ends) {
            self.patience_ends = Some(now + PATIENCE);
            self.actions.push(Action::OutOfPatience);
        }
        if now < self.resend_at {
            return;
        }
        if self.is_waiting(self.current) {
            self.note_overdue(self.current, now);
        }
        self.overdue += 1;
        if self.ask_next(now, rng) {
            return;
        }
        let count = self.attempts.len();
        let silent =
            (1..=count).map(|step| (self.current + step) % count).find(|&index| self.attempts[index].is_silent());
        match silent {
            Some(index) if self.group.take_resend(now) => match self.attempts[index].is_mixed {
                true => self.ask_plainly(index, now, rng),
                false => self.send_again(index, now),
            },
            _ => {
                let timeout = self.upstream(self.current).habits(now).timeout;
                self.resend_at = now + self.patience_with(self.current, timeout);
            }
        }
    }

    /// Counts a timeout, once for each attempt: a name that is slow to resolve is no sign of a server that is down.
    fn note_overdue(&mut self, index: usize, now: Moment) {
        if !std::mem::replace(&mut self.attempts[index].is_overdue, true) {
            self.upstream(index).note_timeout(now);
        }
    }

    fn on_reply(&mut self, index: usize, wire: &[u8], now: Moment, rng: &mut impl Rng) {
        let attempt = &self.attempts[index];
        let State::Waiting(over) = attempt.state else { return };
        let verdict = judge(&attempt.asked(&self.question, over), wire);
        if let Verdict::Unasked(verdict) = verdict {
            self.upstream(index).note_wrong();
            let until = now + self.resend_pause(self.upstream(index).habits(now).timeout);
            self.attempts[index].doubtful.get_or_insert(Doubtful { until, verdict });
            return;
        }
        let elapsed = now.since(attempt.sent_at);
        self.take_in(index, over, verdict, Some(elapsed), now, rng);
    }

    /// Acts on what a reply is worth. `elapsed` is the time that it took, unless that is not known.
    fn take_in(
        &mut self,
        index: usize,
        over: Over,
        verdict: Verdict,
        elapsed: Option<Duration>,
        now: Moment,
        rng: &mut impl Rng,
    ) {
        if self.attempts[index].is_mixed && verdict.is_denial_or_failure(self.question.qtype) {
            return self.confirm_plainly(index, over, verdict, elapsed, now, rng);
        }
        match verdict {
            Verdict::Wrong => self.on_wrong_reply(index, now),
            Verdict::Doubtful(doubt) => {
                self.upstream(index).note_wrong();
                self.attempts[index].doubt = Some(doubt);
                let place = self.attempts[index].place;
                if doubt == Doubt::Letters && self.order.iter().filter(|&&of| of == place).count() == 1 {
                    self.attempts[index].is_replaced = true;
                    // Should there be no stream. A forger gains nothing: he has to guess another id and port, too.
                    self.order.push(place);
                }
                self.ask_over_stream(index, now);
            }
            Verdict::Truncated(rcode) => {
                self.note_reply(index, over, rcode, elapsed);
                self.ask_over_stream(index, now);
            }
            Verdict::WithoutEdns(received) => {
                self.learn(index, &received, now);
                self.note_reply(index, over, received.response.rcode(), elapsed);
                let attempt = &mut self.attempts[index];
                attempt.edns = false;
                attempt.edns_dropped = true;
                self.send_changed(index, now);
            }
            Verdict::BadCookie(received) => {
                self.learn(index, &received, now);
                self.note_reply(index, over, Rcode::BADCOOKIE, elapsed);
                let attempt = &mut self.attempts[index];
                attempt.cookie = attempt.cookie.completed_by(&received.cookie);
                // Refused twice it is no use; TCP proves our address as well (RFC 7873 §5.3).
                match std::mem::replace(&mut attempt.cookie_refused, true) {
                    false => self.send_changed(index, now),
                    true if over == Over::Udp => self.ask_over_stream(index, now),
                    true => self.fail_attempt(index, Reason::Reply, now, rng),
                }
            }
            Verdict::Broken | Verdict::Unasked(_) => {
                self.upstream(index).note_wrong();
                self.fail_attempt(index, Reason::Reply, now, rng);
            }
            Verdict::Failing(received) => {
                self.learn(index, &received, now);
                self.note_reply(index, over, received.response.rcode(), elapsed);
                self.keep_failure(received);
                self.fail_attempt(index, Reason::Reply, now, rng);
            }
            Verdict::Good(received) => {
                self.learn(index, &received, now);
                self.note_reply(index, over, received.response.rcode(), elapsed);
                self.succeed(index, received.response);
            }
        }
    }

    /// Does not believe what mixed letters have brought: asks the same upstream once more, in plain letters, unless it has
    /// been asked so.
    fn confirm_plainly(
        &mut self,
        index: usize,
        over: Over,
        verdict: Verdict,
        elapsed: Option<Duration>,
        now: Moment,
        rng: &mut impl Rng,
    ) {
        match verdict {
            Verdict::Good(received) | Verdict::Failing(received) | Verdict::WithoutEdns(received) => {
                self.learn(index, &received, now);
                self.note_reply(index, over, received.response.rcode(), elapsed);
                self.keep_failure(received);
            }
            _ => self.upstream(index).note_wrong(),
        }
        self.set_failed(index, Reason::Reply);
        if self.attempts[index].is_replaced {
            self.go_on(now, rng);
        } else {
            self.ask_plainly(index, now, rng);
        }
    }

    /// Asks the upstream of an attempt with mixed letters in plain ones, with another id and from another port.
    fn ask_plainly(&mut self, index: usize, now: Moment, rng: &mut impl Rng) {
        self.attempts[index].is_replaced = true;
        self.order.insert(self.attempts.len(), self.attempts[index].place);
        self.ask_next(now, rng);
    }

    fn on_wrong_reply(&mut self, index: usize, now: Moment) {
        self.upstream(index).note_wrong();
        self.attempts[index].wrong_replies += 1;
        if self.attempts[index].wrong_replies >= MAX_WRONG_REPLIES {
            self.ask_over_stream(index, now);
        }
    }

    fn note_reply(&self, index: usize, over: Over, rcode: Rcode, elapsed: Option<Duration>) {
        let upstream = self.upstream(index);
        let is_usual = (over == Over::Udp) == upstream.takes_datagrams();
        upstream.note_reply(rcode, elapsed.filter(|_| is_usual));
    }

    /// Draws from a reply that can be believed what holds for the queries to come.
    fn learn(&self, index: usize, received: &Received, now: Moment) {
        let (attempt, upstream) = (&self.attempts[index], self.upstream(index));
        // If the stream repeats the letters, somebody else has sent the reply that did not.
        let match_by_stream = || received.answers(&attempt.qname, self.question.qtype, self.question.qclass);
        if attempt.doubt == Some(Doubt::Letters) && match_by_stream() == Match::OtherLetters {
            upstream.learn_without_letters(now);
        }
        if attempt.edns_dropped && !is_complaint(received.response.rcode()) {
            upstream.note_without_edns(now);
        } else if attempt.edns && received.has_edns {
            upstream.note_edns();
        }
        if attempt.edns && !upstream.url().is_encrypted() {
            let cookie = attempt.cookie.completed_by(&received.cookie);
            // That a server has no cookie any more is believed only where nobody can have cut it out.
            if attempt.doubt == Some(Doubt::Cookie) || cookie.is_complete() && cookie != attempt.cookie {
                upstream.learn_cookie(cookie, now);
            }
        }
    }

    /// Goes on with the same upstream over its stream.
    fn ask_over_stream(&mut self, index: usize, now: Moment) {
        self.actions.push(Action::CloseUdp { attempt: index });
        self.attempts[index].state = State::Waiting(Over::Stream);
        self.send_changed(index, now);
    }

    fn fail_attempt(&mut self, index: usize, reason: Reason, now: Moment, rng: &mut impl Rng) {
        self.set_failed(index, reason);
        self.go_on(now, rng);
    }

    fn set_failed(&mut self, index: usize, reason: Reason) {
        if self.attempts[index].state == State::Waiting(Over::Udp) {
            self.actions.push(Action::CloseUdp { attempt: index });
        }
        self.attempts[index].state = State::Failed(reason);
    }

    /// Asks who has not been asked. If there is none, and no reply is awaited, that is the end.
    fn go_on(&mut self, now: Moment, rng: &mut impl Rng) {
        if !self.ask_next(now, rng) && !(0..self.attempts.len()).any(|other| self.is_waiting(other)) {
            self.fail();
        }
    }

    /// Keeps the failing response that says most: SERVFAIL is a finding, REFUSED may be a matter of who asks.
    fn keep_failure(&mut self, received: Received) {
        let rcode = received.response.rcode();
        let is_better = match &self.best_failure {
            None => matches!(rcode, Rcode::SERVFAIL | Rcode::REFUSED),
            Some(known) => rcode == Rcode::SERVFAIL && known.rcode() == Rcode::REFUSED,
        };
        if is_better {
            let mut failure = Response::error(&self.question, rcode, &[]);
            failure.add_encoded_errors(received.response.extended_errors());
            self.best_failure = Some(failure.into());
        }
    }

    fn succeed(&mut self, index: usize, mut response: Response) {
        let upstream = Arc::clone(self.upstream(index));
        response.set_letters(&self.question.qname);
        if response.expand_names().is_err() {
            return self.fail(); // never: the names were read before
        }
        response.set_flag(flag::AA, false);
        response.set_flag(flag::RA, true);
        if !self.group.trusts_ad(&upstream) {
            response.set_flag(flag::AD, false);
        }
        self.finish(Outcome { response: Ok(response), upstream: Some(upstream) });
    }

    fn fail(&mut self) {
        let is_last = |index: &usize| {
            let place = self.attempts[*index].place;
            !self.attempts[index + 1..].iter().any(|later| later.place == place)
        };
        let last: Vec<usize> = (0..self.attempts.len()).filter(is_last).collect();
        let count = |reason| last.iter().filter(|&&index| self.attempts[index].state == State::Failed(reason)).count();
        let network = count(Reason::Network) + count(Reason::Unsent);
        let (silent, replied) = (count(Reason::Silence), count(Reason::Reply));
        let code = if network > 0 && silent + replied == 0 { EDE_NETWORK_ERROR } else { EDE_NO_REACHABLE_AUTHORITY };
        let parts = [(silent, "silent"), (network, "unreachable"), (replied, "failing")];
        let parts: Vec<String> =
            parts.iter().filter(|part| part.0 > 0).map(|(count, what)| format!("{count} {what}")).collect();
        let text = match last.len() {
            0 => "the rule has no upstreams".into(),
            asked => format!("of {asked} upstreams {}", parts.join(", ")),
        };
        let outcome = self.failure(ExtendedError { code, text });
        self.finish(outcome);
    }

    fn failure(&mut self, error: ExtendedError) -> Outcome {
        let best = self.best_failure.take().map(|best| *best);
        let mut response = best.unwrap_or_else(|| Response::error(&self.question, Rcode::SERVFAIL, &[]));
        response.set_flag(flag::AA, false);
        response.add_error(&error);
        let was_sent = self.attempts.iter().any(|attempt| attempt.state != State::Failed(Reason::Unsent));
        Outcome { response: Err(Failure { response, was_sent }), upstream: None }
    }

    fn finish(&mut self, outcome: Outcome) {
        self.is_finished = true;
        self.actions.push(Action::Finish(outcome));
    }
}

/// After this many somebody is guessing at the id, and UDP is closed to him.
const MAX_WRONG_REPLIES: u32 = 3;
/// Enough for the deadline to come first.
const MAX_DOUBLINGS: u32 = 10;
/// Extended errors (RFC 8914 §4).
const EDE_OTHER: u16 = 0;
const EDE_NO_REACHABLE_AUTHORITY: u16 = 22;
const EDE_NETWORK_ERROR: u16 = 23;

#[cfg(test)]
#[path = "exchange_tests.rs"]
mod tests;
