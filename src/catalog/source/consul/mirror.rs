//! What an agent has said last of nodes and gateways, which it says in many responses, some of them overtaken by others.
//!
//! A node comes with the list of nodes and with every instance on it. Of two descriptions the one that was changed later
//! counts. Its checks come with the instances alone, and have no index of their own; but a change to them advances the
//! index of all services on the node. So checks from a response with a smaller index than the last are never news.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::api::{Entry, Execution, Known};
use crate::catalog::{
    model::{Instance, InstanceKey, Kind, Node, NodeKey, Role, ServiceKey},
    registry::Set,
    remote::Found,
};

/// What an agent has said last.
#[derive(Default)]
pub(super) struct Mirror {
    nodes: HashMap<NodeKey, Latest>,
    /// Gateways with the services that they are known to be bound to, which each response tells of one alone.
    gateways: HashMap<InstanceKey, (BTreeSet<String>, Arc<Instance>)>,
}

struct Latest {
    node: Arc<Node>,
    modified: u64,
    checks_index: u64,
}

impl Mirror {
    /// The instances of a response, with what is known of their nodes.
    pub fn members(&mut self, key: &ServiceKey, index: u64, entries: Vec<Entry>) -> Set {
        let mut set = Set::default();
        for entry in entries {
            set.nodes.push(self.node(entry.node, Some((index, entry.node_checks))));
            let instance = Instance { registration: entry.registration.into(), checks: entry.checks };
            set.instances.push(instance.into());
        }
        if key.kind() == Kind::Ingress {
            self.bind(key.name(), &mut set);
        } else {
            for instance in &mut set.instances {
                if let Some((services, _)) = self.gateways.get(&instance.key()) {
                    *instance = bound(instance, services);
                }
            }
        }
        set
    }

    /// The instances are all gateways that are bound to this service. Those that were, and are still to others, join them.
    fn bind(&mut self, service: &str, set: &mut Set) {
        let present: HashSet<InstanceKey> = set.instances.iter().map(|instance| instance.key()).collect();
        for instance in &mut set.instances {
            let known = self.gateways.entry(instance.key()).or_insert_with(|| (BTreeSet::new(), instance.clone()));
            known.0.insert(service.to_owned());
            *instance = bound(instance, &known.0);
            known.1 = instance.clone();
        }
        self.gateways.retain(|key, (services, instance)| {
            if !present.contains(key) && services.remove(service) && !services.is_empty() {
                *instance = bound(instance, services);
                set.instances.push(instance.clone());
            }
            !services.is_empty()
        });
    }

    /// All nodes of a datacenter: those that are new or changed, and those that are gone.
    pub fn nodes(&mut self, datacenter: &str, index: u64, nodes: Vec<Known>) -> (Vec<Arc<Node>>, Vec<NodeKey>) {
        let present: HashSet<NodeKey> = nodes.iter().map(|known| known.node.key()).collect();
        let mut put = Vec::new();
        for known in nodes {
            let before = self.nodes.get(&known.node.key()).map(|latest| latest.node.clone());
            let node = self.node(known, None);
            if before.is_none_or(|before| !Arc::ptr_eq(&before, &node)) {
                put.push(node);
            }
        }
        let mut gone = Vec::new();
        self.nodes.retain(|key, latest| {
            // One that came later than the list was made is not missing there.
            let is_gone = **key.datacenter() == *datacenter && latest.modified <= index && !present.contains(key);
            if is_gone {
                gone.push(key.clone());
            }
            !is_gone
        });
        (put, gone)
    }

    /// The latest that is known of a node.
    pub fn node(&mut self, known: Known, checks: Option<(u64, Vec<crate::catalog::Check>)>) -> Arc<Node> {
        let Known { node, modified } = known;
        let latest = self.nodes.entry(node.key()).or_insert_with(|| Latest {
            node: Arc::new(node.clone()),
            modified,
            checks_index: 0,
        });
        let (checks_index, checks) = match checks {
            Some((index, checks)) if index >= latest.checks_index => (index, checks),
            _ => (latest.checks_index, latest.node.checks.clone()),
        };
        let base = if modified >= latest.modified { node } else { Node::clone(&latest.node) };
        let node = Node { checks, ..base };
        latest.modified = latest.modified.max(modified);
        latest.checks_index = checks_index;
        if *latest.node != node {
            latest.node = Arc::new(node);
        }
        latest.node.clone()
    }

    /// What a query has found. It is as of its own moment, and nothing else is made of it.
    pub fn found(execution: Execution) -> Found {
        let instances = execution.entries.into_iter().map(|entry| {
            let node = Node { checks: entry.node_checks, ..entry.node.node };
            let instance = Instance { registration: entry.registration.into(), checks: entry.checks };
            (Arc::new(node), Arc::new(instance))
        });
        Found { service: execution.service, ttl: execution.ttl, instances: instances.collect() }
    }

    /// Indexes begin anew: what comes next is later than all before.
    pub fn reset_indexes(&mut self) {
        for latest in self.nodes.values_mut() {
            (latest.modified, latest.checks_index) = (0, 0);
        }
    }

    /// Takes in nodes that an earlier process has saved. Whatever the agent says of them is later.
    pub fn resume(&mut self, nodes: Vec<Arc<Node>>) {
        let latest = |node: Arc<Node>| (node.key(), Latest { node, modified: 0, checks_index: 0 });
        self.nodes.extend(nodes.into_iter().map(latest));
    }

    /// All nodes.
    pub fn all_nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.values().map(|latest| latest.node.clone()).collect()
    }

    /// The nodes of one datacenter.
    pub fn nodes_of(&self, datacenter: &str) -> impl Iterator<Item = &NodeKey> {
        self.nodes.keys().filter(move |key| **key.datacenter() == *datacenter)
    }
}

fn bound(instance: &Arc<Instance>, services: &BTreeSet<String>) -> Arc<Instance> {
    let mut registration = (*instance.registration).clone();
    registration.role = Role::Ingress { services: services.iter().cloned().collect() };
    Arc::new(Instance { registration: registration.into(), checks: instance.checks.clone() })
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
