//! An address and a port, as they are configured: a link-local address may name its interface (`fe80::53%eth0`).
//!
//! A link-local address means nothing without its interface (RFC 4007 §11). The kernel knows interfaces by their index, which
//! is another one each time that an interface is made. So an endpoint keeps what was written, and its index is looked up
//! whenever a socket is bound or connected. An interface may come late, go, and come back.

use std::{
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    str::FromStr,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An address, a port and, for a link-local address, the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Without a scope id.
    address: SocketAddr,
    interface: Option<Interface>,
}

/// The name of an interface, or its index in decimal digits; zeros behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Interface([u8; MAX_NAME_BYTES]);

/// Why text is not an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Not an address, or not a port.
    Address,
    /// A link-local address without an interface.
    NoInterface,
    /// An interface at an address that is the same on all of them, or one that cannot be the name of an interface.
    Interface,
}

impl Endpoint {
    /// An endpoint that needs no interface.
    pub fn new(ip: IpAddr, port: u16) -> Self {
        Self { address: SocketAddr::new(ip, port), interface: None }
    }

    /// Reads `IP`, `IP:PORT`, `[IPv6]` or `[IPv6]:PORT`, where an IPv6 address may be followed by `%INTERFACE`. The port is
    /// `default_port` unless it is given.
    pub fn read(text: &str, default_port: u16) -> Result<Self, Malformed> {
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, default_port),
            Some((host, port)) => {
                let port = port.strip_prefix(':').and_then(read_port).ok_or(Malformed::Address)?;
                // Brackets are for IPv6.
                (Some(host).filter(|host| host.contains(':')).ok_or(Malformed::Address)?, port)
            }
            None => match text.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, read_port(port).ok_or(Malformed::Address)?),
                _ => (text, default_port),
            },
        };
        let (ip, interface) = match host.split_once('%') {
            Some((ip, interface)) => (ip, Some(interface)),
            None => (host, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| Malformed::Address)?;
        let interface = match (interface, is_link_local(ip)) {
            (None, false) => None,
            (None, true) => return Err(Malformed::NoInterface),
            (Some(name), true) => Some(Interface::new(name).ok_or(Malformed::Interface)?),
            (Some(_), false) => return Err(Malformed::Interface),
        };
        Ok(Self { address: SocketAddr::new(ip, port), interface })
    }

    /// The address, without its interface.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// True if the address is one of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    /// True if the endpoint names an interface.
    pub fn has_interface(&self) -> bool {
        self.interface.is_some()
    }

    /// The address for a socket, with the index that the interface has now. Fails if there is no such interface (ENODEV).
    pub fn resolve(&self) -> io::Result<SocketAddr> {
        match (&self.interface, self.address) {
            (Some(interface), SocketAddr::V6(address)) => {
                let index = interface.index()?;
                Ok(SocketAddrV6::new(*address.ip(), address.port(), address.flowinfo(), index).into())
            }
            _ => Ok(self.address),
        }
    }

    /// True if the endpoint names an interface that is not there.
    pub fn lacks_interface(&self) -> bool {
        self.interface.is_some_and(|interface| interface.index().is_err())
    }

    /// True if the interface has another index now than the socket that was bound to it. Such a socket hears nothing.
    pub fn is_outdated(&self, bound: SocketAddr) -> bool {
        let index = self.interface.and_then(|interface| interface.index().ok());
        matches!((index, bound), (Some(index), SocketAddr::V6(bound)) if index != bound.scope_id())
    }

    /// The same with the port of a socket that was bound to it.
    pub fn with_port(self, port: u16) -> Self {
        Self { address: SocketAddr::new(self.ip(), port), ..self }
    }

    /// True if both name the same interface, or none.
    pub fn is_on_same_link(&self, other: &Self) -> bool {
        let index = |endpoint: &Self| endpoint.interface.map(|interface| interface.index().ok());
        self.interface == other.interface || index(self).flatten().is_some() && index(self) == index(other)
    }
}

impl Interface {
    /// What the kernel takes for a name (dev_valid_name), without the characters that end it in a URL.
    fn new(name: &str) -> Option<Self> {
        let is_valid = |byte: &u8| byte.is_ascii_graphic() && !b"/:[]#%".contains(byte);
        let mut octets = [0; MAX_NAME_BYTES];
        octets.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        let is_name = !matches!(name, "" | "." | "..") && name.as_bytes().iter().all(is_valid);
        is_name.then_some(Self(octets))
    }

    fn name(&self) -> &str {
        let end = self.0.iter().position(|&octet| octet == 0).unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..end]).expect("only ASCII is taken")
    }

    fn index(&self) -> io::Result<u32> {
        // Any socket serves.
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        match (netdevice::name_to_index(&socket, self.name()), self.name().parse()) {
            (Err(Errno::NODEV), Ok(index)) => {
                netdevice::index_to_name(&socket, index)?;
                Ok(index)
            }
            (index, _) => Ok(index?),
        }
    }
}

/// True for `fe80::/10`, the addresses that are different hosts on different links (RFC 4291 §2.5.6).
fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if Ipv6Addr::is_unicast_link_local(&ip))
}

/// Digits alone, as for a socket address.
fn read_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self { address, interface: None }
    }
}

