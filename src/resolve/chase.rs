//! A CNAME that leads to another rule is followed there, and one whose target the response says nothing of is followed, too.
//!
//! Whoever answers a name has a say over that name, not over where its CNAME leads. So an upstream's answer is cut at the
//! first target that another rule owns, what it said beyond that is dropped, and the target is asked where it belongs. The
//! chain so far travels with the query, and becomes the front of the assembled answer. An upstream may also stop at a CNAME
//! that stays with its own rule, as servers that do not recurse do: then the target is asked of the same rule.

use std::time::Duration;

use super::tables::{Reach, Sharing};
use crate::{
    cache::{Life, Marks, Policy, lifetime},
    clock::Moment,
    wire::{Answer, ExtendedError, Name, NameError, Question, Rcode, Record, Response, Rtype, Section, Shape, flag},
};

/// The way from a question to its answer, from rule to rule.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    /// What the client asked.
    question: Question,
    /// The target of the last CNAME, under which the rest is to be asked.
    target: Option<Question>,
    records: Vec<Record>,
    extended_errors: Vec<u8>,
    seen: Vec<Name>,
    /// Whether overlays have a say over the name asked at present.
    reach: Reach,
    /// How long the forwarded parts live; `None` while all of it is local.
    span: Option<Span>,
    /// All parts so far are forwarded ones that were validated (AD).
    is_authentic: bool,
    /// Until when the local parts hold at the most.
    until: Option<Moment>,
    /// What the parts that come from the catalog were made of.
    marks: Marks,
    sharing: Sharing,
}

/// What one rule said to the name asked at present.
pub(super) enum Said {
    /// Local data.
    Local(Answer),
    /// The catalog, whose instances take turns.
    Catalog(Answer, Shape),
    /// An upstream, and within which bounds that may be kept.
    Forwarded(Response, Policy),
}

/// How long a forwarded response lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    fresh: Duration,
    stale: Duration,
}

/// The end of the way.
#[derive(Debug)]
pub(super) struct Arrival {
    /// What the client is told.
    pub response: Response,
    /// How long it may be kept; `None` for not at all.
    pub life: Option<Life>,
    /// Until when its local parts hold at the most.
    pub until: Option<Moment>,
    /// Whether names led on to others in it, so that it is void when any rule changes.
    pub chained: bool,
    /// What its parts from the catalog were made of.
    pub marks: Marks,
    /// With whom it may be shared.
    pub sharing: Sharing,
}

/// Why a chain is not followed further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Broken {
    #[error("the CNAME chain leads back into itself")]
    Loop,
    #[error("the CNAME chain leads on more than {MOST_STEPS} times")]
    Long,
    #[error("a response holds a CNAME chain of more than {MOST_LINKS} records")]
    Links,
    #[error("the response holds a malformed name")]
    Malformed(#[from] NameError),
}

impl Walk {
    pub fn new(question: Question) -> Self {
        Self {
            question,
            target: None,
            records: Vec::new(),
            extended_errors: Vec::new(),
            seen: Vec::new(),
            reach: Reach::Overlays,
            span: None,
            is_authentic: true,
            until: None,
            marks: Marks::default(),
            sharing: Sharing::All,
        }
    }

    /// What is to be asked at present.
    pub fn asked(&self) -> &Question {
        self.target.as_ref().unwrap_or(&self.question)
    }

    /// Whether the question itself is still what is asked.
    pub fn is_at_start(&self) -> bool {
        self.seen.is_empty()
    }

    /// Whether overlays have a say over the name asked at present.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Notes whether they have a say over what comes next.
    pub fn set_reach(&mut self, reach: Reach) {
        self.reach = reach;
    }

    /// With whom what is known so far may be shared.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Notes with whom a part may be shared.
    pub fn share(&mut self, sharing: Sharing) {
        self.sharing = self.sharing.max(sharing);
    }

    /// Notes until when a local part holds.
    pub fn hold_until(&mut self, until: Option<Moment>) {
        self.until = [self.until, until].into_iter().flatten().min();
    }

    /// What the parts from the catalog were made of.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Notes what a part was made of.
    pub fn mark(&mut self, marks: Marks) {
        if !marks.places.is_empty() {
            self.marks.add(marks.version, marks.places);
        }
    }

