//! How long a response may be answered from the cache.
//!
//! A response lives as long as its smallest TTL, in whatever section that stands: nothing in it is given to a client
//! past its time (RFC 2181 §8, RFC 1035 §3.2.1). A TTL above 2^31-1 is 0 (RFC 2181 §8), and the TTLs of one RRset are the
//! smallest of them (RFC 2181 §5.2). A TTL of 0 serves those who wait for the response, and is not kept. Nor is what is
//! truncated: what is missing from it is unknown (RFC 2181 §9).
//!
//! For a negative answer the TTL of its SOA record is the smaller of that and the SOA minimum; without an SOA record
//! it is not kept (RFC 2308 §5). A referral is none of our answers, and not kept either.
//!
//! Past its life a response may be given, with a TTL of 30 s, if no upstream answers (RFC 8767 §4), for as long as the
//! rule that it came by allows.
//!
//! A failure is no answer and has no TTL. It is kept for 1 s, and longer if it is followed by others, so that a dead
//! upstream is not asked for every query (RFC 9520 §3.2: at least 1 s, at most 5 min, growing).

use std::{collections::HashMap, time::Duration};

use crate::{
    clock::Moment,
    wire::{Name, Rcode, RecordView, Response, Rtype, Section, flag, read_u16},
};

/// The bounds that a rule sets to the lives of what it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Smaller TTLs, 0 included, are raised to this; not the SOA's of a negative answer. Not above `max_ttl`.
    pub min_ttl: Duration,
    /// Larger TTLs are lowered to this.
    pub max_ttl: Duration,
    /// The SOA TTL of a negative answer is lowered to this.
    pub max_negative_ttl: Duration,
    /// How long an answer may be given past its life if the upstreams fail; zero for not at all.
    pub serve_stale: Duration,
}

/// How long an entry may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// An upstream's: its TTLs count down.
    Timed {
        /// From the insertion on.
        fresh: Duration,
        /// From then on.
        stale: Duration,
    },
    /// Local data: its TTLs stand still, and it lives until its rule's identity is gone or what it was made of changes.
    Local {
        /// Until then at the most.
        until: Option<Moment>,
    },
}

/// How long the response may be kept under `policy`; `None` if not at all.
///
/// It makes no difference whether [`clamp`] came before.
pub fn lifetime(response: &Response, policy: &Policy) -> Option<Life> {
    if response.has_flag(flag::TC) || !is_answer(response) {
        return None;
    }
    let bounds = Bounds::of(response, policy);
    if bounds.is_negative && bounds.soa.is_none() {
        return None;
    }
    let smallest = response.records().map(|record| bounds.ttl(&record)).min()?;
    let fresh = Duration::from_secs(smallest.into());
    (smallest > 0).then_some(Life::Timed { fresh, stale: policy.serve_stale })
}

/// Writes the TTLs that clients are given, from the cache or not.
pub fn clamp(response: &mut Response, policy: &Policy) {
    let bounds = Bounds::of(response, policy);
    let mut first = None;
    let mut is_level = true;
    response.map_ttls(|record| {
        let ttl = bounds.ttl(record);
        is_level &= *first.get_or_insert(ttl) == ttl;
        ttl
    });
    if !is_level {
        let mut ttls: Vec<u32> = response.records().map(|record| record.ttl).collect();
        level_rrsets(response, &mut ttls);
        let mut ttls = ttls.into_iter();
        response.map_ttls(|record| ttls.next().unwrap_or(record.ttl));
    }
}

/// How long the last of so many failures in a row is kept.
pub(super) fn failure_life(consecutive: u8) -> Duration {
    Duration::from_secs(match consecutive {
        0 | 1 => 1,
        2 => 2,
        3 => 4,
        _ => 5,
    })
}

