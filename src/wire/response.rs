//! A response: an upstream's, walked and kept as bytes, or one of ours.

use super::{
    Answer, Class, HEADER_BYTES, Name, NameError, Question, Rcode, Record, RecordView, Rtype, Section, answer,
    edns::{OPTION_COOKIE, OPTION_EXTENDED_ERROR, options},
    name::skip_uncompressed,
    put_u16, rdata, read_u16, read_u32,
    record::{Progress, check_owner, points_to_qname, skip_record},
};

/// A response as it is kept and relayed: the message with its question, without its OPT record.
///
/// OPT belongs to one hop (RFC 6891 §6.1.1): what must outlive it, the extended response code and the extended errors,
/// stands beside the message, and every reply gets an OPT record of its own. Every record has been walked: owners
/// can be read, and RDATA has the form of its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    message: Vec<u8>,
    records_at: usize,
    rcode: Rcode,
    extended_errors: Vec<u8>,
    plan: Vec<u8>,
    /// Whether a name is compressed in RDATA in which that is not allowed.
    has_names_to_expand: bool,
}

/// An upstream's message taken apart.
#[derive(Debug, Clone)]
pub struct Received {
    /// The message id.
    pub id: u16,
    /// The response itself.
    pub response: Response,
    /// Whether it has a question section; errors often come without (and so unproven).
    pub has_question: bool,
    /// Whether it had an OPT record.
    pub has_edns: bool,
    /// The COOKIE option's data, empty if there was none.
    pub cookie: Vec<u8>,
}

/// A response without its question, borrowed from wherever it is kept.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The flag word of the header; its four bits of response code are not used.
    pub flags: u16,
    /// The whole response code.
    pub rcode: Rcode,
    /// ANCOUNT, NSCOUNT and ARCOUNT.
    pub counts: [u16; 3],
    /// The bytes after the question section; compression pointers count from the start of the message.
    pub records: &'a [u8],
    /// Extended errors as encoded options (RFC 8914 §2), one after the other.
    pub extended_errors: &'a [u8],
    /// How records change their places from reply to reply, as [`Shape`](super::Shape) has it; empty if they do not.
    pub plan: &'a [u8],
}

impl<'a> View<'a> {
    /// A response without records.
    pub fn bare(rcode: Rcode, extended_errors: &'a [u8]) -> Self {
        Self { flags: 0, rcode, counts: [0; 3], records: &[], extended_errors, plan: &[] }
    }
}

/// An extended DNS error (RFC 8914): why the response is what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtendedError {
    /// The INFO-CODE.
    pub code: u16,
    /// The EXTRA-TEXT, for people.
    pub text: String,
}

/// An upstream's message is not a DNS response that can be walked to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed response")]
pub struct Malformed;

impl Response {
    /// Takes an upstream's message apart. Octets behind the last record are cut off. RDATA that lacks the form of its type
    /// makes the message malformed, and so do more labels and pointers in its names than a server has reason to write.
    pub fn read(message: &[u8]) -> Result<Received, Malformed> {
        Self::try_read(message, Progress::of(message), rdata::check).ok_or(Malformed)
    }

    /// Takes a reply of ours apart. Its RDATA is not looked into: local data may hold what an upstream may not send.
    pub fn read_own(message: &[u8]) -> Result<Received, Malformed> {
        Self::try_read(message, Progress::of_ours(), |_, _, _| Some(rdata::Names::AsTheyAre)).ok_or(Malformed)
    }

    fn try_read(
        message: &[u8],
        mut progress: Progress,
        check_rdata: impl Fn(&[u8], &RecordView, &mut Progress) -> Option<rdata::Names>,
    ) -> Option<Received> {
        let word = |at| read_u16(message, at);
        let records_at = match word(4)? {
            0 => HEADER_BYTES,
            1 => skip_uncompressed(message, HEADER_BYTES).ok()? + 4,
            _ => return None,
        };
        if message.len() < records_at || word(2)? & super::flag::QR == 0 {
            return None;
        }
        let mut received = Received {
            id: word(0)?,
            response: Self {
                message: Vec::new(),
                records_at,
                rcode: Rcode(word(2)? & 0x0f),
                extended_errors: Vec::new(),
                plan: Vec::new(),
                has_names_to_expand: false,
            },
            has_question: word(4)? == 1,
            has_edns: false,
            cookie: Vec::new(),
        };
        let mut at = records_at;
        let mut opt = None;
        for (count_at, section) in SECTIONS {
            for _ in 0..word(count_at)? {
                let record = RecordView { section, ..skip_record(message, at)? };
                check_owner(message, &record, &mut progress)?;
                progress.pass(&record)?;
                received.response.has_names_to_expand |=
                    check_rdata(message, &record, &mut progress)? == rdata::Names::ToExpand;
                if record.rtype == Rtype::OPT {
                    if section != Section::Additional || opt.is_some() || message.get(at) != Some(&0) {
                        return None;
                    }
                    received.take_opt(message.get(record.rdata.clone())?, record.ttl)?;
                    opt = Some(at..record.end);
                }
                at = record.end;
            }
        }
        let response = &mut received.response;
        response.message = message[..at].to_vec();
        if let Some(opt) = opt {
            received.has_edns = true;
            let arcount = word(10)? - 1;
            if opt.end == at {
                response.message.truncate(opt.start);
                put_u16(&mut response.message, 10, arcount);
            } else {
                // Names behind the OPT record may point to places behind it: those have to be written anew.
                *response = response.retain(|record| record.owner_at != opt.start).ok()??;
            }
        }
        Some(received)
    }

