//! How numbers become a scrape: the rows of the table, and where each finds its numbers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicU64},
};

use prometheus::{
    core::{Collector, Desc},
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use super::cells::{BOUNDS_SECONDS, Cells, Levels, ListenerCells, Put, UpstreamCells, Writers, load};

/// Where all numbers are found when they are asked for.
pub(super) struct Board {
    pub(super) cells: Mutex<Vec<Arc<Cells>>>,
    pub(super) upstreams: Mutex<Vec<Weak<UpstreamCells>>>,
    pub(super) listeners: Mutex<Vec<Arc<ListenerCells>>>,
    pub(super) hooks: Mutex<Vec<Hook>>,
    pub(super) levels: Levels,
    pub(super) started: u64,
}

pub(super) type Hook = Box<dyn Fn(&Levels) + Send + Sync>;

impl Board {
    /// The cells of a worker that has ended stay: a counter never falls.
    pub(super) fn add_cells(&self, writers: Writers) -> Arc<Cells> {
        let cells = Arc::new(Cells::new(writers));
        lock(&self.cells).push(cells.clone());
        cells
    }

    pub(super) fn sum(&self, cell: impl Fn(&Cells) -> &AtomicU64) -> u64 {
        lock(&self.cells).iter().map(|cells| load(cell(cells))).fold(0, u64::wrapping_add)
    }

    pub(super) fn row<const N: usize>(
        &self,
        row: impl Fn(&Cells) -> &[AtomicU64; N],
        labels: &[&str; N],
        put: &mut Put<'_>,
    ) {
        for (index, label) in labels.iter().enumerate() {
            put(&[label], self.sum(|cells| &row(cells)[index]));
        }
    }

    pub(super) fn grid<const N: usize, const M: usize>(
        &self,
        grid: impl Fn(&Cells) -> &[[AtomicU64; M]; N],
        labels: (&[&str; N], &[&str; M]),
        put: &mut Put<'_>,
    ) {
        for (outer, outer_label) in labels.0.iter().enumerate() {
            for (inner, inner_label) in labels.1.iter().enumerate() {
                put(&[outer_label, inner_label], self.sum(|cells| &grid(cells)[outer][inner]));
            }
        }
    }

    pub(super) fn each_listener(&self, put: &mut Put<'_>) {
        for cells in lock(&self.listeners).iter() {
            put(&[&cells.listener], load(&cells.kernel_drops));
        }
    }

    /// The living upstreams; the dead are forgotten.
    fn upstreams(&self) -> Vec<Arc<UpstreamCells>> {
        let mut upstreams = lock(&self.upstreams);
        upstreams.retain(|cells| cells.strong_count() > 0);
        upstreams.iter().filter_map(Weak::upgrade).collect()
    }

    /// One number of each upstream for each value of a second label; `[""]` where there is no second.
    pub(super) fn each_upstream(
        &self,
        second: &[&str],
        read: impl Fn(&UpstreamCells, usize) -> u64,
        put: &mut Put<'_>,
    ) {
        for upstream in self.upstreams() {
            for (index, label) in second.iter().enumerate() {
                put(&[&upstream.upstream, label], read(&upstream, index));
            }
        }
    }
}

/// Declares rows of the table.
pub(super) struct Declare;

impl Declare {
    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&'static str], read: Read) -> Row {
        assert!(name.ends_with("_total"), "{name} is a counter");
        Row::new(format!("watershed_{name}"), help, labels, Source::Counter(read))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&'static str], read: Read) -> Row {
        Row::new(format!("watershed_{name}"), help, labels, Source::Gauge(read))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, labels: &[&'static str]) -> Row {
        Row::new(format!("watershed_{name}"), help, labels, Source::UpstreamSeconds)
    }

    /// A gauge whose name is the same in all daemons: dashboards look for it.
    pub(super) fn process(&self, name: &str, help: &str, read: Read) -> Row {
        Row::new(name.into(), help, &[], Source::Gauge(read))
    }
}

pub(super) type Read = fn(&Board, &mut Put<'_>);

enum Source {
    Counter(Read),
    Gauge(Read),
    UpstreamSeconds,
}

/// A line of the table.
pub(super) struct Row {
    description: Desc,
    source: Source,
}

impl Row {
    fn new(name: String, help: &str, labels: &[&str], source: Source) -> Self {
        let labels = labels.iter().map(|&label| label.into()).collect();
        let description = Desc::new(name, help.into(), labels, HashMap::new());
        Self { description: description.expect("the names in the table are valid"), source }
    }

    fn collect(&self, board: &Board) -> MetricFamily {
        let mut metrics = Vec::new();
        let kind = match self.source {
            Source::Counter(read) => {
                read(board, &mut |labels, value| {
                    let mut counter = Counter::default();
                    counter.set_value(value as f64);
                    let mut metric = self.labeled(labels);
                    metric.set_counter(counter);
                    metrics.push(metric);
                });
                MetricType::COUNTER
            }
            Source::Gauge(read) => {
                read(board, &mut |labels, value| {
                    let mut gauge = Gauge::default();
                    gauge.set_value(value as f64);
                    let mut metric = self.labeled(labels);
                    metric.set_gauge(gauge);
                    metrics.push(metric);
                });
                MetricType::GAUGE
            }
            Source::UpstreamSeconds => {
                for upstream in board.upstreams() {
                    let mut metric = self.labeled(&[&upstream.upstream]);
                    metric.set_histogram(histogram(&upstream));
                    metrics.push(metric);
                }
                MetricType::HISTOGRAM
            }
        };
        let mut family = MetricFamily::default();
        family.set_name(self.description.fq_name.clone());
        family.set_help(self.description.help.clone());
        family.set_field_type(kind);
        family.set_metric(metrics);
        family
    }

    /// A metric with these values of its labels; values beyond the names are left out.
    fn labeled(&self, values: &[&str]) -> Metric {
        let names = self.description.variable_labels.iter();
        let pairs = names.zip(values).map(|(name, &value)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.clone());
            pair.set_value(value.into());
            pair
        });
        Metric::from_label(pairs.collect())
    }
}

pub(super) struct Table {
    pub(super) rows: Vec<Row>,
    pub(super) board: Arc<Board>,
}

impl Collector for Table {
    fn desc(&self) -> Vec<&Desc> {
        self.rows.iter().map(|row| &row.description).collect()
    }

    /// An upstream's metrics are missing while there is no upstream; the format knows no empty metric.
    fn collect(&self) -> Vec<MetricFamily> {
        let families = self.rows.iter().map(|row| row.collect(&self.board));
        families.filter(|family| !family.get_metric().is_empty()).collect()
    }
}

/// How long an upstream has taken to respond.
fn histogram(upstream: &UpstreamCells) -> Histogram {
    let mut total = 0;
    let mut cumulate = |cell: &AtomicU64| {
        total += load(cell);
        total
    };
    let buckets = BOUNDS_SECONDS.iter().zip(&upstream.buckets).map(|(&bound, cell)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(cumulate(cell));
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(cumulate(&upstream.buckets[BOUNDS_SECONDS.len()]));
    histogram.set_sample_sum(load(&upstream.elapsed_nanos) as f64 / 1e9);
    histogram
}

/// These locks guard plain lists, which a panic elsewhere leaves whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
