//! The section `[server]`: what faces clients.

use std::{
    collections::HashSet,
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use humantime_serde::re::humantime::format_duration;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::{Acl, RateLimitConfig, Secret};
use crate::endpoint::{Endpoint, Malformed};

/// What faces clients, section `[server]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The addresses served, each by UDP and TCP: `IP`, `IP:PORT` or `[IPv6]:PORT`; the port is 53 unless given. A link-local
    /// address names its interface, `fe80::53%eth0`, which may come late.
    /// Default `["127.0.0.1:53", "[::1]:53"]`. Applies at reload.
    #[serde(deserialize_with = "deserialize_listen::<_, DNS_PORT>")]
    pub listen: Vec<Endpoint>,
    /// The addresses served by DNS over TLS (RFC 7858), written likewise; the port is 853 unless given.
    /// Default: none. Applies at reload.
    #[serde(deserialize_with = "deserialize_listen::<_, TLS_PORT>")]
    pub tls_listen: Vec<Endpoint>,
    /// The addresses served by DNS over HTTPS (RFC 8484) with the path `/dns-query`, written likewise; the port is 443
    /// unless given.
    /// Default: none. Applies at reload.
    #[serde(deserialize_with = "deserialize_listen::<_, HTTPS_PORT>")]
    pub https_listen: Vec<Endpoint>,
    /// The addresses served by DNS over QUIC (RFC 9250), written likewise; the port is 853 unless given, and may not be 53.
    /// Its connections count among those of TCP, with the same limits.
    /// Default: none. Applies at reload.
    #[serde(deserialize_with = "deserialize_listen::<_, TLS_PORT>")]
    pub quic_listen: Vec<Endpoint>,
    /// The certificate that all of them show, and those between it and its authority: a file in PEM format.
    /// No default. Read anew at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// The private key of the certificate: a file in PEM format.
    /// No default. Read anew at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_key: Option<PathBuf>,
    /// The clients served: networks, or `loopback`, `private`, `any`; others are REFUSED.
    /// Default `["loopback", "private"]`. Applies at reload.
    pub allow: Acl,
    /// The clients that may ask without recursion (RD clear) for what is cached, written likewise. Others are told local data,
    /// and REFUSED for the rest: such a query shows which names others have asked for.
    /// Default `["loopback"]`. Applies at reload.
    pub allow_query_cache: Acl,
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
    /// TCP connections in all, from 1 to 65536, but no more than half of the descriptors (`limits.open_files`); one
    /// more closes the one that was idle longest, of the client and network that have the most.
    /// Default 1024. Applies at reload.
    pub tcp_connections: usize,
    /// TCP connections of one client (an IPv4 address, an IPv6 /64), from 1 to 65536; more are closed at once.
    /// Default 128. Applies at reload.
    pub tcp_connections_per_client: usize,
    /// TCP connections that are accepted from one network in a second (`rate_limit.ipv4_prefix`, `ipv6_prefix` and `exempt`
    /// say which), and as many at once after a while of silence; more are closed. From 1 to 1000000, or 0 for no limit.
    /// Default 500. Applies at reload.
    pub tcp_accept_rate: u32,
    /// How long a TCP connection may stay open with nothing asked, from "1s" to "10m".
    /// Default "30s". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub tcp_idle_timeout: Duration,
    /// How long a TCP client may take to send a query it has begun, or to take a reply, from "100ms" to "1m".
    /// Default "3s". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub tcp_message_timeout: Duration,
    /// Queries that may wait for a response at once, from 16 to 1048576; one more is answered SERVFAIL.
    /// Default 16384. Applies at reload.
    pub max_in_flight: usize,
    /// Of these, as many as clients at one address, IPv6 addresses by their first 64 bits, may have while nobody else has any;
    /// the less room is left, the fewer, so that there is some for those who have little waiting. From 16 to 1048576.
    /// Default 4096. Applies at reload.
    pub max_in_flight_per_client: usize,
    /// Questions that tasks may forward at once, for they need a stream or came by one, from 16 to 1048576; one more is
    /// answered SERVFAIL.
    /// Default 16384. Applies at reload.
    pub max_queue: usize,
    /// The secrets of cookies (RFC 7873), 32 hexadecimal digits each, for several servers behind one address. They are made
    /// with the first, and known by any. Default: none, which takes a random one at each start. Applies at reload.
    pub cookie_secrets: Vec<Secret>,
    /// Where what shall survive a restart is kept.
    /// Default: none, which takes systemd's `STATE_DIRECTORY`, if it is set. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_directory: Option<PathBuf>,
    /// How many replies a network is sent by UDP. Default: as many as it asks for. Applies at reload.
    pub rate_limit: RateLimitConfig,
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
    #[error("the address {address} is listed twice; remove one")]
    ListenTwice {
        /// The key of the second.
        key: &'static str,
        /// The address.
        address: Endpoint,
    },
    /// DNS over QUIC where DNS over UDP is expected (RFC 9250 §4.1.1).
    #[error("DNS over QUIC may not use port 53, where {0} has DNS over UDP; take port 853")]
    QuicOnDnsPort(Endpoint),
    /// Encryption without a certificate, or with half of one.
    #[error("{0} is missing, without which there is no TLS, HTTPS or QUIC; name a file in PEM format")]
    NoCertificate(&'static str),
}

impl Problem {
    /// The key that is to blame.
    pub fn key(&self) -> &'static str {
        match self {
            // The section within the section, where there is one.
            Self::OutOfRange { key, .. } => key.split('.').next().unwrap_or(key),
            Self::ListenTwice { key, .. } | Self::NoCertificate(key) => key,
            Self::NoListen => "listen",
            Self::QuicOnDnsPort(_) => "quic_listen",
        }
    }
}

