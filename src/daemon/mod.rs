//! One daemon from all rooms: start, reload, stop.
//!
//! It introduces the faces to the heart, owns every thread and task, and hears the signals. SIGHUP reloads everything
//! or nothing of the configuration; changed data files are taken in by themselves, a faulty one's last good version staying in
//! service. SIGTERM and SIGINT stop: what is asked already is still replied to. SIGUSR2 hands over to a new process.

mod agent;
mod catalog;
mod changes;
mod check;
mod data;
mod differences;
mod disk;
mod exposure;
mod guard;
mod handover;
mod http;
mod inherited;
mod interfaces;
mod keeping;
mod lasting;
mod listen;
mod memory;
mod panics;
mod places;
mod reading;
mod registrations;
mod saved;
mod serving;
mod statistics;
mod status;
mod store;
mod watch;

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    thread::available_parallelism,
    time::Duration,
};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use sd_notify::NotifyState;
use tokio::{
    runtime::Handle as Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::catalog::Catalog;
use crate::{
    budget::Budget,
    cache::{Cache, Epoch},
    catalog::System,
    clock::Moment,
    config::{Loaded, Refused, Upstreams},
    control,
    files::{Stamp, Version},
    forward,
    metrics::{Metrics, Reload},
    resolve::{Resolver, Route, Rules, Tables},
    server::{Face, Identity, Service},
    sys, zone,
};
pub use check::{Report, ServiceSummary, Unreadable, check};
use data::{Data, Keeper};
use handover::{Predecessor, Successor};
use http::Http;
use inherited::Inherited;
use lasting::{caught, run_lasting};
use places::{Kept, registrations_place, snapshot_file};
use reading::{Cause, Changed, Fresh, Known, Outcome, Reading, SystemUpstreams};
use serving::{DRAIN, Prepared, Serving};
use status::Status;
use watch::{Followed, Watch};

/// Serves until told to stop. At start every fault of the configuration is fatal, and none of a data file.
pub fn run(loaded: Loaded) -> Result<()> {
    // Left to the limit that is set: fewer upstream sockets are used then.
    let _ = sys::limit_open_files(loaded.config.limits.open_files);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers(0))
        .enable_all()
        .build()
        .context("cannot start the task threads; see `ulimit -u`")?;
    let outcome = runtime.block_on(async {
        // Before anything else: a signal without a handler ends the process.
        let mut signals = Signals::new().context("cannot hear signals")?;
        let mut daemon = tokio::select! {
            // Beside this task: files may keep it waiting.
            daemon = tokio::task::spawn_blocking(|| Daemon::start(Arc::new(loaded))) => daemon.context("not started")??,
            () = signals.told_to_stop() => {
                tracing::info!("stopped before it served");
                return Ok(());
            }
        };
        let end = daemon.serve(&mut signals).await;
        daemon.stop(end).await
    });
    // What is left are tasks whose clients are gone.
    runtime.shutdown_timeout(Duration::from_millis(50));
    outcome
}

struct Daemon {
    loaded: Arc<Loaded>,
    files: Arc<zone::Files>,
    catalog: Option<Catalog>,
    groups: Vec<Arc<forward::Group>>,
    epoch: Epoch,
    face: Arc<Face>,
    metrics: Arc<Metrics>,
    status: Arc<Mutex<Status>>,
    serving: Serving,
    identity: Arc<Identity>,
    http: Http,
    /// What the API serves.
    feed: tokio::sync::watch::Sender<Option<Arc<control::consul::Served>>>,
    /// The names under which HTTP is served.
    hosts: control::OwnHosts,
    /// The connections of all HTTP listeners.
    connections: Arc<control::Connections>,
    /// Reloads that the API is asked for.
    reloads: (control::consul::Reloads, mpsc::Receiver<oneshot::Sender<Result<(), String>>>),
    tasks: TaskTracker,
    stopping: CancellationToken,
    data: Data,
    keeper: Keeper,
    /// The files that may say who the system's upstreams are, as they were when that was read.
    system_files: Vec<(PathBuf, Option<Stamp>)>,
    watch: Arc<Watch>,
    changed: mpsc::Receiver<()>,
    /// Whether the start is over: the first results of checks are known, or are not waited for any longer.
    is_ready: bool,
    /// Sockets that were open before, and are not configured any more.
    unclaimed: Inherited,
    /// Why an interface that has come is not listened on.
    interface_fault: Option<String>,
}

