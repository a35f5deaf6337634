//! Nodes that are registered over `/v1/catalog/register`: machines without an agent, with their services and checks.
//!
//! Their checks are static: they have the status with which they were registered, until they are registered again. Each thing
//! is kept as the request that would register it, so that what is restored is read as what is registered.

mod request;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use serde_json::json;

pub use self::request::{Addition, Removal};
use self::request::{NewCheck, NewNode, NewService, Written};
use super::registered::Refused;
use crate::catalog::{
    model::{Check, Instance, InstanceKey, Node, NodeKey, Registration},
    registry::{Part, Set},
};

/// All nodes that are registered so, by their names in lower case.
#[derive(Debug, Default)]
pub struct External {
    nodes: BTreeMap<String, Entry>,
    /// What all of them count.
    bytes: usize,
    unsaved: BTreeSet<(String, Item)>,
}

/// One thing that is registered of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Node,
    Service(Arc<str>),
    Check(Arc<str>),
}

/// What has become of one thing that is registered.
pub(super) enum Change {
    /// The request that registers it.
    Put(String),
    /// The request that takes it out.
    Gone(String),
}

/// What is registered of a node.
#[derive(Debug, Default)]
struct Entry {
    /// Nothing for a node that another source knows.
    node: Option<Written<NewNode>>,
    services: BTreeMap<Arc<str>, Written<NewService>>,
    /// Of the node and of services, with unique ids.
    checks: BTreeMap<Arc<str>, Written<NewCheck>>,
}

/// What a request has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    name: String,
    /// Whether it concerns the node itself, and not only services on it.
    is_node: bool,
    /// The services that it concerns, and that are there.
    services: BTreeSet<Arc<str>>,
    /// The services that are there no longer.
    gone: Vec<Arc<str>>,
}

impl External {
    /// Takes in what a request registers: all of it, or nothing. `room` is what it may take more than before, and `is_known`
    /// tells the nodes of other sources.
    pub fn add(
        &mut self,
        new: Addition,
        own_datacenter: &str,
        room: usize,
        is_known: impl Fn(&NodeKey) -> bool,
    ) -> Result<Changed, Refused> {
        check_datacenter(new.datacenter.as_deref(), own_datacenter)?;
        let name = new.name.to_lowercase();
        let entry = self.nodes.get(&name);
        if new.node.is_none() && entry.is_none() && !is_known(&NodeKey::new(own_datacenter, &name)) {
            let text = format!("node {:?} is not registered; register it without SkipNodeUpdate", new.name);
            return Err(Refused::Catalog(text));
        }
        let service_id = new.service.as_ref().map(|service| &service.read.0.id);
        for id in new.checks.iter().filter_map(|check| check.read.service_id.as_ref()) {
            if service_id != Some(id) && !entry.is_some_and(|entry| entry.services.contains_key(id)) {
                let text = format!("failed inserting check: Missing service registration on node {:?}", new.name);
                return Err(Refused::Catalog(text));
            }
        }
        let added = size(&new.node) + size(&new.service) + new.checks.iter().map(Written::bytes).sum::<usize>();
        let replaced = entry.map_or(0, |entry| {
            let service = service_id.and_then(|id| entry.services.get(id)).map_or(0, Written::bytes);
            let checks = new.checks.iter().filter_map(|check| entry.checks.get(&check.read.check.id));
            let node = if new.node.is_some() { size(&entry.node) } else { 0 };
            node + service + checks.map(Written::bytes).sum::<usize>()
        });
        if added > replaced.saturating_add(room) {
            return Err(Refused::Full);
        }
        let items = new.node.iter().map(|_| Item::Node);
        let items = items.chain(service_id.map(|id| Item::Service(id.clone())));
        let items = items.chain(new.checks.iter().map(|check| Item::Check(check.read.check.id.clone())));
        self.unsaved.extend(items.map(|item| (name.clone(), item)));
        let entry = self.nodes.entry(name.clone()).or_default();
        let mut changed = Changed { name, is_node: new.node.is_some(), services: BTreeSet::new(), gone: Vec::new() };
        if let Some(node) = new.node {
            self.bytes += node.bytes();
            self.bytes -= entry.node.replace(node).map_or(0, |before| before.bytes());
        }
        if let Some(service) = new.service {
            let id = service.read.0.id.clone();
            changed.services.insert(id.clone());
            self.bytes += service.bytes();
            self.bytes -= entry.services.insert(id, service).map_or(0, |before| before.bytes());
        }
        for check in new.checks {
            self.bytes += check.bytes();
            changed.note_check(&check.read);
            // It may have been another service's, or the node's.
            if let Some(before) = entry.checks.insert(check.read.check.id.clone(), check) {
                self.bytes -= before.bytes();
                changed.note_check(&before.read);
            }
        }
        Ok(changed)
    }

