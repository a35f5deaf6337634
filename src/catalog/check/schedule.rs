//! Which check is due when.

use std::{collections::BTreeSet, time::Duration};

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// At most one moment for each of many keys, in order.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    order: BTreeSet<(Moment, usize)>,
    /// By key. A heap would do without, but keep every moment that was put off.
    due: Vec<Option<Moment>>,
}

impl Schedule {
    /// Sets the moment for a key in place of any that it had.
    pub fn set(&mut self, key: usize, at: Option<Moment>) {
        if self.due.len() <= key {
            self.due.resize(key + 1, None);
        }
        if let Some(old) = std::mem::replace(&mut self.due[key], at) {
            self.order.remove(&(old, key));
        }
        if let Some(new) = at {
            self.order.insert((new, key));
        }
    }

    /// The first of all moments.
    pub fn next(&self) -> Option<Moment> {
        self.order.first().map(|&(at, _)| at)
    }

    /// Takes out the first key that is due.
    pub fn take_due(&mut self, now: Moment) -> Option<usize> {
        let &(at, key) = self.order.first().filter(|(at, _)| *at <= now)?;
        self.order.remove(&(at, key));
        self.due[key] = None;
        Some(key)
    }
}

/// How a check is paced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum Pace {
    /// It has not run yet: at once, for until then nothing is known of its service.
    First,
    /// It is to run again earlier than planned, as many others are.
    Soon,
    /// It has run once: at any point of the interval, for all that were started together did so at once. The range is as long
    /// as the interval, so that their starts are even from there on.
    Spread,
    /// Its status has changed: so many times more often than usual, to see where it leads.
    Quick(u8),
    /// As its interval says.
    Steady,
}

impl Pace {
    /// After a change of status.
    pub const QUICK: Self = Self::Quick(3);

    /// The wait until the next start, and the pace from there on.
    pub fn step(self, interval: Duration, rng: &mut impl Rng) -> (Duration, Self) {
        match self {
            Self::First => (interval.min(FIRST_SPREAD).mul_f64(rng.random()), Self::Spread),
            Self::Soon => (interval.min(START_SPREAD).mul_f64(rng.random()), Self::Spread),
            Self::Spread => (interval.mul_f64(rng.random_range(0.1..=1.1)), Self::Steady),
            Self::Quick(more) => {
                let wait = (interval / QUICKER).max(MIN_WAIT).min(interval);
                (jittered(wait, rng), if more > 1 { Self::Quick(more - 1) } else { Self::Steady })
            }
            Self::Steady => (jittered(interval, rng), Self::Steady),
        }
    }
}

/// The next start of a check that was started and has just ended. It counts from the start, so that the interval is
/// kept whatever a run takes; but a check that takes longer than that must not run without a pause.
pub(super) fn next_start(started: Moment, wait: Duration, now: Moment) -> Moment {
    (started + wait).max(now + wait.min(MIN_WAIT))
}

/// The next start of a check whose probe was to start at `due` according to an earlier process, and had its last result at
/// `result`.
///
/// The schedule goes on. Probes that became due meanwhile are spread over as much time as has passed since, so that they
/// come no faster than they would have come.
pub(super) fn resumed_start(
    due: Moment,
    result: Moment,
    interval: Duration,
    now: Moment,
    rng: &mut impl Rng,
) -> Moment {
    // The interval may be shorter than it was.
    let due = due.min(result + interval.mul_f64(1.0 + JITTER));
    if due > now {
        return due;
    }
    now + now.since(due).min(interval).min(START_SPREAD).mul_f64(rng.random())
}

fn jittered(wait: Duration, rng: &mut impl Rng) -> Duration {
    wait.mul_f64(rng.random_range(1.0 - JITTER..=1.0 + JITTER))
}

