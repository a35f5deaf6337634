//! The rows of the table: how a server is set up, what load runs, and which figures come out.

use std::{thread, time::Duration};

use anyhow::ensure;

use super::{
    client::Transport,
    load::{Between, Load, Names},
    parts::Manner,
    peers::{ANSWER, FORWARD, Installed, Own, Setup},
    plan::Plan,
    server::{Cost, Server, Upstream},
    traffic::{BLOCKED, FIRST_NEW, MIXED, NEW_NAMES, SERVICES},
};

pub struct Scenario {
    /// What `--only` names it.
    pub key: &'static str,
    /// The figures, with their units; in them `HITS`, `KEPT` and the like are the plan's numbers.
    pub rows: &'static [Row],
    /// The part of this program that is the limit, if there is one.
    pub limit: Option<&'static str>,
    pub upstream: Where,
    pub manner: Manner,
    pub setup: fn(&Plan, Setup) -> Setup,
    pub runs: Runs,
    pub measure: fn(&Bench, &Installed) -> anyhow::Result<Vec<f64>>,
}

pub struct Row {
    pub title: &'static str,
    /// Digits behind the point.
    pub digits: usize,
}

/// Where the upstream seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Where {
    Loopback,
    /// On another host, so that servers take care whom they believe.
    Elsewhere,
}

/// How often it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    Repeated,
    /// It takes long.
    Once,
}

/// What a scenario is measured with.
pub struct Bench<'a> {
    pub plan: &'a Plan,
    pub upstream: &'a Upstream,
    pub setup: Setup,
}

