//! Nodes that are registered over `/v1/catalog/register`: machines without an agent, with their services and checks.
//!
//! Their checks are static: they have the status with which they were registered, until they are registered again. Each thing
//! is kept as the request that would register it, so that what is restored is read as what is registered.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde_json::{Value as Json, json};

use super::{
    definition::read_host,
    json,
    registered::{Refused, read_service, to_json},
    value::{Kind, Value},
};
use crate::catalog::{
    check::GoDuration,
    health::Status,
    model::{Check, Host, Instance, InstanceKey, Node, NodeKey, Registration, Tagged},
    registry::{Part, Set},
};

/// All nodes that are registered so, by their names in lower case.
#[derive(Debug, Default)]
pub struct External {
    nodes: BTreeMap<String, Entry>,
    /// What all requests take.
    bytes: usize,
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

/// Something and the request that registers it.
#[derive(Debug)]
struct Written<T> {
    read: T,
    request: Box<str>,
}

#[derive(Debug)]
struct NewNode {
    name: Arc<str>,
    address: Host,
    tagged: BTreeMap<String, Tagged>,
    meta: BTreeMap<String, String>,
}

/// A service on any node: its key is made when it is published.
#[derive(Debug)]
struct NewService(Registration);

#[derive(Debug)]
struct NewCheck {
    service_id: Option<Arc<str>>,
    check: Check,
}

/// A request to register something.
#[derive(Debug)]
pub struct Addition {
    datacenter: Option<String>,
    name: String,
    node: Option<Written<NewNode>>,
    service: Option<Written<NewService>>,
    checks: Vec<Written<NewCheck>>,
}

/// A request to take something out.
#[derive(Debug, PartialEq, Eq)]
pub struct Removal {
    datacenter: Option<String>,
    name: String,
    service: Option<String>,
    check: Option<String>,
}

/// What a request has changed.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    name: String,
    gone: Vec<Arc<str>>,
}

impl Addition {
    /// Reads the body of a request.
    pub fn read(text: &str) -> Result<Self, Refused> {
        Self::from_value(&json::read(text).map_err(|fault| Refused::Undecodable(fault.message))?)
    }

    /// Reads a request.
    pub fn from_value(value: &Value) -> Result<Self, Refused> {
        let (mut name, mut address, mut datacenter) = (String::new(), String::new(), None);
        let (mut tagged, mut meta) = (BTreeMap::new(), BTreeMap::new());
        let (mut service, mut checks, mut keeps_node) = (None, Vec::new(), false);
        for (key, value) in fields(value)? {
            match &*key.to_ascii_lowercase() {
                "node" => name = text(key, value)?,
                "address" => address = text(key, value)?,
                "datacenter" => datacenter = Some(text(key, value)?).filter(|name| !name.is_empty()),
                "taggedaddresses" => tagged = texts(value)?,
                "nodemeta" => meta = texts(value)?,
                "service" if value.kind != Kind::Null => service = Some(value),
                "check" if value.kind != Kind::Null => checks.push(value),
                "checks" => checks.extend(list(key, value)?),
                "skipnodeupdate" => keeps_node = flag(key, value)?,
                // A node has an id of ours, and there is one namespace.
                "service" | "check" | "id" | "namespace" | "createindex" | "modifyindex" => {}
                _ => return Err(unknown(key)),
            }
        }
        if name.is_empty() {
            return Err(Refused::Catalog("Must provide node".to_owned()));
        }
        if address.is_empty() && !keeps_node {
            return Err(Refused::Catalog("Must provide address if SkipNodeUpdate is not set".to_owned()));
        }
        let node = if keeps_node { None } else { Some(read_node(&name, &address, tagged, meta)?) };
        let service = service.map(|value| read_placed_service(&name, value)).transpose()?;
        let checks = checks.into_iter().map(|value| read_check(&name, value)).collect::<Result<_, _>>()?;
        Ok(Self { datacenter, name, node, service, checks })
    }
}

