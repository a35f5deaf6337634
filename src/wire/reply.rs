//! The reply to one client: a response with this client's id, flags, letters, size and OPT record.

use rand::Rng;

use super::{
    Class, ClientEdns, HEADER_BYTES, Rcode, RecordView, Rtype, View,
    edns::{OPTION_COOKIE, OPTION_KEEPALIVE, OPTION_PADDING},
    flag,
    name::skip_uncompressed,
    put_u16, read_u16, read_u32,
    record::skip_record,
    rotation::Rotation,
};

/// All of a query that its reply depends on besides the response; its question's bytes travel beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// The message id.
    pub id: u16,
    /// RD, to be echoed.
    pub recursion_desired: bool,
    /// CD, to be echoed.
    pub checking_disabled: bool,
    /// AD or DO was set: the client understands AD (RFC 6840 §5.7).
    pub wants_ad: bool,
    /// What its OPT record said; without one the reply has none (RFC 6891 §7).
    pub edns: Option<ClientEdns>,
    /// What that of the reply says to its options.
    pub options: ReplyOptions,
    /// How long the reply may be, its OPT record included.
    pub limit_bytes: usize,
}

impl Asker {
    /// Whether it has shown a cookie of ours, so that what is sent to its address is known to reach it, and nobody who
    /// forges addresses.
    pub fn is_proven(&self) -> bool {
        self.options.cookie.is_some_and(|cookie| cookie.is_proof)
    }
}

/// What the OPT record of a reply says to the options of its query. Extended errors come with the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReplyOptions {
    /// The COOKIE option, for those who sent one.
    pub cookie: Option<Cookie>,
    /// For how long the connection may be idle, in units of 100 ms, for those who asked (RFC 7828 §3.3.2).
    pub keepalive: Option<u16>,
    /// The reply's length is rounded up, as that of the query was (RFC 7830 §4).
    pub padded: bool,
}

/// The COOKIE option of a reply (RFC 7873 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cookie {
    /// The client's part, as it came, and ours.
    pub data: [u8; COOKIE_BYTES],
    /// The query's had our part already.
    pub is_proof: bool,
}

impl ReplyOptions {
    /// Their length, padding aside.
    fn length(&self) -> usize {
        self.cookie.map_or(0, |_| 4 + COOKIE_BYTES) + self.keepalive.map_or(0, |_| 6)
    }

    fn write(&self, limit_bytes: usize, out: &mut Vec<u8>) {
        if let Some(cookie) = self.cookie {
            write_option_head(OPTION_COOKIE, COOKIE_BYTES, out);
            out.extend_from_slice(&cookie.data);
        }
        if let Some(keepalive) = self.keepalive {
            write_option_head(OPTION_KEEPALIVE, 2, out);
            out.extend_from_slice(&keepalive.to_be_bytes());
        }
        // The last, for it has to know the rest. Where there is no room for its head, there is nothing left to hide.
        if let Some(padding) = padding(out.len(), limit_bytes).filter(|_| self.padded) {
            write_option_head(OPTION_PADDING, padding, out);
            out.resize(out.len() + padding, 0);
        }
    }
}

fn write_option_head(code: u16, length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(&(length as u16).to_be_bytes());
}

/// How many octets the data of a Padding option have behind `length` octets of message: it is rounded up to a multiple of
/// 468 octets (RFC 8467 §4.1), or to what is the limit.
pub fn padding(length: usize, limit_bytes: usize) -> Option<usize> {
    let least = length + 4;
    least.next_multiple_of(BLOCK_BYTES).min(limit_bytes).checked_sub(least)
}

/// What bounds the size of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplySize {
    /// A datagram: what the client takes, at most this, and 512 octets in any case (RFC 6891 §6.2.3).
    Datagram {
        /// The most that is sent even to a client that takes more.
        ceiling_bytes: u16,
    },
    /// A stream with its length prefix of 16 bits.
    Stream,
}

impl ReplySize {
    pub(super) fn limit_bytes(self, edns: Option<ClientEdns>) -> usize {
        match self {
            Self::Stream => super::MAX_MESSAGE_BYTES,
            Self::Datagram { ceiling_bytes } => {
                edns.map_or(SMALL_BYTES, |edns| usize::from(edns.udp_size.min(ceiling_bytes)).max(SMALL_BYTES))
            }
        }
    }
}

/// What the TTLs of a reply are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttls {
    /// As kept, less this many seconds.
    Aged(u32),
    /// All of them this: for stale answers (RFC 8767 §4).
    Fixed(u32),
}

