//! Attacks on memory and connections: what waits for a client is bounded in bytes, and an honest client is answered all the
//! while.

mod agents;
mod checks;
mod clients;
mod control;
mod files;
mod large;
mod origin;
mod pulses;
mod streams;

use std::time::{Duration, Instant};

use crate::harness::*;

/// How long `/live` takes; the least of some tries, for the machine may stand still.
fn live_after(daemon: &Daemon) -> Duration {
    let try_once = || {
        let start = Instant::now();
        assert_eq!(daemon.get("/live").0, 200);
        start.elapsed()
    };
    (0..5).map(|_| try_once()).find(|elapsed| *elapsed < SECOND).unwrap_or_else(try_once)
}

/// Whatever an attack has begun: half of the descriptors are left, `/live` is answered within a second, and SIGTERM is obeyed
/// within a second.
#[track_caller]
fn lives_and_ends(daemon: Daemon, case: &str) {
    let [open, most] = ["process_open_fds", "process_max_fds"].map(|name| daemon.metric(name, &[]));
    assert!(open <= most / 2.0, "{case}: {open} descriptors of {most}");
    let live = live_after(&daemon);
    assert!(live < SECOND, "{case}: /live took {live:?}");
    let start = Instant::now();
    assert_eq!(daemon.stop().code, Some(0), "{case}");
    let elapsed = start.elapsed();
    assert!(elapsed < SECOND, "{case}: stopped after {elapsed:?}");
}

const SECOND: Duration = Duration::from_secs(1);