/// What is spoken at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// DNS by UDP and TCP.
    Plain,
    /// DNS over TLS.
    Tls,
    /// DNS over HTTPS.
    Https,
    /// DNS over QUIC.
    Quic,
}

impl Service {
    /// The key that lists its addresses.
    pub fn key(self) -> &'static str {
        match self {
            Self::Plain => "listen",
            Self::Tls => "tls_listen",
            Self::Https => "https_listen",
            Self::Quic => "quic_listen",
        }
    }

    /// Whether it needs the UDP or the TCP port of its address.
    fn ports(self) -> &'static [Port] {
        match self {
            Self::Plain => &[Port::Udp, Port::Tcp],
            Self::Tls | Self::Https => &[Port::Tcp],
            Self::Quic => &[Port::Udp],
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Port {
    Udp,
    Tcp,
}

impl Config {
    /// All addresses served, and what is spoken there.
    pub fn listeners(&self) -> impl Iterator<Item = (Service, Endpoint)> {
        let lists = [
            (Service::Plain, &self.listen),
            (Service::Tls, &self.tls_listen),
            (Service::Https, &self.https_listen),
            (Service::Quic, &self.quic_listen),
        ];
        lists.into_iter().flat_map(|(service, list)| list.iter().map(move |&address| (service, address)))
    }

    /// The files and folders that it names.
    pub fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        [&mut self.certificate, &mut self.private_key, &mut self.state_directory].into_iter().flatten()
    }

    /// All that is wrong with it.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut seen = HashSet::new();
        // Port 0 is any free port, and another one each time.
        let repeated = self.listeners().filter(|(service, address)| {
            let taken = service.ports().iter().filter(|port| !seen.insert((**port, *address))).count();
            address.port() != 0 && taken > 0
        });
        problems.extend(repeated.map(|(service, address)| Problem::ListenTwice { key: service.key(), address }));
        if self.listen.is_empty() {
            problems.push(Problem::NoListen);
        }
        let on_dns_port = self.quic_listen.iter().filter(|address| address.port() == DNS_PORT);
        problems.extend(on_dns_port.map(|&address| Problem::QuicOnDnsPort(address)));
        let is_encrypted = self.listeners().any(|(service, _)| service != Service::Plain);
        for (key, file, other) in [
            ("certificate", &self.certificate, &self.private_key),
            ("private_key", &self.private_key, &self.certificate),
        ] {
            if file.is_none() && (is_encrypted || other.is_some()) {
                problems.push(Problem::NoCertificate(key));
            }
        }
        for (key, value, range) in [
            ("workers", self.workers, 0..=64),
            ("udp_size", self.udp_size.into(), 512..=65_535),
            ("udp_size_loopback", self.udp_size_loopback.into(), 512..=65_535),
            ("tcp_connections", self.tcp_connections, 1..=65_536),
            ("tcp_connections_per_client", self.tcp_connections_per_client, 1..=65_536),
            ("max_in_flight", self.max_in_flight, 16..=1_048_576),
            ("max_in_flight_per_client", self.max_in_flight_per_client, 16..=1_048_576),
            ("max_queue", self.max_queue, 16..=1_048_576),
        ] {
            problems.extend(out_of_range(key, &value, &range, usize::to_string));
        }
        let RateLimitConfig { responses_per_second, slip, ipv4_prefix, ipv6_prefix, .. } = self.rate_limit;
        for (key, value, range) in [
            ("tcp_accept_rate", self.tcp_accept_rate, 0..=1_000_000),
            ("rate_limit.responses_per_second", responses_per_second, 0..=1_000_000),
            ("rate_limit.slip", slip.into(), 0..=10),
            ("rate_limit.ipv4_prefix", ipv4_prefix.into(), 8..=32),
            ("rate_limit.ipv6_prefix", ipv6_prefix.into(), 16..=128),
        ] {
            problems.extend(out_of_range(key, &value, &range, u32::to_string));
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
            listen: vec![
                Endpoint::new(Ipv4Addr::LOCALHOST.into(), DNS_PORT),
                Endpoint::new(Ipv6Addr::LOCALHOST.into(), DNS_PORT),
            ],
            tls_listen: Vec::new(),
            https_listen: Vec::new(),
            quic_listen: Vec::new(),
            certificate: None,
            private_key: None,
            allow: Acl::default(),
            allow_query_cache: Acl::loopback(),
            workers: 0,
            udp_size: 1232,
            udp_size_loopback: 16_384,
            tcp_connections: 1024,
            tcp_connections_per_client: 128,
            tcp_accept_rate: 500,
            tcp_idle_timeout: Duration::from_secs(30),
            tcp_message_timeout: Duration::from_secs(3),
            max_in_flight: 16_384,
            max_in_flight_per_client: 4096,
            max_queue: 16_384,
            cookie_secrets: Vec::new(),
            state_directory: None,
            rate_limit: RateLimitConfig::default(),
        }
    }
}

