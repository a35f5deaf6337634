//! How many queries a server answers on one connection, and how soon another connection may be opened.
//!
//! Servers close connections after so many queries: dnsmasq after 100, dnsdist after `maxTCPQueriesPerConnection`, some DoT
//! servers after each. The queries that are open then go out again on a new connection (RFC 7766 §6.2.4). So that few have
//! to, a connection is given no more queries than the one that was closed had answered. That limit doubles whenever a
//! connection has answered as many and its server leaves it open.
//!
//! A server that closes connections without having answered anything is not flooded with new ones: the first waits for
//! 50 ms, the next twice as long, up to 400 ms, whoever needs it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// What is known of one server, shared by its connections.
#[derive(Debug)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Queries for one connection; `usize::MAX` while the server is not known to close any.
    most_queries: usize,
    /// Connections in a row that were closed without an answer.
    fruitless: u32,
    /// When the next connection may be opened.
    open_at: Option<Instant>,
}

impl Pace {
    /// The number of queries that one connection may be given.
    pub fn most_queries(&self) -> usize {
        self.0.lock().most_queries
    }

    /// When the next connection may be opened; `None` for at once.
    pub fn open_at(&self) -> Option<Instant> {
        self.0.lock().open_at
    }

    /// A connection has brought an answer.
    pub fn note_answer(&self) {
        let mut state = self.0.lock();
        (state.fruitless, state.open_at) = (0, None);
    }

    /// A server has closed a connection on which so many queries were answered, with others open or not.
    pub fn note_closed(&self, answered: usize, has_open: bool, now: Instant) {
        let mut state = self.0.lock();
        match answered {
            0 => {
                let delay = FIRST_DELAY * (1 << state.fruitless.min(MOST_DOUBLINGS));
                state.fruitless = state.fruitless.saturating_add(1);
                state.open_at = Some(now + delay);
            }
            _ if has_open => state.most_queries = answered,
            _ => {}
        }
    }

    /// A connection has had as many queries as it may, answered all of them, and is open still.
    pub fn note_left_open(&self, queries: usize) {
        let mut state = self.0.lock();
        // Others may have found out as much meanwhile.
        if state.most_queries <= queries {
            state.most_queries = if queries > MOST_LIMIT / 2 { usize::MAX } else { queries * 2 };
        }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(State { most_queries: usize::MAX, fruitless: 0, open_at: None }))
    }
}

const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Up to 400 ms.
const MOST_DOUBLINGS: u32 = 3;
/// A server that answers more than this on one connection has no limit that matters.
const MOST_LIMIT: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_bring_nothing_are_opened_ever_more_slowly() {
        let pace = Pace::default();
        let now = Instant::now();
        assert_eq!(pace.open_at(), None);
        for delay_ms in [50, 100, 200, 400, 400] {
            pace.note_closed(0, true, now);
            assert_eq!(pace.open_at(), Some(now + Duration::from_millis(delay_ms)));
        }
        pace.note_answer();
        assert_eq!(pace.open_at(), None);
        pace.note_closed(7, true, now);
        assert_eq!(pace.open_at(), None, "it had answered something");
        pace.note_closed(0, true, now);
        assert_eq!(pace.open_at(), Some(now + FIRST_DELAY), "from the beginning");
    }

    #[test]
    fn the_limit_follows_what_the_server_does() {
        let pace = Pace::default();
        let now = Instant::now();
        pace.note_closed(3, false, now);
        assert_eq!(pace.most_queries(), usize::MAX, "no query suffered");
        pace.note_closed(3, true, now);
        assert_eq!(pace.most_queries(), 3);
        pace.note_left_open(3);
        pace.note_left_open(3);
        assert_eq!(pace.most_queries(), 6, "once for each limit");
        pace.note_closed(0, true, now);
        assert_eq!(pace.most_queries(), 6);
        for _ in 0..10 {
            pace.note_left_open(pace.most_queries());
        }
        assert_eq!(pace.most_queries(), usize::MAX);
    }
}