/// Why it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was told to.
    Told,
    /// A successor serves.
    Succeeded,
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
    hand_over: Signal,
    report: Signal,
}

impl Daemon {
    /// Starts to serve, and tells the predecessor, if there is one. Blocks.
    fn start(loaded: Arc<Loaded>) -> Result<Self> {
        let predecessor = Predecessor::find().context("cannot hear the process that runs")?;
        let daemon = Self::start_after(loaded, predecessor.as_ref(), Runtime::current())?;
        // Until it has spoken, the service manager hears only the other.
        predecessor.map_or(Ok(()), Predecessor::succeed)?;
        Ok(daemon)
    }

    fn start_after(loaded: Arc<Loaded>, predecessor: Option<&Predecessor>, runtime: Runtime) -> Result<Self> {
        let config = &loaded.config;
        let worker_count = workers(config.server.workers);
        let handed_over =
            predecessor.map(Predecessor::sockets).transpose().context("cannot hear the process that runs")?;
        let mut inherited = Inherited::take(handed_over.unwrap_or_default())?;
        let units = inherited.take_units(worker_count)?;
        let is_of_units = |(service, _)| service == Service::Plain && !units.is_empty();
        let mut open_all = || serving::open_all(&config.server, worker_count, is_of_units, &mut inherited);
        // The sockets first: their absence is the most frequent fault, and the lock against a second daemon. But not beside a
        // predecessor: the kernel would at once give a further socket its share of the queries, and here is nobody yet.
        let first = predecessor.is_none().then(&mut open_all).transpose()?;
        let metrics = Arc::new(Metrics::new());
        let Fresh { data: mut read, groups, certificate, warnings, .. } =
            reading::read_at_start(loaded.clone(), metrics.clone())?;
        let are_kept = Kept::of(&loaded).zones.are_kept();
        if predecessor.is_some() && !are_kept && read.zones.files.failed_zones().next().is_some() {
            // The process that runs may have what we have not.
            return Err(Refused::new(read.zones.faults).into());
        }
        let mut data = Data::default();
        data.report(&zone::Files::default(), &read.zones, read.definitions.as_ref());
        warn(warnings);

        panics::report(metrics.clone());
        let epoch = Epoch(1);
        let configured = first.map_or_else(open_all, Ok)?;
        let open: Vec<_> = units.into_iter().map(|listener| (listener, None)).chain(configured).collect();
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let versions = read.take_versions();
        let budget = Arc::<Budget>::default();
        budget.set_limits(config.limits.clone());
        let catalog = read.take_plan().map(|plan| {
            let place = registrations_place(&loaded);
            // As late as possible: what the predecessor finds out from now on has to be found out here once more.
            let passed_on = predecessor.and_then(Predecessor::estate);
            let charged = (metrics.clone(), budget.clone());
            Catalog::start(plan, place, passed_on.as_deref(), charged, &tasks, &stopping)
        });
        let tables = Tables::new(rules(&loaded, &read.zones.files, &groups, catalog.as_ref()), epoch);
        let cache = Cache::new(config.cache.size.as_u64() as usize);
        let resolver = Arc::new(Resolver::new(cache, tables, config.server.max_in_flight));
        resolver.set_most_waiting(config.server.max_in_flight, config.server.max_in_flight_per_client);
        let face = Arc::new(Face::new(resolver, config.server.clone(), &metrics, runtime).charging(budget));
        let (change, changed) = mpsc::channel(1);
        let identity = Arc::<Identity>::default();
        let feed = tokio::sync::watch::Sender::new(None);
        let mut daemon = Self {
            files: read.zones.files.into(),
            catalog,
            groups,
            epoch,
            serving: Serving::new(face.clone(), identity.clone(), tasks.clone(), stopping.clone()),
            connections: Arc::new(control::Connections::new(face.budget().clone(), &config.control)),
            face,
            metrics,
            status: Arc::default(),
            identity,
            http: Http::default(),
            hosts: control::OwnHosts::new(&config.control.host_names(), feed.subscribe()),
            reloads: mpsc::channel(1),
            feed,
            keeper: Keeper::new(&tasks),
            tasks,
            stopping,
            data,
            system_files: read.system_files,
            watch: Watch::new(change).context("cannot watch files")?.into(),
            changed,
            is_ready: false,
            unclaimed: Inherited::default(),
            interface_fault: None,
            loaded,
        };
        daemon.identity.set(certificate);
        daemon.show_catalog();
        let control = daemon.http.bind(&daemon.loaded.config, &mut inherited)?;
        daemon.serving.start_workers(worker_count, &daemon.metrics)?;
        for opened in open {
            daemon.serving.open(Prepared::new(opened)?, &daemon.metrics);
        }
        daemon.serving.settle();
        daemon.observe();
        daemon.serve_control(control);
        daemon.unclaimed = inherited;
        daemon.probe_upstreams();
        daemon.metrics.reloaded(Reload::Started);
        daemon.keep_versions(versions);
        daemon.note_state();
        daemon.status.lock().lacks_first_results = daemon.catalog.as_ref().is_some_and(Catalog::lacks_results);
        daemon.watch_files();
        daemon.tasks.spawn(run_lasting("comparing files", {
            let (watch, stopping) = (daemon.watch.compared(), daemon.stopping.clone());
            move || watch::compare(watch.clone(), stopping.clone())
        }));
        log_system(&daemon.loaded.upstreams);
        Ok(daemon)
    }