    /// Takes out a check, a service with its checks, or a node with all that is on it. What is not there is no harm.
    pub fn remove(&mut self, removal: &Removal, own_datacenter: &str) -> Result<Option<Changed>, Refused> {
        check_datacenter(removal.datacenter.as_deref(), own_datacenter)?;
        let name = removal.name.to_lowercase();
        let Some(entry) = self.nodes.get_mut(&name) else { return Ok(None) };
        let mut changed = Changed { name, is_node: false, services: BTreeSet::new(), gone: Vec::new() };
        let mut items = Vec::new();
        // Of a service and a check, Consul takes out the service.
        match (&removal.service, &removal.check) {
            (Some(id), _) => {
                if let Some((id, service)) = entry.services.remove_entry(&**id) {
                    self.bytes -= service.bytes();
                    items.push(Item::Service(id.clone()));
                    changed.gone.push(id);
                }
                let bytes = &mut self.bytes;
                entry.checks.retain(|check_id, check| {
                    let stays = check.read.service_id.as_deref() != Some(id);
                    if !stays {
                        *bytes -= check.bytes();
                        items.push(Item::Check(check_id.clone()));
                    }
                    stays
                });
            }
            (None, Some(id)) => {
                if let Some((id, check)) = entry.checks.remove_entry(&**id) {
                    self.bytes -= check.bytes();
                    changed.note_check(&check.read);
                    items.push(Item::Check(id));
                }
            }
            (None, None) => {
                let entry = std::mem::take(entry);
                self.bytes -= entry.bytes();
                items = entry.items();
                changed.is_node = true;
                changed.gone.extend(entry.services.into_keys());
            }
        }
        if entry.is_empty() {
            self.nodes.remove(&changed.name);
        }
        self.unsaved.extend(items.into_iter().map(|item| (changed.name.clone(), item)));
        Ok(Some(changed))
    }

    /// What all of them count.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All that is registered, for the catalog.
    pub fn set(&self, datacenter: &str) -> Set {
        let mut set = Set::default();
        for (name, entry) in &self.nodes {
            let key = NodeKey::new(datacenter, name);
            set.nodes.extend(entry.node(datacenter));
            set.instances.extend(entry.instances(&key, entry.services.values()));
        }
        set
    }

    /// What a request has changed, for the catalog: a part of what is known, and the node, if it is gone. This costs what has
    /// changed, however much is on the node.
    pub fn part(&self, changed: Changed, datacenter: &str) -> (Part, Option<NodeKey>) {
        let Changed { name, is_node, services, gone } = changed;
        let key = NodeKey::new(datacenter, &name);
        let gone = gone.into_iter().map(|id| InstanceKey { node: key.clone(), id });
        let mut part = Part { gone: gone.collect(), ..Part::default() };
        let entry = self.nodes.get(&name);
        if let Some(entry) = entry {
            part.instances = entry.instances(&key, services.iter().filter_map(|id| entry.services.get(id)));
        }
        if !is_node {
            return (part, None);
        }
        let node = entry.and_then(|entry| entry.node(datacenter));
        let is_gone = node.is_none();
        part.nodes.extend(node);
        (part, is_gone.then_some(key))
    }

