//! What one definition file says: services, checks and agent keys, in Consul's words.
//!
//! Consul compares keys without regard to case, and has written some of them with underscores and without in its time; so
//! do we. Keys that no version of Consul knows are faults, because they are spelling errors ([`crate::catalog::keys`]). Keys
//! that later versions brought are warned of, and keys that mean nothing here are noted.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    file::{Error, Problem},
    sidecar::{self, Ports, Sidecar},
    value::{Fault, Kind, Value},
};
use crate::{
    catalog::{
        config::{is_label, read_domain},
        health::Status,
        identity::Agent,
        keys::{self, Holds, Keys, Known},
        model::{Host, Role, Tagged, Weights},
        policy::Rules,
    },
    location::Location,
};

pub(super) use crate::catalog::keys::plain;

/// What one file says. `D` is what a check is for those who run it.
#[derive(Debug)]
pub(super) struct Contents<D> {
    pub agent: Agent,
    pub services: Vec<Arc<Service<D>>>,
    /// Checks of the node, and of services by their id.
    pub checks: Vec<Arc<Check<D>>>,
}

/// A service with its checks.
#[derive(Debug)]
pub(super) struct Service<D> {
    pub location: Location,
    pub id: Arc<str>,
    pub name: Arc<str>,
    pub tags: Vec<String>,
    pub address: Option<Host>,
    pub port: u16,
    pub tagged: BTreeMap<String, Tagged>,
    pub meta: BTreeMap<String, String>,
    pub weights: Weights,
    pub role: Role,
    pub checks: Vec<Arc<Check<D>>>,
}

/// A check.
#[derive(Debug)]
pub(super) struct Check<D> {
    pub location: Location,
    pub id: Arc<str>,
    pub name: Arc<str>,
    pub notes: Arc<str>,
    /// Consul's word for how it is found out.
    pub kind: &'static str,
    pub service_id: Option<Arc<str>>,
    pub initial: Status,
    pub definition: Arc<D>,
}

/// How a check becomes what those want who run it; what is wrong with it otherwise, all of it.
pub type Define<'a, D> = &'a dyn Fn(&Value) -> Result<D, Vec<Fault>>;

/// A check that is not run here.
pub(super) struct Refused {
    pub error: Error,
    /// If it stands beside the services, the one that it is for.
    pub service_id: Option<String>,
}

/// A file being read.
pub(super) struct Reader<'a, D> {
    pub location: Location,
    pub define: Define<'a, D>,
    pub errors: Vec<Error>,
    /// Keys that only later versions of Consul have.
    pub warnings: Vec<Error>,
    /// Keys that mean nothing here.
    pub unused: Vec<String>,
    /// What is wrong with checks that cost their service, and not the file.
    pub refused: Vec<Refused>,
    /// The sidecars of the services read so far.
    pub sidecars: Vec<Sidecar>,
    /// Finds the ports that are taken or known, which takes as long as there are services: only called for a sidecar.
    pub ports: &'a dyn Fn() -> Ports,
}

impl<'a, D> Reader<'a, D> {
    pub fn new(location: Location, define: Define<'a, D>) -> Self {
        Self {
            location,
            define,
            errors: Vec::new(),
            warnings: Vec::new(),
            unused: Vec::new(),
            refused: Vec::new(),
            sidecars: Vec::new(),
            ports: &Ports::default,
        }
    }
}