    /// Adds an extended error that says why the answer is what it will be.
    pub fn explain(&mut self, code: u16, text: &str) {
        ExtendedError { code, text: text.to_owned() }.encode(&mut self.extended_errors);
    }

    /// Takes in what was said to the name asked at present. `stays` tells whether the same speaker owns a target.
    ///
    /// `None` if another name is to be asked now.
    pub fn take_in(&mut self, said: Said, stays: impl Fn(&Name) -> bool) -> Result<Option<Arrival>, Broken> {
        let left = match &said {
            // A zone says what it has, a circle included.
            Said::Local(answer) | Said::Catalog(answer, _) => leaving(
                self.asked(),
                &answer.answer,
                |target| {
                    // A zone follows its own names; where it stopped with nothing said about the target, others go on.
                    !answer.authority.is_empty() || answer.answer.iter().any(|record| record.owner == *target)
                },
                |_| true,
            )
            .unwrap_or(None),
            Said::Forwarded(response, _) => {
                let settles = |target: &Name| settles(response, self.asked().qtype, target);
                leaving(self.asked(), &aliases(response)?, stays, settles)?
            }
        };
        match left {
            Some(left) => self.follow(left, said).map(|()| None),
            None => self.arrive(said).map(Some),
        }
    }

    /// What is known so far, as an answer: for those who want nobody asked.
    pub fn so_far(self) -> Response {
        self.assemble(Answer::default(), None, &[])
    }

    /// The answer when the way ends here.
    pub fn broken(&self, broken: Broken) -> Arrival {
        self.error(Rcode::SERVFAIL, 0, &broken.to_string())
    }

    /// An answer that only says why there is none.
    pub fn error(&self, rcode: Rcode, code: u16, text: &str) -> Arrival {
        let error = ExtendedError { code, text: text.to_owned() };
        Arrival {
            response: Response::error(&self.question, rcode, &[error]),
            life: None,
            until: None,
            chained: false,
            marks: self.marks.clone(),
            sharing: self.sharing,
        }
    }

    fn follow(&mut self, left: Leaving, said: Said) -> Result<(), Broken> {
        self.seen.push(self.asked().qname.clone());
        self.is_authentic &= said.is_authentic();
        if let Said::Forwarded(response, policy) = said {
            self.extended_errors.extend_from_slice(response.extended_errors());
            // What was cut off has no say over how long the rest lives.
            let fresh = left.records.iter().map(|record| record.ttl).min().unwrap_or(0);
            self.bound(Span { fresh: Duration::from_secs(fresh.into()), stale: policy.serve_stale });
        }
        self.records.extend(left.records);
        if self.seen.contains(&left.target) {
            return Err(Broken::Loop);
        }
        if self.seen.len() > MOST_STEPS {
            return Err(Broken::Long);
        }
        self.target = Some(Question { qname: left.target, ..self.question.clone() });
        Ok(())
    }

    fn arrive(&mut self, said: Said) -> Result<Arrival, Broken> {
        self.is_authentic &= said.is_authentic();
        let (answer, shape, extended_errors) = match said {
            // One speaker said all of it: it is relayed as it came.
            Said::Forwarded(response, policy) if self.is_at_start() => {
                let life = lifetime(&response, &policy);
                let chained = response.records().any(|r| matches!(r.rtype, Rtype::CNAME | Rtype::DNAME));
                let marks = std::mem::take(&mut self.marks);
                return Ok(Arrival { response, life, until: None, chained, marks, sharing: self.sharing });
            }
            Said::Forwarded(response, policy) => {
                self.bound(Span::of(lifetime(&response, &policy)));
                (response.to_answer()?, None, response.extended_errors().to_vec())
            }
            Said::Local(answer) => (answer, None, Vec::new()),
            Said::Catalog(answer, shape) => (answer, Some(shape), Vec::new()),
        };
        let chained = !self.is_at_start();
        let life = self.span.map_or(Some(Life::Local { until: self.until }), Span::life);
        let (until, sharing) = (self.until, self.sharing);
        let mut walk = std::mem::replace(self, Self::new(self.question.clone()));
        let marks = std::mem::take(&mut walk.marks);
        let response = walk.assemble(answer, shape, &extended_errors);
        Ok(Arrival { response, life, until, chained, marks, sharing })
    }

