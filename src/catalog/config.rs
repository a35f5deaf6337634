//! The section `[catalog]`: Consul's `dns_config` keys by the same names, and where the catalog comes from.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use humantime_serde::re::humantime::format_duration;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::{Identity, model::NodeKey, policy::Rules, source::consul};
use crate::endpoint::Endpoint;
use crate::wire::{Name, SuffixError, read_name};

/// The discovery catalog, section `[catalog]`. It exists only if one of its sources does.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The domain of the catalog's names. Default: `domain` of the definition files, then "consul". Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// A second domain for the same names; what is asked there is answered there. Default: `alt_domain` of the
    /// definition files, then none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alt_domain: Option<String>,
    /// Our own datacenter, which names without one mean. Default: `datacenter` of the definition files, then "dc1".
    /// Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// Our own node, on which the services of definition files run. Default: `node_name` of the definition files, then
    /// the host's name. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// The address of our own node. Default: `advertise_addr` of the definition files, then `bind_addr`, then the only
    /// private IPv4 address of this host, then that of its default route, as soon as there is one. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// TTL of the names of nodes and addresses. Default "0s", up to "7d". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub node_ttl: Duration,
    /// TTL of the names of services: by the name, else by the longest `prefix*` that fits. Default { "*" = "0s" }, each
    /// up to "7d". Applies at reload.
    pub service_ttl: BTreeMap<String, Span>,
    /// Whether an instance whose check warns is left out like one whose check is critical. Default false. Applies at
    /// reload.
    pub only_passing: bool,
    /// Whether an answer cut to `udp_answer_limit` says so (TC). One cut for its size does unless that or `a_record_limit`
    /// is set. Default false. Applies at reload.
    pub enable_truncate: bool,
    /// Most addresses in an answer; 0 for all. Default 0. Applies at reload.
    pub a_record_limit: u16,
    /// Most records in the answer to a UDP client that takes no more than 512 octets, from 1 to 8. Default: as many as
    /// fit, where Consul gives 3. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub udp_answer_limit: Option<u16>,
    /// Whether the meta of nodes goes along as TXT records beside their addresses and SRV records. Default true. Applies
    /// at reload.
    pub enable_additional_node_meta_txt: bool,
    /// The numbers of SOA records. Applies at reload.
    pub soa: SoaConfig,
    /// How long the last that was known is given while a source is lost. Default "1h", from "0s" to "30d". Applies at
    /// reload.
    #[serde(with = "humantime_serde")]
    pub max_stale: Duration,
    /// How long instances on other hosts stay as they were while we are cut off from all of them: every check of one fails
    /// and our own link is at fault, without carrier, route or any upstream. Then what the checks say counts again. Default
    /// "5m", from "0s" (never) to "1d". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub cut_off_hold: Duration,
    /// Taken for the sake of Consul's configuration: it changes nothing here. Default true.
    pub allow_stale: bool,
    /// Taken for the sake of Consul's configuration: it changes nothing here. Default false.
    pub use_cache: bool,
    /// Taken for the sake of Consul's configuration: names are always compressed. Default false.
    pub disable_compression: bool,
    /// Definition files as a source. Default: none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<FilesConfig>,
    /// Consul's HTTP API, and what is registered over it. Applies at reload.
    pub api: ApiConfig,
    /// A Consul agent as a source. Default: none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consul: Option<consul::Config>,
    /// Which instances of a service are given, by its name. Default: every healthy one. Applies at reload.
    pub service: BTreeMap<String, Rules>,
}

/// Definition files as Consul reads them, section `[catalog.files]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// The folder; `*.json` and `*.hcl` in it and below are read, and watched. No default. Applies at reload.
    pub directory: PathBuf,
    /// Whether checks may run programs: `args` and `script`. They come from files alone, never from the network. Default
    /// false. Applies at reload.
    #[serde(default)]
    pub enable_script_checks: bool,
    /// The most bytes of a definition file, from 64 KiB to 1 GiB. A larger file is a faulty one. Reading takes up to thirty
    /// times as much memory. Default "8MiB". Applies at reload.
    #[serde(default = "default_file_bytes")]
    pub max_file_bytes: ByteSize,
}

impl FilesConfig {
    /// The files of a folder, all else by default.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, enable_script_checks: false, max_file_bytes: default_file_bytes() }
    }
}

