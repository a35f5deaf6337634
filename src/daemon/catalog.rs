//! The catalog while the daemon runs: its definition files, what is registered, its checks, an agent's news, and what becomes
//! of them.
//!
//! The news of checks and agents, and what policies have put off, are taken in by tasks; files and settings by whoever
//! reloads. All change the registry under one lock, and what it has become is published as a snapshot before they let go of it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    future::pending,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    agent::Follower,
    changes::{Changes, Line},
    check::ServiceSummary,
    data::{FOLDER_REFUSED, Fault, LAST_GOOD, NOT_SERVED, PASSED_OVER},
    guard::{self, Guard, Remote, Verdict},
    lasting::run_lasting,
    memory::{self, AgentCatalog, Findings, Memory, Past, RemoteCheck},
    registrations::{Place, Registrations, Writer},
};
use crate::{
    budget::Budget,
    catalog::{
        ApiConfig, Check, CheckChange, CheckKey, Config, FIRST_RESULT_PATIENCE, FilesConfig, Identity, Instance,
        InstanceKey, Live, News, Node, NodeKey, Outcomes, Registry, Resumed, ServiceKey, Set, Settings, SourceId,
        Standing, System, Unmatched,
        check::{self, Declaration, Definition, Dialer, Event, Limits, Link, Runner, Scripts},
        health::Status,
        source::{
            consul,
            external::Changed,
            file::{self, Owner, Scope},
            value::{self, Value},
        },
    },
    clock::{Moment, Stamp, unix_millis},
    control::consul::{Order, Served},
    files::{Copies, Version},
    forward,
    metrics::Metrics,
};

/// What the definition files say, checks included.
type Files = file::Files<Definition>;

/// A catalog in service; it ends when this is dropped.
pub(super) struct Catalog {
    shared: Arc<Shared>,
    follower: Follower,
    closing: CancellationToken,
    orders: mpsc::Sender<Order>,
    /// When it came into service, in milliseconds since 1970.
    began: u64,
}

/// What configuration and definition files come to.
pub(super) struct Plan {
    config: Config,
    pub(super) files: Arc<Files>,
    pub(super) identity: Identity,
    settings: Settings,
    agent: Option<consul::Agent>,
    /// What the host said of itself.
    system: System,
    /// All addresses of this host.
    own: HashSet<IpAddr>,
    /// In what the files may differ from these.
    since: Option<(Arc<Files>, HashSet<Owner>)>,
}

/// What is in service, as far as loading depends on it.
#[derive(Clone)]
pub(super) struct Current {
    config: Option<FilesConfig>,
    files: Arc<Files>,
    identity: Identity,
}

/// What loading came to.
#[derive(Default)]
pub(super) struct Loaded {
    /// `None` if the configuration is refused.
    pub plan: Option<Plan>,
    /// Faults of the configuration.
    pub refusals: Vec<String>,
    /// Faults of definition files, which cost themselves alone.
    pub faults: Vec<Fault>,
    /// What is odd in the files, but taken in.
    pub warnings: Vec<String>,
    /// What the host leaves in doubt of our own node.
    pub doubts: Vec<String>,
    /// The files that were read anew and are good, if copies are kept.
    pub versions: Vec<Version>,
    /// The files that came, went or say something else than before.
    pub changed_files: BTreeSet<PathBuf>,
    /// Keys of the files that mean something to Consul and nothing here.
    pub unused: BTreeSet<String>,
}

pub(super) struct Shared {
    live: Arc<Live>,
    pub(super) runner: Runner,
    /// Which upstreams there are: whether all of them are down says something of our own link.
    upstreams: Mutex<Vec<Arc<forward::Group>>>,
    pub(super) state: Mutex<State>,
    /// The registry may want to be woken earlier.
    changed: Notify,
    /// The registrations are others than those that are saved.
    pub(super) unsaved: Notify,
    /// Held while a file is written.
    pub(super) writing: tokio::sync::Mutex<Writing>,
    metrics: Arc<Metrics>,
    /// The agent that is followed.
    pub(super) agent: Mutex<Option<Arc<consul::Agent>>>,
    /// Whether the last save has failed, which is logged once.
    pub(super) is_failing: Mutex<bool>,
}

/// Who writes the files in the state directory.
#[derive(Default)]
pub(super) struct Writing {
    /// The files are another process's now.
    pub(super) files_left: bool,
    pub(super) registrations: Writer,
}

pub(super) struct State {
    pub(super) plan: Plan,
    pub(super) registry: Registry,
    pub(super) registrations: Registrations,
    /// The checks that run, by their ids.
    pub(super) checks: HashMap<Arc<str>, Known>,
    /// Their ids, by whose they are.
    running: HashMap<Owner, HashSet<Arc<str>>>,
    /// Services whose checks were critical for too long, by their ids.
    deregistered: HashSet<Arc<str>>,
    guard: Guard,
    /// Who the agent is that is followed, once it has said so.
    introduction: Option<consul::Introduction>,
    /// Checks of instances on other hosts as an earlier process knew them, until they are started here.
    remotes: HashMap<Arc<str>, (RemoteCheck, Moment)>,
    /// Whether anything but the checks has changed since the findings were saved.
    has_news: bool,
    /// Whether the agent has said anything since its catalog was saved.
    has_agent_news: bool,
    /// Its last answer by what was saved last.
    saved_contact: Moment,
    /// Which changes are logged.
    changes: Changes,
    /// What of the configuration is known to mean nothing, and has been logged.
    unmatched: HashSet<Unmatched>,
}

