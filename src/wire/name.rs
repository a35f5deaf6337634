//! A domain name in wire form.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
    str::FromStr,
};

use smallvec::SmallVec;

/// A domain name in uncompressed wire form, its letters kept as written.
///
/// Names compare, order and hash without regard to the case of ASCII letters (RFC 4343). The order is the canonical
/// one of RFC 4034 §6.1, in which a name sorts before all that is below it.
#[derive(Clone)]
pub struct Name {
    wire: Wire,
}

/// The octets of a name. Almost all names are short enough to lie in place, so that a copy allocates nothing.
#[derive(Clone)]
enum Wire {
    Short(u8, [u8; SHORT_BYTES]),
    Long(Box<[u8]>),
}

/// Why text or bytes are not a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A label longer than 63 octets (RFC 1035 §2.3.4).
    #[error("a label is longer than 63 octets")]
    LongLabel,
    /// More than 255 octets in all (RFC 1035 §2.3.4).
    #[error("the name is longer than 255 octets")]
    LongName,
    /// Two dots in a row, or a dot in front.
    #[error("a label is empty")]
    EmptyLabel,
    /// A backslash that is not followed by a character or three digits up to 255 (RFC 1035 §5.1).
    #[error("an escape is incomplete")]
    BadEscape,
    /// The bytes end early or hold a compression pointer where none may be.
    #[error("the wire form is malformed")]
    BadWire,
}

impl Name {
    /// The root.
    pub fn root() -> Self {
        Self { wire: [0].as_slice().into() }
    }

    /// Reads exactly one uncompressed name.
    pub fn from_wire(wire: &[u8]) -> Result<Self, NameError> {
        if skip_uncompressed(wire, 0)? == wire.len() { Ok(Self { wire: wire.into() }) } else { Err(NameError::BadWire) }
    }

    /// Reads the name that starts at `at` in `message`, following compression pointers. Returns where it ends.
    ///
    /// A pointer must lead to an earlier place than the one before it, so no message can make this loop. There may be as many
    /// pointers as labels: one that leads to another one has no use (RFC 9267 §2).
    pub fn read(message: &[u8], at: usize) -> Result<(Self, usize), NameError> {
        let mut name = [0; MAX_NAME_BYTES];
        let mut length = 0;
        let mut position = at;
        let mut lowest = at;
        let mut end = None;
        let mut pointers = 0;
        loop {
            let head = usize::from(*message.get(position).ok_or(NameError::BadWire)?);
            match head {
                0 => {
                    name[length] = 0;
                    let end = end.unwrap_or(position + 1);
                    return Ok((Self { wire: name[..=length].into() }, end));
                }
                1..=MAX_LABEL_BYTES => {
                    let label = message.get(position..=position + head).ok_or(NameError::BadWire)?;
                    // One octet stays free for the root.
                    if length + label.len() >= MAX_NAME_BYTES {
                        return Err(NameError::LongName);
                    }
                    name[length..length + label.len()].copy_from_slice(label);
                    length += label.len();
                    position += label.len();
                }
                192.. => {
                    let low = usize::from(*message.get(position + 1).ok_or(NameError::BadWire)?);
                    let target = (head & 0x3f) << 8 | low;
                    pointers += 1;
                    if target >= lowest || pointers > MOST_POINTERS {
                        return Err(NameError::BadWire);
                    }
                    end.get_or_insert(position + 2);
                    lowest = target;
                    position = target;
                }
                _ => return Err(NameError::BadWire),
            }
        }
    }

    /// The wire form, the root's zero octet included.
    pub fn wire(&self) -> &[u8] {
        &self.wire
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.wire.len() == 1
    }

    /// The same name in lower case.
    pub fn to_lower(&self) -> Self {
        let mut lower = self.clone();
        match &mut lower.wire {
            Wire::Short(_, octets) => octets.make_ascii_lowercase(),
            Wire::Long(octets) => octets.make_ascii_lowercase(),
        }
        lower
    }

    /// The same name with the case of each letter changed for which the octet of `flips` in its place has the bit of case,
    /// 0x20.
    pub fn with_letters_flipped(&self, flips: &[u8; MAX_NAME_BYTES]) -> Self {
        let mut flipped = self.clone();
        match &mut flipped.wire {
            // All of the room, for that is of one length, and so done at once; behind the name there are no letters.
            Wire::Short(_, octets) => flip_letters(octets, flips),
            Wire::Long(octets) => flip_letters(octets, flips),
        }
        flipped
    }