/// Whether the response says that the name lacks the type asked for, at the end of a CNAME chain or not (RFC 2308 §2.2).
pub fn is_nodata(response: &Response) -> bool {
    let question = response.question_bytes();
    let qtype = question.len().checked_sub(4).and_then(|at| read_u16(question, at)).map(Rtype);
    let settles = |record: RecordView| {
        record.section == Section::Answer && qtype.is_none_or(|qtype| qtype == record.rtype || qtype.is_meta())
    };
    response.rcode() == Rcode::NOERROR && !response.records().any(settles)
}

/// Errors settle nothing; what they say of an upstream is not said of the name.
fn is_answer(response: &Response) -> bool {
    matches!(response.rcode(), Rcode::NOERROR | Rcode::NXDOMAIN)
}

/// What one response's TTLs have to keep to.
struct Bounds {
    is_negative: bool,
    /// The bound on the SOA record of a negative answer; `None` for others.
    soa: Option<u32>,
    min: u32,
    max: u32,
}

impl Bounds {
    fn of(response: &Response, policy: &Policy) -> Self {
        let seconds = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(MAX_TTL).min(MAX_TTL);
        let max = seconds(policy.max_ttl);
        let is_negative = response.rcode() == Rcode::NXDOMAIN || is_nodata(response);
        let soa = if is_negative { response.soa() } else { None };
        Self {
            is_negative,
            soa: soa.map(|(_, minimum)| written(minimum).min(seconds(policy.max_negative_ttl))),
            min: seconds(policy.min_ttl).min(max),
            max,
        }
    }

    fn ttl(&self, record: &RecordView) -> u32 {
        let ttl = written(record.ttl);
        match self.soa {
            Some(bound) if is_soa(record) => ttl.min(bound).min(self.max),
            _ => ttl.clamp(self.min, self.max),
        }
    }
}

fn is_soa(record: &RecordView) -> bool {
    record.section == Section::Authority && record.rtype == Rtype::SOA
}

/// A TTL as it counts (RFC 2181 §8).
fn written(ttl: u32) -> u32 {
    if ttl > MAX_TTL { 0 } else { ttl }
}

/// Gives all records of an RRset the smallest TTL among them (RFC 2181 §5.2).
fn level_rrsets(response: &Response, ttls: &mut [u32]) {
    // RRSIG records that cover different types are no RRset (RFC 4034 §3).
    let kind = |record: &RecordView| {
        let covered = match record.rtype {
            Rtype::RRSIG | Rtype::SIG => read_u16(response.message(), record.rdata.start),
            _ => None,
        };
        (record.section as u8, record.rtype.0, record.class.0, covered)
    };
    // Almost no response needs this: see first without reading names. A CNAME is alone at its owner.
    let several = |record: &RecordView| !matches!(record.rtype, Rtype::CNAME | Rtype::SOA);
    let records = || response.records().zip(0..).filter(|(record, _)| several(record));
    let mut kinds: Vec<_> = records().map(|(record, at)| (kind(&record), ttls.get(at))).collect();
    kinds.sort_unstable();
    if !kinds.windows(2).any(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1) {
        return;
    }
    let rrset = |record: &RecordView| (kind(record), response.owner(record).unwrap_or_else(|_| Name::root()));
    let mut smallest = HashMap::new();
    for (record, at) in records() {
        let least = smallest.entry(rrset(&record)).or_insert(ttls[at]);
        *least = ttls[at].min(*least);
    }
    for (record, at) in records() {
        ttls[at] = smallest[&rrset(&record)];
    }
}