fn default_file_bytes() -> ByteSize {
    ByteSize::mib(8)
}

/// Consul's HTTP API, section `[catalog.api]`. It answers from the catalog, if there is one, on the control address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// An address of its own, beside that of `[control]`, on which nothing else is served. Default: none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Endpoint>,
    /// Whether services and checks may be registered, and set into maintenance. They never run programs. What is
    /// registered is a source of the catalog, and outlives a restart if there is a state directory. Default false. Applies
    /// at reload.
    pub enable_registration: bool,
    /// Whoever changes anything must show it, as `X-Consul-Token`. Without one, those on loopback addresses may, and nobody
    /// else. Default: none. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
}

/// A secret, which no log shows.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Token(String);

impl Token {
    /// Returns true if `shown` is this token. The time that this takes reveals its length alone.
    pub fn is(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(shown).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"...\"")
    }
}

/// The numbers of SOA records, section `[catalog.soa]`, in seconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SoaConfig {
    /// EXPIRE. Default 86400.
    pub expire: u32,
    /// REFRESH. Default 3600.
    pub refresh: u32,
    /// RETRY. Default 600.
    pub retry: u32,
    /// MINIMUM, which is how long others may keep a denial. Default 0.
    pub min_ttl: u32,
}

/// A duration within a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Span(#[serde(with = "humantime_serde")] pub Duration);

/// What is wrong with the section `[catalog]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A domain that is no name.
    #[error("{key} {text:?}: {error}")]
    NotAName {
        /// The key.
        key: &'static str,
        /// As written.
        text: String,
        /// Why not.
        error: SuffixError,
    },
    /// A domain that would claim everything.
    #[error("{0} is the root; choose a domain of its own for the catalog, such as \"consul\"")]
    Root(&'static str),
    /// A datacenter or node that no question could name.
    #[error("{key} {text:?} cannot stand in a name; use letters, digits and hyphens")]
    Unspeakable {
        /// The key.
        key: &'static str,
        /// As written.
        text: String,
    },
    /// A value that would not serve.
    #[error("{key} is {value}; choose {range}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        range: &'static str,
    },
    /// A value of the section of an agent.
    #[error("{key} of catalog.consul is {value}; choose {range}")]
    Agent {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        range: &'static str,
    },
    /// A value of a section of a service.
    #[error("{key} of service {service} is out of range; choose {range}")]
    ServiceOutOfRange {
        /// The service.
        service: String,
        /// The key.
        key: &'static str,
        /// What is allowed.
        range: &'static str,
    },
    /// A token that anybody can guess.
    #[error("api.token is empty; write a long one of random letters, or leave it out")]
    EmptyToken,
    /// A preference where there is nothing to prefer.
    #[error("service {0} has an order or prefer_tag but not policy = \"one\"; add that, or remove them")]
    NothingToPrefer(String),
}

impl Problem {
    /// The key of `[catalog]` that is at fault.
    pub fn key(&self) -> &'static str {
        match self {
            Self::NotAName { key, .. } | Self::Unspeakable { key, .. } | Self::OutOfRange { key, .. } => key,
            Self::Root(key) => key,
            Self::EmptyToken => "api",
            Self::Agent { .. } => "consul",
            Self::ServiceOutOfRange { .. } | Self::NothingToPrefer(_) => "service",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            domain: None,
            alt_domain: None,
            datacenter: None,
            node_name: None,
            address: None,
            node_ttl: Duration::ZERO,
            service_ttl: BTreeMap::from([("*".to_owned(), Span(Duration::ZERO))]),
            only_passing: false,
            enable_truncate: false,
            a_record_limit: 0,
            udp_answer_limit: None,
            enable_additional_node_meta_txt: true,
            soa: SoaConfig::default(),
            max_stale: Duration::from_secs(3600),
            cut_off_hold: Duration::from_secs(300),
            allow_stale: true,
            use_cache: false,
            disable_compression: false,
            files: None,
            api: ApiConfig::default(),
            consul: None,
            service: BTreeMap::new(),
        }
    }
}

impl Default for SoaConfig {
    fn default() -> Self {
        Self { expire: 86_400, refresh: 3600, retry: 600, min_ttl: 0 }
    }
}

impl Config {
    /// Whether there is anything that says what is in the catalog: without, there is none.
    pub fn has_source(&self) -> bool {
        self.has_own_node() || self.consul.is_some()
    }

