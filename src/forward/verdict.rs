//! What a reply is worth: one function from the query as asked and the message as it came.
//!
//! A reply is believed by UDP only if id, question, letters and cookie are those of the query. One with another id or
//! question is somebody else's, or forged, and counts for nothing. One with other letters, or without the cookie
//! that this server is known to send, may be genuine: the same server is asked over TCP, which cannot be forged so.

use super::upstream::Cookie;
use crate::wire::{Class, Match, Name, Rcode, Received, RecordView, Response, Rtype, Section, flag, read_u16};

/// What of a query its reply is held against.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub id: u16,
    pub qname: &'a Name,
    pub qtype: Rtype,
    pub qclass: Class,
    pub over: Over,
    pub edns: bool,
    pub cookie: &'a Cookie,
}

/// How a query travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    Udp,
    Stream,
}

/// What may be amiss with a reply that may yet be genuine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The question has other letters than were sent.
    Letters,
    /// There is no cookie, though this server sends cookies.
    Cookie,
}

/// What a reply is worth.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It settles the question.
    Good(Received),
    /// It says to ask somebody else.
    Failing(Received),
    /// It makes no sense, though id and question are right.
    Broken,
    /// It was not meant for this query.
    Wrong,
    /// It may be genuine; the stream will tell.
    Doubtful(Doubt),
    /// It does not repeat the question. If no better one comes, it is worth this.
    Unasked(Box<Verdict>),
    /// The whole of it is to be had over the stream.
    Truncated(Rcode),
    /// The server does not understand EDNS.
    WithoutEdns(Received),
    /// The server wants another cookie, which it has sent along.
    BadCookie(Received),
}

impl Verdict {
    /// Whether a server that compares letters may have said this because of them.
    pub fn is_denial_or_failure(&self, qtype: Rtype) -> bool {
        match self {
            Self::Good(received) => {
                let response = &received.response;
                let mut answer = response.records().take_while(|record| record.section == Section::Answer);
                let is_answered = answer.any(|record| record.rtype == qtype || qtype == Rtype::ANY);
                response.rcode() != Rcode::NOERROR || !is_answered
            }
            Self::Failing(_) | Self::Broken | Self::WithoutEdns(_) => true,
            Self::Wrong | Self::Doubtful(_) | Self::Unasked(_) | Self::Truncated(_) | Self::BadCookie(_) => false,
        }
    }
}

/// Judges a message that has come in reply to a query.
pub(super) fn judge(asked: &Asked<'_>, wire: &[u8]) -> Verdict {
    if read_u16(wire, 0) != Some(asked.id) {
        return Verdict::Wrong;
    }
    let verdict = worth(asked, wire);
    if asked.over == Over::Stream || matches!(verdict, Verdict::Wrong) || has_question(asked, wire) {
        return verdict;
    }
    Verdict::Unasked(Box::new(verdict))
}

/// Whether a message that may be no more than a part of one has the question, whatever its letters.
fn has_question(asked: &Asked<'_>, wire: &[u8]) -> bool {
    let qname = asked.qname.wire();
    let end = HEADER_BYTES + qname.len();
    read_u16(wire, 4).is_some_and(|count| count >= 1)
        && wire.get(HEADER_BYTES..end).is_some_and(|octets| octets.eq_ignore_ascii_case(qname))
        && (read_u16(wire, end), read_u16(wire, end + 2)) == (Some(asked.qtype.0), Some(asked.qclass.0))
}

/// What a message with the right id is worth, should it be genuine.
fn worth(asked: &Asked<'_>, wire: &[u8]) -> Verdict {
    let by_datagram = asked.over == Over::Udp;
    let Ok(received) = Response::read(wire) else {
        // Some servers cut a truncated response in the middle of a record.
        return match read_u16(wire, 2) {
            Some(flags) if by_datagram && flags & flag::QR != 0 && flags & flag::TC != 0 => {
                Verdict::Truncated(Rcode(flags & 0x0f))
            }
            _ => Verdict::Broken,
        };
    };
    let rcode = received.response.rcode();
    if received.response.flags() & OPCODE_BITS != 0 {
        return Verdict::Broken;
    }
    if received.has_question {
        match received.answers(asked.qname, asked.qtype, asked.qclass) {
            Match::Different if by_datagram => return Verdict::Wrong,
            Match::Different => return Verdict::Broken,
            Match::OtherLetters if by_datagram => return Verdict::Doubtful(Doubt::Letters),
            Match::OtherLetters | Match::Exact => {}
        }
    } else if settles(rcode) {
        // It says nothing of the name; but that there is more than a datagram holds.
        return match by_datagram && received.response.has_flag(flag::TC) {
            true => Verdict::Truncated(rcode),
            false => Verdict::Broken,
        };
    }
    if by_datagram && asked.edns {
        if received.cookie.is_empty() && asked.cookie.is_complete() {
            return Verdict::Doubtful(Doubt::Cookie);
        }
        if !received.cookie.is_empty() && !asked.cookie.is_repeated_by(&received.cookie) {
            return Verdict::Wrong;
        }
    }
    match rcode {
        Rcode::BADCOOKIE if asked.edns => Verdict::BadCookie(received),
        _ if is_complaint(rcode) && asked.edns => Verdict::WithoutEdns(received),
        _ if !settles(rcode) => Verdict::Failing(received),
        _ if by_datagram && received.response.has_flag(flag::TC) => Verdict::Truncated(rcode),
        _ if is_lame(&received.response) || is_void(&received.response) => Verdict::Failing(received),
        _ if is_beside_the_point(&received.response, asked.qname) => Verdict::Broken,
        _ => Verdict::Good(received),
    }
}

