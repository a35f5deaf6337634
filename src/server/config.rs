//! The section `[server]`: what faces clients.

use std::{
    collections::HashSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use humantime_serde::re::humantime::format_duration;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::Acl;

/// What faces clients, section `[server]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The addresses served, each by UDP and TCP: `IP`, `IP:PORT` or `[IPv6]:PORT`; the port is 53 unless given.
    /// Default `["127.0.0.1:53", "[::1]:53"]`. Applies at reload.
    #[serde(deserialize_with = "deserialize_listen")]
    pub listen: Vec<SocketAddr>,
    /// The clients served: networks, or `loopback`, `private`, `any`; others are REFUSED.
    /// Default `["loopback", "private"]`. Applies at reload.
    pub allow: Acl,
    /// Threads that serve UDP, from 1 to 64; 0 takes one per core, at most 4.
    /// Default 0. Applies at restart.
    pub workers: usize,
    /// The largest UDP reply to a client elsewhere that takes as much, in bytes, from 512 to 65535; what is larger than
    /// the path's MTU is lost or forged easily.
    /// Default 1232. Applies at reload.
    pub udp_size: u16,
    /// The same for clients on this host, where no datagram is lost for its size.
    /// Default 16384. Applies at reload.
    pub udp_size_loopback: u16,
    /// TCP connections in all, from 1 to 65536; one more closes the one that was idle longest.
    /// Default 1024. Applies at reload.
    pub tcp_connections: usize,
    /// TCP connections of one client address, from 1 to 65536; more are closed at once.
    /// Default 128. Applies at reload.
    pub tcp_connections_per_client: usize,
    /// How long a TCP connection may stay open with nothing asked, from "1s" to "10m".
    /// Default "30s". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub tcp_idle_timeout: Duration,
    /// How long a TCP client may take to send a query it has begun, or to take a reply, from "100ms" to "1m".
    /// Default "3s". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub tcp_message_timeout: Duration,
    /// Questions that may wait for a response at once, from 16 to 1048576; one more is answered SERVFAIL.
    /// Default 16384. Applies at restart.
    pub max_in_flight: usize,
    /// Questions that tasks may forward at once, for they need a stream or came by one, from 16 to 1048576; one more is
    /// answered SERVFAIL.
    /// Default 4096. Applies at reload.
    pub max_queue: usize,
    /// Where what shall survive a restart is kept.
    /// Default: none, which takes systemd's `STATE_DIRECTORY`, if it is set. Applies at restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_directory: Option<PathBuf>,
}

/// What is wrong with the section `[server]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A value that would not serve.
    #[error("{key} is {value}; choose from {least} to {most}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The smallest that is allowed.
        least: String,
        /// The largest that is allowed.
        most: String,
    },
    /// Nothing to listen on.
    #[error("there is no address to listen on; name one, such as \"127.0.0.1:53\"")]
    NoListen,
    /// An address that stands there twice.
    #[error("the address {0} is listed twice; remove one")]
    ListenTwice(SocketAddr),
}

impl Problem {
    /// The key that is to blame.
    pub fn key(&self) -> &'static str {
        match self {
            Self::OutOfRange { key, .. } => key,
            Self::NoListen | Self::ListenTwice(_) => "listen",
        }
    }
}

impl Config {
    /// All that is wrong with it.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut seen = HashSet::new();
        // Port 0 is any free port, and another one each time.
        let repeated = self.listen.iter().filter(|address| address.port() != 0 && !seen.insert(**address));
        problems.extend(repeated.copied().map(Problem::ListenTwice));
        if self.listen.is_empty() {
            problems.push(Problem::NoListen);
        }
        for (key, value, range) in [
            ("workers", self.workers, 0..=64),
            ("udp_size", self.udp_size.into(), 512..=65_535),
            ("udp_size_loopback", self.udp_size_loopback.into(), 512..=65_535),
            ("tcp_connections", self.tcp_connections, 1..=65_536),
            ("tcp_connections_per_client", self.tcp_connections_per_client, 1..=65_536),
            ("max_in_flight", self.max_in_flight, 16..=1_048_576),
            ("max_queue", self.max_queue, 16..=1_048_576),
        ] {
            problems.extend(out_of_range(key, &value, &range, usize::to_string));
        }
        let millis = Duration::from_millis;
        for (key, value, range) in [
            ("tcp_idle_timeout", self.tcp_idle_timeout, millis(1000)..=millis(600_000)),
            ("tcp_message_timeout", self.tcp_message_timeout, millis(100)..=millis(60_000)),
        ] {
            problems.extend(out_of_range(key, &value, &range, |span| format_duration(*span).to_string()));
        }
        problems
    }
}

