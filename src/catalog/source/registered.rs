//! What is registered over the API: services, checks, and what is in maintenance.
//!
//! A registration is a definition as a file could hold it, and is kept as it was written, so that what is restored is read
//! as what is registered. It never runs a program. Where a definition file speaks of the same service or check, the file is
//! believed; the registration stands back until the file has gone.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::{
    definition::{self, Reader, declared_checks, plain},
    external::{Addition, Changed, External, Removal},
    file::{Error, Files, Owner, Problem},
    json,
    sidecar::{self, Ports, Sidecar},
    value::{Fault, Kind, Value},
};
use crate::{
    catalog::{
        check::{self, Declaration, Definition, Scripts},
        health::Status,
        identity::Identity,
        model::{Check, Host, Instance, NodeKey, Registration},
        registry::{CheckKey, Part, Set},
    },
    location::Location,
};

/// All registrations.
#[derive(Debug, Default)]
pub struct Registered {
    units: BTreeMap<Owner, Unit>,
    /// Whose the checks are, by their ids.
    owners: BTreeMap<Arc<str>, Owner>,
    /// What all definitions take.
    bytes: usize,
    external: External,
    /// The sidecars that came with a service, by their ids: they go with it.
    sidecars: BTreeSet<Arc<str>>,
}

/// All that is registered of one service, or of our own node.
#[derive(Debug, Default)]
struct Unit {
    service: Option<Entry<definition::Service<Definition>>>,
    checks: BTreeMap<Arc<str>, Entry<definition::Check<Definition>>>,
    /// Why it is in maintenance, if it is.
    maintenance: Option<Arc<str>>,
}

/// A definition, and how it was written.
#[derive(Debug)]
struct Entry<T> {
    read: T,
    /// On one line, its keys in order: what is saved again and again is not to be written anew each time.
    written: Box<str>,
}

/// A service that is to be registered, with the checks that came with it.
#[derive(Debug)]
pub struct NewService {
    service: Entry<definition::Service<Definition>>,
    checks: Vec<Entry<definition::Check<Definition>>>,
    sidecar: Option<Sidecar>,
}

/// A check that is to be registered.
#[derive(Debug)]
pub struct NewCheck(Entry<definition::Check<Definition>>);

/// What becomes of the checks that a service has already when it is registered anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtherChecks {
    /// They stay.
    Keep,
    /// They go.
    Drop,
}

/// Why something is not registered, or told: in Consul's words, as far as it has any.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no definition.
    #[error("Request decode failed: {0}")]
    Undecodable(String),
    /// A service without a name.
    #[error("Missing service name")]
    NoServiceName,
    /// A check without a name.
    #[error("Missing check name")]
    NoCheckName,
    /// An address that is none.
    #[error("Invalid service address")]
    Address,
    /// Anything else about a service.
    #[error("Invalid service: {0}")]
    Service(String),
    /// A sidecar that a service cannot have.
    #[error("{0}")]
    Sidecar(&'static str),
    /// Anything about a check.
    #[error("Invalid check: {0}")]
    Check(String),
    /// A request to register or deregister a node, for which Consul answers as if the fault were its own.
    #[error("{0}")]
    Catalog(String),
    /// A check that would run a program.
    #[error(
        "Scripts are disabled on this agent from remote calls; to enable, define the check in a file of \
         catalog.files.directory"
    )]
    Script,
    /// A check of a service that is not there.
    #[error("ServiceID {0:?} does not exist")]
    NoSuchService(String),
    /// Maintenance of a service that is not there.
    #[error("No service registered with ID {0:?}")]
    NothingToMaintain(String),
    /// A service that a file defines.
    #[error("service {0:?} is defined by a file, which outranks registrations; change the file")]
    ServiceOfFile(String),
    /// A check that a file defines.
    #[error("check {0:?} is defined by a file, which outranks registrations; change the file")]
    CheckOfFile(String),
    /// A check that is not told how it is.
    #[error("CheckID {0:?} does not have associated TTL")]
    NotTtl(String),
    /// There are too many.
    #[error("the registrations take all of the {} MiB that they may; deregister some", MOST_BYTES >> 20)]
    Full,
    /// It is in force, but would not survive a restart.
    #[error("in force, but not saved: {0}")]
    Unsaved(String),
}

impl NewService {
    /// Reads a definition, as `/v1/agent/service/register` takes it.
    pub fn read(text: &str) -> Result<Self, Refused> {
        Self::from_value(&json::read(text).map_err(|fault| Refused::Undecodable(fault.message))?)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.service.read.id
    }

