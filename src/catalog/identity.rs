//! Which node we are, in which datacenter, and under which domain.
//!
//! The configuration says so; where it does not, the agent keys of the definition files do, and where they do not, the
//! host does.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    Config, Problem,
    config::read_domain,
    model::{Host, Node, Tagged},
};
use crate::wire::Name;

/// Who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The domain of our names.
    pub domain: Name,
    /// A second one.
    pub alt_domain: Option<Name>,
    /// Our datacenter.
    pub datacenter: String,
    /// Our node.
    pub node_name: String,
    /// Its address; unspecified where no service runs on our own node, and nobody knows the address.
    pub address: IpAddr,
    /// Its meta.
    pub node_meta: BTreeMap<String, String>,
    /// Its other addresses.
    pub tagged: BTreeMap<String, Tagged>,
}

/// What the agent keys of the definition files say of us.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Agent {
    /// `domain`.
    pub domain: Option<String>,
    /// `alt_domain`.
    pub alt_domain: Option<String>,
    /// `datacenter`.
    pub datacenter: Option<String>,
    /// `node_name`.
    pub node_name: Option<String>,
    /// `advertise_addr`, else `bind_addr`, if it is an address of ours alone.
    pub address: Option<IpAddr>,
    /// `node_meta`.
    pub node_meta: BTreeMap<String, String>,
    /// `tagged_addresses`.
    pub tagged: BTreeMap<String, Tagged>,
}

/// What the host says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct System {
    /// Its name.
    pub hostname: String,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
}

/// Why nobody knows who we are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// A domain in the definition files that is none.
    #[error("definition files: {0}")]
    Domain(#[from] Problem),
    /// No name for our node.
    #[error("this host has no name; set catalog.node_name")]
    NoName,
    /// No address, or more than one to choose from.
    #[error(
        "the address of our own node is not known, for this host has {0} private IPv4 addresses; set catalog.address"
    )]
    NoAddress(usize),
}

impl Identity {
    /// Who we are by the word of these three, the first that speaks.
    pub fn new(config: &Config, agent: &Agent, system: &System) -> Result<Self, Unknown> {
        let said = |key, ours: &Option<String>, theirs: &Option<String>| {
            ours.as_ref().or(theirs.as_ref()).map(|text| read_domain(key, text)).transpose()
        };
        let either = |ours: &Option<String>, theirs: &Option<String>| ours.clone().or_else(|| theirs.clone());
        let node_name = either(&config.node_name, &agent.node_name).unwrap_or_else(|| system.hostname.clone());
        // Where others know all services, nobody asks for our own node.
        let is_needed = config.has_own_node() || config.consul.is_none();
        if node_name.is_empty() && is_needed {
            return Err(Unknown::NoName);
        }
        let private: Vec<_> = system.addresses.iter().filter(|address| address.is_private()).collect();
        let address = match (config.address.or(agent.address), &private[..]) {
            (Some(address), _) => address,
            (None, [only]) => IpAddr::V4(**only),
            (None, several) if is_needed => return Err(Unknown::NoAddress(several.len())),
            (None, _) => Ipv4Addr::UNSPECIFIED.into(),
        };
        Ok(Self {
            domain: match said("domain", &config.domain, &agent.domain)? {
                Some(domain) => domain,
                None => read_domain("domain", "consul")?,
            },
            alt_domain: said("alt_domain", &config.alt_domain, &agent.alt_domain)?,
            datacenter: either(&config.datacenter, &agent.datacenter).unwrap_or_else(|| "dc1".to_owned()),
            node_name,
            address,
            node_meta: agent.node_meta.clone(),
            tagged: agent.tagged.clone(),
        })
    }

    /// Our own node, as an agent registers itself.
    pub fn node(&self) -> Node {
        let mut meta = self.node_meta.clone();
        // Agents have this key always, and TXT records show it.
        meta.entry("consul-network-segment".to_owned()).or_default();
        Node {
            name: (*self.node_name).into(),
            datacenter: (*self.datacenter).into(),
            address: Host::Ip(self.address.to_canonical()),
            tagged: self.tagged.clone(),
            meta,
            checks: Vec::new(),
        }
    }

    /// Who we are by this configuration on a host of no interest.
    #[cfg(test)]
    pub(super) fn of(config: &Config) -> Self {
        let agent = Agent { address: Some([192, 0, 2, 1].into()), ..Agent::default() };
        let system = System { hostname: "own".to_owned(), addresses: Vec::new() };
        Self::new(config, &agent, &system).expect("a test says who we are")
    }
}

impl System {
    /// What this host says.
    pub fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            hostname: host_name(),
            // By way of our own process, where a sandbox may show no more of /proc.
            addresses: own_addresses(&read("/proc/self/net/fib_trie")),
        }
    }
}

/// The name that the kernel has for this host; empty if it has none.
pub fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // What a host is called that nobody has named.
    if name == "(none)" { String::new() } else { name }
}

/// The addresses that the kernel's table of routes calls local, each once.
///
/// There, the line that says so follows the line of its address: `|-- 192.0.2.1` and then `/32 host LOCAL`.
fn own_addresses(table: &str) -> Vec<Ipv4Addr> {
    let mut addresses = Vec::new();
    let mut last = None;
    for line in table.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line == "/32 host LOCAL" {
            addresses.extend(last.filter(|address| !addresses.contains(address)));
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_precedes_the_agent_keys_and_those_the_host() {
        let system = System { hostname: "host".into(), addresses: own_addresses(TABLE) };
        assert_eq!(system.addresses, [Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::LOCALHOST]);
        let agent = Agent { node_name: Some("agent".into()), domain: Some("lab.".into()), ..Agent::default() };
        let config = Config { node_name: Some("config".into()), ..Config::default() };
        let identity = Identity::new(&Config::default(), &Agent::default(), &system).unwrap();
        assert_eq!((&*identity.node_name, identity.address), ("host", [10, 0, 0, 5].into()));
        assert_eq!((identity.domain.to_string(), &*identity.datacenter), ("consul.".into(), "dc1"));
        let identity = Identity::new(&Config::default(), &agent, &system).unwrap();
        assert_eq!((&*identity.node_name, identity.domain.to_string()), ("agent", "lab.".into()));
        assert_eq!(Identity::new(&config, &agent, &system).unwrap().node_name, "config");
    }

    #[test]
    fn without_one_private_address_one_must_be_named() {
        let mut system = System { hostname: "host".into(), addresses: vec![[192, 0, 2, 1].into()] };
        let identity = |system: &System| Identity::new(&Config::default(), &Agent::default(), system);
        assert_eq!(identity(&system), Err(Unknown::NoAddress(0)));
        system.addresses = vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        assert_eq!(identity(&system), Err(Unknown::NoAddress(2)));
    }

    const TABLE: &str = "\
Local:
  +-- 0.0.0.0/0 3 0 5
     |-- 10.0.0.5
        /32 host LOCAL
     |-- 127.0.0.0
        /8 host LOCAL
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 10.0.0.5
        /32 host LOCAL
     |-- 10.0.0.255
        /32 link BROADCAST
";
}