pub static SCENARIOS: [Scenario; 13] = [
    Scenario {
        key: "hits",
        rows: &[row("hit, HITS names: CPU us", 2)],
        limit: Some(ANSWER),
        measure: |bench, peer| Ok(vec![bench.cost(peer, &bench.hits(0))?.micros_per_query]),
        ..PLAIN
    },
    Scenario {
        key: "mixed",
        rows: &[row("hit, A, A with DO, AAAA, TXT, NXDOMAIN: CPU us", 2)],
        limit: Some(ANSWER),
        measure: |bench, peer| Ok(vec![bench.cost(peer, &bench.hits(MIXED))?.micros_per_query]),
        ..PLAIN
    },
    Scenario {
        key: "catalog",
        rows: &[row("hit, `.consul`, SERVICES services of 3 instances: CPU us", 2)],
        setup: |plan, setup| Setup { own: Own::Services(plan.services), ..setup },
        measure: |bench, peer| {
            let names = Names::Any { first: SERVICES, count: bench.plan.services };
            Ok(vec![bench.cost(peer, &Load { names, ..bench.hits(0) })?.micros_per_query])
        },
        ..PLAIN
    },
    Scenario {
        key: "tcp",
        rows: &[
            row("hit, 64 TCP connections, one query on each: CPU us", 2),
            row("16 TCP connections, 16 queries: CPU us", 2),
        ],
        measure: |bench, peer| {
            let one = Load { transport: Transport::Tcp, clients: 64, outstanding: 64, ..bench.hits(0) };
            let many = Load { clients: 16, outstanding: 256, ..one };
            Ok(vec![bench.cost(peer, &one)?.micros_per_query, bench.cost(peer, &many)?.micros_per_query])
        },
        ..PLAIN
    },
    Scenario {
        key: "threads",
        rows: &[row("hit, two threads: CPU us", 2)],
        limit: Some(ANSWER),
        setup: |_, setup| Setup { threads: 2, ..setup },
        // From many sockets, for the kernel deals them out to the threads.
        measure: |bench, peer| Ok(vec![bench.cost(peer, &Load { clients: 64, ..bench.hits(0) })?.micros_per_query]),
        ..PLAIN
    },
    Scenario {
        key: "latency",
        rows: &[row("wait for a hit, 20,000 a second: p50, us", 0), row("p99, us", 0), row("p99.9, us", 0)],
        limit: Some(ANSWER),
        measure: |bench, peer| {
            let load = Load { outstanding: 4096, ..bench.hits(0) }.paced(20_000.0, Between::Spin);
            let mut outcome = bench.cost(peer, &load)?.outcome;
            Ok([50.0, 99.0, 99.9].map(|percent| outcome.percentile(percent)).into())
        },
        ..PLAIN
    },
    Scenario {
        key: "delay",
        rows: &[row("wait added to an upstream 20 ms away, 10,000 new names a second: p50, us", 0)],
        limit: Some(FORWARD),
        manner: Manner { delay: Duration::from_millis(20), lost_permille: 0 },
        setup: |_, setup| Setup { names: NEW_NAMES, ..setup },
        measure: |bench, peer| {
            let load = Load { outstanding: 4096, ..bench.misses() }.paced(10_000.0, Between::Sleep);
            let direct = load.run(bench.upstream.address)?.percentile(50.0);
            Ok(vec![bench.cost(peer, &load)?.outcome.percentile(50.0) - direct])
        },
        ..PLAIN
    },
    Scenario {
        key: "loss",
        rows: &[row("2 % of the queries to an upstream 20 ms away lost: failed, %", 2), row("p99, ms", 0)],
        manner: Manner { delay: Duration::from_millis(20), lost_permille: 20 },
        setup: |_, setup| Setup { names: NEW_NAMES, ..setup },
        measure: |bench, peer| {
            let patience = Duration::from_secs(6);
            let load = Load { outstanding: 16_384, patience, ..bench.misses() }.paced(2000.0, Between::Sleep);
            let mut outcome = Server::start(peer, &bench.setup)?.measure(&load)?.outcome;
            ensure!(outcome.wrong == 0 && outcome.answered > 0, "{} wrong", outcome.wrong);
            let unanswered = outcome.failed + outcome.lost;
            let share = unanswered as f64 / (outcome.answered + outcome.lost) as f64;
            // They have waited, too.
            outcome.waits.extend(std::iter::repeat_n(patience, unanswered as usize));
            Ok(vec![100.0 * share, outcome.percentile(99.0) / 1000.0])
        },
        ..PLAIN
    },
    Scenario {
        key: "equal",
        rows: &[row("1,000 equal queries for a new name: sent to the upstream", 0), row("answered", 0)],
        manner: Manner { delay: Duration::from_millis(200), lost_permille: 0 },
        measure: |bench, peer| {
            let server = Server::start(peer, &bench.setup)?;
            let names = Names::Same { number: FIRST_NEW, count: 1000 };
            // In the time until the first answer, but not faster than sockets take in.
            let load = Load { clients: 50, patience: Duration::from_secs(6), ..Load::new(names, 1000, SETTLE) };
            let load = load.paced(10_000.0, Between::Sleep);
            let (outcome, seen) = bench.upstream.seen_during(|| Ok(load.run(server.address)?))?;
            Ok(vec![seen.queries as f64, (outcome.answered - outcome.failed - outcome.wrong) as f64])
        },
        ..PLAIN
    },
    Scenario {
        key: "memory",
        rows: &[row("memory of a cached name, of KEPT: bytes", 0), row("of them kept, %", 1)],
        runs: Runs::Once,
        measure: measure_memory,
        ..PLAIN
    },
    Scenario {
        key: "start",
        rows: &[row("start to first answer: ms", 0)],
        measure: |bench, peer| Ok(vec![millis(Server::start(peer, &bench.setup)?.started_in)]),
        ..PLAIN
    },
    Scenario {
        key: "ports",
        rows: &[row("miss, upstream not on loopback: CPU us", 2), row("source ports of 1,000 queries", 0)],
        limit: Some(FORWARD),
        upstream: Where::Elsewhere,
        setup: |_, setup| Setup { names: NEW_NAMES, ..setup },
        measure: |bench, peer| {
            let cost = bench.cost(peer, &bench.misses())?;
            let server = Server::start(peer, &bench.setup)?;
            let few = Load::new(Names::Each { first: FIRST_NEW, count: 1000 }, 16, Duration::from_secs(10));
            let (_, seen) = bench.upstream.seen_during(|| server.measure_sound(&few))?;
            Ok(vec![cost.micros_per_query, 1000.0 * seen.ports as f64 / seen.queries.max(1) as f64])
        },
        ..PLAIN
    },
    Scenario {
        key: "blocked",
        rows: &[
            row("BLOCKED blocked names: loaded in, ms", 0),
            row("bytes a name", 0),
            row("blocked query, any of them: CPU us", 2),
        ],
        setup: |plan, setup| Setup { own: Own::Blocked(plan.blocked), ..setup },
        runs: Runs::Once,
        measure: measure_blocked,
        ..PLAIN
    },
];