pub(super) struct Known {
    pub(super) key: CheckKey,
    status: Status,
    /// If its instance is on another host.
    remote: Option<Remote>,
}

/// Loads the files that a configuration of a catalog names, if it has a source. What has not changed is taken from what is
/// `known`, and so is what was good before, else from the copies; what is not in the scope is not looked at.
pub(super) fn load(config: &Config, known: Option<&Current>, scope: Scope<'_>, copies: &Copies) -> Option<Loaded> {
    if !config.has_source() {
        return None;
    }
    // Only files of the same folder, read in the same way, are taken over.
    let known = known.filter(|known| known.config == config.files);
    let (previous, known) = known.map(|known| (known.files.clone(), &known.identity)).unzip();
    let mut loaded = Loaded::default();
    let (mut files, mut changed) = (Files::default(), HashSet::new());
    if let Some(source) = &config.files {
        let scripts = if source.enable_script_checks { Scripts::Allowed } else { Scripts::Refused };
        let outcome = Files::load(
            &source.directory,
            source.max_file_bytes.as_u64(),
            previous.as_deref(),
            scope,
            copies,
            &|value| define(value, scripts),
        );
        loaded.faults = outcome.faults.iter().map(|error| fault(error, &outcome.files)).collect();
        loaded.warnings = outcome.warnings.iter().map(ToString::to_string).collect();
        (files, changed) = (outcome.files, outcome.changed);
        loaded.versions = outcome.versions;
        loaded.changed_files = outcome.changed_files;
        loaded.unused = outcome.unused;
    }
    let system = System::read();
    let (mut identity, mut doubts) = Identity::new(config, &files.agent(), &system);
    if let Some(known) = known {
        identity.keep_address(known, &mut doubts);
    }
    loaded.doubts = doubts.iter().map(ToString::to_string).collect();
    let agent = config.consul.as_ref().map(|section| consul::Agent::new(section, config.max_stale)).transpose();
    loaded.refusals.extend(agent.as_ref().err().map(ToString::to_string));
    loaded.plan = agent.ok().map(|agent| Plan {
        config: config.clone(),
        settings: config.settings(&identity),
        // What has changed is told of the same folder only.
        since: previous.filter(|_| config.files.is_some()).map(|files| (files, changed)),
        files: files.into(),
        own: guard::own_addresses(&system.addresses).into_iter().chain([identity.address.to_canonical()]).collect(),
        identity,
        agent,
        system,
    });
    Some(loaded)
}

/// What follows from a fault of a definition file.
fn fault(error: &file::Error, files: &Files) -> Fault {
    let path = &error.location.file;
    let outcome = match error.problem {
        file::Problem::NoDirectory(_) | file::Problem::Depth => FOLDER_REFUSED,
        file::Problem::SameId { .. } | file::Problem::NoService(_) => PASSED_OVER,
        _ if files.is_served(path) => LAST_GOOD,
        _ => NOT_SERVED,
    };
    Fault { text: error.to_string(), outcome }
}

/// A check of a definition file.
fn define(value: &Value, scripts: Scripts) -> Result<Definition, Vec<value::Fault>> {
    let declaration = Declaration::deserialize(value).map_err(|fault| vec![fault])?;
    let fields = value.table().unwrap_or_default();
    let line_of = |wanted: &str| Some(fields.iter().find(|(key, _)| key == wanted)?.1.line);
    let fault = |problem: check::Problem| {
        let line = if let check::Problem::UnknownKey { key } = &problem { line_of(key) } else { None };
        value::Fault { line, message: problem.to_string() }
    };
    declaration.define(scripts).map_err(|problems| problems.into_iter().map(fault).collect())
}