    /// Whether anything has changed since this was last saved.
    pub(super) fn has_changes(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// What has become of each thing that has changed since this was last saved.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        let unsaved = std::mem::take(&mut self.unsaved);
        let change = |(name, item): (String, Item)| {
            let entry = self.nodes.get(&name);
            let (request, removal) = match item {
                Item::Node => (entry.and_then(|entry| Some(&entry.node.as_ref()?.request)), json!({ "Node": name })),
                Item::Service(id) => (
                    entry.and_then(|entry| Some(&entry.services.get(&id)?.request)),
                    json!({ "Node": name, "ServiceID": &*id }),
                ),
                Item::Check(id) => (
                    entry.and_then(|entry| Some(&entry.checks.get(&id)?.request)),
                    json!({ "Node": name, "CheckID": &*id }),
                ),
            };
            request.map_or_else(|| Change::Gone(removal.to_string()), |request| Change::Put(request.to_string()))
        };
        unsaved.into_iter().map(change).collect()
    }

    /// The requests that would register all of it again, each on a line.
    pub fn requests(&self) -> impl Iterator<Item = &str> {
        self.nodes.values().flat_map(|entry| {
            let node = entry.node.iter().map(|node| &*node.request);
            let services = entry.services.values().map(|service| &*service.request);
            node.chain(services).chain(entry.checks.values().map(|check| &*check.request))
        })
    }
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.node.is_none() && self.services.is_empty() && self.checks.is_empty()
    }

    fn items(&self) -> Vec<Item> {
        let node = self.node.iter().map(|_| Item::Node);
        let services = self.services.keys().cloned().map(Item::Service);
        node.chain(services).chain(self.checks.keys().cloned().map(Item::Check)).collect()
    }

    fn bytes(&self) -> usize {
        let services: usize = self.services.values().map(Written::bytes).sum();
        size(&self.node) + services + self.checks.values().map(Written::bytes).sum::<usize>()
    }

    fn node(&self, datacenter: &str) -> Option<Arc<Node>> {
        let NewNode { name, address, tagged, meta } = &self.node.as_ref()?.read;
        let checks = self.checks.values().filter(|check| check.read.service_id.is_none());
        let node = Node {
            name: name.clone(),
            datacenter: datacenter.into(),
            address: address.clone(),
            tagged: tagged.clone(),
            meta: meta.clone(),
            checks: checks.map(|check| check.read.check.clone()).collect(),
        };
        Some(node.into())
    }

    fn instances<'a>(
        &self,
        key: &NodeKey,
        services: impl IntoIterator<Item = &'a Written<NewService>>,
    ) -> Vec<Arc<Instance>> {
        let mut checks: HashMap<&Arc<str>, Vec<Check>> = HashMap::new();
        let services: Vec<_> = services.into_iter().map(|service| &service.read.0).collect();
        checks.extend(services.iter().map(|registration| (&registration.id, Vec::new())));
        for check in self.checks.values() {
            if let Some(checks) = check.read.service_id.as_ref().and_then(|id| checks.get_mut(id)) {
                checks.push(check.read.check.clone());
            }
        }
        let instance = |registration: &Registration| {
            let checks = checks.remove(&registration.id).unwrap_or_default();
            let registration = Registration { node: key.clone(), ..registration.clone() };
            Arc::new(Instance { checks, registration: registration.into() })
        };
        services.into_iter().map(instance).collect()
    }
}

impl Changed {
    fn note_check(&mut self, check: &NewCheck) {
        self.is_node |= check.service_id.is_none();
        self.services.extend(check.service_id.clone());
    }
}

fn size<T>(written: &Option<Written<T>>) -> usize {
    written.as_ref().map_or(0, Written::bytes)
}

fn check_datacenter(asked: Option<&str>, own: &str) -> Result<(), Refused> {
    match asked {
        Some(asked) if !asked.eq_ignore_ascii_case(own) => Err(Refused::Catalog("No path to datacenter".to_owned())),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "external_tests.rs"]
mod tests;