    /// Hears signals and changes until it is to stop.
    async fn serve(&mut self, signals: &mut Signals) -> End {
        // Not earlier: the service manager hears the main process alone, and a predecessor may still have to serve on.
        std::mem::take(&mut self.unclaimed).close();
        self.keep_sockets();
        if let Some(file) = snapshot_file(&self.loaded) {
            saved::restore_cache(self.face.resolver().clone(), file, self.loaded.config.cache.size.as_u64());
        }
        let mut watchdog = sd_notify::watchdog_enabled().map(|limit| tokio::time::interval(limit / 2));
        let mut successor: Option<JoinHandle<Result<Successor>>> = None;
        let results = self.catalog.as_ref().map(Catalog::first_results);
        let mut first_results = pin!(async {
            if let Some(results) = results {
                results.await;
            }
        });
        let mut interfaces = tokio::time::interval(interfaces::INTERVAL);
        interfaces.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reading: Option<Reading> = None;
        // When files that have changed are to be read: those who write several, or one in several steps, get a moment to finish.
        let mut settled: Option<Instant> = None;
        loop {
            let may_reload = successor.is_none() && !reading.as_ref().is_some_and(Reading::is_for_reload);
            tokio::select! {
                _ = interfaces.tick(), if successor.is_none() && interfaces::are_followed(&self.loaded.config) => {
                    self.follow_interfaces();
                }
                () = &mut first_results, if !self.is_ready => {
                    self.is_ready = true;
                    self.status.lock().lacks_first_results = false;
                    tracing::info!("ready");
                    notify_manager(&[NotifyState::Ready]);
                }
                _ = signals.terminate.recv() => return End::Told,
                _ = signals.interrupt.recv() => return End::Told,
                // A reload takes the place of whatever is being read. Beside a successor, both would come to know different
                // addresses.
                _ = signals.hangup.recv(), if may_reload => reading = Some(self.begin_reload(None)),
                Some(done) = self.reloads.1.recv(), if may_reload => reading = Some(self.begin_reload(Some(done))),
                Some(()) = self.changed.recv(), if settled.is_none() && reading.is_none() => {
                    settled = Some(Instant::now() + SETTLING);
                }
                () = sleep_until(settled.unwrap_or_else(Instant::now)), if settled.is_some() && reading.is_none() => {
                    settled = None;
                    while self.changed.try_recv().is_ok() {}
                    reading = Some(Reading::for_change(self.known(), &self.watch));
                }
                Some(read) = async { Some(reading.as_mut()?.outcome().await) } => {
                    let cause = reading.take().map(|reading| reading.cause);
                    match (read, cause) {
                        (Ok(Outcome::Change(read)), _) => self.take_in_files(*read).await,
                        (Err(_), Some(Cause::Change)) => tracing::error!("{NOT_TAKEN_IN}"),
                        (Ok(Outcome::Reload(read)), Some(Cause::Reload(done))) => self.end_reload(read, done).await,
                        (Err(_), Some(Cause::Reload(done))) => self.end_reload(Err(at_fault()), done).await,
                        // Never: what is read follows from the cause.
                        (_, _) => {}
                    }
                }
                _ = signals.report.recv() => {
                    let catalog = self.catalog.as_ref().map(Catalog::live);
                    statistics::log(&self.metrics, &self.groups, catalog.as_deref());
                }
                _ = signals.hand_over.recv(), if successor.is_none() && reading.is_none() => successor = Some(self.start_successor().await),
                Some(started) = async { Some(successor.as_mut()?.await) } => {
                    successor = None;
                    match started.context("cannot wait for the new process").and_then(|started| started) {
                        Ok(successor) => {
                            let process = successor.process_id();
                            notify_manager(&[NotifyState::MainPid(process)]);
                            // It may have read its files before they were changed.
                            let is_outdated = signals.has_hung_up().await;
                            successor.release(is_outdated);
                            tracing::info!(process, "handed over");
                            return End::Succeeded;
                        }
                        Err(error) => self.go_on(&error).await,
                    }
                }
                Some(_) = async { Some(watchdog.as_mut()?.tick().await) } => notify_manager(&[NotifyState::Watchdog]),
            }
        }
    }

