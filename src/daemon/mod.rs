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
mod registrations;
mod saved;
mod serving;
mod statistics;
mod status;
mod store;
mod watch;

use std::{
    env, io,
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
    time::MissedTickBehavior,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::catalog::Catalog;
use crate::{
    cache::{Cache, Epoch},
    catalog::{System, source::file::Scope},
    clock::Moment,
    config::{Loaded, Refused, Upstreams},
    control,
    copies::{Copies, Version},
    forward,
    metrics::{Metrics, Reload},
    resolve::{Resolver, Route, Rules, Tables},
    server::{self, Face, Identity, Service},
    stamp::Stamp,
    sys, zone,
};
pub use check::{Report, ServiceSummary, Unreadable, check};
use data::{Data, Keeper};
use handover::{Predecessor, Successor};
use http::Http;
use inherited::Inherited;
use lasting::{caught, run_lasting};
use serving::{DRAIN, Serving};
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
        let predecessor = Predecessor::find().context("cannot hear the process that runs")?;
        let mut daemon = Daemon::start(loaded, predecessor.as_ref(), Runtime::current())?;
        if let Some(predecessor) = predecessor {
            // Until it has spoken, the service manager hears only the other.
            tokio::task::spawn_blocking(|| predecessor.succeed()).await??;
        }
        let end = daemon.serve().await;
        daemon.stop(end).await
    });
    // What is left are tasks whose clients are gone.
    runtime.shutdown_timeout(Duration::from_millis(100));
    outcome
}

