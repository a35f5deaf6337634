//! Monotonic time, as a plain number that tests can choose.
//!
//! Whoever runs a loop reads the clock once per round and passes the moment on; policy never reads a clock itself.

use std::{
    fs,
    ops::{Add, Sub},
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A point on the monotonic clock, in whole milliseconds since the process first asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The present. The first call is not zero, so that an age can be subtracted from it.
    pub fn now() -> Self {
        static START: OnceLock<Instant> = OnceLock::new();
        let start = START.get_or_init(Instant::now);
        Self(BEFORE_START_MS + start.elapsed().as_millis() as u64)
    }

    /// The moment this many milliseconds after the origin.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the origin.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the origin.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// The time from `earlier` until this moment; zero if `earlier` is in fact later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_millis() as u64))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, span: Duration) -> Self {
        Self(self.0.saturating_sub(span.as_millis() as u64))
    }
}

/// Seconds since 1970 on the wall clock: for SOA serials and files, never for lifetimes.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Milliseconds since 1970 on the wall clock: for numbers that go on growing in the next process.
pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// When something was saved, so that another process can tell how long ago that was.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Stamp {
    /// The kernel's id of the boot; empty if it is not known.
    boot: String,
    /// Milliseconds since the boot, time spent suspended included.
    since_boot: u64,
    /// Milliseconds since 1970 on the wall clock.
    unix: u64,
}

/// The distance of a moment from the one at which it was saved, in milliseconds; negative if it was earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Offset(i64);

impl Stamp {
    /// The present.
    pub fn now() -> Self {
        static BOOT: OnceLock<String> = OnceLock::new();
        let boot = BOOT.get_or_init(|| fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned());
        let time = clock_gettime(ClockId::Boottime);
        let since_boot = time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000;
        Self { boot: boot.clone(), since_boot, unix: unix_millis() }
    }

    /// The time from this stamp until `now`; `None` if that cannot be told.
    ///
    /// Within one boot, a clock that was set forward or back makes no difference. Otherwise the wall clock is all there is, and
    /// a stamp from its future has no age. A sandbox may hide the boot's id: then the longer of the two times counts.
    pub fn age(&self, now: &Self) -> Option<Duration> {
        let by_boot = now.since_boot.checked_sub(self.since_boot);
        let by_wall = now.unix.checked_sub(self.unix);
        let millis = if self.boot.is_empty() || now.boot.is_empty() {
            by_boot.max(by_wall)
        } else if self.boot == now.boot {
            by_boot
        } else {
            by_wall
        };
        millis.map(Duration::from_millis)
    }
}

impl Moment {
    /// How far this moment is from `now`.
    pub fn offset(self, now: Self) -> Offset {
        Offset(self.0 as i64 - now.0 as i64)
    }

    /// The moment at this distance from this one.
    pub fn at(self, offset: Offset) -> Self {
        Self(self.0.saturating_add_signed(offset.0))
    }
}

/// The kernel's id of the boot (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// A month: entries saved by an earlier process may carry times before the start of this one.
const BEFORE_START_MS: u64 = 30 * 24 * 3600 * 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_does_not_depend_on_a_clock_that_was_set_within_one_boot() {
        let stamp = |boot: &str, since_boot, unix| Stamp { boot: boot.to_owned(), since_boot, unix };
        for (case, saved, now, expected) in [
            ("plain", stamp("a", 10, 1000), stamp("a", 15, 1005), Some(5)),
            ("clock set forward", stamp("a", 10, 1000), stamp("a", 15, 9000), Some(5)),
            ("clock set back", stamp("a", 10, 1000), stamp("a", 15, 3), Some(5)),
            ("another boot", stamp("a", 10, 1000), stamp("b", 15, 1700), Some(700)),
            ("another boot, from the future", stamp("a", 10, 1000), stamp("b", 15, 999), None),
            ("boot unknown", stamp("", 10, 1000), stamp("", 15, 1700), Some(700)),
            ("boot unknown, clock set back", stamp("", 10, 1000), stamp("", 15, 3), Some(5)),
            ("boot unknown, from the future", stamp("", 10, 1000), stamp("", 5, 999), None),
            ("boot hidden since", stamp("a", 10, 1000), stamp("", 5, 1001), Some(1)),
            ("same boot, from the future", stamp("a", 10, 1000), stamp("a", 9, 2000), None),
        ] {
            assert_eq!(saved.age(&now), expected.map(Duration::from_millis), "{case}");
        }
        let now = Stamp::now();
        assert!(now.age(&Stamp::now()).unwrap() < Duration::from_secs(60));
    }

    #[test]
    fn a_moment_is_found_again_by_its_offset() {
        let now = Moment::from_millis(500);
        for millis in [0, 499, 500, 700] {
            let moment = Moment::from_millis(millis);
            assert_eq!(now.at(moment.offset(now)), moment);
        }
        assert_eq!(
            Moment::from_millis(3).at(Moment::from_millis(0).offset(now)),
            Moment::from_millis(0),
            "not before the origin"
        );
    }
}
