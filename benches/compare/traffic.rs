//! Questions and answers that follow from a number, so that every reply can be checked down to its data.

use watershed::wire::{Class, Name, Query, Rtype, UpstreamEdns, UpstreamQuery};

/// The name of a number: `n0000002axxx.r00042.bench.example`, the second label its rule. Names are of eight lengths, as
/// real ones are of many: nobody shall profit from datagrams of one length.
pub fn qname(number: u32, rules: u32) -> String {
    let filling = &"xxxxxxx"[(number.wrapping_mul(0x9e37_79b1) >> 29) as usize..];
    format!("n{number:08x}{filling}.{}", rule(number % rules.max(1)))
}

/// The suffix of a rule.
pub fn rule(number: u32) -> String {
    format!("r{number:05}.bench.example")
}

/// The query for a number, with EDNS, as most clients ask.
pub fn query(number: u32, rules: u32, id: u16, out: &mut Vec<u8>) {
    let qname: Name = qname(number, rules).parse().expect("such are names");
    let edns = Some(UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: &[] });
    out.clear();
    UpstreamQuery { id, qname: &qname, qtype: Rtype::A, qclass: Class::IN, checking_disabled: false, edns }.write(out);
}

/// What the upstream says: one address with the number in it, below the question as it was asked. False if there is
/// nothing to be said to this message.
pub fn answer(message: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(query) = Query::parse(message) else { return false };
    let question = query.question_bytes();
    let number = number_in(question);
    out.clear();
    let (ancount, arcount) = (u8::from(number.is_some()), u8::from(query.edns().is_some()));
    out.extend(&message[..2]);
    out.extend([0x80 | message[2] & 1, 0x80, 0, 1, 0, ancount, 0, 0, 0, arcount]);
    out.extend(question);
    if let Some(number) = number {
        out.extend(RECORD_HEAD);
        out.extend(address(number));
    }
    if arcount > 0 {
        out.extend(OPT);
    }
    true
}

/// Whether a message is the reply to the query for a number.
pub fn is_reply(message: &[u8], number: u32) -> bool {
    let Some((head, rest)) = message.split_at_checked(12) else { return false };
    let Some(question_bytes) = rest.iter().position(|&octet| octet == 0).map(|end| end + 5) else { return false };
    let Some((question, records)) = rest.split_at_checked(question_bytes) else { return false };
    // A TTL that has aged is as good.
    let is_record = records.get(..6) == Some(&RECORD_HEAD[..6]) && records.get(10..16) == Some(&expected(number)[..]);
    head[2] & 0x80 != 0
        && head[3] & 0x0f == 0
        && head[6..8] == [0, 1]
        && number_in(question) == Some(number)
        && is_record
}

fn expected(number: u32) -> [u8; 6] {
    let [a, b, c, d] = address(number);
    [0, 4, a, b, c, d]
}

fn address(number: u32) -> [u8; 4] {
    let [_, b, c, d] = number.to_be_bytes();
    [10, b, c, d]
}

/// The number in a question's first label; `None` for a label of another form.
fn number_in(question: &[u8]) -> Option<u32> {
    let label = question.split_first().filter(|(length, _)| (9..=16).contains(*length)).map(|(_, rest)| rest)?;
    // A forwarder may have mixed the letters.
    let digits = label.split_first().filter(|(first, _)| first.eq_ignore_ascii_case(&b'n'))?.1.get(..8)?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A pointer to the question's name, A, IN, an hour, and the length of the address.
const RECORD_HEAD: [u8; 12] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4];
const OPT: [u8; 11] = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