impl Removal {
    /// Reads the body of a request.
    pub fn read(body: &str) -> Result<Self, Refused> {
        let value = json::read(body).map_err(|fault| Refused::Undecodable(fault.message))?;
        let mut removal = Self { datacenter: None, name: String::new(), service: None, check: None };
        for (key, value) in fields(&value)? {
            let given = || text(key, value).map(|text| Some(text).filter(|text| !text.is_empty()));
            match &*key.to_ascii_lowercase() {
                "node" => removal.name = given()?.unwrap_or_default(),
                "datacenter" => removal.datacenter = given()?,
                "serviceid" => removal.service = given()?,
                "checkid" => removal.check = given()?,
                "address" | "namespace" => {}
                _ => return Err(unknown(key)),
            }
        }
        if removal.name.is_empty() {
            return Err(Refused::Catalog("Must provide node".to_owned()));
        }
        Ok(removal)
    }
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
        let added =
            size(&new.node) + size(&new.service) + new.checks.iter().map(|check| check.request.len()).sum::<usize>();
        let replaced = entry.map_or(0, |entry| {
            let service = service_id.and_then(|id| entry.services.get(id)).map_or(0, |known| known.request.len());
            let checks = new.checks.iter().filter_map(|check| entry.checks.get(&check.read.check.id));
            let node = if new.node.is_some() { size(&entry.node) } else { 0 };
            node + service + checks.map(|known| known.request.len()).sum::<usize>()
        });
        if added > replaced.saturating_add(room) {
            return Err(Refused::Full);
        }
        let entry = self.nodes.entry(name.clone()).or_default();
        let before = entry.bytes();
        if new.node.is_some() {
            entry.node = new.node;
        }
        entry.services.extend(new.service.map(|service| (service.read.0.id.clone(), service)));
        entry.checks.extend(new.checks.into_iter().map(|check| (check.read.check.id.clone(), check)));
        self.bytes = self.bytes + entry.bytes() - before;
        Ok(Changed { name, gone: Vec::new() })
    }

    /// Takes out a check, a service with its checks, or a node with all that is on it. What is not there is no harm.
    pub fn remove(&mut self, removal: &Removal, own_datacenter: &str) -> Result<Option<Changed>, Refused> {
        check_datacenter(removal.datacenter.as_deref(), own_datacenter)?;
        let name = removal.name.to_lowercase();
        let Some(entry) = self.nodes.get_mut(&name) else { return Ok(None) };
        let before = entry.bytes();
        let mut gone = Vec::new();
        // Of a service and a check, Consul takes out the service.
        match (&removal.service, &removal.check) {
            (Some(id), _) => {
                gone.extend(entry.services.remove_entry(&**id).map(|(id, _)| id));
                entry.checks.retain(|_, check| check.read.service_id.as_deref() != Some(id));
            }
            (None, Some(id)) => drop(entry.checks.remove(&**id)),
            (None, None) => gone.extend(std::mem::take(entry).services.into_keys()),
        }
        let after = entry.bytes();
        if after == 0 {
            self.nodes.remove(&name);
        }
        self.bytes = self.bytes + after - before;
        Ok(Some(Changed { name, gone }))
    }

    /// What all requests take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All that is registered, for the catalog.
    pub fn set(&self, datacenter: &str) -> Set {
        let mut set = Set::default();
        for (name, entry) in &self.nodes {
            let key = NodeKey::new(datacenter, name);
            set.nodes.extend(entry.node(datacenter));
            set.instances.extend(entry.instances(&key));
        }
        set
    }

    /// What a request has changed, for the catalog: a part of what is known, and the node, if it is gone.
    pub fn part(&self, changed: Changed, datacenter: &str) -> (Part, Option<NodeKey>) {
        let key = NodeKey::new(datacenter, &changed.name);
        let gone = changed.gone.into_iter().map(|id| InstanceKey { node: key.clone(), id });
        let mut part = Part { gone: gone.collect(), ..Part::default() };
        let node = self.nodes.get(&changed.name).and_then(|entry| {
            part.instances = entry.instances(&key);
            entry.node(datacenter)
        });
        let is_gone = node.is_none();
        part.nodes.extend(node);
        (part, is_gone.then_some(key))
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
    fn bytes(&self) -> usize {
        let services: usize = self.services.values().map(|service| service.request.len()).sum();
        size(&self.node) + services + self.checks.values().map(|check| check.request.len()).sum::<usize>()
    }

    fn checks_of(&self, service_id: Option<&Arc<str>>) -> Vec<Check> {
        let checks = self.checks.values().filter(|check| check.read.service_id.as_ref() == service_id);
        checks.map(|check| check.read.check.clone()).collect()
    }

    fn node(&self, datacenter: &str) -> Option<Arc<Node>> {
        let NewNode { name, address, tagged, meta } = &self.node.as_ref()?.read;
        let node = Node {
            name: name.clone(),
            datacenter: datacenter.into(),
            address: address.clone(),
            tagged: tagged.clone(),
            meta: meta.clone(),
            checks: self.checks_of(None),
        };
        Some(node.into())
    }

    fn instances(&self, key: &NodeKey) -> Vec<Arc<Instance>> {
        let instance = |service: &Written<NewService>| {
            let registration = Registration { node: key.clone(), ..service.read.0.clone() };
            Arc::new(Instance { checks: self.checks_of(Some(&registration.id)), registration: registration.into() })
        };
        self.services.values().map(instance).collect()
    }
}

