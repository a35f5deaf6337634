//! What Consul's HTTP API says, read into the terms of the catalog.
//!
//! Consul writes `null` for what is empty, and newer versions add keys: both are taken as they come. An instance without
//! the keys that all have is none of Consul's, and nothing of such a response is believed; but one with an address that is
//! none is left out alone.

use std::{collections::BTreeMap, fmt, io};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{SeqAccess, Visitor},
};
use serde_json::de::{IoRead, Read, SliceRead};

use super::{Config, Fault};
use crate::catalog::{
    check::GoDuration,
    health::Status,
    model::{Check, Host, Kind, Node, NodeKey, Registration, Role, ServiceKey, Tagged, Weights},
};

/// What is asked of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum What {
    /// Who it is.
    Agent,
    /// Whether there is a leader; also whether anybody is there.
    Leader,
    /// The datacenters it knows.
    Datacenters,
    /// The names of all services of its own datacenter.
    Services,
    /// All nodes there.
    Nodes,
    /// The instances that a name finds, or a node.
    Members(ServiceKey),
}

/// What it says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Reply {
    Agent(Introduction),
    Leader(bool),
    Datacenters(Vec<String>),
    Services(Vec<String>),
    Nodes(Vec<Known>),
    Members(Vec<Entry>),
    /// Nothing if there is no such node, or query.
    Node(Option<Known>),
    Query(Option<Execution>),
}

/// A response: what it says, and as of which index.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Response {
    pub reply: Reply,
    pub index: u64,
}

/// Who an agent is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
pub struct Introduction {
    /// Its datacenter.
    pub datacenter: String,
    /// Its node.
    pub node_name: String,
    /// The domain of its DNS, if it says so.
    pub domain: String,
}

/// A node without its checks, and the index of its last change.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Known {
    pub node: Node,
    pub modified: u64,
}

/// An instance, its node and the checks of both.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub node: Known,
    pub node_checks: Vec<Check>,
    pub registration: Registration,
    pub checks: Vec<Check>,
}

/// What a prepared query has found.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Execution {
    pub service: String,
    pub ttl: Option<u32>,
    /// The best first.
    pub entries: Vec<Entry>,
}

impl What {
    /// The path to ask for; `after` is the index that the response has to exceed.
    pub fn path(&self, config: &Config, after: Option<u64>) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NOT_PLAIN).to_string();
        let (path, datacenter) = match self {
            Self::Agent => return "/v1/agent/self".to_owned(),
            Self::Leader => return "/v1/status/leader".to_owned(),
            Self::Datacenters => return "/v1/catalog/datacenters".to_owned(),
            Self::Services => ("/v1/catalog/services".to_owned(), None),
            Self::Nodes => ("/v1/catalog/nodes".to_owned(), None),
            Self::Members(key) => {
                let name = encode(key.name());
                let path = match key.kind() {
                    Kind::Service => format!("/v1/health/service/{name}"),
                    Kind::Connect => format!("/v1/health/connect/{name}"),
                    Kind::Ingress => format!("/v1/health/ingress/{name}"),
                    Kind::Query => format!("/v1/query/{name}/execute"),
                    Kind::Node => format!("/v1/catalog/node/{name}"),
                };
                (path, Some(key.datacenter()))
            }
        };
        let mut parameters = Vec::new();
        parameters.extend(config.stale.then(|| "stale".to_owned()));
        parameters.extend(datacenter.map(|name| format!("dc={}", encode(name))));
        parameters.extend(config.namespace.as_ref().map(|name| format!("ns={}", encode(name))));
        parameters.extend(config.partition.as_ref().map(|name| format!("partition={}", encode(name))));
        parameters.extend(after.map(|index| format!("index={index}&wait={}s", config.wait.as_secs())));
        if parameters.is_empty() { path } else { format!("{path}?{}", parameters.join("&")) }
    }

    /// Within how many brackets the elements of the list lie that a response is.
    pub fn list_depth(&self) -> u32 {
        match self {
            Self::Members(key) if key.kind() == Kind::Query => 2,
            _ => 1,
        }
    }

    /// Reads the body of a response of success.
    pub fn read(&self, body: &[u8]) -> Result<Reply, Fault> {
        self.read_json(SliceRead::new(body))
    }

    /// Reads the body of a response of success as it comes.
    pub fn read_stream(&self, body: impl io::Read) -> Result<Reply, Fault> {
        self.read_json(IoRead::new(body))
    }

    fn read_json<'de>(&self, body: impl Read<'de>) -> Result<Reply, Fault> {
        Ok(match self {
            Self::Agent => {
                let agent: AgentShape = parse(body)?;
                if agent.config.datacenter.is_empty() {
                    return Err(Fault::Json("no datacenter".to_owned()));
                }
                Reply::Agent(Introduction {
                    datacenter: agent.config.datacenter,
                    node_name: agent.config.node_name,
                    domain: agent.debug_config.domain,
                })
            }
            Self::Leader => Reply::Leader(!parse::<String>(body)?.is_empty()),
            Self::Datacenters => Reply::Datacenters(parse(body)?),
            // Their tags are not wanted, and cost nothing if nobody reads them.
            Self::Services => {
                let services: BTreeMap<String, serde::de::IgnoredAny> = parse(body)?;
                Reply::Services(services.into_keys().collect())
            }
            Self::Nodes => {
                let nodes: Vec<NodeShape> = parse(body)?;
                Reply::Nodes(nodes.into_iter().filter_map(NodeShape::node).collect())
            }
            Self::Members(key) if key.kind() == Kind::Node => {
                let found: Option<NodeServices> = parse(body)?;
                Reply::Node(found.and_then(|found| found.node.node()))
            }
            Self::Members(key) if key.kind() == Kind::Query => {
                let found: ExecutionShape = parse(body)?;
                Reply::Query(Some(Execution {
                    ttl: GoDuration::parse(&found.dns.ttl).map(|ttl| ttl.0.as_secs().min(MAX_TTL) as u32),
                    service: found.service,
                    entries: found.nodes.0,
                }))
            }
            Self::Members(_) => {
                let entries: Entries = parse(body)?;
                Reply::Members(entries.0)
            }
        })
    }

    /// What an error of the agent's says: that there is no such thing, if it is that.
    pub fn read_denial(&self, status: u16, body: &[u8]) -> Option<Reply> {
        let Self::Members(key) = self else { return None };
        let text = String::from_utf8_lossy(body);
        match key.kind() {
            Kind::Query if status == 404 || text.contains("Query not found") => Some(Reply::Query(None)),
            Kind::Node if status == 404 => Some(Reply::Node(None)),
            Kind::Service | Kind::Connect | Kind::Ingress if status == 404 => Some(Reply::Members(Vec::new())),
            _ => None,
        }
    }
}