impl Catalog {
    /// Takes a catalog into service. What is registered is kept at `place`, and so is what is found out; an earlier process may
    /// have passed that on. What waits for checked hosts and the agent is charged to the budget. Its tasks join `tasks` and end
    /// with `stopping`.
    pub fn start(
        mut plan: Plan,
        place: Place,
        passed_on: Option<&[u8]>,
        (metrics, budget): (Arc<Metrics>, Arc<Budget>),
        tasks: &TaskTracker,
        stopping: &CancellationToken,
    ) -> Self {
        let (runner, news) = Runner::new(Dialer::new(budget.clone()), Limits::default());
        let agent = plan.agent.take();
        let mut memory = Memory::load(passed_on, place.folder.as_deref());
        let registrations = Registrations::load(place, memory.registrations.take());
        let mut registry = Registry::new(plan.settings.clone());
        registry.follow(CONSUL, agent.is_some(), Moment::now());
        let (live, asked) = Live::new(registry.snapshot());
        let shared = Arc::new(Shared {
            live: live.into(),
            runner,
            upstreams: Mutex::default(),
            state: Mutex::new(State {
                plan,
                registry,
                registrations,
                checks: HashMap::new(),
                running: HashMap::new(),
                deregistered: HashSet::new(),
                guard: Guard::default(),
                introduction: None,
                remotes: HashMap::new(),
                has_news: false,
                has_agent_news: false,
                saved_contact: Moment::default(),
                changes: Changes::default(),
                unmatched: HashSet::new(),
            }),
            changed: Notify::new(),
            unsaved: Notify::new(),
            writing: tokio::sync::Mutex::default(),
            metrics: metrics.clone(),
            agent: Mutex::new(None),
            is_failing: Mutex::new(false),
        });
        let closing = stopping.child_token();
        let (orders, heard) = mpsc::channel(ORDERS);
        let follower = Follower::new(asked.wishes, metrics, budget, tasks.clone(), closing.clone());
        let mut resumed = None;
        shared.publish(|state| resumed = state.begin(memory, agent.as_ref(), &shared.runner));
        shared.state.lock().warn_of_unmatched();
        tasks.spawn({
            let (shared, closing) = (shared.clone(), closing.clone());
            async move {
                // What was told while one of them began anew is still there.
                let (news, heard) = (tokio::sync::Mutex::new(news), tokio::sync::Mutex::new(heard));
                let urgent = tokio::sync::Mutex::new(asked.urgent);
                tokio::join!(
                    run_lasting("checks", || shared.runner.run(closing.clone())),
                    run_lasting("catalog", || async { shared.follow(&mut *news.lock().await, closing.clone()).await }),
                    run_lasting("orders", || async {
                        shared.follow_orders(&mut *heard.lock().await, closing.clone()).await
                    }),
                    run_lasting("memory", || shared.keep(closing.clone())),
                    run_lasting("urgent checks", || async {
                        shared.hasten(&mut *urgent.lock().await, closing.clone()).await
                    })
                )
            }
        });
        shared.unsaved.notify_one();
        let catalog = Self { shared, follower, closing, orders, began: unix_millis() };
        catalog.follow(agent, resumed);
        catalog
    }

    /// Has what in the configuration of services means nothing logged again, because a reload reads it again.
    pub fn repeat_warnings(&self) {
        self.shared.state.lock().unmatched.clear();
    }

    /// Keeps registrations at this place.
    pub fn keep_registrations(&self, place: Place) {
        self.shared.keep_registrations(place);
        // All that is known without an agent is known now.
        self.shared.state.lock().warn_of_unmatched();
    }

    /// Saves what there is to save, and from then on leaves the files to another process.
    pub async fn leave_files(&self) {
        self.shared.save_all().await;
        self.shared.writing.lock().await.files_left = true;
    }

    /// The files are ours again.
    pub async fn take_back_files(&self) {
        self.shared.writing.lock().await.files_left = false;
        self.shared.save_registrations_anew();
        self.shared.state.lock().forget_saved();
        self.shared.save_all().await;
    }

    /// The catalog as the API serves it: as before, unless something about that has changed.
    pub fn serve(&self, before: Option<&Arc<Served>>, config: &ApiConfig) -> Arc<Served> {
        let before = before.filter(|served| served.is_for(&self.shared.live, config)).cloned();
        let live = || self.shared.live.clone();
        before.unwrap_or_else(|| Served::new(live(), self.orders.clone(), config.clone(), self.began).into())
    }

    /// What a successor has to know, as it is when it asks. Nothing that was passed on is forgotten here.
    pub fn estate(&self) -> Box<dyn FnMut() -> Result<Vec<u8>, String> + Send> {
        let shared = self.shared.clone();
        Box::new(move || {
            let stamp = Stamp::now();
            memory::write(&shared.estate(), stamp)
        })
    }

    /// Follows this agent, or none. One that is followed already goes on. `resumed` is what is held of it from an earlier
    /// process.
    fn follow(&self, agent: Option<consul::Agent>, resumed: Option<Resumed>) {
        if agent.as_ref().is_some_and(|agent| self.follower.follows(agent)) {
            return;
        }
        let mut standing = Standing::Lost;
        self.shared.publish(|state| {
            let now = Moment::now();
            state.registry.follow(CONSUL, agent.is_some(), now);
            state.introduction = state.introduction.take().filter(|_| agent.is_some());
            if state.registry.snapshot().standing().is_some_and(|standing| standing != Standing::Lost) {
                // What the last has said remains until the next has spoken.
                standing = Standing::Away;
                state.registry.hear(CONSUL, News::Standing(standing), now);
            }
        });
        let shared = self.shared.clone();
        *self.shared.agent.lock() = self.follower.replace(agent, standing, resumed, move |event| shared.hear(event));
    }

    /// Whether any check has no result yet.
    pub fn lacks_results(&self) -> bool {
        self.shared.live.load().tally().has_unknown_checks()
    }

    /// Returns when the first results of all checks are there, or questions wait for them no longer.
    pub fn first_results(&self) -> impl Future<Output = ()> + use<> {
        let live = self.live();
        async move {
            let mut changes = live.changes();
            let arrive = async {
                // The catalog that is waited for may have been taken out of service.
                while live.load().tally().has_unknown_checks() && changes.changed().await.is_ok() {}
            };
            let _ = timeout(FIRST_RESULT_PATIENCE, arrive).await;
        }
    }

