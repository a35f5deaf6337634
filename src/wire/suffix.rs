//! Names as operators write them: suffixes of rules, apexes of zones, domains.
//!
//! What can never match a question is refused with the remedy. Names outside ASCII are converted (IDNA, RFC 5891), and a
//! network stands for its reverse zones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

use super::{Name, NameError};

/// The names that one written suffix stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suffixes {
    /// The names: one, or the reverse zones of a network.
    pub names: Vec<Name>,
    /// How many bits of the last label of each name the network leaves open. A rule that leaves fewer open is more specific,
    /// and wins where both stand at the same name; a name that is written out leaves none.
    pub open_bits: u8,
}

/// Why text cannot be the suffix of a name. Each message says what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SuffixError {
    /// A wildcard.
    #[error("a wildcard matches no name here, and a suffix covers all names below it; write {0:?}")]
    Wildcard(String),
    /// Blanks or control characters, perhaps between several names.
    #[error("it holds a blank; write each name as an item of its own, without blanks")]
    Blank,
    /// Nothing.
    #[error("it is empty; write \".\" for all names")]
    Empty,
    /// A dot in front.
    #[error("it begins with a dot; write {0:?}")]
    LeadingDot(String),
    /// A URL.
    #[error("it is a URL; write the name alone, such as {0:?}")]
    Url(String),
    /// A port.
    #[error("a name has no port; write {0:?}")]
    Port(String),
    /// An address.
    #[error("it is an address, not a name; write {0:?} for its reverse name")]
    Address(String),
    /// A network with bits that its prefix does not cover.
    #[error("the address has bits beyond its prefix; write {0:?}")]
    HostBits(String),
    /// A prefix that is longer than an address, or no number.
    #[error("{0:?} is no prefix length; write a network such as \"10.0.0.0/8\" or \"2001:db8::/32\"")]
    Prefix(String),
    /// A network where one name is wanted.
    #[error("it is a network, and a name is wanted here; write {0}")]
    Network(String),
    /// A character that no host name has.
    #[error("{0:?} is in no name that is asked for; write a name such as \"corp.example\"")]
    Character(char),
    /// A name outside ASCII that IDNA does not allow.
    #[error("it is not a valid internationalized name; write it as it is registered, or in its \"xn--\" form")]
    International,
    /// Labels that are too long, empty, or misquoted.
    #[error("{0}; write a name such as \"corp.example\"")]
    Name(#[from] NameError),
}

impl Suffixes {
    /// Reads a suffix: a name, or a network for its reverse zones.
    pub fn read(text: &str) -> Result<Self, SuffixError> {
        match read_network(text)? {
            Some((address, bits)) => Ok(reverse_zones(address, bits)),
            None => Ok(Self { names: vec![read_plain(text)?], open_bits: 0 }),
        }
    }
}

/// Reads one name.
pub fn read_name(text: &str) -> Result<Name, SuffixError> {
    match read_network(text)? {
        Some((address, bits)) => {
            let zones = reverse_zones(address, bits).names;
            let (first, last) = (quoted(&zones[0]), quoted(&zones[zones.len() - 1]));
            let remedy = if zones.len() == 1 { first } else { format!("one of {first} to {last}") };
            Err(SuffixError::Network(remedy))
        }
        None => read_plain(text),
    }
}

fn quoted(name: &Name) -> String {
    format!("{:?}", name.to_string().trim_end_matches('.'))
}

/// The network that the text is, if it is meant for one.
fn read_network(text: &str) -> Result<Option<(IpAddr, u8)>, SuffixError> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let Ok(address) = bare.parse::<IpAddr>() else { return Ok(None) };
    let most = if address.is_ipv4() { 32 } else { 128 };
    let Some(prefix) = prefix else { return Err(SuffixError::Address(format!("{address}/{most}"))) };
    let is_number = !prefix.is_empty() && prefix.bytes().all(|byte| byte.is_ascii_digit());
    let bits = prefix.parse::<u8>().ok().filter(|&bits| is_number && bits <= most);
    let bits = bits.ok_or_else(|| SuffixError::Prefix(prefix.to_owned()))?;
    let masked: IpAddr = match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & !u32::MAX.checked_shr(bits.into()).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::MAX.checked_shr(bits.into()).unwrap_or(0)).into(),
    };
    match masked == address {
        true => Ok(Some((address, bits))),
        false => Err(SuffixError::HostBits(format!("{masked}/{bits}"))),
    }
}

