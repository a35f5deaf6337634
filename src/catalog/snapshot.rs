//! The catalog at one moment: immutable, shared by all who answer from it.
//!
//! What did not change from one snapshot to the next is shared between the two, so that a change costs what it touches
//! and not what there is.

use std::{
    fmt,
    hash::{BuildHasher, Hash},
    net::IpAddr,
    sync::Arc,
};

use foldhash::fast::{FixedState, RandomState};
use rpds::{HashTrieMapSync, RedBlackTreeSetSync};

use super::{
    Settings,
    health::Status,
    keys::{closest, remedy},
    model::{Instance, InstanceKey, Kind, Node, NodeKey, ServiceKey},
    policy::{Policy, Rules, is_meant},
    registry::CheckKey,
    remote::{Remote, Standing},
};
use crate::clock::Moment;

/// The catalog at one moment.
#[derive(Clone)]
pub struct Snapshot {
    pub(super) version: u32,
    pub(super) settings: Arc<Settings>,
    pub(super) nodes: HashTrieMapSync<NodeKey, Arc<Node>, RandomState>,
    pub(super) services: HashTrieMapSync<ServiceKey, Arc<Service>, RandomState>,
    pub(super) holders: RedBlackTreeSetSync<(IpAddr, Holder)>,
    pub(super) tally: Tally,
    /// What is known at an agent elsewhere, if one is followed.
    pub(super) remote: Option<Remote>,
}

/// Something in `[catalog.service.NAME]` that means nothing in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Unmatched {
    /// The service of the section, in lower case.
    pub service: String,
    /// The entry of its `order`; without, the service itself is not known.
    pub entry: Option<String>,
    /// The service that may be meant.
    pub closest: Option<String>,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, entry, closest } = self;
        match entry {
            None => {
                let remedy = remedy(closest.as_deref());
                write!(f, "catalog.service.{service} is the name of no known service; {remedy}")
            }
            Some(entry) => write!(
                f,
                "catalog.service.{service} has {entry:?} in its order, which is neither node, id nor address of an \
                 instance; correct or remove it"
            ),
        }
    }
}

/// How many are passing, warning, unknown and critical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Instances of services, by the worst of their checks and their node's.
    pub instances: [u64; 4],
    /// Checks of nodes and instances.
    pub checks: [u64; 4],
}

/// The instances that one name finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// All of them, healthy or not, by node and id; at least one.
    pub instances: Vec<Arc<Instance>>,
    /// Under a policy or a guard, the places of those that are given.
    pub(super) chosen: Option<Chosen>,
    /// Places of those without a result, and until when questions wait for it.
    pub(super) unknown: Vec<(usize, Moment)>,
    /// Until when questions wait for all results, though some are there: nothing could be given before these came in.
    pub(super) first_round: Option<Moment>,
    pub(super) tally: Tally,
}

/// What a policy or a guard has decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    pub policy: Policy,
    pub places: Vec<usize>,
    pub guarded: bool,
    /// See [`super::policy::Choice::open_until`].
    pub open_until: Option<Moment>,
}

/// What a question waits for: the first results of the checks of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// The service.
    pub service: ServiceKey,
    /// The tag that its instances must have, in lower case.
    pub tag: Option<String>,
    /// When to be content with what is known.
    pub until: Moment,
}

/// Whether enough is known of a service to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knowledge {
    /// Yes.
    Enough,
    /// Results that matter are to be waited for until then.
    Awaited(Moment),
    /// There is none to give, but some of which nothing is known.
    Nothing,
}

/// An instance that is given, with what its records are made of.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub instance: &'a Instance,
    pub node: Option<&'a Node>,
    pub status: Status,
}

/// Who has an address. Nodes come before services.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Holder {
    Node(NodeKey),
    /// The service in lower case, so that they are in its order; as registered; the instance.
    Service(Arc<str>, Arc<str>, InstanceKey),
}

/// One of [`SLOTS`] places into which all that answers are made of is hashed.
///
/// An answer names its slots, and so does a change. Whoever keeps answers notes for each slot the version of the last
/// change to it, and with each answer the version that it was made of: the answer holds as long as no slot of its own has
/// a later one. An answer made of a snapshot that is replaced meanwhile is void by that rule, however late it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

/// How many slots there are.
pub const SLOTS: usize = 4096;

impl Slot {
    pub(super) fn of(what: &impl Hash) -> Self {
        // Seeds that are the same for all, so that whoever asks and whoever changes agree.
        Self((FixedState::default().hash_one(what) % SLOTS as u64) as u16)
    }

    /// That of the instances of a service.
    pub fn of_service(key: &ServiceKey) -> Self {
        Self::of(key)
    }

    /// That of a node; what runs on it is not in it.
    pub fn of_node(key: &NodeKey) -> Self {
        Self::of(key)
    }

