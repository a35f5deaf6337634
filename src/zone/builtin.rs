//! The zones that are always there: names that mean this machine, or nothing anywhere.
//!
//! What is [`always`] answered stands in `zones/`, one apex per file, named for it. [`private`] zones are empty: such names
//! mean something at home at best, and a public recursor can only learn from the question.

use std::{
    path::Path,
    sync::{LazyLock, OnceLock},
};

use super::Zone;
use crate::wire::Name;

/// A zone that is built when it is first needed, for most never are. It is built once: a reload leaves its generation, and
/// with that its cached answers, as it is.
pub struct Builtin {
    apex: Name,
    text: &'static str,
    zone: OnceLock<Zone>,
}

impl Builtin {
    fn new(apex: &str, text: &'static str) -> Self {
        Self { apex: apex.parse().expect("the apexes are written down here"), text, zone: OnceLock::new() }
    }

    /// The name above which others answer.
    pub fn apex(&self) -> &Name {
        &self.apex
    }

    /// The zone itself.
    pub fn zone(&self) -> &Zone {
        self.zone.get_or_init(|| {
            let zone = Zone::parse(Path::new("built in"), self.text, &self.apex);
            zone.unwrap_or_else(|errors| panic!("{} is built in and faulty: {errors:?}", self.apex))
        })
    }
}

/// Zones that are answered here whatever the upstreams may know.
pub fn always() -> &'static [Builtin] {
    static ZONES: LazyLock<Vec<Builtin>> =
        LazyLock::new(|| ALWAYS.iter().map(|(apex, text)| Builtin::new(apex, text)).collect());
    &ZONES
}

/// Zones that are kept from public recursors.
///
/// The reverse zones of the addresses that any site may use (RFC 6303 §4, RFC 7793), and names that are for use at home:
/// `local` (RFC 6762), `home.arpa` (RFC 8375), `test` (RFC 6761) and `internal` (reserved by ICANN in 2024).
pub fn private() -> &'static [Builtin] {
    static ZONES: LazyLock<Vec<Builtin>> = LazyLock::new(|| {
        let second_octets = |first: u8, range: std::ops::RangeInclusive<u8>| {
            range.map(move |second| format!("{second}.{first}.in-addr.arpa."))
        };
        let reverse = second_octets(172, 16..=31).chain(second_octets(100, 64..=127));
        PRIVATE.iter().map(ToString::to_string).chain(reverse).map(|apex| Builtin::new(&apex, EMPTY)).collect()
    });
    &ZONES
}

/// Pairs each apex with its file.
macro_rules! files {
    ($($apex:literal,)*) => {
        [$(($apex, include_str!(concat!("../../zones/", $apex, ".zone"))),)*]
    };
}

const ALWAYS: [(&str, &str); 15] = files![
    "localhost",
    "invalid",
    "onion",
    "alt",
    "resolver.arpa",
    "0.in-addr.arpa",
    "127.in-addr.arpa",
    "254.169.in-addr.arpa",
    "255.255.255.255.in-addr.arpa",
    "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa",
    "8.e.f.ip6.arpa",
    "9.e.f.ip6.arpa",
    "a.e.f.ip6.arpa",
    "b.e.f.ip6.arpa",
];

const PRIVATE: [&str; 11] = [
    "10.in-addr.arpa.",
    "168.192.in-addr.arpa.",
    "2.0.192.in-addr.arpa.",
    "100.51.198.in-addr.arpa.",
    "113.0.203.in-addr.arpa.",
    "d.f.ip6.arpa.",
    "8.b.d.0.1.0.0.2.ip6.arpa.",
    "local.",
    "home.arpa.",
    "test.",
    "internal.",
];

/// An empty zone (RFC 6303 §3).
const EMPTY: &str = "\
@ 10800 IN SOA @ nobody.invalid. 1 3600 1200 604800 10800
@ 10800 IN NS @
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Class, Question, Rcode, Rtype};

    #[test]
    fn special_names_are_answered_as_their_rfcs_demand() {
        let zones: Vec<_> = always().iter().chain(private()).collect();
        let loopback6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa";
        for (qname, qtype, rcode, count) in [
            ("localhost", Rtype::A, Rcode::NOERROR, 1),
            ("localhost", Rtype::AAAA, Rcode::NOERROR, 1),
            ("localhost", Rtype::MX, Rcode::NOERROR, 0),
            ("a.b.localhost", Rtype::A, Rcode::NOERROR, 1), // RFC 6761 §6.3
            ("1.0.0.127.in-addr.arpa", Rtype::PTR, Rcode::NOERROR, 1),
            ("2.0.0.127.in-addr.arpa", Rtype::PTR, Rcode::NXDOMAIN, 0),
            (loopback6, Rtype::PTR, Rcode::NOERROR, 1),
            ("x.invalid", Rtype::A, Rcode::NXDOMAIN, 0),
            ("x.onion", Rtype::A, Rcode::NXDOMAIN, 0), // RFC 7686 §2
            ("x.alt", Rtype::A, Rcode::NXDOMAIN, 0),   // RFC 9476 §2
            ("resolver.arpa", Rtype::SVCB, Rcode::NOERROR, 0),
            ("_dns.resolver.arpa", Rtype::SVCB, Rcode::NOERROR, 0), // RFC 9462 §6.4
            ("1.2.254.169.in-addr.arpa", Rtype::PTR, Rcode::NXDOMAIN, 0),
            ("1.2.16.172.in-addr.arpa", Rtype::PTR, Rcode::NXDOMAIN, 0),
            ("1.2.31.172.in-addr.arpa", Rtype::PTR, Rcode::NXDOMAIN, 0),
            ("1.2.127.100.in-addr.arpa", Rtype::PTR, Rcode::NXDOMAIN, 0),
            ("printer.local", Rtype::A, Rcode::NXDOMAIN, 0),
        ] {
            let qname: Name = qname.parse().unwrap();
            let zone = zones.iter().find(|zone| qname.is_at_or_below(zone.apex())).expect("a zone");
            let answer = zone.zone().answer(&Question { qname: qname.clone(), qtype, qclass: Class::IN });
            assert_eq!((answer.rcode, answer.answer.len()), (rcode, count), "{qname} {qtype}");
            assert_eq!(answer.authority.len(), usize::from(count == 0), "{qname} {qtype}");
        }
    }

    #[test]
    fn every_built_in_zone_is_without_warning_and_alone() {
        let zones: Vec<_> = always().iter().chain(private()).collect();
        assert!(zones.iter().all(|zone| zone.zone().warnings().is_empty()));
        for zone in &zones {
            assert_eq!(zones.iter().filter(|other| other.apex() == zone.apex()).count(), 1, "{}", zone.apex());
        }
        assert!(!zones.iter().any(|zone| zone.apex() == &"15.172.in-addr.arpa".parse().unwrap()));
    }
}
