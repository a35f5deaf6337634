//! Every metric, declared once.
//!
//! What happens for each query is counted in `Cells`: one per worker, plain numbers that only this worker writes and
//! that are summed when somebody scrapes, so that counting costs a worker an addition and no cache line wanders
//! between cores. What belongs to an upstream is counted in its `UpstreamCells`, and what has a present value, such
//! as the size of the cache, is a `Level` that its owner sets, at the latest in a hook that runs before a scrape.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Registry, TextEncoder,
    core::{Collector, Desc},
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

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
            declare.counters("server_tcp_refused_total", "TCP connections closed on our side before their end: refused by the ACL, more than one client may have, idle when another needed the place, too slow to send or to take.", &["reason"], |b, put| b.row(|c| &c.refusals, &Refusal::LABELS, put)),
            declare.gauges("server_tcp_connections", "Open TCP connections of clients.", &[], |b, put| put(&[], b.levels.tcp_connections.read())),

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

            declare.gauges("zone_files", "Zone, overlay and hosts files: in service, or refused for a fault.", &["state"], |b, put| b.levels.zone_files.put(["loaded", "faulty"], put)),

            declare.gauges("catalog_instances", "Instances of services, by the worst of their checks and their node's.", &["status"], |b, put| b.levels.catalog_instances.put(STATUSES, put)),
            declare.gauges("catalog_checks", "Checks of nodes and instances.", &["status"], |b, put| b.levels.catalog_checks.put(STATUSES, put)),
            declare.counters("catalog_check_changes_total", "Changes of the status of checks that run here.", &[], |b, put| put(&[], b.levels.catalog_check_changes.read())),
            declare.gauges("catalog_cut_off", "1 while we are cut off from all other hosts, whose instances are given as they were before.", &[], |b, put| put(&[], b.levels.catalog_cut_off.read())),
            declare.gauges("catalog_faults", "Faults of definition files, whose last good versions stay in service.", &[], |b, put| put(&[], b.levels.catalog_faults.read())),

            declare.gauges("catalog_source_up", "1 while the source is followed, 0 while what it said last stays in service or nothing is known.", &["source"], |b, put| b.levels.put_source(b.levels.catalog_source_up.read(), put)),
            declare.gauges("catalog_source_contact_timestamp_seconds", "When the source has answered last, since 1970; 0 for never.", &["source"], |b, put| b.levels.put_source(b.levels.catalog_source_contact.read(), put)),
            declare.gauges("catalog_source_followed", "Services whose changes are followed at the source.", &["source"], |b, put| b.levels.put_source(b.levels.catalog_source_followed.read(), put)),
            declare.counters("catalog_source_requests_total", "Requests to the source.", &["source", "result"], |b, put| b.levels.catalog_requests.put(["ok", "failed"], &mut |labels, value| if b.levels.has_source() { put(&["consul", labels[0]], value) })),

            declare.counters("daemon_panics_total", "Panics: each is a fault in the program, and cost one query or task.", &["thread"], |b, put| b.levels.panics.put(["worker", "task"], put)),
            declare.counters("daemon_reloads_total", "Reloads since the start.", &["result"], |b, put| b.levels.reloads.put(["ok", "failed"], put)),
            declare.gauges("daemon_last_reload_successful", "1 if the last reload, or the start, took effect.", &[], |b, put| put(&[], b.levels.last_reload_successful.read())),
            declare.gauges("daemon_last_reload_success_timestamp_seconds", "When the running configuration was loaded, since 1970.", &[], |b, put| put(&[], b.levels.last_reload_success.read())),
            declare.gauges("build_info", "1; the labels tell which build this is.", &["version"], |_, put| put(&[env!("CARGO_PKG_VERSION")], 1)),
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
        let cells = Arc::new(ListenerCells { listener: address.into(), kernel_drops: AtomicU64::new(0) });
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
        for hook in lock(&self.board.hooks).iter() {
            hook(&self.board.levels);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
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

/// Declares the values of a label as an enum.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident: $($(#[$variant_doc:meta])* $variant:ident $label:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            const LABELS: [&str; [$($label),*].len()] = [$($label),*];
        }
    };
}