impl fmt::Display for Endpoint {
    /// With the port, and the interface as it was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.interface {
            None => write!(f, "{}", self.address),
            Some(interface) => write!(f, "[{}%{}]:{}", self.ip(), interface.name(), self.port()),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Address => "is not an address",
            Self::NoInterface => {
                "is a link-local address without its interface; write it behind a %, as in fe80::53%eth0"
            }
            Self::Interface => {
                "has a % where no interface can be; only a link-local address has one, as in fe80::53%eth0"
            }
        })
    }
}

impl FromStr for Endpoint {
    type Err = Malformed;

    /// With a port.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        match Self::read(text, 0) {
            // Without a port it reads like this with any.
            Ok(read) if read.port() == 0 && Self::read(text, 1) != Ok(read) => Err(Malformed::Address),
            read => read,
        }
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(EndpointVisitor)
    }
}

/// Fails inside the visit, where the file's reader still knows the line.
struct EndpointVisitor;

impl de::Visitor<'_> for EndpointVisitor {
    type Value = Endpoint;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IP:PORT or [IPv6]:PORT")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Endpoint, E> {
        text.parse().map_err(|error| match error {
            Malformed::Address => E::invalid_value(de::Unexpected::Str(text), &self),
            error => E::custom(format_args!("{text:?} {error}")),
        })
    }
}

/// IFNAMSIZ without the zero at the end.
const MAX_NAME_BYTES: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_and_printed_as_they_are_configured() {
        for (text, expected) in [
            ("192.0.2.1", Ok("192.0.2.1:53")),
            ("192.0.2.1:0", Ok("192.0.2.1:0")),
            ("2001:db8::1", Ok("[2001:db8::1]:53")),
            ("[2001:db8::1]", Ok("[2001:db8::1]:53")),
            ("[2001:db8::1]:5353", Ok("[2001:db8::1]:5353")),
            ("fe80::53%eth0", Ok("[fe80::53%eth0]:53")),
            ("[fe80::53%eth0]", Ok("[fe80::53%eth0]:53")),
            ("[FE80:0::53%eth0.100]:5353", Ok("[fe80::53%eth0.100]:5353")),
            ("fe80::53%7", Ok("[fe80::53%7]:53")),
            ("fe80::53", Err(Malformed::NoInterface)),
            ("[fe80::53]:5353", Err(Malformed::NoInterface)),
            ("[192.0.2.1]:53", Err(Malformed::Address)),
            ("2001:db8::1%eth0", Err(Malformed::Interface)),
            ("192.0.2.1%eth0", Err(Malformed::Interface)),
            ("fe80::53%", Err(Malformed::Interface)),
            ("fe80::53%..", Err(Malformed::Interface)),
            ("fe80::53%a/b", Err(Malformed::Interface)),
            ("fe80::53%aninterfacenames", Err(Malformed::Interface)),
            ("fe80::53%\u{e9}th0", Err(Malformed::Interface)),
            ("[fe80::53%eth0]:99999", Err(Malformed::Address)),
            ("[fe80::53%eth0]53", Err(Malformed::Address)),
            ("[fe80::53%eth0", Err(Malformed::Address)),
            ("192.0.2.1:+53", Err(Malformed::Address)),
            ("localhost:53", Err(Malformed::Address)),
            (":53", Err(Malformed::Address)),
            ("", Err(Malformed::Address)),
        ] {
            let read = Endpoint::read(text, 53);
            assert_eq!(read.map(|endpoint| endpoint.to_string()), expected.map(str::to_owned), "{text}");
            if let Ok(endpoint) = read {
                assert_eq!(endpoint.to_string().parse(), Ok(endpoint), "{text}");
            }
        }
        for text in ["192.0.2.1", "fe80::53%eth0", "[::1]"] {
            assert_eq!(text.parse::<Endpoint>(), Err(Malformed::Address), "{text}: no port");
        }
    }

    #[test]
    fn an_interface_is_looked_up_by_name_and_by_number() {
        let resolve = |text: &str| Endpoint::read(text, 53).unwrap().resolve();
        let SocketAddr::V6(by_name) = resolve("fe80::53%lo").unwrap() else { panic!("an IPv6 address") };
        assert_ne!(by_name.scope_id(), 0);
        let numbered = format!("fe80::53%{}", by_name.scope_id());
        assert_eq!(resolve(&numbered).unwrap(), by_name.into());
        for absent in ["fe80::53%nosuchinterface", "fe80::53%2147483647"] {
            let error = resolve(absent).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::NODEV.raw_os_error()), "{absent}");
        }
        let [lo, number, absent] =
            ["fe80::53%lo", &numbered, "fe80::53%nosuchinterface"].map(|text| Endpoint::read(text, 53).unwrap());
        assert!(lo.is_on_same_link(&number) && absent.is_on_same_link(&absent));
        assert!(!lo.is_on_same_link(&absent) && !absent.is_on_same_link(&lo));
        assert!(absent.lacks_interface() && !lo.lacks_interface());
        let bound = |scope| SocketAddrV6::new("fe80::53".parse().unwrap(), 53, 0, scope).into();
        assert!(!lo.is_outdated(by_name.into()) && lo.is_outdated(bound(by_name.scope_id() + 1)));
        assert!(!absent.is_outdated(bound(9)), "gone: there is nothing to bind to");
        assert_eq!(resolve("192.0.2.1").unwrap(), "192.0.2.1:53".parse().unwrap());
    }
}