    /// Where its answers come from, from now on.
    pub fn live(&self) -> Arc<Live> {
        self.shared.live.clone()
    }

    /// Which upstreams there are, from now on.
    pub fn set_upstreams(&self, groups: &[Arc<forward::Group>]) {
        *self.shared.upstreams.lock() = groups.to_vec();
    }

    /// The folders whose files may change.
    pub fn files(&self) -> Arc<Files> {
        self.shared.state.lock().plan.files.clone()
    }

    /// What is in service, for those who load what comes next.
    pub fn current(&self) -> Current {
        let Plan { config, files, identity, .. } = &self.shared.state.lock().plan;
        Current { config: config.files.clone(), files: files.clone(), identity: identity.clone() }
    }

    /// Returns true if our own node has no address.
    pub fn is_address_unknown(&self) -> bool {
        let state = self.shared.state.lock();
        state.plan.config.has_own_node() && state.plan.identity.address.is_unspecified()
    }

    /// What the host said of itself, if our identity depends on that.
    pub fn host(&self) -> Option<System> {
        let state = self.shared.state.lock();
        let Plan { config, files, system, .. } = &state.plan;
        Identity::depends_on_host(config, &files.agent()).then(|| system.clone())
    }

    /// Takes over another plan. Checks that stay the same go on, and states outlive their definitions. Whether its domains
    /// are others now.
    pub fn adopt(&self, mut plan: Plan) -> bool {
        let domains = self.shared.live.load().settings().domains().to_vec();
        self.follow(plan.agent.take(), None);
        self.shared.publish(|state| state.adopt(plan, &self.shared.runner));
        domains != self.shared.live.load().settings().domains()
    }
}

impl Drop for Catalog {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Shared {
    /// Changes the registry, and lets everybody see it.
    pub(super) fn publish(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state.lock();
        change(&mut state);
        state.has_news = true;
        state.registry.publish_to(&self.live);
        state.log_changes();
        drop(state);
        self.changed.notify_one();
    }

    /// Takes in what an agent says.
    fn hear(&self, event: consul::Event) {
        match event {
            consul::Event::Agent(agent) => self.publish(|state| {
                state.has_agent_news = true;
                if state.introduce(agent) {
                    state.register(&self.runner);
                }
            }),
            consul::Event::News(news) => self.publish(|state| {
                state.has_agent_news = true;
                let now = Moment::now();
                news.into_iter().for_each(|news| state.registry.hear(CONSUL, news, now));
                state.warn_of_unmatched();
            }),
        }
    }

    /// Has the checks run first for whose results questions wait.
    async fn hasten(&self, urgent: &mut mpsc::Receiver<ServiceKey>, closing: CancellationToken) {
        while let Some(Some(service)) = closing.run_until_cancelled(urgent.recv()).await {
            let unknown = self.state.lock().registry.checks_without_result(&service);
            self.runner.hasten(unknown.iter().map(id_of));
        }
    }

    /// Takes in what the checks find, and does in time what policies have put off.
    async fn follow(&self, news: &mut mpsc::Receiver<Event>, closing: CancellationToken) {
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let wake = self.state.lock().registry.wake();
            let sleep = async {
                match wake {
                    Some(wake) => sleep_until(Instant::now() + wake.since(Moment::now())).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = closing.cancelled() => return,
                () = self.changed.notified() => {}
                Some(event) = news.recv() => self.publish(|state| {
                    state.take_in(event, self);
                    // What came in at the same time needs no snapshot of its own.
                    while let Ok(event) = news.try_recv() {
                        state.take_in(event, self);
                    }
                    // Before anybody sees that the last of the others is gone.
                    state.look_out(self);
                }),
                _ = looks.tick() => {
                    let mut state = self.state.lock();
                    if state.look_out(self) {
                        state.has_news = true;
                        state.registry.publish_to(&self.live);
                    }
                    state.log_changes();
                }
                () = sleep => self.publish(|state| drop(state.registry.tick(Moment::now()))),
            }
        }
    }
}

impl State {
    /// Makes what is known from files, registrations and an earlier process all there is, and runs the checks. What is held of
    /// the agent, if anything is.
    fn begin(&mut self, memory: Memory, agent: Option<&consul::Agent>, runner: &Runner) -> Option<Resumed> {
        let now = Moment::now();
        let (findings, origin) = memory.findings.map(|Past { saved, origin }| (saved, origin)).unwrap_or_default();
        let contact = origin.zip(findings.agent_contact).map(|(origin, contact)| origin.at(contact));
        let resumed = agent.zip(memory.agent).and_then(|(agent, past)| self.resume(past, contact, agent, now));
        if let Some(origin) = origin {
            runner.restore(findings.checks, origin);
            self.guard = Guard::restore(findings.guard, origin);
            let remotes = findings.remotes.into_iter();
            self.remotes = remotes.map(|remote| (remote.check.clone(), (remote, origin))).collect();
        }
        self.deregistered = memory.deregistered.into_iter().collect();
        self.register(runner);
        // Without a clock to rely on, the choices still hold, as if they were of now.
        self.registry.restore_policies(findings.policies, origin.unwrap_or(now), now);
        resumed
    }

