//! The catalog in the shapes of Consul's API.
//!
//! What Consul knows and our catalog does not is as Consul shows it where it is not used: no `EnableTagOverride`, an
//! empty `Definition`. The index of a thing is that of its service or node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::http::StatusCode;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Asked, Refusal, Served};
use crate::catalog::{
    Check, Host, Instance, Kind, Node, NodeKey, Role, ServiceKey, Slot, Snapshot, Tagged, Weights, health::Status,
};

/// The catalog at one moment, as one request sees it.
pub(super) struct View<'a> {
    served: &'a Served,
    snapshot: &'a Snapshot,
    asked: &'a Asked,
    datacenter: &'a str,
}

/// A node.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeView<'a> {
    #[serde(rename = "ID")]
    id: String,
    node: &'a str,
    address: String,
    datacenter: &'a str,
    tagged_addresses: Option<BTreeMap<&'a str, String>>,
    meta: Option<&'a BTreeMap<String, String>>,
    create_index: u64,
    modify_index: u64,
}

/// An instance together with its node, as `/v1/catalog/service` shows it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PlacedView<'a> {
    #[serde(rename = "ID")]
    id: String,
    node: &'a str,
    address: String,
    datacenter: &'a str,
    tagged_addresses: Option<BTreeMap<&'a str, String>>,
    node_meta: Option<&'a BTreeMap<String, String>>,
    service_kind: &'static str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [String],
    service_address: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_tagged_addresses: BTreeMap<&'a str, AddressView>,
    service_weights: WeightsView,
    service_meta: &'a BTreeMap<String, String>,
    service_port: u16,
    service_enable_tag_override: bool,
    service_proxy: ProxyView<'a>,
    service_connect: ConnectView,
    create_index: u64,
    modify_index: u64,
}

/// An instance.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: &'static str,
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    tags: &'a [String],
    address: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: BTreeMap<&'a str, AddressView>,
    meta: Option<&'a BTreeMap<String, String>>,
    port: u16,
    weights: WeightsView,
    enable_tag_override: bool,
    proxy: ProxyView<'a>,
    connect: ConnectView,
    create_index: u64,
    modify_index: u64,
}

/// An instance, as an agent shows its own.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AgentServiceView<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    kind: &'static str,
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    tags: &'a [String],
    meta: &'a BTreeMap<String, String>,
    port: u16,
    address: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tagged_addresses: BTreeMap<&'a str, AddressView>,
    weights: WeightsView,
    enable_tag_override: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy: Option<ProxyView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect: Option<ConnectView>,
    /// Where it is shown alone: what whoever waits for another knows it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_hash: Option<String>,
}

/// A check.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CheckView<'a> {
    node: &'a str,
    #[serde(rename = "CheckID")]
    id: &'a str,
    name: &'a str,
    status: Status,
    notes: &'a str,
    output: &'a str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [String],
    #[serde(rename = "Type")]
    kind: &'a str,
    definition: Nothing,
    create_index: u64,
    modify_index: u64,
}

/// An instance with its node and all checks that count for it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct HealthView<'a> {
    node: Option<NodeView<'a>>,
    service: ServiceView<'a>,
    checks: Vec<CheckView<'a>>,
}

/// An instance of our own node with its health, as an agent tells it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AgentHealthView<'a> {
    #[serde(rename = "AggregatedStatus")]
    word: &'static str,
    service: Option<AgentServiceView<'a>>,
    checks: Option<Vec<AgentCheckView<'a>>>,
}

/// A check as an agent shows it beside the health of a service: much of it is left empty there.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AgentCheckView<'a> {
    node: &'a str,
    #[serde(rename = "CheckID")]
    id: &'a str,
    name: &'a str,
    status: Status,
    notes: &'a str,
    output: &'a str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    /// Nothing where there are none.
    service_tags: Option<&'a [String]>,
    #[serde(rename = "Type")]
    kind: &'a str,
    definition: EmptyDefinition,
    create_index: u64,
    modify_index: u64,
}