    fn bound(&mut self, span: Span) {
        let so_far = self.span.unwrap_or(span);
        self.span = Some(Span { fresh: so_far.fresh.min(span.fresh), stale: so_far.stale.min(span.stale) });
    }

    /// The chain, then what the last name's rule said.
    ///
    /// AA only if all of it is local; AD only if each part came with it (RFC 4035 §3.2.3).
    fn assemble(mut self, last: Answer, shape: Option<Shape>, extended_errors: &[u8]) -> Response {
        let authoritative = last.authoritative && self.span.is_none();
        let before = self.records.len();
        self.records.extend(last.answer);
        let answer = Answer { authoritative, answer: self.records, ..last };
        let rotating = shape.and_then(|shape| {
            let rotating = shape.rotating.start + before..shape.rotating.end + before;
            answer.encode_rotating(&self.question, &Shape { rotating, ..shape })
        });
        let mut response = rotating.unwrap_or_else(|| answer.encode(&self.question));
        response.set_flag(flag::AD, self.is_authentic && self.span.is_some());
        response.add_encoded_errors(&self.extended_errors);
        response.add_encoded_errors(extended_errors);
        response
    }
}

impl Said {
    /// Whether it says that the name asked does not exist, and not one that a CNAME leads to.
    pub fn denies(&self, asked: &Question) -> bool {
        match self {
            Self::Local(answer) | Self::Catalog(answer, _) => {
                answer.rcode == Rcode::NXDOMAIN && answer.answer.iter().all(|record| record.owner != asked.qname)
            }
            Self::Forwarded(response, _) => response.rcode() == Rcode::NXDOMAIN && response.counts()[0] == 0,
        }
    }

    /// NODATA instead of NXDOMAIN. Nobody has validated that, and proofs of the contrary are left out.
    pub fn without_denial(self) -> Self {
        let keep_soa = |answer: Answer| {
            let mut authority = answer.authority;
            authority.retain(|record| record.rtype == Rtype::SOA);
            Answer { rcode: Rcode::NOERROR, authority, ..answer }
        };
        match self {
            Self::Local(answer) => Self::Local(keep_soa(answer)),
            Self::Catalog(answer, shape) => Self::Catalog(keep_soa(answer), shape),
            Self::Forwarded(response, policy) => Self::Forwarded(response.into_nodata(), policy),
        }
    }

    /// Whether all of it was validated by an upstream that is trusted with that.
    fn is_authentic(&self) -> bool {
        matches!(self, Self::Forwarded(response, _) if response.has_flag(flag::AD))
    }
}

impl Span {
    /// Of a response that may live for `life`.
    fn of(life: Option<Life>) -> Self {
        match life {
            Some(Life::Timed { fresh, stale }) => Self { fresh, stale },
            _ => Self { fresh: Duration::ZERO, stale: Duration::ZERO },
        }
    }

    fn life(self) -> Option<Life> {
        (!self.fresh.is_zero()).then_some(Life::Timed { fresh: self.fresh, stale: self.stale })
    }
}

/// Where an answer crosses into another rule, or stops short.
#[derive(Debug, PartialEq, Eq)]
struct Leaving {
    /// The records that lead there: CNAME and DNAME with their signatures.
    records: Vec<Record>,
    /// The name to be asked next.
    target: Name,
}

/// The records of an answer section that a chain is made of.
fn aliases(response: &Response) -> Result<Vec<Record>, NameError> {
    let answers = || response.records().filter(|record| record.section == Section::Answer);
    if !answers().any(|record| record.rtype == Rtype::CNAME) {
        return Ok(Vec::new());
    }
    let is_alias = |rtype| matches!(rtype, Rtype::CNAME | Rtype::DNAME | Rtype::RRSIG);
    answers().filter(|record| is_alias(record.rtype)).map(|record| response.record(&record)).collect()
}

/// Whether a response says what there is at the name that its chain ends with: data, a denial, or an error.
fn settles(response: &Response, qtype: Rtype, last: &Name) -> bool {
    response.rcode() != Rcode::NOERROR
        || response.records().any(|record| match (record.section, record.rtype) {
            (Section::Answer, rtype) => rtype == qtype && response.owner(&record).is_ok_and(|owner| owner == *last),
            // The target lacks the type (RFC 2308 §2.2).
            (Section::Authority, Rtype::SOA) => response.owner(&record).is_ok_and(|apex| last.is_at_or_below(&apex)),
            _ => false,
        })
}

