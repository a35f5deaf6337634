//! All that a response may depend on. What is forgotten here leaks between clients.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher},
    sync::LazyLock,
};

use foldhash::quality::RandomState;

use smallvec::SmallVec;

use crate::wire::{Class, Name, Question, Rtype};

/// The question and its variant: what one cached response, or one query in flight, stands for.
///
/// That of a name of up to 90 octets lies in place: it is made for every query, and goes through many hands for a miss. A
/// longer one costs an allocation.
pub struct Key {
    /// Qtype, qclass, the variant's flags, its view, then the qname in lower case. The head is of fixed length and a
    /// name knows its own end, so no key is the beginning of another.
    octets: Octets,
    /// Seeded, and the same for all keys of the qname: counted once, for all the tables that a key is looked up in.
    name_hash: u64,
}

type Octets = SmallVec<[u8; INLINE_BYTES]>;

/// What besides the question makes a response another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Variant {
    /// The DO bit: with DNSSEC records or without (RFC 4035 §3.2.1).
    pub dnssec_ok: bool,
    /// The CD bit: a validating upstream then gives what it would else refuse (RFC 4035 §3.2.2).
    pub checking_disabled: bool,
    /// The view, whose rules decide who answers.
    pub view: u8,
}

impl Key {
    /// The key of a question; the qname is in wire form, in any case.
    pub fn new(qname: &[u8], qtype: Rtype, qclass: Class, variant: Variant) -> Self {
        let [t0, t1] = qtype.0.to_be_bytes();
        let [c0, c1] = qclass.0.to_be_bytes();
        let mut flags = 0;
        if variant.dnssec_ok {
            flags |= DNSSEC_OK;
        }
        if variant.checking_disabled {
            flags |= CHECKING_DISABLED;
        }
        let head = [t0, t1, c0, c1, flags, variant.view];
        let length = HEAD_BYTES + qname.len();
        let mut room = [0; INLINE_BYTES];
        match room.get_mut(HEAD_BYTES..length) {
            Some(place) => {
                place.copy_from_slice(qname);
                // All of the room, for that is of one length, and so done at once. The head comes after, for its
                // numbers may look like letters.
                room.make_ascii_lowercase();
                room[..HEAD_BYTES].copy_from_slice(&head);
                Self::hashed(SmallVec::from_buf_and_len(room, length))
            }
            None => {
                let mut octets = joined(head, qname);
                octets[HEAD_BYTES..].make_ascii_lowercase();
                Self::hashed(octets)
            }
        }
    }

    /// The key of a head, as [`head`](Self::head) gives it, and a qname in lower case.
    pub(super) fn from_parts(head: [u8; HEAD_BYTES], qname: &[u8]) -> Self {
        Self::hashed(joined(head, qname))
    }

    fn hashed(octets: Octets) -> Self {
        let name_hash = SEED.hash_one(&octets[HEAD_BYTES..]);
        Self { octets, name_hash }
    }

    /// What stands before the qname: qtype, qclass and variant.
    pub(super) fn head(&self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head.copy_from_slice(&self.octets[..HEAD_BYTES]);
        head
    }

