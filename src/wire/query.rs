//! A query: a client's, read in place, and our own to an upstream, written.

use super::{
    Asker, Class, ClientEdns, ClientOptions, HEADER_BYTES, Name, Opcode, Question, Rcode, ReplyOptions, ReplySize,
    Rtype, edns::OPTION_COOKIE, flag, name::skip_uncompressed, put_u16, read_u16, record::skip_record,
};

/// A well-formed query of a client; it borrows the datagram or frame that it came in.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    wire: &'a [u8],
    question_end: usize,
    edns: Option<ClientEdns>,
    options: ClientOptions<'a>,
}

/// Why a message is not a query that can be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// Too short for a header, or itself a response: any reply could start a loop.
    Drop,
    /// To be answered with this response code and nothing else.
    Reply(Rcode),
}

impl<'a> Query<'a> {
    /// Walks the whole message once and allocates nothing.
    ///
    /// One question is demanded, uncompressed, or none of a client that only wants a cookie (RFC 7873 §5.4); an OPT record may stand in the additional section, once, with the
    /// root as owner (RFC 6891 §6.1.1). Other records are skipped, and so is what follows the last. What the options of an EDNS version other than 0 look like
    /// is not for us to say; a reply to such a query only says that it is not spoken here (§6.1.3).
    pub fn parse(wire: &'a [u8]) -> Result<Self, Reject> {
        let flags = read_u16(wire, 2).filter(|_| wire.len() >= HEADER_BYTES).ok_or(Reject::Drop)?;
        if flags & flag::QR != 0 {
            return Err(Reject::Drop);
        }
        if opcode(flags) != Opcode::QUERY {
            return Err(Reject::Reply(Rcode::NOTIMP));
        }
        let (query, is_signed) = Self::parse_sections(wire).ok_or(Reject::Reply(Rcode::FORMERR))?;
        // We have no keys, so this is none of ours (RFC 8945 §5.2.1); and who signs wants no answer that is not.
        if is_signed { Err(Reject::Reply(Rcode::NOTAUTH)) } else { Ok(query) }
    }

    fn parse_sections(wire: &'a [u8]) -> Option<(Self, bool)> {
        let count = |at| read_u16(wire, at);
        let question_end = match count(4)? {
            0 => HEADER_BYTES,
            1 => skip_uncompressed(wire, HEADER_BYTES).ok()? + 4,
            _ => return None,
        };
        if question_end > wire.len() {
            return None;
        }
        let mut edns = None;
        let mut options = ClientOptions::default();
        let mut is_signed = false;
        let mut at = question_end;
        let before_additional = u32::from(count(6)?) + u32::from(count(8)?);
        let records = before_additional + u32::from(count(10)?);
        for index in 0..records {
            let record = skip_record(wire, at)?;
            // A signature is the last record (RFC 8945 §5.1).
            if is_signed || record.rtype == Rtype::TSIG && index < before_additional {
                return None;
            }
            if record.rtype == Rtype::OPT {
                let misplaced = index < before_additional || edns.is_some() || wire.get(at) != Some(&0);
                if misplaced {
                    return None;
                }
                let version = (record.ttl >> 16) as u8;
                if version == 0 {
                    options = ClientOptions::read(wire.get(record.rdata.clone())?)?;
                }
                edns = Some(ClientEdns { udp_size: record.class.0, version, dnssec_ok: record.ttl & 0x8000 != 0 });
            }
            is_signed = record.rtype == Rtype::TSIG;
            at = record.end;
        }
        let asks_something = question_end > HEADER_BYTES || options.cookie.is_some();
        asks_something.then_some((Self { wire, question_end, edns, options }, is_signed))
    }

    /// The header's flag word.
    pub fn flags(&self) -> u16 {
        read_u16(self.wire, 2).unwrap_or(0)
    }

    /// Whether it asks for more than a cookie; only then is there a qname, type and class.
    pub fn has_question(&self) -> bool {
        self.question_end > HEADER_BYTES
    }

