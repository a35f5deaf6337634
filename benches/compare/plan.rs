//! How much is measured: the whole, or what the arguments say.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};

use super::peers;

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
    pub fn read(args: &[String]) -> anyhow::Result<Self> {
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
            out: None,
            peers: Vec::new(),
            only: Vec::new(),
            watershed: env!("CARGO_BIN_EXE_watershed").into(),
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} takes a value"));
            let list = |text: &String| text.split(',').map(str::to_owned).collect();
            match arg.as_str() {
                // What cargo and the other benchmarks are told, and what we tell ourselves.
                "--bench" | "--noplot" | super::namespace::INSIDE => {}
                "--quick" => {
                    (plan.run, plan.row_run) = (Duration::from_millis(100), Duration::from_millis(100));
                    plan.repetitions = 1;
                    (plan.cached_names, plan.rules, plan.outstanding) = (&[10, 1000], &[1, 100], &[1, 64]);
                    (plan.instances, plan.changes) = (&[100], 2);
                    (plan.hits, plan.kept, plan.blocked) = (1000, 5000, 10_000);
                    plan.fill = Duration::from_secs(10);
                    plan.peers = vec![peers::WATERSHED.into()];
                }
                "--out" => plan.out = Some(value()?.into()),
                "--peers" => plan.peers = list(value()?),
                "--only" => plan.only = list(value()?),
                "--repetitions" => plan.repetitions = value()?.parse()?,
                "--seconds" => {
                    plan.run = Duration::try_from_secs_f64(value()?.parse()?)?;
                    plan.row_run = plan.run;
                }
                "--watershed" => plan.watershed = value()?.into(),
                _ => bail!(
                    "unknown argument {arg}; there are --quick, --out, --peers, --only, --repetitions, --seconds, --watershed"
                ),
            }
        }
        Ok(plan)
    }

    /// Whether this row or curve is wanted.
    pub fn has(&self, key: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == key)
    }
}
