//! EDNS: the OPT record and its options, from the client to us and back.

use super::{Panel, Row, opt_look, opt_record, row, with_records};
use crate::harness::{
    message::{Edns, OPTION_EDE, TC},
    *,
};

fn www() -> Message {
    query("www.example A")
}

/// With one OPT record, written as it is.
fn with_opt(udp_size: u16, ttl: u32, rdata: &[u8]) -> Vec<u8> {
    with_records([0, 0, 1], &[&opt_record(udp_size, ttl, rdata)])
}

#[test]
fn opt_records_are_answered_as_the_rfcs_have_it() {
    let Some(panel) = Panel::new() else { return };
    let opt = &opt_record(1232, 0, &[])[..];
    let address: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 9];
    let version = |version: u32| version << 16;
    let other_opcode = |opcode: u8| {
        let mut wire = www().edns(1232).to_wire();
        wire[2] = opcode << 3 | 1;
        wire
    };
    panel.check(
        vec![
            row("RFC 6891 §7", "no OPT record", www(), "NOERROR 192.0.2.1 no opt"),
            row("RFC 6891 §6.1.1", "an OPT record", www().edns(1232), "NOERROR 192.0.2.1 opt"),
            row(
                "RFC 6891 §6.1.1",
                "an OPT record before another",
                with_records([0, 0, 2], &[opt, address]),
                "NOERROR 192.0.2.1 opt",
            ),
            row(
                "RFC 6891 §6.1.1",
                "an OPT record behind another",
                with_records([0, 0, 2], &[address, opt]),
                "NOERROR 192.0.2.1 opt",
            ),
            // The reply to a message with OPT has one, by the same section: without it, it would say that EDNS is not known here.
            row("RFC 6891 §6.1.1", "two OPT records", with_records([0, 0, 2], &[opt, opt]), "FORMERR opt").alone(),
            row(
                "RFC 6891 §6.1.1",
                "an OPT record among the answers",
                with_records([1, 0, 0], &[opt]),
                "FORMERR no opt",
            ),
            row("RFC 6891 §6.1.1", "one in the authority section", with_records([0, 1, 0], &[opt]), "FORMERR no opt"),
            row(
                "RFC 6891 §6.1.2",
                "an OPT record below a name",
                with_records([0, 0, 1], &[b"\x01x", opt]),
                "FORMERR no opt",
            ),
            row("RFC 6891 §6.1.1", "an OPT record cut short", with_records([0, 0, 1], &[&opt[..10]]), "FORMERR no opt"),
            row("RFC 6891 §6.1.3", "version 1", with_opt(1232, version(1), &[]), "BADVERS opt"),
            row("RFC 6891 §6.1.3", "version 255 and DO", with_opt(1232, version(255) | 0x8000, &[]), "BADVERS opt do"),
            row("RFC 6891 §6.1.3", "what is no option in our version", with_opt(1232, version(1), &[0]), "BADVERS opt"),
            row(
                "RFC 6891 §6.1.3",
                "upper bits of a response code",
                with_opt(1232, 0xff00_0000, &[]),
                "NOERROR 192.0.2.1 opt",
            ),
            row("RFC 6891 §6.1.4", "flags that mean nothing yet", with_opt(1232, 0x7fff, &[]), "NOERROR 192.0.2.1 opt"),
            row("RFC 3225 §3", "DO", www().dnssec_ok(), "NOERROR 192.0.2.1 opt do"),
            // The others know NOTIFY (RFC 1996), and refuse it for other reasons.
            row("RFC 6891 §6.1.1", "NOTIFY", other_opcode(4), "NOTIMP opt").alone(),
            row("RFC 6891 §6.1.1", "another opcode", other_opcode(6), "NOTIMP opt"),
            row("RFC 6891 §6.1.1", "an opcode of nobody's", other_opcode(15), "NOTIMP opt"),
            row("RFC 6891 §6.1.1", "another class", query("version.bind TXT").class(3).edns(1232), "REFUSED opt"),
        ],
        opt_look,
    );
}

