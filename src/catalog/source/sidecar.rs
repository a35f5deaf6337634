//! The sidecar proxy that a service asks for with `connect.sidecar_service`: a service of its own, with the defaults that
//! Consul's agent gives it (`sidecarServiceFromNodeService`).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    definition::plain,
    value::{Kind, Value},
};

/// A sidecar before it has a port.
#[derive(Debug)]
pub(super) struct Sidecar {
    /// Its id, made of the service's.
    pub id: String,
    /// The port that is written; without one it is chosen.
    pub port: Option<u16>,
    line: usize,
    fields: Vec<(String, Value)>,
    /// The id of the service that it belongs to, if the checks are not written but the usual ones.
    aliases: Option<String>,
}

/// The ports that are taken among those to choose from, and which sidecar has which already.
#[derive(Debug, Default)]
pub(super) struct Ports {
    taken: BTreeSet<u16>,
    known: BTreeMap<String, u16>,
}

impl Sidecar {
    /// What a service asks for, if it asks for one; or why it cannot have it.
    pub fn of(service: &Value) -> Result<Option<Self>, &'static str> {
        let fields = service.table().unwrap_or_default();
        let connect = get(fields, "connect").and_then(Value::table).unwrap_or_default();
        let Some(asked) = get(connect, "sidecarservice").filter(|value| value.kind != Kind::Null) else {
            return Ok(None);
        };
        let own = asked.table().unwrap_or_default();
        if !text(own, "id").is_empty() {
            return Err("A SidecarService cannot specify an ID as this is managed by the agent");
        }
        if get(get(own, "connect").and_then(Value::table).unwrap_or_default(), "sidecarservice").is_some() {
            return Err("A SidecarService cannot have a nested SidecarService");
        }
        let name = text(fields, "name");
        let service_id = if text(fields, "id").is_empty() { name } else { text(fields, "id") };
        let id = format!("{service_id}-sidecar-proxy");
        let line = asked.line;
        let new = |key: &str, text: &str| (key.to_owned(), Value::new(line, Kind::Text(text.to_owned())));
        let is_own = |key: &str| !matches!(&*plain(key), "id" | "port");
        let mut sidecar: Vec<_> = own.iter().filter(|(key, value)| is_own(key) && !is_empty(value)).cloned().collect();
        sidecar.push(new("id", &id));
        for key in ["tags", "meta", "address"] {
            if get(&sidecar, key).is_none() {
                sidecar.extend(get(fields, key).map(|value| (key.to_owned(), value.clone())));
            }
        }
        if get(&sidecar, "name").is_none() {
            sidecar.push(new("name", &format!("{name}-sidecar-proxy")));
        }
        if get(&sidecar, "kind").is_none() {
            sidecar.push(new("kind", "connect-proxy"));
        }
        if text(&sidecar, "kind") == "connect-proxy" {
            let mut proxy = get(&sidecar, "proxy").and_then(Value::table).unwrap_or_default().to_vec();
            if text(&proxy, "destinationservicename").is_empty() {
                proxy.retain(|(key, _)| plain(key) != "destinationservicename");
                proxy.push(new("destination_service_name", name));
            }
            sidecar.retain(|(key, _)| plain(key) != "proxy");
            sidecar.push(("proxy".to_owned(), Value::new(line, Kind::Table(proxy))));
        }
        let has_checks = get(&sidecar, "check").or_else(|| get(&sidecar, "checks")).is_some();
        let port = get(own, "port").and_then(|value| match &value.kind {
            Kind::Number(number) => number.as_u64().and_then(|port| port.try_into().ok()),
            _ => None,
        });
        Ok(Some(Self {
            id,
            port: port.filter(|port| *port > 0),
            line,
            fields: sidecar,
            aliases: (!has_checks).then(|| service_id.to_owned()),
        }))
    }

    /// The definition of the sidecar with this port.
    pub fn definition(&self, port: u16) -> Value {
        let value = |kind| Value::new(self.line, kind);
        let text = |text: String| value(Kind::Text(text));
        let mut fields = self.fields.clone();
        fields.push(("port".to_owned(), value(Kind::Number(port.into()))));
        if let Some(service_id) = &self.aliases {
            let listening = vec![
                ("name".to_owned(), text("Connect Sidecar Listening".to_owned())),
                ("tcp".to_owned(), text(format!("127.0.0.1:{port}"))),
                ("interval".to_owned(), text("10s".to_owned())),
            ];
            let aliasing = vec![
                ("name".to_owned(), text(format!("Connect Sidecar Aliasing {service_id}"))),
                ("alias_service".to_owned(), text(service_id.clone())),
            ];
            let checks = [listening, aliasing].map(|check| value(Kind::Table(check)));
            fields.push(("checks".to_owned(), value(Kind::List(checks.into()))));
        }
        value(Kind::Table(fields))
    }
}

impl Ports {
    /// Notes the port of a service.
    pub fn note(&mut self, id: &str, port: u16) {
        if PORTS.contains(&port) {
            self.taken.insert(port);
            self.known.insert(id.to_owned(), port);
        }
    }

    /// Notes what a service had before, which does not keep others from it.
    pub fn remember(&mut self, id: &str, port: u16) {
        if PORTS.contains(&port) {
            self.known.insert(id.to_owned(), port);
        }
    }

    /// Keeps the port that a service had before for it.
    pub fn reserve(&mut self, id: &str) {
        self.taken.extend(self.known.get(id));
    }

    /// The port of a sidecar: the one that it has, or the first that is free.
    pub fn choose(&mut self, id: &str) -> Option<u16> {
        let known = self.known.get(id).copied();
        let port = known.or_else(|| PORTS.into_iter().find(|port| !self.taken.contains(port)))?;
        self.note(id, port);
        Some(port)
    }
}

fn get<'v>(fields: &'v [(String, Value)], key: &str) -> Option<&'v Value> {
    fields.iter().find(|(known, _)| plain(known) == key).map(|(_, value)| value)
}

fn text<'v>(fields: &'v [(String, Value)], key: &str) -> &'v str {
    match get(fields, key).map(|value| &value.kind) {
        Some(Kind::Text(text)) => text,
        _ => "",
    }
}

/// True for what Go takes for a key that is not there.
pub(super) fn is_empty(value: &Value) -> bool {
    match &value.kind {
        Kind::Null | Kind::Flag(false) => true,
        Kind::Flag(true) => false,
        Kind::Number(number) => number.as_f64() == Some(0.0),
        Kind::Text(text) => text.is_empty(),
        Kind::List(items) => items.iter().all(is_empty),
        Kind::Table(fields) => fields.iter().all(|(_, value)| is_empty(value)),
    }
}

/// Of Consul's `ports.sidecar_min_port` and `sidecar_max_port`.
const PORTS: std::ops::RangeInclusive<u16> = 21_000..=21_255;
/// What a service says whose sidecar finds no port, in Consul's words.
pub(super) const NO_PORT: &str = "none left of the configured sidecar ports 21000-21255";
