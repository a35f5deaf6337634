//! Who may ask.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The client addresses that are served, as the operator lists them: networks, or words for well-known sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    rules: Vec<Rule>,
}

impl Acl {
    /// Clients on this host.
    pub fn loopback() -> Self {
        Self { rules: vec![Rule::Loopback] }
    }

    /// Whether a client with this address is served. An IPv4 address seen through an IPv6 socket
    /// (`::ffff:192.0.2.1`) counts as the IPv4 address that it is.
    pub fn allows(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.rules.iter().any(|rule| rule.covers(client))
    }
}

impl Default for Acl {
    fn default() -> Self {
        Self { rules: vec![Rule::Loopback, Rule::Private] }
    }
}

impl fmt::Display for Acl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, rule) in self.rules.iter().enumerate() {
            write!(f, "{}{rule}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Serialize for Acl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rules.iter().map(Rule::to_string))
    }
}

impl<'de> Deserialize<'de> for Acl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(|rules| Self { rules })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Loopback,
    Private,
    Any,
    Net(IpNet),
}

impl Rule {
    fn covers(self, client: IpAddr) -> bool {
        match self {
            Self::Loopback => client.is_loopback(),
            Self::Private => is_private(client),
            Self::Any => true,
            Self::Net(net) => net.contains(&client),
        }
    }
}

/// Addresses that are never routed on the Internet: RFC 1918, 3927, 6598 in IPv4, RFC 4193, 4291 §2.5.6 in IPv6.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let is_shared = v4 & Ipv4Addr::new(255, 192, 0, 0) == Ipv4Addr::new(100, 64, 0, 0);
            v4.is_private() || v4.is_link_local() || is_shared
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

impl FromStr for Rule {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "loopback" => Self::Loopback,
            "private" => Self::Private,
            "any" => Self::Any,
            _ => {
                let net = text.parse().or_else(|_| text.parse().map(|address: IpAddr| address.into()));
                Self::Net(canonical(net.map_err(|_| ())?).trunc())
            }
        })
    }
}

/// A network of IPv4 addresses seen through IPv6 is the IPv4 network, for clients are compared as what they are.
fn canonical(net: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let mapped = |v6: Ipv6Addr, length: u8| Some((v6.to_ipv4_mapped()?, length.checked_sub(MAPPED_BITS)?));
    match net {
        IpNet::V6(v6) => mapped(v6.addr(), v6.prefix_len())
            .and_then(|(v4, length)| IpNet::new(v4.into(), length).ok())
            .unwrap_or(net),
        IpNet::V4(_) => net,
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("loopback"),
            Self::Private => f.write_str("private"),
            Self::Any => f.write_str("any"),
            Self::Net(net) => write!(f, "{net}"),
        }
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(RuleVisitor)
    }
}

/// Fails inside the visit, where the file's reader still knows the line.
struct RuleVisitor;

impl de::Visitor<'_> for RuleVisitor {
    type Value = Rule;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a network such as 192.0.2.0/24, or loopback, private or any")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Rule, E> {
        text.parse().map_err(|()| E::invalid_value(de::Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(rules: &[&str]) -> Acl {
        Acl { rules: rules.iter().map(|rule| rule.parse().unwrap()).collect() }
    }

    #[test]
    fn a_client_is_allowed_if_any_rule_covers_it() {
        let default: &[&str] = &["loopback", "private"];
        for (rules, client, expected) in [
            (default, "127.0.0.1", true),
            (default, "127.1.2.3", true),
            (default, "::1", true),
            (default, "10.1.2.3", true),
            (default, "172.32.0.1", false), // one beyond 172.16.0.0/12
            (default, "100.127.0.1", true),
            (default, "100.128.0.1", false),
            (default, "169.254.1.1", true),
            (default, "fd00::1", true),
            (default, "fe80::1", true),
            (default, "192.0.2.1", false),
            (default, "2001:db8::1", false),
            (default, "::ffff:10.1.2.3", true), // IPv4 through an IPv6 socket
            (default, "::ffff:127.0.0.1", true),
            (default, "::ffff:192.0.2.1", false),
            (&["any"], "192.0.2.1", true),
            (&[], "127.0.0.1", false),
            (&["192.0.2.0/25"], "192.0.2.127", true),
            (&["192.0.2.0/25"], "192.0.2.128", false),
            (&["192.0.2.9/25"], "192.0.2.1", true), // bits beyond the prefix do not matter
            (&["192.0.2.9"], "192.0.2.9", true),
            (&["192.0.2.9"], "192.0.2.8", false),
            (&["::ffff:192.0.2.0/120"], "192.0.2.9", true),
            (&["2001:db8::/32"], "2001:db8:1::1", true),
        ] {
            assert_eq!(acl(rules).allows(client.parse().unwrap()), expected, "{client} by {rules:?}");
        }
        assert_eq!(Acl::default(), acl(default));
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for text in ["", "localhost", "192.0.2.0/33", "192.0.2", "Private", "192.0.2.0/"] {
            assert_eq!(text.parse::<Rule>(), Err(()), "{text}");
        }
    }
}