    /// Whether services may run on our own node.
    pub fn has_own_node(&self) -> bool {
        self.files.is_some() || self.api.enable_registration
    }

    /// All that is wrong with it.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, text) in [("domain", &self.domain), ("alt_domain", &self.alt_domain)] {
            let Some(text) = text else { continue };
            problems.extend(read_domain(key, text).err());
        }
        if let Some(text) = self.datacenter.as_ref().filter(|text| !is_label(text)) {
            problems.push(Problem::Unspeakable { key: "datacenter", text: text.clone() });
        }
        // The name of a node may hold dots.
        if let Some(text) = self.node_name.as_ref().filter(|text| !text.split('.').all(is_label)) {
            problems.push(Problem::Unspeakable { key: "node_name", text: text.clone() });
        }
        let mut check = |key, in_range: bool, value: String, range| {
            if !in_range {
                problems.push(Problem::OutOfRange { key, value, range });
            }
        };
        let text = |span: Duration| format_duration(span).to_string();
        check("node_ttl", self.node_ttl <= WEEK, text(self.node_ttl), "from \"0s\" to \"7d\"");
        for (name, Span(ttl)) in &self.service_ttl {
            check("service_ttl", *ttl <= WEEK, format!("{} for {name}", text(*ttl)), "from \"0s\" to \"7d\"");
        }
        check("max_stale", self.max_stale <= MONTH, text(self.max_stale), "from \"0s\" to \"30d\"");
        check("cut_off_hold", self.cut_off_hold <= DAY, text(self.cut_off_hold), "from \"0s\" to \"1d\"");
        let limit = self.udp_answer_limit.unwrap_or(1);
        check("udp_answer_limit", (1..=8).contains(&limit), limit.to_string(), "from 1 to 8");
        if let Some(bytes) = self.files.as_ref().map(|files| files.max_file_bytes) {
            let is_good = (ByteSize::kib(64)..=ByteSize::gib(1)).contains(&bytes);
            check("files", is_good, format!("set to max_file_bytes = {bytes}"), "from 64 KiB to 1 GiB");
        }
        if self.api.token.as_ref().is_some_and(|token| token.0.is_empty()) {
            problems.push(Problem::EmptyToken);
        }
        let of_agent = self.consul.iter().flat_map(consul::Config::problems);
        problems.extend(of_agent.map(|(key, value, range)| Problem::Agent { key, value, range }));
        for (service, rules) in &self.service {
            let found = rules.out_of_range().into_iter();
            problems.extend(found.map(|(key, range)| Problem::ServiceOutOfRange {
                service: service.clone(),
                key,
                range,
            }));
            if rules.has_idle_preference() {
                problems.push(Problem::NothingToPrefer(service.clone()));
            }
        }
        problems
    }

    /// All that answers depend on, for the node that we are.
    pub fn settings(&self, identity: &Identity) -> Settings {
        let seconds = |span: Duration| span.as_secs().try_into().unwrap_or(u32::MAX);
        Settings {
            domains: [&identity.domain].into_iter().chain(&identity.alt_domain).cloned().collect(),
            datacenter: identity.datacenter.to_lowercase(),
            node_name: identity.node_name.to_lowercase(),
            node_ttl: seconds(self.node_ttl),
            service_ttl: self.service_ttl.iter().map(|(name, span)| (name.to_lowercase(), seconds(span.0))).collect(),
            only_passing: self.only_passing,
            admits_cuts: self.enable_truncate || (self.a_record_limit == 0 && self.udp_answer_limit.is_none()),
            a_record_limit: Some(self.a_record_limit).filter(|&limit| limit > 0),
            udp_answer_limit: self.udp_answer_limit,
            node_meta_txt: self.enable_additional_node_meta_txt,
            soa: self.soa.clone(),
            rules: self.service.iter().map(|(name, rules)| (name.to_lowercase(), rules.clone())).collect(),
        }
    }
}

/// All that answers depend on besides the catalog itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The domain, then the second one.
    pub(super) domains: Vec<Name>,
    /// In lower case, as all keys below.
    pub(super) datacenter: String,
    pub(super) node_name: String,
    pub(super) node_ttl: u32,
    service_ttl: BTreeMap<String, u32>,
    pub(super) only_passing: bool,
    pub(super) admits_cuts: bool,
    pub(super) a_record_limit: Option<u16>,
    pub(super) udp_answer_limit: Option<u16>,
    pub(super) node_meta_txt: bool,
    pub(super) soa: SoaConfig,
    pub(super) rules: BTreeMap<String, Rules>,
}