    /// Takes in the catalog of an agent that an earlier process has followed, if it is the one that is to be followed.
    fn resume(
        &mut self,
        past: Past<AgentCatalog>,
        contact: Option<Moment>,
        agent: &consul::Agent,
        now: Moment,
    ) -> Option<Resumed> {
        let Past { saved: AgentCatalog { source, introduction, catalog, contact: saved_contact }, origin } = past;
        if !source.meets(&agent.source()) {
            tracing::info!("the saved catalog is that of another agent, and not used");
            return None;
        }
        // The findings are saved more often, and so know better.
        let contact = contact.max(origin.map(|origin| origin.at(saved_contact)));
        let contact = contact.filter(|contact| now.since(*contact) < agent.max_stale());
        self.introduce(introduction);
        let resumed = self.registry.restore_remote(CONSUL, catalog, contact, now);
        match &resumed {
            Some(resumed) => {
                let seconds = now.since(resumed.contact).as_secs();
                tracing::info!(source = "consul", seconds, "saved catalog in service until the agent is reached");
            }
            None => tracing::warn!(source = "consul", "the saved catalog is older than max_stale, and not used"),
        }
        resumed
    }

    /// What the next process has to know, but for the agent's catalog.
    pub(super) fn findings(&mut self, runner: &Runner, agent: Option<&consul::Agent>, now: Moment) -> Findings {
        self.has_news = false;
        self.saved_contact = self.contact(agent).unwrap_or_default();
        let remote = |(check, known): (&Arc<str>, &Known)| {
            let past = known.remote.as_ref()?.save(now);
            let is_held = self.guard.holds(&id_of(&known.key));
            let held = is_held.then(|| self.registry.snapshot().outcome(&known.key)).flatten();
            Some(RemoteCheck { check: check.clone(), past, held })
        };
        Findings {
            checks: runner.save(now),
            policies: self.registry.save_policies(now),
            guard: self.guard.save(now),
            remotes: self.checks.iter().filter_map(remote).collect(),
            agent_contact: self.contact(agent).map(|contact| contact.offset(now)),
        }
    }

    /// The agent's catalog for the next process, once there is one.
    pub(super) fn agent_catalog(&mut self, agent: Option<&consul::Agent>, now: Moment) -> Option<AgentCatalog> {
        self.has_agent_news = false;
        let introduction = self.introduction.clone()?;
        let source = agent?.source();
        let contact = self.contact(agent).unwrap_or_default().offset(now);
        let catalog = self.registry.save_remote(CONSUL)?;
        Some(AgentCatalog { source, introduction, catalog, contact })
    }

    /// When the agent whose word is in service has answered last.
    pub(super) fn contact(&self, agent: Option<&consul::Agent>) -> Option<Moment> {
        let is_lost = self.registry.snapshot().standing().is_none_or(|standing| standing == Standing::Lost);
        agent.filter(|_| !is_lost).map(consul::Agent::last_contact)
    }

    /// Whether anything is to be saved by now: of the findings, and of the agent's catalog.
    pub(super) fn is_unsaved(&self, runner: &Runner, agent: Option<&consul::Agent>, now: Moment) -> (bool, bool) {
        let is_alive = self.contact(agent).is_some_and(|contact| contact.since(self.saved_contact) >= CONTACT_DELAY);
        (self.has_news || is_alive || runner.is_unsaved(now), self.has_agent_news)
    }

    /// What a successor has to know besides: the registrations, and which services of files were deregistered.
    pub(super) fn registered(&self) -> (Option<String>, Vec<Arc<str>>) {
        (self.registrations.to_text(), self.deregistered.iter().cloned().collect())
    }

    /// What is on the disk is not what was saved.
    pub(super) fn forget_saved(&mut self) {
        (self.has_news, self.has_agent_news) = (true, true);
    }

    /// Logs what has changed in the registry, and what was put off.
    fn log_changes(&mut self) {
        let now = Moment::now();
        // The checks that run here are told of as their results come in.
        let own = self.plan.identity.node().key();
        let is_told = |change: &CheckChange| change.node == own && self.checks.contains_key(&change.check);
        let lines = self.changes.note(self.registry.take_notices(), now, is_told);
        lines.iter().chain(&self.changes.overdue(now)).for_each(Line::log);
    }

    /// Logs what in the configuration of services means nothing, once.
    fn warn_of_unmatched(&mut self) {
        let found: HashSet<Unmatched> = self.registry.snapshot().unmatched().into_iter().collect();
        let mut new: Vec<&Unmatched> = found.difference(&self.unmatched).collect();
        new.sort();
        new.into_iter().for_each(|unmatched| tracing::warn!(warning = %unmatched, "configuration warning"));
        self.unmatched = found;
    }

    fn adopt(&mut self, mut plan: Plan, runner: &Runner) {
        plan.introduce(self.introduction.as_ref());
        if plan.settings != self.plan.settings {
            self.registry.reconfigure(plan.settings.clone(), Moment::now());
        }
        let is_same = |files: &Arc<Files>| Arc::ptr_eq(files, &self.plan.files);
        let changed = plan.since.as_ref().filter(|(since, _)| is_same(since) && plan.identity == self.plan.identity);
        let changed = changed.map(|(_, changed)| changed.clone());
        let before = std::mem::replace(&mut self.plan, plan);
        // Where two checks have one id, which of them runs is not to be told from one service alone.
        let has_shared_ids = before.files.has_shared_ids() || self.plan.files.has_shared_ids();
        let deregistered = std::mem::take(&mut self.deregistered);
        match changed.filter(|_| !has_shared_ids) {
            Some(mut changed) => {
                changed.extend(deregistered.into_iter().map(Some));
                self.register_some(&changed, runner);
            }
            None => self.register(runner),
        }
    }