    /// Begins to hand over to a new process. What is registered and what is cached is on the disk before it starts.
    async fn start_successor(&mut self) -> JoinHandle<Result<Successor>> {
        tracing::info!("handing over to a new process");
        self.http.pause().await;
        if let Some(catalog) = &self.catalog {
            catalog.leave_files().await;
        }
        let sockets = self.serving.sockets().chain(self.http.sockets());
        let sockets: io::Result<Vec<_>> =
            sockets.map(|(name, socket)| Ok((name, socket.try_clone_to_owned()?))).collect();
        let cache = snapshot_file(&self.loaded).map(|file| (self.face.resolver().clone(), file));
        let estate = self.catalog.as_ref().map(Catalog::estate);
        tokio::task::spawn_blocking(move || {
            if let Some((resolver, file)) = cache {
                saved::save_cache(&resolver, file);
            }
            Successor::start(sockets.context("cannot pass the sockets on; see `ulimit -n`")?, estate)
        })
    }

    /// Serves on after a hand-over has failed.
    async fn go_on(&mut self, error: &anyhow::Error) {
        tracing::error!(error = format!("{error:#}"), "not handed over; this process serves on");
        if let Some(catalog) = &self.catalog {
            catalog.take_back_files().await;
        }
        let paused = self.http.resume();
        self.serve_control(paused);
    }

    /// Has the service manager keep the sockets that it does not have yet.
    fn keep_sockets(&mut self) {
        self.serving.keep_sockets();
        self.http.keep_sockets();
    }

    /// What is in service, for those who read what comes next.
    fn known(&self) -> Known {
        Known {
            loaded: self.loaded.clone(),
            zones: self.files.clone(),
            definitions: self.catalog.as_ref().map(Catalog::current),
            groups: self.groups.clone(),
            metrics: self.metrics.clone(),
        }
    }

    /// Begins to read the configuration and all data files anew, to be taken in as a whole or, if the configuration has any
    /// fault, not at all.
    fn begin_reload(&self, done: Option<oneshot::Sender<Result<(), String>>>) -> Reading {
        // A start goes on: the service manager hears that it is over, and nothing before that.
        if self.is_ready {
            let since_boot = NotifyState::monotonic_usec_now();
            notify_manager(&[NotifyState::Reloading].into_iter().chain(since_boot).collect::<Vec<_>>());
        }
        Reading::for_reload(self.known(), done)
    }

    /// Takes in what was read for a reload.
    async fn end_reload(&mut self, read: Result<Box<Fresh>>, done: Option<oneshot::Sender<Result<(), String>>>) {
        let outcome = caught(async { self.take_in_all(*read?) }).await;
        let outcome = outcome.unwrap_or_else(|_| Err(at_fault()));
        let outcome = outcome.map_err(|error| format!("{error:#}"));
        match &outcome {
            Ok((retired, changed)) => {
                self.metrics.reloaded(Reload::Ok);
                let changed = if changed.is_empty() { "nothing".to_owned() } else { changed.join(", ") };
                tracing::info!(retired, changed, "reloaded");
            }
            Err(error) => {
                self.metrics.reloaded(Reload::Failed);
                self.status.lock().refused_reload = error.lines().map(str::to_owned).collect();
                data::log_some(error.lines(), |line| tracing::error!(error = line, "reload failed"));
                // The reload may have taken the place of a change that was being read.
                self.watch.note_change();
            }
        }
        if self.is_ready {
            notify_manager(&[NotifyState::Ready]);
        }
        if let Some(done) = done {
            // A client that has gone does not hear it.
            let _ = done.send(outcome.map(|_| ()));
        }
    }

