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
    let took = stop(daemon, case);
    assert!(took < SECOND, "{case}: stopped after {took:?}");
}

/// Sends SIGTERM, waits for the end, and tells how long it took by the daemon's own log: what a busy machine needs to take
/// down a process without optimizations is not counted, but bounded.
fn stop(daemon: Daemon, case: &str) -> Duration {
    let start = Instant::now();
    let ended = daemon.stop();
    assert_eq!(ended.code, Some(0), "{case}");
    assert!(start.elapsed() < PATIENCE / 2, "{case}: ended after {:?}", start.elapsed());
    let time_of = |event: &str| {
        let line = ended.text.lines().rev().find(|line| line.ends_with(event)).expect("a line of the log");
        let clock = line.split(['T', 'Z']).nth(1).expect("a time of day");
        clock.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().expect("a number"))
    };
    Duration::from_secs_f64((time_of(" stopped") - time_of(" stopping")).rem_euclid(86_400.0))
}

const SECOND: Duration = Duration::from_secs(1);