fn parse<'de, T: Deserialize<'de>>(body: impl Read<'de>) -> Result<T, Fault> {
    let mut json = serde_json::Deserializer::new(body);
    let parsed = T::deserialize(&mut json).and_then(|parsed| json.end().map(|()| parsed));
    parsed.map_err(|error| Fault::Json(error.to_string()))
}

/// Entries, each brought into its final form as it comes: a list of all as they were written would take as much memory again.
#[derive(Default)]
struct Entries(Vec<Entry>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;
        impl<'de> Visitor<'de> for Each {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of instances")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut shapes: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(shape) = shapes.next_element::<EntryShape>()? {
                    entries.extend(shape.entry());
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_seq(Each)
    }
}

/// Takes `null` for what is empty.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct AgentShape {
    config: AgentConfig,
    #[serde(deserialize_with = "nullable")]
    debug_config: DebugConfig,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct AgentConfig {
    datacenter: String,
    node_name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DebugConfig {
    #[serde(rename = "DNSDomain", deserialize_with = "nullable")]
    domain: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeServices {
    node: NodeShape,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NodeShape {
    node: String,
    #[serde(default, deserialize_with = "nullable")]
    address: String,
    #[serde(default, deserialize_with = "nullable")]
    datacenter: String,
    #[serde(default, deserialize_with = "nullable")]
    tagged_addresses: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    meta: BTreeMap<String, String>,
    #[serde(default)]
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryShape {
    node: NodeShape,
    service: ServiceShape,
    #[serde(default, deserialize_with = "nullable")]
    checks: Vec<CheckShape>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceShape {
    #[serde(rename = "ID")]
    id: String,
    service: String,
    #[serde(default, deserialize_with = "nullable")]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    address: String,
    #[serde(default, deserialize_with = "nullable")]
    port: i64,
    #[serde(default, deserialize_with = "nullable")]
    tagged_addresses: BTreeMap<String, TaggedShape>,
    #[serde(default, deserialize_with = "nullable")]
    meta: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "nullable")]
    weights: Option<WeightsShape>,
    #[serde(default, deserialize_with = "nullable")]
    kind: String,
    #[serde(default, deserialize_with = "nullable")]
    proxy: ProxyShape,
    #[serde(default, deserialize_with = "nullable")]
    connect: ConnectShape,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct TaggedShape {
    address: String,
    port: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct WeightsShape {
    passing: i64,
    warning: i64,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ProxyShape {
    #[serde(deserialize_with = "nullable")]
    destination_service_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct ConnectShape {
    #[serde(deserialize_with = "nullable")]
    native: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CheckShape {
    #[serde(rename = "CheckID")]
    id: String,
    name: String,
    status: String,
    #[serde(default, deserialize_with = "nullable")]
    notes: String,
    #[serde(default, deserialize_with = "nullable")]
    output: String,
    #[serde(rename = "Type", default, deserialize_with = "nullable")]
    kind: String,
    #[serde(rename = "ServiceID", default, deserialize_with = "nullable")]
    service_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ExecutionShape {
    service: String,
    #[serde(default, deserialize_with = "nullable")]
    nodes: Entries,
    #[serde(rename = "DNS", default, deserialize_with = "nullable")]
    dns: DnsShape,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DnsShape {
    #[serde(rename = "TTL", deserialize_with = "nullable")]
    ttl: String,
}

impl NodeShape {
    fn node(self) -> Option<Known> {
        let tagged = self.tagged_addresses.into_iter();
        let tagged = tagged.filter_map(|(tag, text)| Some((tag, Tagged { address: host(&text)?, port: 0 })));
        let node = Node {
            name: self.node.into(),
            datacenter: self.datacenter.into(),
            address: host(&self.address)?,
            tagged: tagged.collect(),
            meta: self.meta,
            checks: Vec::new(),
        };
        Some(Known { node, modified: self.modify_index }).filter(|known| !known.node.name.is_empty())
    }
}

impl EntryShape {
    fn entry(self) -> Option<Entry> {
        let node = self.node.node()?;
        let service = self.service;
        if service.service.is_empty() {
            return None;
        }
        let address = match &*service.address {
            "" => None,
            // An instance that is somewhere else than we can tell is not at its node.
            text => Some(host(text)?),
        };
        let role = match &*service.kind {
            "connect-proxy" => Role::Proxy { destination: service.proxy.destination_service_name },
            "ingress-gateway" => Role::Ingress { services: Vec::new() },
            _ if service.connect.native => Role::Native,
            _ => Role::Plain,
        };
        let tagged = service.tagged_addresses.into_iter().filter_map(|(tag, tagged)| {
            Some((tag, Tagged { address: host(&tagged.address)?, port: clamp(tagged.port) }))
        });
        let (of_node, of_service): (Vec<_>, Vec<_>) =
            self.checks.into_iter().partition(|check| check.service_id.is_empty());
        let checks = |shapes: Vec<CheckShape>| shapes.into_iter().map(CheckShape::check).collect();
        let weights =
            service.weights.map(|weights| Weights { passing: clamp(weights.passing), warning: clamp(weights.warning) });
        Some(Entry {
            registration: Registration {
                node: NodeKey::new(&node.node.datacenter, &node.node.name),
                id: if service.id.is_empty() { service.service.as_str() } else { &service.id }.into(),
                service: service.service.into(),
                tags: service.tags,
                address,
                port: clamp(service.port),
                tagged: tagged.collect(),
                meta: service.meta,
                weights: weights.unwrap_or_default(),
                role,
            },
            node,
            node_checks: checks(of_node),
            checks: checks(of_service),
        })
    }
}

impl CheckShape {
    fn check(self) -> Check {
        let mut output = self.output;
        if output.len() > MAX_OUTPUT_BYTES {
            let end = (0..=MAX_OUTPUT_BYTES).rev().find(|end| output.is_char_boundary(*end)).unwrap_or(0);
            output.truncate(end);
        }
        Check {
            id: self.id.into(),
            name: self.name.into(),
            notes: self.notes.into(),
            kind: self.kind.into(),
            // What we do not understand is not to be taken for health.
            status: Status::from_word(&self.status).unwrap_or(Status::Critical),
            output: output.into(),
        }
    }
}

fn host(text: &str) -> Option<Host> {
    if text.is_empty() { None } else { text.parse().ok() }
}

fn clamp(number: i64) -> u16 {
    number.clamp(0, i64::from(u16::MAX)) as u16
}

/// What may stand in a path or parameter as it is.
const NOT_PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// RFC 2181 §8
const MAX_TTL: u64 = i32::MAX as u64;
/// As much as is kept of the output of our own checks.
const MAX_OUTPUT_BYTES: usize = 4096;

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