    fn from_value(value: &Value) -> Result<Self, Refused> {
        let (mut read, sidecar) =
            reading(value, |reader, value| Some((reader.service(value)?, reader.sidecars.pop())))?;
        if matches!(&read.address, Some(Host::Ip(ip)) if IpAddr::is_unspecified(ip)) {
            return Err(Refused::Address);
        }
        let is_check = |key: &str| matches!(&*plain(key), "check" | "checks");
        let mut written = write_once(value);
        let fields = value.table().unwrap_or_default();
        let declared = fields.iter().filter(|(key, _)| is_check(key));
        let declared = declared.flat_map(|(key, value)| declared_checks(key, value));
        let checks = std::mem::take(&mut read.checks).into_iter().zip(declared).filter_map(|(check, value)| {
            let mut check = Arc::into_inner(check)?;
            check.service_id = Some(read.id.clone());
            Some(Entry::of_check(check, value))
        });
        let checks = checks.collect();
        if let Json::Object(fields) = &mut written {
            fields.retain(|key, _| !is_check(key));
            // The sidecar is a service of its own from now on.
            for (_, connect) in fields.iter_mut().filter(|(key, _)| plain(key) == "connect") {
                if let Json::Object(connect) = connect {
                    connect.retain(|key, _| plain(key) != "sidecarservice");
                }
            }
        }
        Ok(Self { service: Entry::new(read, &written), checks, sidecar })
    }

    fn bytes(&self) -> usize {
        self.service.bytes() + self.checks.iter().map(Entry::bytes).sum::<usize>()
    }
}

impl NewCheck {
    /// Reads a definition, as `/v1/agent/check/register` takes it.
    pub fn read(text: &str) -> Result<Self, Refused> {
        Self::from_value(&json::read(text).map_err(|fault| Refused::Undecodable(fault.message))?)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.0.read.id
    }

    /// Whose it is to be.
    pub fn owner(&self) -> &Owner {
        &self.0.read.service_id
    }