/// Writes the reply into `out`, which is emptied first and has to have room for the asker's limit lest it grow.
///
/// Records that do not fit are left out from the end. Of the additional section that goes unsaid, for nothing there
/// is required (RFC 2181 §9); anything else sets TC, and then only whole answer records remain. Records that rotate are
/// left out at random, and come in an order that `rng` chooses.
pub fn write_reply(view: View<'_>, asker: &Asker, question: &[u8], ttls: Ttls, rng: &mut impl Rng, out: &mut Vec<u8>) {
    out.clear();
    let mut flags = view.flags & (flag::AA | flag::AD | flag::TC) | flag::QR | flag::RA | view.rcode.0 & 0x0f;
    if asker.recursion_desired {
        flags |= flag::RD;
    }
    if asker.checking_disabled {
        flags |= flag::CD;
    }
    if !asker.wants_ad {
        flags &= !flag::AD;
    }
    let [an, ns, ar] = view.counts;
    for word in [asker.id, flags, u16::from(!question.is_empty()), an, ns, ar] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(question);
    let records_at = out.len();

    let mut errors = view.extended_errors;
    let opt_bytes = |errors: &[u8]| asker.edns.map_or(0, |_| OPT_BYTES + errors.len() + asker.options.length());
    if records_at + view.records.len() + opt_bytes(errors) > asker.limit_bytes {
        errors = &[];
    }
    let room = asker.limit_bytes.saturating_sub(opt_bytes(errors));
    if let Some(rotation) = Rotation::of(&view) {
        rotation.write(room, asker.limit_bytes <= SMALL_BYTES, rng.next_u64(), out);
    } else {
        out.extend_from_slice(view.records);
        if out.len() > room {
            truncate(out, records_at, room);
        }
    }
    set_ttls(out, records_at, ttls);
    if let Some(edns) = asker.edns {
        write_opt(view.rcode, edns.dnssec_ok, errors, out);
        if asker.options != ReplyOptions::default() {
            let options_at = out.len();
            asker.options.write(asker.limit_bytes, out);
            let rdlength = (errors.len() + out.len() - options_at) as u16;
            put_u16(out, options_at - errors.len() - 2, rdlength);
        }
    }
}

