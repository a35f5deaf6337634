//! What is known of one check, and how a result changes it.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{definition::Thresholds, guard::Reach, schedule::Pace};
use crate::{
    catalog::health::Status,
    clock::{Moment, Offset},
};

/// What a probe has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub status: Status,
    pub output: String,
    pub reach: Reach,
}

/// The state of one check.
#[derive(Debug)]
pub(super) struct State {
    status: Status,
    output: Arc<str>,
    since: Moment,
    /// Results in a row that were not critical, or that were. Unknown as long as there was none.
    row: Option<Row>,
    reach: Reach,
    reach_since: Moment,
    pub pace: Pace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
enum Row {
    Successes(u32),
    Failures(u32),
}

/// What is kept of a state for the next process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Saved {
    status: Status,
    output: Arc<str>,
    since: Offset,
    row: Option<Row>,
    reach: Reach,
    reach_since: Offset,
    pace: Pace,
}

impl State {
    pub fn new(initial: Status, now: Moment) -> Self {
        Self {
            status: initial,
            output: Arc::from(""),
            since: now,
            row: None,
            reach: Reach::Unknown,
            reach_since: now,
            pace: Pace::First,
        }
    }

    /// The state that was saved at `origin`.
    pub fn restore(saved: Saved, origin: Moment) -> Self {
        let Saved { status, output, since, row, reach, reach_since, pace } = saved;
        let (since, reach_since) = (origin.at(since), origin.at(reach_since));
        Self { status, output, since, row, reach, reach_since, pace }
    }

    /// What the next process has to know, with times relative to `now`.
    pub fn save(&self, now: Moment) -> Saved {
        let Self { status, ref output, since, row, reach, reach_since, pace } = *self;
        let (since, reach_since) = (since.offset(now), reach_since.offset(now));
        Saved { status, output: output.clone(), since, row, reach, reach_since, pace }
    }

    /// What a result changes that matters to later results: one that leaves it the same was a repetition.
    pub fn weight(&self, thresholds: Thresholds) -> impl PartialEq + use<> {
        let most = thresholds.passing.max(thresholds.warning).max(thresholds.critical);
        let row = self.row.map(|row| match row {
            Row::Successes(row) => Row::Successes(row.min(most)),
            Row::Failures(row) => Row::Failures(row.min(most)),
        });
        (self.status, row, self.reach)
    }

    pub fn status(&self) -> Status {
        self.status
    }

    pub fn output(&self) -> &Arc<str> {
        &self.output
    }

    /// Whether a probe has had a result since the check is what it is.
    pub fn has_result(&self) -> bool {
        self.row.is_some()
    }

    /// Since when the status is what it is.
    pub fn since(&self) -> Moment {
        self.since
    }

    /// What the last probe has said of the way to the host, and since when it answers or does not.
    pub fn reach(&self) -> (Reach, Moment) {
        (self.reach, self.reach_since)
    }

    /// The check is another one from now on, but is what it was until there is a result.
    pub fn start_over(&mut self) {
        self.row = None;
        self.pace = Pace::First;
    }

    /// Takes the result of a probe. True, if status or output are now different.
    ///
    /// As in Consul, a warning is a success to the thresholds, a failure below both thresholds leaves everything as it
    /// was, and the first result of all counts at once.
    pub fn settle(&mut self, outcome: Outcome, thresholds: Thresholds, now: Moment) -> bool {
        if self.reach == Reach::Unknown || (self.reach == Reach::Answered) != (outcome.reach == Reach::Answered) {
            self.reach_since = now;
        }
        self.reach = outcome.reach;
        let is_first = self.row.is_none();
        let row = match (self.row, outcome.status) {
            (Some(Row::Failures(row)), Status::Critical) => Row::Failures(row.saturating_add(1)),
            (_, Status::Critical) => Row::Failures(1),
            (Some(Row::Successes(row)), _) => Row::Successes(row.saturating_add(1)),
            _ => Row::Successes(1),
        };
        self.row = Some(row);
        let status = match row {
            _ if is_first => outcome.status,
            Row::Successes(row) if row >= thresholds.passing => outcome.status,
            Row::Failures(row) if row >= thresholds.critical => Status::Critical,
            // Consul would lift a critical check to warning here, for failing again.
            Row::Failures(row) if row >= thresholds.warning => self.status.max(Status::Warning),
            _ => {
                // The thresholds are meant in intervals.
                self.pace = Pace::Steady;
                return false;
            }
        };
        if status != self.status && !is_first {
            self.pace = Pace::QUICK;
        }
        self.tell(status, outcome.output.into(), now)
    }

    /// Takes a status as it is. True, if status or output are now different.
    pub fn tell(&mut self, status: Status, output: Arc<str>, now: Moment) -> bool {
        if status == self.status && output == self.output {
            return false;
        }
        if status != self.status {
            self.since = now;
        }
        (self.status, self.output) = (status, output);
        true
    }

