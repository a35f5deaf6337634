//! Which changes of the catalog become lines of the log, so that none floods it.
//!
//! Many changes at once are one line with their numbers. Changes that come one after the other have a line each, up to a rate;
//! those beyond it are counted, and the numbers are logged from time to time. A check that changes again and again is said to
//! flap, and from then on logged once a minute.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    catalog::{CheckChange, InstanceKey, NodeKey, Notice, Noticed},
    clock::Moment,
    escape::shorten,
};

/// What has been logged of late, and what has not.
pub(super) struct Changes {
    /// So many lines may follow at once.
    credit: f64,
    credited: Moment,
    /// What was not logged, since when.
    held: Option<(Moment, Counts)>,
    checks: HashMap<(NodeKey, Arc<str>), Flaps>,
}

/// A line of the log.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// One change.
    One(Notice),
    /// A check changes again and again; how often it did within the last minute.
    Flaps(CheckChange, u32),
    /// Many changes.
    Many(Counts),
}

/// How many changes there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    joined: usize,
    left: usize,
    checks: usize,
    primaries: usize,
}

/// How a check has changed of late.
struct Flaps {
    since: Moment,
    changes: u32,
    is_flapping: bool,
}

impl Default for Changes {
    fn default() -> Self {
        Self { credit: BURST, credited: Moment::default(), held: None, checks: HashMap::new() }
    }
}

impl Changes {
    /// The lines for what was noticed at one time. Checks of which `is_told` says so are told of elsewhere.
    pub fn note(&mut self, noticed: Noticed, now: Moment, is_told: impl Fn(&CheckChange) -> bool) -> Vec<Line> {
        let Noticed { mut first, joined, left, mut checks } = noticed;
        first.retain(|notice| {
            let is_told = matches!(notice, Notice::Check(change) if is_told(change));
            checks -= usize::from(is_told);
            !is_told
        });
        if joined + left + checks > MOST_AT_ONCE {
            let primaries = first.extract_if(.., |notice| matches!(notice, Notice::Primary { .. }));
            let primaries: Vec<_> = primaries.collect();
            let many = Line::Many(Counts { joined, left, checks, primaries: 0 });
            return std::iter::once(many).chain(primaries.into_iter().filter_map(|one| self.one(one, now))).collect();
        }
        first.into_iter().filter_map(|notice| self.one(notice, now)).collect()
    }

    /// The line for a change of a check, if it is to have one.
    pub fn note_check(&mut self, change: CheckChange, now: Moment) -> Option<Line> {
        self.one(Notice::Check(change), now)
    }

    /// The line for what has not been logged, if it is time for it.
    pub fn overdue(&mut self, now: Moment) -> Option<Line> {
        let (since, counts) = self.held?;
        if now.since(since) < SUMMARY_INTERVAL {
            return None;
        }
        self.held = None;
        Some(Line::Many(counts))
    }

    fn one(&mut self, notice: Notice, now: Moment) -> Option<Line> {
        let line = match notice {
            Notice::Check(change) => match self.flaps(&change, now) {
                None => return None,
                Some(1..=STEADY) => Line::One(Notice::Check(change)),
                Some(changes) => Line::Flaps(change, changes),
            },
            other => Line::One(other),
        };
        if self.is_affordable(now) {
            return Some(line);
        }
        let (_, held) = self.held.get_or_insert((now, Counts::default()));
        match line {
            Line::One(Notice::Joined(_)) => held.joined += 1,
            Line::One(Notice::Left(_)) => held.left += 1,
            Line::One(Notice::Primary { .. }) => held.primaries += 1,
            Line::One(Notice::Check(_)) | Line::Flaps(..) => held.checks += 1,
            Line::Many(_) => {}
        }
        None
    }

    /// How often the check has changed within the last minute, if this change is to be logged.
    fn flaps(&mut self, change: &CheckChange, now: Moment) -> Option<u32> {
        if self.checks.len() > MOST_CHECKS {
            self.checks.retain(|_, flaps| now.since(flaps.since) < MINUTE);
        }
        if self.checks.len() > MOST_CHECKS {
            self.checks.clear();
        }
        let key = (change.node.clone(), change.check.clone());
        let calm = Flaps { since: now, changes: 0, is_flapping: false };
        let flaps = self.checks.entry(key).or_insert(calm);
        let age = now.since(flaps.since);
        if age >= MINUTE {
            // A check that has flapped within the last minute but one goes on flapping.
            let is_flapping = flaps.changes > STEADY && age < 2 * MINUTE;
            let changes = flaps.changes;
            *flaps = Flaps { since: now, changes: 1, is_flapping };
            return Some(if is_flapping { changes } else { 1 });
        }
        flaps.changes += 1;
        if flaps.changes <= STEADY + 1 && !flaps.is_flapping { Some(flaps.changes) } else { None }
    }

    fn is_affordable(&mut self, now: Moment) -> bool {
        self.credit = (self.credit + now.since(self.credited).as_secs_f64() * LINES_PER_SECOND).min(BURST);
        self.credited = now;
        let is_affordable = self.credit >= 1.0;
        if is_affordable {
            self.credit -= 1.0;
        }
        is_affordable
    }
}