/// Writes the reply to a message that is no query we could read or serve (FORMERR, NOTIMP, NOTAUTH).
///
/// `query` is at least a header long; its id, opcode and RD are echoed, its question if it is one and whole, and there is an
/// OPT record if there was one where it belongs (RFC 6891 §6.1.1).
pub fn write_error(query: &[u8], rcode: Rcode, out: &mut Vec<u8>) {
    out.clear();
    let word = |at| read_u16(query, at).unwrap_or(0);
    let flags = word(2) & (OPCODE_BITS | flag::RD | flag::CD) | flag::QR | flag::RA | rcode.0 & 0x0f;
    let question = match word(4) {
        0 => Some(&[][..]),
        1 => skip_uncompressed(query, HEADER_BYTES).ok().and_then(|end| query.get(HEADER_BYTES..end + 4)),
        _ => None,
    };
    for word in [word(0), flags, question.map_or(0, |_| word(4)), 0, 0, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    let Some(question) = question else { return };
    out.extend_from_slice(question);
    let mut at = out.len();
    let mut has_opt = false;
    let before_additional = u32::from(word(6)) + u32::from(word(8));
    for index in 0..before_additional + u32::from(word(10)) {
        let Some(record) = skip_record(query, at) else { return };
        let is_opt = record.rtype == Rtype::OPT && index >= before_additional && query.get(at) == Some(&0);
        if is_opt && !has_opt {
            has_opt = true;
            write_opt(rcode, record.ttl & 0x8000 != 0, &[], out);
        }
        if record.rtype == Rtype::TSIG && rcode == Rcode::NOTAUTH {
            write_unknown_key(query, &record, out);
        }
        at = record.end;
    }
}

/// Appends what there is to say to a signature (RFC 8945 §5.2.1): its own record, with the error BADKEY for a hash.
fn write_unknown_key(query: &[u8], signature: &RecordView, out: &mut Vec<u8>) {
    let owner = skip_uncompressed(query, signature.owner_at).ok().and_then(|end| query.get(signature.owner_at..end));
    // The name of the algorithm, and behind it 48 bits of time and 16 of how much that may be off.
    let time_end = skip_uncompressed(query, signature.rdata.start).ok().map(|end| end + 8);
    // Behind that it has eight octets at least, as has ours: a reply is no longer than its query.
    let time_end = time_end.filter(|&end| end + 8 <= signature.rdata.end);
    let kept = time_end.and_then(|end| query.get(signature.rdata.start..end));
    let (Some(owner), Some(kept)) = (owner, kept) else { return };
    let arcount = read_u16(out, 10).unwrap_or(0).saturating_add(1);
    put_u16(out, 10, arcount);
    out.extend_from_slice(owner);
    let [id, rdlength] = [read_u16(query, 0).unwrap_or(0), kept.len() as u16 + 8];
    for word in [Rtype::TSIG.0, Class::ANY.0, 0, 0, rdlength] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    out.extend_from_slice(kept);
    for word in [0, id, BADKEY, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// Leaves out what does not fit into `room`.
fn truncate(out: &mut Vec<u8>, records_at: usize, room: usize) {
    let counts = [6, 8, 10].map(|at| read_u16(out, at).unwrap_or(0));
    let mut kept = [0u16; 3];
    let mut at = records_at;
    'sections: for section in 0..3 {
        for _ in 0..counts[section] {
            match skip_record(out, at) {
                Some(record) if record.end <= room => at = record.end,
                _ => break 'sections,
            }
            kept[section] += 1;
        }
    }
    if kept[..2] != counts[..2] {
        // The authority section is all or nothing: half of a proof proves nothing.
        let flags = read_u16(out, 2).unwrap_or(0) | flag::TC;
        put_u16(out, 2, flags);
        if kept[0] == counts[0] {
            at = (0..kept[0]).try_fold(records_at, |at, _| skip_record(out, at).map(|r| r.end)).unwrap_or(records_at);
        }
        kept[1] = 0;
        kept[2] = 0;
    }
    out.truncate(at);
    for (count_at, count) in [6, 8, 10].into_iter().zip(kept) {
        put_u16(out, count_at, count);
    }
}

fn set_ttls(out: &mut [u8], records_at: usize, ttls: Ttls) {
    if ttls == Ttls::Aged(0) {
        return;
    }
    let mut at = records_at;
    while let Some((ttl_at, end)) = ttl_place(out, at) {
        let ttl = match ttls {
            Ttls::Aged(age) => read_u32(out, ttl_at).unwrap_or(0).saturating_sub(age),
            Ttls::Fixed(ttl) => ttl,
        };
        // An array and no slice, so that it is one store and never a call.
        if let Some(place) = out.get_mut(ttl_at..).and_then(<[u8]>::first_chunk_mut) {
            *place = ttl.to_be_bytes();
        }
        at = end;
    }
}

/// Where the TTL of the record at `at` stands and where the record ends.
fn ttl_place(out: &[u8], at: usize) -> Option<(usize, usize)> {
    skip_record(out, at).map(|record| (record.ttl_at, record.end))
}

/// Appends the OPT record: our payload size, the upper bits of the response code, DO echoed (RFC 3225 §3).
fn write_opt(rcode: Rcode, dnssec_ok: bool, errors: &[u8], out: &mut Vec<u8>) {
    let arcount = read_u16(out, 10).unwrap_or(0).saturating_add(1);
    put_u16(out, 10, arcount);
    out.push(0);
    out.extend_from_slice(&Rtype::OPT.0.to_be_bytes());
    out.extend_from_slice(&OUR_UDP_SIZE.to_be_bytes());
    out.extend_from_slice(&[(rcode.0 >> 4) as u8, 0, if dnssec_ok { 0x80 } else { 0 }, 0]);
    out.extend_from_slice(&(errors.len() as u16).to_be_bytes());
    out.extend_from_slice(errors);
}

/// What every client takes by UDP (RFC 1035 §4.2.1).
const SMALL_BYTES: usize = 512;
/// An OPT record without options.
const OPT_BYTES: usize = 11;
/// Our COOKIE option: 8 octets of the client's, 16 of ours (RFC 9018 §4).
pub const COOKIE_BYTES: usize = 24;
/// Padded replies are of a length that this divides (RFC 8467 §4.1).
const BLOCK_BYTES: usize = 468;
/// What we take by UDP from clients: the size that survives almost every path (DNS flag day 2020).
const OUR_UDP_SIZE: u16 = 1232;
/// The error of a signature by a key that nobody knows here (RFC 8945 §3).
const BADKEY: u16 = 17;
/// The opcode's bits in the flag word.
const OPCODE_BITS: u16 = 0x7800;
