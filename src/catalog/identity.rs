//! Which node we are, in which datacenter, and under which domain.
//!
//! The configuration says so; where it does not, the agent keys of the definition files do, and where they do not, the
//! host does.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
};

use super::{
    Config,
    config::read_domain,
    model::{Host, Node, Tagged},
};
use crate::{files, wire::Name};

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
    /// Its address; unspecified as long as nobody knows it.
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
    /// The one from which it sends by its default route.
    pub default_address: Option<Ipv4Addr>,
}

/// What of our identity the host does not tell clearly. It may do so later, so none is fatal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// No name for our node.
    #[error("this host has no name, so its node is called {UNNAMED} until it has one; or set catalog.node_name")]
    NoName,
    /// No address.
    #[error(
        "this host has no address for its own node yet, so services on it are answered with SERVFAIL; they are served as soon \
         as it has one; or set catalog.address"
    )]
    NoAddress,
    /// Several addresses, and no default route to choose by.
    #[error(
        "this host has {0} private IPv4 addresses and no default route, so the address of its own node is not known and \
         services on it are answered with SERVFAIL; set catalog.address"
    )]
    NoChoice(usize),
    /// One of several addresses, or one that is public.
    #[error(
        "this host has {count} private IPv4 addresses; its own node gets {address}, that of the default route; set \
         catalog.address if it should have another"
    )]
    Chosen {
        /// The address.
        address: Ipv4Addr,
        /// How many private ones there are.
        count: usize,
    },
}

impl Identity {
    /// Our identity by the configuration, else by the agent keys, else by the host; and what the host leaves in doubt.
    pub fn new(config: &Config, agent: &Agent, system: &System) -> (Self, Vec<Doubt>) {
        let mut doubts = Vec::new();
        // Both are checked where they are read.
        let said = |key, ours: &Option<String>, theirs: &Option<String>| {
            ours.as_ref().or(theirs.as_ref()).and_then(|text| read_domain(key, text).ok())
        };
        let either = |ours: &Option<String>, theirs: &Option<String>| ours.clone().or_else(|| theirs.clone());
        let mut node_name = either(&config.node_name, &agent.node_name).unwrap_or_else(|| system.hostname.clone());
        // Where others know all services, nobody asks for our own node.
        let is_needed = config.has_own_node() || config.consul.is_none();
        if node_name.is_empty() && is_needed {
            doubts.push(Doubt::NoName);
            UNNAMED.clone_into(&mut node_name);
        }
        let address = match config.address.or(agent.address) {
            Some(address) => address,
            None => match choose_address(system) {
                Ok((address, doubt)) => {
                    doubts.extend(doubt.filter(|_| is_needed));
                    address.into()
                }
                Err(doubt) => {
                    doubts.extend(Some(doubt).filter(|_| is_needed));
                    Ipv4Addr::UNSPECIFIED.into()
                }
            },
        };
        let domain = said("domain", &config.domain, &agent.domain).or_else(|| read_domain("domain", "consul").ok());
        let identity = Self {
            domain: domain.unwrap_or_else(Name::root),
            alt_domain: said("alt_domain", &config.alt_domain, &agent.alt_domain),
            datacenter: either(&config.datacenter, &agent.datacenter).unwrap_or_else(|| "dc1".to_owned()),
            node_name,
            address,
            node_meta: agent.node_meta.clone(),
            tagged: agent.tagged.clone(),
        };
        (identity, doubts)
    }

    /// Returns true if it depends on what the host is called and which addresses it has.
    pub fn depends_on_host(config: &Config, agent: &Agent) -> bool {
        let is_named = config.node_name.is_some() || agent.node_name.is_some();
        !is_named || (config.address.is_none() && agent.address.is_none())
    }

    /// Keeps the address of `previous` if there is none now: a lease that is renewed must not cost any answer.
    pub fn keep_address(&mut self, previous: &Self, doubts: &mut Vec<Doubt>) {
        if self.address.is_unspecified() && !previous.address.is_unspecified() {
            self.address = previous.address;
            doubts.retain(|doubt| !matches!(doubt, Doubt::NoAddress | Doubt::NoChoice(_)));
        }
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
        let system = System { hostname: "own".to_owned(), addresses: Vec::new(), default_address: None };
        Self::new(config, &agent, &system).0
    }
}