impl Line {
    /// Writes the line into the log.
    pub fn log(&self) {
        match self {
            Self::One(Notice::Joined(instance)) => {
                let registration = &instance.registration;
                let address = registration.address.as_ref().map(|address| address.to_string());
                tracing::info!(
                    service = &*registration.service,
                    id = &*registration.id,
                    node = registration.node.name(),
                    address,
                    port = registration.port,
                    status = %instance.status(),
                    "instance joined"
                );
            }
            Self::One(Notice::Left(instance)) => {
                let registration = &instance.registration;
                let (service, id, node) = (&*registration.service, &*registration.id, registration.node.name());
                tracing::info!(service, id, node, "instance left");
            }
            Self::One(Notice::Check(CheckChange { node, service, check, from, to, output })) => {
                let output = shorten(output, MOST_OUTPUT);
                tracing::info!(
                    service = service.as_deref(),
                    node = node.name(),
                    check = &**check,
                    %from,
                    status = %to,
                    output,
                    "check changed state"
                );
            }
            Self::One(Notice::Primary { service, from, to, reason }) => {
                let name = |key: &InstanceKey| format!("{} on {}", key.id, key.node.name());
                let (from, to) = (from.as_ref().map(name), name(to));
                tracing::info!(service = &**service, from, to, reason = %reason, "primary moved");
            }
            Self::Flaps(CheckChange { node, service, check, to, output, .. }, changes) => {
                let output = shorten(output, MOST_OUTPUT);
                tracing::warn!(
                    service = service.as_deref(),
                    node = node.name(),
                    check = &**check,
                    status = %to,
                    output,
                    changes,
                    "check flaps; its changes are logged once a minute now"
                );
            }
            Self::Many(Counts { joined, left, checks, primaries }) => {
                tracing::info!(joined, left, checks, primaries, "many changes of the catalog");
            }
        }
    }
}

/// So many changes at once have a line each.
const MOST_AT_ONCE: usize = 20;
/// So many lines may follow each other at any rate.
const BURST: f64 = 40.0;
const LINES_PER_SECOND: f64 = 2.0;
/// How long changes without a line are counted before the numbers are logged.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);
/// A check that changes no more often than this within a minute does not flap.
const STEADY: u32 = 6;
const MINUTE: Duration = Duration::from_secs(60);
/// Changes of so many checks are remembered.
const MOST_CHECKS: usize = 10_000;
/// So many characters of an output are logged.
const MOST_OUTPUT: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Instance, Registration, Role, Weights, health::Status};

    fn at(second: u64) -> Moment {
        Moment::from_millis(1_000_000 + second * 1000)
    }

    fn change(check: &str) -> CheckChange {
        CheckChange {
            node: NodeKey::new("dc1", "own"),
            service: None,
            check: check.into(),
            from: Status::Passing,
            to: Status::Critical,
            output: "refused".into(),
        }
    }

    fn joined(id: &str) -> Notice {
        let registration = Registration {
            node: NodeKey::new("dc1", "own"),
            id: id.into(),
            service: "web".into(),
            tags: vec![],
            address: None,
            port: 80,
            tagged: Default::default(),
            meta: Default::default(),
            weights: Weights::default(),
            role: Role::Plain,
        };
        Notice::Joined(Instance { registration: registration.into(), checks: vec![] }.into())
    }

    #[test]
    fn ten_thousand_instances_at_once_are_one_line() {
        let mut changes = Changes::default();
        let noticed = Noticed { first: vec![joined("a"); 64], joined: 10_000, left: 0, checks: 0 };
        let lines = changes.note(noticed, at(0), |_| false);
        assert_eq!(lines, [Line::Many(Counts { joined: 10_000, ..Counts::default() })]);
        let noticed = Noticed { first: vec![joined("a"), joined("b")], joined: 2, left: 0, checks: 0 };
        assert_eq!(changes.note(noticed, at(0), |_| false), [Line::One(joined("a")), Line::One(joined("b"))]);
    }

    #[test]
    fn changes_that_come_one_by_one_are_logged_up_to_a_rate_and_counted_beyond_it() {
        let mut changes = Changes::default();
        let lines = (0..1000).filter_map(|number| changes.note_check(change(&format!("c{number}")), at(0))).count();
        assert_eq!(lines, BURST as usize);
        assert_eq!(changes.overdue(at(9)), None);
        let counts = Counts { checks: 1000 - lines, ..Counts::default() };
        assert_eq!(changes.overdue(at(10)), Some(Line::Many(counts)));
        assert_eq!(changes.overdue(at(30)), None, "said once");
        assert!(changes.note_check(change("later"), at(30)).is_some());
    }

    #[test]
    fn a_check_that_flaps_is_logged_once_a_minute() {
        let mut changes = Changes::default();
        let mut lines = Vec::new();
        for second in 0..240 {
            lines.extend(changes.note_check(change("a"), at(second)).map(|line| (second, line)));
        }
        let seconds: Vec<u64> = lines.iter().map(|(second, _)| *second).collect();
        assert_eq!(seconds, [0, 1, 2, 3, 4, 5, 6, 60, 120, 180]);
        assert_eq!(lines[6].1, Line::Flaps(change("a"), 7));
        assert_eq!(lines[7].1, Line::Flaps(change("a"), 60));
        assert_eq!(changes.note_check(change("b"), at(200)), Some(Line::One(Notice::Check(change("b")))));
        assert_eq!(changes.note_check(change("a"), at(600)), Some(Line::One(Notice::Check(change("a")))), "calm again");
    }

    #[test]
    fn what_is_told_elsewhere_has_no_second_line() {
        let noticed = Noticed { first: vec![Notice::Check(change("a"))], joined: 0, left: 0, checks: 1 };
        assert_eq!(Changes::default().note(noticed, at(0), |_| true), []);
    }

    #[test]
    fn the_memory_of_checks_is_bounded() {
        let mut changes = Changes::default();
        for number in 0..3 * MOST_CHECKS {
            changes.note_check(change(&format!("c{number}")), at(0));
        }
        assert!(changes.checks.len() <= MOST_CHECKS + 1);
    }
}