/// Whether a response code is how a server reacts to EDNS that it does not know (RFC 6891 §7).
pub(super) fn is_complaint(rcode: Rcode) -> bool {
    matches!(rcode, Rcode::FORMERR | Rcode::NOTIMP | Rcode::BADVERS)
}

/// Whether a response code says something of the name, not of the server. YXDOMAIN: a DNAME leads to a name too long.
fn settles(rcode: Rcode) -> bool {
    matches!(rcode, Rcode::NOERROR | Rcode::NXDOMAIN | Rcode::YXDOMAIN)
}

/// Whether this is a referral by a server that does not recurse. An empty response without SOA record is not: Consul
/// denies a type so.
fn is_lame(response: &Response) -> bool {
    let has = |rtype| response.records().any(|r| r.section == Section::Authority && r.rtype == rtype);
    response.rcode() == Rcode::NOERROR
        && response.counts()[0] == 0
        && !response.has_flag(flag::RA)
        && has(Rtype::NS)
        && !has(Rtype::SOA)
}

/// Whether all of it was cut off, even on a stream. What is left of a longer one is better than nothing: Consul cuts what
/// is above 64 KiB.
fn is_void(response: &Response) -> bool {
    response.has_flag(flag::TC) && response.counts()[0] == 0
}

/// Whether there are records in the answer section and none of them says anything of the name.
///
/// SOA, NS and DNAME records may be those of a name above: Consul answers so, and a DNAME speaks for the names below it.
fn is_beside_the_point(response: &Response, qname: &Name) -> bool {
    let says_something = |record: RecordView| {
        response.is_owned_by_qname(&record)
            || response.owner(&record).is_ok_and(|owner| match record.rtype {
                Rtype::SOA | Rtype::NS | Rtype::DNAME => qname.is_at_or_below(&owner),
                _ => *qname == owner,
            })
    };
    let mut answers = response.records().take_while(|record| record.section == Section::Answer).peekable();
    answers.peek().is_some() && !answers.any(says_something)
}