/// Follows the chain in an answer section up to the first target for which `stays` is false, or to its end if that is not
/// settled.
///
/// `None` if there is no chain, or nothing beyond it to be asked: then the answer is to be relayed as it is.
fn leaving(
    asked: &Question,
    answer: &[Record],
    stays: impl Fn(&Name) -> bool,
    settles: impl Fn(&Name) -> bool,
) -> Result<Option<Leaving>, Broken> {
    if matches!(asked.qtype, Rtype::CNAME | Rtype::ANY | Rtype::RRSIG) {
        return Ok(None);
    }
    let mut current = asked.qname.clone();
    let mut records = Vec::new();
    for _ in 0..=answer.len().min(MOST_LINKS) {
        let cname = answer.iter().find(|record| record.rtype == Rtype::CNAME && record.owner == current);
        let Some(target) = cname.and_then(Record::target) else {
            let is_unsettled = !records.is_empty() && !settles(&current);
            return Ok(is_unsettled.then_some(Leaving { records, target: current }));
        };
        let leads = |record: &&Record| match if record.rtype == Rtype::RRSIG { covered(record) } else { record.rtype } {
            Rtype::CNAME => record.owner == current,
            Rtype::DNAME => current != record.owner && current.is_at_or_below(&record.owner),
            _ => false,
        };
        records.extend(answer.iter().filter(leads).cloned());
        let target = target.to_lower();
        if !stays(&target) {
            return Ok(Some(Leaving { records, target }));
        }
        current = target;
    }
    Err(if answer.len() > MOST_LINKS { Broken::Links } else { Broken::Loop })
}

/// The type that an RRSIG record signs (RFC 4034 §3.1.1).
fn covered(rrsig: &Record) -> Rtype {
    rrsig.rdata.first_chunk().map_or(Rtype(0), |octets| Rtype(u16::from_be_bytes(*octets)))
}

