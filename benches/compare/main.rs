//! Watershed beside its peers, in one run: what a query costs the server, and how that grows.
//!
//!     cargo bench --profile release --bench compare -- --out benches/compare/results
//!
//! Every server that is installed is started as a forwarder with a cache, on one core and with one thread, in front of
//! the same upstream; load and upstream share the other core. Runs are interleaved, their medians count, and every reply
//! is checked. What counts is the CPU time of the server per query: it holds where the load, and not the server, is the
//! bottleneck. All traffic stays on loopback. The whole takes a quarter of an hour; `--quick` takes seconds and writes
//! nothing.

mod changes;
mod load;
mod parts;
mod peers;
mod report;
mod server;
mod traffic;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    num::NonZero,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use load::{Load, Names};
use peers::Installed;
use report::{Chart, Curve};
use server::{LOAD_CORE, Process, Server, free_port, wait_for};

/// How much is measured.
struct Plan {
    run: Duration,
    repetitions: usize,
    cached_names: &'static [u32],
    rules: &'static [u32],
    outstanding: &'static [usize],
    instances: &'static [u32],
    changes: u16,
    /// How long a cache is filled at most.
    fill: Duration,
    out: Option<PathBuf>,
    /// Only these, if any are given.
    only: Vec<String>,
    watershed: PathBuf,
}

/// What is varied.
#[derive(Debug, Clone, Copy)]
enum Varied {
    CachedNames(u32),
    Rules(u32),
    Outstanding(usize),
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let address = |at: usize| args.get(at).context("an address is missing")?.parse().context("no address");
    match args.first().map(String::as_str) {
        Some(ANSWER) => return Ok(parts::answer(address(1)?)?),
        Some(FORWARD) => return Ok(parts::forward(address(1)?, address(2)?)?),
        _ => {}
    }
    let cores = std::thread::available_parallelism()?;
    if cores.get() < 2 {
        println!("compare: skipped, for it takes two cores");
        return Ok(());
    }
    let plan = Plan::read(&args)?;
    // The load's own core; threads that are started from here on inherit it.
    let pinned = std::process::Command::new("taskset")
        .arg("-cp")
        .arg(LOAD_CORE.to_string())
        .arg(std::process::id().to_string())
        .output();
    pinned.context("no program taskset; install util-linux")?;
    let port = free_port()?;
    let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let _upstream = Process::start(&std::env::current_exe()?, &[ANSWER.into(), upstream.to_string()], LOAD_CORE)?;
    wait_for(upstream, || Ok(true))?;

    let mut peers = Installed::find(&plan.watershed);
    peers.retain(|peer| plan.only.is_empty() || plan.only.iter().any(|name| peer.name.eq_ignore_ascii_case(name)));
    let charts = vec![
        plan.chart(
            "cached-names",
            "Hits, by names in the cache",
            "names in the cache",
            &peers,
            port,
            plan.cached_names.iter().map(|&n| Varied::CachedNames(n)),
        )?,
        plan.chart(
            "outstanding",
            "Misses, by queries outstanding",
            "queries outstanding",
            &peers,
            port,
            plan.outstanding.iter().map(|&n| Varied::Outstanding(n)),
        )?,
        plan.chart(
            "rules",
            "Misses, by forward rules",
            "forward rules",
            &peers,
            port,
            plan.rules.iter().map(|&n| Varied::Rules(n)),
        )?,
        plan.catalog_changes(upstream)?,
    ];
    let page = page(&peers, &charts, cores)?;
    println!("{page}");
    if let Some(out) = &plan.out {
        fs::create_dir_all(out)?;
        fs::write(out.join("README.md"), page)?;
        for chart in &charts {
            fs::write(out.join(chart.file).with_extension("svg"), chart.svg())?;
        }
    }
    Ok(())
}

impl Plan {
    fn read(args: &[String]) -> anyhow::Result<Self> {
        let mut plan = Self {
            run: Duration::from_millis(1500),
            repetitions: 3,
            cached_names: &[10, 10_000, 1_000_000],
            rules: &[1, 100, 10_000],
            outstanding: &[1, 4, 16, 64, 256],
            instances: &[100, 1000, 10_000, 100_000],
            changes: 20,
            fill: Duration::from_secs(60),
            out: None,
            only: Vec::new(),
            watershed: env!("CARGO_BIN_EXE_watershed").into(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} takes a value"));
            match arg.as_str() {
                // What cargo and the other benchmarks are told.
                "--bench" | "--noplot" => {}
                "--quick" => {
                    plan.run = Duration::from_millis(200);
                    plan.repetitions = 1;
                    (plan.cached_names, plan.rules, plan.outstanding) = (&[10, 1000], &[1, 100], &[1, 64]);
                    (plan.instances, plan.changes) = (&[100], 2);
                    plan.fill = Duration::from_secs(10);
                    plan.only = vec![peers::WATERSHED.into()];
                }
                "--out" => plan.out = Some(value()?.into()),
                "--peers" => plan.only = value()?.split(',').map(str::to_owned).collect(),
                "--repetitions" => plan.repetitions = value()?.parse()?,
                "--seconds" => plan.run = Duration::try_from_secs_f64(value()?.parse()?)?,
                "--watershed" => plan.watershed = value()?.into(),
                _ => bail!(
                    "unknown argument {arg}; there are --quick, --out, --peers, --repetitions, --seconds, --watershed"
                ),
            }
        }
        Ok(plan)
    }

