//! What is registered over the API: services, checks, and what is in maintenance.
//!
//! A registration is a definition as a file could hold it, and is kept as it was written, so that what is restored is read
//! as what is registered. It never runs a program. Where a definition file speaks of the same service or check, the file is
//! believed; the registration stands back until the file has gone.

mod new;
mod saved;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

pub(super) use self::new::{ENTRY_BYTES, read_service, to_json};
use self::new::{Entry, MOST_BYTES};
pub use self::new::{NewCheck, NewService, Refused};
pub use self::saved::VERSION;
use super::{
    definition,
    external::{Addition, Changed, External, Removal},
    file::{Files, Owner},
    sidecar::{self, Ports},
};
use crate::catalog::{
    check::Definition,
    health::Status,
    identity::Identity,
    model::{Check, Host, Instance, NodeKey},
    registry::{CheckKey, Part, Set},
};

/// All registrations.
#[derive(Debug, Default)]
pub struct Registered {
    units: BTreeMap<Owner, Unit>,
    /// Whose the checks are, by their ids.
    owners: BTreeMap<Arc<str>, Owner>,
    /// What all of this counts, the external nodes apart.
    bytes: usize,
    external: External,
    /// The sidecars that came with a service, by their ids: they go with it.
    sidecars: BTreeSet<Arc<str>>,
    unsaved: Unsaved,
    /// The journal that continues what this was restored from.
    journal: Option<String>,
    limit: Limit,
}

/// What has changed since it was last saved: which services, checks, services or node in maintenance, and sidecars.
#[derive(Debug, Default)]
struct Unsaved {
    services: BTreeSet<Arc<str>>,
    checks: BTreeSet<Arc<str>>,
    maintenance: BTreeSet<Owner>,
    sidecars: BTreeSet<Arc<str>>,
}

/// Whether more may come in than [`MOST_BYTES`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Limit {
    #[default]
    Enforced,
    /// What was saved had room once, but its parts may come in another order.
    Lifted,
}

/// All that is registered of one service, or of our own node.
#[derive(Debug, Default)]
struct Unit {
    service: Option<Entry<definition::Service<Definition>>>,
    checks: BTreeMap<Arc<str>, Entry<definition::Check<Definition>>>,
    /// Why it is in maintenance, if it is.
    maintenance: Option<Arc<str>>,
}

/// What becomes of the checks that a service has already when it is registered anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherChecks {
    /// They stay.
    Keep,
    /// They go.
    Drop,
}

impl Registered {
    /// Takes in a service, and the sidecar that it asks for.
    pub fn put_service(
        &mut self,
        mut new: NewService,
        others: OtherChecks,
        files: &Files<Definition>,
    ) -> Result<BTreeSet<Owner>, Refused> {
        let Some(sidecar) = new.sidecar.take() else { return self.put_one_service(new, others, files) };
        if files.has_service(new.id()) {
            return Err(Refused::ServiceOfFile(new.id().to_owned()));
        }
        let port = sidecar.port.or_else(|| self.ports(files).choose(&sidecar.id));
        let port = port.ok_or_else(|| Refused::Service(sidecar::NO_PORT.to_owned()))?;
        let sidecar = NewService::from_value(&sidecar.definition(port))?;
        let id = sidecar.service.read.id.clone();
        let was_there = self.units.contains_key(&Some(id.clone()));
        let mut changed = self.put_one_service(sidecar, others, files)?;
        match self.put_one_service(new, others, files) {
            Ok(more) => changed.extend(more),
            Err(refused) => {
                if !was_there {
                    self.drop_service(&id);
                }
                return Err(refused);
            }
        }
        if self.sidecars.insert(id.clone()) {
            self.unsaved.sidecars.insert(id);
        }
        Ok(changed)
    }

    fn ports(&self, files: &Files<Definition>) -> Ports {
        let mut ports = Ports::default();
        let registered = self.units.values().filter_map(|unit| unit.service.as_ref()).map(|service| &service.read);
        registered.for_each(|service| ports.note(&service.id, service.port));
        files.ports().for_each(|(id, port)| ports.note(id, port));
        ports
    }