impl System {
    /// What this host says.
    pub fn read() -> Self {
        let read = |path: &str| files::read_text(Path::new(path)).unwrap_or_default();
        Self {
            hostname: host_name(),
            // By way of our own process, where a sandbox may show no more of /proc.
            addresses: own_addresses(&read("/proc/self/net/fib_trie")),
            default_address: default_address(),
        }
    }
}

/// The address of our own node: the only private one, else that of the default route.
fn choose_address(system: &System) -> Result<(Ipv4Addr, Option<Doubt>), Doubt> {
    let private: Vec<Ipv4Addr> = system.addresses.iter().copied().filter(Ipv4Addr::is_private).collect();
    match (&private[..], system.default_address) {
        ([only], _) => Ok((*only, None)),
        (several, Some(address)) => Ok((address, Some(Doubt::Chosen { address, count: several.len() }))),
        ([], None) => Err(Doubt::NoAddress),
        (several, None) => Err(Doubt::NoChoice(several.len())),
    }
}

/// The address from which the kernel would send to an address that only the default route leads to (RFC 5737). Connecting a
/// datagram socket sends nothing.
fn default_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 53)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_unspecified() && !address.is_loopback() => Some(address),
        _ => None,
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

/// The name of a node whose host has none.
const UNNAMED: &str = "localhost";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_precedes_the_agent_keys_and_those_the_host() {
        let addresses = own_addresses(TABLE);
        let system = System { hostname: "host".into(), addresses, default_address: None };
        assert_eq!(system.addresses, [Ipv4Addr::new(10, 0, 0, 5), Ipv4Addr::LOCALHOST]);
        let agent = Agent { node_name: Some("agent".into()), domain: Some("lab.".into()), ..Agent::default() };
        let config = Config { node_name: Some("config".into()), ..Config::default() };
        let (identity, doubts) = Identity::new(&Config::default(), &Agent::default(), &system);
        assert_eq!((&*identity.node_name, identity.address), ("host", [10, 0, 0, 5].into()));
        assert_eq!((identity.domain.to_string(), &*identity.datacenter), ("consul.".into(), "dc1"));
        assert_eq!(doubts, []);
        let (identity, _) = Identity::new(&Config::default(), &agent, &system);
        assert_eq!((&*identity.node_name, identity.domain.to_string()), ("agent", "lab.".into()));
        assert_eq!(Identity::new(&config, &agent, &system).0.node_name, "config");
    }

    #[test]
    fn the_address_is_the_only_private_one_or_that_of_the_default_route() {
        let (public, first, second) =
            (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(172, 17, 0, 1));
        let unknown = Ipv4Addr::UNSPECIFIED;
        let chosen = |address, count| Some(Doubt::Chosen { address, count });
        for (addresses, default_address, expected, doubt) in [
            (vec![first], None, first, None),
            (vec![first, public], Some(public), first, None),
            (vec![], None, unknown, Some(Doubt::NoAddress)),
            (vec![public], None, unknown, Some(Doubt::NoAddress)),
            (vec![public], Some(public), public, chosen(public, 0)),
            (vec![first, second], Some(first), first, chosen(first, 2)),
            (vec![second, first], Some(first), first, chosen(first, 2)),
            (vec![first, second], None, unknown, Some(Doubt::NoChoice(2))),
        ] {
            let system = System { hostname: "host".into(), addresses, default_address };
            let (mut identity, mut doubts) = Identity::new(&Config::default(), &Agent::default(), &system);
            assert_eq!((identity.address, doubts.first()), (expected.into(), doubt.as_ref()), "{system:?}");
            // What was known once is not forgotten.
            let is_known = !expected.is_unspecified();
            identity.keep_address(&Identity { address: second.into(), ..identity.clone() }, &mut doubts);
            assert_eq!(identity.address, if is_known { expected } else { second }, "{system:?}");
            assert_eq!(doubts.is_empty(), !is_known || doubt.is_none(), "{system:?}");
        }
        let nameless = System { addresses: vec![first], ..System::default() };
        let (identity, doubts) = Identity::new(&Config::default(), &Agent::default(), &nameless);
        assert_eq!((&*identity.node_name, &doubts[..]), ("localhost", &[Doubt::NoName][..]));
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
