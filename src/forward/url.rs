//! Where an upstream is and how it is spoken to, as one line of text.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use crate::endpoint::{Endpoint, Malformed};

/// The address of an upstream and the transport to it.
///
/// A host is always an address: a name would have to be resolved, and by nobody but ourselves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamUrl {
    /// Address and port; a link-local address with its interface.
    pub address: Endpoint,
    /// How messages travel there.
    pub transport: Transport,
}

/// How messages travel to an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP, and TCP for what does not fit or is doubtful.
    Udp,
    /// TCP alone.
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls {
        /// The name that the certificate must bear; an address, without its interface, counts as a name.
        server_name: String,
    },
    /// DNS over HTTPS (RFC 8484).
    Https {
        /// The name that the certificate must bear; an address counts as a name.
        server_name: String,
        /// The path, from its first slash.
        path: String,
    },
}

/// Why text is not the URL of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// A scheme that is not spoken.
    #[error("{0}:// is not a transport; use no scheme for UDP, or tcp://, tls:// or https://")]
    Scheme(String),
    /// The host is not an address.
    #[error("{0:?} is not an address; write an address such as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::1]:53")]
    Address(String),
    /// A link-local address without its interface, or an interface where none can be.
    #[error("{0:?} {1}")]
    Interface(String, Malformed),
    /// A path or server name where the transport has none.
    #[error("a path belongs to https:// alone, and #name to tls:// and https://; remove {0:?}")]
    Excess(String),
    /// `0.0.0.0` or `::`, which the kernel takes for this host.
    #[error(
        "{0} is no address of a server: it leads to this host, so to ourselves; write the server's address, such as \
         127.0.0.1:5353 for a program on this host"
    )]
    Unspecified(IpAddr),
    /// An IPv6 address as the authority of HTTPS.
    #[error("the name of the server is missing; write it behind a #")]
    NoServerName,
}

impl UpstreamUrl {
    /// A server that is asked by UDP.
    pub fn udp(address: SocketAddr) -> Self {
        Self { address: address.into(), transport: Transport::Udp }
    }

    /// Whether the server is on this host.
    pub fn is_loopback(&self) -> bool {
        self.address.ip().to_canonical().is_loopback()
    }

    /// Whether messages are protected from everybody else.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.transport, Transport::Tls { .. } | Transport::Https { .. })
    }

    /// Whether the address is a public one: the server knows nothing of this site's own names.
    ///
    /// Resolvers of clouds know the private zones of the network that asks. Most have addresses that are not public anyway
    /// (169.254.169.253 of AWS, 169.254.169.254 of Google); Azure's has one that looks public
    /// (learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16).
    pub fn is_public(&self) -> bool {
        match self.address.ip().to_canonical() {
            IpAddr::V4(AZURE_RESOLVER) => false,
            IpAddr::V4(ip) => {
                let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64; // RFC 6598
                !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || shared)
            }
            IpAddr::V6(ip) => {
                !(ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local())
            }
        }
    }
}

/// "A virtual public IP address", which answers only within Azure and with the private zones of the virtual network.
const AZURE_RESOLVER: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

impl FromStr for UpstreamUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("udp", text));
        let (rest, server_name) = match rest.split_once('#') {
            Some((rest, name)) => (rest, Some(name).filter(|name| !name.is_empty())),
            None => (rest, None),
        };
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let default_port = match scheme {
            "udp" | "tcp" => 53,
            "tls" => 853,
            "https" => 443,
            _ => return Err(UrlError::Scheme(scheme.into())),
        };
        let address = match Endpoint::read(host, default_port) {
            Ok(address) if address.port() != 0 => address,
            Ok(_) | Err(Malformed::Address) => return Err(UrlError::Address(host.into())),
            Err(error) => return Err(UrlError::Interface(host.into(), error)),
        };
        if address.ip().to_canonical().is_unspecified() {
            return Err(UrlError::Unspecified(address.ip()));
        }
        let named = || server_name.map_or_else(|| address.ip().to_string(), str::to_owned);
        let no_path = || if path.is_empty() { Ok(()) } else { Err(UrlError::Excess(path.into())) };
        let no_name = || server_name.map_or(Ok(()), |name| Err(UrlError::Excess(format!("#{name}"))));
        let transport = match scheme {
            "https" if server_name.is_none() && address.is_ipv6() => return Err(UrlError::NoServerName),
            "https" => {
                let path = if path.is_empty() { "/dns-query" } else { path }.to_owned();
                Transport::Https { server_name: named(), path }
            }
            "tls" => no_path().map(|()| Transport::Tls { server_name: named() })?,
            "tcp" => no_path().and(no_name()).map(|()| Transport::Tcp)?,
            _ => no_path().and(no_name()).map(|()| Transport::Udp)?,
        };
        Ok(Self { address, transport })
    }
}

