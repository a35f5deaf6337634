//! The table: a row for each figure, a column for each server.

use std::{fmt::Write, net::Ipv4Addr, time::Instant};

use anyhow::ensure;

use super::{
    namespace,
    peers::{self, Installed, LIMIT, Own, Setup},
    plan::Plan,
    report::{grouped, median},
    scenarios::{Bench, Runs, SCENARIOS, Scenario, Where},
    server::Upstream,
};

/// The figures of one scenario: of each server, limit last, the medians, if it could be measured.
pub struct Figures {
    scenario: &'static Scenario,
    medians: Vec<Option<Vec<f64>>>,
}

/// Measures all scenarios that are wanted and possible; those with an upstream elsewhere are so in a namespace.
pub fn measure(plan: &Plan, peers: &[Installed], is_inside: bool) -> anyhow::Result<Vec<Figures>> {
    let mut table = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| plan.has(scenario.key)) {
        if scenario.upstream == Where::Elsewhere && !is_inside {
            println!("compare: {} left out, for it takes root and the programs unshare and ip", scenario.key);
            continue;
        }
        table.push(scenario.measure_all(plan, peers)?);
    }
    Ok(table)
}

/// As Markdown.
pub fn page(table: &[Figures], plan: &Plan, peers: &[Installed]) -> String {
    if table.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n| |");
    for name in peers.iter().map(|peer| peer.name).chain([LIMIT]) {
        let _ = write!(text, " {name} |");
    }
    text += "\n|---|";
    text += &"---:|".repeat(peers.len() + 1);
    for figures in table {
        for (number, row) in figures.scenario.rows.iter().enumerate() {
            let _ = write!(text, "\n| {} |", plan.fill_in(row.title));
            for medians in &figures.medians {
                let figure = medians.as_ref().and_then(|medians| medians.get(number));
                let _ = match figure {
                    Some(figure) if row.digits == 0 => write!(text, " {} |", grouped(*figure)),
                    Some(figure) => write!(text, " {figure:.*} |", row.digits),
                    None => write!(text, " – |"),
                };
            }
        }
    }
    text + "\n"
}

impl Scenario {
    /// Measures all servers, in turn, and again.
    fn measure_all(&'static self, plan: &Plan, peers: &[Installed]) -> anyhow::Result<Figures> {
        let ip = match self.upstream {
            Where::Loopback => Ipv4Addr::LOCALHOST,
            Where::Elsewhere => namespace::ADDRESS,
        };
        let upstream = Upstream::start(ip, self.manner)?;
        let plain = Setup { upstream: upstream.address, names: plan.hits, rules: 0, threads: 1, own: Own::Nothing };
        let bench = Bench { plan, upstream: &upstream, setup: (self.setup)(plan, plain) };
        let limit = self.limit.map(Installed::limit);
        let all: Vec<Option<&Installed>> = peers.iter().map(Some).chain([limit.as_ref()]).collect();
        let mut runs: Vec<Vec<Vec<f64>>> = vec![Vec::new(); all.len()];
        for _ in 0..if self.runs == Runs::Once { 1 } else { plan.repetitions } {
            for (peer, runs) in all.iter().zip(&mut runs) {
                let Some(peer) = peer.filter(|peer| peer.can(bench.setup.threads, bench.setup.own)) else { continue };
                let start = Instant::now();
                match (self.measure)(&bench, peer) {
                    Ok(figures) => {
                        let shown: Vec<String> = figures.iter().map(|figure| format!("{figure:.2}")).collect();
                        let (key, seconds) = (self.key, start.elapsed().as_secs_f64());
                        eprintln!("{:18} {key}: {}; {seconds:.1} s", peer.name, shown.join(", "));
                        runs.push(figures);
                    }
                    Err(error) => eprintln!("{:18} {}: {error:#}", peer.name, self.key),
                }
            }
        }
        let is_ours = |peer: &Installed| peer.name == peers::WATERSHED;
        let is_measured = peers.iter().zip(&runs).all(|(peer, runs)| !is_ours(peer) || !runs.is_empty());
        ensure!(is_measured, "{}: watershed could not be measured", self.key);
        Ok(Figures { scenario: self, medians: runs.into_iter().map(medians).collect() })
    }
}

/// The median of each figure.
fn medians(runs: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let count = runs.first()?.len();
    (0..count).map(|figure| median(runs.iter().map(|run| run[figure]).collect())).collect()
}

impl Plan {
    fn fill_in(&self, title: &str) -> String {
        let mut text = title.to_owned();
        for (word, value) in
            [("HITS", self.hits), ("KEPT", self.kept), ("BLOCKED", self.blocked), ("SERVICES", self.services)]
        {
            text = text.replace(word, &grouped(value.into()));
        }
        text
    }
}
