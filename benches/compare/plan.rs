//! How much is measured: the whole, or what the arguments say.

use std::{path::PathBuf, time::Duration};

use clap::Parser;

use super::peers;

/// Measures watershed beside its peers.
#[derive(Parser)]
pub struct Arguments {
    /// Take seconds, for watershed alone unless peers are named
    #[arg(long)]
    quick: bool,
    /// The folder that the page and its charts are written to
    #[arg(long)]
    out: Option<PathBuf>,
    /// Measure only these servers
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Measure only these rows and curves
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How often each figure is measured; the median counts
    #[arg(long)]
    repetitions: Option<usize>,
    /// How long a load lasts
    #[arg(long)]
    seconds: Option<f64>,
    /// The program to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_watershed"))]
    watershed: PathBuf,
    /// Arguments of cargo and of the other benchmarks, and our own inside a namespace; nothing is read from them here
    #[arg(long = "bench", hide = true)]
    _bench: bool,
    #[arg(long = "noplot", hide = true)]
    _noplot: bool,
    #[arg(long = "inside", hide = true)]
    _inside: bool,
}

pub struct Plan {
    /// How long a load lasts, for a point of a curve and for a row of the table.
    pub run: Duration,
    pub row_run: Duration,
    pub repetitions: usize,
    pub cached_names: &'static [u32],
    pub rules: &'static [u32],
    pub outstanding: &'static [usize],
    pub instances: &'static [u32],
    pub changes: u16,
    /// Names in the cache while hits are measured.
    pub hits: u32,
    /// Names in the cache while its memory is.
    pub kept: u32,
    pub blocked: u32,
    pub services: u32,
    /// How long a cache is filled at most.
    pub fill: Duration,
    pub out: Option<PathBuf>,
    /// Only these servers, if any are given.
    pub peers: Vec<String>,
    /// Only these rows and curves, if any are given.
    pub only: Vec<String>,
    pub watershed: PathBuf,
}

impl Plan {
    pub fn new(arguments: Arguments) -> anyhow::Result<Self> {
        let mut plan = Self {
            run: Duration::from_millis(1500),
            row_run: Duration::from_secs(1),
            repetitions: 3,
            cached_names: &[10, 10_000, 1_000_000],
            rules: &[1, 100, 10_000],
            outstanding: &[1, 4, 16, 64, 256],
            instances: &[100, 1000, 10_000, 100_000],
            changes: 20,
            hits: 10_000,
            kept: 500_000,
            blocked: 1_000_000,
            services: 50,
            fill: Duration::from_secs(120),
            out: arguments.out,
            peers: arguments.peers,
            only: arguments.only,
            watershed: arguments.watershed,
        };
        if arguments.quick {
            (plan.run, plan.row_run) = (Duration::from_millis(100), Duration::from_millis(100));
            plan.repetitions = 1;
            (plan.cached_names, plan.rules, plan.outstanding) = (&[10, 1000], &[1, 100], &[1, 64]);
            (plan.instances, plan.changes) = (&[100], 2);
            (plan.hits, plan.kept, plan.blocked) = (1000, 5000, 10_000);
            plan.fill = Duration::from_secs(10);
            if plan.peers.is_empty() {
                plan.peers.push(peers::WATERSHED.into());
            }
        }
        if let Some(repetitions) = arguments.repetitions {
            plan.repetitions = repetitions;
        }
        if let Some(seconds) = arguments.seconds {
            plan.run = Duration::try_from_secs_f64(seconds)?;
            plan.row_run = plan.run;
        }
        Ok(plan)
    }

    /// Whether this row or curve is wanted.
    pub fn has(&self, key: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == key)
    }
}
