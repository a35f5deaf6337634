//! What an agent elsewhere knows, of which the catalog holds a part.
//!
//! The names of all services are known, but only those that are asked for are held. While the agent is away, what was
//! held last is what is said. Once it is lost, it says nothing any more, and whoever else answers for the domain is to be
//! asked; but not for a service under a policy or a guard, of which others would give all instances.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use foldhash::fast::RandomState;
use rpds::{HashTrieMapSync, HashTrieSetSync};
use serde::{Deserialize, Serialize};

use super::{
    health::Status,
    model::{Instance, Kind, Node, NodeKey, ServiceKey},
    registry::{Outcomes, Registry, Set, SourceId},
    snapshot::{Slot, Snapshot},
};
use crate::clock::Moment;

/// How an agent stands to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It says what there is.
    Current,
    /// It does not answer, or is not to be believed yet; what was held last is what there is.
    Away,
    /// Away for too long, or never there.
    Lost,
}

/// What is held of a service, query or node at an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Its present state.
    Followed,
    /// What it was, good until then.
    Until(Moment),
    /// The agent could not say, and is not asked again until then.
    Failed {
        /// Until when.
        until: Moment,
        /// Whether what it said before is held.
        has_last: bool,
    },
}

/// What a prepared query has found.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Found {
    /// The service of the instances, as registered.
    pub service: String,
    /// The TTL that the query demands.
    pub ttl: Option<u32>,
    /// Instances with their nodes, the best first.
    pub instances: Vec<(Arc<Node>, Arc<Instance>)>,
}

/// What becomes known of an agent and by it.
#[derive(Debug)]
pub enum News {
    /// How it stands to us.
    Standing(Standing),
    /// Its own datacenter, and the others that it knows.
    Datacenters {
        /// Its own.
        own: String,
        /// The others.
        others: Vec<String>,
    },
    /// Everything, in place of what was known before.
    All {
        /// All nodes, and the instances of what is held.
        set: Set,
        /// The services that there are.
        listed: Vec<String>,
        /// Those that are held.
        held: Vec<ServiceKey>,
    },
    /// Services that have come into being, and such as have vanished.
    Listing {
        /// New ones.
        added: Vec<String>,
        /// Gone ones.
        removed: Vec<String>,
    },
    /// Nodes that are new or changed, and such as have vanished.
    Nodes {
        /// New or changed ones.
        put: Vec<Arc<Node>>,
        /// Gone ones.
        gone: Vec<NodeKey>,
    },
    /// The instances that a name finds; of a node of another datacenter, that.
    Members {
        /// The name.
        key: ServiceKey,
        /// All of them, with their nodes.
        set: Set,
        /// For how long it is known.
        held: Held,
    },
    /// What a prepared query has found; nothing if there is none.
    Found {
        /// The query.
        key: ServiceKey,
        /// What it has found.
        found: Option<Found>,
        /// For how long it is known.
        held: Held,
    },
    /// What is held of this is as it was, but it is good for another time.
    Held(ServiceKey, Held),
    /// What nobody asks for any more.
    Forget(Vec<ServiceKey>),
}

/// What is known at an agent.
#[derive(Clone)]
pub(super) struct Remote {
    standing: Standing,
    datacenter: Arc<str>,
    others: Arc<BTreeSet<String>>,
    listed: HashTrieSetSync<String, RandomState>,
    held: HashTrieMapSync<ServiceKey, Held, RandomState>,
    found: HashTrieMapSync<ServiceKey, Arc<Found>, RandomState>,
    /// Services that were under a policy or a guard when the agent was lost.
    ruled: Arc<BTreeSet<ServiceKey>>,
}

/// What is kept of an agent's catalog for the next process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct SavedRemote {
    datacenter: String,
    others: Vec<String>,
    /// The names of all services, in lower case.
    listed: Vec<String>,
    nodes: Vec<Arc<Node>>,
    instances: Vec<Arc<Instance>>,
    /// What was followed, and so was the present state.
    followed: Vec<ServiceKey>,
    /// What was fetched once.
    fetched: Vec<ServiceKey>,
    found: Vec<(ServiceKey, Arc<Found>)>,
    ruled: Vec<ServiceKey>,
}

