//! Which instances of a service are given, where that is more than a matter of health.
//!
//! Under `all` every healthy instance is given, as Consul does. Under `one` a single one is: the single writer, the
//! leader. It stays where it is while it is healthy. When it fails, the best of the others takes over at once; when a
//! better one is back, it takes over only after it has been healthy for `hold_down`, so that a writer does not move
//! twice for one restart.
//!
//! Two guards stand beside this. With fewer than `min_healthy` healthy instances, those that failed last stay in the
//! answer: better an instance that may be ill than none. Never under `one`, where a second writer is worse than none,
//! and never one that an operator has taken out. And who has failed three times within ten times `damping` must be
//! healthy for `damping` before it is given again.
//!
//! An instance without a result is not given, but has not failed either. Under `one` the choice is open for as long as questions
//! wait for the result of a better instance; an instance that is given stays the primary however good a later result is.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::model::{Instance, InstanceKey, Registration};
use crate::clock::{Moment, Offset};

/// How the instances of a service are chosen, section `[catalog.service.NAME]`. Instead, each key may stand in the `meta`
/// of the service's instances, as `watershed-policy`, `watershed-hold-down` and so on; the section outranks them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// "all": every healthy instance; "one": a single one, which stays while it is healthy. Default "all". Applies at
    /// reload.
    pub policy: Policy,
    /// For "one": instances by their node, id or address, the best first; those not named come after all of them.
    /// Default: none is better than another. Applies at reload.
    pub order: Vec<String>,
    /// For "one": an instance with this tag is better than one without; `order` decides first. Default: none. Applies
    /// at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefer_tag: Option<String>,
    /// For "one": how long a better instance must be healthy before it takes over from a healthy one. Default "1m", from
    /// "0s" to "1d". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub hold_down: Duration,
    /// For "all": with fewer healthy instances than this, those that failed last stay in the answer. Default 0, which lets
    /// the name vanish with its last healthy instance; up to 1000. Applies at reload.
    pub min_healthy: usize,
    /// How long an instance that has failed three times within ten times this span must be healthy before it is given
    /// again. Default "0s", which is at once; up to "1h". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub damping: Duration,
}

/// How many instances are given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Every healthy one.
    #[default]
    All,
    /// A single one.
    One,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::One => "one",
        })
    }
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            policy: Policy::All,
            order: Vec::new(),
            prefer_tag: None,
            hold_down: Duration::from_secs(60),
            min_healthy: 0,
            damping: Duration::ZERO,
        }
    }
}

impl Rules {
    /// The keys whose values are out of range, each with the range.
    pub fn out_of_range(&self) -> Vec<(&'static str, &'static str)> {
        let mut keys = Vec::new();
        if self.hold_down > Duration::from_secs(24 * 3600) {
            keys.push(("hold_down", "from \"0s\" to \"1d\""));
        }
        if self.min_healthy > 1000 {
            keys.push(("min_healthy", "from 0 to 1000"));
        }
        if self.damping > Duration::from_secs(3600) {
            keys.push(("damping", "from \"0s\" to \"1h\""));
        }
        keys
    }

    /// What the first instances say in their `meta` that say something, key by key; but if any says "one", it is "one".
    /// What cannot be read is passed over.
    pub fn from_instances(instances: &[Arc<Instance>]) -> Option<Self> {
        let mut rules = Self::default();
        let mut is_written = false;
        let mut is_one = false;
        // The last is read first, so that the first has the last word.
        for instance in instances.iter().rev() {
            for (key, value) in &instance.registration.meta {
                if key.starts_with(META_PREFIX) {
                    is_written |= rules.read(key, value).is_ok();
                    is_one |= rules.policy == Policy::One;
                }
            }
        }
        if is_one {
            rules.policy = Policy::One;
        }
        is_written.then_some(rules)
    }

