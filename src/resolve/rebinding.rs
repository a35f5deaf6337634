//! Names of strangers do not lead to hosts of ours (DNS rebinding).
//!
//! A page is bound to its name. If the name's owner makes it point to an address of this site, the page reads what is there
//! as if it were its own. So a rule may keep what its upstreams say from naming such addresses: the records are left out, and
//! the rest is given; with nothing left that is NODATA, with the extended error that it was blocked (RFC 8914 §4.16). A
//! chain counts as a whole: where it began with a stranger's name, it does not end here, whoever says so.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::wire::{Class, ExtendedError, Name, NameError, RecordView, Response, Rtype, flag, read_u16};

/// Leaves out the records that name an address of a site, and says so; whether there were any.
pub(super) fn withhold(response: &mut Response) -> Result<bool, NameError> {
    let mut found: HashSet<(Name, Rtype)> = HashSet::new();
    for record in response.records() {
        if is_private_record(response, &record) {
            found.insert((response.owner(&record)?, record.rtype));
        }
    }
    if found.is_empty() {
        return Ok(false);
    }
    // A signature of the whole proves nothing of a part.
    let is_signature_of_found = |record: &RecordView| {
        let covered = || Some((response.owner(record).ok()?, Rtype(read_u16(response.message(), record.rdata.start)?)));
        record.rtype == Rtype::RRSIG && covered().is_some_and(|covered| found.contains(&covered))
    };
    let stays = |record: &RecordView| !is_private_record(response, record) && !is_signature_of_found(record);
    if let Some(rest) = response.retain(stays)? {
        *response = rest;
    }
    // Nobody has validated what is left.
    response.set_flag(flag::AD, false);
    response.add_error(&ExtendedError { code: EDE_BLOCKED, text: "addresses within a site were left out".into() });
    Ok(true)
}

fn is_private_record(response: &Response, record: &RecordView) -> bool {
    let Some(rdata) = response.message().get(record.rdata.clone()).filter(|_| record.class == Class::IN) else {
        return false;
    };
    // A client that reads a malformed record may find in it what we do not.
    match record.rtype {
        Rtype::A => <[u8; 4]>::try_from(rdata).ok().is_none_or(|octets| is_private(octets.into())),
        Rtype::AAAA => <[u8; 16]>::try_from(rdata).ok().is_none_or(|octets| is_private(octets.into())),
        Rtype::SVCB | Rtype::HTTPS => hints(rdata).is_none_or(|hints| hints.into_iter().any(is_private)),
        _ => false,
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4.or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}

/// The addresses that a service binding suggests (RFC 9460 §7.3); `None` for RDATA that is malformed.
fn hints(rdata: &[u8]) -> Option<Vec<IpAddr>> {
    let mut at = 2; // behind the priority
    loop {
        let label_bytes = usize::from(*rdata.get(at)?);
        at += 1 + label_bytes;
        if label_bytes == 0 {
            break;
        }
    }
    let mut hints = Vec::new();
    while at < rdata.len() {
        let (key, length) = (read_u16(rdata, at)?, usize::from(read_u16(rdata, at + 2)?));
        let value = rdata.get(at + 4..at + 4 + length)?;
        match key {
            KEY_IPV4_HINT if length.is_multiple_of(4) => hints.extend(value.chunks(4).filter_map(address)),
            KEY_IPV6_HINT if length.is_multiple_of(16) => hints.extend(value.chunks(16).filter_map(address)),
            KEY_IPV4_HINT | KEY_IPV6_HINT => return None,
            _ => {}
        }
        at += 4 + length;
    }
    Some(hints)
}

/// Whether an address means a host within a site, or this one: loopback, private (RFC 1918, 4193), shared (RFC 6598),
/// link-local, site-local (RFC 3879), unspecified (which reaches loopback), reserved (RFC 1112 §4, broadcast among them), of
/// a benchmark network (RFC 2544, 5180), of DS-Lite (RFC 6333, 7335) or of segment routing (RFC 9602). So does an IPv6 address
/// that stands for such an IPv4 address: mapped and compatible (RFC 4291 §2.5.5), translated (RFC 2765 §2.1, 6052), 6to4
/// (RFC 3056) and Teredo (RFC 4380 §4); a translator with a prefix for local use (RFC 8215) is within the site itself.
///
/// Addresses that are no host's (documentation, discard-only) and those of services that answer anywhere (anycast) are public.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, g, h] = v6.segments();
            let v4_at = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
            let embedded = match (a, b, c, d, e, f) {
                (0, 0, 0, 0, 0, 0 | 0xffff) | (0, 0, 0, 0, 0xffff, 0) | (0x64, 0xff9b, 0, 0, 0, 0) => Some(v4_at(g, h)),
                (0x2002, ..) => Some(v4_at(b, c)),
                // The client's address, with all bits inverted.
                (0x2001, 0, ..) => Some(v4_at(!g, !h)),
                _ => None,
            };
            let is_benchmark = (a, b, c) == (0x2001, 2, 0);
            let is_local_translation = (a, b, c) == (0x64, 0xff9b, 1);
            v6 == Ipv6Addr::LOCALHOST
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || a & 0xffc0 == 0xfec0
                || a == 0x5f00
                || is_benchmark
                || is_local_translation
                || embedded.is_some_and(is_private_v4)
        }
    }
}