/// How often a chain is followed by asking again. BIND follows 11 CNAME records, Unbound as many as in these steps.
const MOST_STEPS: usize = 16;
/// Longest way within a response. Recursors stop at 11 or 16; one of the thousands that a message over TCP can hold would
/// be walked again and again for each of them.
pub(super) const MOST_LINKS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Class;

    const POLICY: Policy = Policy {
        min_ttl: Duration::ZERO,
        max_ttl: Duration::from_secs(9),
        max_negative_ttl: Duration::ZERO,
        serve_stale: Duration::from_secs(90),
    };
    const LIFE: Option<Life> = Some(Life::Timed { fresh: Duration::from_secs(9), stale: Duration::from_secs(90) });

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn question(qname: &str, qtype: Rtype) -> Question {
        Question { qname: name(qname), qtype, qclass: Class::IN }
    }

    fn cname(owner: &str, target: &str) -> Record {
        Record::new(name(owner), Rtype::CNAME, 60, name(target).wire())
    }

    fn address(owner: &str) -> Record {
        Record::new(name(owner), Rtype::A, 60, [192, 0, 2, 1])
    }

    fn answer(records: &[Record]) -> Answer {
        Answer { answer: records.to_vec(), ..Answer::default() }
    }

    /// What an upstream says to `question`.
    fn forwarded(question: &Question, records: &[Record]) -> Said {
        let mut response = answer(records).encode(question);
        response.set_flag(flag::AA, false);
        Said::Forwarded(response, POLICY)
    }

    #[test]
    fn an_answer_is_cut_at_the_first_name_of_another_rule() {
        let asked = question("a.example", Rtype::A);
        let chain = [
            cname("a.example", "b.example"),
            cname("b.example", "x.corp.test"),
            cname("x.corp.test", "y.corp.test"),
            address("y.corp.test"),
        ];
        let ours = |target: &Name| target.is_at_or_below(&name("example"));
        let mut walk = Walk::new(asked.clone());
        assert!(walk.take_in(forwarded(&asked, &chain), ours).unwrap().is_none());
        assert_eq!(walk.asked(), &question("x.corp.test", Rtype::A));
        let end = walk.take_in(Said::Local(answer(&[address("x.corp.test")])), |_| true).unwrap().unwrap();
        let whole = end.response.to_answer().unwrap();
        assert_eq!(whole.answer, [chain[0].clone(), chain[1].clone(), address("x.corp.test")]);
        assert!(end.chained && !whole.authoritative);
        assert_eq!(end.life, Some(Life::Timed { fresh: Duration::from_secs(60), stale: Duration::from_secs(90) }));
    }

    #[test]
    fn an_answer_that_stays_with_its_rule_is_relayed_as_it_came() {
        let chain = [cname("a.example", "b.example"), address("b.example"), address("unrelated.example")];
        for (asked, stays) in [
            (question("a.example", Rtype::A), true),
            (question("a.example", Rtype::CNAME), false), // asked for the CNAME itself, nothing is chased
            (question("c.example", Rtype::A), false),     // the chain does not start at the name
        ] {
            let mut walk = Walk::new(asked.clone());
            let Said::Forwarded(response, _) = forwarded(&asked, &chain) else { unreachable!() };
            let end = walk.take_in(forwarded(&asked, &chain), |_| stays).unwrap().unwrap();
            assert_eq!(end.response, response, "{asked:?}");
        }
    }

    #[test]
    fn a_circle_inside_one_answer_is_a_failure_unless_it_leads_to_another_rule() {
        for (first, circle) in [
            ("a.example", &[cname("a.example", "a.example")][..]),
            ("a.example", &[cname("a.example", "b.example"), cname("b.example", "a.example")]),
            (
                "c.example",
                &[cname("c.example", "a.example"), cname("a.example", "b.example"), cname("b.example", "a.example")],
            ),
        ] {
            let asked = question(first, Rtype::A);
            let found = Walk::new(asked.clone()).take_in(forwarded(&asked, circle), |_| true);
            assert_eq!(found.unwrap_err(), Broken::Loop, "{circle:?}");
            let other = |target: &Name| *target != name("b.example");
            let found = Walk::new(asked.clone()).take_in(forwarded(&asked, circle), other);
            assert_eq!(found.is_ok_and(|end| end.is_none()), circle.len() > 1, "{circle:?}");
            // Local data is relayed as it stands.
            let local = Said::Local(answer(circle));
            assert!(Walk::new(asked).take_in(local, |_| true).unwrap().is_some());
        }
    }

    #[test]
    fn a_dname_and_its_signature_stay_with_their_cname() {
        let mut signature = address("d.example");
        signature.rtype = Rtype::RRSIG;
        signature.rdata = [0u8, 39].into();
        let dname = Record::new(name("d.example"), Rtype::DNAME, 60, name("corp.test").wire());
        let chain = [dname, signature, cname("x.d.example", "x.corp.test")];
        let left = leaving(&question("x.d.example", Rtype::A), &chain, |_| false, |_| true).unwrap().unwrap();
        assert_eq!(left.records, chain);
    }

    #[test]
    fn a_chain_ends_after_sixteen_steps_or_in_a_circle() {
        let step = |walk: &mut Walk, from: &str, to: &str| {
            walk.take_in(Said::Local(answer(&[cname(from, to)])), |_| true).map(|end| end.is_none())
        };
        let mut walk = Walk::new(question("a.test", Rtype::A));
        assert_eq!(step(&mut walk, "a.test", "b.test"), Ok(true));
        assert_eq!(step(&mut walk, "b.test", "a.test"), Err(Broken::Loop));
        let mut walk = Walk::new(question("0.test", Rtype::A));
        for i in 0..16 {
            assert_eq!(step(&mut walk, &format!("{i}.test"), &format!("{}.test", i + 1)), Ok(true), "{i}");
        }
        assert_eq!(step(&mut walk, "16.test", "17.test"), Err(Broken::Long));
    }

    #[test]
    fn a_target_of_which_nothing_is_said_is_asked_for() {
        let alias = cname("a.example", "b.example");
        let soa = |owner: &str| Record::new(name(owner), Rtype::SOA, 60, [&[0; 2][..], &[0; 20]].concat());
        let data = address("b.example");
        for (answer, authority, rcode, qtype, is_left) in [
            (vec![alias.clone()], None, Rcode::NOERROR, Rtype::A, true),
            (vec![alias.clone(), data.clone()], None, Rcode::NOERROR, Rtype::A, false),
            (vec![alias.clone(), data.clone()], None, Rcode::NOERROR, Rtype::AAAA, true), // data of another type
            (vec![alias.clone(), address("c.example")], None, Rcode::NOERROR, Rtype::A, true),
            (vec![alias.clone()], Some(soa("example")), Rcode::NOERROR, Rtype::A, false), // NODATA
            (vec![alias.clone()], Some(soa("b.example")), Rcode::NOERROR, Rtype::A, false),
            (vec![alias.clone()], Some(soa("a.example")), Rcode::NOERROR, Rtype::A, true), // of the first name's zone
            (vec![alias.clone()], None, Rcode::NXDOMAIN, Rtype::A, false),
            (vec![alias.clone()], None, Rcode::NOERROR, Rtype::CNAME, false),
            (vec![data], None, Rcode::NOERROR, Rtype::AAAA, false), // there is no chain
        ] {
            let asked = question("a.example", qtype);
            let authority: Vec<Record> = authority.into_iter().collect();
            let said = Answer { rcode, authoritative: false, answer, authority, ..Answer::default() };
            let response = said.encode(&asked);
            let mut walk = Walk::new(asked);
            let end = walk.take_in(Said::Forwarded(response, POLICY), |_| true).unwrap();
            assert_eq!(end.is_none(), is_left, "{said:?} to {qtype}");
            assert_eq!(walk.asked().qname == name("b.example"), is_left, "{said:?} to {qtype}");
        }
    }

    #[test]
    fn an_assembled_answer_is_authentic_if_all_its_parts_are() {
        for (first, second) in [(true, true), (true, false), (false, true)] {
            let said = |asked: &Question, records: &[Record], is_authentic| {
                let Said::Forwarded(mut response, policy) = forwarded(asked, records) else { unreachable!() };
                response.set_flag(flag::AD, is_authentic);
                Said::Forwarded(response, policy)
            };
            let asked = question("a.example", Rtype::A);
            let mut walk = Walk::new(asked.clone());
            walk.take_in(said(&asked, &[cname("a.example", "b.test")], first), |_| false).unwrap();
            let asked = walk.asked().clone();
            let end = walk.take_in(said(&asked, &[address("b.test")], second), |_| true).unwrap().unwrap();
            assert_eq!(end.response.has_flag(flag::AD), first && second);
        }
    }

    #[test]
    fn a_chain_of_thousands_is_not_walked() {
        let chain: Vec<Record> =
            (0..2000).map(|link| cname(&format!("{link}.test"), &format!("{}.test", link + 1))).collect();
        let followed = |links: usize| leaving(&question("0.test", Rtype::A), &chain[..links], |_| true, |_| true);
        assert!(matches!(followed(MOST_LINKS), Ok(None)));
        assert!(matches!(followed(MOST_LINKS + 1), Err(Broken::Links)));
        assert!(matches!(followed(2000), Err(Broken::Links)));
    }

    #[test]
    fn an_answer_has_authority_and_no_age_only_if_all_of_it_is_local() {
        let asked = question("a.test", Rtype::A);
        let mut walk = Walk::new(asked.clone());
        walk.take_in(Said::Local(answer(&[cname("a.test", "b.test")])), |_| true).unwrap();
        let end = walk.take_in(Said::Local(answer(&[address("b.test")])), |_| true).unwrap().unwrap();
        assert_eq!((end.life, end.response.has_flag(flag::AA)), (Some(Life::Local { until: None }), true));

        let mut walk = Walk::new(asked);
        walk.take_in(Said::Local(answer(&[cname("a.test", "b.test")])), |_| true).unwrap();
        let last = forwarded(&question("b.test", Rtype::A), &[address("b.test")]);
        let end = walk.take_in(last, |_| true).unwrap().unwrap();
        assert_eq!((end.life, end.response.has_flag(flag::AA)), (LIFE, false));
        assert_eq!(end.response.to_answer().unwrap().answer, [cname("a.test", "b.test"), address("b.test")]);
    }
}
