//! The mnemonics of numbers in RDATA.

use domain::base::iana;

use crate::{wire::Rtype, zone::Problem};

/// A type of records.
pub(in crate::zone) fn rtype(word: &str) -> Result<Rtype, Problem> {
    let known = lookup(RTYPES, word).map(Rtype);
    let registered = || word.parse::<iana::Rtype>().ok().map(|known| Rtype(known.to_int()));
    // The crate spells it without its hyphen.
    let registered = || registered().filter(|_| !word.eq_ignore_ascii_case("NSAPPTR"));
    let rtype = known.or_else(registered).ok_or_else(|| Problem::UnknownType(word.to_string()))?;
    if rtype.is_meta() || rtype == Rtype(0) { Err(Problem::QueryType(rtype)) } else { Ok(rtype) }
}

pub(super) fn lookup<T: Copy>(table: &[(&str, T)], word: &str) -> Option<T> {
    table.iter().find(|(mnemonic, _)| mnemonic.eq_ignore_ascii_case(word)).map(|&(_, number)| number)
}

/// The types that are met most, and those that the crate `domain` does not know.
const RTYPES: &[(&str, u16)] = &[
    ("CNAME", 5),
    ("A", 1),
    ("AAAA", 28),
    ("PTR", 12),
    ("TXT", 16),
    ("NS", 2),
    ("NSAP-PTR", 23),
    ("RESINFO", 261),
    ("WALLET", 262),
    ("KEYDATA", 65_533),
];

/// Algorithms of DNSSEC (RFC 8624), as BIND reads them.
pub(super) const ALGORITHMS: &[(&str, u8)] = &[
    ("RSAMD5", 1),
    ("DH", 2),
    ("DSA", 3),
    ("RSASHA1", 5),
    ("NSEC3DSA", 6),
    ("DSA-NSEC3-SHA1", 6),
    ("NSEC3RSASHA1", 7),
    ("RSASHA1-NSEC3-SHA1", 7),
    ("RSASHA256", 8),
    ("RSASHA512", 10),
    ("ECCGOST", 12),
    ("ECC-GOST", 12),
    ("ECDSAP256SHA256", 13),
    ("ECDSA256", 13),
    ("ECDSAP384SHA384", 14),
    ("ECDSA384", 14),
    ("ED25519", 15),
    ("ED448", 16),
    ("INDIRECT", 252),
    ("PRIVATEDNS", 253),
    ("PRIVATEOID", 254),
];

/// Digests of DS records.
pub(super) const DIGESTS: &[(&str, u8)] =
    &[("SHA-1", 1), ("SHA1", 1), ("SHA-256", 2), ("SHA256", 2), ("GOST", 3), ("SHA-384", 4), ("SHA384", 4)];

/// Protocols of KEY records (RFC 2535 §3.1.3).
pub(super) const PROTOCOLS: &[(&str, u8)] =
    &[("NONE", 0), ("TLS", 1), ("EMAIL", 2), ("DNSSEC", 3), ("IPSEC", 4), ("ALL", 255)];

/// Flags of KEY and DNSKEY records (RFC 2535 §3.1.2, RFC 4034 §2.1.1), as BIND names them.
pub(super) const KEY_FLAGS: &[(&str, u16)] = &[
    ("NOCONF", 0x4000),
    ("NOAUTH", 0x8000),
    ("NOKEY", 0xc000),
    ("FLAG2", 0x2000),
    ("EXTEND", 0x1000),
    ("FLAG4", 0x0800),
    ("FLAG5", 0x0400),
    ("USER", 0x0000),
    ("ZONE", 0x0100),
    ("HOST", 0x0200),
    ("NTYP3", 0x0300),
    ("FLAG8", 0x0080),
    ("REVOKE", 0x0080),
    ("FLAG9", 0x0040),
    ("FLAG10", 0x0020),
    ("FLAG11", 0x0010),
    ("KSK", 0x0001),
];

/// Types of CERT records (RFC 4398 §2.1).
pub(super) const CERT_TYPES: &[(&str, u16)] = &[
    ("PKIX", 1),
    ("SPKI", 2),
    ("PGP", 3),
    ("IPKIX", 4),
    ("ISPKI", 5),
    ("IPGP", 6),
    ("ACPKIX", 7),
    ("IACPKIX", 8),
    ("URI", 253),
    ("OID", 254),
];

/// Protocols of WKS records.
pub(super) const TRANSPORTS: &[(&str, u8)] = &[("ICMP", 1), ("TCP", 6), ("UDP", 17)];

/// Services of WKS records (RFC 1010), those that were ever listed.
pub(super) const SERVICES: &[(&str, u16)] = &[
    ("echo", 7),
    ("discard", 9),
    ("systat", 11),
    ("daytime", 13),
    ("netstat", 15),
    ("qotd", 17),
    ("chargen", 19),
    ("ftp-data", 20),
    ("ftp", 21),
    ("ssh", 22),
    ("telnet", 23),
    ("smtp", 25),
    ("time", 37),
    ("nameserver", 42),
    ("whois", 43),
    ("domain", 53),
    ("bootps", 67),
    ("bootpc", 68),
    ("tftp", 69),
    ("gopher", 70),
    ("finger", 79),
    ("http", 80),
    ("www", 80),
    ("kerberos", 88),
    ("hostnames", 101),
    ("pop2", 109),
    ("pop3", 110),
    ("sunrpc", 111),
    ("auth", 113),
    ("nntp", 119),
    ("ntp", 123),
    ("imap2", 143),
    ("snmp", 161),
    ("snmp-trap", 162),
    ("irc", 194),
    ("https", 443),
];