impl<T> Written<T> {
    fn new(read: T, request: &Json) -> Self {
        Self { read, request: request.to_string().into() }
    }
}

fn size<T>(written: &Option<Written<T>>) -> usize {
    written.as_ref().map_or(0, |written| written.request.len())
}

fn read_node(
    name: &str,
    address: &str,
    tagged: BTreeMap<String, String>,
    meta: BTreeMap<String, String>,
) -> Result<Written<NewNode>, Refused> {
    let request = json!({ "Node": name, "Address": address, "TaggedAddresses": tagged, "NodeMeta": meta });
    let bad = |text: &str| Refused::Service(format!("node address {text:?} is neither an address nor a name"));
    let host = |text: &str| read_host(text).ok_or_else(|| bad(text));
    let address = host(address)?;
    if address.ip().is_some_and(|ip: IpAddr| ip.is_unspecified()) {
        return Err(bad("unspecified"));
    }
    let tagged = tagged.into_iter().map(|(tag, address)| Ok((tag, Tagged { address: host(&address)?, port: 0 })));
    let tagged = tagged.collect::<Result<_, Refused>>()?;
    Ok(Written::new(NewNode { name: name.into(), address, tagged, meta }, &request))
}

/// The keys of a service are here what they are in a definition, but for its name.
fn read_placed_service(node: &str, value: &Value) -> Result<Written<NewService>, Refused> {
    let mut definition = Vec::new();
    let (mut has_name, mut has_id) = (false, false);
    for (key, value) in fields(value)? {
        let is_given = !matches!(&value.kind, Kind::Null) && value.kind != Kind::Text(String::new());
        match &*key.to_ascii_lowercase() {
            "service" => {
                has_name = is_given;
                definition.push(("Name".to_owned(), value.clone()));
            }
            "id" => {
                has_id = is_given;
                definition.push((key.clone(), value.clone()));
            }
            known if SERVICE_KEYS.contains(&known) => definition.push((key.clone(), value.clone())),
            "locallyregisteredassidecar" | "createindex" | "modifyindex" => {}
            _ => return Err(unknown(key)),
        }
    }
    if !has_name {
        let text = match has_id {
            true => "Must provide service name with ID",
            false => "failed inserting service: failed inserting service: object missing primary index",
        };
        return Err(Refused::Catalog(text.to_owned()));
    }
    let request = json!({ "Node": node, "SkipNodeUpdate": true, "Service": to_json(value) });
    let definition = Value::new(value.line, Kind::Table(definition));
    let registration = read_service(&definition, NodeKey::new("", node))?;
    if registration.address.as_ref().and_then(Host::ip).is_some_and(|ip| ip.is_unspecified()) {
        return Err(Refused::Catalog("Invalid service address".to_owned()));
    }
    Ok(Written::new(NewService(registration), &request))
}