impl fmt::Display for UpstreamUrl {
    /// With its port, so that it names metrics and messages without doubt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Udp => write!(f, "{}", self.address),
            Transport::Tcp => write!(f, "tcp://{}", self.address),
            Transport::Tls { server_name } => write!(f, "tls://{}#{server_name}", self.address),
            Transport::Https { server_name, path } => write!(f, "https://{}{path}#{server_name}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_read_and_printed_with_its_port() {
        for (text, expected) in [
            ("192.0.2.53", "192.0.2.53:53"),
            ("192.0.2.54:5353", "192.0.2.54:5353"),
            ("2001:db8::1", "[2001:db8::1]:53"),
            ("[2001:db8::1]", "[2001:db8::1]:53"),
            ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
            ("udp://192.0.2.53", "192.0.2.53:53"),
            ("tcp://192.0.2.53", "tcp://192.0.2.53:53"),
            ("tls://192.0.2.55#dns.example.net", "tls://192.0.2.55:853#dns.example.net"),
            ("tls://192.0.2.55", "tls://192.0.2.55:853#192.0.2.55"),
            ("https://192.0.2.55/dns-query#dns.example.net", "https://192.0.2.55:443/dns-query#dns.example.net"),
            ("https://[2001:db8::1]:8443#dns.example.net", "https://[2001:db8::1]:8443/dns-query#dns.example.net"),
            ("fe80::53%eth0", "[fe80::53%eth0]:53"),
            ("[fe80::53%eth0]:5353", "[fe80::53%eth0]:5353"),
            ("tcp://[fe80::53%7]", "tcp://[fe80::53%7]:53"),
            ("tls://fe80::53%eth0", "tls://[fe80::53%eth0]:853#fe80::53"),
            ("https://[fe80::53%eth0]#dns.example", "https://[fe80::53%eth0]:443/dns-query#dns.example"),
        ] {
            let url: UpstreamUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), expected, "{text}");
            assert_eq!(expected.parse(), Ok(url), "{expected}");
        }
    }

    #[test]
    fn faulty_upstreams_say_what_to_write() {
        for (text, expected) in [
            ("dns.example.net", UrlError::Address("dns.example.net".into())),
            ("", UrlError::Address(String::new())),
            ("192.0.2.53:0", UrlError::Address("192.0.2.53:0".into())),
            ("192.0.2.53:99999", UrlError::Address("192.0.2.53:99999".into())),
            ("quic://192.0.2.53", UrlError::Scheme("quic".into())),
            ("192.0.2.53#dns.example", UrlError::Excess("#dns.example".into())),
            ("tls://192.0.2.53/dns-query", UrlError::Excess("/dns-query".into())),
            ("https://[2001:db8::1]", UrlError::NoServerName),
            ("fe80::53", UrlError::Interface("fe80::53".into(), Malformed::NoInterface)),
            ("tls://[2001:db8::1%eth0]", UrlError::Interface("[2001:db8::1%eth0]".into(), Malformed::Interface)),
            ("0.0.0.0", UrlError::Unspecified([0; 4].into())),
            ("[::]:5353", UrlError::Unspecified([0; 16].into())),
            ("tcp://[::ffff:0.0.0.0]", UrlError::Unspecified("::ffff:0.0.0.0".parse().unwrap())),
            ("tls://0.0.0.0#dns.example", UrlError::Unspecified([0; 4].into())),
        ] {
            assert_eq!(text.parse::<UpstreamUrl>(), Err(expected), "{text}");
        }
    }

    #[test]
    fn private_addresses_are_told_from_public_ones() {
        for (text, public) in [
            ("192.0.2.53", true),
            ("2001:db8::1", true),
            ("10.1.2.3", false),
            ("172.16.0.1", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("127.0.0.1", false),
            ("fd00::1", false),
            ("fe80::1%eth0", false),
            ("::ffff:10.0.0.1", false), // IPv4 in disguise
        ] {
            assert_eq!(text.parse::<UpstreamUrl>().unwrap().is_public(), public, "{text}");
        }
    }
}