/// An address to listen on: the port is that of the service, 53, unless given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenAddress<const PORT: u16 = DNS_PORT>(pub Endpoint);

impl<const PORT: u16> FromStr for ListenAddress<PORT> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Endpoint::read(text, PORT).map(Self).map_err(|error| match error {
            Malformed::Address => format!("{text:?} is not an address; write {EXPECTED_ADDRESS}"),
            error => format!("{text:?} {error}"),
        })
    }
}

impl<'de, const PORT: u16> Deserialize<'de> for ListenAddress<PORT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(AddressVisitor)
    }
}

fn deserialize_listen<'de, D: Deserializer<'de>, const PORT: u16>(deserializer: D) -> Result<Vec<Endpoint>, D::Error> {
    let addresses = Vec::<ListenAddress<PORT>>::deserialize(deserializer)?;
    Ok(addresses.into_iter().map(|address| address.0).collect())
}

/// Fails inside the visit, where the file's reader still knows the line.
struct AddressVisitor<const PORT: u16>;

impl<const PORT: u16> de::Visitor<'_> for AddressVisitor<PORT> {
    type Value = ListenAddress<PORT>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED_ADDRESS)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ListenAddress<PORT>, E> {
        text.parse().map_err(E::custom)
    }
}

const DNS_PORT: u16 = 53;
const TLS_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;
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
            ("fe80::53%eth0", Some("[fe80::53%eth0]:53")),
            ("fe80::53", None),
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
        assert_eq!(faults(|c| c.listen = vec![Endpoint::new([127, 0, 0, 1].into(), 0); 2]), [""; 0]);
        assert_eq!(faults(|c| c.listen = vec![Endpoint::new([127, 0, 0, 1].into(), 1); 2]).len(), 1);
        let certified = |c: &mut Config| (c.certificate, c.private_key) = (Some("c".into()), Some("k".into()));
        let [plain, tls, dns] = [1, 853, 53].map(|port| Endpoint::new([127, 0, 0, 7].into(), port));
        for (change, expected) in [
            (&certified as &dyn Fn(&mut Config), vec![]),
            (&|c| c.tls_listen.push(tls), vec!["certificate", "private_key"]),
            (&|c| c.private_key = Some("k".into()), vec!["certificate"]),
            (&|c| (certified(c), c.listen = vec![plain], c.https_listen = vec![plain]).0, vec!["https_listen"]),
            (&|c| c.quic_listen.push(tls), vec!["certificate", "private_key"]),
            (&|c| (certified(c), c.tls_listen = vec![tls], c.quic_listen = vec![tls]).0, vec![]), // TCP and UDP
            (&|c| (certified(c), c.listen = vec![plain], c.quic_listen = vec![plain]).0, vec!["quic_listen"]),
            (&|c| (certified(c), c.quic_listen = vec![dns]).0, vec!["quic_listen"]),
        ] {
            let mut config = Config::default();
            change(&mut config);
            assert_eq!(config.problems().iter().map(Problem::key).collect::<Vec<_>>(), expected);
        }
    }
}