    /// Takes in a service. Its checks come with it; of two with one id the later counts. Here and below, what is returned
    /// is whose state has changed.
    fn put_one_service(
        &mut self,
        new: NewService,
        others: OtherChecks,
        files: &Files<Definition>,
    ) -> Result<BTreeSet<Owner>, Refused> {
        let id = new.service.read.id.clone();
        if files.has_service(&id) {
            return Err(Refused::ServiceOfFile(id.to_string()));
        }
        if let Some(check) = new.checks.iter().find(|check| files.has_check(&check.read.id)) {
            return Err(Refused::CheckOfFile(check.read.id.to_string()));
        }
        let owner = Some(id);
        if self.units.get(&owner).is_some_and(|unit| unit.is_like(&new, others)) {
            return Ok(BTreeSet::new());
        }
        let service = self.units.get(&owner).and_then(|unit| unit.service.as_ref()).map_or(0, Entry::bytes);
        let checks: usize = new.checks.iter().map(|check| self.bytes_of_check(&check.read.id)).sum();
        self.has_room_for(new.bytes(), service + checks)?;
        if others == OtherChecks::Drop {
            let known: Vec<_> =
                self.units.get(&owner).into_iter().flat_map(|unit| unit.checks.keys()).cloned().collect();
            known.iter().for_each(|id| drop(self.take_check(id)));
        }
        let mut changed = BTreeSet::from([owner.clone()]);
        self.unsaved.services.extend(owner.clone());
        self.bytes += new.service.bytes();
        let before = self.units.entry(owner).or_default().service.replace(new.service);
        self.bytes -= before.map_or(0, |before| before.bytes());
        changed.extend(new.checks.into_iter().filter_map(|check| self.add_check(check)));
        Ok(changed)
    }

    /// Takes in a check.
    pub fn put_check(&mut self, new: NewCheck, files: &Files<Definition>) -> Result<BTreeSet<Owner>, Refused> {
        if files.has_check(new.id()) {
            return Err(Refused::CheckOfFile(new.id().to_owned()));
        }
        let owner = new.owner().clone();
        if let Some(id) = owner.as_deref().filter(|id| !self.is_there(id, files)) {
            return Err(Refused::NoSuchService(id.to_owned()));
        }
        self.has_room_for(new.0.bytes(), self.bytes_of_check(new.id()))?;
        let before = self.add_check(new.0);
        Ok([owner].into_iter().chain(before).collect())
    }

    /// Takes out a service with its checks; one that is not there is no harm.
    pub fn remove_service(&mut self, id: &str, files: &Files<Definition>) -> Result<BTreeSet<Owner>, Refused> {
        if files.has_service(id) {
            return Err(Refused::ServiceOfFile(id.to_owned()));
        }
        Ok(self.drop_service(id))
    }

    /// The same, whatever the files say.
    pub fn drop_service(&mut self, id: &str) -> BTreeSet<Owner> {
        let sidecar = self.sidecars.get(&*format!("{id}-sidecar-proxy")).cloned();
        let mut dropped = sidecar.map(|sidecar| self.drop_one_service(&sidecar)).unwrap_or_default();
        dropped.extend(self.drop_one_service(id));
        dropped
    }

    fn drop_one_service(&mut self, id: &str) -> BTreeSet<Owner> {
        self.unsaved.sidecars.extend(self.sidecars.take(id));
        let Some((owner, unit)) = self.units.remove_entry(&Some(Arc::from(id))) else { return BTreeSet::new() };
        unit.checks.keys().for_each(|id| drop(self.owners.remove(id)));
        self.unsaved.checks.extend(unit.checks.keys().cloned());
        self.unsaved.services.extend(unit.service.is_some().then(|| owner.clone()).flatten());
        self.unsaved.maintenance.extend(unit.maintenance.is_some().then(|| owner.clone()));
        self.bytes -= unit.maintenance_bytes(&owner);
        self.bytes -= unit.service.map_or(0, |service| service.bytes());
        self.bytes -= unit.checks.values().map(Entry::bytes).sum::<usize>();
        BTreeSet::from([owner])
    }

