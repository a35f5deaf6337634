//! All metrics in the form of Consul's `/v1/agent/metrics`.
//!
//! Consul sums what has happened in the last ten seconds. Our counters and histograms hold what has happened since the start,
//! as for Prometheus, and keep their names.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use humantime_serde::re::humantime::format_rfc3339_seconds;
use prometheus::proto::{Metric, MetricFamily, MetricType};
use serde::Serialize;

/// All metrics at one moment.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Summary {
    timestamp: String,
    gauges: Vec<Gauge>,
    points: [(); 0],
    counters: Vec<Sample>,
    samples: Vec<Sample>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Gauge {
    name: String,
    value: f64,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Sample {
    name: String,
    count: u64,
    rate: f64,
    sum: f64,
    min: f64,
    max: f64,
    mean: f64,
    stddev: f64,
    labels: BTreeMap<String, String>,
}

impl Summary {
    pub(super) fn new(families: &[MetricFamily], up: Duration) -> Self {
        // As Go prints a time.
        let timestamp = format_rfc3339_seconds(SystemTime::now()).to_string();
        let timestamp = timestamp.replace('T', " ").replace('Z', " +0000 UTC");
        let mut summary = Self { timestamp, gauges: Vec::new(), points: [], counters: Vec::new(), samples: Vec::new() };
        for family in families {
            let name = || family.name().to_owned();
            for metric in family.get_metric() {
                let labels = labels(metric);
                match family.get_field_type() {
                    MetricType::COUNTER => {
                        let value = metric.get_counter().get_value();
                        summary.counters.push(Sample::new(name(), value as u64, value, up, labels));
                    }
                    MetricType::HISTOGRAM => {
                        let histogram = metric.get_histogram();
                        let (count, sum) = (histogram.get_sample_count(), histogram.get_sample_sum());
                        summary.samples.push(Sample::new(name(), count, sum, up, labels));
                    }
                    _ => summary.gauges.push(Gauge { name: name(), value: metric.get_gauge().get_value(), labels }),
                }
            }
        }
        summary
    }
}

impl Sample {
    /// What is not known of the single events is what it would be if all were alike.
    fn new(name: String, count: u64, sum: f64, up: Duration, labels: BTreeMap<String, String>) -> Self {
        let mean = if count == 0 { 0.0 } else { sum / count as f64 };
        let rate = sum / up.as_secs_f64().max(1.0);
        Self { name, count, rate, sum, min: mean, max: mean, mean, stddev: 0.0, labels }
    }
}

fn labels(metric: &Metric) -> BTreeMap<String, String> {
    metric.get_label().iter().map(|pair| (pair.name().to_owned(), pair.value().to_owned())).collect()
}