/// The zones at octets (RFC 1035 §3.5) or nibbles (RFC 3596 §2.5) that a network consists of: at most 128 or 8.
fn reverse_zones(address: IpAddr, bits: u8) -> Suffixes {
    let (digits, bits_of_label, apex): (Vec<u8>, u8, &str) = match address {
        IpAddr::V4(v4) => (v4.octets().to_vec(), 8, "in-addr.arpa."),
        IpAddr::V6(v6) => (v6.octets().iter().flat_map(|octet| [octet >> 4, octet & 0x0f]).collect(), 4, "ip6.arpa."),
    };
    let whole = usize::from(bits / bits_of_label);
    let open_bits = (bits_of_label - bits % bits_of_label) % bits_of_label;
    let label = |digit: u8| if bits_of_label == 8 { format!("{digit}.") } else { format!("{digit:x}.") };
    let above = digits[..whole].iter().rev().map(|&digit| label(digit)).collect::<String>() + apex;
    let name = |text: String| text.parse::<Name>().expect("short labels of digits");
    let names = match open_bits {
        0 => vec![name(above)],
        _ => (0..1u8 << open_bits).map(|low| name(label(digits[whole] | low) + &above)).collect(),
    };
    Suffixes { names, open_bits }
}

/// Reads text that is no network.
fn read_plain(text: &str) -> Result<Name, SuffixError> {
    let without_dot = text.trim_end_matches('.');
    if text == "." {
        return Ok(Name::root());
    }
    if text.is_empty() {
        return Err(SuffixError::Empty);
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(SuffixError::Blank);
    }
    if let Some((_, rest)) = text.split_once("://") {
        let host = rest.split(['/', ':', '?', '#']).next().unwrap_or_default();
        return Err(SuffixError::Url(host.to_owned()));
    }
    if without_dot.split('.').any(|label| label == "*") {
        let below = without_dot.rsplit("*.").next().filter(|below| *below != "*").unwrap_or(".");
        return Err(SuffixError::Wildcard(below.to_owned()));
    }
    if let Some(rest) = text.strip_prefix('.').filter(|rest| !rest.starts_with('.')) {
        return Err(SuffixError::LeadingDot(rest.to_owned()));
    }
    if let Some((host, port)) = text.rsplit_once(':')
        && !host.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        return Err(SuffixError::Port(host.to_owned()));
    }
    let ascii = match text.is_ascii() {
        true => text.into(),
        false => Uts46::new()
            .to_ascii(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore)
            .map_err(|_| SuffixError::International)?,
    };
    // A slash is in names of classless delegations (RFC 2317 §4), and an escape says that an odd character is meant.
    let is_reverse = without_dot.to_ascii_lowercase().ends_with(".arpa");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || c == '/' && is_reverse;
    if !ascii.contains('\\')
        && let Some(odd) = ascii.chars().find(|&c| !is_plain(c))
    {
        return Err(SuffixError::Character(odd));
    }
    Ok(ascii.parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        let suffixes = Suffixes::read(text).map_err(|error| error.to_string())?;
        Ok(suffixes.names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn names_are_read_as_they_are_asked_for() {
        for (text, expected) in [
            (".", "."),
            ("corp.example", "corp.example."),
            ("Corp.Example.", "Corp.Example."),
            ("_tcp.corp.example", "_tcp.corp.example."),
            ("bücher.example", "xn--bcher-kva.example."),
            ("BÜCHER.Example", "xn--bcher-kva.example."),
            ("_ldap.bücher.example.", "_ldap.xn--bcher-kva.example."),
            ("例え。テスト", "xn--r8jz45g.xn--zckzah."),
            ("xn--bcher-kva.example", "xn--bcher-kva.example."),
            ("a\\032b.example", "a\\032b.example."), // an escape is meant so
            ("0/25.2.0.192.in-addr.arpa", "0/25.2.0.192.in-addr.arpa."), // RFC 2317
            ("10.in-addr.arpa", "10.in-addr.arpa."),
            ("123.example", "123.example."),
        ] {
            assert_eq!(read(text), Ok(vec![expected.to_owned()]), "{text}");
            assert_eq!(read_name(text).map(|name| name.to_string()), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_network_is_its_reverse_zones() {
        for (text, expected) in [
            ("10.0.0.0/8", vec!["10.in-addr.arpa."]),
            ("192.168.0.0/16", vec!["168.192.in-addr.arpa."]),
            ("192.0.2.0/24", vec!["2.0.192.in-addr.arpa."]),
            ("192.0.2.7/32", vec!["7.2.0.192.in-addr.arpa."]),
            ("192.168.2.0/23", vec!["2.168.192.in-addr.arpa.", "3.168.192.in-addr.arpa."]),
            ("0.0.0.0/0", vec!["in-addr.arpa."]),
            ("2001:db8::/32", vec!["8.b.d.0.1.0.0.2.ip6.arpa."]),
            ("[fd00::]/8", vec!["d.f.ip6.arpa."]),
            ("fc00::/7", vec!["c.f.ip6.arpa.", "d.f.ip6.arpa."]),
            ("::/0", vec!["ip6.arpa."]),
        ] {
            assert_eq!(read(text), Ok(expected.into_iter().map(str::to_owned).collect()), "{text}");
        }
        let zones = read("172.16.0.0/12").unwrap();
        assert_eq!((zones.len(), &*zones[0], &*zones[15]), (16, "16.172.in-addr.arpa.", "31.172.in-addr.arpa."));
        let most = (0..=32).map(|bits| reverse_zones(Ipv4Addr::UNSPECIFIED.into(), bits).names.len()).max();
        assert_eq!(most, Some(128));
        let most = (0..=128).map(|bits| reverse_zones(Ipv6Addr::UNSPECIFIED.into(), bits).names.len()).max();
        assert_eq!(most, Some(8));
        let open = |text| Suffixes::read(text).unwrap().open_bits;
        assert_eq!(["10.0.0.0/8", "172.16.0.0/12", "10.0.0.0/7", "fc00::/7"].map(open), [0, 4, 1, 1]);
        let error = |text| read_name(text).unwrap_err().to_string();
        assert_eq!(error("10.0.0.0/8"), "it is a network, and a name is wanted here; write \"10.in-addr.arpa\"");
        assert!(error("172.16.0.0/12").ends_with("write one of \"16.172.in-addr.arpa\" to \"31.172.in-addr.arpa\""));
    }

    #[test]
    fn what_no_question_matches_is_refused_with_the_remedy() {
        for (text, expected) in [
            ("*.corp.example", "write \"corp.example\""),
            ("a.*.corp.example.", "write \"corp.example\""),
            ("*", "write \".\""),
            ("", "write \".\" for all names"),
            ("corp.example ", "without blanks"),
            ("a.example b.example", "an item of its own"),
            ("a\u{a0}b.example", "without blanks"),
            ("a.example,b.example", "',' is in no name"),
            (".corp.example", "write \"corp.example\""),
            ("..", "a label is empty"),
            ("corp.example..", "a label is empty"),
            ("corp..example", "a label is empty"),
            ("https://corp.example/x", "write the name alone, such as \"corp.example\""),
            ("tls://corp.example:853", "such as \"corp.example\""),
            ("corp.example:53", "write \"corp.example\""),
            ("corp.example/path", "'/' is in no name"),
            ("user@corp.example", "'@' is in no name"),
            ("\"corp.example\"", "'\"' is in no name"),
            ("192.0.2.7", "write \"192.0.2.7/32\""),
            ("2001:db8::1", "write \"2001:db8::1/128\""),
            ("10.1.2.3/8", "write \"10.0.0.0/8\""),
            ("2001:db8::1/32", "write \"2001:db8::/32\""),
            ("10.0.0.0/33", "\"33\" is no prefix length"),
            ("10.0.0.0/", "\"\" is no prefix length"),
            ("10.0.0.0/+8", "\"+8\" is no prefix length"),
            ("10.0.0.0/255.0.0.0", "\"255.0.0.0\" is no prefix length"),
            ("a\u{200b}\u{ffff}.example", "not a valid internationalized name"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
