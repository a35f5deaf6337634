//! The records of nodes and instances.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::model::{Host, Node, Tagged};
use crate::wire::{Name, Record, Rtype};

/// The address that a question of this type gets, of those that something has.
///
/// The tagged ones of the own network come first; what accepts both families prefers that of IPv6, as Consul does.
pub(super) fn prefer<'a>(
    qtype: Rtype,
    address: Option<&'a Host>,
    tagged: &'a BTreeMap<String, Tagged>,
) -> Option<&'a Host> {
    let tagged = |tag: &str| tagged.get(tag).map(|tagged| &tagged.address);
    match qtype {
        Rtype::A => tagged("lan_ipv4").or(address),
        Rtype::AAAA => tagged("lan_ipv6").or(address),
        _ => tagged("lan_ipv6").or_else(|| tagged("lan_ipv4")).or(address),
    }
}

/// An A or AAAA record.
pub(super) fn address_record(owner: Name, address: IpAddr, ttl: u32) -> Record {
    match address {
        IpAddr::V4(v4) => Record::new(owner, Rtype::A, ttl, v4.octets()),
        IpAddr::V6(v6) => Record::new(owner, Rtype::AAAA, ttl, v6.octets()),
    }
}

/// Whether a question of this type may be answered by the address. Services answer TXT by addresses too, as Consul does.
pub(super) fn wants(qtype: Rtype, address: IpAddr) -> bool {
    match qtype {
        Rtype::A => address.is_ipv4(),
        Rtype::AAAA => address.is_ipv6(),
        Rtype::ANY | Rtype::TXT => true,
        _ => false,
    }
}

/// An SRV record (RFC 2782). Its priority is 1, as Consul's.
pub(super) fn srv_record(owner: Name, weight: u16, port: u16, target: &Name, ttl: u32) -> Record {
    let mut rdata = Vec::with_capacity(6 + target.wire().len());
    for number in [1, weight, port] {
        rdata.extend(number.to_be_bytes());
    }
    rdata.extend(target.wire());
    Record::new(owner, Rtype::SRV, ttl, rdata)
}

/// The meta of a node as TXT records, one for each key.
pub(super) fn meta_records<'a>(owner: &'a Name, node: &'a Node, ttl: u32) -> impl Iterator<Item = Record> + 'a {
    node.meta.iter().map(move |(key, value)| Record::new(owner.clone(), Rtype::TXT, ttl, txt_rdata(key, value)))
}

/// `key=value` as RFC 1464 writes it, or the value alone under a key that begins with `rfc1035-`; in strings of at most
/// 255 octets (RFC 1035 §3.3.14).
fn txt_rdata(key: &str, value: &str) -> Vec<u8> {
    let is_bare = key.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("rfc1035-"));
    let text = if is_bare { value.to_owned() } else { format!("{}={}", escape_key(key), value.replace('`', "``")) };
    // RDATA ends at 65,535 octets; nobody's meta comes near it.
    let text = &text.as_bytes()[..text.len().min(MAX_TXT_BYTES)];
    let mut rdata = Vec::with_capacity(text.len() + text.len() / 255 + 1);
    if text.is_empty() {
        rdata.push(0);
    }
    for part in text.chunks(255) {
        rdata.push(part.len() as u8);
        rdata.extend(part);
    }
    rdata
}

/// A backquote before each backquote, each `=`, and the blanks at either end (RFC 1464 §2).
fn escape_key(key: &str) -> String {
    let inner = key.trim_matches(' ');
    let leading = if inner.is_empty() { 0 } else { key.len() - key.trim_start_matches(' ').len() };
    let trailing = key.len() - inner.len() - leading;
    let inner = inner.replace('`', "``").replace('=', "`=");
    ["` ".repeat(leading), inner, "` ".repeat(trailing)].concat()
}

/// The label by which the `addr` names spell an address.
pub(super) fn address_label(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{:08x}", u32::from(v4)),
        IpAddr::V6(v6) => format!("{:032x}", u128::from(v6)),
    }
}

