//! Every metric, declared once.
//!
//! What happens for each query is counted in `Cells`: one per worker, plain numbers that only this worker writes and
//! that are summed when somebody scrapes, so that counting costs a worker an addition and no cache line wanders
//! between cores. What belongs to an upstream is counted in its `UpstreamCells`, and what has a present value, such
//! as the size of the cache, is a `Level` that its owner sets, at the latest in a hook that runs before a scrape.

mod cells;
mod exposition;
mod summary;

pub use cells::{Cells, Dropped, Failure, Level, Levels, ListenerCells, Refusal, Rejection, Transport, UpstreamCells};
pub use summary::Summary;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, Weak},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::{Registry, TextEncoder, proto::MetricFamily};

use cells::{QTYPES, RCODES, Writers, load};
use exposition::{Board, Declare, Row, Table, lock};

/// All metrics of one daemon.
pub struct Metrics {
    registry: Registry,
    board: Arc<Board>,
}

impl Metrics {
    /// The table of all metrics: name, help, labels, and where the numbers come from.
    #[rustfmt::skip] // a table is read by its lines
    pub fn new() -> Self {
        let declare = Declare;
        Self::with_table(vec![
            declare.counters("server_received_total", "Messages received from clients, whatever they are.", &["transport"], |b, put| b.row(|c| &c.received, &Transport::LABELS, put)),
            declare.counters("server_queries_total", "Queries received.", &["transport", "qtype"], |b, put| b.grid(|c| &c.queries, (&Transport::LABELS, &QTYPES), put)),
            declare.counters("server_replies_total", "Replies to clients.", &["transport", "rcode"], |b, put| b.grid(|c| &c.replies, (&Transport::LABELS, &RCODES), put)),
            declare.counters("server_rejected_total", "Messages replied to without being resolved: malformed, unsupported, refused by the ACL, too many in all or of one client, truncated by the rate limit.", &["reason"], |b, put| b.row(|c| &c.rejections, &Rejection::LABELS, put)),
            declare.counters("server_dropped_total", "Messages without a reply: no DNS query, from a port that must not be replied to, dropped by an overlay or the rate limit, our own that came back from an upstream, or their connection was closed first.", &["reason"], |b, put| b.row(|c| &c.drops, &Dropped::LABELS, put)),
            declare.counters("server_kernel_drops_total", "Datagrams that the kernel dropped before we saw them: the buffers of the listener were full.", &["listener"], |b, put| b.each_listener(put)),
            declare.counters("server_unsent_total", "UDP replies that the system refused to send: no way to the client, or no room.", &[], |b, put| put(&[], b.sum(|c| &c.unsent))),
            declare.counters("server_worker_failures_total", "Times a worker failed or panicked, and began anew with its sockets.", &[], |b, put| put(&[], b.sum(|c| &c.worker_failures))),
            declare.counters("server_tcp_refused_total", "TCP and QUIC connections closed on our side before their end: refused by the ACL, more than one client may have, more than its network may open in a second, displaced by another, too slow to send or to take.", &["reason"], |b, put| b.row(|c| &c.refusals, &Refusal::LABELS, put)),
            declare.gauges("server_tcp_connections", "Open TCP and QUIC connections of clients.", &[], |b, put| put(&[], b.levels.tcp_connections.read())),

            declare.gauges("budget_held_bytes", "Bytes that wait for remote parties: clients, hosts that are checked, the Consul agent.", &["party"], |b, put| b.levels.budget_held.put(["client", "checked_host", "agent"], put)),
            declare.counters("budget_exceeded_total", "Connections closed because the data that waited for them exceeded a limit: that of a connection, of a client (or checked host) or of all together.", &["limit"], |b, put| b.levels.budget_exceeded.put(["connection", "client", "total"], put)),

            declare.gauges("control_connections", "Open HTTP connections of operators and their tools.", &[], |b, put| put(&[], b.levels.control_connections.read())),
            declare.gauges("control_waiting", "HTTP requests that wait for a change of the catalog.", &[], |b, put| put(&[], b.levels.control_waiting.read())),
            declare.counters("control_closed_total", "HTTP connections closed on our side: displaced by another, without a place, or too slow to read a response.", &["reason"], |b, put| b.levels.control_closed.put(["displaced", "no_place", "slow"], put)),

            declare.counters("cache_hits_total", "Queries answered from the cache by what had not expired.", &[], |b, put| put(&[], b.sum(|c| &c.hits))),
            declare.counters("cache_misses_total", "Queries that the cache could not answer.", &[], |b, put| put(&[], b.sum(|c| &c.misses))),
            declare.counters("cache_stale_total", "Queries answered from the cache by what had expired (RFC 8767).", &[], |b, put| put(&[], b.sum(|c| &c.stale))),
            declare.counters("cache_prefetches_total", "Popular entries asked for again before they expired.", &[], |b, put| put(&[], b.sum(|c| &c.prefetches))),
            declare.counters("cache_evictions_total", "Entries dropped for space.", &[], |b, put| put(&[], b.levels.cache_evictions.read())),
            declare.gauges("cache_entries", "Entries kept.", &[], |b, put| put(&[], b.levels.cache_entries.read())),
            declare.gauges("cache_bytes", "Memory of the entries kept.", &[], |b, put| put(&[], b.levels.cache_bytes.read())),
            declare.gauges("cache_limit_bytes", "Memory that entries may take.", &[], |b, put| put(&[], b.levels.cache_limit_bytes.read())),

            declare.counters("resolve_joined_total", "Queries that waited for the response to an equal one.", &[], |b, put| put(&[], b.sum(|c| &c.joined))),
            declare.gauges("resolve_waiting", "Clients that wait for a response.", &[], |b, put| put(&[], b.levels.waiting.read())),
            declare.gauges("resolve_in_flight", "Questions that wait for a response.", &[], |b, put| put(&[], b.levels.in_flight.read())),
            declare.gauges("resolve_queue_depth", "Questions that a task and not a worker forwards: they need a stream, or came by one.", &[], |b, put| put(&[], b.levels.queue_depth.read())),
            declare.counters("resolve_withheld_total", "Answers from which addresses within a site were left out (rebinding_guard).", &[], |b, put| put(&[], b.levels.withheld.read())),

            declare.counters("forward_sends_total", "Queries sent to the upstream, those sent again included.", &UPSTREAM, |b, put| b.each_upstream(&[""], |u, _| load(&u.sends), put)),
            declare.counters("forward_resends_total", "Queries sent to the upstream again.", &UPSTREAM, |b, put| b.each_upstream(&[""], |u, _| load(&u.resends), put)),
            declare.counters("forward_responses_total", "Responses of the upstream.", &["upstream", "rcode"], |b, put| b.each_upstream(&RCODES, |u, rcode| load(&u.responses[rcode]), put)),
            declare.counters("forward_timeouts_total", "Attempts given up without a response.", &UPSTREAM, |b, put| b.each_upstream(&[""], |u, _| load(&u.timeouts), put)),
            declare.counters("forward_failures_total", "Attempts refused by the network, and responses that cannot be meant for the query they came for.", &["upstream", "reason"], |b, put| b.each_upstream(&Failure::LABELS, |u, reason| load(&u.failures[reason]), put)),
            declare.counters("forward_loops_total", "Queries to see whether an upstream that does not answer forwards to us, and that came back.", &UPSTREAM, |b, put| b.each_upstream(&[""], |u, _| load(&u.loops), put)),
            declare.gauges("forward_up", "1 while the upstream is taken to be healthy.", &UPSTREAM, |b, put| b.each_upstream(&[""], |u, _| load(&u.up), put)),
            declare.histograms("forward_seconds", "From sending a query to its response.", &UPSTREAM),

            declare.gauges("zone_files", "Zone, overlay and hosts files: in service, or refused for faults.", &["state"], |b, put| b.levels.zone_files.put(["loaded", "faulty"], put)),

            declare.gauges("catalog_instances", "Instances of services, by the worst of their checks and their node's.", &["status"], |b, put| b.levels.catalog_instances.put(STATUSES, put)),
            declare.gauges("catalog_checks", "Checks of nodes and instances; unknown without a result.", &["status"], |b, put| b.levels.catalog_checks.put(STATUSES, put)),
            declare.counters("catalog_check_changes_total", "Changes of the status of checks that run here.", &[], |b, put| put(&[], b.levels.catalog_check_changes.read())),
            declare.gauges("catalog_cut_off", "1 while we are cut off from all other hosts, whose instances are given as they were before.", &[], |b, put| put(&[], b.levels.catalog_cut_off.read())),
            declare.gauges("catalog_faults", "Faults of definition files; their last good versions stay in service.", &[], |b, put| put(&[], b.levels.catalog_faults.read())),

            declare.gauges("catalog_source_up", "1 while the source is followed, 0 while what it said last stays in service or nothing is known.", &["source"], |b, put| b.levels.put_source(b.levels.catalog_source_up.read(), put)),
            declare.gauges("catalog_source_contact_timestamp_seconds", "When the source has answered last, since 1970; 0 for never.", &["source"], |b, put| b.levels.put_source(b.levels.catalog_source_contact.read(), put)),
            declare.gauges("catalog_source_followed", "Services whose changes are followed at the source.", &["source"], |b, put| b.levels.put_source(b.levels.catalog_source_followed.read(), put)),
            declare.counters("catalog_source_requests_total", "Requests to the source.", &["source", "result"], |b, put| b.levels.catalog_requests.put(["ok", "failed"], &mut |labels, value| if b.levels.has_source() { put(&["consul", labels[0]], value) })),

            declare.counters("daemon_panics_total", "Panics: each is a fault in the program, and cost one query or task.", &["thread"], |b, put| b.levels.panics.put(["worker", "task"], put)),
            declare.counters("daemon_reloads_total", "Reloads since the start.", &["result"], |b, put| b.levels.reloads.put(["ok", "failed"], put)),
            declare.gauges("daemon_last_reload_successful", "1 if the last reload, or the start, took effect.", &[], |b, put| put(&[], b.levels.last_reload_successful.read())),
            declare.gauges("daemon_last_reload_success_timestamp_seconds", "When the running configuration was loaded, since 1970.", &[], |b, put| put(&[], b.levels.last_reload_success.read())),
            declare.gauges("build_info", "1; the labels tell which build this is.", &["version"], |_, put| put(&[env!("CARGO_PKG_VERSION")], 1)),
            declare.process("process_open_fds", "Open file descriptors.", |b, put| put(&[], b.levels.open_files.read())),
            declare.process("process_max_fds", "The most file descriptors that may be open.", |b, put| put(&[], b.levels.open_files_limit.read())),
            declare.process("process_start_time_seconds", "When the process started, since 1970.", |b, put| put(&[], b.started)),
        ])
    }