    /// Takes in what an instance says in its meta, if the key is one of ours; an error says what could have been written.
    pub fn read(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        let duration = |range| humantime_serde::re::humantime::parse_duration(value).map_err(|_| range);
        let mut new = self.clone();
        match key.strip_prefix(META_PREFIX) {
            Some("policy") => {
                new.policy = match value {
                    "all" => Policy::All,
                    "one" => Policy::One,
                    _ => return Err("\"all\" or \"one\""),
                }
            }
            Some("order") => new.order = value.split(',').map(|part| part.trim().to_owned()).collect(),
            Some("prefer-tag") => new.prefer_tag = Some(value.to_owned()),
            Some("hold-down") => new.hold_down = duration("a span such as \"1m\"")?,
            Some("min-healthy") => new.min_healthy = value.parse().map_err(|_| "a number")?,
            Some("damping") => new.damping = duration("a span such as \"30s\"")?,
            Some(_) => return Err("policy, order, prefer-tag, hold-down, min-healthy or damping behind watershed-"),
            None => return Ok(()),
        }
        if let Some((_, range)) = new.out_of_range().first() {
            return Err(range);
        }
        *self = new;
        Ok(())
    }

    /// Whether any of it differs from what everybody else does.
    pub fn rules_anything(&self) -> bool {
        self.policy == Policy::One || self.min_healthy > 0 || !self.damping.is_zero()
    }

    /// Whether it prefers some where all are given.
    pub fn has_idle_preference(&self) -> bool {
        self.policy == Policy::All && (!self.order.is_empty() || self.prefer_tag.is_some())
    }

    /// The smaller, the better under `one`.
    pub fn rank(&self, registration: &Registration) -> (usize, bool) {
        let place = self.order.iter().position(|written| is_meant(written, registration)).unwrap_or(self.order.len());
        let is_preferred = |tag: &String| registration.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
        (place, !self.prefer_tag.as_ref().is_none_or(is_preferred))
    }
}

/// Whether an entry of `order` means this instance.
pub fn is_meant(written: &str, registration: &Registration) -> bool {
    written.eq_ignore_ascii_case(registration.node.name())
        || *written == *registration.id
        || registration.address.is_some() && written.parse().ok() == registration.address
}

/// An instance that might be given.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Which.
    pub key: InstanceKey,
    /// How well its checks speak of it.
    pub health: Health,
    /// See [`Rules::rank`].
    pub rank: (usize, bool),
}

/// What matters here of an instance's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It may be given.
    Healthy,
    /// It may be given only for lack of others.
    Failed,
    /// A check has no result yet, for which questions wait until then. It is not given, but it has not failed either.
    Unknown(Moment),
    /// An operator has taken it out.
    Withdrawn,
}

/// What is to be given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Choice {
    /// The places of the chosen among the candidates, in their order.
    pub chosen: Vec<usize>,
    /// Among them are some that are not healthy, for there are too few others.
    pub guarded: bool,
    /// Under `one`, until when a result may come in that changes the choice. Nobody is to be given it before.
    pub open_until: Option<Moment>,
    /// When to choose again, even if nothing has changed until then.
    pub wake: Option<Moment>,
}

/// What is remembered of a service from one choice to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// When the first choice was made.
    began: Option<Moment>,
    primary: Option<InstanceKey>,
    /// The instance that becomes the primary then, if no result changes that before.
    next: Option<(InstanceKey, Moment)>,
    members: HashMap<InstanceKey, Member>,
}

/// What is remembered of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Member {
    healthy_since: Option<Moment>,
    /// When it failed, the latest first.
    failures: [Option<Moment>; FLAPS],
    /// It was healthy before it became unknown.
    was_healthy: bool,
    is_unknown: bool,
    /// Another became the primary while this one was unknown.
    is_late: bool,
}

/// What is kept of a service's state for the next process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Saved {
    began: Option<Offset>,
    primary: Option<InstanceKey>,
    members: Vec<SavedMember>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
struct SavedMember {
    key: InstanceKey,
    healthy_since: Option<Offset>,
    /// The latest first.
    failures: Vec<Offset>,
    #[serde(default)]
    was_healthy: bool,
    #[serde(default)]
    is_late: bool,
}

impl State {
    /// What the next process has to know, with times relative to `now`.
    pub fn save(&self, now: Moment) -> Saved {
        let mut members: Vec<_> = self.members.iter().map(|(key, member)| member.save(key, now)).collect();
        members.sort_by(|a, b| a.key.cmp(&b.key));
        Saved { began: self.began.map(|began| began.offset(now)), primary: self.primary.clone(), members }
    }

