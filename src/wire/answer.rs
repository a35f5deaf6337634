//! Answers from local data, and the writing of messages from records.

use std::{
    hash::{BuildHasher, Hasher},
    sync::Arc,
};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::{
    Class, HEADER_BYTES, Name, Question, Rcode, Rtype, flag,
    name::{MAX_LABEL_BYTES, label_starts},
    put_u16,
    rdata::{self, Field},
    read_u16,
};

/// What local data says to a question: records, or a denial with its SOA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// NOERROR, NXDOMAIN, or an error.
    pub rcode: Rcode,
    /// AA: whether this is said with authority. A referral is not.
    pub authoritative: bool,
    /// The answer section, CNAME chains in their order.
    pub answer: Vec<Record>,
    /// The SOA of a negative answer, the NS records of a referral.
    pub authority: Vec<Record>,
    /// Glue, or addresses of SRV targets.
    pub additional: Vec<Record>,
}

/// A resource record, the names in its RDATA uncompressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The owner.
    pub owner: Name,
    /// The type.
    pub rtype: Rtype,
    /// The class.
    pub class: Class,
    /// The TTL in seconds.
    pub ttl: u32,
    /// The RDATA in wire form.
    pub rdata: Arc<[u8]>,
}

/// The fields of an SOA record (RFC 1035 §3.3.13).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Soa {
    /// The primary server.
    pub mname: Name,
    /// The mailbox of the person in charge.
    pub rname: Name,
    /// The version of the zone.
    pub serial: u32,
    /// Seconds until a secondary asks again.
    pub refresh: u32,
    /// Seconds until it tries again.
    pub retry: u32,
    /// Seconds until it gives up.
    pub expire: u32,
    /// Bound on the life of a negative answer, in seconds.
    pub minimum: u32,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            rcode: Rcode::NOERROR,
            authoritative: true,
            answer: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        }
    }
}

impl Answer {
    /// NXDOMAIN or NODATA, by `rcode`, with the SOA record that bounds its life.
    pub fn negative(rcode: Rcode, soa: Record) -> Self {
        Self { rcode, authority: vec![soa], ..Self::default() }
    }
}

impl Record {
    /// A record of class IN.
    pub fn new(owner: Name, rtype: Rtype, ttl: u32, rdata: impl Into<Arc<[u8]>>) -> Self {
        Self { owner, rtype, class: Class::IN, ttl, rdata: rdata.into() }
    }

    /// The name that a CNAME, DNAME, NS or PTR record leads to.
    pub fn target(&self) -> Option<Name> {
        match self.rtype {
            Rtype::CNAME | Rtype::DNAME | Rtype::NS | Rtype::PTR => Name::from_wire(&self.rdata).ok(),
            _ => None,
        }
    }
}

impl Soa {
    /// The record; its TTL is the SOA minimum, as a negative answer wants it (RFC 2308 §3).
    pub fn record(&self, owner: Name) -> Record {
        let (mname, rname) = (self.mname.wire(), self.rname.wire());
        let mut rdata = Vec::with_capacity(mname.len() + rname.len() + 20);
        rdata.extend_from_slice(mname);
        rdata.extend_from_slice(rname);
        for number in [self.serial, self.refresh, self.retry, self.expire, self.minimum] {
            rdata.extend_from_slice(&number.to_be_bytes());
        }
        Record::new(owner, Rtype::SOA, self.minimum, rdata)
    }
}

/// Header and question.
pub(super) fn head(question: &Question, answer: &Answer) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    let aa = if answer.authoritative { flag::AA } else { 0 };
    for word in [0, flag::QR | flag::RA | aa | answer.rcode.0 & 0x0f, 1, 0, 0, 0] {
        head.extend_from_slice(&word.to_be_bytes());
    }
    head.extend_from_slice(question.qname.wire());
    head.extend_from_slice(&question.qtype.0.to_be_bytes());
    head.extend_from_slice(&question.qclass.0.to_be_bytes());
    head
}

/// A message from its header and question, and new sections.
pub(super) fn write_message(head: &[u8], sections: &[Vec<Record>; 3]) -> Vec<u8> {
    write_sections(head.to_vec(), [&sections[0], &sections[1], &sections[2]])
}

/// Writes records behind the head in `message` until that is full; what then is missing is not counted, and TC is set.
pub(super) fn write_sections(mut message: Vec<u8>, sections: [&Vec<Record>; 3]) -> Vec<u8> {
    // The head may be that of a message with other records.
    message[6..HEADER_BYTES].fill(0);
    if sections.iter().all(|records| records.is_empty()) {
        return message;
    }
    let mut names = Names::new();
    if message.len() > HEADER_BYTES {
        names.note(&message, HEADER_BYTES);
    }
    for (count_at, records) in [6, 8, 10].into_iter().zip(sections) {
        let mut count = 0;
        for record in records {
            let start = message.len();
            write_record(record, &mut message, &mut names);
            if message.len() > super::MAX_MESSAGE_BYTES - RESERVED_FOR_OPT_BYTES {
                message.truncate(start);
                let flags = read_u16(&message, 2).unwrap_or(0) | flag::TC;
                put_u16(&mut message, 2, flags);
                put_u16(&mut message, count_at, count);
                return message;
            }
            count += 1;
        }
        put_u16(&mut message, count_at, count);
    }
    message
}