labels! {
    /// How a query came to us.
    Transport:
        /// A datagram.
        Udp "udp",
        /// A TCP connection.
        Tcp "tcp",
        /// DNS over TLS.
        Tls "tls",
        /// DNS over HTTPS.
        Https "https",
        /// DNS over QUIC.
        Quic "quic",
}

labels! {
    /// Why a message is replied to, but not resolved.
    Rejection:
        /// Replied to with FORMERR.
        Malformed "malformed",
        /// An opcode, class, EDNS version or qtype that is not served.
        Unsupported "unsupported",
        /// The client's address is not allowed.
        Acl "acl",
        /// A queue or a limit is full.
        Overload "overload",
        /// As many queries of this client wait as may.
        ClientOverload "client_overload",
        /// Its network gets no more replies now; this one is truncated.
        RateLimit "rate_limit",
}

labels! {
    /// Why a message gets no reply.
    Dropped:
        /// No DNS query at all: too short for a header, or a response.
        NotAQuery "not_a_query",
        /// It came from a port that nobody waits at, or where whatever comes is answered.
        Port "port",
        /// An overlay says so.
        Overlay "overlay",
        /// It is ours, and has come back from an upstream.
        Loop "loop",
        /// Its network gets no more replies now.
        RateLimit "rate_limit",
        /// The connection or the listener that the reply had to leave by was closed.
        Gone "gone",
}

labels! {
    /// Why we close a TCP connection before its end.
    Refusal:
        /// The client's address is not allowed.
        Acl "acl",
        /// The client has as many as it may.
        PerClient "per_client",
        /// It was idle longest when another needed the place.
        Displaced "displaced",
        /// The client took too long to send what it had begun, or to take a reply.
        Slow "slow",
}

labels! {
    /// What failed at an upstream.
    Failure:
        /// A closed port, no route, a connection that could not be made or was lost.
        Network "network",
        /// A response whose source, id, question, cookie or letters are not those of the query: late, or forged.
        Mismatch "mismatch",
}

/// What one worker counts.
#[derive(Debug)]
#[repr(align(128))] // two lines: the prefetcher fetches them in pairs
pub struct Cells {
    writers: Writers,
    received: [AtomicU64; Transport::LABELS.len()],
    queries: [[AtomicU64; QTYPES.len()]; Transport::LABELS.len()],
    replies: [[AtomicU64; RCODES.len()]; Transport::LABELS.len()],
    rejections: [AtomicU64; Rejection::LABELS.len()],
    drops: [AtomicU64; Dropped::LABELS.len()],
    refusals: [AtomicU64; Refusal::LABELS.len()],
    unsent: AtomicU64,
    worker_failures: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
    prefetches: AtomicU64,
    joined: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
enum Writers {
    One,
    Many,
}

impl Cells {
    /// So many messages came in.
    pub fn received(&self, transport: Transport, messages: usize) {
        self.count_many(&self.received[transport as usize], messages as u64);
    }

    /// A query came in; `qtype` is the registered number.
    pub fn query(&self, transport: Transport, qtype: u16) {
        self.count(&self.queries[transport as usize][qtype_index(qtype)]);
    }

    /// A message is replied to; `rcode` is the registered number, the extended bits included.
    pub fn reply(&self, transport: Transport, rcode: u16) {
        self.count(&self.replies[transport as usize][rcode_index(rcode)]);
    }

    /// A message is not resolved, but replied to.
    pub fn reject(&self, reason: Rejection) {
        self.count(&self.rejections[reason as usize]);
    }

    /// A message gets no reply.
    pub fn dropped(&self, reason: Dropped) {
        self.count(&self.drops[reason as usize]);
    }

    /// A TCP connection is closed before its end.
    pub fn refuse(&self, reason: Refusal) {
        self.count(&self.refusals[reason as usize]);
    }

    /// The system refused to send a reply.
    pub fn unsent(&self) {
        self.count(&self.unsent);
    }

    /// The worker failed, and begins anew.
    pub fn worker_failure(&self) {
        self.count(&self.worker_failures);
    }

    /// The cache answered, with what had not expired.
    pub fn hit(&self) {
        self.count(&self.hits);
    }

    /// The cache could not answer.
    pub fn miss(&self) {
        self.count(&self.misses);
    }

    /// The cache answered, with what had expired.
    pub fn stale(&self) {
        self.count(&self.stale);
    }

