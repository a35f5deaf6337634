//! How the cost of a query grows: all servers measured at each step of what is varied.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Instant,
};

use anyhow::bail;

use super::{
    changes,
    load::{Load, Names},
    parts::Manner,
    peers::{self, ANSWER, FORWARD, Installed, Own, Setup},
    plan::Plan,
    report::{Chart, Curve, median},
    server::{Cost, Server, Upstream},
    traffic::{FIRST_NEW, NEW_NAMES},
};

/// What is varied.
#[derive(Debug, Clone, Copy)]
enum Varied {
    CachedNames(u32),
    Rules(u32),
    Outstanding(usize),
}

/// All that are wanted.
pub fn draw(plan: &Plan, peers: &[Installed]) -> anyhow::Result<Vec<Chart>> {
    let upstream = Upstream::start(Ipv4Addr::LOCALHOST, Manner::default())?;
    let steps = [
        (
            Chart::of_queries("cached-names", "Hits, by names in the cache", "names in the cache"),
            plan.cached_names.iter().map(|&names| Varied::CachedNames(names)).collect::<Vec<_>>(),
        ),
        (
            Chart::of_queries("outstanding", "Misses, by queries outstanding", "queries outstanding"),
            plan.outstanding.iter().map(|&queries| Varied::Outstanding(queries)).collect(),
        ),
        (
            Chart::of_queries("rules", "Misses, by forward rules", "forward rules"),
            plan.rules.iter().map(|&rules| Varied::Rules(rules)).collect(),
        ),
    ];
    let mut charts = Vec::new();
    for (mut chart, steps) in steps {
        if plan.has(chart.file) {
            chart.curves = measure_all(&chart, &steps, plan, peers, upstream.address)?;
            charts.push(chart);
        }
    }
    if plan.has(CATALOG_CHANGES) {
        charts.push(catalog_changes(plan, upstream.address)?);
    }
    Ok(charts)
}

/// Measures all servers, in turn, and again.
fn measure_all(
    chart: &Chart,
    steps: &[Varied],
    plan: &Plan,
    peers: &[Installed],
    upstream: SocketAddr,
) -> anyhow::Result<Vec<Curve>> {
    let limit = Installed::limit(if matches!(steps, [Varied::CachedNames(_), ..]) { ANSWER } else { FORWARD });
    let all: Vec<&Installed> = peers.iter().chain([&limit]).collect();
    let mut curves: Vec<Curve> = all.iter().map(|peer| Curve { name: peer.name.into(), points: Vec::new() }).collect();
    for step in steps {
        let mut micros = vec![Vec::new(); all.len()];
        for _ in 0..step.repetitions(plan.repetitions) {
            for (peer, micros) in all.iter().zip(&mut micros) {
                let start = Instant::now();
                match step.measure(plan, peer, upstream) {
                    Ok(cost) => {
                        eprintln!(
                            "{:18} {step:?}: {:.2} us, {:.0} a second, {} s",
                            peer.name,
                            cost.micros_per_query,
                            cost.queries_per_second,
                            start.elapsed().as_secs()
                        );
                        micros.push(cost.micros_per_query);
                    }
                    Err(error) => eprintln!("{:18} {step:?}: {error:#}", peer.name),
                }
            }
        }
        for (curve, micros) in curves.iter_mut().zip(micros) {
            curve.points.extend(median(micros).map(|median| (step.value(), median)));
        }
    }
    let ours = curves.iter().find(|curve| curve.name == peers::WATERSHED);
    if ours.is_some_and(|curve| curve.points.is_empty()) {
        bail!("{}: watershed could not be measured", chart.title);
    }
    curves.retain(|curve| !curve.points.is_empty());
    Ok(curves)
}

/// What the peers do not have: a catalog that changes.
fn catalog_changes(plan: &Plan, upstream: SocketAddr) -> anyhow::Result<Chart> {
    let mut points = Vec::new();
    for &instances in plan.instances {
        let mut micros = Vec::new();
        for _ in 0..plan.repetitions {
            micros.push(changes::measure(&plan.watershed, instances, plan.changes, upstream)?);
            eprintln!("{:18} {instances} instances: {:.0} us a change", peers::WATERSHED, micros[micros.len() - 1]);
        }
        points.extend(median(micros).map(|median| (instances.into(), median)));
    }
    Ok(Chart {
        file: CATALOG_CHANGES,
        title: "Changes of the catalog, by instances in it",
        axis: "instances",
        each: "change",
        curves: vec![Curve { name: peers::WATERSHED.into(), points }],
    })
}

impl Varied {
    fn measure(self, plan: &Plan, peer: &Installed, upstream: SocketAddr) -> anyhow::Result<Cost> {
        let new = Names::Each { first: FIRST_NEW, count: u32::MAX - FIRST_NEW - 1 };
        let (cached, rules, names, outstanding) = match self {
            Self::CachedNames(names) => (names, 0, Names::Any { first: 0, count: names }, 256),
            Self::Rules(rules) => (0, rules, new, 64),
            Self::Outstanding(outstanding) => (0, 0, new, outstanding),
        };
        let load = Load { rules, ..Load::new(names, outstanding, plan.run) };
        let setup = Setup { upstream, names: cached.max(NEW_NAMES), rules, threads: 1, own: Own::Nothing };
        let server = Server::start(peer, &setup)?;
        if cached > 0 && !peer.is_limit() {
            server.fill(Load { lasts: plan.fill, ..load }, 0, cached)?;
        }
        // What happens but once in the life of a server is over then.
        server.measure(&load.before())?;
        server.measure_sound(&load)
    }

    fn value(self) -> f64 {
        match self {
            Self::CachedNames(number) | Self::Rules(number) => number.into(),
            Self::Outstanding(number) => number as f64,
        }
    }

    /// A large cache is filled but once.
    fn repetitions(self, most: usize) -> usize {
        if matches!(self, Self::CachedNames(100_000..)) { 1 } else { most }
    }
}

const CATALOG_CHANGES: &str = "catalog-changes";
