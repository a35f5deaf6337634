//! What a catalog holds: nodes, the instances of services on them, and their checks.
//!
//! Names of nodes, services, tags and datacenters compare without regard to case, as they do in questions; the keys
//! hold them in lower case, the values as they were registered. Service ids are compared as written.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::health::Status;
use crate::wire::{Name, NameError};

/// A host on which instances run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Node {
    /// As registered.
    pub name: Arc<str>,
    /// As registered.
    pub datacenter: Arc<str>,
    /// Where it is reached.
    pub address: Host,
    /// Its other addresses, by Consul's tags for them.
    pub tagged: BTreeMap<String, Tagged>,
    /// Free keys and values; TXT records show them.
    pub meta: BTreeMap<String, String>,
    /// The checks of the node itself, which count for all its instances.
    pub checks: Vec<Check>,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Instance {
    /// What was registered.
    pub registration: Arc<Registration>,
    /// Its own checks.
    pub checks: Vec<Check>,
}

/// What is registered of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Registration {
    /// Where it runs.
    pub node: NodeKey,
    /// Unique on its node.
    pub id: Arc<str>,
    /// The service, as registered.
    pub service: Arc<str>,
    /// By which questions may select it.
    pub tags: Vec<String>,
    /// Where it is reached; nothing for the address of its node.
    pub address: Option<Host>,
    /// Its port, 0 for none.
    pub port: u16,
    /// Its other addresses, by Consul's tags for them.
    pub tagged: BTreeMap<String, Tagged>,
    /// Free keys and values.
    pub meta: BTreeMap<String, String>,
    /// Its share among the instances.
    pub weights: Weights,
    /// What it is to a service mesh.
    pub role: Role,
}

/// What an instance is to a service mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum Role {
    /// Nothing.
    #[default]
    Plain,
    /// It speaks the mesh's protocol itself.
    Native,
    /// It stands before instances of another service.
    Proxy {
        /// That service.
        destination: String,
    },
    /// It lets others in from outside.
    Ingress {
        /// The services that are bound to it.
        services: Vec<String>,
    },
}

/// The weight of an instance in SRV records, by its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub struct Weights {
    /// While all its checks pass.
    pub passing: u16,
    /// While one warns.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// A further address of a node or an instance.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Tagged {
    /// The address.
    pub address: Host,
    /// The port there; answers do not use it.
    pub port: u16,
}

/// A check and its last outcome.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Check {
    /// Unique on its node.
    pub id: Arc<str>,
    /// For people.
    pub name: Arc<str>,
    /// For people.
    pub notes: Arc<str>,
    /// Consul's word for how it is found out, the `Type` of its API; empty if nobody has said.
    pub kind: Arc<str>,
    /// The outcome.
    pub status: Status,
    /// What it said.
    pub output: Arc<str>,
}

/// Where something is reached: by an address, or by a name that leads to one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address; one of IPv4 in the clothes of IPv6 is one of IPv4.
    Ip(IpAddr),
    /// A name.
    Name(Name),
}

impl FromStr for Host {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self::Ip(address.to_canonical())),
            Err(_) => text.parse().map(Self::Name),
        }
    }
}

/// Saved in the form in which it is written.
impl Serialize for Host {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Ip(ip) => serializer.collect_str(ip),
            Self::Name(name) => serializer.collect_str(name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for Host {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Host {
    /// The address, if it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Name(_) => None,
        }
    }
}

/// By what a node is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct NodeKey {
    datacenter: Arc<str>,
    name: Arc<str>,
}

/// By what an instance is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct InstanceKey {
    /// Its node.
    pub node: NodeKey,
    /// Its id.
    pub id: Arc<str>,
}

/// By what a set of instances is known that one question finds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub struct ServiceKey {
    kind: Kind,
    datacenter: Arc<str>,
    name: Arc<str>,
}

/// In what respect instances belong to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
pub enum Kind {
    /// They are the service.
    Service,
    /// They lead to it through the mesh.
    Connect,
    /// They lead to it from outside the mesh.
    Ingress,
    /// A prepared query of this name finds them.
    Query,
    /// Not instances, but the node of this name: so one of another datacenter is asked for.
    Node,
}

impl NodeKey {
    /// The key of a node, whatever the case of its names.
    pub fn new(datacenter: &str, name: &str) -> Self {
        Self { datacenter: datacenter.to_lowercase().into(), name: name.to_lowercase().into() }
    }

    /// The datacenter, in lower case.
    pub fn datacenter(&self) -> &Arc<str> {
        &self.datacenter
    }

    /// The name, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl ServiceKey {
    /// The key of a service, whatever the case of its names.
    pub fn new(kind: Kind, datacenter: &str, name: &str) -> Self {
        Self { kind, datacenter: datacenter.to_lowercase().into(), name: name.to_lowercase().into() }
    }

    /// In what respect.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The name of the service, in lower case.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The datacenter, in lower case.
    pub fn datacenter(&self) -> &str {
        &self.datacenter
    }
}

impl Node {
    /// By what it is known.
    pub fn key(&self) -> NodeKey {
        NodeKey::new(&self.datacenter, &self.name)
    }

    /// The worst of its checks.
    pub fn status(&self) -> Status {
        worst(&self.checks)
    }

    /// Whether no answer would tell the two apart.
    pub(super) fn answers_like(&self, other: &Self) -> bool {
        (&self.name, &self.datacenter, &self.address) == (&other.name, &other.datacenter, &other.address)
            && (&self.tagged, &self.meta) == (&other.tagged, &other.meta)
            && outcomes(&self.checks).eq(outcomes(&other.checks))
    }
}

impl Instance {
    /// By what it is known.
    pub fn key(&self) -> InstanceKey {
        InstanceKey { node: self.registration.node.clone(), id: self.registration.id.clone() }
    }

    /// The worst of its own checks.
    pub fn status(&self) -> Status {
        worst(&self.checks)
    }

    /// The keys under which questions find it.
    pub(super) fn service_keys(&self) -> Vec<ServiceKey> {
        let registration = &*self.registration;
        let key = |kind, name: &str| ServiceKey {
            kind,
            datacenter: registration.node.datacenter.clone(),
            name: name.to_lowercase().into(),
        };
        let mut keys = vec![key(Kind::Service, &registration.service)];
        match &registration.role {
            Role::Plain => {}
            Role::Native => keys.push(key(Kind::Connect, &registration.service)),
            Role::Proxy { destination } => keys.push(key(Kind::Connect, destination)),
            Role::Ingress { services } => keys.extend(services.iter().map(|service| key(Kind::Ingress, service))),
        }
        keys
    }

    /// Whether no answer would tell the two apart.
    pub(super) fn answers_like(&self, other: &Self) -> bool {
        self.registration == other.registration && outcomes(&self.checks).eq(outcomes(&other.checks))
    }
}

impl Check {
    /// Whether it is told its results and finds out nothing by itself.
    pub fn is_ttl(&self) -> bool {
        &*self.kind == "ttl"
    }

    /// Whether an operator has set it to take the node or instance out of service.
    pub fn is_maintenance(&self) -> bool {
        self.id.starts_with("_node_maintenance") || self.id.starts_with("_service_maintenance")
    }
}

fn worst(checks: &[Check]) -> Status {
    checks.iter().map(|check| check.status).max().unwrap_or(Status::Passing)
}

fn outcomes(checks: &[Check]) -> impl Iterator<Item = (&str, Status)> {
    checks.iter().map(|check| (&*check.id, check.status))
}