    /// A popular entry is asked for again before it expires.
    pub fn prefetch(&self) {
        self.count(&self.prefetches);
    }

    /// A query waits for the response to an equal one.
    pub fn joined(&self) {
        self.count(&self.joined);
    }

    /// With one writer, a load and a store do, and spare the price of a locked addition.
    fn count(&self, cell: &AtomicU64) {
        self.count_many(cell, 1);
    }

    fn count_many(&self, cell: &AtomicU64, by: u64) {
        match self.writers {
            Writers::One => cell.store(load(cell).wrapping_add(by), Relaxed),
            Writers::Many => add(cell, by),
        }
    }
}

/// What is counted for one listener.
#[derive(Debug)]
pub struct ListenerCells {
    listener: Box<str>,
    kernel_drops: AtomicU64,
}

impl ListenerCells {
    /// So many datagrams were dropped by the kernel.
    pub fn kernel_dropped(&self, datagrams: u64) {
        add(&self.kernel_drops, datagrams);
    }
}

/// What is counted for one upstream, by any thread.
#[derive(Debug)]
pub struct UpstreamCells {
    upstream: Box<str>,
    sends: AtomicU64,
    resends: AtomicU64,
    responses: [AtomicU64; RCODES.len()],
    timeouts: AtomicU64,
    loops: AtomicU64,
    failures: [AtomicU64; Failure::LABELS.len()],
    up: AtomicU64,
    /// Responses by the first bound that their time does not exceed; the last element is for all beyond.
    buckets: [AtomicU64; BOUNDS_SECONDS.len() + 1],
    elapsed_nanos: AtomicU64,
}

impl UpstreamCells {
    fn new(upstream: &str) -> Self {
        Self {
            upstream: upstream.into(),
            sends: AtomicU64::new(0),
            resends: AtomicU64::new(0),
            responses: Default::default(),
            timeouts: AtomicU64::new(0),
            loops: AtomicU64::new(0),
            failures: Default::default(),
            up: AtomicU64::new(1),
            buckets: Default::default(),
            elapsed_nanos: AtomicU64::new(0),
        }
    }

    /// A query was sent.
    pub fn sent(&self) {
        add(&self.sends, 1);
    }

    /// A query was sent again.
    pub fn resent(&self) {
        add(&self.sends, 1);
        add(&self.resends, 1);
    }

    /// A response came; `rcode` is the registered number. `elapsed` is `None` if its time says nothing of the usual way
    /// there.
    pub fn responded(&self, rcode: u16, elapsed: Option<Duration>) {
        add(&self.responses[rcode_index(rcode)], 1);
        if let Some(elapsed) = elapsed {
            let seconds = elapsed.as_secs_f64();
            add(&self.buckets[BOUNDS_SECONDS.partition_point(|&bound| bound < seconds)], 1);
            add(&self.elapsed_nanos, elapsed.as_nanos() as u64);
        }
    }

    /// An attempt was given up without a response.
    pub fn timed_out(&self) {
        add(&self.timeouts, 1);
    }

    /// A query came back to us.
    pub fn looped(&self) {
        add(&self.loops, 1);
    }

    /// An attempt failed.
    pub fn failed(&self, reason: Failure) {
        add(&self.failures[reason as usize], 1);
    }

    /// Whether the upstream is taken to be healthy; it is until this says otherwise.
    pub fn set_up(&self, up: bool) {
        self.up.store(u64::from(up), Relaxed);
    }

