//! What SIGUSR1 logs: how much has been done, and how things stand.

use std::sync::Arc;

use crate::{catalog::Live, forward::Group, metrics::Metrics};

/// Writes statistics into the log.
pub(super) fn log(metrics: &Metrics, groups: &[Arc<Group>], catalog: Option<&Live>) {
    let totals = metrics.totals();
    let total = |name: &str| totals.get(name).copied().unwrap_or_default() as u64;
    let seconds = metrics.uptime().as_secs();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        uptime_seconds = seconds,
        received = total("watershed_server_received_total"),
        queries = total("watershed_server_queries_total"),
        replies = total("watershed_server_replies_total"),
        rejected = total("watershed_server_rejected_total"),
        dropped = total("watershed_server_dropped_total"),
        tcp_connections = total("watershed_server_tcp_connections"),
        in_flight = total("watershed_resolve_in_flight"),
        waiting = total("watershed_resolve_waiting"),
        "statistics of queries"
    );
    tracing::info!(
        hits = total("watershed_cache_hits_total"),
        misses = total("watershed_cache_misses_total"),
        stale = total("watershed_cache_stale_total"),
        entries = total("watershed_cache_entries"),
        bytes = total("watershed_cache_bytes"),
        limit_bytes = total("watershed_cache_limit_bytes"),
        evictions = total("watershed_cache_evictions_total"),
        "statistics of the cache"
    );
    for group in groups {
        let down = group.upstreams().iter().filter(|upstream| !upstream.is_up());
        let down: Vec<String> = down.map(|upstream| upstream.url().to_string()).collect();
        let up = group.upstreams().len() - down.len();
        tracing::info!(group = %group.name(), up, down = down.len(), upstreams_down = down.join(", "), "statistics of upstreams");
    }
    if let Some(catalog) = catalog {
        let now = catalog.load();
        let tally = now.tally();
        let [passing, warning, unknown, critical] = tally.instances;
        tracing::info!(
            services = now.services().count(),
            nodes = now.nodes().count(),
            passing,
            warning,
            unknown,
            critical,
            checks = tally.checks.iter().sum::<u64>(),
            checks_critical = tally.checks[3],
            "statistics of the catalog"
        );
    }
}