    /// Says how many answers have been retired, and what has changed.
    fn take_in_all(&mut self, fresh: Fresh) -> Result<(usize, Vec<String>)> {
        let Fresh { loaded, mut data, groups, certificate, warnings } = fresh;
        // Everything that can fail comes first, duplicating descriptors included; nothing has changed until then.
        let listeners = self.serving.open_missing(&loaded.config.server)?;
        let control = self.http.bind(&loaded.config, &mut Inherited::default())?;
        warn(warnings);
        let changed = differences::between(&self.loaded.config, &loaded.config);

        let changes = self.data.report(&self.files, &data.zones, data.definitions.as_ref());
        let versions = data.take_versions();
        let plan = data.take_plan();
        self.loaded = loaded;
        self.system_files = data.system_files;
        self.hosts.set(&self.loaded.config.control.host_names());
        self.files = data.zones.files.into();
        self.groups = groups;
        self.identity.set(certificate);
        self.catalog.iter().for_each(Catalog::repeat_warnings);
        self.adopt_catalog(plan);
        let config = &self.loaded.config;
        self.face.resolver().cache().resize(config.cache.size.as_u64() as usize);
        self.face.resolver().set_most_waiting(config.server.max_in_flight, config.server.max_in_flight_per_client);
        self.face.set_config(config.server.clone());
        self.face.budget().set_limits(config.limits.clone());
        self.connections.set_limits(&config.control);
        let retired = self.swap_tables();
        for listener in listeners {
            self.serving.open(listener, &self.metrics);
        }
        self.serving.close_others(&self.loaded.config.server);
        self.serve_control(control);
        self.keep_sockets();
        self.status.lock().refused_reload.clear();
        changes.log(retired, self.data.faults().count());
        self.keep_versions(versions);
        self.note_state();
        self.watch_files();
        Ok((retired, changed))
    }

    /// Takes in data files that have changed, and upstreams of the system. A faulty file stays as it was.
    async fn take_in_files(&mut self, read: Changed) {
        if caught(async { self.take_in_changed(read) }).await.is_err() {
            tracing::error!("{NOT_TAKEN_IN}");
        }
    }

    fn take_in_changed(&mut self, Changed { mut data, system }: Changed) {
        let changes = self.data.report(&self.files, &data.zones, data.definitions.as_ref());
        let versions = data.take_versions();
        let plan = data.take_plan();
        // A zone that fails has no table, and a zone that is mended may have failed.
        let is_changed = !changes.is_empty() || data.zones.files.generations().ne(self.files.generations());
        self.files = data.zones.files.into();
        self.system_files = data.system_files;
        let is_rerouted = self.follow_system(system);
        if self.adopt_catalog(plan) || is_changed || is_rerouted {
            let retired = self.swap_tables();
            changes.log(retired, self.data.faults().count());
        }
        self.keep_versions(versions);
        self.note_state();
        self.watch_files();
    }

    /// Takes in the system's upstreams if they are others now, or known at last. Whether they are.
    fn follow_system(&mut self, system: Option<SystemUpstreams>) -> bool {
        let Some(SystemUpstreams { loaded, groups }) = system else { return false };
        match groups {
            Ok(groups) => self.groups = groups,
            Err(errors) => {
                errors.iter().for_each(|error| tracing::error!(error, "the system's upstreams are not taken in"));
                return false;
            }
        }
        self.loaded = loaded.into();
        log_system(&self.loaded.upstreams);
        true
    }

    /// Keeps the last good versions of data files for the next start.
    fn keep_versions(&self, (zones, definitions): (Vec<Version>, Vec<Version>)) {
        let copies = Kept::of(&self.loaded);
        let files = self.files.clone();
        self.keeper.keep(&copies.zones, zones, move || files.kept());
        let files = self.catalog.as_ref().map(Catalog::files);
        self.keeper.keep(&copies.definitions, definitions, move || {
            files.as_ref().map(|files| files.kept()).unwrap_or_default()
        });
    }