    /// The response with those records alone that are to `stay`, in their places; `None` if all of them are. It fails if
    /// one of these holds a name that cannot be read, and so cannot be written anew.
    pub fn retain(&self, stay: impl Fn(&RecordView) -> bool) -> Result<Option<Self>, NameError> {
        if self.records().all(|record| stay(&record)) {
            return Ok(None);
        }
        let mut sections = [Vec::new(), Vec::new(), Vec::new()];
        for record in self.records().filter(stay) {
            sections[record.section as usize].push(self.record(&record)?);
        }
        Ok(Some(self.with_records(&sections)))
    }

    /// The response with these records in its sections instead of its own.
    pub fn with_records(&self, sections: &[Vec<Record>; 3]) -> Self {
        let message = answer::write_message(&self.message[..self.records_at], sections);
        let extended_errors = self.extended_errors.clone();
        Self { message, extended_errors, plan: Vec::new(), has_names_to_expand: false, ..*self }
    }

    /// Writes out in full the names that are compressed in RDATA in which a receiver need not understand that, such as the
    /// targets of SRV records (RFC 3597 §4, RFC 2782). Others stay as they are.
    ///
    /// This comes after [`Self::set_letters`], for a pointer may lead to the question's name.
    pub fn expand_names(&mut self) -> Result<(), NameError> {
        if self.has_names_to_expand {
            let mut sections = [Vec::new(), Vec::new(), Vec::new()];
            for record in self.records() {
                sections[record.section as usize].push(self.record(&record)?);
            }
            *self = self.with_records(&sections);
        }
        Ok(())
    }

    /// A response with a header and the question, and no records: for errors.
    pub fn error(question: &Question, rcode: Rcode, errors: &[ExtendedError]) -> Self {
        let mut response = Answer { rcode, authoritative: false, ..Answer::default() }.encode(question);
        for error in errors {
            response.add_error(error);
        }
        response
    }

    /// The response that `view` was taken of, under this question.
    pub fn from_view(view: View<'_>, question: &Question) -> Self {
        let mut response = Self::error(question, view.rcode, &[]);
        let flags = view.flags & !0x0f | view.rcode.0 & 0x0f;
        let [an, ns, ar] = view.counts;
        for (at, word) in [(2, flags), (6, an), (8, ns), (10, ar)] {
            put_u16(&mut response.message, at, word);
        }
        response.message.extend_from_slice(view.records);
        response.extended_errors.extend_from_slice(view.extended_errors);
        response.plan = view.plan.to_vec();
        response
    }

    /// The same, if it holds what [`Self::read`] demands of a message, with its names [expanded](Self::expand_names).
    pub fn checked(mut self) -> Result<Self, Malformed> {
        let read = Self::read(&self.message)?.response;
        if read.message != self.message {
            return Err(Malformed);
        }
        self.has_names_to_expand = read.has_names_to_expand;
        self.expand_names().map_err(|_| Malformed)?;
        Ok(self)
    }

    /// NODATA where this denies the name: with its SOA records alone, for proofs would say otherwise.
    pub fn into_nodata(self) -> Self {
        let mut nodata = match self.retain(|record| record.section == Section::Authority && record.rtype == Rtype::SOA)
        {
            Ok(Some(left)) => left,
            _ => self,
        };
        nodata.rcode = Rcode::NOERROR;
        let flags = nodata.flags() & !0x0f;
        put_u16(&mut nodata.message, 2, flags);
        nodata.set_flag(super::flag::AD, false);
        nodata
    }

    /// The records as values, names uncompressed.
    pub fn to_answer(&self) -> Result<Answer, NameError> {
        let mut sections = [Vec::new(), Vec::new(), Vec::new()];
        for record in self.records() {
            sections[record.section as usize].push(self.record(&record)?);
        }
        let [answer, authority, additional] = sections;
        let authoritative = self.has_flag(super::flag::AA);
        Ok(Answer { rcode: self.rcode, authoritative, answer, authority, additional })
    }