    /// The qname in wire form, letters as asked.
    pub fn qname(&self) -> &'a [u8] {
        self.wire.get(HEADER_BYTES..self.question_end - 4).unwrap_or(&[])
    }

    /// The question section's bytes, letters as asked.
    pub fn question_bytes(&self) -> &'a [u8] {
        self.wire.get(HEADER_BYTES..self.question_end).unwrap_or(&[])
    }

    /// The type asked for.
    pub fn qtype(&self) -> Rtype {
        Rtype(read_u16(self.wire, self.question_end - 4).unwrap_or(0))
    }

    /// The class asked for.
    pub fn qclass(&self) -> Class {
        Class(read_u16(self.wire, self.question_end - 2).unwrap_or(0))
    }

    /// What the OPT record said, if there was one.
    pub fn edns(&self) -> Option<ClientEdns> {
        self.edns
    }

    /// Those of its options that replies have something to say to.
    pub fn options(&self) -> ClientOptions<'a> {
        self.options
    }

    /// The DO bit; clear without EDNS.
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The CD bit.
    pub fn checking_disabled(&self) -> bool {
        self.flags() & flag::CD != 0
    }

    /// The RD bit.
    pub fn recursion_desired(&self) -> bool {
        self.flags() & flag::RD != 0
    }

    /// The question as a value of its own, the qname in lower case.
    pub fn question(&self) -> Question {
        let qname = Name::from_wire(self.qname()).map_or_else(|_| Name::root(), |name| name.to_lower());
        Question { qname, qtype: self.qtype(), qclass: self.qclass() }
    }

    /// All that the reply to this client depends on besides the response. Options are the business of whoever knows how the
    /// query came.
    pub fn asker(&self, size: ReplySize) -> Asker {
        Asker {
            id: read_u16(self.wire, 0).unwrap_or(0),
            recursion_desired: self.recursion_desired(),
            checking_disabled: self.checking_disabled(),
            wants_ad: self.flags() & flag::AD != 0 || self.dnssec_ok(),
            edns: self.edns,
            options: ReplyOptions::default(),
            limit_bytes: size.limit_bytes(self.edns),
        }
    }
}

/// A query of ours to an upstream.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamQuery<'a> {
    /// The message id.
    pub id: u16,
    /// The qname, its letters as they shall be sent.
    pub qname: &'a Name,
    /// The type asked for.
    pub qtype: Rtype,
    /// The class asked for.
    pub qclass: Class,
    /// The CD bit.
    pub checking_disabled: bool,
    /// The OPT record; `None` for an upstream that does not know EDNS.
    pub edns: Option<UpstreamEdns<'a>>,
}

/// The OPT record of a query of ours.
#[derive(Debug, Clone, Copy)]
pub struct UpstreamEdns<'a> {
    /// The largest UDP payload offered.
    pub udp_size: u16,
    /// The DO bit.
    pub dnssec_ok: bool,
    /// The COOKIE option's data (RFC 7873 §4): empty for none, else 8 to 40 octets.
    pub cookie: &'a [u8],
}

impl UpstreamQuery<'_> {
    /// Appends the message to `out`. RD and AD are set: we ask for recursion, and understand AD (RFC 6840 §5.7).
    pub fn write(&self, out: &mut Vec<u8>) {
        let cd = if self.checking_disabled { flag::CD } else { 0 };
        for word in [self.id, flag::RD | flag::AD | cd, 1, 0, 0, u16::from(self.edns.is_some())] {
            out.extend(word.to_be_bytes());
        }
        out.extend(self.qname.wire());
        out.extend(self.qtype.0.to_be_bytes());
        out.extend(self.qclass.0.to_be_bytes());
        if let Some(edns) = self.edns {
            out.push(0);
            out.extend(Rtype::OPT.0.to_be_bytes());
            out.extend(edns.udp_size.to_be_bytes());
            out.extend([0, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0]);
            let rdlength_at = out.len();
            out.extend([0, 0]);
            if !edns.cookie.is_empty() {
                out.extend(OPTION_COOKIE.to_be_bytes());
                out.extend((edns.cookie.len() as u16).to_be_bytes());
                out.extend(edns.cookie);
            }
            let rdlength = (out.len() - rdlength_at - 2) as u16;
            put_u16(out, rdlength_at, rdlength);
        }
    }
}

