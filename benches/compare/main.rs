//! Watershed beside its peers, in one run: what a query costs the server, how that grows, how long clients wait, and what
//! memory it takes.
//!
//!     cargo bench --profile release --bench compare -- --out benches/compare/results
//!
//! Every server that is installed is started as a forwarder with a cache, on one core and with one thread, in front of
//! the same upstream; load and upstream share the other core. Runs are interleaved, their medians count, and every reply
//! is checked. What counts most is the CPU time of the server per query: it holds where the load, and not the server, is
//! the bottleneck. As root it all runs in a network namespace of its own, where one row has its upstream at an address
//! that is not on loopback; else on loopback, without that row.
//!
//! The whole takes half an hour. `--only latency,tcp,rules` measures these rows (`scenarios.rs` has their names) and
//! curves, `--peers watershed,unbound` these servers; `--quick` takes seconds, for watershed alone.

mod changes;
mod client;
mod curves;
mod load;
mod namespace;
mod parts;
mod peers;
mod plan;
mod report;
mod scenarios;
mod server;
mod table;
mod traffic;

use std::{fs, num::NonZero, time::Duration};

use anyhow::Context;
use clap::Parser;

use parts::Manner;
use peers::{ANSWER, FORWARD, Installed};
use plan::{Arguments, Plan};
use report::Chart;
use server::LOAD_CORE;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |at: usize| args.get(at).context("an argument is missing");
    match args.first().map(String::as_str) {
        Some(ANSWER) => {
            let number = |at: usize| args.get(at).map_or(Ok(0), |number| number.parse::<u32>());
            let manner = Manner { delay: Duration::from_micros(number(3)?.into()), lost_permille: number(4)? };
            return Ok(parts::answer(arg(1)?.parse()?, number(2)?, manner)?);
        }
        Some(FORWARD) => return Ok(parts::forward(arg(1)?.parse()?, arg(2)?.parse()?)?),
        _ => {}
    }
    let cores = std::thread::available_parallelism()?;
    if cores.get() < 2 {
        println!("compare: skipped, for it takes two cores");
        return Ok(());
    }
    let plan = Plan::new(Arguments::parse())?;
    let is_inside = namespace::enter()?;
    // The load's own core; threads that are started from here on inherit it.
    let pinned =
        std::process::Command::new("taskset").args(["-cp", LOAD_CORE, &std::process::id().to_string()]).output();
    pinned.context("no program taskset; install util-linux")?;
    let mut peers = Installed::find(&plan.watershed);
    peers.retain(|peer| plan.peers.is_empty() || plan.peers.iter().any(|name| peer.name.eq_ignore_ascii_case(name)));
    let table = table::measure(&plan, &peers, is_inside)?;
    let table = table::page(&table, &plan, &peers);
    let charts = curves::draw(&plan, &peers)?;
    let page = page(&peers, &table, &charts, cores)?;
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

fn page(peers: &[Installed], table: &str, charts: &[Chart], cores: NonZero<usize>) -> anyhow::Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map_or("?", |(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").context("no Linux")?;
    let versions: Vec<String> = peers.iter().map(|peer| format!("{} {}", peer.name, peer.version)).collect();
    let mut page = format!(
        "# Watershed beside its peers\n\n\
         Written by `cargo bench --profile release --bench compare`. {cpu}, {cores} cores, Linux {}; {}.\n\n\
         One server thread on one core, load and upstream on another, all on loopback, names of eight lengths, every reply\n\
         checked. *limit* only turns datagrams round (hits), or sends them on and back (misses). 256 queries are outstanding\n\
         for hits (in the table 96 for a server whose socket has no room for more), 64 for misses. CPU us is the CPU time of\n\
         the server per query, in microseconds; two threads share a core with the load. Memory and blocked names are\n\
         measured once. A query without a good answer has waited for 6 seconds. A server that cannot do it, or that lost or\n\
         failed more than one query in a thousand, has no figure.\n",
        kernel.trim(),
        versions.join(", ")
    );
    page += table;
    for chart in charts {
        page += &chart.table();
        page += &format!("\n![{}]({}.svg)\n", chart.title, chart.file);
    }
    Ok(page)
}
