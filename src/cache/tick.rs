//! Moments as entries keep them: in 32 bits.

use std::time::Duration;

use crate::clock::Moment;

/// A moment in eighths of a second since the clock's origin: 32 bits last for 17 years, and whole seconds stay exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u32);

/// The lives of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) inserted: Tick,
    /// [`Tick::NEVER`] for most local data.
    pub(super) expires: Tick,
    pub(super) stale_until: Tick,
    /// The last failure to get another response stands until then.
    pub(super) failing_until: Tick,
}

impl Tick {
    /// The clock's origin.
    pub(super) const ORIGIN: Self = Self(0);
    /// Past all others.
    pub(super) const NEVER: Self = Self(u32::MAX);

    pub(super) fn after(self, span: Duration) -> Self {
        self.after_ticks(ticks_of(span))
    }

    #[inline]
    pub(super) fn after_seconds(self, seconds: u32) -> Self {
        self.after_ticks(seconds.saturating_mul(TICKS_PER_SECOND))
    }

    #[inline]
    pub(super) fn after_ticks(self, ticks: u32) -> Self {
        Self(self.0.saturating_add(ticks).min(u32::MAX - 1))
    }

    #[inline]
    pub(super) fn ticks_since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }

    #[inline]
    pub(super) fn seconds_since(self, earlier: Self) -> u32 {
        self.ticks_since(earlier) / TICKS_PER_SECOND
    }

    /// The low bits of its second.
    #[inline]
    pub(super) fn second(self) -> u8 {
        (self.0 / TICKS_PER_SECOND) as u8
    }
}

impl From<Moment> for Tick {
    fn from(moment: Moment) -> Self {
        let ticks = u128::from(moment.as_millis()) / TICK_MS;
        Self(u32::try_from(ticks).unwrap_or(u32::MAX).min(u32::MAX - 1))
    }
}

/// How many ticks a span is long.
pub(super) fn ticks_of(span: Duration) -> u32 {
    u32::try_from(span.as_millis() / TICK_MS).unwrap_or(u32::MAX)
}

const TICK_MS: u128 = 1000 / TICKS_PER_SECOND as u128;
const TICKS_PER_SECOND: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_are_exact_and_the_end_of_time_is_not_never() {
        for start_ms in [0, 124, 125, 999, 1000, 2_592_000_001] {
            let start = Moment::from_millis(start_ms);
            for secs in [0, 1, 10, 86_400] {
                let later = Tick::from(start + Duration::from_secs(secs));
                assert_eq!(later, Tick::from(start).after(Duration::from_secs(secs)));
                assert_eq!(later, Tick::from(start).after_seconds(secs as u32));
                assert_eq!(u64::from(later.seconds_since(start.into())), secs);
            }
        }
        assert!(Tick::from(Moment::from_millis(u64::MAX)) < Tick::NEVER);
        assert!(Tick(5).after(Duration::MAX) < Tick::NEVER);
        assert!(Tick(5).after_seconds(u32::MAX) < Tick::NEVER);
    }
}