/// What is held of an agent that has not been reached by this process yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// Its own datacenter, in lower case.
    pub datacenter: String,
    /// The names of all services, in lower case.
    pub listed: Vec<String>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// What was followed, with the number of instances that could be given.
    pub followed: Vec<(ServiceKey, usize)>,
    /// When the agent answered last.
    pub contact: Moment,
}

/// What can be said of something at an agent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Grasp {
    /// What is held is all there is, until then.
    Known(Option<Moment>),
    /// The agent is to be asked.
    Unasked,
    /// The agent cannot be asked.
    Lost,
}

impl Remote {
    fn new() -> Self {
        Self {
            standing: Standing::Lost,
            datacenter: "".into(),
            others: Arc::default(),
            listed: HashTrieSetSync::new_with_hasher_with_ptr_kind(RandomState::default()),
            held: HashTrieMapSync::new_with_hasher_and_ptr_kind(RandomState::default()),
            found: HashTrieMapSync::new_with_hasher_and_ptr_kind(RandomState::default()),
            ruled: Arc::default(),
        }
    }

    /// The services that there are, in lower case.
    pub fn listed(&self) -> impl Iterator<Item = &str> {
        self.listed.iter().map(String::as_str)
    }

    /// What can be said of this.
    pub fn grasp(&self, key: &ServiceKey, now: Moment) -> Grasp {
        if self.standing == Standing::Lost {
            return Grasp::Lost;
        }
        let is_own = *key.datacenter() == *self.datacenter;
        let is_there = match key.kind() {
            _ if !is_own => self.others.contains(key.datacenter()),
            // The lists of these are complete.
            Kind::Service => self.listed.contains(key.name()),
            Kind::Node => false,
            Kind::Connect | Kind::Ingress | Kind::Query => true,
        };
        if !is_there {
            return Grasp::Known(None);
        }
        let is_away = self.standing == Standing::Away;
        match self.held.get(key) {
            Some(Held::Followed) => Grasp::Known(Some(now + NOTICE)),
            Some(Held::Until(_) | Held::Failed { has_last: true, .. }) if is_away => Grasp::Known(Some(now + NOTICE)),
            _ if is_away => Grasp::Lost,
            Some(Held::Until(until) | Held::Failed { until, has_last: true }) if *until > now => {
                Grasp::Known(Some(*until))
            }
            Some(Held::Failed { until, has_last: false }) if *until > now => Grasp::Lost,
            _ => Grasp::Unasked,
        }
    }

    /// What a query has found.
    pub fn found(&self, key: &ServiceKey) -> Option<&Arc<Found>> {
        self.found.get(key)
    }

    /// Whether this was under a policy or a guard when the agent was lost.
    pub fn was_ruled(&self, key: &ServiceKey) -> bool {
        self.ruled.contains(key)
    }

    /// Notes what is held. Whether answers that were made of it are void.
    fn hold(&mut self, key: &ServiceKey, held: Held) -> bool {
        let before = self.held.get(key).copied();
        self.held.insert_mut(key.clone(), held);
        // A later end, or none, takes nothing away.
        // Where nothing was held, it may have been said that it cannot be had.
        !matches!((before, held), (Some(Held::Until(_)), Held::Until(_) | Held::Followed)) && before != Some(held)
    }
}

impl Snapshot {
    /// How the agent stands to us that is followed; nothing if none is.
    pub fn standing(&self) -> Option<Standing> {
        self.remote.as_ref().map(|remote| remote.standing)
    }
}

impl Registry {
    /// An agent is followed, or none is. One that is new is lost until it is heard of.
    pub fn follow(&mut self, source: SourceId, is_followed: bool, now: Moment) {
        if self.remote_mut().is_some() == is_followed {
            return;
        }
        *self.remote_mut() = is_followed.then(Remote::new);
        self.publish(source, Set::default(), Outcomes::Published, now);
        self.void(Slot::all());
    }