impl<D> Reader<'_, D> {
    /// Reads a whole file.
    pub fn contents(&mut self, root: &Value) -> Contents<D> {
        let mut contents = Contents { agent: Agent::default(), services: Vec::new(), checks: Vec::new() };
        let Some(fields) = root.table() else {
            self.blame(root, Problem::Shape { key: "the file".into(), expected: "a table of definitions" });
            return contents;
        };
        let (mut bind, mut advertise) = (None, None);
        for (key, value) in fields {
            let agent = &mut contents.agent;
            match &*plain(key) {
                "service" | "services" => {
                    contents.services.extend(value.items().iter().filter_map(|item| self.service(item)).map(Arc::new));
                }
                "check" | "checks" => {
                    contents
                        .checks
                        .extend(value.items().iter().filter_map(|item| self.check(item, None)).map(Arc::new));
                }
                "datacenter" => agent.datacenter = self.text(key, value),
                "nodename" => agent.node_name = self.text(key, value),
                "domain" => agent.domain = self.domain("domain", key, value),
                "altdomain" => agent.alt_domain = self.domain("alt_domain", key, value),
                "nodemeta" => agent.node_meta = self.texts_by_key(key, value),
                "taggedaddresses" => agent.tagged = self.tagged(key, value),
                "advertiseaddr" => advertise = self.own_address(key, value),
                "bindaddr" => bind = self.own_address(key, value),
                _ if keys::FILE.find(key).0 == Known::No => self.blame_key(&keys::FILE, key, value),
                _ => self.unused.push(key.clone()),
            }
        }
        contents.agent.address = advertise.or(bind);
        self.add_sidecars(root, &mut contents);
        self.take_out_refused(&mut contents);
        contents
    }

    /// Adds the sidecars of the services, each with a port.
    fn add_sidecars(&mut self, root: &Value, contents: &mut Contents<D>) {
        if self.sidecars.is_empty() {
            return;
        }
        let mut ports = (self.ports)();
        for service in &contents.services {
            ports.note(&service.id, service.port);
        }
        for sidecar in &self.sidecars {
            ports.reserve(&sidecar.id);
        }
        for sidecar in std::mem::take(&mut self.sidecars) {
            // One with an error belongs to a service that is refused.
            match sidecar.port.or_else(|| ports.choose(&sidecar.id)) {
                Some(port) => contents.services.extend(self.service(&sidecar.definition(port)).map(Arc::new)),
                None => self.blame(root, Problem::Sidecar(sidecar::NO_PORT)),
            }
        }
    }

    /// Takes out services whose checks beside them are refused; without those they would pass for healthy. One of another file
    /// cannot be taken out, so that its check is a fault of this file.
    fn take_out_refused(&mut self, contents: &mut Contents<D>) {
        for Refused { error, service_id } in &self.refused {
            let Some(id) = service_id else { continue };
            let before = contents.services.len();
            contents.services.retain(|service| *service.id != **id);
            if contents.services.len() == before {
                let problem = Problem::RefusedCheck(id.as_str().into());
                self.errors.push(Error { location: error.location.clone(), problem });
            }
        }
    }

    /// A service.
    pub fn service(&mut self, value: &Value) -> Option<Service<D>> {
        let errors_before = self.errors.len() + self.refused.len();
        let fields = self.fields("service", value)?;
        let mut id = None;
        let mut checks = Vec::new();
        let mut service = Service {
            location: self.at(value),
            id: "".into(),
            name: "".into(),
            tags: Vec::new(),
            address: None,
            port: 0,
            tagged: BTreeMap::new(),
            meta: BTreeMap::new(),
            weights: Weights::default(),
            role: Role::Plain,
            checks: Vec::new(),
        };
        let (mut is_proxy, mut is_native, mut destination) = (false, false, None);
        for (key, value) in fields {
            match &*plain(key) {
                "id" => id = self.text(key, value),
                "name" => service.name = self.text(key, value).unwrap_or_default().into(),
                "tags" => service.tags = self.texts(key, value),
                "address" => service.address = self.host(key, value),
                "port" => service.port = self.number(key, value),
                "taggedaddresses" => service.tagged = self.tagged(key, value),
                "meta" => service.meta = self.texts_by_key(key, value),
                "weights" => service.weights = self.weights(value),
                "check" | "checks" => checks.extend(declared_checks(key, value)),
                "kind" => is_proxy = self.text(key, value).as_deref() == Some("connect-proxy"),
                "connect" => {
                    for (inner, value) in self.fields(key, value).unwrap_or_default() {
                        match &*plain(inner) {
                            "native" => is_native = value.kind == Kind::Flag(true),
                            "sidecarservice" => {}
                            _ => self.note(key, inner),
                        }
                    }
                }
                "proxy" => {
                    for (inner, value) in self.fields(key, value).unwrap_or_default() {
                        if matches!(&*plain(inner), "destinationservicename" | "destinationservice") {
                            destination = self.text(inner, value);
                        } else {
                            self.note(key, inner);
                        }
                    }
                }
                _ => self.note("service", key),
            }
        }
        self.check_keys(&keys::SERVICE, value);
        service.role = match destination {
            Some(destination) if is_proxy => Role::Proxy { destination },
            _ if is_native => Role::Native,
            _ => Role::Plain,
        };
        if service.name.is_empty() {
            self.blame(value, Problem::NoName);
        }
        service.id = id.map_or_else(|| service.name.clone(), Into::into);
        let mut rules = Rules::default();
        for (key, text) in &service.meta {
            if let Err(expected) = rules.read(key, text) {
                self.blame(value, Problem::Policy { key: key.clone(), value: text.clone(), expected });
            }
        }
        let count = checks.len();
        for (index, value) in checks.into_iter().enumerate() {
            let number = if count > 1 { format!(":{}", index + 1) } else { String::new() };
            let default = (format!("service:{}{number}", service.id), format!("Service '{}' check", service.name));
            service.checks.extend(self.check(value, Some(default)).map(Arc::new));
        }
        let sidecar = Sidecar::of(value).unwrap_or_else(|problem| {
            self.blame(value, Problem::Sidecar(problem));
            None
        });
        // One with faults is none: it would be something that nobody has meant.
        let is_good = self.errors.len() + self.refused.len() == errors_before;
        self.sidecars.extend(sidecar.filter(|_| is_good));
        is_good.then_some(service)
    }

    /// A check; one of a service has an id and a name by default.
    pub fn check(&mut self, value: &Value, default: Option<(String, String)>) -> Option<Check<D>> {
        let errors_before = self.errors.len();
        let fields = self.fields("check", value)?;
        let (mut id, mut name, mut notes, mut service_id) = (None, None, None, None);
        let mut initial = Status::Unknown;
        for (key, value) in fields {
            match &*plain(key) {
                "id" | "checkid" => id = self.text(key, value),
                "name" => name = self.text(key, value),
                "notes" => notes = self.text(key, value),
                "serviceid" => service_id = self.text(key, value),
                "status" => {
                    match self.text(key, value).map_or(Some(Status::Critical), |word| Status::from_word(&word)) {
                        Some(status) => initial = status,
                        None => self.blame(
                            value,
                            Problem::Shape { key: key.clone(), expected: "passing, warning or critical" },
                        ),
                    }
                }
                _ => {}
            }
        }
        let (default_id, default_name) = default.unzip();
        let Some(id) = id.or(default_id).or_else(|| name.clone()) else {
            self.blame(value, Problem::NamelessCheck);
            return None;
        };
        let definition = match (self.define)(value) {
            Ok(definition) => definition.into(),
            Err(faults) => {
                for Fault { line, message } in faults {
                    let location = Location { line: line.or(Some(value.line)), ..self.location.clone() };
                    let error = Error { location, problem: Problem::Check(message) };
                    // What to try is not known here, though it may be elsewhere.
                    let is_foreign = kind_of(fields).is_empty() || is_unsupported(fields);
                    if is_foreign {
                        self.refused.push(Refused { error, service_id: service_id.clone() });
                    } else {
                        self.errors.push(error);
                    }
                }
                return None;
            }
        };
        let check = Check {
            location: self.at(value),
            name: name.or(default_name).unwrap_or_else(|| id.clone()).into(),
            id: id.into(),
            notes: notes.unwrap_or_default().into(),
            kind: kind_of(fields),
            service_id: service_id.map(Into::into),
            initial,
            definition,
        };
        (self.errors.len() == errors_before).then_some(check)
    }

    /// Finds the keys of a table, and of all tables within it, that Consul 1.8 does not have.
    fn check_keys(&mut self, keys: &'static Keys, value: &Value) {
        for (key, value) in value.items().iter().filter_map(Value::table).flatten() {
            match keys.find(key) {
                (Known::No, _) => self.blame_key(keys, key, value),
                (Known::Later, _) => {
                    let problem = Problem::LaterKey { what: keys.what, key: key.clone() };
                    self.warnings.push(Error { location: self.at(value), problem });
                }
                (Known::Yes, Holds::Anything) => {}
                (Known::Yes, Holds::Table(keys)) => self.check_keys(keys, value),
                (Known::Yes, Holds::Tables(keys)) => {
                    let tables = value.table().unwrap_or_default();
                    tables.iter().for_each(|(_, value)| self.check_keys(keys, value));
                }
            }
        }
    }

    fn blame_key(&mut self, keys: &'static Keys, key: &str, value: &Value) {
        let is_of_service = std::ptr::eq(keys, &keys::FILE) && keys::SERVICE.find(key).0 != Known::No;
        let remedy = match is_of_service {
            true => "a service is written as {\"service\": {...}}".to_owned(),
            // Each search takes time, and a list of so many errors is not read to its end.
            false if self.errors.len() > MOST_REMEDIES => keys::remedy(None),
            false => keys::remedy(keys.closest(key)),
        };
        self.blame(value, Problem::UnknownKey { what: keys.what, key: key.to_owned(), remedy });
    }

    fn weights(&mut self, value: &Value) -> Weights {
        let mut weights = Weights::default();
        for (key, value) in self.fields("weights", value).unwrap_or_default() {
            match &*plain(key) {
                "passing" => weights.passing = self.number(key, value),
                "warning" => weights.warning = self.number(key, value),
                // The keys of a service are checked together.
                _ => {}
            }
        }
        weights
    }

    /// Addresses by tag: of nodes plain ones, of services with a port.
    fn tagged(&mut self, key: &str, value: &Value) -> BTreeMap<String, Tagged> {
        let mut tagged = BTreeMap::new();
        for (tag, value) in self.fields(key, value).unwrap_or_default() {
            let mut port = 0;
            let mut address = None;
            if let Kind::Text(_) = value.kind {
                address = self.host(tag, value);
            } else {
                for (inner, value) in self.fields(tag, value).unwrap_or_default() {
                    match &*plain(inner) {
                        "address" => address = self.host(inner, value),
                        "port" => port = self.number(inner, value),
                        _ => {}
                    }
                }
            }
            tagged.extend(address.map(|address| (tag.clone(), Tagged { address, port })));
        }
        tagged
    }

    /// A domain of the catalog's names.
    fn domain(&mut self, name: &'static str, key: &str, value: &Value) -> Option<String> {
        let text = self.text(key, value)?;
        if let Err(problem) = read_domain(name, &text) {
            self.blame(value, Problem::Domain(problem.to_string()));
            return None;
        }
        Some(text)
    }

    /// The address of our own node; what stands for several, or is a template, says nothing.
    fn own_address(&mut self, key: &str, value: &Value) -> Option<IpAddr> {
        let address = self.text(key, value)?.parse::<IpAddr>().ok().filter(|address| !address.is_unspecified());
        if address.is_none() {
            self.unused.push(key.to_owned());
        }
        address
    }

    fn host(&mut self, key: &str, value: &Value) -> Option<Host> {
        let text = self.text(key, value)?;
        let host = read_host(&text);
        if host.is_none() {
            self.blame(value, Problem::BadHost { key: key.to_owned(), text });
        }
        host
    }

    fn number(&mut self, key: &str, value: &Value) -> u16 {
        let number = match &value.kind {
            Kind::Number(number) => number.as_u64().and_then(|number| number.try_into().ok()),
            Kind::Null => Some(0),
            _ => None,
        };
        if number.is_none() {
            self.blame(value, Problem::Shape { key: key.to_owned(), expected: "a number from 0 to 65535" });
        }
        number.unwrap_or(0)
    }

    /// Text; Consul takes an empty one for none.
    fn text(&mut self, key: &str, value: &Value) -> Option<String> {
        self.any_text(key, value).filter(|text| !text.is_empty())
    }

    fn any_text(&mut self, key: &str, value: &Value) -> Option<String> {
        match &value.kind {
            Kind::Text(text) => Some(text.clone()),
            Kind::Null => None,
            _ => {
                self.blame(value, Problem::Shape { key: key.to_owned(), expected: "text in quotes" });
                None
            }
        }
    }

    fn texts(&mut self, key: &str, value: &Value) -> Vec<String> {
        value.items().iter().filter_map(|item| self.text(key, item)).collect()
    }

    fn texts_by_key(&mut self, key: &str, value: &Value) -> BTreeMap<String, String> {
        let fields = self.fields(key, value).unwrap_or_default();
        fields.iter().filter_map(|(key, value)| Some((key.clone(), self.any_text(key, value)?))).collect()
    }

    fn fields<'v>(&mut self, key: &str, value: &'v Value) -> Option<&'v [(String, Value)]> {
        let fields = value.table();
        if fields.is_none() && value.kind != Kind::Null {
            self.blame(value, Problem::Shape { key: key.to_owned(), expected: "a table of keys and values" });
        }
        fields
    }

    fn note(&mut self, within: &str, key: &str) {
        self.unused.push(format!("{within}.{key}"));
    }

    fn at(&self, value: &Value) -> Location {
        Location { line: Some(value.line), ..self.location.clone() }
    }

    fn blame(&mut self, value: &Value, problem: Problem) {
        self.errors.push(Error { location: self.at(value), problem });
    }
}

