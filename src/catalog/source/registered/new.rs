//! Services and checks to register: as a request defines them, and as they are saved.

use std::{cell::Cell, collections::BTreeMap, net::IpAddr, path::Path, sync::Arc};

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};

use super::super::{
    definition::{self, Reader, declared_checks, plain},
    file::{Error, Owner, Problem},
    json,
    sidecar::Sidecar,
    value::{Fault, Kind, Value},
};
use crate::{
    catalog::{
        check::{self, Declaration, Definition, Scripts},
        model::{Host, NodeKey, Registration},
    },
    location::Location,
};

/// A service to register, with the checks of the same request.
#[derive(Debug)]
pub struct NewService {
    pub(super) service: Entry<definition::Service<Definition>>,
    pub(super) checks: Vec<Entry<definition::Check<Definition>>>,
    pub(super) sidecar: Option<Sidecar>,
}

/// A check to register.
#[derive(Debug)]
pub struct NewCheck(pub(super) Entry<definition::Check<Definition>>);

#[derive(Debug)]
pub(super) struct Entry<T> {
    pub(super) read: T,
    /// Its JSON on one line, with the keys in order. It is made once, because it is saved many times.
    pub(super) written: Box<str>,
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

    pub(super) fn from_value(value: &Value) -> Result<Self, Refused> {
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

    pub(super) fn bytes(&self) -> usize {
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

    /// The service that it belongs to, if any.
    pub fn owner(&self) -> &Owner {
        &self.0.read.service_id
    }

    pub(super) fn from_value(value: &Value) -> Result<Self, Refused> {
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

impl<T> Entry<T> {
    fn new(read: T, written: &Json) -> Self {
        Self { read, written: written.to_string().into() }
    }

    /// What it counts.
    pub(super) fn bytes(&self) -> usize {
        self.written.len() + ENTRY_BYTES
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
pub(in crate::catalog::source) fn read_service(value: &Value, node: NodeKey) -> Result<Registration, Refused> {
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

pub(in crate::catalog::source) fn to_json(value: &Value) -> Json {
    match &value.kind {
        Kind::Null => Json::Null,
        Kind::Flag(flag) => Json::Bool(*flag),
        Kind::Number(number) => Json::Number(number.clone()),
        Kind::Text(text) => Json::String(text.clone()),
        Kind::List(items) => Json::Array(items.iter().map(to_json).collect()),
        Kind::Table(fields) => Json::Object(fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect()),
    }
}

/// What all registrations may take: what they count together.
pub(super) const MOST_BYTES: usize = 32 << 20;
/// Each thing that is registered counts so much more than its text: a short definition takes far more memory than its text.
pub(in crate::catalog::source) const ENTRY_BYTES: usize = 512;
