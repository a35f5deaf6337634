//! Types whose fields depend on each other.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{
    Fault, Field, bad,
    names::{SERVICES, TRANSPORTS, lookup},
    text::{self, Words},
    wire::{take_name, take_octets, take_string},
};

/// How a type is read from words, and whether RDATA in wire form is of it.
pub(super) struct Form {
    pub read: fn(&mut Words<'_>, &mut Vec<u8>) -> Result<(), Fault>,
    pub is_good: fn(&[u8]) -> bool,
}

/// Well-known services of an address (RFC 1035 §3.4.2).
pub(super) static WKS: Form = Form {
    read: |words, out| {
        let address: Ipv4Addr = words.next()?.parse().map_err(|_| bad("not an IPv4 address"))?;
        out.extend(address.octets());
        let word = words.next()?;
        let protocol = text::number(word).or_else(|| lookup(TRANSPORTS, word));
        out.push(protocol.ok_or_else(|| bad(format!("`{word}` is not a protocol")))?);
        let mut bitmap = [0u8; 8192];
        let mut length = 0;
        for word in words.take_rest() {
            let port: u16 = text::number(word)
                .or_else(|| lookup(SERVICES, word))
                .ok_or_else(|| bad(format!("`{word}` is not a service; write its port")))?;
            let place = usize::from(port) / 8;
            bitmap[place] |= 0x80 >> (port % 8);
            length = length.max(place + 1);
        }
        out.extend_from_slice(&bitmap[..length]);
        Ok(())
    },
    is_good: |rdata| (5..=5 + 8192).contains(&rdata.len()),
};

/// The address of a network service access point (RFC 1706 §5).
pub(super) static NSAP: Form = Form {
    read: |words, out| {
        let word = words.next()?;
        let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
        let digits = digits.ok_or_else(|| bad("it does not begin with 0x"))?.replace('.', "");
        if digits.is_empty() {
            return Err(bad("there are no digits behind 0x"));
        }
        text::hex(&[&digits], out)
    },
    is_good: |rdata| !rdata.is_empty(),
};

/// A place on Earth (RFC 1876).
pub(super) static LOC: Form = Form {
    read: |words, out| {
        let latitude = loc_angle(words, 90, 'N', 'S')?;
        let longitude = loc_angle(words, 180, 'E', 'W')?;
        let word = words.next()?;
        let altitude = centimeters(word).filter(|cm| (-10_000_000..=4_284_967_295).contains(cm));
        let altitude = altitude.ok_or_else(|| bad(format!("`{word}` is not an altitude; write meters")))?;
        // The size, and the horizontal and vertical precision.
        let mut precisions = [0x12, 0x16, 0x13];
        for precision in &mut precisions {
            let Some(word) = words.peek() else { break };
            words.next()?;
            let cm = centimeters(word).filter(|cm| (0..=9_000_000_000).contains(cm));
            let mut mantissa = cm.ok_or_else(|| bad(format!("`{word}` is not a precision; write meters")))?;
            let mut exponent = 0;
            while mantissa >= 10 {
                mantissa /= 10;
                exponent += 1;
            }
            *precision = (mantissa as u8) << 4 | exponent;
        }
        out.push(0);
        out.extend(precisions);
        out.extend(latitude.to_be_bytes());
        out.extend(longitude.to_be_bytes());
        out.extend(((altitude + 10_000_000) as u32).to_be_bytes());
        Ok(())
    },
    is_good: |rdata| {
        let is_precision = |octet: &u8| octet >> 4 <= 9 && octet & 0x0f <= 9;
        let angle = |at: usize| rdata.get(at..at + 4).and_then(|octets| octets.try_into().ok()).map(u32::from_be_bytes);
        let is_angle =
            |at, degrees: u32| angle(at).is_some_and(|angle| angle.abs_diff(LOC_EQUATOR) <= degrees * 3_600_000);
        match rdata.first() {
            Some(0) => rdata.len() == 16 && rdata[1..4].iter().all(is_precision) && is_angle(4, 90) && is_angle(8, 180),
            // Other versions are for others to understand.
            Some(_) => true,
            None => false,
        }
    },
};

/// Degrees, minutes and seconds, in thousandths of a second from the equator or the meridian.
fn loc_angle(words: &mut Words<'_>, most: u32, plus: char, minus: char) -> Result<u32, Fault> {
    let letter = |word: &str| {
        let is = |letter: char| word.len() == 1 && word.starts_with(letter);
        if is(plus) { Some(true) } else { is(minus).then_some(false) }
    };
    let (mut angle, mut is_plus) = (0, None);
    for (unit, limit) in [(3_600_000, most), (60_000, 59), (1000, 59)] {
        let word = words.next()?;
        is_plus = letter(word).filter(|_| unit != 3_600_000);
        if is_plus.is_some() {
            break;
        }
        let malformed =
            || bad(format!("`{word}` is not a part of an angle; write degrees, minutes, seconds, {plus} or {minus}"));
        let (whole, thousandths) = match word.split_once('.') {
            Some((whole, part)) if unit == 1000 && (1..=3).contains(&part.len()) => {
                let part: u32 = text::number(&format!("{part:0<3}")).ok_or_else(malformed)?;
                (whole, part)
            }
            Some(_) => return Err(malformed()),
            None => (word, 0),
        };
        let whole = text::number::<u32>(whole).filter(|&whole| whole <= limit).ok_or_else(malformed)?;
        angle += whole * unit + thousandths;
    }
    if is_plus.is_none() {
        let word = words.next()?;
        is_plus = Some(letter(word).ok_or_else(|| bad(format!("`{word}` is neither {plus} nor {minus}")))?);
    }
    if angle > most * 3_600_000 {
        return Err(bad(format!("an angle is larger than {most} degrees")));
    }
    Ok(if is_plus == Some(true) { LOC_EQUATOR + angle } else { LOC_EQUATOR - angle })
}

const LOC_EQUATOR: u32 = 1 << 31;

/// Meters with up to two decimals, and `m` or nothing behind them.
fn centimeters(word: &str) -> Option<i64> {
    let text = word.strip_suffix(['m', 'M']).unwrap_or(word);
    let (is_negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let part = (1..=2).contains(&part.len()).then(|| format!("{part:0<2}"))?;
    let cm = i64::from(text::number::<u32>(whole)?) * 100 + i64::from(text::number::<u8>(&part)?);
    Some(if is_negative { -cm } else { cm })
}

/// The types of a name, in the form before NSEC (RFC 2535 §5.2).
pub(super) static NXT: Form = Form {
    read: |words, out| {
        words.name(out)?;
        let mut bitmap = [0u8; 16];
        let mut length = 0;
        for word in words.take_rest() {
            let number = usize::from(text::any_rtype(word)?);
            let place = number / 8;
            *bitmap.get_mut(place).ok_or_else(|| bad(format!("`{word}` is a type above 127")))? |= 0x80 >> (number % 8);
            length = length.max(place + 1);
        }
        out.extend_from_slice(&bitmap[..length]);
        Ok(())
    },
    is_good: |rdata| {
        let mut rest = rdata;
        take_name(&mut rest).is_some() && rest.len() <= 16 && rest.last() != Some(&0)
    },
};

/// An address of the asynchronous transfer mode (ATM Forum, af-dans-0152).
pub(super) static ATMA: Form = Form {
    read: |words, out| {
        let word = words.next()?;
        match word.strip_prefix('+') {
            Some(digits) => {
                let digits = digits.replace('.', "");
                if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                    return Err(bad("there are no digits behind +"));
                }
                out.push(1);
                out.extend_from_slice(digits.as_bytes());
                Ok(())
            }
            None => {
                out.push(0);
                text::hex(&[&word.replace('.', "")], out)
            }
        }
    },
    is_good: |rdata| match rdata {
        [1, digits @ ..] => digits.iter().all(u8::is_ascii_digit),
        [_, _, ..] => true,
        _ => false,
    },
};

/// A rule that rewrites a name (RFC 3403 §4).
pub(super) static NAPTR: Form = Form {
    read: |words, out| {
        out.extend(words.number::<u16>()?.to_be_bytes());
        out.extend(words.number::<u16>()?.to_be_bytes());
        words.string(out)?;
        words.string(out)?;
        let at = out.len() + 1;
        words.string(out)?;
        if !is_substitution(&out[at..]) {
            return Err(bad("the expression is not of the form !ERE!SUBSTITUTION!FLAGS"));
        }
        words.name(out)
    },
    is_good: |rdata| {
        let mut rest = rdata;
        take_octets(&mut rest, 4).is_some()
            && take_string(&mut rest).is_some()
            && take_string(&mut rest).is_some()
            && take_string(&mut rest).is_some_and(is_substitution)
            && take_name(&mut rest).is_some()
            && rest.is_empty()
    },
};

/// Whether this is nothing or an expression between three delimiters (RFC 3402 §3.2).
fn is_substitution(text: &[u8]) -> bool {
    let Some((&delimiter, rest)) = text.split_first() else { return true };
    if delimiter.is_ascii_digit() || matches!(delimiter, b'\\' | b'i' | 0) {
        return false;
    }
    let mut delimiters = 0;
    let mut octets = rest.iter();
    while let Some(&octet) = octets.next() {
        if octet == b'\\' {
            if octets.next().is_none() {
                return false;
            }
        } else if octet == delimiter {
            delimiters += 1;
        } else if delimiters == 2 && octet != b'i' {
            return false;
        }
    }
    delimiters == 2
}

/// A part of an IPv6 address and the name that has the rest (RFC 2874 §3.1).
pub(super) static A6: Form = Form {
    read: |words, out| {
        let prefix: u8 = words.number()?;
        if prefix > 128 {
            return Err(bad("the prefix is longer than 128 bits"));
        }
        out.push(prefix);
        if prefix < 128 {
            let address: Ipv6Addr = words.next()?.parse().map_err(|_| bad("not an IPv6 address"))?;
            let mut octets = address.octets();
            let whole = usize::from(prefix / 8);
            octets[whole] &= 0xff >> (prefix % 8);
            out.extend_from_slice(&octets[whole..]);
        }
        if prefix > 0 { words.name(out) } else { Ok(()) }
    },
    is_good: |rdata| {
        let mut rest = rdata;
        let Some(&[prefix @ 0..=128]) = take_octets(&mut rest, 1) else { return false };
        let octets = 16 - usize::from(prefix / 8);
        let is_suffix = take_octets(&mut rest, octets)
            .is_some_and(|suffix| suffix.first().is_none_or(|first| first & !(0xff >> (prefix % 8)) == 0));
        is_suffix && (prefix == 0 || take_name(&mut rest).is_some()) && rest.is_empty()
    },
};

/// Lists of prefixes (RFC 3123 §5).
pub(super) static APL: Form = Form {
    read: |words, out| {
        for word in words.take_rest() {
            let malformed = || bad(format!("`{word}` is not a prefix; write 1:192.0.2.0/24 or 2:2001:db8::/32"));
            let (is_negated, text) = match word.strip_prefix('!') {
                Some(text) => (true, text),
                None => (false, word),
            };
            let (family, text) = text.split_once(':').ok_or_else(malformed)?;
            let (address, prefix) = text.rsplit_once('/').ok_or_else(malformed)?;
            let prefix: u8 = text::number(prefix).ok_or_else(malformed)?;
            let (family, octets, bits) = match text::number::<u16>(family) {
                Some(1) => (1u16, address.parse::<Ipv4Addr>().map_err(|_| malformed())?.octets().to_vec(), 32),
                Some(2) => (2, address.parse::<Ipv6Addr>().map_err(|_| malformed())?.octets().to_vec(), 128),
                _ => return Err(malformed()),
            };
            if prefix > bits {
                return Err(malformed());
            }
            let length = octets.iter().rposition(|&octet| octet != 0).map_or(0, |last| last + 1);
            out.extend(family.to_be_bytes());
            out.extend([prefix, length as u8 | if is_negated { 0x80 } else { 0 }]);
            out.extend_from_slice(&octets[..length]);
        }
        Ok(())
    },
    is_good: |rdata| {
        let mut rest = rdata;
        while !rest.is_empty() {
            let Some(&[high, low, prefix, length]) = take_octets(&mut rest, 4) else { return false };
            let Some(octets) = take_octets(&mut rest, usize::from(length & 0x7f)) else { return false };
            let bits = match (high, low) {
                (0, 1) => 32,
                (0, 2) => 128,
                _ => 255,
            };
            if prefix > bits || octets.len() * 8 > usize::from(bits) && bits < 255 || octets.last() == Some(&0) {
                return false;
            }
        }
        true
    },
};

/// A key of any use (RFC 2535 §3.1), or the statement that there is none.
pub(super) static KEY: Form = Form {
    read: |words, out| {
        let start = out.len();
        let flags = words.flags()?;
        out.extend(flags.to_be_bytes());
        words.field(Field::Protocol, out, start)?;
        words.field(Field::Algorithm, out, start)?;
        if flags & NO_KEY == NO_KEY { Ok(()) } else { words.field(Field::Base64, out, start) }
    },
    is_good: |rdata| match rdata {
        [high, _, _, _] => u16::from(*high) << 8 & NO_KEY == NO_KEY,
        [_, _, _, _, ..] => true,
        _ => false,
    },
};

const NO_KEY: u16 = 0xc000;

/// A gateway for IPsec (RFC 4025 §2).
pub(super) static IPSECKEY: Form = Form {
    read: |words, out| {
        out.push(words.number()?);
        let kind: u8 = words.number()?;
        let algorithm: u8 = words.number()?;
        out.extend([kind, algorithm]);
        read_gateway(kind, words, out)?;
        match words.take_rest().concat().as_str() {
            "" => Err(bad("it ends too early")),
            key => text::base64(key, out),
        }
    },
    is_good: |rdata| {
        let mut rest = rdata;
        let Some(&[_, kind, _]) = take_octets(&mut rest, 3) else { return false };
        take_gateway(kind, &mut rest).is_some() && !rest.is_empty()
    },
};

/// A relay of multicast (RFC 8777 §4).
pub(super) static AMTRELAY: Form = Form {
    read: |words, out| {
        out.push(words.number()?);
        let discovery: u8 = words.number()?;
        let kind: u8 = words.number()?;
        if discovery > 1 || kind > 127 {
            return Err(bad("the discovery bit or the type of the relay is out of range"));
        }
        out.push(discovery << 7 | kind);
        read_gateway(kind, words, out)
    },
    is_good: |rdata| {
        let mut rest = rdata;
        let Some(&[_, kind]) = take_octets(&mut rest, 2) else { return false };
        match kind & 0x7f {
            4.. => true,
            kind => take_gateway(kind, &mut rest).is_some() && rest.is_empty(),
        }
    },
};

fn read_gateway(kind: u8, words: &mut Words<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
    match kind {
        0 => match words.next()? {
            "." => {}
            word => return Err(bad(format!("`{word}` stands where there is no gateway; write a dot"))),
        },
        1 => {
            let address: Ipv4Addr = words.next()?.parse().map_err(|_| bad("the gateway is not an IPv4 address"))?;
            out.extend(address.octets());
        }
        2 => {
            let address: Ipv6Addr = words.next()?.parse().map_err(|_| bad("the gateway is not an IPv6 address"))?;
            out.extend(address.octets());
        }
        3 => words.name(out)?,
        _ => return Err(bad("the type of the gateway is not 0, 1, 2 or 3")),
    }
    Ok(())
}

fn take_gateway(kind: u8, rest: &mut &[u8]) -> Option<()> {
    match kind {
        0 => Some(()),
        1 => take_octets(rest, 4).map(|_| ()),
        2 => take_octets(rest, 16).map(|_| ()),
        3 => take_name(rest),
        _ => None,
    }
}

/// The identity of a host and its rendezvous servers (RFC 8005 §5).
pub(super) static HIP: Form = Form {
    read: |words, out| {
        let algorithm: u8 = words.number()?;
        let (mut tag, mut key) = (Vec::new(), Vec::new());
        text::hex(&[words.next()?], &mut tag)?;
        text::base64(words.next()?, &mut key)?;
        let tag_bytes = u8::try_from(tag.len()).ok().filter(|&length| length > 0);
        let key_bytes = u16::try_from(key.len()).ok().filter(|&length| length > 0);
        let (Some(tag_bytes), Some(key_bytes)) = (tag_bytes, key_bytes) else {
            return Err(bad("the tag or the key is empty or too long"));
        };
        out.extend([tag_bytes, algorithm]);
        out.extend(key_bytes.to_be_bytes());
        out.extend(tag);
        out.extend(key);
        while words.peek().is_some() {
            words.name(out)?;
        }
        Ok(())
    },
    is_good: |rdata| {
        let mut rest = rdata;
        let Some(&[tag, _, high, low]) = take_octets(&mut rest, 4) else { return false };
        let key = usize::from(u16::from_be_bytes([high, low]));
        if tag == 0 || key == 0 || take_octets(&mut rest, usize::from(tag) + key).is_none() {
            return false;
        }
        while !rest.is_empty() {
            if take_name(&mut rest).is_none() {
                return false;
            }
        }
        true
    },
};