    fn histogram(&self) -> Histogram {
        let mut total = 0;
        let mut cumulate = |cell: &AtomicU64| {
            total += load(cell);
            total
        };
        let buckets = BOUNDS_SECONDS.iter().zip(&self.buckets).map(|(&bound, cell)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(cumulate(cell));
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(cumulate(&self.buckets[BOUNDS_SECONDS.len()]));
        histogram.set_sample_sum(load(&self.elapsed_nanos) as f64 / 1e9);
        histogram
    }
}

/// The numbers that have a present value. Their owners set them, at any time or in a hook before the scrape.
#[derive(Debug, Default)]
pub struct Levels {
    /// Entries in the cache.
    pub cache_entries: Level,
    /// Memory that these entries take.
    pub cache_bytes: Level,
    /// Memory that they may take.
    pub cache_limit_bytes: Level,
    /// Entries dropped for space since the start.
    pub cache_evictions: Level,
    /// Clients that wait for a response.
    pub waiting: Level,
    /// Questions that wait for a response.
    pub in_flight: Level,
    /// Answers from which addresses were left out since the start.
    pub withheld: Level,
    /// Questions that a task and not a worker forwards.
    pub queue_depth: Level,
    /// Open TCP connections of clients.
    pub tcp_connections: Level,
    /// Changes of the status of checks since the start.
    pub catalog_check_changes: Level,
    /// Faults of definition files.
    pub catalog_faults: Level,
    /// 1 while other hosts' instances are kept as they were, for we are cut off.
    pub catalog_cut_off: Level,
    /// 1 if there is a source to follow: nothing is told of one that there is not, lest an alert be raised over it.
    pub catalog_source_configured: Level,
    /// 1 while the source is followed.
    pub catalog_source_up: Level,
    /// When it has answered last, since 1970.
    pub catalog_source_contact: Level,
    /// Services that are followed there.
    pub catalog_source_followed: Level,
    catalog_requests: Split<2>,
    catalog_instances: Split<3>,
    catalog_checks: Split<3>,
    zone_files: Split<2>,
    reloads: Split<2>,
    panics: Split<2>,
    last_reload_successful: Level,
    last_reload_success: Level,
}

impl Levels {
    fn has_source(&self) -> bool {
        self.catalog_source_configured.read() > 0
    }

    fn put_source(&self, value: u64, put: &mut Put<'_>) {
        if self.has_source() {
            put(&["consul"], value);
        }
    }

    /// How many zone, overlay and hosts files are in service, and how many were refused for a fault.
    pub fn set_zone_files(&self, loaded: usize, faulty: usize) {
        self.zone_files.0[0].set(loaded as u64);
        self.zone_files.0[1].set(faulty as u64);
    }

    /// A request to a source has ended.
    pub fn add_catalog_request(&self, is_ok: bool) {
        self.catalog_requests.0[usize::from(!is_ok)].add(1);
    }

    /// How many instances, and how many checks, are passing, warning and critical.
    pub fn set_catalog(&self, instances: [u64; 3], checks: [u64; 3]) {
        let levels = self.catalog_instances.0.iter().chain(&self.catalog_checks.0);
        levels.zip(instances.into_iter().chain(checks)).for_each(|(level, count)| level.set(count));
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

impl Level {
    /// Makes it this.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Makes it more.
    pub fn add(&self, by: u64) {
        add(&self.0, by);
    }

    /// Makes it less.
    pub fn subtract(&self, by: u64) {
        self.0.fetch_sub(by, Relaxed);
    }

    /// What it is.
    pub fn read(&self) -> u64 {
        load(&self.0)
    }
}

/// The levels of one metric, from good to bad.
#[derive(Debug)]
struct Split<const N: usize>([Level; N]);

impl<const N: usize> Default for Split<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Level::default()))
    }
}

impl<const N: usize> Split<N> {
    fn put(&self, labels: [&str; N], put: &mut Put<'_>) {
        for (label, level) in labels.into_iter().zip(&self.0) {
            put(&[label], level.read());
        }
    }
}

/// Where all numbers are found when they are asked for.
struct Board {
    cells: Mutex<Vec<Arc<Cells>>>,
    upstreams: Mutex<Vec<Weak<UpstreamCells>>>,
    listeners: Mutex<Vec<Arc<ListenerCells>>>,
    hooks: Mutex<Vec<Hook>>,
    levels: Levels,
    started: u64,
}

type Hook = Box<dyn Fn(&Levels) + Send + Sync>;
/// Takes the values of the labels, in the order of their names, and the number.
type Put<'a> = dyn FnMut(&[&str], u64) + 'a;

impl Board {
    /// The cells of a worker that has ended stay: a counter never falls.
    fn add_cells(&self, writers: Writers) -> Arc<Cells> {
        let cells = Arc::new(Cells {
            writers,
            received: Default::default(),
            queries: Default::default(),
            replies: Default::default(),
            rejections: Default::default(),
            drops: Default::default(),
            refusals: Default::default(),
            unsent: AtomicU64::new(0),
            worker_failures: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            prefetches: AtomicU64::new(0),
            joined: AtomicU64::new(0),
        });
        lock(&self.cells).push(cells.clone());
        cells
    }

