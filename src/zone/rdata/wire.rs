//! Checks RDATA in wire form against the fields of its type.

use super::Field;
use crate::wire::Name;

/// Whether `rdata` consists of exactly these fields.
pub(super) fn is_good(fields: &[Field], rdata: &[u8]) -> bool {
    let mut rest = rdata;
    fields.iter().all(|field| take(*field, &mut rest, rdata).is_some()) && rest.is_empty()
}

/// Whether two RDATA of these fields differ in nothing but the case of names.
pub(super) fn are_equal(fields: &[Field], a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut rest = a;
    for field in fields {
        let start = a.len() - rest.len();
        if take(*field, &mut rest, a).is_none() {
            return false;
        }
        let (a, b) = (&a[start..a.len() - rest.len()], &b[start..a.len() - rest.len()]);
        if !(a == b || *field == Field::Name && a.eq_ignore_ascii_case(b)) {
            return false;
        }
    }
    true
}

/// Removes `count` octets from the front.
pub(super) fn take_octets<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

/// Removes a name from the front.
pub(super) fn take_name(rest: &mut &[u8]) -> Option<()> {
    let mut at = 0;
    while let Some(&length) = rest.get(at) {
        at += 1 + usize::from(length);
        if length == 0 {
            let name = take_octets(rest, at)?;
            return Name::from_wire(name).ok().map(|_| ());
        }
    }
    None
}

/// Removes a length of one octet and as many octets from the front.
pub(super) fn take_string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_octets(rest, 1)?[0];
    take_octets(rest, length.into())
}

/// Removes a set of types (RFC 4034 §4.1.2) from the front: it reaches to the end.
fn take_types(rest: &mut &[u8]) -> Option<()> {
    let mut last = None;
    while !rest.is_empty() {
        let head = take_octets(rest, 2)?;
        let (window, length) = (head[0], usize::from(head[1]));
        if last.is_some_and(|last| window <= last) || !(1..=32).contains(&length) {
            return None;
        }
        if take_octets(rest, length)?.last() == Some(&0) {
            return None;
        }
        last = Some(window);
    }
    Some(())
}

fn take(field: Field, rest: &mut &[u8], rdata: &[u8]) -> Option<()> {
    let all = |rest: &mut &[u8]| take_octets(rest, rest.len()).filter(|octets| !octets.is_empty()).map(|_| ());
    let octets = |rest: &mut &[u8], count| take_octets(rest, count).map(|_| ());
    match field {
        Field::U8 | Field::Algorithm | Field::Digest | Field::Protocol => octets(rest, 1),
        Field::U16 | Field::Rtype | Field::Flags | Field::CertType => octets(rest, 2),
        Field::U32 | Field::Seconds | Field::Time | Field::Ipv4 => octets(rest, 4),
        Field::Ipv6 => octets(rest, 16),
        Field::Locator => octets(rest, 8),
        Field::Eui(count) => octets(rest, count),
        Field::Name => take_name(rest),
        Field::String | Field::Salt => take_string(rest).map(|_| ()),
        Field::NextHash => take_string(rest).filter(|hash| !hash.is_empty()).map(|_| ()),
        Field::OptionalString if rest.is_empty() => Some(()),
        Field::OptionalString => take_string(rest).map(|_| ()),
        Field::Digits => {
            take_string(rest).filter(|digits| digits.len() >= 4 && digits.iter().all(u8::is_ascii_digit)).map(|_| ())
        }
        Field::Tag => {
            let tag = take_string(rest)?;
            (!tag.is_empty() && tag.iter().all(u8::is_ascii_alphanumeric)).then_some(())
        }
        Field::Strings => {
            take_string(rest)?;
            while !rest.is_empty() {
                take_string(rest)?;
            }
            Some(())
        }
        Field::Rest | Field::Target | Field::OptionalBase64 | Field::Base64OrDash => {
            take_octets(rest, rest.len()).map(|_| ())
        }
        Field::Hex | Field::Base64 => all(rest),
        Field::Hash(lengths, least) => {
            let kind = rdata.get((rdata.len() - rest.len()).checked_sub(1)?)?;
            let wanted = lengths.iter().find(|(known, _)| known == kind);
            wanted.map_or(rest.len() >= least, |&(_, length)| length == rest.len()).then_some(())?;
            all(rest)
        }
        Field::Types if rest.is_empty() => None,
        Field::Types | Field::TypesOrNone => take_types(rest),
    }
}