    /// Takes out a check; one that is not there is no harm.
    pub fn remove_check(&mut self, id: &str, files: &Files<Definition>) -> Result<BTreeSet<Owner>, Refused> {
        if files.has_check(id) {
            return Err(Refused::CheckOfFile(id.to_owned()));
        }
        Ok(self.take_check(id).into_iter().collect())
    }

    /// Sets a service, or our own node, into maintenance for this reason, or ends it.
    pub fn maintain(
        &mut self,
        owner: Owner,
        reason: Option<&str>,
        files: &Files<Definition>,
    ) -> Result<BTreeSet<Owner>, Refused> {
        if let Some(id) = owner.as_deref().filter(|id| !self.is_there(id, files)) {
            return Err(Refused::NothingToMaintain(id.to_owned()));
        }
        let what = if owner.is_some() { "service" } else { "node" };
        let default = format!(
            "Maintenance mode is enabled for this {what}, but no reason was provided. This is a default message."
        );
        let reason: Option<Arc<str>> =
            reason.map(|reason| if reason.is_empty() { default.into() } else { reason.into() });
        let before = self.units.get(&owner).map_or(0, |unit| unit.maintenance_bytes(&owner));
        let after = reason.as_ref().map_or(0, |reason| bytes_of_maintenance(&owner, reason));
        self.has_room_for(after, before)?;
        self.set_maintenance(&owner, reason);
        Ok(BTreeSet::from([owner]))
    }

    /// Takes in an external node, or a service or checks on one. `is_known` tells the nodes of other sources.
    pub fn add_external(
        &mut self,
        new: Addition,
        own_datacenter: &str,
        is_known: impl Fn(&NodeKey) -> bool,
    ) -> Result<Changed, Refused> {
        let room = match self.limit {
            Limit::Enforced => MOST_BYTES.saturating_sub(self.bytes + self.external.bytes()),
            Limit::Lifted => usize::MAX,
        };
        self.external.add(new, own_datacenter, room, is_known)
    }

    /// Takes out an external node, or a service or a check on one.
    pub fn remove_external(&mut self, removal: &Removal, own_datacenter: &str) -> Result<Option<Changed>, Refused> {
        self.external.remove(removal, own_datacenter)
    }

    /// The external nodes.
    pub fn external(&self) -> &External {
        &self.external
    }

    /// Adds all that is registered to what the definition files say of our own node.
    pub fn join(&self, files: &Files<Definition>, node: &NodeKey, set: &mut Set) {
        self.join_files(files, node, set);
        set.instances.extend(self.units.iter().filter_map(|(owner, unit)| unit.instance(owner, files, node)));
    }