    /// Puts a catalog into service, or this plan in the place of the one it has. Without a plan it stays as it is, or
    /// goes if it is not configured any more. Whether tables have to be made anew.
    fn adopt_catalog(&mut self, plan: Option<catalog::Plan>) -> bool {
        let is_other = match (&self.catalog, plan) {
            (Some(catalog), Some(plan)) => catalog.adopt(plan),
            (None, Some(plan)) => {
                let place = registrations_place(&self.loaded);
                let charged = (self.metrics.clone(), self.face.budget().clone());
                self.catalog = Some(Catalog::start(plan, place, None, charged, &self.tasks, &self.stopping));
                true
            }
            (Some(_), None) if !self.loaded.config.catalog.has_source() => {
                self.catalog = None;
                true
            }
            (_, None) => false,
        };
        self.catalog.iter().for_each(|catalog| catalog.keep_registrations(registrations_place(&self.loaded)));
        self.show_catalog();
        is_other
    }

    /// Lets the API serve the catalog that there is.
    fn show_catalog(&self) {
        let config = &self.loaded.config.catalog.api;
        self.feed.send_if_modified(|before| {
            let served = self.catalog.as_ref().map(|catalog| catalog.serve(before.as_ref(), config));
            let is_same = match (&*before, &served) {
                (Some(before), Some(served)) => Arc::ptr_eq(before, served),
                (before, served) => before.is_none() && served.is_none(),
            };
            *before = served;
            !is_same
        });
    }

    fn swap_tables(&mut self) -> usize {
        self.epoch = Epoch(self.epoch.0.wrapping_add(1));
        let rules = rules(&self.loaded, &self.files, &self.groups, self.catalog.as_ref());
        self.face.resolver().swap_tables(Tables::new(rules, self.epoch));
        self.face.resolver().retire(Moment::now())
    }

    /// Serves operators and their tools where it is configured, on what was bound for it.
    fn serve_control(&mut self, bound: http::Bound) {
        let status = self.status.clone();
        let metrics = self.metrics.clone();
        let readiness: control::Readiness = Arc::new(move || {
            let status = status.lock();
            let mut health = control::Health { missing: status.missing(), faults: status.faults() };
            if metrics.levels().catalog_cut_off.read() > 0 {
                let text = "cut off from all other hosts; their instances are given as they were before";
                health.missing.push(text.into());
            }
            health
        });
        let shown = control::Shown {
            metrics: self.metrics.clone(),
            readiness,
            catalog: self.feed.subscribe(),
            reloads: self.reloads.0.clone(),
            hosts: self.hosts.clone(),
            connections: self.connections.clone(),
        };
        self.http.serve(&self.loaded.config, bound, shown, &self.stopping);
    }