    /// The labels from left to right, the root's empty one left out.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> + Clone {
        self.suffixes().filter_map(|suffix| {
            let length = usize::from(*suffix.first()?);
            if length == 0 { None } else { suffix.get(1..=length) }
        })
    }

    /// How many labels, the root's left out.
    pub fn label_count(&self) -> usize {
        self.labels().count()
    }

    /// The wire forms of the name itself, its parent, and so on to the root.
    pub fn suffixes(&self) -> impl Iterator<Item = &[u8]> + Clone {
        std::iter::successors(Some(&*self.wire), |suffix| {
            let length = usize::from(*suffix.first()?);
            if length == 0 { None } else { suffix.get(1 + length..) }
        })
    }

    /// The name without its leftmost label; the root has none.
    pub fn parent(&self) -> Option<Self> {
        self.suffixes().nth(1).map(|wire| Self { wire: wire.into() })
    }

    /// Whether this name is `apex` or lies below it: whole labels are compared, without regard to case.
    pub fn is_at_or_below(&self, apex: &Self) -> bool {
        self.suffixes()
            .find(|suffix| suffix.len() <= apex.wire.len())
            .is_some_and(|s| s.eq_ignore_ascii_case(&apex.wire))
    }

    /// The name with one more label in front.
    pub fn child(&self, label: &[u8]) -> Result<Self, NameError> {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|&l| usize::from(l) <= MAX_LABEL_BYTES)
            .ok_or(NameError::LongLabel)?;
        if length == 0 {
            return Err(NameError::EmptyLabel);
        }
        if 1 + label.len() + self.wire.len() > MAX_NAME_BYTES {
            return Err(NameError::LongName);
        }
        Ok(Self { wire: [&[length], label, &*self.wire].concat().into() })
    }

    /// The name with the suffix `from` replaced by `to`, as a DNAME record does (RFC 6672 §2.2).
    ///
    /// `None` if the name is not below `from` (at it does not count); `LongName` if the result does not fit.
    pub fn replace_suffix(&self, from: &Self, to: &Self) -> Option<Result<Self, NameError>> {
        let kept = self.wire.len().checked_sub(from.wire.len()).filter(|&kept| kept > 0)?;
        if !self.is_at_or_below(from) {
            return None;
        }
        if kept + to.wire.len() > MAX_NAME_BYTES {
            return Some(Err(NameError::LongName));
        }
        Some(Ok(Self { wire: [&self.wire[..kept], &*to.wire].concat().into() }))
    }
}

impl Deref for Wire {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(length, octets) => &octets[..usize::from(*length)],
            Self::Long(octets) => octets,
        }
    }
}

impl From<&[u8]> for Wire {
    fn from(wire: &[u8]) -> Self {
        let mut octets = [0; SHORT_BYTES];
        match octets.get_mut(..wire.len()) {
            Some(place) => {
                place.copy_from_slice(wire);
                Self::Short(wire.len() as u8, octets)
            }
            None => Self::Long(wire.into()),
        }
    }
}

impl From<Vec<u8>> for Wire {
    fn from(wire: Vec<u8>) -> Self {
        wire.as_slice().into()
    }
}

#[inline]
fn flip_letters(octets: &mut [u8], flips: &[u8; MAX_NAME_BYTES]) {
    for (octet, flip) in octets.iter_mut().zip(flips) {
        // Length octets are below the letters.
        let is_letter = (*octet & 0xdf).wrapping_sub(b'A') < 26;
        *octet ^= flip & (u8::from(is_letter) << 5);
    }
}

/// Where the labels start of the uncompressed name that `wire` begins with, the root's last. It must be a valid one.
pub(crate) fn label_starts(wire: &[u8]) -> SmallVec<[u8; MAX_LABELS]> {
    let mut starts = SmallVec::new();
    let mut at = 0;
    loop {
        debug_assert!(at < MAX_NAME_BYTES, "no name");
        starts.push(at as u8);
        match wire.get(at) {
            Some(&length @ 1..) if starts.len() < MAX_LABELS => at += 1 + usize::from(length),
            _ => return starts,
        }
    }
}