    /// Makes what the files say, without what is deregistered, and what is registered, all there is, and runs its checks.
    pub(super) fn register(&mut self, runner: &Runner) {
        let now = Moment::now();
        let Plan { files, identity, .. } = &self.plan;
        let is_in = |id: Option<&Arc<str>>| id.is_none_or(|id| !self.deregistered.contains(id));
        // Our own node is there for the sake of what runs on it.
        let mut set = if self.plan.config.has_own_node() { files.set(identity) } else { Set::default() };
        set.instances.retain(|instance: &Arc<Instance>| is_in(Some(&instance.registration.id)));
        let registered = self.registrations.registered();
        registered.join(files, &identity.node().key(), &mut set);

        let definitions = files.definitions(identity).chain(registered.definitions(files, identity));
        let definitions = definitions.filter(|(key, _)| is_in(key.service_id.as_ref()));
        let definitions: Vec<_> = definitions.map(|(key, definition)| (key, definition.clone())).collect();
        runner.replace(definitions.iter().map(|check| self.check_of(check)).collect());
        // What is known of a check from an earlier process counts from the start.
        let known_by_check = Self::known(&definitions, runner);
        self.note_outcomes(&mut set.nodes, &mut set.instances, &known_by_check);
        self.registry.publish(FILES, set, Outcomes::Ours, now);
        let external = registered.external().set(&identity.datacenter);
        self.registry.publish(EXTERNAL, external, Outcomes::Published, now);
        let mut before = std::mem::take(&mut self.checks);
        self.running.clear();
        for (key, definition) in definitions {
            let Some(event) = known_by_check.get(&key.check).cloned() else { continue };
            let known = before.remove(&key.check);
            self.note(key, &definition, known, event, now);
        }
    }

    /// Makes known what has been registered of an external node, or is no longer.
    pub(super) fn publish_external(&mut self, changed: Changed) {
        let now = Moment::now();
        let (part, gone) = self.registrations.registered().external().part(changed, &self.plan.identity.datacenter);
        self.registry.publish_part(EXTERNAL, part, Outcomes::Published, now);
        self.registry.publish_nodes(EXTERNAL, Vec::new(), gone.into_iter().collect(), now);
    }

    /// The same for some services, or our node, alone.
    pub(super) fn register_some(&mut self, owners: &HashSet<Owner>, runner: &Runner) {
        let now = Moment::now();
        let Plan { files, identity, .. } = &self.plan;
        let is_out = |owner: &Owner| owner.as_ref().is_some_and(|id| self.deregistered.contains(id));
        let (out, present): (Vec<_>, Vec<_>) = owners.iter().partition(|owner| is_out(owner));
        let mut part = files.part(present.iter().copied(), identity);
        let node = identity.node().key();
        let registered = self.registrations.registered();
        registered.join_part(files, &node, present.iter().copied(), &mut part);
        part.gone.extend(out.iter().copied().flatten().map(|id| InstanceKey { node: node.clone(), id: id.clone() }));

        let definitions = present.iter().flat_map(|owner| {
            files.definitions_of(owner, identity).chain(registered.definitions_of(owner, files, identity))
        });
        let definitions: Vec<_> = definitions.map(|(key, definition)| (key, definition.clone())).collect();
        let wanted: HashSet<&Arc<str>> = definitions.iter().map(|(key, _)| &key.check).collect();
        let mut ran = HashMap::new();
        for check in owners.iter().filter_map(|owner| self.running.remove(owner)).flatten() {
            let Some(known) = self.checks.remove(&check) else { continue };
            if !wanted.contains(&check) {
                runner.stop(&id_of(&known.key));
            }
            ran.insert(check, known);
        }
        definitions.iter().for_each(|check| runner.start(self.check_of(check)));
        let known_by_check = Self::known(&definitions, runner);
        self.note_outcomes(&mut part.nodes, &mut part.instances, &known_by_check);
        self.registry.publish_part(FILES, part, Outcomes::Ours, now);
        for (key, definition) in definitions {
            let Some(event) = known_by_check.get(&key.check).cloned() else { continue };
            let known = ran.remove(&key.check);
            self.note(key, &definition, known, event, now);
        }
    }

    /// A check to be run. What it belongs to is not published with it yet.
    fn check_of(&self, (key, definition): &(CheckKey, Arc<Definition>)) -> check::Check {
        let is_ttl = matches!(definition.kind, check::Kind::Ttl(_));
        let begins = self.registry.first_status(key, definition.initial, is_ttl);
        check::Check { id: id_of(key), service: key.service_id.clone(), definition: definition.clone(), begins }
    }