    /// The same for some owners, to what the files say of them.
    pub fn join_part<'a>(
        &self,
        files: &Files<Definition>,
        node: &NodeKey,
        owners: impl IntoIterator<Item = &'a Owner>,
        part: &mut Part,
    ) {
        let mut set = Set { nodes: std::mem::take(&mut part.nodes), instances: std::mem::take(&mut part.instances) };
        self.join_files(files, node, &mut set);
        let units = owners.into_iter().filter_map(|owner| self.units.get_key_value(owner));
        let added: Vec<_> = units.filter_map(|(owner, unit)| unit.instance(owner, files, node)).collect();
        let ids: HashSet<&Arc<str>> = added.iter().map(|instance| &instance.registration.id).collect();
        part.gone.retain(|gone| !ids.contains(&gone.id));
        part.nodes = set.nodes;
        part.instances = set.instances;
        part.instances.extend(added);
    }

    /// The address of a service's own, if it has one.
    pub fn address(&self, owner: &Owner) -> Option<&Host> {
        self.units.get(owner)?.service.as_ref()?.read.address.as_ref()
    }

    /// The checks that are to be run, on our own node.
    pub fn definitions<'a>(
        &'a self,
        files: &'a Files<Definition>,
        identity: &Identity,
    ) -> impl Iterator<Item = (CheckKey, &'a Arc<Definition>)> {
        let node = identity.node().key();
        self.units.iter().flat_map(move |(owner, unit)| unit.definitions(owner, files, &node))
    }

    /// Those of them that are an owner's.
    pub fn definitions_of<'a>(
        &'a self,
        owner: &Owner,
        files: &'a Files<Definition>,
        identity: &Identity,
    ) -> impl Iterator<Item = (CheckKey, &'a Arc<Definition>)> {
        let node = identity.node().key();
        let unit = self.units.get_key_value(owner);
        unit.into_iter().flat_map(move |(owner, unit)| unit.definitions(owner, files, &node))
    }

    /// Adds what is registered to nodes and services that files define.
    fn join_files(&self, files: &Files<Definition>, node: &NodeKey, set: &mut Set) {
        let own_node = set.nodes.iter_mut().find(|own| own.key() == *node);
        if let (Some(own), Some(unit)) = (own_node, self.units.get(&None)) {
            Arc::make_mut(own).checks.extend(unit.checks(&None, files));
        }
        if self.units.is_empty() {
            return;
        }
        for instance in &mut set.instances {
            let owner = Some(instance.registration.id.clone());
            if let Some(unit) = self.units.get(&owner) {
                Arc::make_mut(instance).checks.extend(unit.checks(&owner, files));
            }
        }
    }

    /// Whether somebody has defined this service.
    fn is_there(&self, id: &str, files: &Files<Definition>) -> bool {
        files.has_service(id) || self.units.get(&Some(Arc::from(id))).is_some_and(|unit| unit.service.is_some())
    }

    /// Whether so much may come in the place of what was there.
    fn has_room_for(&self, bytes: usize, replaced: usize) -> Result<(), Refused> {
        let is_more = bytes > replaced;
        let taken = self.bytes.saturating_sub(replaced) + self.external.bytes();
        if is_more && taken + bytes > MOST_BYTES && self.limit == Limit::Enforced { Err(Refused::Full) } else { Ok(()) }
    }

    fn check(&self, id: &str) -> Option<&Entry<definition::Check<Definition>>> {
        self.owners.get(id).and_then(|owner| self.units.get(owner))?.checks.get(id)
    }

    fn bytes_of_check(&self, id: &str) -> usize {
        self.check(id).map_or(0, Entry::bytes)
    }

    /// Takes out a service alone.
    fn take_service(&mut self, id: &str) {
        let owner = Some(Arc::from(id));
        if let Some(service) = self.units.get_mut(&owner).and_then(|unit| unit.service.take()) {
            self.bytes -= service.bytes();
            self.unsaved.services.extend(owner.clone());
        }
        self.forget_if_empty(&owner);
    }

    /// Whose the check was before, if it was another's.
    fn add_check(&mut self, check: Entry<definition::Check<Definition>>) -> Option<Owner> {
        let (id, owner) = (check.read.id.clone(), check.read.service_id.clone());
        let before = self.take_check(&id).filter(|before| *before != owner);
        self.bytes += check.bytes();
        self.owners.insert(id.clone(), owner.clone());
        self.unsaved.checks.insert(id.clone());
        self.units.entry(owner).or_default().checks.insert(id, check);
        before
    }

    fn take_check(&mut self, id: &str) -> Option<Owner> {
        let (id, owner) = self.owners.remove_entry(id)?;
        if let Some(check) = self.units.get_mut(&owner).and_then(|unit| unit.checks.remove(&id)) {
            self.bytes -= check.bytes();
        }
        self.unsaved.checks.insert(id);
        self.forget_if_empty(&owner);
        Some(owner)
    }

    fn set_maintenance(&mut self, owner: &Owner, reason: Option<Arc<str>>) {
        let unit = self.units.entry(owner.clone()).or_default();
        self.bytes -= unit.maintenance_bytes(owner);
        unit.maintenance = reason;
        self.bytes += unit.maintenance_bytes(owner);
        self.unsaved.maintenance.insert(owner.clone());
        self.forget_if_empty(owner);
    }

    fn forget_if_empty(&mut self, owner: &Owner) {
        let is_empty = |unit: &Unit| unit.service.is_none() && unit.checks.is_empty() && unit.maintenance.is_none();
        if self.units.get(owner).is_some_and(is_empty) {
            self.units.remove(owner);
        }
    }
}

