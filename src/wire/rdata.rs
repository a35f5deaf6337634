//! The form of RDATA by type: whether it is whole, where its names are, and how names are written out in full.
//!
//! RFC 3597 §4 lets a sender compress names in the types of RFC 1035 alone, and wants receivers to expand them in some later
//! types all the same. Types that this table lacks are opaque (RFC 3597 §3).

use super::{
    Class, Name, NameError, RecordView, Rtype,
    name::skip_uncompressed,
    read_u16,
    record::{End, Progress, check_name},
};

/// A part of RDATA.
#[derive(Clone, Copy)]
pub(super) enum Field {
    Name,
    Octets(usize),
    /// A character string: its length in one octet, then that many octets.
    Text,
}

impl Field {
    /// How long the field at `at` is, names uncompressed.
    pub(super) fn length(self, wire: &[u8], at: usize) -> Option<usize> {
        match self {
            Self::Name => skip_uncompressed(wire, at).ok().map(|end| end - at),
            Self::Octets(count) => Some(count),
            Self::Text => wire.get(at).map(|&length| 1 + usize::from(length)),
        }
    }
}

/// What comes after the fields of a type.
#[derive(Clone, Copy)]
enum Rest {
    Nothing,
    Anything,
    /// At least one octet.
    Something,
    /// Character strings, at least one.
    Texts,
    /// At most one character string.
    MaybeText,
    /// A type bitmap (RFC 4034 §4.1.2).
    Types,
    /// A name that no sender compresses, and nothing after it.
    PlainName,
    /// The same, then service parameters (RFC 9460 §2.2).
    Parameters,
    /// Address prefixes (RFC 3123 §4).
    Prefixes,
    /// A digest type, and a digest as long as that says (RFC 4034 §5.1.3).
    Digest,
}

/// Whether a name in RDATA has to be written out in full before the record is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    AsTheyAre,
    ToExpand,
}

/// Whether the names in the RDATA of a type may be compressed. MINFO and the other experimental types of RFC 1035 may have
/// theirs compressed too, but nothing is lost if they are not.
pub(super) fn may_compress(rtype: Rtype) -> bool {
    matches!(rtype, Rtype::NS | Rtype::CNAME | Rtype::SOA | Rtype::PTR | Rtype::MX)
}

/// How the RDATA begins of those types whose names a sender may have compressed.
pub(super) fn fields(rtype: Rtype) -> Option<&'static [Field]> {
    use Field::{Name, Octets, Text};
    Some(match rtype.0 {
        2..=5 | 7..=9 | 12 | 39 => &[Name],         // NS MD MF CNAME MB MG MR PTR DNAME
        6 => &[Name, Name, Octets(20)],             // SOA
        14 | 17 => &[Name, Name],                   // MINFO RP
        15 | 18 | 21 | 36 => &[Octets(2), Name],    // MX AFSDB RT KX
        24 | 46 => &[Octets(18), Name],             // SIG RRSIG
        26 => &[Octets(2), Name, Name],             // PX
        30 | 47 => &[Name],                         // NXT NSEC
        33 => &[Octets(6), Name],                   // SRV
        35 => &[Octets(4), Text, Text, Text, Name], // NAPTR
        _ => return None,
    })
}

/// The whole form of a type's RDATA; `None` for types that are opaque.
fn form(rtype: Rtype) -> Option<(&'static [Field], Rest)> {
    use Field::{Octets, Text};
    if let Some(fields) = fields(rtype) {
        let rest = match rtype.0 {
            24 | 46 => Rest::Something, // the signature
            30 => Rest::Anything,       // a bitmap of another form (RFC 2535 §5.2)
            47 => Rest::Types,
            _ => Rest::Nothing,
        };
        return Some((fields, rest));
    }
    Some(match rtype.0 {
        1 => (&[Octets(4)], Rest::Nothing),                   // A
        28 => (&[Octets(16)], Rest::Nothing),                 // AAAA
        16 | 56 | 99 | 258 | 261 | 262 => (&[], Rest::Texts), // TXT NINFO SPF AVC RESINFO WALLET
        13 => (&[Text, Text], Rest::Nothing),                 // HINFO
        19 => (&[Text], Rest::Nothing),                       // X25
        20 => (&[Text], Rest::MaybeText),                     // ISDN
        27 => (&[Text, Text, Text], Rest::Nothing),           // GPOS
        11 => (&[Octets(5)], Rest::Anything),                 // WKS
        25 | 48 | 57 | 60 => (&[Octets(4)], Rest::Anything),  // KEY DNSKEY RKEY CDNSKEY
        37 => (&[Octets(5)], Rest::Anything),                 // CERT
        42 => (&[], Rest::Prefixes),                          // APL
        43 | 59 | 32769 => (&[Octets(3)], Rest::Digest),      // DS CDS DLV
        44 => (&[Octets(2)], Rest::Something),                // SSHFP
        49 | 61 => (&[], Rest::Something),                    // DHCID OPENPGPKEY
        50 => (&[Octets(4), Text, Text], Rest::Types),        // NSEC3
        51 => (&[Octets(4), Text], Rest::Nothing),            // NSEC3PARAM
        52 | 53 => (&[Octets(3)], Rest::Something),           // TLSA SMIMEA
        23 => (&[], Rest::PlainName),                         // NSAP-PTR
        62 => (&[Octets(6)], Rest::Types),                    // CSYNC
        63 => (&[Octets(6)], Rest::Something),                // ZONEMD
        64 | 65 => (&[Octets(2)], Rest::Parameters),          // SVCB HTTPS
        104 | 106 => (&[Octets(10)], Rest::Nothing),          // NID L64
        105 => (&[Octets(6)], Rest::Nothing),                 // L32
        107 => (&[Octets(2)], Rest::PlainName),               // LP
        108 => (&[Octets(6)], Rest::Nothing),                 // EUI48
        109 => (&[Octets(8)], Rest::Nothing),                 // EUI64
        256 => (&[Octets(4)], Rest::Anything),                // URI
        257 => (&[Octets(1), Text], Rest::Anything),          // CAA
        _ => return None,
    })
}