    /// Probes upstreams that are down or seem to be, and settles queries whose task has panicked.
    fn probe_upstreams(&self) {
        let (face, stopping) = (self.face.clone(), self.stopping.clone());
        let (streams, http) = (self.serving.connections().clone(), self.connections.clone());
        self.tasks.spawn(run_lasting("probes", move || {
            let (face, stopping) = (face.clone(), stopping.clone());
            let (streams, http) = (streams.clone(), http.clone());
            async move {
                let mut ticks = tokio::time::interval(PROBE_INTERVAL);
                let mut release_at: Option<Moment> = None;
                while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
                    let now = Moment::now();
                    for route in face.resolver().tables().routes() {
                        for upstream in route.group.probes_due(now) {
                            tokio::spawn(stopping.clone().run_until_cancelled_owned(forward::probe(upstream)));
                        }
                        for upstream in route.group.loop_checks_due(now) {
                            let (face, route) = (face.clone(), route.clone());
                            tokio::spawn(stopping.clone().run_until_cancelled_owned(async move {
                                face.loops().check(upstream, route.group.name()).await;
                            }));
                        }
                    }
                    face.deliver(face.resolver().abandon_lost(now));
                    let has_emptied =
                        [face.budget().has_emptied(), streams.has_emptied(), http.has_emptied()].contains(&true);
                    if has_emptied || release_at.is_some_and(|at| now >= at) {
                        // Once more when the exchanges for the clients that are gone have ended as well.
                        release_at = has_emptied.then_some(now + DRAIN);
                        tokio::task::spawn_blocking(sys::release_memory);
                    }
                }
            }
        }));
    }

    /// Lets a scrape see what is known only by looking.
    fn observe(&self) {
        let (face, connections) = (self.face.clone(), self.serving.connections().clone());
        let (kernel_drops, http) = (self.serving.kernel_drops().clone(), self.connections.clone());
        self.metrics.on_scrape(move |levels| {
            kernel_drops.count();
            let usage = face.resolver().cache().usage();
            levels.cache_entries.set(usage.entries as u64);
            levels.cache_bytes.set(usage.bytes as u64);
            levels.cache_evictions.set(usage.evictions);
            let (waiting, flights) = face.resolver().in_flight();
            levels.waiting.set(waiting as u64);
            levels.in_flight.set(flights as u64);
            levels.withheld.set(face.resolver().withheld());
            levels.queue_depth.set(face.exchanges() as u64);
            levels.tcp_connections.set(connections.count() as u64);
            levels.set_budget(face.budget().held_by_kind(), face.budget().exceeded());
            levels.set_control(http.count(), http.waiting(), http.closed());
            levels.open_files.set(sys::open_files() as u64);
            levels.open_files_limit.set(sys::open_files_limit() as u64);
            let tables = face.resolver().tables();
            let tally = tables.catalog().map(|now| now.load().tally()).unwrap_or_default();
            levels.set_catalog(tally.instances, tally.checks);
        });
    }

    /// Notes what scrapes and `/ready` tell of the configuration and the files.
    fn note_state(&self) {
        if let Some(catalog) = &self.catalog {
            catalog.set_upstreams(&self.groups);
        }
        let levels = self.metrics.levels();
        levels.cache_limit_bytes.set(self.loaded.config.cache.size.as_u64());
        let faulty = self.files.faulty();
        levels
            .set_zone_files(self.files.generations().count(), faulty.iter().filter(|faulty| faulty.is_file()).count());
        let zone_faults: usize = faulty.iter().map(|faulty| faulty.faults.len()).sum();
        levels.catalog_faults.set((self.data.faults().count() - zone_faults) as u64);
        let root = crate::wire::Name::root();
        let is_default = |rule: &forward::Rule| rule.suffixes.iter().any(|suffix| *suffix.get_ref() == root);
        let default = self.loaded.rules.iter().position(is_default);
        let mut status = self.status.lock();
        status.upstreams_unknown = self.loaded.upstreams == Upstreams::Unknown;
        status.default_group = default.and_then(|index| self.groups.get(index).cloned());
        status.catalog = self.catalog.as_ref().map(Catalog::live);
        status.is_address_unknown = self.catalog.as_ref().is_some_and(Catalog::is_address_unknown);
        status.failed_zones = data::failed_zones(self.files.failed_zones());
        status.faults = self.data.faults().map(str::to_owned).collect();
    }

    fn watch_files(&mut self) {
        let mut followed = Followed::default();
        let zones = &self.loaded.config.zones;
        followed.folders.insert(zones.directory().to_path_buf());
        followed.folders.extend(self.loaded.config.catalog.files.iter().map(|files| files.directory.clone()));
        followed.stamps = self.files.stamps().iter().chain(&self.system_files).cloned().collect();
        let files = followed.stamps.iter().map(|(path, _)| path.clone());
        followed.files = files.filter(|path| !followed.folders.contains(path)).collect();
        if let Some(catalog) = &self.catalog {
            let definitions = catalog.files();
            followed.folders.extend(definitions.folders().map(Path::to_owned));
            followed.files.extend(definitions.links().map(Path::to_owned));
            followed.comparisons.push(Arc::new(move || definitions.changed_on_disk()));
            followed.comparisons.extend(catalog.host().map(|known| -> watch::Comparison {
                Arc::new(move || if System::read() == known { Vec::new() } else { vec![HOST.into()] })
            }));
        }
        self.watch.clone().follow(followed);
    }

    /// Takes in no more, and replies to those who wait.
    async fn stop(mut self, end: End) -> Result<()> {
        let patience = if end == End::Told { PATIENCE } else { DRAIN };
        let ends = tokio::time::Instant::now() + patience;
        if end == End::Told {
            notify_manager(&[NotifyState::Stopping]);
        }
        tracing::info!("stopping");
        self.status.lock().is_stopping = true;
        self.keeper.close();
        if end == End::Succeeded {
            self.serving.leave_to_successor();
        }
        self.stopping.cancel();
        self.serving.stop_workers(patience).await?;
        // A successor has taken in what there was.
        if let Some(file) = snapshot_file(&self.loaded).filter(|_| end == End::Told) {
            let resolver = self.face.resolver().clone();
            let save = tokio::task::spawn_blocking(move || saved::save_cache(&resolver, file));
            if tokio::time::timeout_at(ends + FAREWELL, save).await.is_err() {
                tracing::warn!("the disk does not answer; cache not saved");
            }
        }
        let trackers = [self.face.tasks(), &self.tasks, self.http.tasks()];
        trackers.iter().for_each(|tasks| {
            tasks.close();
        });
        if tokio::time::timeout_at(ends, self.face.tasks().wait()).await.is_err() {
            self.face.cut_short();
        }
        let tasks = async { tokio::join!(trackers[0].wait(), trackers[1].wait(), trackers[2].wait()) };
        if tokio::time::timeout_at(ends + FAREWELL, tasks).await.is_err() {
            tracing::warn!("some tasks are cut off");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hand_over: signal(SignalKind::user_defined2())?,
            report: signal(SignalKind::user_defined1())?,
        })
    }

    /// Returns when it is told to stop.
    async fn told_to_stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Whether it was told to reload and has not done so yet.
    async fn has_hung_up(&mut self) -> bool {
        tokio::select! {
            biased;
            hangup = self.hangup.recv() => hangup.is_some(),
            () = std::future::ready(()) => false,
        }
    }
}

