//! Server cookies: each of us takes those of all who share the secret, and nobody else's.

use std::{net::SocketAddr, time::SystemTime};

use siphasher::sip::SipHasher24;

use super::{Panel, SECRET, opt_look, opt_record, row, with_records};
use crate::harness::{daemon::forward, programs::Program, *};

const COOKIE: u16 = 10;
const CLIENT: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

fn www() -> Message {
    query("www.example A")
}

fn with_cookie(data: &[u8]) -> Message {
    www().option(COOKIE, data)
}

/// A cookie for a client at 127.0.0.1, made so many seconds ago (RFC 9018 §4).
fn cookie(secret: &str, age: i64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    let mut data = [&CLIENT[..], &[1, 0, 0, 0], &((now - age) as u32).to_be_bytes()].concat();
    let key: Vec<u8> = (0..32).step_by(2).map(|at| u8::from_str_radix(&secret[at..at + 2], 16).unwrap()).collect();
    let input = [&data[..], &[127, 0, 0, 1]].concat();
    data.extend(SipHasher24::new_with_key(&key.try_into().unwrap()).hash(&input).to_le_bytes());
    data
}

/// The cookie that a server gives to one who shows this.
#[track_caller]
fn given(server: SocketAddr, shown: &[u8]) -> Vec<u8> {
    let reply = udp(server, &with_cookie(shown));
    let options = reply.edns.expect("an OPT record").options;
    let [(COOKIE, data)] = &options[..] else { panic!("{options:?}") };
    data.clone()
}

/// Unbound has server cookies from 1.18 on: where it has none, BIND's is the one opinion.
#[test]
fn cookies_are_answered_as_the_rfcs_have_it() {
    let Some(panel) = Panel::new() else { return };
    let told = "NOERROR 192.0.2.1 opt 10:24";
    let other_secret = "00000000000000000000000000000000";
    let changed = |at: usize| {
        let mut data = cookie(SECRET, 0);
        data[at] ^= 0x80;
        data
    };
    let two = |first: &[u8], second: &[u8]| www().option(COOKIE, first).option(COOKIE, second);
    let alone = |opcode: u8, rdata: &[u8]| {
        let mut wire = with_records([0, 0, 1], &[]);
        wire.truncate(12);
        wire[2] = opcode << 3;
        wire[5] = 0;
        [wire, opt_record(1232, 0, rdata)].concat()
    };
    let cookie_option = [&[0, 10, 0, 8][..], &CLIENT].concat();
    panel.check(
        vec![
            row("RFC 7873 §5.2.1", "no cookie", www().edns(1232), "NOERROR 192.0.2.1 opt"),
            row("RFC 7873 §5.2.3", "the client's part alone", with_cookie(&CLIENT), told),
            row("RFC 7873 §5.2.5", "a good one", with_cookie(&cookie(SECRET, 0)), told),
            row("RFC 9018 §4.3", "a good one that is not old", with_cookie(&cookie(SECRET, 1700)), told),
            row("RFC 9018 §4.3", "a good one that is old", with_cookie(&cookie(SECRET, 1900)), told),
            row("RFC 9018 §4.3", "one that is too old", with_cookie(&cookie(SECRET, 3700)), told),
            row("RFC 9018 §4.3", "one by a clock that is ahead", with_cookie(&cookie(SECRET, -200)), told),
            row("RFC 9018 §4.3", "one by a clock too far ahead", with_cookie(&cookie(SECRET, -400)), told),
            row("RFC 7873 §5.2.4", "one by another secret", with_cookie(&cookie(other_secret, 0)), told),
            row("RFC 7873 §5.2.4", "one of another client", with_cookie(&changed(0)), told),
            row("RFC 9018 §4.1", "one of another version", with_cookie(&changed(8)), told),
            row("RFC 9018 §4.4", "one with another hash", with_cookie(&changed(23)), told),
            row("RFC 7873 §5.2.2", "no octet", with_cookie(&[]), "FORMERR opt"),
            row("RFC 7873 §5.2.2", "7 octets", with_cookie(&[1; 7]), "FORMERR opt"),
            row("RFC 7873 §5.2.2", "9 octets", with_cookie(&[1; 9]), "FORMERR opt"),
            row("RFC 7873 §5.2.2", "15 octets", with_cookie(&[1; 15]), "FORMERR opt"),
            row("RFC 7873 §5.2.4", "16 octets", with_cookie(&[1; 16]), told),
            row("RFC 7873 §5.2.4", "40 octets", with_cookie(&[1; 40]), told),
            row("RFC 7873 §5.2.2", "41 octets", with_cookie(&[1; 41]), "FORMERR opt"),
            row("RFC 7873 §5.2", "two, of which the first counts", two(&cookie(SECRET, 0), &[2; 8]), told),
            row("RFC 7873 §5.4", "no question, only a cookie", alone(0, &cookie_option), "NOERROR opt 10:24"),
            row("RFC 7873 §5.4", "no question and no cookie", alone(0, &[]), "FORMERR opt"),
        ],
        opt_look,
    );
}