    /// The state that was saved at `origin`.
    pub fn restore(saved: Saved, origin: Moment) -> Self {
        let at = |offset: Offset| origin.at(offset);
        let member = |saved: SavedMember| {
            let mut failures = saved.failures.into_iter().map(at);
            let failures = [(); FLAPS].map(|()| failures.next());
            let healthy_since = saved.healthy_since.map(at);
            let (was_healthy, is_late) = (saved.was_healthy, saved.is_late);
            (saved.key, Member { healthy_since, failures, was_healthy, is_unknown: false, is_late })
        };
        let members = saved.members.into_iter().map(member).collect();
        Self { began: saved.began.map(at), primary: saved.primary, next: None, members }
    }

    /// The instance that is given under `one`, or was given last.
    pub fn primary(&self) -> Option<&InstanceKey> {
        self.primary.as_ref()
    }

    /// Chooses among `candidates`, which come in an order that does not change without need.
    pub fn choose(&mut self, rules: &Rules, candidates: &[Candidate], now: Moment) -> Choice {
        if let Some((next, _)) = self.next.take_if(|(_, until)| *until <= now) {
            self.appoint(next);
        }
        self.next = None;
        self.observe(candidates, now);
        let began = *self.began.get_or_insert(now);
        let mut choice = Choice::default();
        let mut wake_at = |moment: Moment| {
            choice.wake = Some(choice.wake.map_or(moment, |earlier| earlier.min(moment)));
        };
        let mut fit = Vec::new();
        for (place, candidate) in candidates.iter().enumerate() {
            let Some(since) = self.members[&candidate.key].healthy_since else { continue };
            match self.members[&candidate.key].damped_until(rules.damping, since) {
                Some(until) if until > now => wake_at(until),
                _ => fit.push(place),
            }
        }
        match rules.policy {
            Policy::All => {
                choice.chosen = fit;
                let lacking = rules.min_healthy.saturating_sub(choice.chosen.len());
                if lacking > 0 {
                    self.readmit(candidates, lacking, &mut choice);
                }
            }
            Policy::One => {
                let best = fit.iter().copied().min_by_key(|&place| candidates[place].rank);
                let current = fit.iter().copied().find(|&place| self.primary.as_ref() == Some(&candidates[place].key));
                let chosen = match (current, best) {
                    (Some(current), Some(best)) if candidates[best].rank < candidates[current].rank => {
                        let (held_until, is_back) = self.members[&candidates[best].key].held(rules.hold_down);
                        // While all is new, checks finish in no particular order: that is no move back.
                        let is_start = !is_back && now.since(began) < rules.hold_down;
                        if is_start || held_until <= now {
                            Some(best)
                        } else {
                            wake_at(held_until);
                            Some(current)
                        }
                    }
                    (current, best) => current.or(best),
                };
                if current.is_none() {
                    choice.open_until = self.open_until(candidates, best, now);
                }
                // With none to give, the last keeps its claim until another takes over.
                if let Some(chosen) = chosen {
                    let key = candidates[chosen].key.clone();
                    match choice.open_until {
                        Some(until) => self.next = Some((key, until)),
                        None => self.appoint(key),
                    }
                }
                choice.open_until.into_iter().for_each(wake_at);
                choice.chosen = chosen.into_iter().collect();
            }
        }
        choice
    }

    /// Makes this the primary. Whoever is unknown now comes too late to have been it.
    fn appoint(&mut self, key: InstanceKey) {
        if self.primary.as_ref() != Some(&key) {
            self.members.values_mut().for_each(|member| member.is_late |= member.is_unknown);
            self.primary = Some(key);
        }
    }

    /// Until when a result may come in that counts for more than the best instance so far: that of the present primary, or
    /// without one, that of a better instance.
    fn open_until(&self, candidates: &[Candidate], best: Option<usize>, now: Moment) -> Option<Moment> {
        let counts = |place: usize| match (&self.primary, best) {
            (_, None) => true,
            (Some(primary), Some(_)) => candidates[place].key == *primary,
            (None, Some(best)) => (candidates[place].rank, place) < (candidates[best].rank, best),
        };
        let awaited = candidates.iter().enumerate().filter_map(|(place, candidate)| match candidate.health {
            Health::Unknown(until) if until > now && counts(place) => Some(until),
            _ => None,
        });
        awaited.max()
    }

