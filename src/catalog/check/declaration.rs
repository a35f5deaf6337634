//! A check as somebody declares it, in Consul's keys.
//!
//! Consul spells its keys in two ways, `tls_skip_verify` in files and `TLSSkipVerify` in the API, and reads either
//! without regard to case; without regard to underscores, too, they are one. Here values have their types, and
//! nothing else is known to be right: [`Declaration::define`] says what is wrong, all of it at once.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess},
};

use super::duration::GoDuration;

/// The keys of a check. Consul takes an empty string, a zero and a null for a key that is not there, and so do we.
#[derive(Debug, Clone, Default, PartialEq)]
#[expect(missing_docs, reason = "the fields are Consul's keys, and mean what its manual says")]
pub struct Declaration {
    pub id: Option<String>,
    pub name: Option<String>,
    pub notes: Option<String>,
    pub service_id: Option<String>,
    pub args: Vec<String>,
    pub script: Option<String>,
    pub http: Option<String>,
    pub method: Option<String>,
    pub header: BTreeMap<String, Vec<String>>,
    pub body: Option<String>,
    pub disable_redirects: bool,
    pub tls_skip_verify: bool,
    pub tls_server_name: Option<String>,
    pub tcp: Option<String>,
    pub tcp_use_tls: bool,
    pub udp: Option<String>,
    pub grpc: Option<String>,
    pub grpc_use_tls: bool,
    pub h2ping: Option<String>,
    pub h2ping_use_tls: Option<bool>,
    pub ttl: Option<Duration>,
    pub alias_node: Option<String>,
    pub alias_service: Option<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub status: Option<String>,
    pub success_before_passing: u32,
    pub failures_before_warning: u32,
    pub failures_before_critical: u32,
    pub deregister_critical_service_after: Option<Duration>,
    pub output_max_size: usize,
    /// Keys of Consul's for what is not done here, as they were spelled.
    pub unsupported: Vec<String>,
    /// Keys that Consul does not have either. Its files may not contain them; its API lets them pass, and who reads
    /// from there clears this list.
    pub unknown: Vec<String>,
}

impl<'de> Deserialize<'de> for Declaration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Visitor)
    }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Declaration;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("the definition of a check")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Declaration, A::Error> {
        let mut check = Declaration::default();
        while let Some(key) = map.next_key::<String>()? {
            let map = &mut map;
            match key.replace('_', "").to_ascii_lowercase().as_str() {
                "id" | "checkid" => check.id = text(map)?,
                "name" => check.name = text(map)?,
                "notes" => check.notes = text(map)?,
                "serviceid" => check.service_id = text(map)?,
                "args" | "scriptargs" => check.args = value(map)?,
                "script" => check.script = text(map)?,
                "http" => check.http = text(map)?,
                "method" => check.method = text(map)?,
                "header" => check.header = value(map)?,
                "body" => check.body = text(map)?,
                "disableredirects" => check.disable_redirects = value(map)?,
                "tlsskipverify" => check.tls_skip_verify = value(map)?,
                "tlsservername" => check.tls_server_name = text(map)?,
                "tcp" => check.tcp = text(map)?,
                "tcpusetls" => check.tcp_use_tls = value(map)?,
                "udp" => check.udp = text(map)?,
                "grpc" => check.grpc = text(map)?,
                "grpcusetls" => check.grpc_use_tls = value(map)?,
                "h2ping" => check.h2ping = text(map)?,
                "h2pingusetls" => check.h2ping_use_tls = map.next_value()?,
                "ttl" => check.ttl = duration(map)?,
                "aliasnode" => check.alias_node = text(map)?,
                "aliasservice" => check.alias_service = text(map)?,
                "interval" => check.interval = duration(map)?,
                "timeout" => check.timeout = duration(map)?,
                "status" => check.status = text(map)?,
                "successbeforepassing" => check.success_before_passing = value(map)?,
                "failuresbeforewarning" => check.failures_before_warning = value(map)?,
                "failuresbeforecritical" => check.failures_before_critical = value(map)?,
                "deregistercriticalserviceafter" => check.deregister_critical_service_after = duration(map)?,
                "outputmaxsize" => check.output_max_size = value(map)?,
                "dockercontainerid" | "osservice" => {
                    if text(map)?.is_some() {
                        check.unsupported.push(key);
                    }
                }
                // Of no meaning here: who may register, Consul Enterprise, and the shell of Docker's checks.
                "token" | "namespace" | "partition" | "shell" => {
                    map.next_value::<IgnoredAny>()?;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    check.unknown.push(key);
                }
            }
        }
        Ok(check)
    }
}

fn value<'de, T: Default + Deserialize<'de>, A: MapAccess<'de>>(map: &mut A) -> Result<T, A::Error> {
    Ok(map.next_value::<Option<T>>()?.unwrap_or_default())
}

fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<String>, A::Error> {
    Ok(map.next_value::<Option<String>>()?.filter(|text| !text.is_empty()))
}

fn duration<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Duration>, A::Error> {
    let written = map.next_value::<Option<GoDuration>>()?;
    Ok(written.map(|GoDuration(duration)| duration).filter(|duration| !duration.is_zero()))
}
