//! What all definition files say together, service by service.
//!
//! A check may stand in another file than its service, and of two services with one id only the first counts: so what a
//! changed file makes of a service depends on other files too. The index finds that for the services in the file, and leaves
//! the others alone. What did not change from one index to the next is shared between the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use foldhash::{HashMap, HashMapExt, fast::RandomState};
use rpds::HashTrieMapSync;

use super::{
    definition::{Check, Contents, Service},
    file::{Error, Problem},
};
use crate::{catalog::identity::Agent, location::Location};

/// Whose something is: a service's by its id, or our own node's.
pub type Owner = Option<Arc<str>>;

/// What all files say.
#[derive(Debug)]
pub(super) struct Index<D> {
    units: Map<Owner, Unit<D>>,
    /// Who has a check of this id, of those that count; in the order of the files.
    checks: Map<Arc<str>, Vec<Arc<Check<D>>>>,
    /// What is wrong with units and with ids of checks is found out anew from these.
    faulty_units: BTreeSet<Owner>,
    shared_ids: BTreeSet<Arc<str>>,
    /// Of the files with agent keys.
    agents: BTreeMap<PathBuf, Agent>,
}

type Map<K, V> = HashTrieMapSync<K, V, RandomState>;

/// All that is said of one service, or of our own node. In the order of the files.
#[derive(Debug)]
pub(super) struct Unit<D> {
    /// Those with this id; the first counts.
    services: Vec<Arc<Service<D>>>,
    /// Those that stand beside services.
    checks: Vec<Arc<Check<D>>>,
}

impl<D> Index<D> {
    /// An index of nothing.
    pub fn new() -> Self {
        Self {
            units: HashTrieMapSync::new_with_hasher_and_ptr_kind(RandomState::default()),
            checks: HashTrieMapSync::new_with_hasher_and_ptr_kind(RandomState::default()),
            faulty_units: BTreeSet::new(),
            shared_ids: BTreeSet::new(),
            agents: BTreeMap::new(),
        }
    }

    /// Puts what a file says in place of what it said.
    pub fn exchange(&mut self, path: &Path, old: Option<&Contents<D>>, new: Option<&Contents<D>>) {
        let mut changed = HashMap::<Owner, Unit<D>>::new();
        for (contents, is_new) in [(old, false), (new, true)] {
            let Some(contents) = contents else { continue };
            for service in &contents.services {
                let unit = self.changing(Some(service.id.clone()), &mut changed);
                exchange(&mut unit.services, service, is_new, |service| &service.location);
            }
            for check in &contents.checks {
                let unit = self.changing(check.service_id.clone(), &mut changed);
                exchange(&mut unit.checks, check, is_new, |check| &check.location);
            }
        }
        for (owner, unit) in changed {
            self.put(owner, unit);
        }
        self.agents.remove(path);
        if let Some(contents) = new.filter(|contents| contents.agent != Agent::default()) {
            self.agents.insert(path.to_owned(), contents.agent.clone());
        }
    }

    /// All that is said of one, if anything is.
    pub fn unit(&self, owner: &Owner) -> Option<&Unit<D>> {
        self.units.get(owner)
    }

    /// Whether anybody has a check of this id.
    pub fn has_check(&self, id: &str) -> bool {
        self.checks.contains_key(id)
    }

    /// What the agent keys say, in the order of the files.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }

    /// Whether two checks have one id.
    pub fn has_shared_ids(&self) -> bool {
        !self.shared_ids.is_empty()
    }