/// The first run comes within this time. Questions may wait for it; how much is done at once is bounded elsewhere.
const FIRST_SPREAD: Duration = Duration::from_millis(100);
/// A run that is to come soon comes within this time.
const START_SPREAD: Duration = Duration::from_secs(3);
const MIN_WAIT: Duration = Duration::from_secs(1);
const QUICKER: u32 = 5;
/// Part of the wait by which it varies, lest checks of many hosts fall into step.
const JITTER: f64 = 0.05;

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn keys_come_when_they_are_due_and_once() {
        let mut schedule = Schedule::default();
        schedule.set(7, Some(at(30)));
        schedule.set(2, Some(at(10)));
        schedule.set(4, Some(at(20)));
        schedule.set(2, Some(at(40))); // put off
        schedule.set(4, None); // called off
        assert_eq!(schedule.next(), Some(at(30)));
        assert_eq!(schedule.take_due(at(29)), None);
        assert_eq!(schedule.take_due(at(100)), Some(7));
        assert_eq!(schedule.take_due(at(100)), Some(2));
        assert_eq!((schedule.take_due(at(100)), schedule.next()), (None, None));
    }

    #[test]
    fn a_schedule_goes_on_and_what_became_due_meanwhile_is_spread() {
        let rng = &mut SmallRng::seed_from_u64(1);
        for (case, due, result, interval, now, expected) in [
            ("due later", 18_000, 8_000, 10, 12_000, 18_000..=18_000),
            ("due now", 12_000, 2_000, 10, 12_000, 12_000..=12_000),
            ("just overdue", 11_900, 2_000, 10, 12_000, 12_000..=12_100),
            ("long overdue", 18_000, 8_000, 10, 90_000, 90_000..=93_000),
            ("long overdue, short interval", 18_000, 8_000, 1, 90_000, 90_000..=91_000),
            ("the interval is shorter now", 608_000, 8_000, 10, 12_000, 18_500..=18_500),
            ("the interval is longer now", 18_000, 8_000, 600, 12_000, 18_000..=18_000),
        ] {
            let starts: Vec<u64> = (0..200)
                .map(|_| resumed_start(at(due), at(result), Duration::from_secs(interval), at(now), rng).as_millis())
                .collect();
            assert!(starts.iter().all(|start| expected.contains(start)), "{case}: {starts:?}");
            let (low, high) = (starts.iter().min().unwrap(), starts.iter().max().unwrap());
            assert!((high - low) * 10 >= (expected.end() - expected.start()) * 9, "{case}: uses the whole range");
        }
    }

    #[test]
    fn starts_are_spread_and_intervals_kept() {
        let rng = &mut SmallRng::seed_from_u64(1);
        let seconds = Duration::from_secs;
        for (pace, interval, least, most, then) in [
            (Pace::First, seconds(600), 0, 100, Pace::Spread),
            (Pace::Soon, seconds(600), 0, 3000, Pace::Spread),
            (Pace::Soon, seconds(1), 0, 1000, Pace::Spread),
            (Pace::Spread, seconds(10), 1000, 11_000, Pace::Steady),
            (Pace::Steady, seconds(10), 9500, 10_500, Pace::Steady),
            (Pace::Quick(3), seconds(10), 1900, 2100, Pace::Quick(2)),
            (Pace::Quick(1), seconds(2), 950, 1050, Pace::Steady), // no more often than once a second
        ] {
            let waits: Vec<u128> = (0..500)
                .map(|_| {
                    let (wait, next) = pace.step(interval, rng);
                    assert_eq!(next, then, "{pace:?}");
                    wait.as_millis()
                })
                .collect();
            let (low, high) = (*waits.iter().min().unwrap(), *waits.iter().max().unwrap());
            assert!(least <= low && high <= most, "{pace:?} {interval:?}: {low} to {high}");
            assert!(
                high - low > (most - least) * 9 / 10,
                "{pace:?} {interval:?} uses the whole range: {low} to {high}"
            );
        }
    }

    #[test]
    fn a_check_longer_than_its_interval_pauses() {
        for (started, wait, now, expected) in [
            (0, 10_000, 40, 10_000),
            (0, 10_000, 9_500, 10_500),  // almost the interval
            (0, 10_000, 30_000, 31_000), // a script that timed out
        ] {
            assert_eq!(next_start(at(started), Duration::from_millis(wait), at(now)), at(expected), "{started} {now}");
        }
    }
}