    /// Cells for a worker, which alone may write to them.
    pub fn cells(&self) -> Arc<Cells> {
        self.board.add_cells(Writers::One)
    }

    /// Cells that any number of tasks may write to.
    pub fn shared_cells(&self) -> Arc<Cells> {
        self.board.add_cells(Writers::Many)
    }

    /// The cells of an upstream. Its metrics vanish when the last owner drops them; while one is left, asking for
    /// the same labels again gives the same cells, so that a reload goes on counting.
    pub fn upstream(&self, upstream: &str) -> Arc<UpstreamCells> {
        let mut upstreams = lock(&self.board.upstreams);
        let mut living = upstreams.iter().filter_map(Weak::upgrade);
        if let Some(known) = living.find(|cells| *cells.upstream == *upstream) {
            return known;
        }
        let cells = Arc::new(UpstreamCells::new(upstream));
        upstreams.push(Arc::downgrade(&cells));
        cells
    }

    /// The cells of a listener. They stay when it is closed, for a counter never falls, and are the same for whoever asks
    /// for this address again.
    pub fn listener(&self, address: &str) -> Arc<ListenerCells> {
        let mut listeners = lock(&self.board.listeners);
        if let Some(known) = listeners.iter().find(|cells| *cells.listener == *address) {
            return known.clone();
        }
        let cells = Arc::new(ListenerCells::new(address));
        listeners.push(cells.clone());
        cells
    }

