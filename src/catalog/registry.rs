//! What all sources know, merged into one catalog.
//!
//! Each source publishes complete sets: all it knows, or all it knows of one service. What two of them say of the same
//! node or instance is taken from the source with the smaller number. The merged catalog is there as a [`Snapshot`]; each
//! change makes the next one, and says which answers it voids.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::Hash,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use foldhash::{HashMap, HashMapExt, HashSet};
use serde::{Deserialize, Serialize};

use super::{
    Live, Settings,
    health::Status,
    model::{Check, Host, Instance, InstanceKey, Kind, Node, NodeKey, ServiceKey},
    notice::{Noticed, Notices},
    policy::{self, Candidate, Health, Policy, Rules, State},
    remote::Remote,
    snapshot::{Chosen, Holder, Service, Slot, Snapshot, Tally},
};
use crate::clock::{Moment, Offset};

/// What all sources know.
pub struct Registry {
    nodes: HashMap<NodeKey, Versions<Node>>,
    instances: HashMap<InstanceKey, Versions<Instance>>,
    held: BTreeMap<SourceId, Held>,
    on_node: HashMap<NodeKey, HashSet<InstanceKey>>,
    members: HashMap<ServiceKey, BTreeSet<InstanceKey>>,
    policies: HashMap<ServiceKey, Ruled>,
    /// States of policies from an earlier process, for services of which no instance is known yet.
    restored: HashMap<ServiceKey, State>,
    /// Until when questions wait for the first results of checks that have none.
    awaited: HashMap<CheckKey, Moment>,
    /// When policies want to be heard again.
    wakes: BTreeSet<(Moment, ServiceKey)>,
    snapshot: Snapshot,
    /// What has become void since the snapshot was last published.
    void: HashSet<Slot>,
    notices: Notices,
}

/// What each source says of one thing, in the order of the sources: the first counts.
type Versions<T> = Vec<(SourceId, Arc<T>)>;

/// A source; of two that contradict each other the smaller is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u8);

/// All that a source knows.
#[derive(Debug, Clone, Default)]
pub struct Set {
    /// The nodes.
    pub nodes: Vec<Arc<Node>>,
    /// The instances; their nodes are among the nodes, or known already.
    pub instances: Vec<Arc<Instance>>,
}

/// A part of what a source knows.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Nodes that are new or other than they were.
    pub nodes: Vec<Arc<Node>>,
    /// Instances that are; their nodes are among the nodes, or known already.
    pub instances: Vec<Arc<Instance>>,
    /// Instances that it knows no longer, if it ever did.
    pub gone: Vec<InstanceKey>,
}

/// Who says what the outcome of a check is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcomes {
    /// The source: as published.
    Published,
    /// Ourselves, by [`Registry::set_check`]: what is published is only how a check begins.
    Ours,
}

/// By what a check is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CheckKey {
    /// The node.
    pub node: NodeKey,
    /// The instance that it belongs to; nothing if to the node.
    pub service_id: Option<Arc<str>>,
    /// The check's own id.
    pub check: Arc<str>,
}

/// What a check has found: its status, and what it said.
pub type Outcome = (CheckKey, Status, Arc<str>);

/// What a change voids.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The version of the snapshot that the change made.
    pub version: u32,
    /// Answers made of one of these in an earlier version are void. Each once.
    pub slots: Vec<Slot>,
}

/// Of what a source says anything.
#[derive(Default)]
struct Held {
    nodes: HashSet<NodeKey>,
    instances: HashSet<InstanceKey>,
}

/// A service under a policy or a guard.
struct Ruled {
    rules: Rules,
    state: State,
    wake: Option<Moment>,
    /// What the state was until when, the latest last; for [`Registry::roll_back`].
    past: VecDeque<(Moment, State)>,
}

/// What is kept of the policy of a service for the next process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct SavedPolicy {
    service: ServiceKey,
    state: policy::Saved,
    /// What it was until when, the latest last.
    past: Vec<(Offset, policy::Saved)>,
}

/// What a change has touched so far.
struct Touched {
    slots: HashSet<Slot>,
    services: HashSet<ServiceKey>,
    anything: bool,
    now: Moment,
}