/// BIND shows what it thinks of a cookie if it demands one.
#[test]
fn servers_that_share_a_secret_take_each_others_cookies() {
    let upstream = Upstream::saying("192.0.2.1");
    let options = format!("cookie-secret \"{SECRET}\"; require-server-cookie yes;");
    let Some(bind) = Program::bind_forwarding_all(upstream.address(), &options) else { return };
    let server = format!("[server]\nlisten = [\"127.0.0.1:0\"]\ncookie_secrets = [\"{SECRET}\"]\n");
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + &server)).start();
    let (of_ours, of_bind) = (given(daemon.address(), &CLIENT), given(bind.address(), &CLIENT));
    assert_eq!(given(daemon.address(), &of_bind), of_bind);
    let of_nobody = [&of_ours[..23], &[of_ours[23] ^ 1]].concat();
    for (shown, expected) in [(of_ours, "NOERROR"), (of_bind, "NOERROR"), (of_nobody, "BADCOOKIE")] {
        assert_eq!(udp(bind.address(), &with_cookie(&shown)).rcode_name(), expected);
    }
}

/// A restart makes another secret, unless one is set; and a secret may give way to another without anybody noticing.
#[test]
fn a_cookie_lives_as_long_as_its_secret() {
    let upstream = Upstream::saying("192.0.2.1");
    let server = "[server]\nlisten = [\"127.0.0.1:0\"]\n";
    let start = |secrets: &str| Setup::new(&(forward(".", &[upstream.address()]) + server + secrets)).start();
    let first = start("");
    let own = given(first.address(), &CLIENT);
    assert_eq!(given(first.address(), &own), own);
    assert_ne!(given(start("").address(), &own), own, "another start, another secret");

    let next = "445536bcd2513298075a5d379663c962";
    let daemon = start(&format!("cookie_secrets = [\"{SECRET}\"]\n"));
    let old = given(daemon.address(), &CLIENT);
    let replace = |from: &str, to: &str| {
        daemon.edit_config(|config| config.replace(from, to));
        let said = daemon.reload();
        assert!(said.contains("reloaded"), "{said}");
    };
    replace(&format!("[\"{SECRET}\"]"), &format!("[\"{SECRET}\", \"{next}\"]"));
    let early = cookie(next, 0);
    assert_eq!(given(daemon.address(), &old), old);
    assert_ne!(given(daemon.address(), &early), early, "known, but no longer made");
    replace(&format!("[\"{SECRET}\", \"{next}\"]"), &format!("[\"{next}\"]"));
    assert_eq!(given(daemon.address(), &early), early);
    assert_ne!(given(daemon.address(), &old), old);
}

#[test]
fn a_cookie_comes_over_every_transport_and_with_every_answer() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for question in
        ["new.example A", "new.example A", "new.example AAAA", "new.example AXFR", "localhost A", "no.invalid A"]
    {
        let asked = query(question).option(COOKIE, &CLIENT);
        for reply in [daemon.udp(&asked), daemon.tcp(&asked)] {
            let options = reply.edns.unwrap().options;
            assert!(options.iter().any(|(code, data)| *code == COOKIE && data.len() == 24), "{question}: {options:?}");
        }
    }
    for asked in upstream.queries() {
        let options = asked.message.edns.unwrap().options;
        assert!(options.iter().all(|(_, data)| !data.starts_with(&CLIENT)), "it is passed on: {options:?}");
    }
}

#[test]
fn a_secret_that_is_none_is_refused_and_not_shown() {
    let config = "[server]\nlisten = [\"127.0.0.1:0\"]\ncookie_secrets = [\"e5e973e5\"]\n";
    let ended = Setup::new(config).check();
    assert_eq!(ended.code, Some(2), "{}", ended.text);
    assert!(ended.text.contains("watershed.toml:3:") && ended.text.contains("openssl rand -hex 16"), "{}", ended.text);
    assert!(!ended.text.contains("e5e973e5"), "{}", ended.text);
}