    /// Returns the state of each check, by its id.
    ///
    /// The runner is asked once: a result that comes later is an event, and changes what has been published and noted.
    fn known(definitions: &[(CheckKey, Arc<Definition>)], runner: &Runner) -> HashMap<Arc<str>, Event> {
        let state = |(key, _): &(CheckKey, _)| Some((key.check.clone(), runner.state(&id_of(key))?));
        definitions.iter().filter_map(state).collect()
    }

    /// Gives the checks of nodes and instances the outcomes that are known of them.
    fn note_outcomes(
        &self,
        nodes: &mut [Arc<Node>],
        instances: &mut [Arc<Instance>],
        known_by_check: &HashMap<Arc<str>, Event>,
    ) {
        let note = |node: &NodeKey, checks: &[Check]| {
            let mut noted = checks.to_vec();
            for check in &mut noted {
                let id = check::Id { node: node.name().into(), check: check.id.clone() };
                let remote = self.remotes.get(&check.id).filter(|_| self.guard.holds(&id));
                let held = remote.and_then(|(remote, _)| remote.held.clone());
                let known = known_by_check.get(&check.id).filter(|_| !self.guard.holds(&id));
                if let Some((status, output)) = held.or_else(|| known.map(|event| (event.status, event.output.clone())))
                {
                    (check.status, check.output) = (status, output);
                }
            }
            (noted != checks).then_some(noted)
        };
        for node in nodes {
            if let Some(checks) = note(&node.key(), &node.checks) {
                *node = Node { checks, ..Node::clone(node) }.into();
            }
        }
        for instance in instances {
            if let Some(checks) = note(&instance.registration.node, &instance.checks) {
                *instance = Instance { checks, registration: instance.registration.clone() }.into();
            }
        }
    }

    /// Notes a check that runs now, and has run as `before`. `event` is its state.
    fn note(&mut self, key: CheckKey, definition: &Definition, before: Option<Known>, event: Event, now: Moment) {
        let id = id_of(&key);
        // The registry keeps the state of a check that stays where it is, the runner that of all.
        if before.as_ref().is_some_and(|before| before.key != key) && !self.guard.holds(&id) {
            self.registry.set_check(FILES, &key, event.status, &event.output, now);
        }
        let Plan { files, own, .. } = &self.plan;
        let registered = || self.registrations.registered().address(&key.service_id);
        let address = files.address(&key.service_id).or_else(registered);
        let remote = Remote::new(address, definition, own);
        let is_new = before.is_none();
        let mut remote = remote.map(|remote| remote.follow(before.and_then(|before| before.remote)));
        if let Some(remote) = remote.as_mut().filter(|_| is_new) {
            if let Some((restored, origin)) = self.remotes.remove(&key.check) {
                remote.restore(restored.past, origin);
            }
            // Of a check that goes on, this is the last of its past.
            if !remote.ends_with(event.at, event.status) {
                remote.begin(event.at, event.status, event.output);
            }
        }
        self.running.entry(key.service_id.clone()).or_default().insert(key.check.clone());
        self.checks.insert(key.check.clone(), Known { key, status: event.status, remote });
    }

    /// The agent says who it is: names without a datacenter mean its own, unless we are told otherwise. Whether that changes
    /// who we are.
    fn introduce(&mut self, agent: consul::Introduction) -> bool {
        if self.introduction.as_ref() == Some(&agent) {
            return false;
        }
        let domains = self.plan.settings.domains();
        if !agent.domain.is_empty() && !agent.domain.parse().is_ok_and(|domain| domains.contains(&domain)) {
            // Names go astray if they are known to be ours only after somebody has asked for them.
            tracing::warn!(
                domain = agent.domain,
                "the agent's domain is another; set catalog.domain if ours is to be that"
            );
        }
        self.plan.introduce(Some(&agent));
        self.introduction = Some(agent);
        let is_changed = self.plan.settings != *self.registry.snapshot().settings();
        if is_changed {
            self.registry.reconfigure(self.plan.settings.clone(), Moment::now());
        }
        is_changed
    }

    pub(super) fn take_in(&mut self, event: Event, shared: &Shared) {
        let Some(known) = self.checks.get_mut(&event.id.check) else { return };
        let (node, service) = (known.key.node.name(), known.key.service_id.clone());
        let (check, status) = (&*event.id.check, event.status);
        if known.status != status {
            let change = CheckChange {
                node: known.key.node.clone(),
                service: service.clone(),
                check: event.id.check.clone(),
                from: known.status,
                to: status,
                output: event.output.clone(),
            };
            self.changes.note_check(change, Moment::now()).iter().for_each(Line::log);
            known.status = status;
            if let Some(remote) = &mut known.remote {
                remote.note(event.at, status, event.output.clone());
            }
            shared.metrics.levels().catalog_check_changes.add(1);
        }
        if self.guard.holds(&event.id) {
            return;
        }
        if event.is_overdue
            && let Some(service) = service
        {
            tracing::warn!(
                service = &*service,
                node,
                check,
                "service deregistered; its check was critical for too long"
            );
            let mut changed = HashSet::from([Some(service.clone())]);
            if self.plan.files.has_service(&service) {
                self.deregistered.insert(service);
            } else {
                // Its sidecar goes with it.
                changed.extend(self.registrations.drop_service(&service));
                shared.unsaved.notify_one();
            }
            return self.register_some(&changed, &shared.runner);
        }
        self.registry.set_check(FILES, &known.key, status, &event.output, Moment::now());
    }