const HEADER_BYTES: usize = 12;
/// The opcode of QUERY is zero.
const OPCODE_BITS: u16 = 0x7800;

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{A, NS, OTHER_A, Reply, SOA, cookie_in},
        *,
    };
    use crate::wire::{UpstreamEdns, UpstreamQuery};

    fn flip_letters(question: &mut [u8]) {
        question.iter_mut().filter(|octet| octet.is_ascii_alphabetic()).for_each(|octet| *octet ^= 0x20);
    }

    #[test]
    fn a_reply_is_worth_what_it_says_and_proves() {
        let server_cookie = [&[7; 8][..], &[9; 8]].concat();
        let known = Cookie::new([7; 8]).completed_by(&server_cookie);
        let foreign = [[8; 8], [9; 8]].concat();
        type Case<'a> = (&'a str, fn(Reply) -> Reply, &'a str, &'a str);
        let cases: &[Case] = &[
            ("an answer", |r| r.record(0, A), "Good", "Good"),
            ("NXDOMAIN", |r| r.rcode(Rcode::NXDOMAIN).record(1, SOA), "Good", "Good"),
            ("NODATA", |r| r.record(1, SOA), "Good", "Good"),
            ("NODATA without SOA", |r| r, "Good", "Good"), // Consul's
            ("a name too long for DNAME", |r| r.rcode(Rcode::YXDOMAIN), "Good", "Good"),
            ("a lame referral", |r| r.record(1, NS).without_flag(flag::RA), "Failing", "Failing"),
            ("NODATA with NS and SOA", |r| r.record(1, NS).record(1, SOA).without_flag(flag::RA), "Good", "Good"),
            ("an answer without RA", |r| r.record(0, A).record(1, NS).without_flag(flag::RA), "Good", "Good"),
            ("SERVFAIL", |r| r.rcode(Rcode::SERVFAIL), "Failing", "Failing"),
            ("REFUSED", |r| r.rcode(Rcode::REFUSED), "Failing", "Failing"),
            ("NOTAUTH", |r| r.rcode(Rcode::NOTAUTH), "Failing", "Failing"),
            ("FORMERR", |r| r.rcode(Rcode::FORMERR).without_edns().without_question(), "Unasked", "WithoutEdns"),
            ("NOTIMP", |r| r.rcode(Rcode::NOTIMP).without_edns(), "WithoutEdns", "WithoutEdns"),
            ("BADVERS", |r| r.rcode(Rcode::BADVERS), "WithoutEdns", "WithoutEdns"),
            ("BADCOOKIE", |r| r.rcode(Rcode::BADCOOKIE), "BadCookie", "BadCookie"),
            ("REFUSED without question", |r| r.rcode(Rcode::REFUSED).without_question(), "Unasked", "Failing"),
            ("NOERROR without question", Reply::without_question, "Unasked", "Broken"),
            ("truncated without question", |r| r.flag(flag::TC).without_question(), "Unasked", "Broken"),
            ("SERVFAIL without question", |r| r.rcode(Rcode::SERVFAIL).without_question(), "Unasked", "Failing"),
            ("BADVERS without question", |r| r.rcode(Rcode::BADVERS).without_question(), "Unasked", "WithoutEdns"),
            ("cut, without question", |r| r.record(0, &A[..5]).without_edns().without_question(), "Unasked", "Broken"),
            ("truncated", |r| r.record(0, A).flag(flag::TC), "Truncated", "Good"),
            ("truncated and failing", |r| r.flag(flag::TC).rcode(Rcode::SERVFAIL), "Failing", "Failing"),
            ("truncated to nothing", |r| r.flag(flag::TC), "Truncated", "Failing"),
            ("an answer about another name", |r| r.record(0, OTHER_A), "Broken", "Broken"),
            ("another name before ours", |r| r.record(0, OTHER_A).record(0, A), "Good", "Good"),
            ("the SOA record of a name above", |r| r.record(0, SOA), "Good", "Good"), // Consul's
            ("a query", |r| r.without_flag(flag::QR), "Broken", "Broken"),
            ("another opcode", |r| r.flag(0x2000), "Broken", "Broken"),
            ("cut in a record", |r| r.record(0, &A[..5]).without_edns(), "Broken", "Broken"),
            ("truncated in a record", |r| r.flag(flag::TC).record(0, &A[..5]).without_edns(), "Truncated", "Broken"),
            ("another id", |r| r.record(0, A).id(|id| id ^ 1), "Wrong", "Wrong"),
            ("another type", |r| r.question(|q| q.splice(17.., [0, 28, 0, 1]).for_each(drop)), "Wrong", "Broken"),
            ("another name", |r| r.question(|q| q[1] = b'x'), "Wrong", "Broken"),
            ("other letters", |r| r.question(|q| flip_letters(q)), "Doubtful", "Good"),
        ];
        let qname: Name = "Www.eXample.org".parse().unwrap();
        let judged = |query: &[u8], cookie: &Cookie, over, reply: fn(Reply) -> Reply, option: &[u8]| {
            let (qtype, qclass) = (Rtype::A, Class::IN);
            let asked = Asked { id: 4711, qname: &qname, qtype, qclass, over, edns: true, cookie };
            let reply = reply(Reply::to(query));
            let reply = if option.is_empty() { reply } else { reply.cookie(option) };
            let verdict = format!("{:?}", judge(&asked, &reply.wire()));
            verdict.split('(').next().unwrap().to_owned()
        };
        let query = |cookie: &Cookie| {
            let edns = UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: cookie.octets() };
            let (qtype, qclass) = (Rtype::A, Class::IN);
            let query =
                UpstreamQuery { id: 4711, qname: &qname, qtype, qclass, checking_disabled: false, edns: Some(edns) };
            let mut wire = Vec::new();
            query.write(&mut wire);
            wire
        };
        let fresh = Cookie::new([7; 8]);
        let wire = query(&fresh);
        assert_eq!(cookie_in(&wire), [7; 8]);
        for &(fault, reply, by_udp, by_stream) in cases {
            assert_eq!(judged(&wire, &fresh, Over::Udp, reply, &[]), by_udp, "{fault}, by UDP");
            assert_eq!(judged(&wire, &fresh, Over::Stream, reply, &[]), by_stream, "{fault}, by stream");
        }
        // Cookies: what the server is known to send, what comes, and what that is worth.
        for (cookie, option, by_udp) in [
            (&fresh, &[][..], "Good"),
            (&fresh, &server_cookie, "Good"),
            (&fresh, &foreign, "Wrong"),
            (&known, &server_cookie, "Good"),
            (&known, &[7; 8], "Good"), // ours alone is proof enough
            (&known, &foreign, "Wrong"),
            (&known, &[], "Doubtful"),
        ] {
            let wire = query(cookie);
            assert_eq!(judged(&wire, cookie, Over::Udp, |r| r, option), by_udp, "{cookie:?} {option:?}");
            assert_eq!(judged(&wire, cookie, Over::Stream, |r| r, option), "Good", "{cookie:?} {option:?}");
        }
    }
}