/// Where the uncompressed name that starts at `at` ends.
pub(crate) fn skip_uncompressed(wire: &[u8], at: usize) -> Result<usize, NameError> {
    let mut position = at;
    loop {
        match usize::from(*wire.get(position).ok_or(NameError::BadWire)?) {
            0 if position - at < MAX_NAME_BYTES => return Ok(position + 1),
            length @ 1..=MAX_LABEL_BYTES => position += 1 + length,
            0 => return Err(NameError::LongName),
            _ => return Err(NameError::BadWire),
        }
        if position - at >= MAX_NAME_BYTES {
            return Err(NameError::LongName);
        }
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// Reads presentation form (RFC 1035 §5.1). The name is absolute with or without its final dot.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "." {
            return Ok(Self::root());
        }
        let mut wire = Vec::with_capacity(text.len() + 2);
        let mut label_at = 0;
        wire.push(0);
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            let octet = match byte {
                b'.' => {
                    close_label(&mut wire, label_at)?;
                    label_at = wire.len();
                    wire.push(0);
                    continue;
                }
                b'\\' => match bytes.next().ok_or(NameError::BadEscape)? {
                    first @ b'0'..=b'9' => {
                        let mut value = u16::from(first - b'0');
                        for _ in 0..2 {
                            let digit = bytes.next().filter(u8::is_ascii_digit).ok_or(NameError::BadEscape)?;
                            value = value * 10 + u16::from(digit - b'0');
                        }
                        u8::try_from(value).map_err(|_| NameError::BadEscape)?
                    }
                    escaped => escaped,
                },
                plain => plain,
            };
            wire.push(octet);
        }
        // A final dot has opened the root's label already.
        if wire.len() - label_at > 1 {
            close_label(&mut wire, label_at)?;
            wire.push(0);
        } else if label_at == 0 {
            return Err(NameError::EmptyLabel);
        }
        if wire.len() > MAX_NAME_BYTES {
            return Err(NameError::LongName);
        }
        Ok(Self { wire: wire.into() })
    }
}

/// Writes the length of the label that began at `label_at`.
fn close_label(wire: &mut [u8], label_at: usize) -> Result<(), NameError> {
    match wire.len() - label_at - 1 {
        0 => Err(NameError::EmptyLabel),
        length @ 1..=MAX_LABEL_BYTES => {
            wire[label_at] = length as u8;
            Ok(())
        }
        _ => Err(NameError::LongLabel),
    }
}