fn read_check(node: &str, value: &Value) -> Result<Written<NewCheck>, Refused> {
    let (mut id, mut name, mut notes, mut output) = Default::default();
    let (mut status, mut service, mut kind) = (String::new(), String::new(), String::new());
    let mut of_definition = "";
    for (key, value) in fields(value)? {
        match &*key.to_ascii_lowercase() {
            "checkid" => id = text(key, value)?,
            "name" => name = text(key, value)?,
            "notes" => notes = text(key, value)?,
            "output" => output = text(key, value)?,
            "status" => status = text(key, value)?,
            "serviceid" => service = text(key, value)?,
            "type" => kind = text(key, value)?,
            "node" => {
                let other = text(key, value)?;
                if !other.is_empty() && other != node {
                    let text = format!("check node {other:?} does not match node {node:?}");
                    return Err(Refused::Catalog(text));
                }
            }
            "definition" if value.kind != Kind::Null => {
                of_definition = type_of(value);
            }
            "definition" | "servicename" | "servicetags" | "namespace" | "createindex" | "modifyindex" => {}
            _ => return Err(unknown(key)),
        }
    }
    let id: String = if id.is_empty() { String::clone(&name) } else { id };
    if id.is_empty() {
        let text = "failed inserting check: failed inserting check: object missing primary index on node";
        return Err(Refused::Catalog(format!("{text} {node:?}")));
    }
    let known = if status.is_empty() { Some(Status::Critical) } else { Status::from_word(&status) };
    let status =
        known.ok_or_else(|| Refused::Check(format!("status {status:?} is none; use passing, warning or critical")))?;
    let request = json!({ "Node": node, "SkipNodeUpdate": true, "Check": to_json(value) });
    let check = Check {
        id: id.into(),
        name: name.into(),
        notes: notes.into(),
        kind: if kind.is_empty() { of_definition.into() } else { kind.into() },
        status,
        output: output.into(),
    };
    let service_id = Some(service).filter(|id| !id.is_empty()).map(Into::into);
    Ok(Written::new(NewCheck { service_id, check }, &request))
}

/// Consul's word for what a definition has tried: nothing without an interval.
fn type_of(definition: &Value) -> &'static str {
    let given = |wanted: &str| {
        let mut keys = definition.table().unwrap_or_default().iter();
        keys.find_map(|(key, value)| match &value.kind {
            Kind::Text(text) if key.eq_ignore_ascii_case(wanted) && !text.is_empty() => Some(text.as_str()),
            _ => None,
        })
    };
    let interval = given("interval").and_then(GoDuration::parse);
    match (interval.filter(|GoDuration(interval)| !interval.is_zero()), given("http"), given("tcp")) {
        (Some(_), Some(_), _) => "http",
        (Some(_), None, Some(_)) => "tcp",
        _ => "",
    }
}

fn check_datacenter(asked: Option<&str>, own: &str) -> Result<(), Refused> {
    match asked {
        Some(asked) if !asked.eq_ignore_ascii_case(own) => Err(Refused::Catalog("No path to datacenter".to_owned())),
        _ => Ok(()),
    }
}

fn fields(value: &Value) -> Result<&[(String, Value)], Refused> {
    match &value.kind {
        Kind::Table(fields) => Ok(fields),
        _ => Err(Refused::Undecodable("it is no object where one is expected".to_owned())),
    }
}

fn list<'v>(key: &str, value: &'v Value) -> Result<&'v [Value], Refused> {
    match &value.kind {
        Kind::List(items) => Ok(items),
        Kind::Null => Ok(&[]),
        _ => Err(mistyped(key, "a list")),
    }
}

fn text(key: &str, value: &Value) -> Result<String, Refused> {
    match &value.kind {
        Kind::Text(text) => Ok(text.clone()),
        Kind::Null => Ok(String::new()),
        _ => Err(mistyped(key, "a string")),
    }
}

fn flag(key: &str, value: &Value) -> Result<bool, Refused> {
    match &value.kind {
        Kind::Flag(flag) => Ok(*flag),
        Kind::Null => Ok(false),
        _ => Err(mistyped(key, "true or false")),
    }
}

fn texts(value: &Value) -> Result<BTreeMap<String, String>, Refused> {
    if value.kind == Kind::Null {
        return Ok(BTreeMap::new());
    }
    fields(value)?.iter().map(|(key, value)| Ok((key.clone(), text(key, value)?))).collect()
}

fn mistyped(key: &str, expected: &str) -> Refused {
    Refused::Undecodable(format!("{key} is not {expected}"))
}

fn unknown(key: &str) -> Refused {
    Refused::Undecodable(format!("json: unknown field {key:?}"))
}

/// Keys of a service that mean here what they mean in a definition, in lower case.
const SERVICE_KEYS: [&str; 11] = [
    "kind",
    "tags",
    "address",
    "taggedaddresses",
    "meta",
    "port",
    "weights",
    "enabletagoverride",
    "proxy",
    "connect",
    "namespace",
];

#[cfg(test)]
#[path = "external_tests.rs"]
mod tests;