    /// Measures all servers, in turn, and again.
    fn chart(
        &self,
        file: &'static str,
        title: &'static str,
        axis: &'static str,
        peers: &[Installed],
        upstream_port: u16,
        steps: impl Iterator<Item = Varied>,
    ) -> anyhow::Result<Chart> {
        let limit = Installed::limit(if file == "cached-names" { ANSWER } else { FORWARD });
        let all: Vec<&Installed> = peers.iter().chain([&limit]).collect();
        let mut curves: Vec<Curve> =
            all.iter().map(|peer| Curve { name: peer.name.into(), points: Vec::new() }).collect();
        for step in steps {
            let mut micros = vec![Vec::new(); all.len()];
            for _ in 0..step.repetitions(self.repetitions) {
                for (peer, micros) in all.iter().zip(&mut micros) {
                    let start = Instant::now();
                    match self.measure(peer, step, upstream_port) {
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
            for (curve, mut micros) in curves.iter_mut().zip(micros) {
                micros.sort_by(f64::total_cmp);
                if let Some(&median) = micros.get(micros.len() / 2) {
                    curve.points.push((step.value(), median));
                }
            }
        }
        let ours = curves.iter().find(|curve| curve.name == peers::WATERSHED);
        if ours.is_some_and(|curve| curve.points.is_empty()) {
            bail!("{title}: watershed could not be measured");
        }
        curves.retain(|curve| !curve.points.is_empty());
        Ok(Chart { file, title, axis, each: "query", curves })
    }

    /// What the peers do not have: a catalog that changes.
    fn catalog_changes(&self, upstream: SocketAddr) -> anyhow::Result<Chart> {
        let mut points = Vec::new();
        for &instances in self.instances {
            let mut micros = Vec::new();
            for _ in 0..self.repetitions {
                micros.push(changes::measure(&self.watershed, instances, self.changes, upstream)?);
                eprintln!("{:18} {instances} instances: {:.0} us a change", peers::WATERSHED, micros[micros.len() - 1]);
            }
            micros.sort_by(f64::total_cmp);
            points.push((instances.into(), micros[micros.len() / 2]));
        }
        Ok(Chart {
            file: "catalog-changes",
            title: "Changes of the catalog, by instances in it",
            axis: "instances",
            each: "change",
            curves: vec![Curve { name: peers::WATERSHED.into(), points }],
        })
    }

    fn measure(&self, peer: &Installed, step: Varied, upstream_port: u16) -> anyhow::Result<server::Cost> {
        let lasts = self.run;
        let new = Names::Each { first: FIRST_NEW, count: u32::MAX - FIRST_NEW - 1 };
        let (cached, rules, load) = match step {
            Varied::CachedNames(names) => {
                (names, 0, Load { names: Names::Any(names), rules: 0, outstanding: 256, lasts })
            }
            Varied::Rules(rules) => (0, rules, Load { names: new, rules, outstanding: 64, lasts }),
            Varied::Outstanding(outstanding) => (0, 0, Load { names: new, rules: 0, outstanding, lasts }),
        };
        let server = Server::start(peer, cached.max(NEW_NAMES), rules, upstream_port)?;
        if cached > 0 && !peer.is_limit() && !server.fill(cached, 0, self.fill)? {
            bail!("the cache was not filled in time");
        }
        // What happens but once in the life of a server is over then.
        server.measure(&Load { names: load.names.first_of(), lasts: lasts / 5, ..load })?;
        let cost = server.measure(&load)?;
        if cost.wrong > 0 || cost.lost * 1000 > cost.answered {
            bail!("{} answered, {} wrong, {} lost", cost.answered, cost.wrong, cost.lost);
        }
        Ok(cost)
    }
}

impl Varied {
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

impl Names {
    /// For the run before the one that counts: as hot, or as new, and not asked again.
    fn first_of(self) -> Self {
        match self {
            Self::Any(_) => self,
            Self::Each { first, .. } => Self::Each { first: first - NEW_NAMES, count: NEW_NAMES },
        }
    }
}

fn page(peers: &[Installed], charts: &[Chart], cores: NonZero<usize>) -> anyhow::Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("no Linux")?;
    let versions: Vec<String> = peers.iter().map(|peer| format!("{} {}", peer.name, peer.version)).collect();
    let mut page = format!(
        "# Watershed beside its peers\n\n\
         Written by `cargo bench --profile release --bench compare`. {cpu}, {cores} cores, Linux {}; {}.\n\n\
         One server thread on one core, load and upstream on another, all on loopback, names of eight lengths, every reply\n\
         checked. *limit* only turns datagrams round (hits), or sends them on and back (misses). 256 queries are outstanding for hits,\n\
         64 for misses over rules. Where a server lost more than one query in a thousand it has no figure.\n",
        kernel.trim(),
        versions.join(", ")
    );
    for chart in charts {
        page += &chart.table();
        page += &format!("\n![{}]({}.svg)\n", chart.title, chart.file);
    }
    Ok(page)
}

const ANSWER: &str = "answer";
const FORWARD: &str = "forward";
/// Numbers from here on are of names that no cache has been filled with.
const FIRST_NEW: u32 = 0x4000_0000;
const NEW_NAMES: u32 = 1_000_000;