    /// What is wrong with the files beyond what is wrong with any of them: each id is one service's or one check's, and
    /// each check of a service has one.
    pub fn faults(&self) -> Vec<Error> {
        let mut faults = Vec::new();
        let mut blame = |location: &Location, problem| faults.push(Error { location: location.clone(), problem });
        for (owner, unit) in self.faulty_units.iter().filter_map(|owner| Some((owner, self.units.get(owner)?))) {
            let Some(id) = owner else { continue };
            let Some((first, others)) = unit.services.split_first() else {
                unit.checks.iter().for_each(|check| blame(&check.location, Problem::NoService(id.clone())));
                continue;
            };
            for other in others {
                blame(&other.location, same_id("service", id, &first.location));
            }
        }
        for (id, checks) in self.shared_ids.iter().filter_map(|id| Some((id, self.checks.get(id)?))) {
            let Some((first, others)) = checks.split_first() else { continue };
            others.iter().for_each(|other| blame(&other.location, same_id("check", id, &first.location)));
        }
        faults.sort_by(|a, b| order(&a.location).cmp(&order(&b.location)));
        faults
    }

    /// The unit of an owner, as far as it has been changed.
    fn changing<'a>(&self, owner: Owner, changed: &'a mut HashMap<Owner, Unit<D>>) -> &'a mut Unit<D> {
        changed.entry(owner).or_insert_with_key(|owner| self.units.get(owner).cloned().unwrap_or_default())
    }

    fn put(&mut self, owner: Owner, unit: Unit<D>) {
        let old = self.units.get(&owner).cloned().unwrap_or_default();
        for (unit, is_new) in [(&old, false), (&unit, true)] {
            for check in unit.checks() {
                let mut sharing = self.checks.get(&check.id).cloned().unwrap_or_default();
                exchange(&mut sharing, check, is_new, |check| &check.location);
                if sharing.len() > 1 {
                    self.shared_ids.insert(check.id.clone());
                } else {
                    self.shared_ids.remove(&check.id);
                }
                put(&mut self.checks, check.id.clone(), Some(sharing).filter(|sharing| !sharing.is_empty()));
            }
        }
        let is_nothing = unit.services.is_empty() && unit.checks.is_empty();
        let is_faulty = owner.is_some() && !is_nothing && unit.services.len() != 1;
        if is_faulty {
            self.faulty_units.insert(owner.clone());
        } else {
            self.faulty_units.remove(&owner);
        }
        put(&mut self.units, owner, Some(unit).filter(|_| !is_nothing));
    }
}

impl<D> Clone for Index<D> {
    fn clone(&self) -> Self {
        Self {
            units: self.units.clone(),
            checks: self.checks.clone(),
            faulty_units: self.faulty_units.clone(),
            shared_ids: self.shared_ids.clone(),
            agents: self.agents.clone(),
        }
    }
}

impl<D> Unit<D> {
    /// The service that counts.
    pub fn service(&self) -> Option<&Arc<Service<D>>> {
        self.services.first()
    }

    /// Its checks, wherever they stand.
    pub fn checks(&self) -> impl Iterator<Item = &Arc<Check<D>>> {
        self.service().into_iter().flat_map(|service| &service.checks).chain(&self.checks)
    }
}

impl<D> Default for Unit<D> {
    fn default() -> Self {
        Self { services: Vec::new(), checks: Vec::new() }
    }
}

impl<D> Clone for Unit<D> {
    fn clone(&self) -> Self {
        Self { services: self.services.clone(), checks: self.checks.clone() }
    }
}

/// Adds a thing where it belongs in the order of the files, or takes it out.
fn exchange<T>(things: &mut Vec<Arc<T>>, thing: &Arc<T>, is_new: bool, location: impl Fn(&T) -> &Location) {
    if is_new {
        let own = order(location(thing));
        let place = things.partition_point(|other| order(location(other)) <= own);
        things.insert(place, thing.clone());
    } else {
        things.retain(|other| !Arc::ptr_eq(other, thing));
    }
}

fn put<K: Eq + std::hash::Hash, V>(map: &mut Map<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert_mut(key, value),
        None => drop(map.remove_mut(&key)),
    }
}

fn order(location: &Location) -> (&Path, Option<usize>) {
    (&location.file, location.line)
}

fn same_id(what: &'static str, id: &Arc<str>, first: &Location) -> Problem {
    Problem::SameId { what, id: id.clone(), first: first.clone() }
}