    pub(super) fn from_parts(message: Vec<u8>, records_at: usize, rcode: Rcode) -> Self {
        let (extended_errors, plan) = (Vec::new(), Vec::new());
        Self { message, records_at, rcode, extended_errors, plan, has_names_to_expand: false }
    }

    /// With a plan by which its records change their places.
    pub(super) fn rotating(self, plan: Vec<u8>) -> Self {
        Self { plan, ..self }
    }

    /// The whole message, without OPT.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// The question's bytes; empty if the message came without.
    pub fn question_bytes(&self) -> &[u8] {
        &self.message[HEADER_BYTES..self.records_at]
    }

    /// The response code, extended ones included.
    pub fn rcode(&self) -> Rcode {
        self.rcode
    }

    /// The header's flag word.
    pub fn flags(&self) -> u16 {
        read_u16(&self.message, 2).unwrap_or(0)
    }

    /// Whether the flag is set; see [`super::flag`].
    pub fn has_flag(&self, flag: u16) -> bool {
        self.flags() & flag != 0
    }

    /// Sets or clears a flag of the header.
    pub fn set_flag(&mut self, flag: u16, on: bool) {
        let flags = if on { self.flags() | flag } else { self.flags() & !flag };
        put_u16(&mut self.message, 2, flags);
    }

    /// ANCOUNT, NSCOUNT and ARCOUNT.
    pub fn counts(&self) -> [u16; 3] {
        SECTIONS.map(|(at, _)| read_u16(&self.message, at).unwrap_or(0))
    }

    /// What a reply is written from.
    pub fn view(&self) -> View<'_> {
        View {
            flags: self.flags(),
            rcode: self.rcode,
            counts: self.counts(),
            records: &self.message[self.records_at..],
            extended_errors: &self.extended_errors,
            plan: &self.plan,
        }
    }

    /// The records in order.
    pub fn records(&self) -> impl Iterator<Item = RecordView> + '_ {
        let mut cursor = Cursor::new(self);
        std::iter::from_fn(move || cursor.next(&self.message))
    }

    /// The owner name of a record.
    pub fn owner(&self, record: &RecordView) -> Result<Name, NameError> {
        Name::read(&self.message, record.owner_at).map(|(name, _)| name)
    }

    /// Whether the owner is written as a pointer to the question's name, as it almost always is; if not, it may be that
    /// name all the same.
    pub fn is_owned_by_qname(&self, record: &RecordView) -> bool {
        points_to_qname(&self.message, record.owner_at)
    }

    /// The name that starts at `at`: a target in RDATA, for instance.
    pub fn name_at(&self, at: usize) -> Result<Name, NameError> {
        Name::read(&self.message, at).map(|(name, _)| name)
    }

    /// The record as a value of its own, names in its RDATA uncompressed.
    pub fn record(&self, record: &RecordView) -> Result<Record, NameError> {
        Ok(Record {
            owner: self.owner(record)?,
            rtype: record.rtype,
            class: record.class,
            ttl: record.ttl,
            rdata: rdata::expand(&self.message, record)?.into(),
        })
    }

    /// TTL and SOA minimum of the first SOA record in the authority section.
    pub fn soa(&self) -> Option<(u32, u32)> {
        let soa = self.records().find(|r| r.section == Section::Authority && r.rtype == Rtype::SOA)?;
        Some((soa.ttl, read_u32(&self.message, soa.rdata.end.checked_sub(4)?)?))
    }

    /// Changes the TTL of every record: `change` gets the record and its TTL, and gives the new one.
    pub fn map_ttls(&mut self, mut change: impl FnMut(&RecordView) -> u32) {
        self.change_records(|message, record| {
            message[record.ttl_at..record.ttl_at + 4].copy_from_slice(&change(&record).to_be_bytes());
        });
    }

    /// Lends the message once for each record, to be changed in no length and no count.
    fn change_records(&mut self, mut change: impl FnMut(&mut [u8], RecordView)) {
        let mut cursor = Cursor::new(self);
        while let Some(record) = cursor.next(&self.message) {
            change(&mut self.message, record);
        }
    }

    /// Gives the question the letters of `qname`, and with it every owner that points there or spells it out.
    ///
    /// Queries go out with letters mixed at random; no client shall see those.
    pub fn set_letters(&mut self, qname: &Name) {
        self.set_letters_of_synthesized_cname(qname);
        let set = |message: &mut [u8], at: usize| {
            let place = message.get_mut(at..at + qname.wire().len());
            if let Some(place) = place.filter(|place| place.eq_ignore_ascii_case(qname.wire())) {
                place.copy_from_slice(qname.wire());
            }
        };
        set(&mut self.message, HEADER_BYTES);
        self.change_records(|message, record| {
            // What is a pointer from its beginning spells out nothing.
            if !points_to_qname(message, record.owner_at) {
                set(message, record.owner_at);
            }
        });
    }

    /// The CNAME that a server makes of a DNAME begins with labels of the question (RFC 6672 §3.1).
    fn set_letters_of_synthesized_cname(&mut self, qname: &Name) {
        let is_synthesized = self.records().any(|record| record.rtype == Rtype::DNAME);
        let cname = is_synthesized.then(|| self.records().find(|record| record.rtype == Rtype::CNAME)).flatten();
        let Some(target) = cname.and_then(|record| self.message.get_mut(record.rdata)) else { return };
        let same = target.iter().zip(qname.wire()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        target[..same].copy_from_slice(&qname.wire()[..same]);
    }

    /// Adds an extended error, behind those it has.
    pub fn add_error(&mut self, error: &ExtendedError) {
        error.encode(&mut self.extended_errors);
    }

    /// The extended errors as encoded options.
    pub fn extended_errors(&self) -> &[u8] {
        &self.extended_errors
    }

    /// Adds extended errors that are encoded already.
    pub fn add_encoded_errors(&mut self, errors: &[u8]) {
        self.extended_errors.extend_from_slice(errors);
    }
}

