//! What is counted, and by whom: each number, and what makes it more.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Declares the values of a label as an enum.
macro_rules! labels {
    ($(#[$doc:meta])* $name:ident: $($(#[$variant_doc:meta])* $variant:ident $label:literal,)*) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            pub(super) const LABELS: [&str; [$($label),*].len()] = [$($label),*];
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
        /// Its network opened too many in a second.
        Rate "rate",
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
    pub(super) received: [AtomicU64; Transport::LABELS.len()],
    pub(super) queries: [[AtomicU64; QTYPES.len()]; Transport::LABELS.len()],
    pub(super) replies: [[AtomicU64; RCODES.len()]; Transport::LABELS.len()],
    pub(super) rejections: [AtomicU64; Rejection::LABELS.len()],
    pub(super) drops: [AtomicU64; Dropped::LABELS.len()],
    pub(super) refusals: [AtomicU64; Refusal::LABELS.len()],
    pub(super) unsent: AtomicU64,
    pub(super) worker_failures: AtomicU64,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) prefetches: AtomicU64,
    pub(super) joined: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Writers {
    One,
    Many,
}

impl Cells {
    pub(super) fn new(writers: Writers) -> Self {
        Self {
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
        }
    }

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
    pub(super) listener: Box<str>,
    pub(super) kernel_drops: AtomicU64,
}

impl ListenerCells {
    pub(super) fn new(listener: &str) -> Self {
        Self { listener: listener.into(), kernel_drops: AtomicU64::new(0) }
    }

    /// So many datagrams were dropped by the kernel.
    pub fn kernel_dropped(&self, datagrams: u64) {
        add(&self.kernel_drops, datagrams);
    }
}

/// What is counted for one upstream, by any thread.
#[derive(Debug)]
pub struct UpstreamCells {
    pub(super) upstream: Box<str>,
    pub(super) sends: AtomicU64,
    pub(super) resends: AtomicU64,
    pub(super) responses: [AtomicU64; RCODES.len()],
    pub(super) timeouts: AtomicU64,
    pub(super) loops: AtomicU64,
    pub(super) failures: [AtomicU64; Failure::LABELS.len()],
    pub(super) up: AtomicU64,
    /// Responses by the first bound that their time does not exceed; the last element is for all beyond.
    pub(super) buckets: [AtomicU64; BOUNDS_SECONDS.len() + 1],
    pub(super) elapsed_nanos: AtomicU64,
}

impl UpstreamCells {
    pub(super) fn new(upstream: &str) -> Self {
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
}

/// The numbers that have a present value. Their owners set them, at any time or in a hook before the scrape.
#[derive(Debug, Default)]
pub struct Levels {
    /// Bytes that wait for remote parties.
    pub(super) budget_held: Split<3>,
    pub(super) budget_exceeded: Split<3>,
    pub(super) control_connections: Level,
    pub(super) control_waiting: Level,
    pub(super) control_closed: Split<3>,
    /// Descriptors in use.
    pub open_files: Level,
    /// Descriptors that there may be.
    pub open_files_limit: Level,
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
    pub(super) catalog_requests: Split<2>,
    pub(super) catalog_instances: Split<4>,
    pub(super) catalog_checks: Split<4>,
    pub(super) zone_files: Split<2>,
    pub(super) reloads: Split<2>,
    pub(super) panics: Split<2>,
    pub(super) last_reload_successful: Level,
    pub(super) last_reload_success: Level,
}

impl Levels {
    pub(super) fn has_source(&self) -> bool {
        self.catalog_source_configured.read() > 0
    }

    pub(super) fn put_source(&self, value: u64, put: &mut Put<'_>) {
        if self.has_source() {
            put(&["consul"], value);
        }
    }

    /// Bytes that wait for clients, checked hosts and the agent, and how often the limits of a connection, a client and all
    /// clients were met.
    pub fn set_budget(&self, held_bytes: [usize; 3], exceeded: [u64; 3]) {
        self.budget_held.0.iter().zip(held_bytes).for_each(|(level, bytes)| level.set(bytes as u64));
        self.budget_exceeded.0.iter().zip(exceeded).for_each(|(level, count)| level.set(count));
    }

    /// HTTP connections, requests that wait for a change, and how many connections were displaced, found no place, and were
    /// too slow.
    pub fn set_control(&self, connections: usize, waiting: usize, closed: [u64; 3]) {
        self.control_connections.set(connections as u64);
        self.control_waiting.set(waiting as u64);
        self.control_closed.0.iter().zip(closed).for_each(|(level, count)| level.set(count));
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

    /// How many instances, and how many checks, are passing, warning, unknown and critical.
    pub fn set_catalog(&self, instances: [u64; 4], checks: [u64; 4]) {
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
pub(super) struct Split<const N: usize>(pub(super) [Level; N]);

impl<const N: usize> Default for Split<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Level::default()))
    }
}

impl<const N: usize> Split<N> {
    pub(super) fn put(&self, labels: [&str; N], put: &mut Put<'_>) {
        for (label, level) in labels.into_iter().zip(&self.0) {
            put(&[label], level.read());
        }
    }
}

/// Takes the values of the labels, in the order of their names, and the number.
pub(super) type Put<'a> = dyn FnMut(&[&str], u64) + 'a;

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

pub(super) fn load(cell: &AtomicU64) -> u64 {
    cell.load(Relaxed)
}

fn add(cell: &AtomicU64, by: u64) {
    cell.fetch_add(by, Relaxed);
}

/// In the order of `qtype_index`.
pub(super) const QTYPES: [&str; 15] =
    ["A", "AAAA", "SRV", "PTR", "TXT", "MX", "NS", "SOA", "CNAME", "DS", "DNSKEY", "HTTPS", "SVCB", "ANY", "other"];
/// In the order of `rcode_index`.
pub(super) const RCODES: [&str; 9] =
    ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "BADVERS", "BADCOOKIE", "other"];
/// From the resolution of the clock to the deadline of a query.
pub(super) const BOUNDS_SECONDS: [f64; 12] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.5];