/// So many unknown keys are compared with those that may be meant.
const MOST_REMEDIES: usize = 100;

/// The checks that a key of a service declares. One that says nothing is none, if it stands alone, as Consul has it.
pub(super) fn declared_checks<'v>(key: &str, value: &'v Value) -> impl Iterator<Item = &'v Value> + use<'v> {
    let may_be_empty = plain(key) == "check";
    let is_none = move |check: &&Value| check.kind == Kind::Null || may_be_empty && sidecar::is_empty(check);
    value.items().iter().filter(move |check| !is_none(check))
}

/// Whether a check is of a kind that Consul has and we have not.
fn is_unsupported(fields: &[(String, Value)]) -> bool {
    let is_kind = |key: &str| matches!(&*plain(key), "dockercontainerid" | "osservice");
    fields.iter().any(|(key, value)| is_kind(key) && !sidecar::is_empty(value))
}

/// Consul's word for what a check does, which one of its keys tells.
fn kind_of(fields: &[(String, Value)]) -> &'static str {
    let is_there = |value: &Value| match &value.kind {
        Kind::Null => false,
        Kind::Text(text) => !text.is_empty(),
        Kind::List(items) => !items.is_empty(),
        _ => true,
    };
    let mut kinds = fields.iter().filter(|(_, value)| is_there(value)).filter_map(|(key, _)| match &*plain(key) {
        "args" | "scriptargs" | "script" => Some("script"),
        "http" => Some("http"),
        "tcp" => Some("tcp"),
        "udp" => Some("udp"),
        "grpc" => Some("grpc"),
        "h2ping" => Some("h2ping"),
        "ttl" => Some("ttl"),
        "aliasnode" | "aliasservice" => Some("alias"),
        _ => None,
    });
    kinds.next_back().unwrap_or_default()
}

/// An address or a name.
pub(super) fn read_host(text: &str) -> Option<Host> {
    text.parse().ok().filter(|host| matches!(host, Host::Ip(_)) || text.split('.').all(is_host_label))
}

/// What stands before a colon or slash is no name: such an address has a port or a scheme.
fn is_host_label(label: &str) -> bool {
    label.is_empty() || is_label(label) && !label.contains([':', '/'])
}