    /// Notes who has failed and who has recovered, and forgets who is gone.
    fn observe(&mut self, candidates: &[Candidate], now: Moment) {
        let mut before = std::mem::take(&mut self.members);
        for candidate in candidates {
            let mut member = before.remove(&candidate.key).unwrap_or_default();
            match (candidate.health, member.healthy_since) {
                (Health::Healthy, None) => (member.healthy_since, member.was_healthy) = (Some(now), false),
                (Health::Failed, since) if since.is_some() || member.was_healthy => {
                    member.failures.rotate_right(1);
                    member.failures[0] = Some(now);
                    (member.healthy_since, member.was_healthy) = (None, false);
                }
                (Health::Unknown(_), Some(_)) => (member.healthy_since, member.was_healthy) = (None, true),
                (Health::Withdrawn, _) => member = Member::default(),
                _ => {}
            }
            member.is_unknown = matches!(candidate.health, Health::Unknown(_));
            self.members.insert(candidate.key.clone(), member);
        }
    }

    /// Adds as many of those that failed last.
    fn readmit(&self, candidates: &[Candidate], lacking: usize, choice: &mut Choice) {
        let failed_at = |place: &usize| self.members[&candidates[*place].key].failures[0];
        let mut failed: Vec<usize> = (0..candidates.len())
            .filter(|place| !choice.chosen.contains(place) && failed_at(place).is_some())
            .collect();
        failed.sort_by_key(|place| std::cmp::Reverse(failed_at(place)));
        failed.truncate(lacking);
        choice.guarded = !failed.is_empty();
        choice.chosen.append(&mut failed);
        choice.chosen.sort_unstable();
    }
}

impl Member {
    fn save(&self, key: &InstanceKey, now: Moment) -> SavedMember {
        SavedMember {
            key: key.clone(),
            healthy_since: self.healthy_since.map(|since| since.offset(now)),
            failures: self.failures.iter().flatten().map(|failure| failure.offset(now)).collect(),
            was_healthy: self.was_healthy,
            is_late: self.is_late,
        }
    }

    /// Until when it is held back for its flapping, healthy as it has been since then.
    fn damped_until(&self, damping: Duration, since: Moment) -> Option<Moment> {
        let (last, first) = (self.failures[0]?, self.failures[FLAPS - 1]?);
        (last.since(first) <= damping * 10).then(|| since + damping)
    }

    /// From when it may take over from a healthy one, and whether it has failed before or came too late.
    fn held(&self, hold_down: Duration) -> (Moment, bool) {
        (self.healthy_since.unwrap_or_default() + hold_down, self.failures[0].is_some() || self.is_late)
    }
}