/// What most scenarios have in common.
const PLAIN: Scenario = Scenario {
    key: "",
    rows: &[],
    limit: None,
    upstream: Where::Loopback,
    manner: Manner { delay: Duration::ZERO, lost_permille: 0 },
    setup: |_, setup| setup,
    runs: Runs::Repeated,
    measure: |_, _| Ok(Vec::new()),
};

const fn row(title: &'static str, digits: usize) -> Row {
    Row { title, digits }
}

impl Bench<'_> {
    fn hits(&self, first: u32) -> Load {
        Load::new(Names::Any { first, count: self.plan.hits }, 256, self.plan.row_run)
    }

    fn misses(&self) -> Load {
        Load::new(Names::Each { first: FIRST_NEW, count: u32::MAX - FIRST_NEW - 1 }, 64, self.plan.row_run)
    }

    /// What a load costs a new server, with the cache filled if names are asked again.
    fn cost(&self, peer: &Installed, load: &Load) -> anyhow::Result<Cost> {
        let server = Server::start(peer, &self.setup)?;
        if let Names::Any { first, count } = load.names
            && self.setup.own == Own::Nothing
            && !peer.is_limit()
        {
            let fill = Load { lasts: self.plan.fill, ..*load };
            server.fill(Load { transport: Transport::Udp, clients: 16, ..fill }, first, count)?;
            // Some keep replies for each transport.
            if load.transport == Transport::Tcp {
                server.fill(fill, first, count)?;
            }
        }
        measure_started(&server, load)
    }
}

/// What a load costs a server that is set up for it.
fn measure_started(server: &Server, load: &Load) -> anyhow::Result<Cost> {
    let mut load = *load;
    let first = server.measure(&load.before())?.outcome;
    // The sockets of some have no room for so many at once.
    if first.lost > 0 && load.pace.is_none() {
        load.outstanding = load.outstanding.min(FEW_OUTSTANDING);
    }
    server.measure_sound(&load)
}

/// Against a server that is set up for few names, for some take the memory of all at once.
fn measure_memory(bench: &Bench, peer: &Installed) -> anyhow::Result<Vec<f64>> {
    let count = bench.plan.kept;
    let filled = |names: u32| {
        let server = Server::start(peer, &Setup { names, ..bench.setup })?;
        server.fill(Load::new(Names::Any { first: 0, count: names }, 100, bench.plan.fill), 0, names)?;
        thread::sleep(SETTLE);
        let resident = server.process.resident_bytes()?;
        anyhow::Ok((server, resident as f64))
    };
    let (few, before) = filled(FEW)?;
    drop(few);
    let (server, after) = filled(count)?;
    let sample = Load::new(Names::Any { first: 0, count }, 64, bench.plan.row_run);
    let (outcome, seen) = bench.upstream.seen_during(|| Ok(sample.run(server.address)?))?;
    ensure!(outcome.wrong == 0 && outcome.answered > 0, "{} wrong", outcome.wrong);
    let kept = (1.0 - seen.queries as f64 / outcome.answered as f64).max(0.0);
    Ok(vec![(after - before) / (f64::from(count - FEW) * kept).max(1.0), 100.0 * kept])
}

/// Against the same server without the list.
fn measure_blocked(bench: &Bench, peer: &Installed) -> anyhow::Result<Vec<f64>> {
    let plain = Server::start(peer, &Setup { own: Own::Nothing, ..bench.setup })?;
    let (plain_start, plain_bytes) = (plain.started_in, plain.process.resident_bytes()?);
    drop(plain);
    let server = Server::start(peer, &bench.setup)?;
    let bytes = server.process.resident_bytes()? as f64 - plain_bytes as f64;
    let load = Load { names: Names::Any { first: BLOCKED, count: bench.plan.blocked }, ..bench.hits(0) };
    let micros = measure_started(&server, &load)?.micros_per_query;
    Ok(vec![millis(server.started_in) - millis(plain_start), bytes / f64::from(bench.plan.blocked), micros])
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// In the cache of a server that is to be compared with a full one.
const FEW: u32 = 1000;
/// What every socket has room for.
const FEW_OUTSTANDING: usize = 96;
const SETTLE: Duration = Duration::from_millis(300);