#[test]
fn options_are_answered_as_the_rfcs_have_it() {
    let Some(panel) = Panel::new() else { return };
    let with = |code: u16, data: &[u8]| www().option(code, data);
    let plain = "NOERROR 192.0.2.1 opt";
    panel.check(
        vec![
            row("RFC 6891 §6.1.2", "an option that nobody knows", with(65_001, &[1, 2, 3]), plain),
            row("RFC 6891 §6.1.2", "an option without data", with(65_001, &[]), plain),
            row("RFC 6891 §6.1.2", "option 0", with(0, &[1]), plain),
            // BIND forgets the OPT record that §6.1.1 demands, and Unbound takes no offense.
            row("RFC 6891 §6.1.2", "half an option", with_opt(1232, 0, &[0, 10, 0]), "FORMERR opt").alone(),
            row("RFC 6891 §6.1.2", "a long option", with_opt(1232, 0, &[0xfd, 0xe9, 0, 2, 1]), "FORMERR opt").alone(),
            row("RFC 5001 §2.1", "NSID, which is hidden", with(3, &[]), plain),
            row("RFC 8914 §2", "an extended error, of a client", with(OPTION_EDE, &[0, 3]), plain),
            row("RFC 7830 §6", "padding, where everybody can read it", with(12, &[0; 60]), plain),
            row("RFC 7828 §3.3.1", "keepalive, in a datagram", with(11, &[]), plain),
            row("RFC 7828 §3.3.1", "keepalive with a time, in a datagram", with(11, &[0, 100]), plain),
            row("RFC 6975 §5", "the algorithms that a client knows", with(5, &[8, 13]), plain),
            row("RFC 8145 §4", "the keys that a client trusts", with(14, &[0x4f, 0x66]), plain),
            row("RFC 7871 §7.1.2", "a client's subnet, which goes nowhere", with(8, &[0, 1, 24, 0, 192, 0, 2]), plain),
            row("RFC 7871 §7.1.2", "no subnet", with(8, &[0, 1, 0, 0]), plain),
        ],
        opt_look,
    );
    let queries = panel.upstream.queries();
    let options = queries.iter().flat_map(|asked| asked.message.edns.iter().flat_map(|edns| &edns.options));
    assert!(
        options.clone().all(|(code, _)| *code == 10),
        "something of a client's went out: {:?}",
        options.collect::<Vec<_>>()
    );
}

/// Whole, or cut; and never longer than the client takes.
#[test]
fn a_reply_over_udp_fits_its_client() {
    fn look(row: &Row, reply: &Message) -> String {
        let offered = Message::from_wire(&row.sent).unwrap().edns.map_or(512, |edns| edns.udp_size.max(512));
        let fit = if reply.length <= usize::from(offered) { "" } else { " too long" };
        format!("{} {}{fit}", reply.rcode_name(), if reply.has(TC) { "cut" } else { "whole" })
    }
    let Some(panel) = Panel::new() else { return };
    let records = |count: usize| query(&format!("{count}.example TXT"));
    panel.check(
        vec![
            row("RFC 1035 §4.2.1", "3 records, without EDNS", records(3), "NOERROR whole"),
            row("RFC 1035 §4.2.1", "10 records, without EDNS", records(10), "NOERROR cut"),
            row("RFC 6891 §6.2.3", "10 records for 0 octets", records(10).edns(0), "NOERROR cut"),
            row("RFC 6891 §6.2.3", "3 records for 0 octets, which are 512", records(3).edns(0), "NOERROR whole"),
            row("RFC 6891 §6.2.3", "10 records for 511 octets", records(10).edns(511), "NOERROR cut"),
            row("RFC 6891 §6.2.3", "10 records for 512 octets", records(10).edns(512), "NOERROR cut"),
            row("RFC 6891 §6.2.3", "10 records for 1232 octets", records(10).edns(1232), "NOERROR whole"),
            row("RFC 6891 §6.2.3", "20 records for 1232 octets", records(20).edns(1232), "NOERROR cut"),
            // The others have one ceiling for all; on this host no datagram is lost for its size.
            row("RFC 6891 §6.2.5", "100 records for 16384 octets", records(100).edns(16_384), "NOERROR whole").alone(),
            row("RFC 6891 §6.2.5", "100 records for 4096 octets", records(100).edns(4096), "NOERROR cut"),
            row("RFC 6891 §6.2.5", "400 records for 65535 octets", records(400).edns(65_535), "NOERROR cut"),
        ],
        look,
    );
    for count in [3, 10, 20, 100, 400] {
        let whole = panel.ours.tcp(&records(count).edns(1232));
        assert_eq!((whole.has(TC), whole.answer.len()), (false, count), "over TCP");
    }
}

#[test]
fn version_and_size_of_ours_are_told() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for asked in [www().edns(512), www().edns(65_535).dnssec_ok()] {
        let dnssec_ok = asked.edns.as_ref().is_some_and(|edns| edns.dnssec_ok);
        let expected = Edns { udp_size: 1232, dnssec_ok, ..Edns::default() };
        assert_eq!(daemon.udp(&asked).edns, Some(expected));
    }
}