/// What the keys of an instance's meta begin with that are read here.
const META_PREFIX: &str = "watershed-";
/// So many failures are flapping.
const FLAPS: usize = 3;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::catalog::{NodeKey, Role, Weights};

    fn registration(node: &str) -> Registration {
        Registration {
            node: NodeKey::new("dc1", node),
            id: "db-1".into(),
            service: "db".into(),
            tags: vec!["Primary".into()],
            address: "192.0.2.1".parse().ok(),
            port: 0,
            tagged: BTreeMap::new(),
            meta: BTreeMap::new(),
            weights: Weights::default(),
            role: Role::Plain,
        }
    }

    /// Candidates a, b, c of falling rank: `+` healthy, `-` failed, `!` withdrawn, `?` unknown and awaited until second 2, a
    /// blank for one that is not there.
    fn candidates(healths: &str, ranks: [usize; 3]) -> Vec<Candidate> {
        let all = healths.chars().zip(["a", "b", "c"]).zip(ranks);
        let present = all.filter(|((health, _), _)| *health != ' ');
        let candidate = |((health, node), rank)| Candidate {
            key: InstanceKey { node: NodeKey::new("dc1", node), id: "db".into() },
            health: match health {
                '+' => Health::Healthy,
                '-' => Health::Failed,
                '?' => Health::Unknown(Moment::from_millis(1_002_000)),
                _ => Health::Withdrawn,
            },
            rank: (rank, false),
        };
        present.map(candidate).collect()
    }

    /// Plays steps of `second healths: chosen`, where an asterisk means that a guard has added some, and a question mark that
    /// the choice is open.
    fn play(rules: &Rules, ranks: [usize; 3], steps: &[(u64, &str, &str)]) {
        let mut state = State::default();
        for (second, healths, expected) in steps {
            let candidates = candidates(healths, ranks);
            let choice = state.choose(rules, &candidates, Moment::from_millis(1_000_000 + second * 1000));
            let names: Vec<_> = choice.chosen.iter().map(|&place| candidates[place].key.node.name()).collect();
            let guarded = if choice.guarded { "*" } else { "" };
            let found = format!("{}{guarded}{}", names.concat(), choice.open_until.map_or("", |_| "?"));
            assert_eq!(found, *expected, "at {second} s with {healths}");
            if let Some(wake) = choice.wake {
                assert!(wake.as_millis() > 1_000_000 + second * 1000, "a wake in the past never ends");
            }
        }
    }

    fn one() -> Rules {
        Rules { policy: Policy::One, ..Rules::default() }
    }

    #[test]
    fn one_stays_where_it_is_and_moves_back_only_after_the_hold_down() {
        play(
            &one(),
            [0, 1, 2],
            &[
                (0, "+++", "a"),
                (10, "-++", "b"),
                (20, "+++", "b"), // back, but not for long enough
                (79, "+++", "b"),
                (80, "+++", "a"),
                (90, "--+", "c"),
                (100, "-++", "c"),
                (110, "-+-", "b"), // at once when the current one fails
                (170, "-++", "b"),
                (300, "---", ""),
                (310, "--+", "c"),
            ],
        );
        // A recovery that does not last starts the hold-down anew.
        play(
            &one(),
            [0, 1, 2],
            &[
                (0, "++ ", "a"),
                (10, "-+ ", "b"),
                (20, "++ ", "b"),
                (70, "-+ ", "b"),
                (75, "++ ", "b"),
                (134, "++ ", "b"),
                (135, "++ ", "a"),
            ],
        );
    }

    #[test]
    fn without_a_preference_one_never_moves_back() {
        play(&one(), [0, 0, 0], &[(0, "+++", "a"), (10, "-++", "b"), (20, "+++", "b"), (9999, "+++", "b")]);
    }

    #[test]
    fn the_last_keeps_its_claim_while_nobody_takes_over() {
        play(&one(), [0, 0, 0], &[(0, "-+ ", "b"), (10, "-- ", ""), (20, "++ ", "b")]);
    }

    #[test]
    fn at_the_start_checks_finish_in_no_particular_order() {
        // The first whose check passes is given until the best one's does; that is no move back.
        play(&one(), [0, 1, 2], &[(0, "---", ""), (1, "--+", "c"), (2, "-++", "b"), (3, "+++", "a")]);
        // Later it is one: a new instance has to wait as well.
        play(&one(), [0, 1, 2], &[(0, " + ", "b"), (100, "++ ", "b"), (159, "++ ", "b"), (160, "++ ", "a")]);
    }

    #[test]
    fn one_waits_for_a_better_instance_only_while_questions_wait() {
        for (ranks, steps) in [
            // The best one's result is late, but in time.
            ([0, 1, 2], &[(0, "???", "?"), (1, "?+?", "b?"), (1, "?++", "b?"), (1, "+++", "a"), (2, "+++", "a")][..]),
            // A worse one is not waited for.
            ([0, 1, 2], &[(0, "???", "?"), (1, "+??", "a"), (2, "+++", "a")]),
            // The best one fails: the next is at once.
            ([0, 1, 2], &[(0, "???", "?"), (0, "?+?", "b?"), (1, "-+?", "b")]),
            // It is silent: the next is given when the time is over, and a later result has to wait for the hold-down.
            ([0, 1, 2], &[(0, "???", "?"), (1, "?+?", "b?"), (2, "?+?", "b"), (3, "++?", "b"), (63, "+++", "a")]),
            // The same if the result comes first after the time is over, before anybody has chosen again.
            ([0, 1, 2], &[(0, "?+?", "b?"), (3, "+++", "b"), (62, "+++", "b"), (63, "+++", "a")]),
            // Without a preference the first in their order is waited for, so that all resolvers choose the same.
            ([0, 0, 0], &[(0, "???", "?"), (1, "??+", "c?"), (1, "?++", "b?"), (1, "+++", "a")]),
            // Nothing is known when the time is over.
            ([0, 1, 2], &[(0, "???", "?"), (2, "???", ""), (3, "??+", "c"), (4, "?++", "c")]),
            // Who is there already stays, and who is new is not waited for.
            ([0, 1, 2], &[(0, " + ", "b"), (1, "?+?", "b"), (1, "?-+", "c")]),
            // The primary itself is waited for.
            ([0, 0, 0], &[(0, "-+ ", "b"), (1, "-? ", "?"), (1, "+? ", "a?"), (1, "++ ", "b")]),
        ] {
            play(&one(), ranks, steps);
        }
    }

    #[test]
    fn unknown_is_no_failure() {
        let rules = Rules { min_healthy: 2, damping: Duration::from_secs(10), ..Rules::default() };
        play(
            &rules,
            [0, 0, 0],
            &[
                (0, "???", ""),
                (1, "+??", "a"),
                (2, "+?-", "a"), // c has never been healthy
                (3, "++-", "ab"),
                (4, "+?-", "a"), // its check is another now
                (5, "++-", "ab"),
                (6, "+?-", "a"),
                (7, "++-", "ab"), // not damped
            ],
        );
    }

    #[test]
    fn one_is_never_two_and_never_one_that_is_ill() {
        let rules = Rules { min_healthy: 3, ..one() };
        play(&rules, [0, 0, 0], &[(0, "+++", "a"), (1, "---", ""), (2, "!!!", ""), (3, "   ", "")]);
    }

    #[test]
    fn with_too_few_healthy_ones_those_stay_that_failed_last() {
        let rules = Rules { min_healthy: 2, ..Rules::default() };
        play(
            &rules,
            [0, 0, 0],
            &[
                (0, "+++", "abc"),
                (1, "-++", "bc"),
                (2, "--+", "bc*"),
                (3, "---", "bc*"),
                (4, "+--", "ac*"),
                (5, "!--", "bc*"), // who is taken out is out
                (6, "!!!", ""),
            ],
        );
        // Who has never been healthy is not kept either.
        play(&rules, [0, 0, 0], &[(0, "---", ""), (1, "+--", "a")]);
    }

    #[test]
    fn who_flaps_must_be_healthy_for_a_while() {
        let rules = Rules { damping: Duration::from_secs(10), ..Rules::default() };
        play(
            &rules,
            [0, 0, 0],
            &[
                (0, "++ ", "ab"),
                (1, "-+ ", "b"),
                (2, "++ ", "ab"),
                (3, "-+ ", "b"),
                (4, "++ ", "ab"),
                (5, "-+ ", "b"),
                (6, "++ ", "b"), // the third time within 100 s
                (15, "++ ", "b"),
                (16, "++ ", "ab"),
                (200, "-+ ", "b"),
                (201, "++ ", "ab"), // long after
            ],
        );
        let rules = Rules { min_healthy: 1, ..rules };
        play(
            &rules,
            [0, 0, 0],
            &[
                (0, "+  ", "a"),
                (1, "-  ", "a*"),
                (2, "+  ", "a"),
                (3, "-  ", "a*"),
                (4, "+  ", "a"),
                (5, "-  ", "a*"),
                (6, "+  ", "a*"),
                (16, "+  ", "a"),
            ],
        );
    }

    #[test]
    fn an_instance_is_meant_by_its_node_id_or_address() {
        for (order, tag, expected) in [
            (&["DB1", "x"][..], None, (0, false)),
            (&["x", "db-1"], None, (1, false)),
            (&["192.0.2.1"], None, (0, false)),
            (&["192.0.2.2"], None, (1, false)),
            (&[], Some("primary"), (0, false)),
            (&[], Some("other"), (0, true)),
        ] {
            let order: Vec<String> = order.iter().map(|text| text.to_string()).collect();
            let rules = Rules { order, prefer_tag: tag.map(str::to_owned), ..one() };
            assert_eq!(rules.rank(&registration("db1")), expected, "{rules:?}");
        }
    }

    #[test]
    fn rules_are_read_from_the_meta_of_the_instances() {
        let instance = |meta: &[(&str, &str)]| {
            let meta = meta.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            Arc::new(Instance { registration: Registration { meta, ..registration("a") }.into(), checks: Vec::new() })
        };
        let rules = Rules::from_instances(&[
            instance(&[("watershed-hold-down", "5s"), ("watershed-order", "a, b")]),
            instance(&[("watershed-hold-down", "7s"), ("watershed-policy", "one"), ("watershed-min-healthy", "x")]),
            instance(&[("watershed-policy", "all")]),
        ]);
        let expected = Rules { hold_down: Duration::from_secs(5), order: vec!["a".into(), "b".into()], ..one() };
        assert_eq!(rules, Some(expected), "the first has the word, but one is one");
        assert_eq!(Rules::from_instances(&[instance(&[("other", "one")])]), None);
        for (key, value) in [
            ("watershed-policy", "some"),
            ("watershed-hold-down", "2d"),
            ("watershed-min-healthy", "-1"),
            ("watershed-damping", "x"),
            ("watershed-polcy", "one"),
        ] {
            assert!(Rules::default().read(key, value).is_err(), "{key}");
        }
    }

    #[test]
    fn a_state_goes_on_in_the_next_process() {
        let rules = Rules { policy: Policy::One, damping: Duration::from_secs(5), ..Rules::default() };
        let at = |second: u64| Moment::from_millis(second * 1000);
        let mut state = State::default();
        let ranks = [0, 1, 2];
        // a fails thrice, so b is the primary and a is damped when it is back.
        for (second, healths) in [(1, "+++"), (2, "-++"), (3, "+++"), (4, "-++"), (9, "+++"), (10, "-++"), (11, "+++")]
        {
            state.choose(&rules, &candidates(healths, ranks), at(second));
        }
        let text = serde_json::to_string(&state.save(at(12))).unwrap();
        // Another clock, four seconds later.
        let restored = State::restore(serde_json::from_str(&text).unwrap(), at(1012));
        let (mut before, mut after) = (state.clone(), restored);
        for (second, healths) in [(16, "+++"), (17, "+-+"), (18, "+++"), (80, "+++"), (81, "-++")] {
            let expected = before.choose(&rules, &candidates(healths, ranks), at(second));
            let choice = after.choose(&rules, &candidates(healths, ranks), at(second + 1000));
            assert_eq!(choice.chosen, expected.chosen, "{second}");
            assert_eq!(choice.wake.map(|wake| wake.since(at(1000))), expected.wake.map(|w| w.since(at(0))), "{second}");
        }
    }

    #[test]
    fn a_primary_of_an_earlier_process_is_waited_for() {
        let at = |second: u64| Moment::from_millis(second * 1000);
        let unknown = |healths: &str, places: &[usize]| {
            let mut all = candidates(healths, [0; 3]);
            places.iter().for_each(|&place| all[place].health = Health::Unknown(at(202)));
            all
        };
        let one = Rules { policy: Policy::One, ..Rules::default() };
        let mut state = State::default();
        state.choose(&one, &candidates("--+", [0; 3]), at(1));
        state.choose(&one, &candidates("+++", [0; 3]), at(2));
        let saved = state.save(at(3));
        let restore = || State::restore(saved.clone(), at(103));
        for (case, steps) in [
            (
                "it is healthy",
                &[(200, "+++", &[0, 1, 2][..], &[][..]), (201, "+++", &[1, 2], &[]), (201, "+++", &[1], &[2])][..],
            ),
            ("it has failed", &[(200, "+++", &[2], &[]), (201, "++-", &[], &[0])]),
            ("it is gone", &[(200, "++", &[], &[0])]),
            ("nothing is known of it for too long", &[(200, "+++", &[2], &[]), (202, "+++", &[2], &[0])]),
        ] {
            let mut state = restore();
            for (second, healths, unknowns, expected) in steps {
                let choice = state.choose(&one, &unknown(healths, unknowns), at(*second));
                // What is open is not given.
                let given = if choice.open_until.is_some() { &[][..] } else { &choice.chosen };
                assert_eq!(given, *expected, "{case}, at {second}");
            }
        }
        // Those that were healthy and fail at their first result have failed last.
        let all = Rules { min_healthy: 2, ..Rules::default() };
        let mut state = restore();
        state.choose(&all, &unknown("+++", &[0, 1, 2]), at(200));
        let choice = state.choose(&all, &candidates("+--", [0; 3]), at(201));
        assert!(choice.guarded && choice.chosen.len() == 2, "{choice:?}");
    }
}
