//! A record in its message: where its parts are, and whether its names can be read.

use std::ops::Range;

use smallvec::SmallVec;

use super::{Class, HEADER_BYTES, Name, Rtype, read_u16, read_u32};

/// A section that holds records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The records that answer the question.
    Answer,
    /// SOA of a negative answer, NS of a referral.
    Authority,
    /// Whatever else may help.
    Additional,
}

/// Where the parts of a record lie in its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordView {
    /// The section.
    pub section: Section,
    /// Where the owner name starts.
    pub owner_at: usize,
    /// Where the TTL stands.
    pub ttl_at: usize,
    /// The type.
    pub rtype: Rtype,
    /// The class.
    pub class: Class,
    /// The TTL as written; above 2^31-1 it counts as 0 (RFC 2181 §8).
    pub ttl: u32,
    /// The RDATA.
    pub rdata: Range<usize>,
    /// Where the record ends.
    pub end: usize,
}

/// The record that starts at `at`, as if it stood in the answer section.
#[inline]
pub(super) fn skip_record(wire: &[u8], at: usize) -> Option<RecordView> {
    let fixed = skip_name(wire, at)?;
    let rdata = fixed + 10..fixed + 10 + usize::from(read_u16(wire, fixed + 8)?);
    (rdata.end <= wire.len()).then_some(RecordView {
        section: Section::Answer,
        owner_at: at,
        ttl_at: fixed + 4,
        rtype: Rtype(read_u16(wire, fixed)?),
        class: Class(read_u16(wire, fixed + 2)?),
        ttl: read_u32(wire, fixed + 4)?,
        end: rdata.end,
        rdata,
    })
}

/// Where the possibly compressed name that starts at `at` ends.
fn skip_name(wire: &[u8], at: usize) -> Option<usize> {
    let mut position = at;
    loop {
        match wire.get(position)? {
            0 => return Some(position + 1),
            &length @ 1..=63 => position += 1 + usize::from(length),
            192.. => return wire.get(position + 1).map(|_| position + 2),
            _ => return None,
        }
    }
}

/// Makes sure that the owner can be read, in every reply too.
#[inline]
pub(super) fn check_owner(message: &[u8], record: &RecordView, progress: &mut Progress) -> Option<()> {
    // A pointer to the question's name is by far the most frequent owner, and is known to be good. Where there is no
    // question, the first record stands in its place.
    if points_to_qname(message, record.owner_at) && record.owner_at != HEADER_BYTES {
        return Some(());
    }
    // The root, which OPT has, leads nowhere.
    if message.get(record.owner_at) == Some(&0) {
        return Some(());
    }
    check_name(message, record.owner_at, progress).map(drop)
}

/// Where a name ends.
pub(super) struct End {
    pub at: usize,
    /// Whether it ends with a pointer.
    pub is_compressed: bool,
}

/// How far a message has been checked.
pub(super) struct Progress {
    /// The places of the TTLs so far.
    ttls_at: SmallVec<[u16; 32]>,
    /// How many labels and pointers names may have from here on.
    steps_left: usize,
}

impl Progress {
    /// At the beginning. A name of a few octets can lead through a hundred labels and pointers, and a message hold thousands of
    /// such names (RFC 9267 §2). Names are read several times for each response, so their sum is bounded: twice as many steps
    /// as the message has octets, and some more, are enough for any names that are not made to be slow.
    pub(super) fn of(message: &[u8]) -> Self {
        Self { ttls_at: SmallVec::new(), steps_left: LEAST_STEPS + 2 * message.len() }
    }

    /// At the beginning of a message of ours, whose names may have any number of labels and pointers.
    pub(super) fn of_ours() -> Self {
        Self { ttls_at: SmallVec::new(), steps_left: usize::MAX }
    }

    /// Notes the place of a record's TTL.
    #[inline]
    pub(super) fn pass(&mut self, record: &RecordView) -> Option<()> {
        self.ttls_at.push(u16::try_from(record.ttl_at).ok()?);
        Some(())
    }
}

/// Makes sure that the name that starts at `at` can be read, in every reply too: it may not lead to what replies have
/// otherwise, the header and TTLs. `None` if it cannot, or if the names of the message have too many labels and pointers in all.
pub(super) fn check_name(message: &[u8], at: usize, progress: &mut Progress) -> Option<End> {
    let ttls_at = &progress.ttls_at;
    let (_, end) = Name::read(message, at).ok()?;
    let first = at;
    let (mut start, mut at) = (first, first);
    let mut is_compressed = false;
    loop {
        progress.steps_left = progress.steps_left.checked_sub(1)?;
        let head = *message.get(at)?;
        let end_of_label = at + if head < 192 { 1 + usize::from(head) } else { 2 };
        if head == 0 || head >= 192 {
            let behind = ttls_at.partition_point(|&ttl_at| usize::from(ttl_at) + TTL_BYTES <= start);
            let is_lasting = ttls_at.get(behind).is_none_or(|&ttl_at| usize::from(ttl_at) >= end_of_label);
            // What is pointed at has been written before (RFC 1035 §4.1.4).
            let is_before = start == first || end_of_label <= first;
            if start < HEADER_BYTES || !is_before || !is_lasting {
                return None;
            }
        }
        if head == 0 {
            return Some(End { at: end, is_compressed });
        }
        at = end_of_label;
        if head >= 192 {
            is_compressed = true;
            start = usize::from(read_u16(message, end_of_label - 2)? & 0x3fff);
            at = start;
        }
    }
}

/// True if the name at `at` is a pointer to the first name of the message, the question's.
#[inline]
pub(super) fn points_to_qname(message: &[u8], at: usize) -> bool {
    message.get(at..at + 2) == Some(&[0xc0, HEADER_BYTES as u8])
}

/// Labels and pointers that any message may have in its names.
const LEAST_STEPS: usize = 16_384;
const TTL_BYTES: usize = 4;