pub(super) fn write_record(record: &Record, out: &mut Vec<u8>, names: &mut Names) {
    names.write(record.owner.wire(), out);
    // Names in the RDATA of later types must not be compressed (RFC 3597 §4).
    let Some(fields) = rdata::may_compress(record.rtype).then(|| rdata::fields(record.rtype)).flatten() else {
        write_body(record, out);
        return;
    };
    write_fixed_fields(record, out);
    let rdata_at = out.len();
    let mut rest = &*record.rdata;
    for field in fields {
        let length = field.length(rest, 0).unwrap_or(rest.len()).min(rest.len());
        let (part, tail) = rest.split_at(length);
        match field {
            Field::Name if Name::from_wire(part).is_ok() => names.write(part, out),
            _ => out.extend_from_slice(part),
        }
        rest = tail;
    }
    out.extend_from_slice(rest);
    let rdlength = (out.len() - rdata_at) as u16;
    put_u16(out, rdata_at - 2, rdlength);
}

/// All of a record but its owner, names in it uncompressed.
pub(super) fn write_body(record: &Record, out: &mut Vec<u8>) {
    write_fixed_fields(record, out);
    out.extend_from_slice(&record.rdata);
}

fn write_fixed_fields(record: &Record, out: &mut Vec<u8>) {
    let mut fields = [0; 10];
    fields[..2].copy_from_slice(&record.rtype.0.to_be_bytes());
    fields[2..4].copy_from_slice(&record.class.0.to_be_bytes());
    fields[4..8].copy_from_slice(&record.ttl.to_be_bytes());
    fields[8..].copy_from_slice(&(record.rdata.len() as u16).to_be_bytes());
    out.extend_from_slice(&fields);
}

/// The names written so far, to be pointed at: a tree of labels, which grows from the root.
pub(super) struct Names {
    labels: HashTable<Label>,
    /// Where a whole name stands that most others are: the question's. [`ROOT`] if none does.
    noted: u16,
    hasher: RandomState,
}

/// A label that stands in the message, its length in front.
struct Label {
    place: u16,
    /// Where the next one of its name stands, though it need not follow; [`ROOT`] for the last.
    above: u16,
    hash: u64,
}

impl Names {
    /// None, with room for those of most messages.
    pub(super) fn new() -> Self {
        Self { labels: HashTable::with_capacity(14), noted: ROOT, hasher: RandomState::default() }
    }

    /// Writes a name, which others may point to from then on.
    fn write(&mut self, wire: &[u8], out: &mut Vec<u8>) {
        let (starts, start) = (label_starts(wire), out.len());
        let (spelled, above) = self.write_labels(wire, &starts, out);
        self.take_in(wire, &starts[..spelled], start, above);
    }

    /// Writes a name to which nobody points.
    pub(super) fn write_known(&self, wire: &[u8], out: &mut Vec<u8>) {
        self.write_labels(wire, &label_starts(wire), out);
    }

    /// Takes in the uncompressed name that stands at `at` already.
    pub(super) fn note(&mut self, message: &[u8], at: usize) {
        let wire = &message[at..];
        let starts = label_starts(wire);
        self.take_in(wire, &starts[..starts.len() - 1], at, ROOT);
        self.noted = if starts.len() > 1 { at as u16 } else { ROOT };
    }

    /// Spells out what is not known of a name. Tells how many labels that were, and where the next one stands.
    fn write_labels(&self, wire: &[u8], starts: &[u8], out: &mut Vec<u8>) -> (usize, u16) {
        let (mut spelled, mut above) = (starts.len() - 1, ROOT);
        if self.noted != ROOT
            && out[self.noted.into()..].get(..wire.len()).is_some_and(|it| it.eq_ignore_ascii_case(wire))
        {
            (spelled, above) = (0, self.noted);
        } else {
            let (mut known, mut next) = (spelled, ROOT);
            while let Some(last) = known.checked_sub(1)
                && let Some(place) = self.find(label_at(wire, starts[last].into()), next, out)
            {
                (known, next) = (last, place);
                if is_in_reach(place) {
                    (spelled, above) = (known, next);
                }
            }
        }
        out.extend_from_slice(&wire[..usize::from(starts[spelled])]);
        match above {
            ROOT => out.push(0),
            place => out.extend_from_slice(&(0xc000 | place).to_be_bytes()),
        }
        (spelled, above)
    }

    /// Takes in the labels of a name that are spelled out from `start` on, those `above` them being known.
    fn take_in(&mut self, wire: &[u8], starts: &[u8], start: usize, mut above: u16) {
        // Of a name that reaches beyond what can be pointed at, its end is known as well: labels before it may be in reach.
        let Some(start) = u16::try_from(start).ok().filter(|&start| is_in_reach(start)) else { return };
        for &at in starts.iter().rev() {
            let place = start + u16::from(at);
            let hash = self.hash(label_at(wire, at.into()), above);
            self.labels.insert_unique(hash, Label { place, above, hash }, |label| label.hash);
            above = place;
        }
    }

    fn find(&self, label: &[u8], above: u16, message: &[u8]) -> Option<u16> {
        let is_it =
            |known: &Label| known.above == above && label_at(message, known.place.into()).eq_ignore_ascii_case(label);
        self.labels.find(self.hash(label, above), is_it).map(|known| known.place)
    }

    fn hash(&self, label: &[u8], above: u16) -> u64 {
        let mut lower = [0; 1 + MAX_LABEL_BYTES];
        lower[..label.len()].copy_from_slice(label);
        lower.make_ascii_lowercase();
        let mut hasher = self.hasher.build_hasher();
        hasher.write(&lower[..label.len()]);
        hasher.write_u16(above);
        hasher.finish()
    }
}

/// A pointer has 14 bits.
fn is_in_reach(place: u16) -> bool {
    place < 0x4000
}

/// The label that starts at `at`, its length in front.
fn label_at(wire: &[u8], at: usize) -> &[u8] {
    &wire[at..=at + usize::from(wire[at])]
}

/// Where no label stands: in the header.
const ROOT: u16 = 0;
/// Room that every message leaves for the OPT record of its reply.
pub(super) const RESERVED_FOR_OPT_BYTES: usize = 512;

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