/// Goes from record to record of a message; several times for each response, so it keeps no more than numbers.
struct Cursor {
    at: usize,
    /// How many records have been passed.
    passed: u32,
    /// After how many each section ends.
    ends: [u32; 3],
}

impl Cursor {
    fn new(response: &Response) -> Self {
        let [answer, authority, additional] = response.counts().map(u32::from);
        let ends = [answer, answer + authority, answer + authority + additional];
        Self { at: response.records_at, passed: 0, ends }
    }

    #[inline]
    fn next(&mut self, message: &[u8]) -> Option<RecordView> {
        let section = match self.ends {
            [answer, ..] if self.passed < answer => Section::Answer,
            [_, authority, _] if self.passed < authority => Section::Authority,
            [.., additional] if self.passed < additional => Section::Additional,
            _ => return None,
        };
        let record = skip_record(message, self.at)?;
        self.passed += 1;
        self.at = record.end;
        Some(RecordView { section, ..record })
    }
}

impl Answer {
    /// The message, names compressed.
    pub fn encode(&self, question: &Question) -> Response {
        let head = answer::head(question, self);
        let records_at = head.len();
        let message = answer::write_sections(head, [&self.answer, &self.authority, &self.additional]);
        Response::from_parts(message, records_at, self.rcode)
    }
}

impl Received {
    fn take_opt(&mut self, rdata: &[u8], ttl: u32) -> Option<()> {
        self.response.rcode = Rcode(self.response.rcode.0 | (ttl >> 24 << 4) as u16);
        for option in options(rdata) {
            match option? {
                (OPTION_EXTENDED_ERROR, data) if data.len() >= 2 => {
                    encode_option(OPTION_EXTENDED_ERROR, data, &mut self.response.extended_errors);
                }
                (OPTION_COOKIE, data) => self.cookie = data.to_vec(),
                _ => {}
            }
        }
        Some(())
    }

    /// Whether the question is the one asked, letters included or not.
    pub fn answers(&self, qname: &Name, qtype: Rtype, qclass: Class) -> Match {
        let question = self.response.question_bytes();
        let Some((asked, rest)) = question.split_at_checked(qname.wire().len()) else {
            return Match::Different;
        };
        let ([t0, t1], [c0, c1]) = (qtype.0.to_be_bytes(), qclass.0.to_be_bytes());
        if rest != [t0, t1, c0, c1] {
            Match::Different
        } else if asked == qname.wire() {
            Match::Exact
        } else if asked.eq_ignore_ascii_case(qname.wire()) {
            Match::OtherLetters
        } else {
            Match::Different
        }
    }
}

/// How the question of a response compares with the one asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// To the letter.
    Exact,
    /// But for the case of letters.
    OtherLetters,
    /// Another question.
    Different,
}

impl ExtendedError {
    /// Appends the option.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut data = self.code.to_be_bytes().to_vec();
        data.extend_from_slice(self.text.as_bytes());
        encode_option(OPTION_EXTENDED_ERROR, &data, out);
    }
}

fn encode_option(code: u16, data: &[u8], out: &mut Vec<u8>) {
    out.extend(code.to_be_bytes());
    out.extend((data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

/// Where the count of each section stands.
const SECTIONS: [(usize, Section); 3] = [(6, Section::Answer), (8, Section::Authority), (10, Section::Additional)];