    /// Reads what [`as_bytes`](Self::as_bytes) gave.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        Self::hashed(SmallVec::from_slice(bytes))
    }

    /// Reads what [`as_bytes`](Self::as_bytes) gave, if it did.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        Name::from_wire(bytes.get(HEAD_BYTES..)?).ok()?;
        Some(Self::from_bytes(bytes))
    }

    /// The key as octets: equal for equal keys, and only for those.
    pub fn as_bytes(&self) -> &[u8] {
        &self.octets
    }

    /// The qname in wire form and lower case.
    pub fn qname(&self) -> &[u8] {
        &self.octets[HEAD_BYTES..]
    }

    /// The type asked for.
    pub fn qtype(&self) -> Rtype {
        Rtype(u16::from_be_bytes([self.octets[0], self.octets[1]]))
    }

    /// The class asked for.
    pub fn qclass(&self) -> Class {
        Class(u16::from_be_bytes([self.octets[2], self.octets[3]]))
    }

    /// The question as a value of its own.
    pub fn question(&self) -> Question {
        let qname = Name::from_wire(self.qname()).unwrap_or_else(|_| Name::root());
        Question { qname, qtype: self.qtype(), qclass: self.qclass() }
    }

    /// What besides the question is part of the key.
    pub fn variant(&self) -> Variant {
        let [flags, view] = [self.octets[4], self.octets[5]];
        Variant { dnssec_ok: flags & DNSSEC_OK != 0, checking_disabled: flags & CHECKING_DISABLED != 0, view }
    }

    /// The key of the query that a client asks beside this one: AAAA for A and A for AAAA.
    pub fn sister(&self) -> Option<Self> {
        let head = self.sister_head()?;
        let mut sister = self.clone();
        sister.octets[..HEAD_BYTES].copy_from_slice(&head);
        Some(sister)
    }

    /// Whether there is a [`sister`](Self::sister).
    pub fn has_sister(&self) -> bool {
        self.sister_head().is_some()
    }

    /// Whether this is the [`sister`](Self::sister) of `other`.
    pub fn is_sister_of(&self, other: &Self) -> bool {
        other.sister_head() == Some(self.head()) && self.qname() == other.qname()
    }

    /// A hash of the qname alone, from a seed of this process.
    pub fn name_hash(&self) -> u64 {
        self.name_hash
    }

    /// A hash of the whole key, from a seed of this process. Keys of one name never share it.
    pub fn print(&self) -> u64 {
        print(self.name_hash, self.head())
    }

    /// The print of the [`sister`](Self::sister).
    pub fn sister_print(&self) -> Option<u64> {
        Some(print(self.name_hash, self.sister_head()?))
    }

    fn sister_head(&self) -> Option<[u8; HEAD_BYTES]> {
        let qtype = match self.qtype() {
            Rtype::A => Rtype::AAAA,
            Rtype::AAAA => Rtype::A,
            _ => return None,
        };
        let [_, _, c, d, e, f] = self.head();
        let [a, b] = qtype.0.to_be_bytes();
        Some([a, b, c, d, e, f])
    }
}

fn joined(head: [u8; HEAD_BYTES], qname: &[u8]) -> Octets {
    let mut octets = Octets::with_capacity(HEAD_BYTES + qname.len());
    octets.extend_from_slice(&head);
    octets.extend_from_slice(qname);
    octets
}

fn print(name_hash: u64, [a, b, c, d, e, f]: [u8; HEAD_BYTES]) -> u64 {
    // Multiplying by an odd number loses nothing and carries the few bits that differ into the others.
    name_hash ^ u64::from_be_bytes([0, 0, a, b, c, d, e, f]).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

// What is derived goes octet by octet.
impl Clone for Key {
    fn clone(&self) -> Self {
        Self { octets: SmallVec::from_slice(&self.octets), name_hash: self.name_hash }
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.as_bytes());
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Key").field(&self.question()).field(&self.variant()).finish()
    }
}

/// Nobody outside can choose names that meet in one place.
static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::default);
/// What stands before the qname.
pub(super) const HEAD_BYTES: usize = 6;
/// Room for names of 90 octets: a reverse name of IPv6 has 74.
const INLINE_BYTES: usize = 96;
const DNSSEC_OK: u8 = 1;
const CHECKING_DISABLED: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(qname: &str, qtype: Rtype) -> Key {
        Key::new(qname.parse::<Name>().unwrap().wire(), qtype, Class::IN, Variant::default())
    }

    #[test]
    fn a_key_gives_back_what_it_was_made_of() {
        let variant = Variant { dnssec_ok: false, checking_disabled: true, view: b'A' };
        let [fills_its_room, exceeds_it, longest] =
            [(11, "a."), (11, "ab."), (31, "abcde.")].map(|(labels, end)| "abcdefg.".repeat(labels) + end);
        for qname in [".", "www.example.", &fills_its_room, &exceeds_it, &longest] {
            let qname: Name = qname.parse().unwrap();
            let key = Key::new(qname.wire(), Rtype::HTTPS, Class::CH, variant);
            assert_eq!(key.question(), Question { qname, qtype: Rtype::HTTPS, qclass: Class::CH });
            assert_eq!(key.variant(), variant);
            assert_eq!(Key::from_bytes(key.as_bytes()), key);
        }
    }

    #[test]
    fn letters_do_not_make_another_key() {
        for name in ["www.example".to_owned(), "abcdefg.".repeat(20)] {
            let (upper, lower) = (key(&name.to_uppercase(), Rtype::A), key(&name, Rtype::A));
            assert_eq!((upper.name_hash(), &upper), (lower.name_hash(), &lower));
        }
        assert_ne!(key("www.example", Rtype::A), key("ww.example", Rtype::A));
    }

    #[test]
    fn addresses_have_a_sister() {
        assert_eq!(key("www.example", Rtype::A).sister(), Some(key("www.example", Rtype::AAAA)));
        assert_eq!(key("www.example", Rtype::AAAA).sister(), Some(key("www.example", Rtype::A)));
        assert_eq!(key("www.example", Rtype::MX).sister(), None);
    }
}