impl Registry {
    /// A registry of nothing.
    pub fn new(settings: Settings) -> Self {
        Self {
            nodes: HashMap::new(),
            instances: HashMap::new(),
            held: BTreeMap::new(),
            on_node: HashMap::new(),
            members: HashMap::new(),
            policies: HashMap::new(),
            restored: HashMap::new(),
            awaited: HashMap::new(),
            wakes: BTreeSet::new(),
            snapshot: Snapshot::new(settings.into()),
            void: HashSet::default(),
            notices: Notices::default(),
        }
    }

    /// Lets all who answer from it see the catalog as it is now.
    pub fn publish_to(&mut self, live: &Live) {
        live.store(self.snapshot.clone(), self.void.drain());
    }

    /// What has changed since this was last asked, for the log.
    pub fn take_notices(&mut self) -> Noticed {
        self.notices.take()
    }

    /// The catalog as it is now; a cheap copy.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.clone()
    }

    /// Takes in all that a source knows, in place of what it knew before.
    pub fn publish(&mut self, source: SourceId, set: Set, outcomes: Outcomes, now: Moment) -> Changes {
        let nodes: HashSet<NodeKey> = set.nodes.iter().map(|node| node.key()).collect();
        let instances: HashSet<InstanceKey> = set.instances.iter().map(|instance| instance.key()).collect();
        let held = self.held.entry(source).or_default();
        let instances_gone: Vec<_> = held.instances.difference(&instances).cloned().collect();
        let nodes_gone: Vec<_> = held.nodes.difference(&nodes).cloned().collect();
        let mut touched = Touched::at(now);
        for key in instances_gone {
            self.put_instance(source, key, None, outcomes, &mut touched);
        }
        for key in nodes_gone {
            self.put_node(source, key, None, outcomes, &mut touched);
        }
        self.add(source, set, outcomes, &mut touched);
        self.commit(touched, now)
    }

    /// Takes in a part of what a source knows; the rest stays as it is. This costs what the part holds.
    pub fn publish_part(&mut self, source: SourceId, part: Part, outcomes: Outcomes, now: Moment) -> Changes {
        let Part { nodes, instances, gone } = part;
        let mut touched = Touched::at(now);
        for key in gone {
            self.put_instance(source, key, None, outcomes, &mut touched);
        }
        self.add(source, Set { nodes, instances }, outcomes, &mut touched);
        self.commit(touched, now)
    }

    /// Takes in all that a source knows of one service, in place of what it knew of that. Nodes are only added.
    pub fn publish_service(
        &mut self,
        source: SourceId,
        service: &ServiceKey,
        set: Set,
        outcomes: Outcomes,
        now: Moment,
    ) -> Changes {
        let instances: HashSet<InstanceKey> = set.instances.iter().map(|instance| instance.key()).collect();
        let members = self.members.get(service).into_iter().flatten();
        let gone: Vec<_> = members.filter(|key| !instances.contains(*key)).cloned().collect();
        let mut touched = Touched::at(now);
        for key in gone {
            self.put_instance(source, key, None, outcomes, &mut touched);
        }
        self.add(source, set, outcomes, &mut touched);
        self.commit(touched, now)
    }

    /// Takes in nodes that a source knows now, and such as it knows no more.
    pub fn publish_nodes(&mut self, source: SourceId, put: Vec<Arc<Node>>, gone: Vec<NodeKey>, now: Moment) -> Changes {
        let mut touched = Touched::at(now);
        for node in put {
            self.put_node(source, node.key(), Some(node), Outcomes::Published, &mut touched);
        }
        for key in gone {
            self.put_node(source, key, None, Outcomes::Published, &mut touched);
        }
        self.commit(touched, now)
    }

    /// The instances of a service that a source knows.
    pub(super) fn members_of(&self, source: SourceId, service: &ServiceKey) -> Vec<Arc<Instance>> {
        let members = self.members.get(service).into_iter().flatten();
        members.filter_map(|key| own_version(&self.instances, key, source).cloned()).collect()
    }

    /// All that a source says, in the order of the keys.
    pub(super) fn all_of(&self, source: SourceId) -> (Vec<Arc<Node>>, Vec<Arc<Instance>>) {
        let Some(held) = self.held.get(&source) else { return Default::default() };
        let nodes: BTreeSet<&NodeKey> = held.nodes.iter().collect();
        let instances: BTreeSet<&InstanceKey> = held.instances.iter().collect();
        let nodes = nodes.into_iter().filter_map(|key| own_version(&self.nodes, key, source).cloned());
        let instances = instances.into_iter().filter_map(|key| own_version(&self.instances, key, source).cloned());
        (nodes.collect(), instances.collect())
    }

    /// The checks without a result on which it depends what is given of a service.
    pub fn checks_without_result(&self, service: &ServiceKey) -> Vec<CheckKey> {
        let Some(service) = self.snapshot.services.get(service) else { return Vec::new() };
        let unknown = service.unknown.iter().filter_map(|(place, _)| service.instances.get(*place));
        let keys = unknown.flat_map(|instance| {
            let node = &instance.registration.node;
            let of_node = self.snapshot.nodes.get(node).into_iter().flat_map(|node| &node.checks);
            let own = instance.checks.iter().map(|check| (Some(instance.registration.id.clone()), check));
            let unknown = of_node.map(|check| (None, check)).chain(own);
            let unknown = unknown.filter(|(_, check)| check.status == Status::Unknown);
            unknown.map(|(service_id, check)| CheckKey { node: node.clone(), service_id, check: check.id.clone() })
        });
        keys.collect()
    }

    /// What is known at an agent elsewhere, if one is followed.
    pub(super) fn remote_mut(&mut self) -> &mut Option<Remote> {
        &mut self.snapshot.remote
    }

    /// Voids answers that were made of these, though nothing in the catalog is changed.
    pub(super) fn void(&mut self, slots: impl IntoIterator<Item = Slot>) {
        let mut slots = slots.into_iter().peekable();
        if slots.peek().is_some() {
            self.void.extend(slots);
            self.snapshot.version += 1;
        }
    }

    /// The services under a policy or a guard.
    pub(super) fn ruled_services<C: FromIterator<ServiceKey>>(&self) -> C {
        self.policies.keys().cloned().collect()
    }

    /// Takes in the outcome of a check. One that is not known any more changes nothing.
    pub fn set_check(
        &mut self,
        source: SourceId,
        key: &CheckKey,
        status: Status,
        output: &str,
        now: Moment,
    ) -> Changes {
        let mut touched = Touched::at(now);
        self.put_outcome(source, key, status, output, &mut touched);
        self.commit(touched, now)
    }

    /// Takes in the outcomes of several checks as one change: nobody chooses among instances of which some are as they
    /// were and some as they are.
    pub fn set_checks(&mut self, source: SourceId, outcomes: &[Outcome], now: Moment) -> Changes {
        let mut touched = Touched::at(now);
        for (key, status, output) in outcomes {
            self.put_outcome(source, key, *status, output, &mut touched);
        }
        self.commit(touched, now)
    }

    /// The same with outcomes of the past: that they have been others since is believed no longer, and what policies have
    /// made of that is forgotten.
    pub fn roll_back(&mut self, source: SourceId, outcomes: &[Outcome], since: Moment, now: Moment) -> Changes {
        let mut touched = Touched::at(now);
        for (key, status, output) in outcomes {
            self.put_outcome(source, key, *status, output, &mut touched);
        }
        for service in &touched.services {
            let Some(ruled) = self.policies.get_mut(service) else { continue };
            let place = ruled.past.partition_point(|(until, _)| *until < since);
            if let Some((_, state)) = ruled.past.drain(place..).next() {
                ruled.state = state;
            }
        }
        self.commit(touched, now)
    }

    /// The status of a check until its first result, if what it belongs to is still to be published with it.
    ///
    /// A declared status counts as known. Without one, a TTL check is critical as in Consul: it finds out nothing by itself,
    /// and its owner has not said that all is well. A check that is added to a node or instance that is well counts from its
    /// first result on. Any other is unknown.
    pub fn first_status(&self, key: &CheckKey, declared: Option<Status>, is_ttl: bool) -> Status {
        let present = match &key.service_id {
            None => self.nodes.get(&key.node).and_then(|versions| versions.first()).map(|(_, node)| node.status()),
            Some(id) => {
                let instance = InstanceKey { node: key.node.clone(), id: id.clone() };
                let versions = self.instances.get(&instance);
                versions.and_then(|versions| versions.first()).map(|(_, instance)| instance.status())
            }
        };
        first_status(declared.unwrap_or(Status::Unknown), is_ttl, present)
    }

    /// What the next process has to know of the policies, with times relative to `now`.
    pub fn save_policies(&self, now: Moment) -> Vec<SavedPolicy> {
        let save = |(service, ruled): (&ServiceKey, &Ruled)| {
            let past = ruled.past.iter().map(|(until, state)| (until.offset(now), state.save(now)));
            SavedPolicy { service: service.clone(), state: ruled.state.save(now), past: past.collect() }
        };
        let waiting = self.restored.iter().map(|(service, state)| SavedPolicy {
            service: service.clone(),
            state: state.save(now),
            past: Vec::new(),
        });
        let mut saved: Vec<_> = self.policies.iter().map(save).chain(waiting).collect();
        saved.sort_by(|a, b| a.service.cmp(&b.service));
        saved
    }

    /// Takes in the policies that an earlier process has saved at `origin`, in place of what has been chosen so far. All that
    /// is known of instances must have been published before, or a choice would be lost for lack of the chosen instance.
    pub fn restore_policies(&mut self, saved: Vec<SavedPolicy>, origin: Moment, now: Moment) -> Changes {
        if !saved.is_empty() {
            self.notices.forget_primaries();
        }
        let mut touched = Touched::at(now);
        for SavedPolicy { service, state, past } in saved {
            let state = State::restore(state, origin);
            match self.policies.get_mut(&service) {
                Some(ruled) => {
                    let restore = |(until, state)| (origin.at(until), State::restore(state, origin));
                    (ruled.state, ruled.past) = (state, past.into_iter().map(restore).collect());
                    touched.services([service]);
                }
                None => drop(self.restored.insert(service, state)),
            }
        }
        self.commit(touched, now)
    }

    /// When [`Registry::tick`] is due.
    pub fn wake(&self) -> Option<Moment> {
        self.wakes.first().map(|(wake, _)| *wake)
    }

    /// Does what policies have put off until now.
    pub fn tick(&mut self, now: Moment) -> Changes {
        let due = self.wakes.iter().take_while(|(wake, _)| *wake <= now);
        let services = due.map(|(_, key)| key.clone()).collect();
        self.commit(Touched { services, ..Touched::at(now) }, now)
    }

    /// Takes over other settings. All answers are void.
    pub fn reconfigure(&mut self, settings: Settings, now: Moment) -> Changes {
        let datacenter_changes = settings.datacenter != self.snapshot.settings.datacenter;
        self.snapshot.settings = settings.into();
        if datacenter_changes {
            self.index_holders();
        }
        let services = self.members.keys().cloned().collect();
        let slots = Slot::all().collect();
        self.commit(Touched { slots, services, anything: true, now }, now)
    }

    fn put_outcome(&mut self, source: SourceId, key: &CheckKey, status: Status, output: &str, touched: &mut Touched) {
        let set = |checks: &mut Vec<Check>| {
            if let Some(check) = checks.iter_mut().find(|check| check.id == key.check) {
                check.status = status;
                if *check.output != *output {
                    check.output = output.into();
                }
            }
        };
        match &key.service_id {
            None => {
                if let Some(node) = own_version(&self.nodes, &key.node, source) {
                    let mut node = Node::clone(node);
                    set(&mut node.checks);
                    let node = Some(node.into());
                    self.put_node(source, key.node.clone(), node, Outcomes::Published, touched);
                }
            }
            Some(id) => {
                let instance_key = InstanceKey { node: key.node.clone(), id: id.clone() };
                if let Some(instance) = own_version(&self.instances, &instance_key, source) {
                    let mut instance = Instance::clone(instance);
                    set(&mut instance.checks);
                    let instance = Some(instance.into());
                    self.put_instance(source, instance_key, instance, Outcomes::Published, touched);
                }
            }
        }
    }

    fn add(&mut self, source: SourceId, set: Set, outcomes: Outcomes, touched: &mut Touched) {
        for node in set.nodes {
            self.put_node(source, node.key(), Some(node), outcomes, touched);
        }
        for instance in set.instances {
            self.put_instance(source, instance.key(), Some(instance), outcomes, touched);
        }
    }

    fn put_node(
        &mut self,
        source: SourceId,
        key: NodeKey,
        mut node: Option<Arc<Node>>,
        outcomes: Outcomes,
        touched: &mut Touched,
    ) {
        if let (Some(new), Outcomes::Ours) = (&mut node, outcomes) {
            let present = self.nodes.get(&key).and_then(|versions| versions.first()).map(|(_, node)| node.status());
            let old = own_version(&self.nodes, &key, source).map_or(&[][..], |old| &old.checks);
            if let Some(checks) = begin_checks(&new.checks, old, present) {
                *new = Node { checks, ..Node::clone(new) }.into();
            }
        }
        let held = &mut self.held.entry(source).or_default().nodes;
        let Some((before, after)) = put(&mut self.nodes, held, source, &key, node) else { return };
        touched.anything = true;
        if let (Some(before), Some(after)) = (&before, &after) {
            self.notices.checks((&key, None), &before.checks, &after.checks);
        }
        let [checks_before, checks_after] =
            [&before, &after].map(|node| node.as_ref().map_or(&[][..], |it| &it.checks));
        self.note_awaited(&key, None, checks_before, checks_after, touched.now);
        self.move_holder(
            before.as_ref().and_then(|node| self.node_holder(&key, node)),
            after.as_ref().and_then(|node| self.node_holder(&key, node)),
            touched,
        );
        if !is_alike(&before, &after, Node::answers_like) {
            touched.slots.insert(Slot::of(&key));
            for instance in self.on_node.get(&key).into_iter().flatten() {
                let versions = self.instances.get(instance).and_then(|versions| versions.first());
                touched.services(versions.into_iter().flat_map(|(_, instance)| instance.service_keys()));
            }
        }
        let tally = |node: &Option<Arc<Node>>| node.as_deref().map(Tally::of_node);
        self.snapshot.tally.exchange(tally(&before), tally(&after));
        match after {
            Some(node) => self.snapshot.nodes.insert_mut(key, node),
            None => drop(self.snapshot.nodes.remove_mut(&key)),
        }
    }

    fn put_instance(
        &mut self,
        source: SourceId,
        key: InstanceKey,
        mut instance: Option<Arc<Instance>>,
        outcomes: Outcomes,
        touched: &mut Touched,
    ) {
        if let (Some(new), Outcomes::Ours) = (&mut instance, outcomes) {
            let versions = self.instances.get(&key);
            let present = versions.and_then(|versions| versions.first()).map(|(_, instance)| instance.status());
            let old = own_version(&self.instances, &key, source).map_or(&[][..], |old| &old.checks);
            if let Some(checks) = begin_checks(&new.checks, old, present) {
                *new = Instance { checks, registration: new.registration.clone() }.into();
            }
        }
        let held = &mut self.held.entry(source).or_default().instances;
        let Some((before, after)) = put(&mut self.instances, held, source, &key, instance) else { return };
        touched.anything = true;
        self.notices.instance(before.as_ref(), after.as_ref());
        let [checks_before, checks_after] = [&before, &after].map(|it| it.as_ref().map_or(&[][..], |it| &it.checks));
        self.note_awaited(&key.node, Some(&key.id), checks_before, checks_after, touched.now);
        self.move_holder(
            before.as_ref().and_then(|instance| self.service_holder(instance)),
            after.as_ref().and_then(|instance| self.service_holder(instance)),
            touched,
        );
        let keys_before = before.as_ref().map(|instance| instance.service_keys()).unwrap_or_default();
        let keys_after = after.as_ref().map(|instance| instance.service_keys()).unwrap_or_default();
        if keys_before != keys_after {
            for service in &keys_before {
                if let Some(members) = self.members.get_mut(service) {
                    members.remove(&key);
                    if members.is_empty() {
                        self.members.remove(service);
                    }
                }
            }
            for service in &keys_after {
                self.members.entry(service.clone()).or_default().insert(key.clone());
            }
        }
        match (&before, &after) {
            (None, Some(_)) => drop(self.on_node.entry(key.node.clone()).or_default().insert(key)),
            (Some(_), None) => {
                if let Some(instances) = self.on_node.get_mut(&key.node) {
                    instances.remove(&key);
                    if instances.is_empty() {
                        self.on_node.remove(&key.node);
                    }
                }
            }
            _ => {}
        }
        let keys = keys_before.into_iter().chain(keys_after);
        if is_alike(&before, &after, Instance::answers_like) {
            touched.services.extend(keys);
        } else {
            touched.services(keys);
        }
    }

    /// Notes until when questions wait for the checks of a node or instance that have no result.
    fn note_awaited(
        &mut self,
        node: &NodeKey,
        service_id: Option<&Arc<str>>,
        before: &[Check],
        after: &[Check],
        now: Moment,
    ) {
        let unknown = |checks: &[Check]| {
            let unknown = checks.iter().filter(|check| check.status == Status::Unknown);
            let key = |check: &Check| CheckKey {
                node: node.clone(),
                service_id: service_id.cloned(),
                check: check.id.clone(),
            };
            unknown.map(key).collect::<Vec<_>>()
        };
        let awaited = unknown(after);
        for key in unknown(before).iter().filter(|key| !awaited.contains(key)) {
            self.awaited.remove(key);
        }
        for key in awaited {
            self.awaited.entry(key).or_insert(now + FIRST_RESULT_PATIENCE);
        }
    }

    /// Until when questions wait for the results that an instance lacks.
    fn awaited_until(&self, instance: &Instance) -> Moment {
        let registration = &instance.registration;
        let of = |service_id: Option<&Arc<str>>, checks: &[Check]| {
            let unknown = checks.iter().filter(|check| check.status == Status::Unknown);
            let until = unknown.filter_map(|check| {
                let (node, service_id) = (registration.node.clone(), service_id.cloned());
                self.awaited.get(&CheckKey { node, service_id, check: check.id.clone() }).copied()
            });
            until.max()
        };
        let node = self.snapshot.nodes.get(&registration.node).map_or(&[][..], |node| &node.checks);
        of(None, node).max(of(Some(&registration.id), &instance.checks)).unwrap_or_default()
    }

    /// Makes the next snapshot of what was touched.
    fn commit(&mut self, mut touched: Touched, now: Moment) -> Changes {
        for key in std::mem::take(&mut touched.services) {
            let service = self.assemble(&key, now);
            let before = self.snapshot.services.get(&key);
            if before.map(|service| &**service) == service.as_ref() {
                continue;
            }
            touched.anything = true;
            if before.and_then(|service| service.chosen.as_ref()) != service.as_ref().and_then(|s| s.chosen.as_ref()) {
                touched.slots.insert(Slot::of(&key));
            }
            if key.kind() == Kind::Service {
                let tally = |service: &Service| service.tally;
                let before = before.map(|service| tally(service));
                self.snapshot.tally.exchange(before, service.as_ref().map(tally));
            }
            match service {
                Some(service) => self.snapshot.services.insert_mut(key, service.into()),
                None => drop(self.snapshot.services.remove_mut(&key)),
            }
        }
        if touched.anything {
            self.snapshot.version += 1;
        }
        self.void.extend(&touched.slots);
        let mut slots: Vec<Slot> = touched.slots.into_iter().collect();
        slots.sort_unstable();
        Changes { version: self.snapshot.version, slots }
    }

    /// A service of its members, chosen among if it is under a policy or a guard.
    fn assemble(&mut self, key: &ServiceKey, now: Moment) -> Option<Service> {
        let Some(members) = self.members.get(key) else {
            self.forget_policy(key);
            return None;
        };
        let instance = |key: &InstanceKey| self.instances.get(key)?.first().map(|(_, instance)| instance.clone());
        let instances: Vec<Arc<Instance>> = members.iter().filter_map(instance).collect();
        let is_unknown = |instance: &Instance| self.snapshot.status(instance) == Status::Unknown;
        let unknown = instances.iter().enumerate().filter(|(_, instance)| is_unknown(instance));
        let unknown: Vec<_> = unknown.map(|(place, instance)| (place, self.awaited_until(instance))).collect();
        let first_round = self.first_round(key, &unknown, now);
        let chosen = self.choose(key, &instances, now);
        let counted = instances.iter().map(|instance| (&**instance, self.snapshot.status(instance)));
        let tally = Tally::of_instances(counted);
        Some(Service { instances, chosen, unknown, first_round, tally })
    }

    /// See [`Service::first_round`]. It begins when the first instances are new together, and does not begin anew for those
    /// that come later: they are not waited for beside others.
    fn first_round(&self, key: &ServiceKey, unknown: &[(usize, Moment)], now: Moment) -> Option<Moment> {
        let latest = unknown.iter().map(|(_, until)| *until).max().filter(|until| *until > now)?;
        match self.snapshot.services.get(key).map(|service| &**service) {
            Some(Service { first_round: Some(end), .. }) if *end > now => Some(latest.min(*end)),
            Some(service) if service.has_healthy() => None,
            _ => Some(latest),
        }
    }

    fn choose(&mut self, key: &ServiceKey, instances: &[Arc<Instance>], now: Moment) -> Option<Chosen> {
        let rules = self.snapshot.settings.rules.get(key.name()).cloned();
        let rules = rules.or_else(|| Rules::from_instances(instances));
        let Some(rules) = rules.filter(|rules| key.kind() == Kind::Service && rules.rules_anything()) else {
            self.forget_policy(key);
            return None;
        };
        let candidates: Vec<_> = instances.iter().map(|instance| self.candidate(instance, &rules)).collect();
        let restored = &mut self.restored;
        let ruled = self.policies.entry(key.clone()).or_insert_with(|| Ruled {
            rules: rules.clone(),
            state: restored.remove(key).unwrap_or_default(),
            wake: None,
            past: VecDeque::new(),
        });
        ruled.rules = rules;
        let before = ruled.state.clone();
        let choice = ruled.state.choose(&ruled.rules, &candidates, now);
        if let Some(primary) = ruled.state.primary().filter(|_| ruled.rules.policy == Policy::One)
            && before.primary() != Some(primary)
        {
            let service =
                instances.first().map_or_else(|| key.name().into(), |first| first.registration.service.clone());
            self.notices.primary(&service, before.primary(), primary, &candidates);
        }
        if ruled.state != before {
            ruled.past.push_back((now, before));
            ruled.past.drain(..ruled.past.len().saturating_sub(MOST_STATES));
        }
        if ruled.wake != choice.wake {
            let before = std::mem::replace(&mut ruled.wake, choice.wake);
            if let Some(wake) = before {
                self.wakes.remove(&(wake, key.clone()));
            }
            self.wakes.extend(choice.wake.map(|wake| (wake, key.clone())));
        }
        let (places, policy) = (choice.chosen, ruled.rules.policy);
        Some(Chosen { policy, places, guarded: choice.guarded, open_until: choice.open_until })
    }

    fn forget_policy(&mut self, key: &ServiceKey) {
        if let Some(wake) = self.policies.remove(key).and_then(|ruled| ruled.wake) {
            self.wakes.remove(&(wake, key.clone()));
        }
    }

    fn candidate(&self, instance: &Instance, rules: &Rules) -> Candidate {
        let node = self.snapshot.nodes.get(&instance.registration.node);
        let mut checks = node.into_iter().flat_map(|node| &node.checks).chain(&instance.checks);
        let health = if checks.any(|check| check.is_maintenance() && check.status == Status::Critical) {
            Health::Withdrawn
        } else {
            match self.snapshot.status(instance) {
                status if self.snapshot.settings.is_healthy(status) => Health::Healthy,
                Status::Unknown => Health::Unknown(self.awaited_until(instance)),
                _ => Health::Failed,
            }
        };
        Candidate { key: instance.key(), health, rank: rules.rank(&instance.registration) }
    }

    fn node_holder(&self, key: &NodeKey, node: &Node) -> Option<(IpAddr, Holder)> {
        let is_ours = **key.datacenter() == *self.snapshot.settings.datacenter;
        node.address.ip().filter(|_| is_ours).map(|ip| (ip, Holder::Node(key.clone())))
    }

    fn service_holder(&self, instance: &Instance) -> Option<(IpAddr, Holder)> {
        let registration = &instance.registration;
        let is_ours = **registration.node.datacenter() == *self.snapshot.settings.datacenter;
        let ip = registration.address.as_ref().and_then(Host::ip).filter(|_| is_ours)?;
        let lower = registration.service.to_lowercase().into();
        Some((ip, Holder::Service(lower, registration.service.clone(), instance.key())))
    }

    fn move_holder(
        &mut self,
        before: Option<(IpAddr, Holder)>,
        after: Option<(IpAddr, Holder)>,
        touched: &mut Touched,
    ) {
        if before == after {
            return;
        }
        if let Some(holding) = before {
            self.snapshot.holders.remove_mut(&holding);
            touched.slots.insert(Slot::of(&holding.0));
        }
        if let Some(holding) = after {
            touched.slots.insert(Slot::of(&holding.0));
            self.snapshot.holders.insert_mut(holding);
        }
    }

    fn index_holders(&mut self) {
        let nodes = self.snapshot.nodes.iter().filter_map(|(key, node)| self.node_holder(key, node));
        let instances = self.instances.values().filter_map(|versions| versions.first());
        let services = instances.filter_map(|(_, instance)| self.service_holder(instance));
        self.snapshot.holders = nodes.chain(services).collect();
    }
}