/// Makes sure that RDATA is whole and nothing more, and that its names can be read, now and in every reply.
#[inline]
pub(super) fn check(message: &[u8], record: &RecordView, progress: &mut Progress) -> Option<Names> {
    let length = record.rdata.len();
    let has_length = |wanted| (length == wanted).then_some(Names::AsTheyAre);
    match record.rtype {
        // Almost all records are addresses. In other classes these types have other forms.
        Rtype::A if record.class == Class::IN => has_length(4),
        Rtype::AAAA if record.class == Class::IN => has_length(16),
        Rtype::A | Rtype::AAAA | Rtype::WKS if record.class != Class::IN => Some(Names::AsTheyAre),
        rtype => match form(rtype) {
            Some((fields, rest)) => check_form(message, record, fields, rest, progress),
            None => Some(Names::AsTheyAre),
        },
    }
}

fn check_form(
    message: &[u8],
    record: &RecordView,
    fields: &[Field],
    rest: Rest,
    progress: &mut Progress,
) -> Option<Names> {
    let mut names = Names::AsTheyAre;
    let rdata = message.get(..record.rdata.end)?;
    let mut at = record.rdata.start;
    for field in fields {
        at = match field {
            Field::Name => {
                let End { at, is_compressed } = check_name(rdata, at, progress)?;
                if is_compressed && !may_compress(record.rtype) {
                    names = Names::ToExpand;
                }
                at
            }
            _ => at + field.length(rdata, at)?,
        };
    }
    is_whole(rest, rdata.get(at..)?).then_some(names)
}

/// Whether octets are what comes after the fields.
fn is_whole(rest: Rest, mut octets: &[u8]) -> bool {
    match rest {
        Rest::Nothing => octets.is_empty(),
        Rest::Anything => true,
        Rest::Something => !octets.is_empty(),
        Rest::MaybeText => octets.is_empty() || skip_text(&mut octets) && octets.is_empty(),
        Rest::Texts => {
            let is_empty = octets.is_empty();
            while !octets.is_empty() && skip_text(&mut octets) {}
            !is_empty && octets.is_empty()
        }
        Rest::Types => {
            let mut last = None;
            while let [window, length @ 1..=32, ..] = *octets {
                if last >= Some(window) || octets.split_off(..2 + usize::from(length)).is_none() {
                    return false;
                }
                last = Some(window);
            }
            octets.is_empty()
        }
        Rest::PlainName => skip_uncompressed(octets, 0) == Ok(octets.len()),
        Rest::Parameters => {
            let Ok(mut at) = skip_uncompressed(octets, 0) else { return false };
            while at < octets.len() {
                let Some(length) = read_u16(octets, at + 2) else { return false };
                at += 4 + usize::from(length);
            }
            at == octets.len()
        }
        Rest::Prefixes => {
            while let [_, _, _, length, ..] = *octets {
                if octets.split_off(..4 + usize::from(length & 0x7f)).is_none() {
                    return false;
                }
            }
            octets.is_empty()
        }
        Rest::Digest => match octets {
            [1, digest @ ..] => digest.len() == 20,
            [2 | 3, digest @ ..] => digest.len() == 32,
            [4, digest @ ..] => digest.len() == 48,
            [_, digest @ ..] => !digest.is_empty(),
            [] => false,
        },
    }
}

/// Goes past a character string; false if it is not whole.
fn skip_text(octets: &mut &[u8]) -> bool {
    let length = octets.first().map_or(1, |&length| 1 + usize::from(length));
    octets.split_off(..length).is_some()
}

/// The RDATA of a record in a message, names in it uncompressed.
pub(super) fn expand(message: &[u8], record: &RecordView) -> Result<Vec<u8>, NameError> {
    let whole = message.get(record.rdata.clone()).ok_or(NameError::BadWire)?;
    let Some(fields) = fields(record.rtype).filter(|_| !whole.is_empty()) else {
        return Ok(whole.to_vec());
    };
    let mut rdata = Vec::with_capacity(whole.len() + 32);
    let mut at = record.rdata.start;
    for field in fields {
        let end = match field {
            Field::Name => {
                let (name, end) = Name::read(message, at)?;
                rdata.extend_from_slice(name.wire());
                end
            }
            _ => {
                let end = at + field.length(message, at).ok_or(NameError::BadWire)?;
                rdata.extend_from_slice(message.get(at..end).ok_or(NameError::BadWire)?);
                end
            }
        };
        at = end;
    }
    rdata.extend_from_slice(message.get(at..record.rdata.end).ok_or(NameError::BadWire)?);
    Ok(rdata)
}
