//! Header and question: what is asked, and what cannot be.

use std::process::Command;

use super::{Panel, header_look, opt_record, row, with_records};
use crate::harness::{
    message::{AA, AD, CD, QR, RA, RD, TC},
    *,
};

fn www() -> Message {
    query("www.example A")
}

/// The query for `www.example. A` with another octet at this place.
fn changed(at: usize, value: u8) -> Vec<u8> {
    let mut wire = www().to_wire();
    wire[at] = value;
    wire
}

/// A query for the A records of a name that is written so.
fn named(name: &[u8]) -> Vec<u8> {
    [&www().to_wire()[..12], name, &[0, 1, 0, 1]].concat()
}

/// The same with an OPT record, so that a long name may be in the reply twice.
fn named_with_opt(name: &[u8]) -> Vec<u8> {
    let mut wire = [&named(name)[..], &opt_record(1232, 0, &[])].concat();
    wire[11] = 1;
    wire
}

/// A name of so many octets on the wire, of labels that are as long as labels may be.
fn long_name(octets: usize) -> Vec<u8> {
    let mut name = Vec::new();
    while name.len() + 1 < octets {
        let label = (octets - name.len() - 2).min(63);
        // A single octet that is left has no room for a label.
        let label = if octets - name.len() - 2 - label == 1 { label - 1 } else { label };
        name.push(label as u8);
        name.extend(vec![b'x'; label]);
    }
    name.push(0);
    assert_eq!(name.len(), octets);
    name
}

#[test]
fn headers_are_answered_as_the_rfcs_have_it() {
    let Some(panel) = Panel::new() else { return };
    let served = "NOERROR rd 192.0.2.1";
    let mut rows = vec![
        row("RFC 1035 §4.1.1", "a plain query", www(), served),
        row("RFC 1035 §4.1.1", "RD off, from the cache", www().clear(RD), "NOERROR 192.0.2.1"),
        row("RFC 1035 §4.1.1", "a response", www().set(QR), "silence"), // to answer it could start a loop
        row("RFC 1035 §4.1.1", "AA and RA set", www().set(AA | RA), served),
        row("RFC 1035 §4.1.1", "TC set", www().set(TC), served),
        row("RFC 1035 §4.1.1", "Z set", www().set(0x40), served),
        row("RFC 1035 §4.1.1", "a response code", changed(3, 5), served),
        row("RFC 4035 §3.2.2", "CD set", www().set(CD), "NOERROR rd cd 192.0.2.1"),
        row("RFC 6840 §5.8", "AD set, and nothing validated", www().set(AD), served),
        row("RFC 1035 §4.1.1", "nothing at all", vec![], "silence"),
        row("RFC 1035 §4.1.1", "one octet", vec![0xff], "silence"),
        row("RFC 1035 §4.1.1", "half a header", www().to_wire()[..11].to_vec(), "silence"),
        row(
            "RFC 1035 §4.1.1",
            "a header alone, with one question to come",
            www().to_wire()[..12].to_vec(),
            "FORMERR rd",
        ),
        row("RFC 1035 §4.1.2", "no question", changed(5, 0)[..12].to_vec(), "FORMERR rd"),
        row("RFC 1035 §4.1.2", "no question but its octets", changed(5, 0), "FORMERR rd"),
        row("RFC 9619 §4", "two questions", [changed(5, 2), www().question].concat(), "FORMERR rd"),
        row("RFC 9619 §4", "65281 questions that are not there", changed(4, 0xff), "FORMERR rd"),
    ];
    for opcode in 1..16 {
        let known = ["IQUERY", "STATUS", "opcode 3", "NOTIFY", "UPDATE", "DSO"];
        let what = known.get(opcode - 1).copied().unwrap_or("an opcode beyond DSO");
        let row = row("RFC 1035 §4.1.1", what, changed(2, (opcode as u8) << 3 | 1), "NOTIMP rd");
        // NOTIFY is known to the others, who refuse it for other reasons: to BIND it has no SOA record (RFC 1996 §3.7).
        rows.push(if what == "NOTIFY" { row.alone() } else { row });
    }
    panel.check(rows, header_look);
}