/// The opcode in a flag word.
fn opcode(flags: u16) -> Opcode {
    Opcode((flags >> 11) as u8 & 0x0f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(qname: &str, edns: Option<UpstreamEdns<'_>>) -> Vec<u8> {
        let qname = qname.parse().unwrap();
        let query =
            UpstreamQuery { id: 7, qname: &qname, qtype: Rtype::A, qclass: Class::IN, checking_disabled: true, edns };
        let mut wire = Vec::new();
        query.write(&mut wire);
        wire
    }

    #[test]
    fn a_query_of_ours_is_read_as_written() {
        let edns = UpstreamEdns { udp_size: 1232, dnssec_ok: true, cookie: &[1; 8] };
        let wire = plain("Www.Example", Some(edns));
        let query = Query::parse(&wire).unwrap();
        assert_eq!(query.qname(), b"\x03Www\x07Example\x00");
        assert_eq!(query.question().qname.wire(), b"\x03www\x07example\x00");
        assert_eq!((query.qtype(), query.qclass()), (Rtype::A, Class::IN));
        assert_eq!(query.edns(), Some(ClientEdns { udp_size: 1232, version: 0, dnssec_ok: true }));
        assert!(query.checking_disabled() && query.recursion_desired() && query.dnssec_ok());
    }

    #[test]
    fn a_malformed_query_is_rejected_as_its_fault_deserves() {
        let good = plain("www.example", Some(UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: &[] }));
        let changed = |at: usize, value: u8| {
            let mut wire = good.clone();
            wire[at] = value;
            wire
        };
        let opt = good[good.len() - 11..].to_vec();
        let formerr = Reject::Reply(Rcode::FORMERR);
        let cases: Vec<(&str, Vec<u8>, Reject)> = vec![
            ("empty", vec![], Reject::Drop),
            ("half a header", good[..11].to_vec(), Reject::Drop),
            ("a response", changed(2, 0x81), Reject::Drop),
            ("NOTIFY", changed(2, 0x20), Reject::Reply(Rcode::NOTIMP)),
            ("UPDATE", changed(2, 0x28), Reject::Reply(Rcode::NOTIMP)),
            ("no question", changed(5, 0), formerr),
            ("two questions", changed(5, 2), formerr),
            ("65535 questions", changed(4, 0xff), formerr),
            ("a compressed qname", changed(12, 0xc0), formerr),
            ("a record that is not there", changed(7, 1), formerr),
            ("an OPT record cut short", good[..good.len() - 1].to_vec(), formerr),
            ("two OPT records", [&changed(11, 2)[..], &opt].concat(), formerr),
            ("an OPT record in the answer section", changed(11, 0).tap(|wire| wire[7] = 1), formerr),
            ("an OPT record below a name", changed(good.len() - 11, 1), formerr),
        ];
        for (fault, wire, expected) in cases {
            assert_eq!(Query::parse(&wire).err(), Some(expected), "{fault}");
        }
        assert!(Query::parse(&good).is_ok());
        assert!(Query::parse(&[&good[..], &[0]].concat()).is_ok(), "octets behind the message are nobody's");
    }

    #[test]
    fn options_are_read_if_their_form_is_right_and_the_version_ours() {
        let read = |version: u8, options: &[(u16, &[u8])]| {
            let mut wire = plain("www.example", Some(UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: &[] }));
            let opt_at = wire.len() - 11;
            let rdata: Vec<u8> = (options.iter())
                .flat_map(|(code, data)| [&code.to_be_bytes(), &(data.len() as u16).to_be_bytes(), *data].concat())
                .collect();
            wire[opt_at + 6] = version;
            wire[opt_at + 9..].copy_from_slice(&(rdata.len() as u16).to_be_bytes());
            wire.extend(rdata);
            let query = Query::parse(&wire).ok()?;
            let ClientOptions { cookie, keepalive, padding } = query.options();
            Some((cookie.map(|cookie| cookie.len()), keepalive, padding))
        };
        for (length, is_right) in
            [(0, false), (7, false), (8, true), (9, false), (15, false), (16, true), (40, true), (41, false)]
        {
            let expected = is_right.then_some((Some(length), false, false));
            assert_eq!(read(0, &[(10, &vec![7; length])]), expected, "a cookie of {length} octets");
            assert_eq!(read(1, &[(10, &vec![7; length])]), Some((None, false, false)), "{length} octets of version 1");
        }
        for (options, expected) in [
            (&[][..], (None, false, false)),
            (&[(10, &[1; 8][..]), (10, &[2; 16])], (Some(8), false, false)), // the first counts
            (&[(10, &[1; 8]), (10, &[2; 3])], (Some(8), false, false)),
            (&[(11, &[])], (None, true, false)),
            (&[(12, &[0; 300]), (65_001, &[1])], (None, false, true)),
        ] {
            assert_eq!(read(0, options), Some(expected), "{options:?}");
        }
    }

    trait Tap: Sized {
        fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
            change(&mut self);
            self
        }
    }
    impl Tap for Vec<u8> {}
}