    /// The numbers that have a present value.
    pub fn levels(&self) -> &Levels {
        &self.board.levels
    }

    /// Runs `hook` before each scrape, to set levels that are known only by looking.
    pub fn on_scrape(&self, hook: impl Fn(&Levels) + Send + Sync + 'static) {
        lock(&self.board.hooks).push(Box::new(hook));
    }

    /// Notes how a reload, or the start, went.
    pub fn reloaded(&self, outcome: Reload) {
        let levels = &self.board.levels;
        match outcome {
            Reload::Started => {}
            Reload::Ok => levels.reloads.0[0].add(1),
            Reload::Failed => levels.reloads.0[1].add(1),
        }
        levels.last_reload_successful.set(u64::from(outcome != Reload::Failed));
        if outcome != Reload::Failed {
            levels.last_reload_success.set(unix_seconds());
        }
    }

    /// Notes a panic, in a worker or elsewhere.
    pub fn panicked(&self, is_in_worker: bool) {
        self.board.levels.panics.0[usize::from(!is_in_worker)].add(1);
    }

    /// Everything, in Prometheus's text format.
    pub fn render(&self) -> String {
        TextEncoder::new().encode_to_string(&self.gather()).unwrap_or_default()
    }

    /// Everything, in the form of Consul's.
    pub fn summary(&self) -> Summary {
        Summary::new(&self.gather(), self.uptime())
    }