fn out_of_range<T: PartialOrd>(
    key: &'static str,
    value: &T,
    range: &RangeInclusive<T>,
    print: impl Fn(&T) -> String,
) -> Option<Problem> {
    let problem =
        || Problem::OutOfRange { key, value: print(value), least: print(range.start()), most: print(range.end()) };
    (!range.contains(value)).then(problem)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![(Ipv4Addr::LOCALHOST, DNS_PORT).into(), (Ipv6Addr::LOCALHOST, DNS_PORT).into()],
            allow: Acl::default(),
            workers: 0,
            udp_size: 1232,
            udp_size_loopback: 16_384,
            tcp_connections: 1024,
            tcp_connections_per_client: 128,
            tcp_idle_timeout: Duration::from_secs(30),
            tcp_message_timeout: Duration::from_secs(3),
            max_in_flight: 16_384,
            max_queue: 4096,
            state_directory: None,
        }
    }
}

/// An address to listen on: the port is 53 unless given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddress(pub SocketAddr);

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bare = |text: &str| text.parse().map(|address: IpAddr| SocketAddr::new(address, DNS_PORT));
        let address = text.parse().or_else(|_| bare(text));
        address.map(Self).map_err(|_| format!("{text:?} is not an address; write {EXPECTED_ADDRESS}"))
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(AddressVisitor)
    }
}

fn deserialize_listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    Vec::<ListenAddress>::deserialize(deserializer).map(|listen| listen.into_iter().map(|address| address.0).collect())
}

/// Fails inside the visit, where the file's reader still knows the line.
struct AddressVisitor;

impl de::Visitor<'_> for AddressVisitor {
    type Value = ListenAddress;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED_ADDRESS)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ListenAddress, E> {
        text.parse().map_err(E::custom)
    }
}

const DNS_PORT: u16 = 53;
const EXPECTED_ADDRESS: &str = "IP, IP:PORT or [IPv6]:PORT";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_53_unless_given() {
        for (text, expected) in [
            ("127.0.0.1", Some("127.0.0.1:53")),
            ("::", Some("[::]:53")),
            ("192.0.2.1:5300", Some("192.0.2.1:5300")),
            ("[2001:db8::1]:0", Some("[2001:db8::1]:0")),
            ("localhost:53", None),
            (":53", None),
            ("", None),
        ] {
            let address = text.parse::<ListenAddress>().ok().map(|address| address.0.to_string());
            assert_eq!(address.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn the_ends_of_a_range_belong_to_it() {
        let faults = |change: fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            config.problems().iter().map(|problem| problem.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(faults(|_| {}), [""; 0]);
        assert_eq!(
            faults(|c| (c.workers, c.udp_size, c.tcp_idle_timeout) = (64, 512, Duration::from_secs(600))),
            [""; 0]
        );
        assert_eq!(faults(|c| c.workers = 65), ["workers is 65; choose from 0 to 64"]);
        assert_eq!(faults(|c| c.udp_size = 511), ["udp_size is 511; choose from 512 to 65535"]);
        assert_eq!(
            faults(|c| c.tcp_idle_timeout = Duration::from_secs(601)),
            ["tcp_idle_timeout is 10m 1s; choose from 1s to 10m"]
        );
        assert_eq!(faults(|c| c.listen.clear()).len(), 1);
        assert_eq!(faults(|c| c.listen = vec![([127, 0, 0, 1], 0).into(); 2]), [""; 0]);
        assert_eq!(faults(|c| c.listen = vec![([127, 0, 0, 1], 1).into(); 2]).len(), 1);
    }
}