impl Unsaved {
    fn is_empty(&self) -> bool {
        let Self { services, checks, maintenance, sidecars } = self;
        services.is_empty() && checks.is_empty() && maintenance.is_empty() && sidecars.is_empty()
    }
}

impl Unit {
    /// What its maintenance takes.
    fn maintenance_bytes(&self, owner: &Owner) -> usize {
        self.maintenance.as_ref().map_or(0, |reason| bytes_of_maintenance(owner, reason))
    }

    /// Whether registering this would change nothing.
    fn is_like(&self, new: &NewService, others: OtherChecks) -> bool {
        let is_known = |check: &Entry<definition::Check<Definition>>| {
            self.checks.get(&check.read.id).is_some_and(|known| known.written == check.written)
        };
        self.service.as_ref().is_some_and(|service| service.written == new.service.written)
            && new.checks.iter().all(is_known)
            && (others == OtherChecks::Keep || self.checks.len() == new.checks.len())
    }

    /// The instance of a registered service, unless a file defines it.
    fn instance(&self, owner: &Owner, files: &Files<Definition>, node: &NodeKey) -> Option<Arc<Instance>> {
        let service = self.service.as_ref().filter(|service| !files.has_service(&service.read.id))?;
        let registration = service.read.register(node.clone()).into();
        Some(Instance { registration, checks: self.checks(owner, files).collect() }.into())
    }

    /// The checks that are to be run.
    fn definitions<'a>(
        &'a self,
        owner: &'a Owner,
        files: &'a Files<Definition>,
        node: &NodeKey,
    ) -> impl Iterator<Item = (CheckKey, &'a Arc<Definition>)> + use<'a> {
        let node = node.clone();
        let is_there = self.service.is_some() || owner.as_deref().is_none_or(|id| files.has_service(id));
        self.running(files).filter(move |_| is_there).map(move |check| {
            (CheckKey { node: node.clone(), service_id: owner.clone(), check: check.id.clone() }, &check.definition)
        })
    }

    /// The checks that no file outranks.
    fn running<'a>(&'a self, files: &'a Files<Definition>) -> impl Iterator<Item = &'a definition::Check<Definition>> {
        // Of a registered service that a file defines as well, nothing is in force.
        let is_outranked = self.service.as_ref().is_some_and(|service| files.has_service(&service.read.id));
        let checks = self.checks.values().filter(move |_| !is_outranked).map(|entry| &entry.read);
        checks.filter(|check| !files.has_check(&check.id))
    }

    /// What the catalog shows of them before they have run, and of maintenance.
    fn checks<'a>(&'a self, owner: &Owner, files: &'a Files<Definition>) -> impl Iterator<Item = Check> {
        let (id, name) = match owner {
            Some(id) => (format!("_service_maintenance:{id}"), "Service Maintenance Mode"),
            None => ("_node_maintenance".to_owned(), "Node Maintenance Mode"),
        };
        let maintenance = self.maintenance.as_ref().map(|reason| Check {
            id: id.into(),
            name: name.into(),
            notes: reason.clone(),
            kind: "maintenance".into(),
            status: Status::Critical,
            output: "".into(),
        });
        self.running(files).map(definition::Check::begin).chain(maintenance)
    }
}

fn bytes_of_maintenance(owner: &Owner, reason: &str) -> usize {
    owner.as_deref().map_or(0, str::len) + reason.len() + ENTRY_BYTES
}

#[cfg(test)]
#[path = "registered_tests.rs"]
mod tests;
