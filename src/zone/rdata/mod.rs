//! The RDATA of master files: from the words of a record to its wire form (RFC 1035 §5.1, RFC 3597 §5).
//!
//! A table gives the fields of each type. One function reads them as text, another checks RDATA that was written as octets
//! behind `\#`. Types whose fields depend on each other have functions of their own.
//!
//! What is accepted is what BIND accepts, so that a file moves from there without a change.

mod forms;
mod names;
mod svcb;
mod text;
mod wire;

use super::Problem;
use crate::wire::{Name, Rtype};

pub(super) use names::rtype as read_rtype;
pub(super) use text::{MAX_TTL, is_quoted, name as read_name, octets as read_octets, seconds as read_seconds};

/// Appends the RDATA that these words stand for. Names are relative to `origin`.
pub(super) fn read(rtype: Rtype, words: &[&str], origin: &Name, out: &mut Vec<u8>) -> Result<(), Problem> {
    let start = out.len();
    let result = match words {
        ["\\#", rest @ ..] => read_generic(rtype, rest, out, start),
        _ => read_fields(rtype, words, origin, out),
    };
    let result = result.and_then(|()| match u16::try_from(out.len() - start) {
        Ok(_) => Ok(()),
        Err(_) => Err(bad("longer than 65535 octets")),
    });
    result.map_err(|fault| {
        out.truncate(start);
        match fault {
            Fault::Rdata(reason) => Problem::BadRdata { rtype, reason, example: example(rtype) },
            Fault::Other(problem) => problem,
        }
    })
}

/// Whether two RDATA of a type are the same record, whatever the case of names in them.
pub(super) fn are_equal(rtype: Rtype, a: &[u8], b: &[u8]) -> bool {
    a == b || matches!(layout(rtype), Layout::Fields(fields) if wire::are_equal(fields, a, b))
}

/// What is wrong with RDATA.
enum Fault {
    /// This, which belongs behind the type.
    Rdata(String),
    /// Something that has a message of its own.
    Other(Problem),
}

fn bad(reason: impl Into<String>) -> Fault {
    Fault::Rdata(reason.into())
}

/// A part of RDATA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    U8,
    U16,
    U32,
    /// 32 bits, with units as in `1h30m`.
    Seconds,
    /// 32 bits, as YYYYMMDDHHMMSS or seconds since 1970.
    Time,
    /// 16 bits, a type by its mnemonic.
    Rtype,
    /// 16 bits, flags of KEY records by their mnemonics or as a number.
    Flags,
    /// 8 bits, an algorithm of DNSSEC by its mnemonic or number.
    Algorithm,
    /// 8 bits, a digest of DS records by its mnemonic or number.
    Digest,
    /// 8 bits, a protocol of KEY records by its mnemonic or number.
    Protocol,
    /// 16 bits, a type of CERT records by its mnemonic or number.
    CertType,
    Name,
    Ipv4,
    Ipv6,
    /// A length and up to 255 octets.
    String,
    /// Nothing or a string.
    OptionalString,
    /// A string of digits only, at least four (RFC 1183 §3.1).
    Digits,
    /// A string of letters and digits (RFC 8659 §4.1).
    Tag,
    /// Strings to the end, at least one.
    Strings,
    /// Octets to the end, written as one string.
    Rest,
    /// The same, in quotation marks.
    Target,
    /// Octets to the end, at least one.
    Hex,
    /// The same; how many depends on the number before it (DS, SSHFP, ZONEMD), and for other numbers there is a minimum.
    Hash(&'static [(u8, usize)], usize),
    /// Octets to the end, at least one.
    Base64,
    /// The same, or nothing.
    OptionalBase64,
    /// The same, with `-` for nothing.
    Base64OrDash,
    /// A length and octets as one word of hexadecimal digits, or `-`.
    Salt,
    /// A length and octets as one word of base 32 with the extended hexadecimal alphabet.
    NextHash,
    /// A set of types to the end (RFC 4034 §4.1.2), which may be empty in NSEC3 and CSYNC alone.
    Types,
    TypesOrNone,
    /// Octets as pairs of digits with hyphens between them.
    Eui(usize),
    /// 64 bits as four groups of hexadecimal digits.
    Locator,
}