    fn from_value(value: &Value) -> Result<Self, Refused> {
        let fields = value.table().unwrap_or_default();
        let is_name = |(key, value): &(String, Value)| {
            plain(key) == "name" && matches!(&value.kind, Kind::Text(text) if !text.is_empty())
        };
        if !fields.iter().any(is_name) {
            return Err(Refused::NoCheckName);
        }
        let read = reading(value, |reader, value| reader.check(value, None))?;
        Ok(Self(Entry::of_check(read, value)))
    }
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
        self.sidecars.insert(id);
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
        let sidecar = self.sidecars.take(&*format!("{id}-sidecar-proxy"));
        let mut dropped = sidecar.map(|sidecar| self.drop_one_service(&sidecar)).unwrap_or_default();
        dropped.extend(self.drop_one_service(id));
        dropped
    }

    fn drop_one_service(&mut self, id: &str) -> BTreeSet<Owner> {
        self.sidecars.remove(id);
        let Some((owner, unit)) = self.units.remove_entry(&Some(Arc::from(id))) else { return BTreeSet::new() };
        unit.checks.keys().for_each(|id| drop(self.owners.remove(id)));
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
        self.units.entry(owner.clone()).or_default().maintenance = reason;
        self.bytes = self.bytes + after - before;
        self.forget_if_empty(&owner);
        Ok(BTreeSet::from([owner]))
    }

    /// Takes in an external node, or a service or checks on one. `is_known` tells the nodes of other sources.
    pub fn add_external(
        &mut self,
        new: Addition,
        own_datacenter: &str,
        is_known: impl Fn(&NodeKey) -> bool,
    ) -> Result<Changed, Refused> {
        let room = MOST_BYTES.saturating_sub(self.bytes + self.external.bytes());
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

    /// As it is kept while no process runs: a line for each definition.
    pub fn save(&self) -> Vec<u8> {
        let units = || self.units.iter();
        let services = units().filter_map(|(_, unit)| Some(&*unit.service.as_ref()?.written));
        let checks = units().flat_map(|(_, unit)| unit.checks.values()).map(|entry| &*entry.written);
        let maintenance: Vec<String> = units()
            .filter_map(|(owner, unit)| {
                Some(json!({ "ServiceID": owner.as_deref(), "Reason": unit.maintenance.as_deref()? }).to_string())
            })
            .collect();
        let mut text = format!("{{\n\"Version\": {VERSION}");
        text.reserve(self.bytes + self.bytes / 8);
        list("Services", services, &mut text);
        list("Checks", checks, &mut text);
        list("Maintenance", maintenance.iter().map(String::as_str), &mut text);
        let sidecars: Vec<String> = self.sidecars.iter().map(|id| json!(&**id).to_string()).collect();
        list("Sidecars", sidecars.iter().map(String::as_str), &mut text);
        list("External", self.external.requests(), &mut text);
        text.push_str("\n}\n");
        text.into_bytes()
    }

    /// Reads what was saved, as much as is good; and says what is not.
    pub fn restore(saved: &[u8]) -> (Self, Vec<String>) {
        let mut registered = Self::default();
        let text = String::from_utf8_lossy(saved);
        let root = match json::read(&text) {
            Ok(root) => root,
            Err(fault) => return (registered, vec![fault.message]),
        };
        let files = Files::default();
        let mut faults = Vec::new();
        let fields = root.table().unwrap_or_default();
        let listed = |name: &str| {
            let list = fields.iter().find(|(key, _)| key == name).map(|(_, value)| value);
            list.map(|list| if let Kind::List(items) = &list.kind { &items[..] } else { &[] })
        };
        let version = fields.iter().find(|(key, _)| key == "Version").map(|(_, version)| to_json(version));
        let (Some(services), Some(checks), Some(maintenance)) =
            (listed("Services"), listed("Checks"), listed("Maintenance"))
        else {
            return (registered, vec!["it holds no registrations".to_owned()]);
        };
        if version != Some(json!(VERSION)) {
            faults.push("it is of another version".to_owned());
        }
        let mut note = |outcome: Result<BTreeSet<Owner>, Refused>| faults.extend(outcome.err().map(|e| e.to_string()));
        for value in services {
            let new = NewService::from_value(value);
            note(new.and_then(|new| registered.put_service(new, OtherChecks::Keep, &files)));
        }
        for value in checks {
            // A service that a file defined may be defined again.
            note(NewCheck::from_value(value).map(|new| registered.add_check(new.0).into_iter().collect()));
        }
        // A file of before there were any has no such lists.
        let sidecars = listed("Sidecars").unwrap_or_default().iter().filter_map(|value| match &value.kind {
            Kind::Text(id) => Some(Arc::from(id.as_str())),
            _ => None,
        });
        let sidecars: Vec<Arc<str>> = sidecars.collect();
        registered.sidecars.extend(sidecars);
        for value in listed("External").unwrap_or_default() {
            // The source that knew a node then may know it again.
            let added = Addition::from_value(value).and_then(|new| registered.add_external(new, "", |_| true));
            note(added.map(|_| BTreeSet::new()));
        }
        for value in maintenance {
            let value = to_json(value);
            let (owner, reason) = (value["ServiceID"].as_str(), value["Reason"].as_str().unwrap_or_default());
            let owner = owner.map(Into::into);
            let unit = registered.units.entry(owner.clone()).or_default();
            let before = unit.maintenance_bytes(&owner);
            unit.maintenance = Some(reason.into());
            registered.bytes = registered.bytes + unit.maintenance_bytes(&owner) - before;
        }
        (registered, faults)
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
        if is_more && taken + bytes > MOST_BYTES { Err(Refused::Full) } else { Ok(()) }
    }

    fn bytes_of_check(&self, id: &str) -> usize {
        let unit = self.owners.get(id).and_then(|owner| self.units.get(owner));
        unit.and_then(|unit| unit.checks.get(id)).map_or(0, Entry::bytes)
    }

    /// Whose the check was before, if it was another's.
    fn add_check(&mut self, check: Entry<definition::Check<Definition>>) -> Option<Owner> {
        let (id, owner) = (check.read.id.clone(), check.read.service_id.clone());
        let before = self.take_check(&id).filter(|before| *before != owner);
        self.bytes += check.bytes();
        self.owners.insert(id.clone(), owner.clone());
        self.units.entry(owner).or_default().checks.insert(id, check);
        before
    }

    fn take_check(&mut self, id: &str) -> Option<Owner> {
        let owner = self.owners.remove(id)?;
        if let Some(check) = self.units.get_mut(&owner).and_then(|unit| unit.checks.remove(id)) {
            self.bytes -= check.bytes();
        }
        self.forget_if_empty(&owner);
        Some(owner)
    }

    fn forget_if_empty(&mut self, owner: &Owner) {
        let is_empty = |unit: &Unit| unit.service.is_none() && unit.checks.is_empty() && unit.maintenance.is_none();
        if self.units.get(owner).is_some_and(is_empty) {
            self.units.remove(owner);
        }
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

impl<T> Entry<T> {
    fn new(read: T, written: &Json) -> Self {
        Self { read, written: written.to_string().into() }
    }

    fn bytes(&self) -> usize {
        self.written.len()
    }
}

impl Entry<definition::Check<Definition>> {
    /// Written so that it stands for itself, wherever it stood.
    fn of_check(read: definition::Check<Definition>, value: &Value) -> Self {
        let mut fields = match write_once(value) {
            Json::Object(fields) => fields,
            _ => Map::new(),
        };
        fields.retain(|key, _| !matches!(&*plain(key), "id" | "checkid" | "name" | "serviceid"));
        fields.insert("CheckID".to_owned(), json!(&*read.id));
        fields.insert("Name".to_owned(), json!(&*read.name));
        if let Some(id) = &read.service_id {
            fields.insert("ServiceID".to_owned(), json!(&**id));
        }
        Self::new(read, &Json::Object(fields))
    }
}

/// A service as a definition has it, on a node.
pub(super) fn read_service(value: &Value, node: NodeKey) -> Result<Registration, Refused> {
    Ok(reading(value, |reader, value| reader.service(value))?.register(node))
}

/// Reads a definition as one of a file is read, but for programs; the first fault counts.
fn reading<T>(
    value: &Value,
    read: impl FnOnce(&mut Reader<'_, Definition>, &Value) -> Option<T>,
) -> Result<T, Refused> {
    let has_script = Cell::new(false);
    let define = |value: &Value| {
        let declaration = Declaration::deserialize(value).map_err(|fault| vec![fault])?;
        if !declaration.args.is_empty() || declaration.script.is_some() {
            has_script.set(true);
        }
        let fault = |problem: check::Problem| Fault { line: None, message: problem.to_string() };
        declaration.define(Scripts::Refused).map_err(|problems| problems.into_iter().map(fault).collect())
    };
    let location = Location::file(Path::new("request"));
    let mut reader = Reader::new(location, &define);
    let read = read(&mut reader, value);
    let refused = reader.refused.into_iter().map(|refused| refused.error);
    let fault = reader.errors.into_iter().chain(refused).next().map(|Error { problem, .. }| problem);
    match (read, fault) {
        _ if has_script.get() => Err(Refused::Script),
        (_, Some(problem)) => Err(refusal(problem)),
        (Some(read), None) => Ok(read),
        (None, None) => Err(Refused::Undecodable("there is nothing in it".to_owned())),
    }
}

fn bytes_of_maintenance(owner: &Owner, reason: &str) -> usize {
    owner.as_deref().map_or(0, str::len) + reason.len() + MAINTENANCE_BYTES
}

fn refusal(problem: Problem) -> Refused {
    match problem {
        Problem::NoName => Refused::NoServiceName,
        Problem::NamelessCheck => Refused::NoCheckName,
        Problem::UnknownKey { key, .. } => Refused::Undecodable(format!("json: unknown field {key:?}")),
        Problem::Check(problem) => Refused::Check(problem),
        Problem::Sidecar(problem) => Refused::Sidecar(problem),
        problem @ Problem::Shape { .. } => Refused::Undecodable(problem.to_string()),
        problem => Refused::Service(problem.to_string()),
    }
}

fn list<'a>(key: &str, items: impl Iterator<Item = &'a str>, text: &mut String) {
    text.push_str(",\n\"");
    text.push_str(key);
    text.push_str("\": [");
    for (place, item) in items.enumerate() {
        text.push_str(if place == 0 { "\n" } else { ",\n" });
        text.push_str(item);
    }
    text.push(']');
}

/// A definition in which no key stands twice, however it is written: the last counts, as when it is read. What is saved has its
/// keys in another order.
fn write_once(value: &Value) -> Json {
    let Some(fields) = value.table() else { return to_json(value) };
    let mut last = BTreeMap::new();
    for (key, value) in fields {
        last.insert(plain(key), (key, value));
    }
    let has_keys_of_ours = |known: &str| matches!(known, "weights" | "connect" | "proxy");
    let written = last.into_iter().map(|(known, (key, value))| {
        (key.clone(), if has_keys_of_ours(&known) { write_once(value) } else { to_json(value) })
    });
    Json::Object(written.collect())
}

pub(super) fn to_json(value: &Value) -> Json {
    match &value.kind {
        Kind::Null => Json::Null,
        Kind::Flag(flag) => Json::Bool(*flag),
        Kind::Number(number) => Json::Number(number.clone()),
        Kind::Text(text) => Json::String(text.clone()),
        Kind::List(items) => Json::Array(items.iter().map(to_json).collect()),
        Kind::Table(fields) => Json::Object(fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect()),
    }
}

/// What is saved of a maintenance besides the id and the reason.
const MAINTENANCE_BYTES: usize = 32;
/// What all definitions may take as text; in memory it is several times that.
const MOST_BYTES: usize = 32 << 20;
/// Of what is saved.
pub const VERSION: u32 = 1;

#[cfg(test)]
#[path = "registered_tests.rs"]
mod tests;