fn is_private_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, d] = v4.octets();
    let is_shared = a == 100 && b & 0xc0 == 64;
    let is_benchmark = a == 198 && b & 0xfe == 18;
    let is_ds_lite = (a, b, c) == (192, 0, 0) && d < 8;
    let is_reserved = a >= 240;
    a == 0
        || v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || is_shared
        || is_benchmark
        || is_ds_lite
        || is_reserved
}

/// Extended error 15, Blocked (RFC 8914 §4.16).
const EDE_BLOCKED: u16 = 15;
/// SvcParamKeys (RFC 9460 §14.3.2).
const KEY_IPV4_HINT: u16 = 4;
const KEY_IPV6_HINT: u16 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Answer, Question, Record};

    #[test]
    fn addresses_within_a_site_are_known_in_every_guise() {
        for (address, expected) in [
            ("10.0.0.1", true),
            ("172.31.255.255", true),
            ("172.32.0.0", false),
            ("192.168.0.1", true),
            ("127.0.0.1", true),
            ("127.255.0.1", true),
            ("169.254.169.254", true),
            ("100.64.0.1", true),
            ("100.128.0.1", false),
            ("0.0.0.0", true),
            ("0.1.2.3", true),
            ("255.255.255.255", true),
            ("192.0.2.1", false),
            ("8.8.8.8", false),
            ("::1", true),
            ("::", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("fec0::1", true),
            ("feff::1", true),
            ("::ffff:0:10.0.0.1", true), // SIIT
            ("::ffff:0:192.0.2.1", false),
            ("2001:0:4136:e378:8000:63bf:f5ff:fffe", true), // Teredo, 10.0.0.1
            ("2001:0:a00:1:8000:63bf:3fff:fdfe", false),    // its server counts for nothing
            ("198.17.255.255", false),
            ("198.20.0.0", false),
            ("192.0.0.170", false), // of ipv4only.arpa (RFC 7050)
            ("ff02::1", false),
            ("2001:db8::1", false),
            ("::ffff:10.0.0.1", true),
            ("::ffff:192.0.2.1", false),
            ("::10.0.0.1", true),
            ("64:ff9b::10.0.0.1", true),
            ("64:ff9b::192.0.2.1", false),
            ("2002:a00:1::1", true), // 10.0.0.1
            ("2002:c000:201::1", false),
        ] {
            assert_eq!(is_private(address.parse().unwrap()), expected, "{address}");
        }
    }

    /// The address before a network, its first, its last, and the one behind.
    fn ends(network: &str) -> [Option<IpAddr>; 4] {
        let (address, bits) = network.split_once('/').unwrap();
        let bits: u32 = bits.parse().unwrap();
        match address.parse().unwrap() {
            IpAddr::V4(first) => {
                let (first, size) = (first.to_bits(), u32::MAX.checked_shr(bits).unwrap_or(0));
                let last = first + size;
                [first.checked_sub(1), Some(first), Some(last), last.checked_add(1)]
                    .map(|bits| Some(Ipv4Addr::from_bits(bits?).into()))
            }
            IpAddr::V6(first) => {
                let (first, size) = (first.to_bits(), u128::MAX.checked_shr(bits).unwrap_or(0));
                let last = first + size;
                [first.checked_sub(1), Some(first), Some(last), last.checked_add(1)]
                    .map(|bits| Some(Ipv6Addr::from_bits(bits?).into()))
            }
        }
    }

    /// Each row of the registries of special-purpose addresses (RFC 6890, 8190;
    /// www.iana.org/assignments/iana-ipv4-special-registry and iana-ipv6-special-registry, of 2025-10), and networks that lie in
    /// none of them. For each the address before it, its first, its last, and the one behind: `s` within a site, `p` public,
    /// `-` none.
    #[test]
    fn every_special_purpose_address_is_judged() {
        for (network, name, expected) in [
            ("0.0.0.0/8", "this network (RFC 791)", "-ssp"),
            ("0.0.0.0/32", "this host on this network (RFC 1122)", "-sss"),
            ("10.0.0.0/8", "private use (RFC 1918)", "pssp"),
            ("100.64.0.0/10", "shared (RFC 6598)", "pssp"),
            ("127.0.0.0/8", "loopback (RFC 1122)", "pssp"),
            ("169.254.0.0/16", "link local (RFC 3927)", "pssp"),
            ("172.16.0.0/12", "private use (RFC 1918)", "pssp"),
            ("192.0.0.0/24", "protocol assignments (RFC 6890), only the next row within a site", "pspp"),
            ("192.0.0.0/29", "service continuity (RFC 7335)", "pssp"),
            ("192.0.0.8/32", "dummy (RFC 7600)", "sppp"),
            ("192.0.0.9/32", "PCP anycast (RFC 7723)", "pppp"),
            ("192.0.0.10/32", "TURN anycast (RFC 8155)", "pppp"),
            ("192.0.0.170/32", "NAT64 discovery (RFC 8880, 7050)", "pppp"),
            ("192.0.0.171/32", "NAT64 discovery (RFC 8880, 7050)", "pppp"),
            ("192.0.2.0/24", "documentation (RFC 5737)", "pppp"),
            ("192.31.196.0/24", "AS112 (RFC 7535)", "pppp"),
            ("192.52.193.0/24", "AMT (RFC 7450)", "pppp"),
            ("192.88.99.0/24", "6to4 relay anycast, deprecated (RFC 7526)", "pppp"),
            ("192.168.0.0/16", "private use (RFC 1918)", "pssp"),
            ("192.175.48.0/24", "AS112 (RFC 7534)", "pppp"),
            ("198.18.0.0/15", "benchmarking (RFC 2544)", "pssp"),
            ("198.51.100.0/24", "documentation (RFC 5737)", "pppp"),
            ("203.0.113.0/24", "documentation (RFC 5737)", "pppp"),
            ("240.0.0.0/4", "reserved (RFC 1112)", "pss-"),
            ("255.255.255.255/32", "limited broadcast (RFC 8190, 919)", "sss-"),
            ("::1/128", "loopback (RFC 4291)", "ssss"),
            ("::/128", "unspecified (RFC 4291)", "-sss"),
            ("::ffff:0:0/96", "IPv4-mapped (RFC 4291)", "pssp"),
            ("64:ff9b::/96", "translation (RFC 6052)", "pssp"),
            ("64:ff9b:1::/48", "local translation (RFC 8215)", "pssp"),
            ("100::/64", "discard only (RFC 6666)", "pppp"),
            ("100:0:0:1::/64", "dummy (RFC 9780)", "pppp"),
            ("2001::/23", "protocol assignments (RFC 2928), which begin with Teredo", "pspp"),
            ("2001::/32", "Teredo (RFC 4380, 8190), its clients at 255.255.255.255 and 0.0.0.0", "pssp"),
            ("2001:1::1/128", "PCP anycast (RFC 7723)", "pppp"),
            ("2001:1::2/128", "TURN anycast (RFC 8155)", "pppp"),
            ("2001:1::3/128", "DNS-SD anycast (RFC 9665)", "pppp"),
            ("2001:2::/48", "benchmarking (RFC 5180)", "pssp"),
            ("2001:3::/32", "AMT (RFC 7450)", "pppp"),
            ("2001:4:112::/48", "AS112 (RFC 7535)", "pppp"),
            ("2001:10::/28", "ORCHID, deprecated (RFC 4843)", "pppp"),
            ("2001:20::/28", "ORCHIDv2 (RFC 7343)", "pppp"),
            ("2001:30::/28", "drone remote ID (RFC 9374)", "pppp"),
            ("2001:db8::/32", "documentation (RFC 3849)", "pppp"),
            ("2002::/16", "6to4 (RFC 3056)", "pssp"),
            ("2620:4f:8000::/48", "AS112 (RFC 7534)", "pppp"),
            ("3fff::/20", "documentation (RFC 9637)", "pppp"),
            ("5f00::/16", "segment routing (RFC 9602)", "pssp"),
            ("fc00::/7", "unique local (RFC 4193, 8190)", "pssp"),
            ("fe80::/10", "link local (RFC 4291), and site-local behind it", "psss"),
            ("::/96", "IPv4-compatible, deprecated (RFC 4291, section 2.5.5.1)", "-ssp"),
            ("::ffff:0:0:0/96", "IPv4-translated (RFC 2765, section 2.1)", "pssp"),
            ("fec0::/10", "site-local, deprecated (RFC 3879)", "sssp"),
            ("224.0.0.0/4", "multicast (RFC 5771), and reserved behind it", "ppps"),
            ("ff00::/8", "multicast (RFC 4291)", "spp-"),
        ] {
            let judge =
                |address: Option<IpAddr>| address.map_or('-', |address| if is_private(address) { 's' } else { 'p' });
            assert_eq!(ends(network).map(judge).iter().collect::<String>(), expected, "{network} {name}");
        }
    }

    fn record(owner: &str, rtype: Rtype, rdata: &[u8]) -> Record {
        Record::new(owner.parse().unwrap(), rtype, 60, rdata.to_vec())
    }

    /// What is left of these records, in the answer and in the additional section alike.
    fn left(records: &[Record]) -> Option<Vec<Record>> {
        let question = Question { qname: "www.example".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        let answer = Answer { answer: records.to_vec(), additional: records.to_vec(), ..Answer::default() };
        let mut response = answer.encode(&question);
        response.set_flag(flag::AD, true);
        let is_found = withhold(&mut response).unwrap();
        let left = response.to_answer().unwrap();
        assert_eq!(left.answer, left.additional);
        assert_eq!(response.question_bytes(), b"\x03www\x07example\0\0\x01\0\x01");
        assert_eq!((response.extended_errors().len() > 4, response.has_flag(flag::AD)), (is_found, !is_found));
        is_found.then_some(left.answer)
    }

    #[test]
    fn what_names_such_an_address_is_left_out_with_its_signature() {
        let (www, other) = ("www.example", "other.example");
        let public = record(www, Rtype::A, &[192, 0, 2, 1]);
        let private = record(www, Rtype::A, &[10, 0, 0, 1]);
        let private_v6 = record(www, Rtype::AAAA, &"fd00::1".parse::<Ipv6Addr>().unwrap().octets());
        // Of type A; then times and a tag, the root as signer, and the signature.
        let signed = [&[0, 1, 13, 2][..], &[0; 14], &[0], &[7; 64]].concat();
        let signature = record(www, Rtype::RRSIG, &signed);
        let other_signature = record(other, Rtype::RRSIG, &signed);
        let alias = record(www, Rtype::CNAME, b"\x05other\x07example\0");
        let text = record(www, Rtype::TXT, b"\x0410.0");
        let short = record(www, Rtype::A, &[8, 8, 8]);
        let of_other_family = record(www, Rtype::AAAA, &[8, 8, 8, 8]);
        // Priority 1, our own name, ALPN h2, then the hints.
        let binding = |hint: &[u8]| record(www, Rtype::HTTPS, &[&[0, 1, 0, 0, 1, 0, 3, 2, b'h', b'2'], hint].concat());
        let public_hint = binding(&[0, 4, 0, 4, 192, 0, 2, 1]);
        let private_hint = binding(&[0, 4, 0, 8, 192, 0, 2, 1, 10, 0, 0, 1]);
        let cut_hint = binding(&[0, 4, 0, 8, 10]);
        let odd_hint = binding(&[0, 4, 0, 5, 192, 0, 2, 1, 10]);
        for (records, expected) in [
            (vec![public.clone(), signature.clone()], None),
            (vec![public.clone(), private.clone(), signature.clone()], Some(vec![public.clone()])),
            (vec![private.clone()], Some(vec![])),
            (vec![alias.clone(), private_v6, other_signature.clone()], Some(vec![alias, other_signature])),
            (vec![text], None), // no address
            (vec![public.clone(), short, of_other_family], Some(vec![public])),
            (vec![public_hint.clone(), private_hint], Some(vec![public_hint])),
            (vec![cut_hint, odd_hint], Some(vec![])),
        ] {
            assert_eq!(left(&records), expected, "{records:?}");
        }
    }
}