    /// What the next process has to know of the agent's catalog; nothing if no agent is followed.
    pub fn save_remote(&mut self, source: SourceId) -> Option<SavedRemote> {
        let (nodes, instances) = self.all_of(source);
        let is_ruled_by_policy: Vec<ServiceKey> = self.ruled_services();
        let remote = self.remote_mut().as_ref()?;
        let held = |wanted: fn(&Held) -> bool| {
            let keys = remote.held.iter().filter(move |(_, held)| wanted(held)).map(|(key, _)| key.clone());
            keys.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        let mut found: Vec<_> = remote.found.iter().map(|(key, found)| (key.clone(), found.clone())).collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut listed: Vec<_> = remote.listed.iter().cloned().collect();
        listed.sort();
        let ruled = if remote.standing == Standing::Lost { is_ruled_by_policy } else { Vec::new() };
        Some(SavedRemote {
            datacenter: remote.datacenter.to_string(),
            others: remote.others.iter().cloned().collect(),
            listed,
            nodes,
            instances,
            followed: held(|held| matches!(held, Held::Followed | Held::Failed { has_last: true, .. })),
            fetched: held(|held| matches!(held, Held::Until(_))),
            found,
            ruled: ruled.into_iter().chain(remote.ruled.iter().cloned()).collect(),
        })
    }

    /// Takes in what an earlier process has saved of the agent that is followed, which answered last at `contact`. It counts as
    /// the word of an agent that is away; if it is too old for that (no `contact`), all that is kept is which services only
    /// the agent's instances may answer for. What is held, if anything is.
    pub fn restore_remote(
        &mut self,
        source: SourceId,
        saved: SavedRemote,
        contact: Option<Moment>,
        now: Moment,
    ) -> Option<Resumed> {
        let SavedRemote { datacenter, others, listed, nodes, instances, followed, fetched, found, ruled } = saved;
        self.hear(source, News::Datacenters { own: datacenter.clone(), others }, now);
        let set = Set { nodes: nodes.clone(), instances };
        self.hear(source, News::All { set, listed: listed.clone(), held: followed.clone() }, now);
        for key in fetched {
            self.hear(source, News::Held(key, Held::Until(now)), now);
        }
        let remote = self.remote_mut().as_mut()?;
        found.into_iter().for_each(|(key, found)| remote.found.insert_mut(key, found));
        remote.ruled = Arc::new(ruled.into_iter().collect());
        let standing = if contact.is_some() { Standing::Away } else { Standing::Lost };
        self.hear(source, News::Standing(standing), now);
        let snapshot = self.snapshot();
        let healthy = |key: &ServiceKey| {
            let instances = snapshot.service(key).map(|service| &service.instances[..]).unwrap_or_default();
            instances.iter().filter(|instance| snapshot.status(instance) != Status::Critical).count()
        };
        let followed = followed.into_iter().map(|key| (key.clone(), healthy(&key))).collect();
        contact.map(|contact| Resumed { datacenter, listed, nodes, followed, contact })
    }

    /// Takes in what becomes known of the agent that is followed, or by it.
    pub fn hear(&mut self, source: SourceId, news: News, now: Moment) {
        let Some(remote) = self.remote_mut() else { return };
        match news {
            News::Standing(standing) => {
                remote.standing = standing;
                if standing == Standing::Lost {
                    self.forget_all(source, now);
                }
                self.void(Slot::all());
            }
            News::Datacenters { own, others } => {
                let own = own.to_lowercase();
                let others: BTreeSet<String> = others.iter().map(|name| name.to_lowercase()).collect();
                if *remote.datacenter != *own || *remote.others != others {
                    remote.datacenter = own.into();
                    remote.others = others.into();
                    self.void(Slot::all());
                }
            }
            News::All { set, listed, held } => {
                let fresh = Remote::new();
                let listed = listed.iter().map(|name| name.to_lowercase());
                *remote = Remote {
                    standing: remote.standing,
                    datacenter: remote.datacenter.clone(),
                    others: remote.others.clone(),
                    listed: listed.fold(fresh.listed, |listed, name| listed.insert(name)),
                    held: held.into_iter().fold(fresh.held, |all, key| all.insert(key, Held::Followed)),
                    ..fresh
                };
                self.publish(source, set, Outcomes::Published, now);
                self.void(Slot::all());
            }
            News::Listing { added, removed } => {
                let key = |datacenter: &str, name: &String| ServiceKey::new(Kind::Service, datacenter, name);
                let datacenter = remote.datacenter.clone();
                added.iter().for_each(|name| remote.listed.insert_mut(name.to_lowercase()));
                for name in &removed {
                    remote.listed.remove_mut(&name.to_lowercase());
                    remote.held.remove_mut(&key(&datacenter, name));
                }
                for name in &removed {
                    let key = key(&datacenter, name);
                    self.publish_service(source, &key, Set::default(), Outcomes::Published, now);
                }
                self.void(added.iter().chain(&removed).map(|name| Slot::of(&key(&datacenter, name))));
            }
            News::Nodes { put, gone } => drop(self.publish_nodes(source, put, gone, now)),
            News::Members { key, set, held } => {
                let is_void = remote.hold(&key, held);
                if key.kind() == Kind::Node {
                    let is_gone = set.nodes.is_empty();
                    let node = NodeKey::new(key.datacenter(), key.name());
                    let gone = if is_gone { vec![node] } else { Vec::new() };
                    self.publish_nodes(source, set.nodes, gone, now);
                } else {
                    self.publish_service(source, &key, set, Outcomes::Published, now);
                }
                self.void(is_void.then(|| Slot::of(&key)));
            }
            News::Found { key, found, held } => {
                let is_other = remote.found(&key).map(|found| &**found) != found.as_ref();
                let is_void = remote.hold(&key, held) || is_other;
                match found {
                    Some(found) => remote.found.insert_mut(key.clone(), found.into()),
                    None => drop(remote.found.remove_mut(&key)),
                }
                self.void(is_void.then(|| Slot::of(&key)));
            }
            News::Held(key, held) => {
                let is_void = remote.hold(&key, held);
                self.void(is_void.then(|| Slot::of(&key)));
            }
            News::Forget(keys) => {
                for key in &keys {
                    remote.held.remove_mut(key);
                    remote.found.remove_mut(key);
                }
                for key in &keys {
                    // A node may have instances of what is still held; alone it is never found.
                    if !matches!(key.kind(), Kind::Query | Kind::Node) {
                        let set = Set { nodes: Vec::new(), instances: self.held_by_others(source, key) };
                        self.publish_service(source, key, set, Outcomes::Published, now);
                    }
                }
                self.void(keys.iter().map(Slot::of));
            }
        }
    }

    /// The instances of a name that another name is held for as well: a proxy is one of its own service too.
    fn held_by_others(&mut self, source: SourceId, key: &ServiceKey) -> Vec<Arc<Instance>> {
        let members = self.members_of(source, key);
        let Some(remote) = self.remote_mut() else { return Vec::new() };
        let is_held = |instance: &Arc<Instance>| {
            instance.service_keys().iter().any(|other| other != key && remote.held.contains_key(other))
        };
        members.into_iter().filter(is_held).collect()
    }

    /// What the agent has said is not to be said any more; but what was under a rule then remains so.
    fn forget_all(&mut self, source: SourceId, now: Moment) {
        let ruled: BTreeSet<ServiceKey> = self.ruled_services();
        self.publish(source, Set::default(), Outcomes::Published, now);
        if let Some(remote) = self.remote_mut() {
            let ruled = ruled.into_iter().chain(remote.ruled.iter().cloned()).collect();
            *remote = Remote { ruled: Arc::new(ruled), datacenter: remote.datacenter.clone(), ..Remote::new() };
        }
    }
}

/// After this an answer is made anew though nothing has changed, so that it is known what is still asked for.
const NOTICE: Duration = Duration::from_secs(10);

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;