struct Daemon {
    loaded: Loaded,
    files: zone::Files,
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
    watch: Watch,
    changed: mpsc::Receiver<()>,
    signals: Signals,
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
    fn start(loaded: Loaded, predecessor: Option<&Predecessor>, runtime: Runtime) -> Result<Self> {
        // Before anything else: a signal that nobody hears ends the process.
        let signals = Signals::new().context("cannot hear signals")?;
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
        let system_files = stamps_of_system(&loaded);
        let copies = Kept::of(&loaded);
        let mut outcome = load_zones(&loaded, None, &copies.zones);
        let mut definitions = catalog::load(&config.catalog, None, Scope::All, &copies.definitions);
        refuse(&definitions)?;
        if predecessor.is_some() && !copies.zones.are_kept() && outcome.files.failed_zones().next().is_some() {
            // The process that runs may have what we have not.
            return Err(Refused::new(outcome.faults).into());
        }
        let mut data = Data::default();
        data.report(&zone::Files::default(), &outcome, definitions.as_ref());
        warn(odd(&loaded));

        let metrics = Arc::new(Metrics::new());
        panics::report(metrics.clone());
        let epoch = Epoch(1);
        let groups = forward::Group::build_all(&loaded.rules, &[], &metrics).map_err(Refused::new)?;
        let certificate = server::load_certificate(&config.server).map_err(|error| Refused::new([error]))?;
        let configured = first.map_or_else(open_all, Ok)?;
        let open: Vec<_> = units.into_iter().map(|listener| (listener, None)).chain(configured).collect();
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let versions = take_versions(&mut outcome, definitions.as_mut());
        let catalog = definitions.and_then(take_plan).map(|plan| {
            let place = registrations_place(&loaded);
            // As late as possible: what the predecessor finds out from now on has to be found out here once more.
            let passed_on = predecessor.and_then(Predecessor::estate);
            Catalog::start(plan, place, passed_on.as_deref(), metrics.clone(), &tasks, &stopping)
        });
        let tables = Tables::new(rules(&loaded, &outcome.files, &groups, catalog.as_ref()), epoch);
        let cache = Cache::new(config.cache.size.as_u64() as usize);
        let resolver = Arc::new(Resolver::new(cache, tables, config.server.max_in_flight));
        resolver.set_most_waiting(config.server.max_in_flight, config.server.max_in_flight_per_client);
        let face = Arc::new(Face::new(resolver, config.server.clone(), &metrics, runtime));
        face.budget().set_limits(config.limits.clone());
        let (change, changed) = mpsc::channel(1);
        let identity = Arc::<Identity>::default();
        let feed = tokio::sync::watch::Sender::new(None);
        let mut daemon = Self {
            files: outcome.files,
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
            system_files,
            watch: Watch::new(change).context("cannot watch files")?,
            changed,
            signals,
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
            daemon.serving.open(opened, &daemon.metrics)?;
        }
        daemon.serving.settle();
        daemon.observe();
        daemon.serve_control(control)?;
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
    async fn serve(&mut self) -> End {
        // Not earlier: the service manager hears the main process alone, and a predecessor may still have to serve on.
        std::mem::take(&mut self.unclaimed).close();
        self.keep_sockets();
        if let Some(file) = snapshot_file(&self.loaded) {
            saved::restore_cache(self.face.resolver().clone(), file);
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
        loop {
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
                _ = self.signals.terminate.recv() => return End::Told,
                _ = self.signals.interrupt.recv() => return End::Told,
                // Both would come to know different addresses.
                _ = self.signals.hangup.recv(), if successor.is_none() => drop(self.reload().await),
                Some(done) = self.reloads.1.recv(), if successor.is_none() => {
                    // A client that has gone does not hear it.
                    let _ = done.send(self.reload().await);
                }
                Some(()) = self.changed.recv() => {
                    // Whatever is in the files: they are read before anything is changed.
                    if caught(self.take_in_files()).await.is_err() {
                        tracing::error!("changed files not taken in; what was good before stays in service");
                    }
                }
                _ = self.signals.report.recv() => {
                    let catalog = self.catalog.as_ref().map(Catalog::live);
                    statistics::log(&self.metrics, &self.groups, catalog.as_deref());
                }
                _ = self.signals.hand_over.recv(), if successor.is_none() => successor = Some(self.start_successor().await),
                Some(started) = async { Some(successor.as_mut()?.await) } => {
                    successor = None;
                    match started.context("cannot wait for the new process").and_then(|started| started) {
                        Ok(successor) => {
                            let process = successor.process_id();
                            notify_manager(&[NotifyState::MainPid(process)]);
                            // It may have read its files before they were changed.
                            let is_outdated = self.signals.has_hung_up().await;
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
        if let Err(error) = self.serve_control(paused) {
            tracing::error!(error = format!("{error:#}"), "HTTP is not served any more");
        }
    }

    /// Has the service manager keep the sockets that it does not have yet.
    fn keep_sockets(&mut self) {
        self.serving.keep_sockets();
        self.http.keep_sockets();
    }

    /// Takes in the configuration and all data files anew: everything or, if the configuration has any fault, nothing.
    async fn reload(&mut self) -> Result<(), String> {
        // A start goes on: the service manager hears that it is over, and nothing before that.
        if self.is_ready {
            let since_boot = NotifyState::monotonic_usec_now();
            notify_manager(&[NotifyState::Reloading].into_iter().chain(since_boot).collect::<Vec<_>>());
        }
        // Whatever is in the files: they are read before anything is changed.
        let outcome = caught(async { self.try_reload() }).await;
        let outcome = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("the program is at fault; see the panic above")));
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
                for line in error.lines() {
                    tracing::error!(error = line, "reload failed");
                }
            }
        }
        if self.is_ready {
            notify_manager(&[NotifyState::Ready]);
        }
        outcome.map(|_| ())
    }

    /// Says how many answers have been retired, and what has changed.
    fn try_reload(&mut self) -> Result<(usize, Vec<String>)> {
        let mut loaded = self.loaded.source.load().map_err(Refused::new)?;
        loaded.keep_system(&self.loaded);
        let system_files = stamps_of_system(&loaded);
        let copies = Kept::of(&loaded);
        let mut outcome = load_zones(&loaded, Some(&self.files), &copies.zones);
        let mut definitions = load_definitions(&loaded, self.catalog.as_ref(), Scope::All, &copies.definitions);
        refuse(&definitions)?;
        // Everything that can fail comes before anything that is seen.
        let opened = self.serving.open_missing(&loaded.config.server)?;
        let groups = forward::Group::build_all(&loaded.rules, &self.groups, &self.metrics).map_err(Refused::new)?;
        let certificate = server::load_certificate(&loaded.config.server).map_err(|error| Refused::new([error]))?;
        let control = self.http.bind(&loaded.config, &mut Inherited::default())?;
        warn(odd(&loaded));
        let changed = differences::between(&self.loaded.config, &loaded.config);

        let changes = self.data.report(&self.files, &outcome, definitions.as_ref());
        let versions = take_versions(&mut outcome, definitions.as_mut());
        self.loaded = loaded;
        self.system_files = system_files;
        self.hosts.set(&self.loaded.config.control.host_names());
        self.files = outcome.files;
        self.groups = groups;
        self.identity.set(certificate);
        self.catalog.iter().for_each(Catalog::repeat_warnings);
        self.adopt_catalog(definitions.and_then(take_plan));
        let config = &self.loaded.config;
        self.face.resolver().cache().resize(config.cache.size.as_u64() as usize);
        self.face.resolver().set_most_waiting(config.server.max_in_flight, config.server.max_in_flight_per_client);
        self.face.set_config(config.server.clone());
        self.face.budget().set_limits(config.limits.clone());
        self.connections.set_limits(&config.control);
        let retired = self.swap_tables();
        for opened in opened {
            self.serving.open(opened, &self.metrics)?;
        }
        self.serving.close_others(&self.loaded.config.server);
        self.serve_control(control)?;
        self.keep_sockets();
        self.status.lock().refused_reload.clear();
        changes.log(retired, self.data.faults().count());
        self.keep_versions(versions);
        self.note_state();
        self.watch_files();
        Ok((retired, changed))
    }

    /// Takes in data files that have changed, and upstreams of the system. A faulty file stays as it was.
    async fn take_in_files(&mut self) {
        // Those who write several files, or one in several steps, get a moment to finish.
        tokio::time::sleep(SETTLING).await;
        while self.changed.try_recv().is_ok() {}
        let copies = Kept::of(&self.loaded);
        let mut outcome = load_zones(&self.loaded, Some(&self.files), &copies.zones);
        let changed = self.watch.take_changed();
        let scope = changed.as_ref().map_or(Scope::All, Scope::Changed);
        let mut definitions = load_definitions(&self.loaded, self.catalog.as_ref(), scope, &copies.definitions);
        let changes = self.data.report(&self.files, &outcome, definitions.as_ref());
        let versions = take_versions(&mut outcome, definitions.as_mut());
        // A zone that fails has no table, and a zone that is mended may have failed.
        let is_changed = !changes.is_empty() || outcome.files.generations().ne(self.files.generations());
        self.files = outcome.files;
        let is_rerouted = self.follow_system();
        if self.adopt_catalog(definitions.and_then(take_plan)) || is_changed || is_rerouted {
            let retired = self.swap_tables();
            changes.log(retired, self.data.faults().count());
        }
        self.keep_versions(versions);
        self.note_state();
        self.watch_files();
    }

    /// Takes in the system's upstreams if they are others now, or known at last. Whether they are.
    fn follow_system(&mut self) -> bool {
        self.system_files = stamps_of_system(&self.loaded);
        let Some(loaded) = self.loaded.follow_system() else { return false };
        match forward::Group::build_all(&loaded.rules, &self.groups, &self.metrics) {
            Ok(groups) => self.groups = groups,
            Err(errors) => {
                errors.iter().for_each(|error| tracing::error!(%error, "the system's upstreams are not taken in"));
                return false;
            }
        }
        self.loaded = loaded;
        log_system(&self.loaded.upstreams);
        true
    }

    /// Keeps the last good versions of data files for the next start.
    fn keep_versions(&self, (zones, definitions): (Vec<Version>, Vec<Version>)) {
        let copies = Kept::of(&self.loaded);
        self.keeper.keep(&copies.zones, zones, || self.files.kept());
        let files = self.catalog.as_ref().map(Catalog::files);
        self.keeper.keep(&copies.definitions, definitions, || files.map(|files| files.kept()).unwrap_or_default());
    }

    /// Puts a catalog into service, or this plan in the place of the one it has. Without a plan it stays as it is, or
    /// goes if it is not configured any more. Whether tables have to be made anew.
    fn adopt_catalog(&mut self, plan: Option<catalog::Plan>) -> bool {
        let is_other = match (&self.catalog, plan) {
            (Some(catalog), Some(plan)) => catalog.adopt(plan),
            (None, Some(plan)) => {
                let place = registrations_place(&self.loaded);
                let (metrics, tasks, stopping) = (self.metrics.clone(), &self.tasks, &self.stopping);
                self.catalog = Some(Catalog::start(plan, place, None, metrics, tasks, stopping));
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
    fn serve_control(&mut self, bound: http::Bound) -> Result<()> {
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
        self.http.serve(&self.loaded.config, bound, shown, &self.stopping)
    }

    /// Asks upstreams that are down, or seem to be, whether they answer, and sees to queries that nobody sees to any more.
    fn probe_upstreams(&self) {
        let (face, stopping) = (self.face.clone(), self.stopping.clone());
        self.tasks.spawn(run_lasting("probes", move || {
            let (face, stopping) = (face.clone(), stopping.clone());
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
                    let has_emptied = face.budget().has_emptied();
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
            levels.set_budget(face.budget().held_bytes(), face.budget().exceeded());
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
        self.watch.follow(followed);
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
            saved::save_cache(self.face.resolver(), file);
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

fn load_zones(loaded: &Loaded, previous: Option<&zone::Files>, copies: &Copies) -> zone::Outcome {
    zone::Files::load(&loaded.config.zones, &loaded.zones, previous, copies)
}

/// The definition files; what runs already is taken over if it is of the same folder.
fn load_definitions(
    loaded: &Loaded,
    running: Option<&Catalog>,
    scope: Scope<'_>,
    copies: &Copies,
) -> Option<catalog::Loaded> {
    let is_same = |running: &&Catalog| running.is_of(&loaded.config.catalog);
    catalog::load(&loaded.config.catalog, running.filter(is_same), scope, copies)
}

/// Fails if the configuration of a catalog is faulty.
fn refuse(definitions: &Option<catalog::Loaded>) -> Result<()> {
    match definitions {
        Some(loaded) if !loaded.refusals.is_empty() => Err(Refused::new(&loaded.refusals).into()),
        _ => Ok(()),
    }
}

/// What was read anew and is good: of zones and of definition files.
fn take_versions(zones: &mut zone::Outcome, definitions: Option<&mut catalog::Loaded>) -> (Vec<Version>, Vec<Version>) {
    let definitions = definitions.map(|loaded| std::mem::take(&mut loaded.versions));
    (std::mem::take(&mut zones.versions), definitions.unwrap_or_default())
}

fn take_plan(found: catalog::Loaded) -> Option<catalog::Plan> {
    if !found.unused.is_empty() {
        let keys = found.unused.into_iter().collect::<Vec<_>>().join(", ");
        tracing::info!(keys, "keys of definition files that mean nothing here");
    }
    found.plan
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

/// Where things are kept while no process runs: the configured folder, or the service manager's.
fn state_folder(loaded: &Loaded) -> Option<PathBuf> {
    let from_manager = || env::var_os("STATE_DIRECTORY").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    loaded.config.server.state_directory.clone().or_else(from_manager)
}

/// Where the last good versions of data files are kept.
struct Kept {
    zones: Copies,
    definitions: Copies,
}

impl Kept {
    fn of(loaded: &Loaded) -> Self {
        let folder = state_folder(loaded).map(|folder| folder.join("last-good"));
        let copies = |kind| Copies::new(folder.as_ref().map(|folder| folder.join(kind)));
        Self { zones: copies("zones"), definitions: copies("definitions") }
    }
}

/// The files that may say who the system's upstreams are, as they are now; none if the configuration says it.
fn stamps_of_system(loaded: &Loaded) -> Vec<(PathBuf, Option<Stamp>)> {
    if loaded.upstreams == Upstreams::Configured {
        return Vec::new();
    }
    let files = loaded.source.system.resolv_confs.iter();
    files.map(|file| (file.clone(), Stamp::of(file).ok())).collect()
}

fn snapshot_file(loaded: &Loaded) -> Option<PathBuf> {
    Some(state_folder(loaded)?.join("cache.snapshot"))
}

fn registrations_place(loaded: &Loaded) -> registrations::Place {
    let is_enabled = loaded.config.catalog.api.enable_registration;
    registrations::Place { is_enabled, folder: state_folder(loaded) }
}

/// All that is odd in a configuration, but taken in.
fn odd(loaded: &Loaded) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    warnings.extend(loaded.upstreams.missing().map(str::to_owned));
    warnings.extend(interfaces::warnings(&loaded.config));
    warnings.extend(loaded.config.forward.iter().filter_map(|rule| rule.rule().ok()?.warning()));
    let place = registrations_place(loaded);
    if place.folder.is_none() && loaded.config.catalog.has_source() {
        let lost = if place.is_enabled { ", registrations" } else { "" };
        warnings.push(format!(
            "results of checks, choices of policies{lost} will not survive a restart; set server.state_directory"
        ));
    }
    warnings
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

/// Tells the service manager; without one there is nobody to tell.
fn notify_manager(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

/// How long clients may go on waiting for upstreams once the daemon was told to stop. What comes in meanwhile waits in the
/// sockets for the next process, and may wait there again, up to the deadline of any query: together that is less than the
/// five seconds after which libc asks again.
const PATIENCE: Duration = Duration::from_millis(800);
/// How long replies then have to leave.
const FAREWELL: Duration = Duration::from_millis(500);
/// Stands for the host in what has changed: no file is called so.
const HOST: &str = "/proc/self/net";
/// How long files are left to settle after a change.
const SETTLING: Duration = Duration::from_millis(100);
/// How often it is looked whether an upstream is due for a probe.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);