/// A definition that says nothing, with the keys that Consul writes all the same.
#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EmptyDefinition {
    interval: NoTime,
    timeout: NoTime,
    deregister_critical_service_after: NoTime,
    #[serde(rename = "HTTP")]
    http: &'static str,
    header: Option<()>,
    method: &'static str,
    body: &'static str,
    #[serde(rename = "TLSSkipVerify")]
    tls_skip_verify: bool,
    #[serde(rename = "TCP")]
    tcp: &'static str,
}

/// No time at all, as Go writes it.
#[derive(Default)]
struct NoTime;

/// A node with what runs on it, by id.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeServicesView<'a> {
    node: NodeView<'a>,
    services: BTreeMap<&'a str, ServiceView<'a>>,
}

/// A node with what runs on it, as a list.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NodeServiceListView<'a> {
    node: Option<NodeView<'a>>,
    services: Option<Vec<ServiceView<'a>>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AddressView {
    address: String,
    port: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct WeightsView {
    passing: u16,
    warning: u16,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ProxyView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_service_name: Option<&'a str>,
    mesh_gateway: Nothing,
    expose: Nothing,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConnectView {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    native: bool,
}

/// An object without a field.
#[derive(Serialize)]
struct Nothing {}

impl<'a> View<'a> {
    /// Of the datacenter that is asked for, if the catalog knows anything of that.
    pub fn new(served: &'a Served, snapshot: &'a Snapshot, asked: &'a Asked) -> Result<Self, Refusal> {
        let own = snapshot.settings().datacenter();
        let datacenter = asked.datacenter.as_deref().unwrap_or(own);
        if datacenter != own && !snapshot.nodes().any(|(key, _)| **key.datacenter() == *datacenter) {
            return Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, "No path to datacenter".to_owned()));
        }
        Ok(Self { served, snapshot, asked, datacenter })
    }

    /// By what a service of the datacenter is known.
    pub fn service_key(&self, kind: Kind, name: &str) -> ServiceKey {
        ServiceKey::new(kind, self.datacenter, name)
    }

    /// Our own first, then the others by name.
    pub fn datacenters(&self) -> Vec<&'a str> {
        let own = self.snapshot.settings().datacenter();
        let all: BTreeSet<&str> = self.snapshot.nodes().map(|(key, _)| &**key.datacenter()).collect();
        [own].into_iter().chain(all.into_iter().filter(|datacenter| *datacenter != own)).collect()
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<NodeView<'a>> {
        let mut nodes: Vec<_> = self.present_nodes().collect();
        nodes.sort_unstable_by_key(|(key, _)| *key);
        nodes.into_iter().map(|(key, node)| self.node(key, node)).collect()
    }

    /// The names of all services, each with all tags that its instances have.
    pub fn services(&self) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let mut services = BTreeMap::<_, BTreeSet<&str>>::new();
        for (_, service) in self.present_services() {
            let mut present = service.instances.iter().filter(|instance| self.is_on_wanted_node(instance)).peekable();
            if present.peek().is_some() {
                let tags = present.flat_map(|instance| &instance.registration.tags).map(String::as_str);
                services.entry(service.name()).or_default().extend(tags);
            }
        }
        services
    }

    /// The instances of a service.
    pub fn instances(&self, key: &ServiceKey) -> Vec<PlacedView<'a>> {
        self.wanted(key).map(|instance| self.placed(instance)).collect()
    }

    /// The instances of a service with their checks: all, or those that are passing.
    pub fn health(&self, key: &ServiceKey, passing: bool) -> Vec<HealthView<'a>> {
        let is_wanted = |instance: &&Instance| !passing || self.snapshot.status(instance) == Status::Passing;
        let health = |instance: &'a Instance| {
            let key = &instance.registration.node;
            let node = self.snapshot.node(key);
            let of_node = node.into_iter().flat_map(|node| self.checks_of_node(key, node));
            let checks = of_node.chain(self.checks_of(instance)).collect();
            HealthView { node: node.map(|node| self.node(key, node)), service: self.service(instance), checks }
        };
        self.wanted(key).filter(is_wanted).map(health).collect()
    }

    /// The checks of a service's instances.
    pub fn service_checks(&self, key: &ServiceKey) -> Vec<CheckView<'a>> {
        self.wanted(key).flat_map(|instance| self.checks_of(instance)).collect()
    }

    /// The checks of a node and of what runs on it.
    pub fn node_checks(&self, name: &str) -> Vec<CheckView<'a>> {
        let key = NodeKey::new(self.datacenter, name);
        let Some(node) = self.snapshot.node(&key) else { return Vec::new() };
        let of_instances = self.on_node(&key).into_values().flat_map(|instance| self.checks_of(instance));
        self.checks_of_node(&key, node).into_iter().chain(of_instances).collect()
    }

    /// The checks that have a status, or all of them.
    pub fn checks_in_state(&self, state: &str) -> Vec<CheckView<'a>> {
        let mut nodes: Vec<_> = self.present_nodes().collect();
        nodes.sort_unstable_by_key(|(key, _)| *key);
        let of_nodes = nodes.into_iter().flat_map(|(key, node)| self.checks_of_node(key, node));
        let mut services: Vec<_> = self.present_services().collect();
        services.sort_unstable_by_key(|(key, _)| *key);
        let instances = services.into_iter().flat_map(|(_, service)| &service.instances);
        let of_instances =
            instances.filter(|instance| self.is_on_wanted_node(instance)).flat_map(|instance| self.checks_of(instance));
        let is_wanted = |check: &CheckView<'_>| state == "any" || check.status.as_str() == state;
        of_nodes.chain(of_instances).filter(is_wanted).collect()
    }

    /// A node with what runs on it.
    pub fn node_services(&self, name: &str) -> Option<NodeServicesView<'a>> {
        let key = NodeKey::new(self.datacenter, name);
        let node = self.snapshot.node(&key)?;
        let services = self.on_node(&key).into_iter().map(|(id, instance)| (id, self.service(instance)));
        Some(NodeServicesView { node: self.node(&key, node), services: services.collect() })
    }

    /// The same as a list.
    pub fn node_service_list(&self, name: &str) -> NodeServiceListView<'a> {
        let key = NodeKey::new(self.datacenter, name);
        let node = self.snapshot.node(&key);
        let services = node.map(|_| self.on_node(&key).into_values().map(|instance| self.service(instance)).collect());
        NodeServiceListView { node: node.map(|node| self.node(&key, node)), services }
    }

    /// What runs on our own node, by id.
    pub fn own_services(&self) -> BTreeMap<&'a str, AgentServiceView<'a>> {
        let own = self.on_node(&self.snapshot.settings().own_node()).into_iter();
        own.map(|(id, instance)| (id, self.agent_service(instance))).collect()
    }

    /// An instance on our own node.
    pub fn own_service(&self, id: &str) -> Option<AgentServiceView<'a>> {
        let own = self.snapshot.settings().own_node();
        let mut instances = self.snapshot.services().flat_map(|(_, service)| &service.instances);
        // Few ids are the same, and comparing them is the least work.
        let found = instances.find(|instance| *instance.registration.id == *id && instance.registration.node == own);
        found.map(|instance| self.agent_service(instance))
    }

    /// The health of an instance on our own node.
    pub fn own_health(&self, id: &str) -> Option<AgentHealthView<'a>> {
        let own = self.snapshot.settings().own_node();
        self.on_node(&own).get(id).map(|instance| self.agent_health(&own, instance))
    }

    /// The same of all instances of a service there; the name counts as it is written.
    pub fn own_health_of(&self, service: &str) -> Vec<AgentHealthView<'a>> {
        let own = self.snapshot.settings().own_node();
        let instances = self.on_node(&own).into_values();
        let wanted = instances.filter(|instance| *instance.registration.service == *service);
        wanted.map(|instance| self.agent_health(&own, instance)).collect()
    }

    fn agent_health(&self, own: &NodeKey, instance: &'a Instance) -> AgentHealthView<'a> {
        let node = self.snapshot.node(own);
        let of_node = node.into_iter().flat_map(|node| self.checks_of_node(own, node));
        let checks: Vec<_> = self.checks_of(instance).into_iter().chain(of_node).map(AgentCheckView::from).collect();
        let is_maintained = |check: &AgentCheckView<'_>| {
            check.id.starts_with("_node_maintenance") || check.id.starts_with("_service_maintenance")
        };
        let word = match checks.iter().map(|check| check.status).max() {
            _ if checks.iter().any(is_maintained) => MAINTENANCE,
            status => status.unwrap_or(Status::Passing).as_str(),
        };
        AgentHealthView { word, service: Some(self.agent_service(instance)), checks: Some(checks) }
    }

    /// The checks of our own node and of what runs on it, by id.
    pub fn own_checks(&self) -> BTreeMap<&'a str, CheckView<'a>> {
        let key = self.snapshot.settings().own_node();
        let node = self.snapshot.node(&key);
        let of_node = node.into_iter().flat_map(|node| self.checks_of_node(&key, node));
        let of_instances = self.on_node(&key).into_values().flat_map(|instance| self.checks_of(instance));
        // An agent does not number what is its own.
        let unnumbered = |check: CheckView<'a>| (check.id, CheckView { create_index: 0, modify_index: 0, ..check });
        of_node.chain(of_instances).map(unnumbered).collect()
    }

    /// Where our own server is, or would be.
    pub fn server(&self) -> String {
        match self.own().map(|(_, node)| &node.address) {
            Some(Host::Ip(ip)) => SocketAddr::new(*ip, SERVER_PORT).to_string(),
            Some(host) => format!("{}:{SERVER_PORT}", host_text(host)),
            None => String::new(),
        }
    }

    /// What an agent says of itself, as far as anybody looks at it.
    pub fn itself(&self) -> Value {
        let (id, name, address) = match self.own() {
            Some((key, node)) => (node_id(&key), &*node.name, host_text(&node.address)),
            None => (String::new(), "", String::new()),
        };
        let meta = self.own().map(|(_, node)| &node.meta);
        let datacenter = self.snapshot.settings().datacenter();
        let (services, checks) = (self.own_services().len().to_string(), self.own_checks().len().to_string());
        json!({
            "Config": {
                "Datacenter": datacenter, "NodeName": name, "NodeID": id, "Revision": REVISION, "Server": true,
                "Version": CONSUL_VERSION,
            },
            "Coord": {},
            "Member": {
                "Name": name, "Addr": address, "Port": 8301, "Status": 1,
                "Tags": { "role": "consul", "dc": datacenter, "id": id, "build": format!("{CONSUL_VERSION}:{REVISION}") },
                "ProtocolMin": 1, "ProtocolMax": 5, "ProtocolCur": 2,
                "DelegateMin": 2, "DelegateMax": 5, "DelegateCur": 4,
            },
            "Stats": {
                "agent": { "services": services, "checks": checks },
                "build": { "prerelease": "", "revision": REVISION, "version": CONSUL_VERSION },
                "consul": {
                    "acl": "disabled", "known_datacenters": self.datacenters().len().to_string(), "leader": "true",
                    "leader_addr": self.server(), "server": "true",
                },
            },
            "Meta": meta.unwrap_or(&BTreeMap::new()),
        })
    }

    fn own(&self) -> Option<(NodeKey, &'a Arc<Node>)> {
        let key = self.snapshot.settings().own_node();
        self.snapshot.node(&key).map(|node| (key, node))
    }

    /// The nodes of the datacenter that have what is asked for.
    fn present_nodes(&self) -> impl Iterator<Item = (&'a NodeKey, &'a Arc<Node>)> {
        let nodes = self.snapshot.nodes().filter(|(key, _)| **key.datacenter() == *self.datacenter);
        nodes.filter(|(_, node)| self.is_wanted_node(node))
    }

    fn present_services(&self) -> impl Iterator<Item = (&'a ServiceKey, &'a Arc<crate::catalog::Service>)> {
        self.snapshot.services().filter(|(key, _)| key.datacenter() == self.datacenter)
    }

    /// The instances of a service that have what is asked for.
    fn wanted(&self, key: &ServiceKey) -> impl Iterator<Item = &'a Instance> {
        let instances = self.snapshot.service(key).into_iter().flat_map(|service| &service.instances);
        let has_tags = |instance: &&Arc<Instance>| {
            let tags = &instance.registration.tags;
            self.asked.tags.iter().all(|wanted| tags.iter().any(|tag| tag.to_lowercase() == *wanted))
        };
        instances.filter(has_tags).filter(|instance| self.is_on_wanted_node(instance)).map(|instance| &**instance)
    }

    fn is_wanted_node(&self, node: &Node) -> bool {
        self.asked.node_meta.iter().all(|(key, value)| node.meta.get(key) == Some(value))
    }

    fn is_on_wanted_node(&self, instance: &Instance) -> bool {
        let node = || self.snapshot.node(&instance.registration.node);
        self.asked.node_meta.is_empty() || node().is_some_and(|node| self.is_wanted_node(node))
    }

    /// What runs on a node, by id.
    fn on_node(&self, key: &NodeKey) -> BTreeMap<&'a str, &'a Instance> {
        let instances = self.snapshot.services().flat_map(|(_, service)| &service.instances);
        let on_node = instances.filter(|instance| instance.registration.node == *key);
        on_node.map(|instance| (&*instance.registration.id, &**instance)).collect()
    }

    fn node(&self, key: &NodeKey, node: &'a Node) -> NodeView<'a> {
        NodeView {
            id: node_id(key),
            node: &node.name,
            address: host_text(&node.address),
            datacenter: &node.datacenter,
            tagged_addresses: self.node_addresses(key, node),
            meta: Some(&node.meta).filter(|meta| !meta.is_empty()),
            create_index: self.served.index(0),
            modify_index: self.node_index(key),
        }
    }

    fn placed(&self, instance: &'a Instance) -> PlacedView<'a> {
        let registration = &*instance.registration;
        let key = &registration.node;
        let node = self.snapshot.node(key);
        PlacedView {
            id: node_id(key),
            node: node.map_or(key.name(), |node| &node.name),
            address: node.map_or(String::new(), |node| host_text(&node.address)),
            datacenter: node.map_or(key.datacenter(), |node| &node.datacenter),
            tagged_addresses: node.and_then(|node| self.node_addresses(key, node)),
            node_meta: node.map(|node| &node.meta).filter(|meta| !meta.is_empty()),
            service_kind: kind(&registration.role),
            service_id: &registration.id,
            service_name: &registration.service,
            service_tags: &registration.tags,
            service_address: registration.address.as_ref().map(host_text).unwrap_or_default(),
            service_tagged_addresses: self.service_addresses(instance),
            service_weights: registration.weights.into(),
            service_meta: &registration.meta,
            service_port: registration.port,
            service_enable_tag_override: false,
            service_proxy: proxy(&registration.role),
            service_connect: ConnectView { native: registration.role == Role::Native },
            create_index: self.served.index(0),
            modify_index: self.service_index(instance),
        }
    }

    fn service(&self, instance: &'a Instance) -> ServiceView<'a> {
        let registration = &*instance.registration;
        ServiceView {
            kind: kind(&registration.role),
            id: &registration.id,
            service: &registration.service,
            tags: &registration.tags,
            address: registration.address.as_ref().map(host_text).unwrap_or_default(),
            tagged_addresses: self.service_addresses(instance),
            meta: Some(&registration.meta).filter(|meta| !meta.is_empty()),
            port: registration.port,
            weights: registration.weights.into(),
            enable_tag_override: false,
            proxy: proxy(&registration.role),
            connect: ConnectView { native: registration.role == Role::Native },
            create_index: self.served.index(0),
            modify_index: self.service_index(instance),
        }
    }

    fn agent_service(&self, instance: &'a Instance) -> AgentServiceView<'a> {
        let registration = &*instance.registration;
        let role = &registration.role;
        AgentServiceView {
            kind: kind(role),
            id: &registration.id,
            service: &registration.service,
            tags: &registration.tags,
            meta: &registration.meta,
            port: registration.port,
            address: registration.address.as_ref().map(host_text).unwrap_or_default(),
            tagged_addresses: self.service_addresses(instance),
            weights: registration.weights.into(),
            enable_tag_override: false,
            proxy: matches!(role, Role::Proxy { .. }).then(|| proxy(role)),
            connect: (*role == Role::Native).then_some(ConnectView { native: true }),
            content_hash: None,
        }
    }

    fn checks_of_node(&self, key: &NodeKey, node: &'a Node) -> Vec<CheckView<'a>> {
        let index = self.node_index(key);
        let view = |check: &'a Check| self.check(&node.name, None, check, index);
        sorted(node.checks.iter().map(view).collect())
    }

    fn checks_of(&self, instance: &'a Instance) -> Vec<CheckView<'a>> {
        let key = &instance.registration.node;
        let node = self.snapshot.node(key).map_or(key.name(), |node| &node.name);
        let index = self.service_index(instance);
        let view = |check: &'a Check| self.check(node, Some(instance), check, index);
        sorted(instance.checks.iter().map(view).collect())
    }

    fn check(
        &self,
        node: &'a str,
        instance: Option<&'a Instance>,
        check: &'a Check,
        modify_index: u64,
    ) -> CheckView<'a> {
        let registration = instance.map(|instance| &*instance.registration);
        CheckView {
            node,
            id: &check.id,
            name: &check.name,
            status: check.status.in_api(),
            notes: &check.notes,
            output: &check.output,
            service_id: registration.map_or("", |registration| &registration.id),
            service_name: registration.map_or("", |registration| &registration.service),
            service_tags: registration.map_or(&[], |registration| &registration.tags),
            kind: &check.kind,
            definition: Nothing {},
            create_index: self.served.index(0),
            modify_index,
        }
    }

    fn node_index(&self, key: &NodeKey) -> u64 {
        self.served.slot_index(Slot::of_node(key), self.snapshot.version())
    }

    fn service_index(&self, instance: &Instance) -> u64 {
        let registration = &instance.registration;
        let key = ServiceKey::new(Kind::Service, registration.node.datacenter(), &registration.service);
        self.served.slot_index(Slot::of_service(&key), self.snapshot.version())
    }

    /// An agent gives its own node and services tagged addresses where they have none.
    fn node_addresses(&self, key: &NodeKey, node: &'a Node) -> Option<BTreeMap<&'a str, String>> {
        let mut addresses: BTreeMap<&str, String> = BTreeMap::new();
        if *key == self.snapshot.settings().own_node()
            && let Host::Ip(ip) = node.address
        {
            let [lan, wan] = of_family(ip);
            addresses.extend(["lan", lan, "wan", wan].map(|tag| (tag, ip.to_string())));
        }
        addresses.extend(node.tagged.iter().map(|(tag, Tagged { address, .. })| (&**tag, host_text(address))));
        Some(addresses).filter(|addresses| !addresses.is_empty())
    }

    fn service_addresses(&self, instance: &'a Instance) -> BTreeMap<&'a str, AddressView> {
        let registration = &instance.registration;
        let view = |address: &Host, port| AddressView { address: host_text(address), port };
        let mut addresses = BTreeMap::new();
        if registration.node == self.snapshot.settings().own_node()
            && let Some(address @ Host::Ip(ip)) = &registration.address
        {
            addresses.extend(of_family(*ip).map(|tag| (tag, view(address, registration.port))));
        }
        let tagged = registration.tagged.iter();
        addresses.extend(tagged.map(|(tag, Tagged { address, port })| (&**tag, view(address, *port))));
        addresses
    }
}

impl AgentHealthView<'_> {
    /// Of what is not there.
    pub fn absent() -> Self {
        Self { word: Status::Critical.as_str(), service: None, checks: None }
    }

    /// The status of all checks together, or that it is in maintenance.
    pub fn word(&self) -> &'static str {
        self.word
    }

    /// What a probe that sees the status code alone is to make of it.
    pub fn code(&self) -> StatusCode {
        match self.word {
            "passing" => StatusCode::OK,
            "warning" => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl<'a> From<CheckView<'a>> for AgentCheckView<'a> {
    fn from(check: CheckView<'a>) -> Self {
        let CheckView { node, id, name, status, notes, output, service_id, service_name, service_tags, .. } = check;
        Self {
            node,
            id,
            name,
            status,
            notes,
            output,
            service_id,
            service_name,
            service_tags: Some(service_tags).filter(|tags| !tags.is_empty()),
            kind: "",
            definition: EmptyDefinition::default(),
            create_index: 0,
            modify_index: 0,
        }
    }
}

impl Serialize for NoTime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("0s")
    }
}

impl From<Weights> for WeightsView {
    fn from(weights: Weights) -> Self {
        Self { passing: weights.passing, warning: weights.warning }
    }
}

fn sorted(mut checks: Vec<CheckView<'_>>) -> Vec<CheckView<'_>> {
    checks.sort_by_key(|check| check.id);
    checks
}

fn of_family(ip: IpAddr) -> [&'static str; 2] {
    if ip.is_ipv4() { ["lan_ipv4", "wan_ipv4"] } else { ["lan_ipv6", "wan_ipv6"] }
}

fn kind(role: &Role) -> &'static str {
    match role {
        Role::Plain | Role::Native => "",
        Role::Proxy { .. } => "connect-proxy",
        Role::Ingress { .. } => "ingress-gateway",
    }
}

fn proxy(role: &Role) -> ProxyView<'_> {
    let destination_service_name = match role {
        Role::Proxy { destination } => Some(&**destination),
        _ => None,
    };
    ProxyView { destination_service_name, mesh_gateway: Nothing {}, expose: Nothing {} }
}

/// As it would be written in a definition.
fn host_text(host: &Host) -> String {
    match host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.to_string().trim_end_matches('.').to_owned(),
    }
}

/// The UUID of a node: a hash of its datacenter and name (RFC 9562 §5.5), so that every daemon gives it the same.
fn node_id(key: &NodeKey) -> String {
    let name = [key.datacenter(), key.name()].join("\0");
    Uuid::new_v5(&NODES, name.as_bytes()).to_string()
}

/// The namespace of nodes' UUIDs.
const NODES: Uuid = Uuid::from_u128(0x9c2d_6f0b_51a8_4e37_8d14_e7b3_0a96_c25f);

/// The Consul whose API this is: Nomad and consul-esm compare it with the version that they need.
const CONSUL_VERSION: &str = "1.8.7";
/// Our own version, where Consul names the commit that it was built from.
const REVISION: &str = concat!("watershed-", env!("CARGO_PKG_VERSION"));
/// Consul's word for the health of what is in maintenance.
const MAINTENANCE: &str = "maintenance";
/// Of Consul's servers.
const SERVER_PORT: u16 = 8300;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_the_same_uuid_everywhere() {
        let id = |datacenter, name| node_id(&NodeKey::new(datacenter, name));
        let uuid = Uuid::parse_str(&id("dc1", "db-1")).unwrap();
        assert_eq!(uuid.get_version_num(), 5);
        assert_eq!(uuid.to_string(), "067063bf-65e7-5a58-9b5f-022dffa43d2a");
        assert_eq!(id("dc1", "db-1"), id("DC1", "DB-1"));
        for (datacenter, name) in [("dc1", "db-2"), ("dc2", "db-1"), ("dc1d", "b-1")] {
            assert_ne!(uuid.to_string(), id(datacenter, name), "{datacenter} {name}");
        }
    }
}
