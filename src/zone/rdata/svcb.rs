//! SVCB and HTTPS records (RFC 9460 §2): a priority, a target, and parameters by the order of their keys.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{
    Fault, bad,
    forms::Form,
    names::lookup,
    text::{self, Words, octets},
    wire::{take_name, take_octets, take_string},
};

pub(super) static SVCB: Form = Form {
    read: |words, out| {
        out.extend(words.number::<u16>()?.to_be_bytes());
        words.name(out)?;
        let params = read_params(words)?;
        for (key, value) in &params {
            out.extend(key.to_be_bytes());
            let length = u16::try_from(value.len()).map_err(|_| bad("a parameter is longer than 65535 octets"))?;
            out.extend(length.to_be_bytes());
            out.extend_from_slice(value);
        }
        Ok(())
    },
    is_good: |rdata| {
        let mut rest = rdata;
        if take_octets(&mut rest, 2).is_none() || take_name(&mut rest).is_none() {
            return false;
        }
        let mut params = BTreeMap::new();
        while !rest.is_empty() {
            let Some(&[high, low, length_high, length_low]) = take_octets(&mut rest, 4) else { return false };
            let length = u16::from_be_bytes([length_high, length_low]);
            let Some(value) = take_octets(&mut rest, length.into()) else { return false };
            let key = u16::from_be_bytes([high, low]);
            if params.last_key_value().is_some_and(|(&last, _)| last >= key) {
                return false;
            }
            params.insert(key, value.to_vec());
        }
        check(&params).is_ok()
    },
};

fn read_params(words: &mut Words<'_>) -> Result<BTreeMap<u16, Vec<u8>>, Fault> {
    let mut params = BTreeMap::new();
    for word in words.take_rest() {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        let key = read_key(name).ok_or_else(|| bad(format!("`{name}` is not a parameter; write keyNNNNN")))?;
        let value = octets(value.unwrap_or_default()).map_err(bad)?;
        let malformed = || bad(format!("`{word}` has a malformed value"));
        // A number in the place of a name takes octets as they are.
        let wire = if name.to_ascii_lowercase().starts_with("key") {
            value.into_owned()
        } else {
            encode(key, &value).ok_or_else(malformed)?
        };
        if params.insert(key, wire).is_some() {
            return Err(bad(format!("`{name}` is there twice")));
        }
    }
    check(&params)?;
    Ok(params)
}

fn read_key(name: &str) -> Option<u16> {
    let number = name.get(..3).filter(|prefix| prefix.eq_ignore_ascii_case("key")).map(|_| &name[3..]);
    // Zeros before the number are not allowed (RFC 9460 §2.1).
    match number.filter(|digits| *digits == "0" || !digits.starts_with('0')) {
        Some(digits) => text::number(digits),
        None => lookup(KEYS, name),
    }
}

/// The value of a parameter in wire form, from its text without quotation marks and escapes.
fn encode(key: u16, value: &[u8]) -> Option<Vec<u8>> {
    let text = || std::str::from_utf8(value).ok();
    let mut out = Vec::new();
    match key {
        MANDATORY => {
            let mut keys = text()?.split(',').map(read_key).collect::<Option<Vec<_>>>()?;
            keys.sort_unstable();
            out.extend(keys.into_iter().flat_map(u16::to_be_bytes));
        }
        ALPN => {
            for item in split_list(value)? {
                out.push(u8::try_from(item.len()).ok()?);
                out.extend(item);
            }
        }
        PORT => out.extend(text::number::<u16>(text()?)?.to_be_bytes()),
        IPV4HINT => {
            for address in text()?.split(',') {
                out.extend(address.parse::<Ipv4Addr>().ok()?.octets());
            }
        }
        IPV6HINT => {
            for address in text()?.split(',') {
                out.extend(address.parse::<Ipv6Addr>().ok()?.octets());
            }
        }
        ECH => text::base64(text()?, &mut out).ok()?,
        _ => out.extend_from_slice(value),
    }
    Some(out)
}

/// The items of a list with commas between them, where `\,` and `\\` stand for the signs themselves (RFC 9460 §A.1).
fn split_list(value: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut items = vec![Vec::new()];
    let mut octets = value.iter();
    while let Some(&octet) = octets.next() {
        match octet {
            b',' => items.push(Vec::new()),
            b'\\' => items.last_mut()?.push(*octets.next()?),
            _ => items.last_mut()?.push(octet),
        }
    }
    Some(items)
}

/// Whether parameters in wire form have values that their keys allow.
fn check(params: &BTreeMap<u16, Vec<u8>>) -> Result<(), Fault> {
    for (&key, value) in params {
        let is_good = match key {
            MANDATORY => {
                let (keys, rest) = value.as_chunks::<2>();
                let keys: Vec<u16> = keys.iter().map(|octets| u16::from_be_bytes(*octets)).collect();
                rest.is_empty()
                    && !keys.is_empty()
                    && keys.is_sorted_by(|a, b| a < b)
                    && keys.iter().all(|key| *key != MANDATORY && params.contains_key(key))
            }
            ALPN => {
                let mut rest = value.as_slice();
                let mut count = 0;
                while take_string(&mut rest).is_some_and(|item| !item.is_empty()) {
                    count += 1;
                }
                count > 0 && rest.is_empty() && value.last() != Some(&0)
            }
            NO_DEFAULT_ALPN => value.is_empty() && params.contains_key(&ALPN),
            PORT => value.len() == 2,
            IPV4HINT => !value.is_empty() && value.len() % 4 == 0,
            IPV6HINT => !value.is_empty() && value.len() % 16 == 0,
            // A template with the variable `dns` (RFC 9461 §5).
            DOHPATH => std::str::from_utf8(value)
                .is_ok_and(|path| path.starts_with('/') && path.contains("dns") && path.contains('{')),
            OHTTP => value.is_empty(),
            _ => true,
        };
        if !is_good {
            let name = KEYS.iter().find(|(_, known)| *known == key).map(|(name, _)| (*name).to_string());
            let name = name.unwrap_or_else(|| format!("key{key}"));
            return Err(bad(format!("the parameter {name} has a value that it must not have, or needs another")));
        }
    }
    Ok(())
}

const MANDATORY: u16 = 0;
const ALPN: u16 = 1;
const NO_DEFAULT_ALPN: u16 = 2;
const PORT: u16 = 3;
const IPV4HINT: u16 = 4;
const ECH: u16 = 5;
const IPV6HINT: u16 = 6;
const DOHPATH: u16 = 7;
const OHTTP: u16 = 8;

const KEYS: &[(&str, u16)] = &[
    ("mandatory", MANDATORY),
    ("alpn", ALPN),
    ("no-default-alpn", NO_DEFAULT_ALPN),
    ("port", PORT),
    ("ipv4hint", IPV4HINT),
    ("ech", ECH),
    ("ipv6hint", IPV6HINT),
    ("dohpath", DOHPATH),
    ("ohttp", OHTTP),
];