    fn sum(&self, cell: impl Fn(&Cells) -> &AtomicU64) -> u64 {
        lock(&self.cells).iter().map(|cells| load(cell(cells))).fold(0, u64::wrapping_add)
    }

    fn row<const N: usize>(&self, row: impl Fn(&Cells) -> &[AtomicU64; N], labels: &[&str; N], put: &mut Put<'_>) {
        for (index, label) in labels.iter().enumerate() {
            put(&[label], self.sum(|cells| &row(cells)[index]));
        }
    }

    fn grid<const N: usize, const M: usize>(
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

    fn each_listener(&self, put: &mut Put<'_>) {
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
    fn each_upstream(&self, second: &[&str], read: impl Fn(&UpstreamCells, usize) -> u64, put: &mut Put<'_>) {
        for upstream in self.upstreams() {
            for (index, label) in second.iter().enumerate() {
                put(&[&upstream.upstream, label], read(&upstream, index));
            }
        }
    }
}

/// Declares rows of the table.
struct Declare;

impl Declare {
    fn counters(&self, name: &str, help: &str, labels: &[&'static str], read: Read) -> Row {
        assert!(name.ends_with("_total"), "{name} is a counter");
        Row::new(format!("watershed_{name}"), help, labels, Source::Counter(read))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&'static str], read: Read) -> Row {
        Row::new(format!("watershed_{name}"), help, labels, Source::Gauge(read))
    }

    fn histograms(&self, name: &str, help: &str, labels: &[&'static str]) -> Row {
        Row::new(format!("watershed_{name}"), help, labels, Source::UpstreamSeconds)
    }

    /// A gauge whose name is the same in all daemons: dashboards look for it.
    fn process(&self, name: &str, help: &str, read: Read) -> Row {
        Row::new(name.into(), help, &[], Source::Gauge(read))
    }
}

type Read = fn(&Board, &mut Put<'_>);

enum Source {
    Counter(Read),
    Gauge(Read),
    UpstreamSeconds,
}

/// A line of the table.
struct Row {
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
                    metric.set_histogram(upstream.histogram());
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

struct Table {
    rows: Vec<Row>,
    board: Arc<Board>,
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

fn qtype_index(qtype: u16) -> usize {
    match qtype {
        1 => 0,
        28 => 1,
        33 => 2,
        12 => 3,
        16 => 4,
        15 => 5,
        2 => 6,
        6 => 7,
        5 => 8,
        43 => 9,
        48 => 10,
        65 => 11,
        64 => 12,
        255 => 13,
        _ => 14,
    }
}

fn rcode_index(rcode: u16) -> usize {
    match rcode {
        0..=5 => usize::from(rcode),
        16 => 6,
        23 => 7,
        _ => 8,
    }
}

fn load(cell: &AtomicU64) -> u64 {
    cell.load(Relaxed)
}

fn add(cell: &AtomicU64, by: u64) {
    cell.fetch_add(by, Relaxed);
}

/// These locks guard plain lists, which a panic elsewhere leaves whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const STATUSES: [&str; 3] = ["passing", "warning", "critical"];
const UPSTREAM: [&str; 1] = ["upstream"];
/// In the order of `qtype_index`.
const QTYPES: [&str; 15] =
    ["A", "AAAA", "SRV", "PTR", "TXT", "MX", "NS", "SOA", "CNAME", "DS", "DNSKEY", "HTTPS", "SVCB", "ANY", "other"];
/// In the order of `rcode_index`.
const RCODES: [&str; 9] =
    ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS", "BADCOOKIE", "other"];
/// From the resolution of the clock to the deadline of a query.
const BOUNDS_SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.5];

#[cfg(test)]
mod tests {
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
        let rows = include_str!("metrics.rs").lines().filter(|line| line.trim_start().starts_with("declare.")).count();
        assert_eq!(types.len(), rows, "each row of the table is rendered");
        for (name, kind) in types {
            assert!(name.starts_with("watershed_") || name == "process_start_time_seconds", "{name}");
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