/// The TTL that a stale answer is given with (RFC 8767 §4).
pub const STALE_TTL_SECS: u32 = 30;
/// A failure within this time after the end of the last one follows it.
pub(super) const FAILURE_MEMORY: Duration = Duration::from_secs(30);
/// The largest TTL (RFC 2181 §8).
const MAX_TTL: u32 = (1 << 31) - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Answer, Class, Question, Record, Soa};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn policy() -> Policy {
        Policy { min_ttl: secs(0), max_ttl: secs(86_400), max_negative_ttl: secs(3600), serve_stale: secs(600) }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn record(owner: &str, rtype: Rtype, ttl: u32) -> Record {
        match rtype {
            Rtype::CNAME => Record::new(name(owner), rtype, ttl, name("target.example").wire()),
            _ => Record::new(name(owner), rtype, ttl, [192, 0, 2, 1]),
        }
    }

    fn a(ttl: u32) -> Record {
        record("www.example", Rtype::A, ttl)
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let [mname, rname] = ["ns.example", "root.example"].map(name);
        let soa = Soa { mname, rname, serial: 1, refresh: 2, retry: 3, expire: 4, minimum };
        Record { ttl, ..soa.record(name("example")) }
    }

    fn response(qtype: Rtype, rcode: Rcode, sections: [&[Record]; 3]) -> Response {
        let [answer, authority, additional] = sections.map(<[Record]>::to_vec);
        let question = Question { qname: name("www.example"), qtype, qclass: Class::IN };
        Answer { rcode, authoritative: true, answer, authority, additional }.encode(&question)
    }

    /// The seconds that a response is fresh, and whether clamping first makes a difference.
    fn fresh(response: &Response, policy: &Policy) -> Option<u64> {
        let life = lifetime(response, policy);
        let mut clamped = response.clone();
        clamp(&mut clamped, policy);
        assert_eq!(lifetime(&clamped, policy), life);
        match life? {
            Life::Timed { fresh, stale } => {
                assert_eq!(stale, policy.serve_stale);
                Some(fresh.as_secs())
            }
            Life::Local { .. } => unreachable!("what an upstream says is never local"),
        }
    }

    #[test]
    fn a_response_lives_as_its_records_allow() {
        const OK: Rcode = Rcode::NOERROR;
        const NX: Rcode = Rcode::NXDOMAIN;
        let cname = |ttl| record("www.example", Rtype::CNAME, ttl);
        let glue = |ttl| record("ns.example", Rtype::A, ttl);
        let ns = |ttl| record("example", Rtype::NS, ttl);
        for (rule, qtype, rcode, sections, expected) in [
            ("1035 §3.2.1: its TTL", Rtype::A, OK, [&[a(60)][..], &[], &[]], Some(60)),
            ("2181 §5.2: the smallest of an RRset", Rtype::A, OK, [&[a(60), a(30)], &[], &[]], Some(30)),
            ("1034 §3.6.2: the smallest of a chain", Rtype::A, OK, [&[cname(10), a(60)], &[], &[]], Some(10)),
            ("2181 §8: in every section", Rtype::A, OK, [&[a(60)], &[ns(50)], &[glue(5)]], Some(5)),
            ("2181 §8: 2^31-1 is a TTL", Rtype::A, OK, [&[a(0x7fff_ffff)], &[], &[]], Some(86_400)),
            ("2181 §8: 2^31 is 0", Rtype::A, OK, [&[a(0x8000_0000)], &[], &[]], None),
            ("1035 §3.2.1: 0 is not kept", Rtype::A, OK, [&[a(60), a(0)], &[], &[]], None),
            ("1035 §3.2.3: ANY is settled by any type", Rtype::ANY, OK, [&[a(60)], &[], &[]], Some(60)),
            ("1034 §3.6.2: CNAME by the CNAME", Rtype::CNAME, OK, [&[cname(60)], &[], &[]], Some(60)),
            ("2308 §5: NXDOMAIN by the SOA minimum", Rtype::A, NX, [&[], &[soa(900, 300)], &[]], Some(300)),
            ("2308 §5: or the SOA's TTL", Rtype::A, NX, [&[], &[soa(200, 300)], &[]], Some(200)),
            ("2308 §5: NODATA likewise", Rtype::A, OK, [&[], &[soa(900, 300)], &[]], Some(300)),
            ("2308 §5: at most max_negative_ttl", Rtype::A, OK, [&[], &[soa(9000, 9000)], &[]], Some(3600)),
            ("2308 §5: a minimum of 0", Rtype::A, NX, [&[], &[soa(900, 0)], &[]], None),
            ("2308 §5: NXDOMAIN without SOA", Rtype::A, NX, [&[], &[], &[]], None),
            ("2308 §5: NODATA without SOA", Rtype::A, OK, [&[], &[], &[glue(60)]], None),
            ("2308 §2.2: a chain that ends in NODATA", Rtype::A, OK, [&[cname(60)], &[soa(9, 9)], &[]], Some(9)),
            ("2308 §2.2: no longer than its CNAME", Rtype::A, OK, [&[cname(6)], &[soa(9, 9)], &[]], Some(6)),
            ("2308 §5: a chain that leads nowhere", Rtype::A, OK, [&[cname(60)], &[], &[]], None),
            ("2308 §2.2: a referral", Rtype::A, OK, [&[], &[ns(60)], &[glue(60)]], None),
            ("2308 §3: the SOA of a positive answer", Rtype::A, OK, [&[a(60)], &[soa(900, 1)], &[]], Some(60)),
            ("9520 §3.2: SERVFAIL is no answer", Rtype::A, Rcode::SERVFAIL, [&[], &[soa(9, 9)], &[]], None),
            ("9520 §3.2: nor is REFUSED", Rtype::A, Rcode::REFUSED, [&[a(60)], &[], &[]], None),
        ] {
            assert_eq!(fresh(&response(qtype, rcode, sections), &policy()), expected, "RFC {rule}");
        }
    }

    #[test]
    fn a_truncated_response_is_not_kept() {
        let mut response = response(Rtype::A, Rcode::NOERROR, [&[a(60)], &[], &[]]);
        response.set_flag(flag::TC, true);
        assert_eq!(lifetime(&response, &policy()), None);
    }

    #[test]
    fn caps_bound_what_is_kept_and_what_is_told() {
        let positive = |ttl| response(Rtype::A, Rcode::NOERROR, [&[a(ttl)], &[], &[]]);
        let negative = |ttl, minimum| response(Rtype::A, Rcode::NXDOMAIN, [&[], &[soa(ttl, minimum)], &[]]);
        let policy = Policy { min_ttl: secs(5), max_ttl: secs(100), max_negative_ttl: secs(50), ..policy() };
        for (case, mut response, expected) in [
            ("within", positive(60), 60),
            ("above max_ttl", positive(101), 100),
            ("below min_ttl", positive(4), 5),
            ("0 is below min_ttl", positive(0), 5),
            ("negative within", negative(40, 30), 30),
            ("negative above max_negative_ttl", negative(80, 70), 50),
            ("a negative answer knows no min_ttl", negative(80, 2), 2),
        ] {
            assert_eq!(fresh(&response, &policy), Some(expected), "{case}");
            clamp(&mut response, &policy);
            assert_eq!(response.records().next().unwrap().ttl, expected as u32, "{case}");
        }
    }

    #[test]
    fn an_rrset_is_told_with_one_ttl() {
        let mail = |ttl| record("mail.example", Rtype::A, ttl);
        let rrsig = |covered: u16, ttl| {
            Record::new(name("www.example"), Rtype::RRSIG, ttl, [&covered.to_be_bytes()[..], &[0; 17]].concat())
        };
        let answer = [a(60), a(30), mail(20), a(40), rrsig(1, 60), rrsig(5, 10)];
        let mut response = response(Rtype::A, Rcode::NOERROR, [&answer, &[], &[a(50)]]);
        clamp(&mut response, &policy());
        let ttls: Vec<u32> = response.records().map(|record| record.ttl).collect();
        assert_eq!(ttls, [30, 30, 20, 30, 60, 10, 50]);
    }

    #[test]
    fn failures_in_a_row_are_kept_longer_up_to_a_bound() {
        let lives: Vec<u64> = (1..7).map(|consecutive| failure_life(consecutive).as_secs()).collect();
        assert_eq!(lives, [1, 2, 4, 5, 5, 5]);
    }
}