    /// Nothing was told for too long.
    pub fn expire(&mut self, now: Moment) -> bool {
        let output = match &*self.output {
            "" => "TTL expired".to_owned(),
            last if last.starts_with("TTL expired") => last.to_owned(),
            last => format!("TTL expired (last output before timeout follows): {last}"),
        };
        self.tell(Status::Critical, output.into(), now)
    }
}

/// The beginning of an output, with a note if that is not all.
pub(super) fn head(output: &str, limit: usize) -> Cow<'_, str> {
    if output.len() <= limit {
        return Cow::Borrowed(output);
    }
    let kept = (0..=limit).rev().find(|&at| output.is_char_boundary(at)).unwrap_or(0);
    Cow::Owned(format!("{} ... (captured {kept} of {} bytes)", &output[..kept], output.len()))
}

#[cfg(test)]
mod tests {
    use Status::{Critical, Passing, Warning};

    use super::*;

    fn outcome(status: Status) -> Outcome {
        Outcome { status, output: status.to_string(), reach: Reach::Answered }
    }

    fn at(second: u64) -> Moment {
        Moment::from_millis(second * 1000)
    }

    #[test]
    fn thresholds_are_counted_as_consul_counts_them() {
        let none = Thresholds { passing: 0, warning: 0, critical: 0 };
        let three = Thresholds { passing: 3, warning: 3, critical: 3 };
        let graded = Thresholds { passing: 2, warning: 2, critical: 4 };
        for (thresholds, results, expected) in [
            (none, vec![Passing, Critical, Warning, Passing], vec![Passing, Critical, Warning, Passing]),
            // The first result counts at once, the others in rows.
            (three, vec![Passing, Critical, Critical, Critical], vec![Passing, Passing, Passing, Critical]),
            (three, vec![Critical, Passing, Passing, Passing], vec![Critical, Critical, Critical, Passing]),
            (three, vec![Passing, Critical, Critical, Passing, Critical, Critical], vec![Passing; 6]),
            // A warning is a success.
            (three, vec![Critical, Passing, Warning, Warning], vec![Critical, Critical, Critical, Warning]),
            (
                graded,
                vec![Passing, Critical, Critical, Critical, Critical],
                vec![Passing, Passing, Warning, Warning, Critical],
            ),
            // What is critical does not become better by failing again.
            (
                graded,
                vec![Critical, Passing, Critical, Critical, Passing, Passing],
                vec![Critical, Critical, Critical, Critical, Critical, Passing],
            ),
        ] {
            let mut state = State::new(Critical, at(0));
            let states: Vec<Status> = (1..)
                .zip(&results)
                .map(|(second, &status)| {
                    state.settle(outcome(status), thresholds, at(second));
                    state.status()
                })
                .collect();
            assert_eq!(states, expected, "{thresholds:?} {results:?}");
        }
    }

    #[test]
    fn only_what_is_different_is_news() {
        let thresholds = Thresholds { passing: 0, warning: 0, critical: 0 };
        let mut state = State::new(Critical, at(0));
        assert!(state.settle(outcome(Critical), thresholds, at(1)), "an output");
        assert!(!state.settle(outcome(Critical), thresholds, at(2)), "the same again");
        assert_eq!(state.since(), at(0));
        assert!(state.settle(outcome(Passing), thresholds, at(3)));
        assert_eq!(state.since(), at(3));
    }

    #[test]
    fn a_change_quickens_the_pace() {
        let thresholds = Thresholds { passing: 2, warning: 0, critical: 0 };
        let mut state = State::new(Critical, at(0));
        for (status, expected) in [
            (Passing, Pace::First), // the first result is no change
            (Critical, Pace::QUICK),
            (Passing, Pace::Steady), // which a threshold must not gain from
            (Passing, Pace::QUICK),
        ] {
            state.settle(outcome(status), thresholds, at(1));
            assert_eq!(state.pace, expected, "{status}");
        }
    }

    #[test]
    fn a_silent_ttl_check_is_critical_and_says_what_it_heard_last() {
        for (told, expected) in
            [(None, "TTL expired"), (Some("all well"), "TTL expired (last output before timeout follows): all well")]
        {
            let mut state = State::new(Passing, at(0));
            if let Some(told) = told {
                state.tell(Passing, told.into(), at(1));
            }
            assert!(state.expire(at(9)));
            assert_eq!((state.status(), &**state.output(), state.since()), (Critical, expected, at(9)));
        }
    }

    #[test]
    fn outputs_are_cut_between_letters() {
        for (output, limit, expected) in [
            ("plain", 5, "plain"),
            ("plainer", 5, "plain ... (captured 5 of 7 bytes)"),
            ("aäö", 4, "aä ... (captured 3 of 5 bytes)"),
            ("€", 2, " ... (captured 0 of 3 bytes)"),
        ] {
            assert_eq!(head(output, limit), expected, "{output} {limit}");
        }
    }
}