impl Touched {
    /// Nothing yet.
    fn at(now: Moment) -> Self {
        Self { slots: HashSet::default(), services: HashSet::default(), anything: false, now }
    }

    /// These answer otherwise now.
    fn services(&mut self, keys: impl IntoIterator<Item = ServiceKey>) {
        for key in keys {
            self.slots.insert(Slot::of(&key));
            self.services.insert(key);
        }
    }
}

fn own_version<'a, K: Hash + Eq, T>(map: &'a HashMap<K, Versions<T>>, key: &K, source: SourceId) -> Option<&'a Arc<T>> {
    map.get(key)?.iter().find(|(id, _)| *id == source).map(|(_, value)| value)
}

/// What counted before and what counts now.
type Change<T> = (Option<Arc<T>>, Option<Arc<T>>);

/// Puts what a source says in place of what it said. `None` if nothing changes that counts.
fn put<K: Hash + Eq + Clone, T: PartialEq>(
    map: &mut HashMap<K, Versions<T>>,
    held: &mut HashSet<K>,
    source: SourceId,
    key: &K,
    value: Option<Arc<T>>,
) -> Option<Change<T>> {
    if value.is_none() && !map.contains_key(key) {
        return None;
    }
    let versions = map.entry(key.clone()).or_default();
    let before = versions.first().map(|(_, value)| value.clone());
    let place = versions.binary_search_by_key(&source, |(id, _)| *id);
    match (place, value) {
        (Ok(place), Some(value)) => versions[place].1 = value,
        (Err(place), Some(value)) => {
            versions.insert(place, (source, value));
            held.insert(key.clone());
        }
        (Ok(place), None) => {
            versions.remove(place);
            held.remove(key);
        }
        (Err(_), None) => {}
    }
    let after = versions.first().map(|(_, value)| value.clone());
    if versions.is_empty() {
        map.remove(key);
    }
    (before != after).then_some((before, after))
}