    /// That of what depends on nothing but the settings, with which all change.
    pub(super) fn of_settings() -> Self {
        Self::of(&"settings")
    }

    /// All of them.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..SLOTS as u16).map(Self)
    }

    /// Its place, below [`SLOTS`].
    pub fn index(self) -> usize {
        self.0.into()
    }
}

impl Snapshot {
    /// An empty catalog.
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        Self {
            version: 0,
            settings,
            nodes: HashTrieMapSync::new_with_hasher_and_ptr_kind(RandomState::default()),
            services: HashTrieMapSync::new_with_hasher_and_ptr_kind(RandomState::default()),
            holders: RedBlackTreeSetSync::new_sync(),
            tally: Tally::default(),
            remote: None,
        }
    }

    /// Its number: later snapshots have greater ones.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What its answers depend on besides the catalog.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A node.
    pub fn node(&self, key: &NodeKey) -> Option<&Arc<Node>> {
        self.nodes.get(key)
    }

    /// All nodes, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (&NodeKey, &Arc<Node>)> {
        self.nodes.iter()
    }

    /// The outcome of a check.
    pub fn outcome(&self, key: &CheckKey) -> Option<(Status, Arc<str>)> {
        let checks = match &key.service_id {
            None => &self.nodes.get(&key.node)?.checks,
            Some(id) => {
                let mut instances = self.services.values().flat_map(|service| &service.instances);
                let is_it = |instance: &&Arc<Instance>| {
                    instance.registration.id == *id && instance.registration.node == key.node
                };
                &instances.find(is_it)?.checks
            }
        };
        checks.iter().find(|check| check.id == key.check).map(|check| (check.status, check.output.clone()))
    }

    /// The instances of a service.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceKey, &Arc<Service>)> {
        self.services.iter().filter(|(key, _)| key.kind() == Kind::Service)
    }

    /// By which policy instances of a service are given.
    pub fn policy_of(&self, key: &ServiceKey) -> Policy {
        let of_instances = || Rules::from_instances(&self.services.get(key)?.instances);
        let rules = self.settings.rules.get(key.name()).cloned().or_else(of_instances);
        rules.map_or(Policy::default(), |rules| rules.policy)
    }

    /// The sections `[catalog.service.NAME]`, and the entries of their `order`, that mean nothing in this catalog. Of an
    /// agent that has not said yet which services it has, nothing is known.
    pub fn unmatched(&self) -> Vec<Unmatched> {
        if self.standing() == Some(Standing::Lost) {
            return Vec::new();
        }
        let mut unmatched = Vec::new();
        let names = || {
            let listed = self.remote.iter().flat_map(Remote::listed);
            self.services().map(|(key, _)| key.name()).chain(listed)
        };
        for (name, rules) in &self.settings.rules {
            let service = self.services.get(&ServiceKey::new(Kind::Service, &self.settings.datacenter, name));
            if service.is_none() && !names().any(|known| known == name) {
                let closest = closest(name, names()).map(str::to_owned);
                unmatched.push(Unmatched { service: name.clone(), entry: None, closest });
            }
            for entry in service.into_iter().flat_map(|_| &rules.order) {
                let mut instances = service.into_iter().flat_map(|service| &service.instances);
                if !instances.any(|instance| is_meant(entry, &instance.registration)) {
                    unmatched.push(Unmatched { service: name.clone(), entry: Some(entry.clone()), closest: None });
                }
            }
        }
        unmatched.sort();
        unmatched
    }

    /// How many instances and checks there are; known without counting.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// The status of an instance with that of its node.
    pub fn status(&self, instance: &Instance) -> Status {
        let node = self.nodes.get(&instance.registration.node);
        node.map_or(Status::Passing, |node| node.status()).max(instance.status())
    }

    /// The instances that are given to whoever asks, all or those with a tag.
    pub(super) fn given<'a>(&'a self, service: &'a Service, tag: Option<&str>) -> Vec<Given<'a>> {
        let all = 0..service.instances.len();
        let given = |place: usize| {
            let instance = service.instances.get(place)?;
            let node = self.nodes.get(&instance.registration.node).map(|node| &**node);
            Some(Given { instance, node, status: self.status(instance) })
        };
        let has_tag = |given: &Given| is_tagged(given.instance, tag);
        match &service.chosen {
            Some(chosen) => chosen.places.iter().copied().filter_map(given).filter(has_tag).collect(),
            None => {
                all.filter_map(given).filter(|given| self.settings.is_healthy(given.status)).filter(has_tag).collect()
            }
        }
    }

    /// Whether enough is known of the instances with a tag to answer, if these are given.
    pub(super) fn knowledge(
        &self,
        service: &Service,
        tag: Option<&str>,
        given: &[Given<'_>],
        now: Moment,
    ) -> Knowledge {
        if service.unknown.is_empty() {
            return Knowledge::Enough;
        }
        let has_tag =
            |(place, _): &&(usize, Moment)| service.instances.get(*place).is_some_and(|it| is_tagged(it, tag));
        let unknown = || service.unknown.iter().filter(has_tag).map(|(_, until)| *until);
        let (is_settled, awaited) = match &service.chosen {
            // Which one is given depends on all of them.
            Some(Chosen { policy: Policy::One, places, open_until, .. }) => (!places.is_empty(), *open_until),
            _ if given.is_empty() => (false, unknown().max()),
            _ => (true, unknown().max().and_then(|until| Some(until.min(service.first_round?)))),
        };
        match awaited.filter(|until| *until > now) {
            Some(until) => Knowledge::Awaited(until),
            None if given.is_empty() && !is_settled && unknown().next().is_some() => Knowledge::Nothing,
            None => Knowledge::Enough,
        }
    }

    /// What a question for a service has to wait for, if anything.
    pub fn awaited(&self, service: &ServiceKey, tag: Option<&str>, now: Moment) -> Option<Awaited> {
        let held = self.services.get(service)?;
        match self.knowledge(held, tag, &self.given(held, tag), now) {
            Knowledge::Awaited(until) => Some(Awaited { service: service.clone(), tag: tag.map(str::to_owned), until }),
            Knowledge::Enough | Knowledge::Nothing => None,
        }
    }

    /// Until when the first round of results of all services has to be waited for, if any is missing.
    pub(super) fn first_round(&self, now: Moment) -> Option<Moment> {
        let rounds = self.services.values().filter(|service| !service.unknown.is_empty());
        rounds.filter_map(|service| service.first_round.filter(|until| *until > now)).max()
    }

    /// Whether that is still to be waited for.
    pub(super) fn still_awaits(&self, awaited: &Awaited, now: Moment) -> bool {
        self.awaited(&awaited.service, awaited.tag.as_deref(), now).is_some()
    }

    /// Who has an address, the first that there is.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&Holder> {
        let (_, holder) = self.holders.range((address, Holder::first())..).next().filter(|(ip, _)| *ip == address)?;
        Some(holder)
    }
}