#[test]
fn questions_are_answered_as_the_rfcs_have_it() {
    let Some(panel) = Panel::new() else { return };
    let served = "NOERROR rd 192.0.2.1";
    panel.check(
        vec![
            row("RFC 1035 §2.3.4", "a name of 255 octets", named_with_opt(&long_name(255)), served),
            row("RFC 1035 §2.3.4", "a name of 256 octets", named(&long_name(256)), "FORMERR rd"),
            row("RFC 1035 §2.3.4", "a name without end", named(&[1, b'x'].repeat(2000)), "FORMERR rd"),
            row("RFC 1035 §2.3.4", "127 labels", named_with_opt(&[&[1, b'x'].repeat(127)[..], &[0]].concat()), served),
            row("RFC 1035 §2.3.4", "a label of 63 octets", named(&[&[63][..], &[b'x'; 63], &[0]].concat()), served),
            // 64 is no length but a type of label, which RFC 6891 §5 has taken back.
            row("RFC 6891 §5", "a label of 64 octets", named(&[&[64][..], &[b'x'; 64], &[0]].concat()), "FORMERR rd"),
            row("RFC 1035 §4.1.4", "a label of type 10", named(&[0x80, b'x', 0]), "FORMERR rd"),
            row("RFC 1035 §4.1.4", "a pointer to itself", named(&[0xc0, 12]), "FORMERR rd"),
            row("RFC 1035 §4.1.4", "a pointer into the header", named(&[3, b'w', b'w', b'w', 0xc0, 4]), "FORMERR rd"),
            row("RFC 1035 §4.1.4", "a pointer to what follows", named(&[0xc0, 14]), "FORMERR rd"),
            row("RFC 1035 §4.1.2", "a question cut in its name", www().to_wire()[..15].to_vec(), "FORMERR rd"),
            row("RFC 1035 §4.1.2", "a question without class", www().to_wire()[..27].to_vec(), "FORMERR rd"),
            row("RFC 2181 §11", "a name of octets that are no letters", named(&[4, 0, b'.', 0xff, b' ', 0]), served),
            row("RFC 1035 §2.3.3", "other letters", query("wWw.ExAmPlE A"), served),
            // It means that there is no type: nobody can have such a record, and so nobody can mean this.
            row("RFC 6895 §3.1", "type 0", query("www.example TYPE0"), "FORMERR rd").alone(),
            row("RFC 6895 §3.1", "the type OPT", query("www.example TYPE41"), "FORMERR rd"),
            row("RFC 8945 §4.2", "the type TSIG", query("www.example TYPE250"), "FORMERR rd"),
            row("RFC 2930 §3", "the type TKEY", query("www.example TYPE249"), "FORMERR rd"),
            row("RFC 1035 §3.2.3", "the type MAILA", query("www.example TYPE254"), "NOTIMP rd"),
            row("RFC 3597 §3", "a type that nobody knows", query("www.example TYPE65280"), "NOERROR rd"),
            row("RFC 5936 §2", "AXFR", query("www.example AXFR"), "REFUSED rd"),
            row("RFC 1995 §2", "IXFR", query("www.example IXFR"), "REFUSED rd"),
            row("RFC 1035 §3.2.4", "class CH", query("version.bind TXT").class(3), "REFUSED rd"),
            row("RFC 4892 §3", "class CH, who are you", query("id.server TXT").class(3), "REFUSED rd"),
            row("RFC 1035 §3.2.4", "class HS", www().class(4), "REFUSED rd"),
            row("RFC 2136 §2.4", "class NONE", www().class(254), "REFUSED rd"),
            // It may be asked for, so there is nothing wrong with its form; but who serves one class cannot speak for all.
            row("RFC 1035 §3.2.5", "class ANY", www().class(255), "REFUSED rd").alone(),
            row("RFC 6895 §3.2", "class 0", www().class(0), "REFUSED rd"),
        ],
        header_look,
    );
    let asked = panel.upstream.asked();
    assert!(
        asked.iter().all(|asked| asked.ends_with(" A") || asked.ends_with(" TYPE65280")),
        "went upstream: {asked:?}"
    );
}

#[test]
fn what_is_behind_a_question_is_passed_over_or_refused() {
    let Some(panel) = Panel::new() else { return };
    let served = "NOERROR rd 192.0.2.1";
    let address: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 9];
    let soa: &[u8] = b"\xc0\x0c\0\x06\0\x01\0\0\0\0\0\x16\0\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04\0\0\0\x05";
    // Key `k.`, HMAC-SHA256 and a hash of nothing: no key of anybody's.
    let mut tsig = b"\x01k\0\0\xfa\0\xff\0\0\0\0\0\x3d\x0bhmac-sha256\0\0\0\x60\0\0\0\x01\x2c\0\x20".to_vec();
    tsig.extend([7; 32]);
    tsig.extend([0, 1, 0, 0, 0, 0]);
    panel.check(
        vec![
            row("RFC 1035 §4.1.1", "an octet behind the message", [www().to_wire(), vec![0]].concat(), served),
            row("RFC 1035 §4.1.1", "a query behind the query", www().to_wire().repeat(2), served),
            row("RFC 1035 §4.1.1", "an answer that is not there", with_records([1, 0, 0], &[]), "FORMERR rd"),
            row("RFC 1035 §4.1.1", "65535 records that are not there", with_records([0, 0, 0xffff], &[]), "FORMERR rd"),
            row("RFC 1035 §4.1.1", "a record cut short", with_records([0, 0, 1], &[&address[..15]]), "FORMERR rd"),
            row("RFC 1035 §4.1.1", "an answer", with_records([1, 0, 0], &[address]), served),
            row("RFC 1995 §3", "an authority", with_records([0, 1, 0], &[soa]), served),
            row("RFC 1035 §4.1.1", "something additional", with_records([0, 0, 1], &[address]), served),
            row("RFC 8945 §5.2", "a signature", with_records([0, 0, 1], &[&tsig]), "NOTAUTH rd"),
        ],
        header_look,
    );
}

#[test]
fn dig_is_told_that_nobody_here_has_its_key() {
    let Some(_) = require::program("dig") else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let port = daemon.address().port().to_string();
    let text =
        run(Command::new("dig").args(["@127.0.0.1", "-p", &port, "-y", "hmac-sha256:k:c2VjcmV0", "www.example"]));
    for fragment in ["status: NOTAUTH", "BADKEY", "EDNS: version: 0"] {
        assert!(text.contains(fragment), "no {fragment}: {text}");
    }
    assert!(upstream.asked().is_empty());
}