    /// Sees whether we are cut off from all other hosts; what their checks say is not believed then. Whether anything is
    /// believed otherwise now.
    fn look_out(&mut self, shared: &Shared) -> bool {
        if self.plan.config.cut_off_hold.is_zero() && self.guard.held().is_empty() {
            return false;
        }
        let now = Moment::now();
        let seen = shared.runner.sightings(|check| self.checks.get(&check.id.check)?.remote.as_ref()?.way());
        let cut_off = guard::cut_off(seen, shared.upstreams());
        let verdict = self.guard.judge(cut_off, self.plan.config.cut_off_hold, now);
        match verdict {
            None => {}
            Some(Verdict::CutOff(since)) => {
                let remote = self.checks.values().filter_map(|known| Some((&known.key, known.remote.as_ref()?)));
                let (ids, outcomes): (Vec<_>, Vec<_>) = remote
                    .filter_map(|(key, remote)| {
                        let (status, output) = remote.before(since)?;
                        Some((id_of(key), (key.clone(), status, output.clone())))
                    })
                    .unzip();
                let (seconds, checks) = (now.since(since).as_secs(), ids.len());
                tracing::warn!(seconds, checks, "cut off from all other hosts; their instances stay as they were");
                self.guard.hold(ids);
                self.registry.roll_back(FILES, &outcomes, since, now);
            }
            Some(Verdict::Contact) => {
                tracing::warn!("no longer cut off; other hosts' instances count again as they are checked");
                shared.runner.hurry(self.guard.held());
            }
            Some(Verdict::GiveUp) => {
                tracing::warn!("cut off for longer than catalog.cut_off_hold; what the checks say is believed again");
            }
        }
        shared.metrics.levels().catalog_cut_off.set(self.guard.is_cut_off().into());
        let released = self.guard.release(|id, contact| match shared.runner.state(id) {
            Some(_) => shared.runner.is_fresh(id, contact),
            None => Some(true),
        });
        // As one change, for a policy must not choose one of them that is about to fail as well.
        let events: Vec<Event> = released.iter().filter_map(|id| shared.runner.state(id)).collect();
        let known =
            |event: &Event| Some((self.checks.get(&event.id.check)?.key.clone(), event.status, event.output.clone()));
        let outcomes: Vec<_> = events.iter().filter_map(known).collect();
        self.registry.set_checks(FILES, &outcomes, now);
        let is_changed = verdict.is_some() || !events.is_empty();
        events.into_iter().filter(|event| event.is_overdue).for_each(|event| self.take_in(event, shared));
        is_changed
    }
}

impl Shared {
    /// What the upstreams tell of our own link; those on this host, nothing.
    fn upstreams(&self) -> Link {
        let groups = self.upstreams.lock();
        let mut remote =
            groups.iter().flat_map(|group| group.upstreams()).filter(|up| !up.url().is_loopback()).peekable();
        match remote.peek().is_some() && remote.all(|upstream| !upstream.is_up()) {
            true => Link::AtFault,
            false => Link::Sound,
        }
    }
}

impl Plan {
    /// The services of the files, and what in the configuration means nothing among them.
    pub(super) fn preview(&self) -> (Vec<ServiceSummary>, Vec<Unmatched>) {
        let mut registry = Registry::new(self.settings.clone());
        registry.follow(CONSUL, self.agent.is_some(), Moment::now());
        let set = if self.config.files.is_some() { self.files.set(&self.identity) } else { Set::default() };
        registry.publish(FILES, set, Outcomes::Published, Moment::now());
        let snapshot = registry.snapshot();
        let services = snapshot.services().map(|(key, service)| ServiceSummary {
            name: service.name().to_owned(),
            instances: service.instances.len(),
            checks: service.instances.iter().map(|instance| instance.checks.len()).sum(),
            policy: snapshot.policy_of(key).to_string(),
        });
        let mut services: Vec<_> = services.collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        (services, snapshot.unmatched())
    }

    fn introduce(&mut self, agent: Option<&consul::Introduction>) {
        let is_told = self.config.datacenter.is_some() || self.files.agent().datacenter.is_some();
        if let Some(agent) = agent.filter(|agent| !is_told && !agent.datacenter.is_empty()) {
            self.identity.datacenter.clone_from(&agent.datacenter);
            self.settings = self.config.settings(&self.identity);
        }
    }
}

pub(super) fn id_of(key: &CheckKey) -> check::Id {
    check::Id { node: key.node.name().into(), check: key.check.clone() }
}

/// How often it is looked whether we are cut off, or no longer: not at all while any other host answers.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Of two sources that contradict each other the first is believed. Our own node, by the definition files and by what is registered.
const FILES: SourceId = SourceId(0);
/// How often it is saved that the agent still answers.
const CONTACT_DELAY: Duration = Duration::from_secs(5);
/// So many orders may wait to be carried out.
const ORDERS: usize = 1024;
/// Nodes that are registered without an agent.
const EXTERNAL: SourceId = SourceId(1);
const CONSUL: SourceId = SourceId(2);

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