/// The fields of a type, or how else it is read.
enum Layout {
    Fields(&'static [Field]),
    Form(&'static forms::Form),
    /// Octets of any kind, which have no text form but that of `\#`.
    Opaque,
}

fn layout(rtype: Rtype) -> Layout {
    use Field::{
        Algorithm, Base64, Base64OrDash, CertType, Digest, Digits, Eui, Flags, Hash, Hex, Ipv4, Ipv6, Locator, Name,
        NextHash, OptionalBase64, OptionalString, Protocol, Rest, Salt, Seconds, String, Strings, Tag, Target, Time,
        Types, TypesOrNone, U8, U16, U32,
    };
    Layout::Fields(match rtype.0 {
        1 => &[Ipv4],
        // NS, CNAME, MB, MG, MR, PTR, NSAP-PTR, DNAME; MD and MF are obsolete
        2 | 5 | 7..=9 | 12 | 23 | 39 => &[Name],
        6 => &[Name, Name, U32, Seconds, Seconds, Seconds, Seconds],
        11 => return Layout::Form(&forms::WKS),
        13 => &[String, String],
        // MINFO, RP, TALINK
        14 | 17 | 58 => &[Name, Name],
        // MX, AFSDB, RT, KX, LP
        15 | 18 | 21 | 36 | 107 => &[U16, Name],
        // TXT, NINFO, SPF, AVC, RESINFO, WALLET
        16 | 56 | 99 | 258 | 261 | 262 => &[Strings],
        19 => &[Digits],
        20 => &[String, OptionalString],
        22 => return Layout::Form(&forms::NSAP),
        // SIG, RRSIG
        24 | 46 => &[Field::Rtype, Algorithm, U8, U32, Time, Time, U16, Name, Base64],
        25 => return Layout::Form(&forms::KEY),
        26 => &[U16, Name, Name],
        27 => &[String, String, String],
        28 => &[Ipv6],
        29 => return Layout::Form(&forms::LOC),
        30 => return Layout::Form(&forms::NXT),
        // EID, NIMLOC, DHCID in another alphabet
        31 | 32 => &[Hex],
        33 => &[U16, U16, U16, Name],
        34 => return Layout::Form(&forms::ATMA),
        35 => return Layout::Form(&forms::NAPTR),
        37 => &[CertType, U16, Algorithm, Base64],
        38 => return Layout::Form(&forms::A6),
        40 => &[U8, U8, U8, OptionalBase64],
        42 => return Layout::Form(&forms::APL),
        // DS, CDS, TA, DLV
        43 | 59 | 32_768 | 32_769 => &[U16, Algorithm, Digest, Hash(&[(0, 1), (1, 20), (2, 32), (4, 48)], 1)],
        44 => &[U8, U8, Hash(&[(1, 20), (2, 32)], 1)],
        45 => return Layout::Form(&forms::IPSECKEY),
        47 => &[Name, Types],
        // DNSKEY, RKEY, CDNSKEY
        48 | 57 | 60 => &[Flags, Protocol, Algorithm, Base64],
        49 | 61 => &[Base64],
        50 => &[U8, U8, U16, Salt, NextHash, TypesOrNone],
        51 => &[U8, U8, U16, Salt],
        // TLSA, SMIMEA
        52 | 53 => &[U8, U8, U8, Hex],
        55 => return Layout::Form(&forms::HIP),
        62 => &[U32, U16, TypesOrNone],
        63 => &[U32, U8, U8, Hash(&[(1, 48), (2, 64)], 12)],
        64 | 65 => return Layout::Form(&svcb::SVCB),
        // NID, L64
        104 | 106 => &[U16, Locator],
        105 => &[U16, Ipv4],
        108 => &[Eui(6)],
        109 => &[Eui(8)],
        256 => &[U16, U16, Target],
        257 => &[U8, Tag, Rest],
        259 => &[U32, U32, U8, String, Base64OrDash],
        260 => return Layout::Form(&forms::AMTRELAY),
        65_533 => &[Time, Time, Time, Flags, Protocol, Algorithm, Base64],
        _ => return Layout::Opaque,
    })
}

fn read_fields(rtype: Rtype, words: &[&str], origin: &Name, out: &mut Vec<u8>) -> Result<(), Fault> {
    let start = out.len();
    let mut words = text::Words::new(words, origin);
    match layout(rtype) {
        Layout::Fields(fields) => {
            for field in fields {
                words.field(*field, out, start)?;
            }
        }
        Layout::Form(form) => (form.read)(&mut words, out)?,
        Layout::Opaque => return Err(bad("the type has no other form")),
    }
    words.end()
}

/// Octets behind `\#`: their number, and they themselves in hexadecimal digits. Those of a known type have to make sense.
fn read_generic(rtype: Rtype, words: &[&str], out: &mut Vec<u8>, start: usize) -> Result<(), Fault> {
    let (length, digits) = words.split_first().ok_or_else(|| bad("it is missing"))?;
    let length: u16 = text::number(length).ok_or_else(|| bad("the length behind \\# is not a number"))?;
    text::hex(digits, out)?;
    if out.len() - start != usize::from(length) {
        return Err(bad(format!("\\# announces {length} octets, and {} follow", out.len() - start)));
    }
    let rdata = &out[start..];
    let is_good = match layout(rtype) {
        Layout::Fields(fields) => wire::is_good(fields, rdata),
        Layout::Form(form) => (form.is_good)(rdata),
        Layout::Opaque => true,
    };
    if is_good { Ok(()) } else { Err(bad("a name or number in it is malformed")) }
}

/// What RDATA of a type looks like when it is right.
fn example(rtype: Rtype) -> &'static str {
    match rtype {
        Rtype::A => "A 192.0.2.1",
        Rtype::AAAA => "AAAA 2001:db8::1",
        Rtype::CNAME => "CNAME target.example.",
        Rtype::DNAME => "DNAME target.example.",
        Rtype::NS => "NS ns.example.",
        Rtype::PTR => "PTR host.example.",
        Rtype::MX => "MX 10 mail.example.",
        Rtype::TXT => "TXT \"up to 255 octets\" \"and more\"",
        Rtype::SRV => "SRV 0 5 443 host.example.",
        Rtype::SOA => "SOA ns.example. hostmaster.example. 1 1h 20m 1w 1m",
        Rtype::CAA => "CAA 0 issue \"ca.example\"",
        Rtype::URI => "URI 10 1 \"https://www.example/\"",
        Rtype::LOC => "LOC 52 22 23 N 4 53 32 E -2m 0m 10000m 10m",
        Rtype::NAPTR => "NAPTR 100 10 \"u\" \"E2U+sip\" \"!^.*$!sip:a@example!\" .",
        Rtype::SSHFP => "SSHFP 4 2 HEX",
        Rtype::TLSA => "TLSA 3 1 1 HEX",
        Rtype::DS => "DS 12345 13 2 HEX",
        Rtype::DNSKEY => "DNSKEY 257 3 13 BASE64",
        Rtype::CERT => "CERT PKIX 0 0 BASE64",
        Rtype::SVCB => "SVCB 1 host.example. alpn=h2 port=443",
        Rtype::HTTPS => "HTTPS 1 . alpn=h2",
        _ => "\\# LENGTH HEX",
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