impl Service {
    /// The name, as the first of its instances was registered.
    pub fn name(&self) -> &str {
        self.instances.first().map_or("", |instance| &instance.registration.service)
    }

    /// Whether instances are given that are not healthy, for there are too few others.
    pub fn is_guarded(&self) -> bool {
        self.chosen.as_ref().is_some_and(|chosen| chosen.guarded)
    }

    /// Whether any instance is passing or warning.
    pub(super) fn has_healthy(&self) -> bool {
        self.tally.instances[Status::Passing as usize] + self.tally.instances[Status::Warning as usize] > 0
    }

    /// Whether a policy or a guard decides which instances are given: then nobody else may answer for it.
    pub fn is_ruled(&self) -> bool {
        self.chosen.is_some()
    }
}

impl Tally {
    /// That of a node's own checks.
    pub(super) fn of_node(node: &Node) -> Self {
        let mut tally = Self::default();
        node.checks.iter().for_each(|check| tally.checks[check.status as usize] += 1);
        tally
    }

    /// That of instances, with their statuses.
    pub(super) fn of_instances<'a>(instances: impl Iterator<Item = (&'a Instance, Status)>) -> Self {
        let mut tally = Self::default();
        for (instance, status) in instances {
            tally.instances[status as usize] += 1;
            instance.checks.iter().for_each(|check| tally.checks[check.status as usize] += 1);
        }
        tally
    }

    /// Whether any check has no result yet.
    pub fn has_unknown_checks(self) -> bool {
        self.checks[Status::Unknown as usize] > 0
    }

    /// Counts what is there now in place of what was.
    pub(super) fn exchange(&mut self, before: Option<Self>, after: Option<Self>) {
        let cells = |tally: Option<Self>| tally.map_or([0; 8], Self::cells);
        let own = self.instances.iter_mut().chain(&mut self.checks);
        for ((own, before), after) in own.zip(cells(before)).zip(cells(after)) {
            *own = (*own + after).saturating_sub(before);
        }
    }

    fn cells(self) -> [u64; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.instances, self.checks);
        [a, b, c, d, e, f, g, h]
    }
}

impl Settings {
    /// Whether what has this status is given.
    pub(super) fn is_healthy(&self, status: Status) -> bool {
        status <= if self.only_passing { Status::Passing } else { Status::Warning }
    }
}

/// Whether an instance has a tag, given in lower case; without one, each has.
fn is_tagged(instance: &Instance, tag: Option<&str>) -> bool {
    tag.is_none_or(|tag| instance.registration.tags.iter().any(|own| own.to_lowercase() == tag))
}

impl Holder {
    /// None is before this.
    fn first() -> Self {
        Self::Node(NodeKey::new("", ""))
    }
}