fn is_alike<T>(before: &Option<Arc<T>>, after: &Option<Arc<T>>, alike: fn(&T, &T) -> bool) -> bool {
    matches!((before, after), (Some(before), Some(after)) if alike(before, after))
}

/// Checks with the outcomes of the old ones of the same ids, and new ones with their first status; `None` if they are that
/// already. `present` is the status of what they belong to, if it is there.
fn begin_checks(new: &[Check], old: &[Check], present: Option<Status>) -> Option<Vec<Check>> {
    let known = |check: &Check| old.iter().find(|old| old.id == check.id);
    new.iter().any(|check| known(check).is_some() || check.status == Status::Unknown).then(|| {
        let begin = |check: &Check| match known(check) {
            Some(old) => Check { status: old.status, output: old.output.clone(), ..check.clone() },
            None => Check { status: first_status(check.status, check.is_ttl(), present), ..check.clone() },
        };
        new.iter().map(begin).collect()
    })
}

/// See [`Registry::first_status`].
fn first_status(declared: Status, is_ttl: bool, present: Option<Status>) -> Status {
    match (declared, present) {
        (Status::Unknown, _) if is_ttl => Status::Critical,
        (Status::Unknown, Some(Status::Passing | Status::Warning)) => Status::Passing,
        (declared, _) => declared,
    }
}

/// How long questions wait for the first result of a check. Clients give a resolver 5 s, and it may have to ask others after
/// that.
pub const FIRST_RESULT_PATIENCE: Duration = Duration::from_secs(2);
/// So many changes of a service can be taken back; an outage changes it once for each of its instances.
const MOST_STATES: usize = 64;

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