impl fmt::Display for Name {
    /// Presentation form with the final dot, unprintable octets as `\DDD`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for label in self.labels() {
            for &octet in label {
                match octet {
                    b'.' | b'\\' | b'"' | b';' | b'(' | b')' | b'@' | b'$' => write!(f, "\\{}", char::from(octet))?,
                    0x21..=0x7e => write!(f, "{}", char::from(octet))?,
                    _ => write!(f, "\\{octet:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        // Length octets are below `A`, so comparing them as letters does no harm.
        self.wire.eq_ignore_ascii_case(&other.wire)
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for octet in &*self.wire {
            state.write_u8(octet.to_ascii_lowercase());
        }
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        let own: Vec<&[u8]> = self.labels().collect();
        let their: Vec<&[u8]> = other.labels().collect();
        let lower = |label: &[u8]| label.to_ascii_lowercase();
        own.iter().rev().map(|l| lower(l)).cmp(their.iter().rev().map(|l| lower(l)))
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Longest name in wire form (RFC 1035 §2.3.4).
pub const MAX_NAME_BYTES: usize = 255;
/// Longest label (RFC 1035 §2.3.4).
pub(super) const MAX_LABEL_BYTES: usize = 63;
/// A name of 255 octets has no more, the root's among them.
const MAX_LABELS: usize = 128;
/// Pointers in a name.
const MOST_POINTERS: usize = MAX_LABELS;
/// Names up to this length lie in place. With it a name is six words, what a box would take with its octets.
const SHORT_BYTES: usize = 46;

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn text_is_read_back_as_printed() {
        for text in
            [".", "a.", "www.example.org.", "a\\.b.example.", "\\000\\255.example.", "_sip._tcp.example.", "\\@.x."]
        {
            assert_eq!(name(text).to_string(), text);
        }
        assert_eq!(name("www.example.org"), name("WWW.Example.ORG."));
        assert_eq!(name("\\119ww.example").to_string(), "www.example.");
    }

    #[test]
    fn faulty_text_is_refused() {
        let long_label = "a".repeat(64);
        let long_name = "abcdefg.".repeat(32);
        for (text, error) in [
            ("", NameError::EmptyLabel),
            ("a..b", NameError::EmptyLabel),
            (".a", NameError::EmptyLabel),
            ("..", NameError::EmptyLabel),
            ("a\\", NameError::BadEscape),
            ("a\\25", NameError::BadEscape),
            ("a\\256", NameError::BadEscape),
            (long_label.as_str(), NameError::LongLabel),
            (long_name.as_str(), NameError::LongName),
        ] {
            assert_eq!(text.parse::<Name>(), Err(error), "{text}");
        }
        let longest = format!("{}abcde.", "abcdefg.".repeat(31));
        assert_eq!(name(&longest).wire().len(), MAX_NAME_BYTES);
    }

    #[test]
    fn short_and_long_names_are_alike() {
        assert_eq!(size_of::<Name>(), 48);
        for length in [3, SHORT_BYTES - 1, SHORT_BYTES, SHORT_BYTES + 1, MAX_NAME_BYTES] {
            let mut wire = vec![0];
            while wire.len() < length {
                let label = vec![b'A'; (length - wire.len() - 1).min(63)];
                wire.splice(0..0, [&[label.len() as u8], &*label].concat());
            }
            let name = Name::from_wire(&wire).unwrap();
            assert_eq!((name.wire(), name.to_string().parse()), (&*wire, Ok(name.clone())));
            assert_eq!(name.to_lower().wire(), wire.to_ascii_lowercase());
            assert_eq!(name.to_lower(), name);
            let child = name.child(b"x").map(|child| child.parent());
            assert_eq!(child, if length < MAX_NAME_BYTES { Ok(Some(name)) } else { Err(NameError::LongName) });
        }
    }

    #[test]
    fn a_suffix_is_compared_by_labels() {
        for (below, apex, expected) in [
            ("www.corp.example", "corp.example", true),
            ("corp.example", "corp.example", true),     // a name is at itself
            ("CORP.Example", "corp.example", true),     // without regard to case
            ("notcorp.example", "corp.example", false), // labels, not letters
            ("example", "corp.example", false),
            ("anything", ".", true),
            (".", ".", true),
        ] {
            assert_eq!(name(below).is_at_or_below(&name(apex)), expected, "{below} below {apex}");
        }
    }

    #[test]
    fn pointers_lead_backwards_or_nowhere() {
        let message = b"\x03www\x07example\x00\xc0\x00\x01a\xc0\x04\xc0\x13";
        let read = |at| Name::read(message, at).map(|(name, end)| (name.to_string(), end));
        assert_eq!(read(0), Ok(("www.example.".into(), 13)));
        assert_eq!(read(13), Ok(("www.example.".into(), 15)));
        assert_eq!(read(15), Ok(("a.example.".into(), 19)));
        assert_eq!(read(19), Err(NameError::BadWire), "a pointer to itself");
        assert_eq!(read(40), Err(NameError::BadWire), "beyond the end");
    }

    #[test]
    fn a_name_has_no_more_pointers_than_labels() {
        // The root, then pointers that each lead to the one before.
        let chain: Vec<u8> = [0]
            .into_iter()
            .chain((0..200u16).flat_map(|at| (0xc000 | (2 * at).saturating_sub(1)).to_be_bytes()))
            .collect();
        let read = |pointers: usize| Name::read(&chain, 2 * pointers - 1).map(|(name, _)| name);
        assert_eq!(read(1), Ok(Name::root()));
        assert_eq!(read(MOST_POINTERS), Ok(Name::root()));
        assert_eq!(read(MOST_POINTERS + 1), Err(NameError::BadWire));
    }

    #[test]
    fn a_dname_replaces_what_is_below_it() {
        let (from, to) = (name("old.example"), name("new.test"));
        assert_eq!(name("a.b.old.example").replace_suffix(&from, &to), Some(Ok(name("a.b.new.test"))));
        assert_eq!(name("old.example").replace_suffix(&from, &to), None);
        assert_eq!(name("bold.example").replace_suffix(&from, &to), None);
        let long = name(&format!("{}old.example", "abcdefg.".repeat(29)));
        assert_eq!(long.replace_suffix(&from, &name("a.much.longer.target.example")), Some(Err(NameError::LongName)));
    }

    #[test]
    fn canonical_order_puts_a_name_before_what_is_below_it() {
        let ordered = ["example", "a.example", "yljkjljk.a.example", "Z.a.example", "zABC.a.EXAMPLE", "z.example"];
        let mut sorted: Vec<Name> = ordered.iter().rev().map(|text| name(text)).collect();
        sorted.sort();
        assert_eq!(sorted, ordered.map(name));
    }
}