    /// The sum of each counter and gauge over all its labels, by its name.
    pub fn totals(&self) -> BTreeMap<String, f64> {
        let sum = |family: &MetricFamily| {
            let values = family
                .get_metric()
                .iter()
                .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value());
            (family.name().to_owned(), values.sum())
        };
        self.gather().iter().map(sum).collect()
    }

    /// How long this process has run.
    pub fn uptime(&self) -> Duration {
        Duration::from_secs(unix_seconds().saturating_sub(self.board.started))
    }

    fn gather(&self) -> Vec<MetricFamily> {
        for hook in lock(&self.board.hooks).iter() {
            hook(&self.board.levels);
        }
        self.registry.gather()
    }

    fn with_table(rows: Vec<Row>) -> Self {
        let board = Arc::new(Board {
            cells: Mutex::default(),
            upstreams: Mutex::default(),
            listeners: Mutex::default(),
            hooks: Mutex::default(),
            levels: Levels::default(),
            started: unix_seconds(),
        });
        let registry = Registry::new();
        let table = Table { rows, board: board.clone() };
        registry.register(Box::new(table)).expect("the names in the table differ from each other");
        Self { registry, board }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// How a reload went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// It was the start.
    Started,
    /// The new configuration is in service.
    Ok,
    /// The old configuration stays in service.
    Failed,
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const STATUSES: [&str; 4] = ["passing", "warning", "unknown", "critical"];
const UPSTREAM: [&str; 1] = ["upstream"];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The lines of a scrape that begin with this.
    fn lines(metrics: &Metrics, start: &str) -> Vec<String> {
        metrics.render().lines().filter(|line| line.starts_with(start)).map(Into::into).collect()
    }

    #[test]
    fn names_begin_with_the_program_and_end_in_their_unit() {
        let metrics = Metrics::new();
        let _upstream = metrics.upstream("192.0.2.53:53");
        metrics.listener("127.0.0.1:53");
        assert_eq!(lines(&metrics, "watershed_catalog_source"), Vec::<String>::new(), "there is none");
        metrics.levels().catalog_source_configured.set(1);
        let text = metrics.render();
        let types: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let rows = include_str!("mod.rs").lines().filter(|line| line.trim_start().starts_with("declare.")).count();
        assert_eq!(types.len(), rows, "each row of the table is rendered");
        for (name, kind) in types {
            assert!(name.starts_with("watershed_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}");
        }
    }

    #[test]
    fn workers_are_summed_and_outlive_themselves() {
        let metrics = Metrics::new();
        let (one, other) = (metrics.cells(), metrics.shared_cells());
        one.query(Transport::Udp, 1);
        other.query(Transport::Udp, 1);
        other.query(Transport::Tcp, 65_280);
        one.reply(Transport::Udp, 3);
        one.reject(Rejection::Acl);
        one.hit();
        drop(one);
        for line in [
            r#"watershed_server_queries_total{transport="udp",qtype="A"} 2"#,
            r#"watershed_server_queries_total{transport="tcp",qtype="other"} 1"#,
            r#"watershed_server_replies_total{transport="udp",rcode="NXDOMAIN"} 1"#,
            r#"watershed_server_rejected_total{reason="acl"} 1"#,
            "watershed_cache_hits_total 1",
            "watershed_cache_misses_total 0",
        ] {
            assert_eq!(lines(&metrics, line).len(), 1, "{line} in {}", metrics.render());
        }
    }

    #[test]
    fn an_upstream_is_shown_while_somebody_owns_it() {
        let metrics = Metrics::new();
        let first = metrics.upstream("192.0.2.53:53");
        first.sent();
        first.responded(0, Some(Duration::from_millis(2)));
        first.responded(2, Some(Duration::from_secs(9)));
        first.responded(2, None);
        first.failed(Failure::Mismatch);
        let again = metrics.upstream("192.0.2.53:53");
        again.resent();
        again.set_up(false);
        drop(first);
        for line in [
            "sends_total{LABELS} 2",
            "resends_total{LABELS} 1",
            r#"responses_total{LABELS,rcode="SERVFAIL"} 2"#,
            r#"failures_total{LABELS,reason="mismatch"} 1"#,
            "up{LABELS} 0",
            r#"seconds_bucket{LABELS,le="0.001"} 0"#,
            r#"seconds_bucket{LABELS,le="0.002"} 1"#,
            r#"seconds_bucket{LABELS,le="3.5"} 1"#,
            r#"seconds_bucket{LABELS,le="+Inf"} 2"#,
            "seconds_sum{LABELS} 9.002",
        ] {
            let line = line.replace("LABELS", r#"upstream="192.0.2.53:53""#);
            let line = format!("watershed_forward_{line}");
            assert_eq!(lines(&metrics, &line).len(), 1, "{line} in {}", metrics.render());
        }
        drop(again);
        assert_eq!(lines(&metrics, "watershed_forward"), Vec::<String>::new());
    }

    #[test]
    fn what_a_listener_has_lost_stays_when_it_is_closed_and_opened_again() {
        let metrics = Metrics::new();
        metrics.listener("127.0.0.1:53").kernel_dropped(7);
        metrics.listener("127.0.0.1:53").kernel_dropped(1);
        let line = r#"watershed_server_kernel_drops_total{listener="127.0.0.1:53"} 8"#;
        assert_eq!(lines(&metrics, "watershed_server_kernel_drops_total"), [line]);
    }

    #[test]
    fn hooks_set_levels_before_a_scrape() {
        let metrics = Metrics::new();
        metrics.on_scrape(|levels| levels.cache_entries.add(7));
        assert_eq!(lines(&metrics, "watershed_cache_entries"), ["watershed_cache_entries 7"]);
        assert_eq!(lines(&metrics, "watershed_cache_entries"), ["watershed_cache_entries 14"]);
    }

    #[test]
    fn a_summary_has_each_kind_where_consul_has_it() {
        let metrics = Metrics::new();
        metrics.levels().cache_entries.set(7);
        let upstream = metrics.upstream("192.0.2.1");
        let summary = serde_json::to_value(metrics.summary()).unwrap();
        let find = |kind: &str, name: &str| {
            summary[kind].as_array().unwrap().iter().find(|metric| metric["Name"] == name).cloned().unwrap()
        };
        assert_eq!(find("Gauges", "watershed_cache_entries")["Value"], 7.0);
        assert_eq!(find("Counters", "watershed_forward_sends_total")["Labels"]["upstream"], "192.0.2.1");
        assert_eq!(find("Samples", "watershed_forward_seconds")["Count"], 0);
        let timestamp = summary["Timestamp"].as_str().unwrap();
        assert!(timestamp.len() == 29 && timestamp.ends_with(" +0000 UTC"), "{timestamp}");
        drop(upstream);
    }

    #[test]
    fn a_failed_reload_keeps_the_time_of_the_last_good_one() {
        let metrics = Metrics::new();
        metrics.reloaded(Reload::Started);
        let loaded = lines(&metrics, "watershed_daemon_last_reload_success_timestamp_seconds");
        metrics.reloaded(Reload::Failed);
        assert_eq!(lines(&metrics, "watershed_daemon_last_reload_success_timestamp_seconds"), loaded);
        assert_eq!(
            lines(&metrics, "watershed_daemon_reloads_total"),
            [
                r#"watershed_daemon_reloads_total{result="failed"} 1"#,
                r#"watershed_daemon_reloads_total{result="ok"} 0"#
            ]
        );
        assert_eq!(
            lines(&metrics, "watershed_daemon_last_reload_successful"),
            ["watershed_daemon_last_reload_successful 0"]
        );
    }
}
