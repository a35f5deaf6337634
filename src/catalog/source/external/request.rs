//! Requests to register something of an external node, and to take something out.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use serde_json::{Value as Json, json};

use super::super::{
    definition::read_host,
    json,
    registered::{ENTRY_BYTES, Refused, read_service, to_json},
    value::{Kind, Value},
};
use crate::catalog::{
    check::GoDuration,
    health::Status,
    model::{Check, Host, NodeKey, Registration, Tagged},
};

/// Something and the request that registers it.
#[derive(Debug)]
pub(super) struct Written<T> {
    pub(super) read: T,
    pub(super) request: Box<str>,
}

#[derive(Debug)]
pub(super) struct NewNode {
    pub(super) name: Arc<str>,
    pub(super) address: Host,
    pub(super) tagged: BTreeMap<String, Tagged>,
    pub(super) meta: BTreeMap<String, String>,
}

/// A service on any node: its key is made when it is published.
#[derive(Debug)]
pub(super) struct NewService(pub(super) Registration);

#[derive(Debug)]
pub(super) struct NewCheck {
    pub(super) service_id: Option<Arc<str>>,
    pub(super) check: Check,
}

/// A request to register something.
#[derive(Debug)]
pub struct Addition {
    pub(super) datacenter: Option<String>,
    pub(super) name: String,
    pub(super) node: Option<Written<NewNode>>,
    pub(super) service: Option<Written<NewService>>,
    pub(super) checks: Vec<Written<NewCheck>>,
}

/// A request to take something out.
#[derive(Debug, PartialEq, Eq)]
pub struct Removal {
    pub(super) datacenter: Option<String>,
    pub(super) name: String,
    pub(super) service: Option<String>,
    pub(super) check: Option<String>,
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
        Self::from_value(&json::read(body).map_err(|fault| Refused::Undecodable(fault.message))?)
    }

    /// Reads a request.
    pub fn from_value(value: &Value) -> Result<Self, Refused> {
        let mut removal = Self { datacenter: None, name: String::new(), service: None, check: None };
        for (key, value) in fields(value)? {
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

impl<T> Written<T> {
    fn new(read: T, request: &Json) -> Self {
        Self { read, request: request.to_string().into() }
    }

    /// What it counts.
    pub(super) fn bytes(&self) -> usize {
        self.request.len() + ENTRY_BYTES
    }
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