impl Settings {
    /// The domains whose names the catalog answers.
    pub fn domains(&self) -> &[Name] {
        &self.domains
    }

    /// Our own datacenter, in lower case.
    pub fn datacenter(&self) -> &str {
        &self.datacenter
    }

    /// By what our own node is known.
    pub fn own_node(&self) -> NodeKey {
        NodeKey::new(&self.datacenter, &self.node_name)
    }

    /// The longest of our domains that `name` is at or below.
    pub(super) fn domain_of(&self, name: &Name) -> Option<&Name> {
        let claiming = self.domains.iter().filter(|domain| name.is_at_or_below(domain));
        claiming.max_by_key(|domain| domain.label_count())
    }

    /// The TTL of a service, given in lower case.
    pub(super) fn service_ttl(&self, service: &str) -> u32 {
        let exact = self.service_ttl.get(service);
        let by_prefix = || {
            let fitting = self.service_ttl.iter().filter_map(|(pattern, ttl)| Some((pattern.strip_suffix('*')?, ttl)));
            let fitting = fitting.filter(|(prefix, _)| service.starts_with(prefix));
            fitting.max_by_key(|(prefix, _)| prefix.len()).map(|(_, ttl)| ttl)
        };
        exact.or_else(by_prefix).copied().unwrap_or(0)
    }
}

/// The domain that `text` is, if it can be one.
pub(super) fn read_domain(key: &'static str, text: &str) -> Result<Name, Problem> {
    match read_name(text) {
        Ok(name) if name.is_root() => Err(Problem::Root(key)),
        Ok(name) => Ok(name.to_lower()),
        Err(error) => Err(Problem::NotAName { key, text: text.to_owned(), error }),
    }
}

/// Whether text can be a label of a name as it stands.
pub(super) fn is_label(text: &str) -> bool {
    let is_plain = |octet: u8| octet.is_ascii_graphic() && !b".\\\"".contains(&octet);
    (1..=63).contains(&text.len()) && text.bytes().all(is_plain)
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

#[cfg(test)]
impl Settings {
    /// What this text of the section comes to, on the node of [`Identity::of`].
    pub(super) fn example(text: &str) -> Self {
        let config: Config = toml::from_str(text).expect("a test writes what can be read");
        config.settings(&Identity::of(&config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_out_of_range_is_reported() {
        let config: Config = toml::from_str(
            r#"
            domain = "."
            alt_domain = "a..b"
            datacenter = "dc 1"
            node_name = "a..b"
            node_ttl = "8d"
            service_ttl = { "web*" = "1y" }
            udp_answer_limit = 9
            max_stale = "31d"
            cut_off_hold = "25h"
            api = { token = "" }
            files = { directory = "/", max_file_bytes = "2GiB" }
            [service.db]
            order = ["a"]
            hold_down = "2d"
            min_healthy = 1001
            damping = "2h"
            "#,
        )
        .unwrap();
        let problems = config.problems();
        let keys: Vec<_> = problems.iter().map(Problem::key).collect();
        assert_eq!(
            keys,
            [
                "domain",
                "alt_domain",
                "datacenter",
                "node_name",
                "node_ttl",
                "service_ttl",
                "max_stale",
                "cut_off_hold",
                "udp_answer_limit",
                "files",
                "api",
                "service",
                "service",
                "service",
                "service"
            ],
            "{problems:#?}"
        );
        assert_eq!(Config::default().problems(), []);
    }

    #[test]
    fn a_service_has_the_ttl_of_its_name_or_of_the_longest_prefix() {
        // CONSUL-DNS.md §5
        let text = r#"service_ttl = { "*" = "1s", "web*" = "2s", "web-a*" = "3s", "Web-abc" = "4s", "w" = "5s" }"#;
        let config: Config = toml::from_str(text).unwrap();
        let settings = config.settings(&Identity::of(&config));
        for (service, ttl) in [("x", 1), ("w", 5), ("web", 2), ("web-ab", 3), ("web-abc", 4), ("web-abcd", 3)] {
            assert_eq!(settings.service_ttl(service), ttl, "{service}");
        }
    }
}