/// As many as configured; for 0 one per core, at most 4.
fn workers(configured: usize) -> usize {
    match configured {
        0 => available_parallelism().map_or(1, usize::from).min(4),
        configured => configured,
    }
}

fn rules(loaded: &Loaded, files: &zone::Files, groups: &[Arc<forward::Group>], catalog: Option<&Catalog>) -> Rules {
    let config = &loaded.config;
    let forwards = loaded.rules.iter().zip(&config.forward).zip(groups).map(|((rule, written), group)| {
        let mut lifetimes = config.cache.policy(written.serve_stale.unwrap_or(forward::DEFAULT_SERVE_STALE));
        lifetimes.min_ttl = written.min_ttl.unwrap_or(lifetimes.min_ttl);
        lifetimes.max_ttl = written.max_ttl.unwrap_or(lifetimes.max_ttl);
        lifetimes.max_negative_ttl = written.max_negative_ttl.unwrap_or(lifetimes.max_negative_ttl);
        let suffixes = rule.suffixes.iter().map(|suffix| suffix.get_ref().clone()).collect();
        (suffixes, Route::new(rule, group.clone(), lifetimes))
    });
    Rules {
        overlays: files.overlays(),
        zones: files.zones().cloned().collect(),
        failed_zones: files.failed_zones().cloned().collect(),
        forwards: forwards.collect(),
        refused: loaded.refused.clone(),
        catalog: catalog.map(Catalog::live),
        prefetch: config.cache.prefetch,
    }
}

/// Logs where the system's upstreams come from, and which of its name servers are not asked.
fn log_system(upstreams: &Upstreams) {
    let Upstreams::System { file, ourselves } = upstreams else { return };
    let file = file.display();
    tracing::info!(%file, "upstreams taken from the system");
    if !ourselves.is_empty() {
        let servers = ourselves.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        tracing::info!(%file, servers, "name servers passed over: they lead to this server itself");
    }
}

fn warn(warnings: impl IntoIterator<Item = String>) {
    for warning in warnings {
        tracing::warn!(warning, "configuration warning");
    }
}

fn at_fault() -> anyhow::Error {
    anyhow::anyhow!("the program is at fault; see the panic above")
}

/// Tells the service manager; without one there is nobody to tell.
fn notify_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// How long clients may go on waiting for upstreams once the daemon was told to stop. What comes in meanwhile waits in the
/// sockets for the next process, and may wait there again, up to the deadline of any query: together that is less than the
/// five seconds after which libc asks again.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long replies then have to leave. With `PATIENCE` it is less than a second, whatever clients and upstreams do.
const FAREWELL: Duration = Duration::from_millis(150);
/// Stands for the host in what has changed: no file is called so.
const HOST: &str = "/proc/self/net";
const NOT_TAKEN_IN: &str = "changed files not taken in; what was good before stays in service";
/// How long files are left to settle after a change.
const SETTLING: Duration = Duration::from_millis(100);
/// How often it is looked whether an upstream is due for a probe.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