/// The address that a label of the `addr` names spells.
pub(super) fn read_address_label(label: &str) -> Option<IpAddr> {
    if !label.bytes().all(|octet| octet.is_ascii_hexdigit()) {
        return None;
    }
    match label.len() {
        8 => u32::from_str_radix(label, 16).ok().map(|bits| Ipv4Addr::from(bits).into()),
        32 => u128::from_str_radix(label, 16).ok().map(|bits| Ipv6Addr::from(bits).into()),
        _ => None,
    }
}

/// The address of which a name of the reverse zones is the name (RFC 1035 §3.5, RFC 3596 §2.5).
pub(super) fn read_reverse_name(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&str> = name.labels().map(std::str::from_utf8).collect::<Result<_, _>>().ok()?;
    let (digits, zone) = labels.split_at(labels.len().checked_sub(2)?);
    match (zone, digits.len()) {
        ([v4, "arpa"], 4) if *v4 == "in-addr" => {
            let text = digits.iter().rev().copied().collect::<Vec<_>>().join(".");
            text.parse::<Ipv4Addr>().ok().map(IpAddr::from)
        }
        ([v6, "arpa"], 32) if *v6 == "ip6" && digits.iter().all(|digit| digit.len() == 1) => {
            let text: String = digits.iter().rev().copied().collect();
            let address = read_address_label(&text)?;
            Some(address.to_canonical())
        }
        _ => None,
    }
}

/// What of a TXT record's text fits into RDATA with the lengths of its strings.
const MAX_TXT_BYTES: usize = 65_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meta_is_written_as_rfc_1464_says() {
        // CONSUL-DNS.md §3, TXT
        for (key, value, expected) in [
            ("key", "value", "key=value"),
            ("key", "", "key="),
            ("k=`", "v=`", "k`=``=v=``"),
            ("  k ", " v ", "` ` k` = v "),
            (" ", "v", "` =v"),
            ("rfc1035-x", "v=spf1 `", "v=spf1 `"),
            ("RFC1035-", "", ""),
            ("rfc1035", "v", "rfc1035=v"),
        ] {
            let rdata = txt_rdata(key, value);
            assert_eq!(usize::from(rdata[0]), expected.len(), "{key:?}");
            assert_eq!(std::str::from_utf8(&rdata[1..]), Ok(expected), "{key:?}");
        }
    }

    #[test]
    fn a_long_value_is_split() {
        let rdata = txt_rdata("k", &"v".repeat(300));
        assert_eq!((rdata.len(), rdata[0], rdata[256]), (304, 255, 47));
    }

    #[test]
    fn addresses_are_read_as_they_are_spelled() {
        for (label, expected) in [
            ("c0000207", Some("192.0.2.7")),
            ("20010db8000000000000000000000001", Some("2001:db8::1")),
            ("c00002", None),
            ("c000020", None),
            ("+0000207", None),
            ("xyz00207", None),
            ("", None),
        ] {
            let address = read_address_label(label);
            assert_eq!(address.map(|address| address.to_string()).as_deref(), expected, "{label}");
            assert!(address.is_none_or(|address| address_label(address) == label), "{label}");
        }
        let v6 = format!("1.{}8.b.d.0.1.0.0.2.ip6.arpa", "0.".repeat(23));
        for (name, expected) in [
            ("7.2.0.192.in-addr.arpa", Some("192.0.2.7")),
            (v6.as_str(), Some("2001:db8::1")),
            ("2.0.192.in-addr.arpa", None),
            ("256.2.0.192.in-addr.arpa", None),
            ("x.7.2.0.192.in-addr.arpa", None),
            ("arpa", None),
            (".", None),
        ] {
            let address = read_reverse_name(&name.parse().unwrap());
            assert_eq!(address.map(|address| address.to_string()).as_deref(), expected, "{name}");
        }
    }
}
