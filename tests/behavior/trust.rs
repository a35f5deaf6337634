//! No upstream can put a record in the place of another rule's.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use crate::harness::{daemon::forward, *};

type Attack = fn(&Asked, &str) -> Message;

const LIE: &str = "203.0.113.66";

fn own(asked: &Asked) -> Message {
    asked.message.respond().answer(&format!("{} 300 A 192.0.2.1", asked.message.qname()))
}

/// What the server of `evil.example` says when it is asked for one of its names, to have its way with `victim`.
const ATTACKS: [(&str, Attack); 16] = [
    ("an address beside the answer", |asked, victim| own(asked).answer(&format!("{victim} 300 A {LIE}"))),
    ("an address before the answer", |asked, victim| {
        let mut message = own(asked).answer(&format!("{victim} 300 A {LIE}"));
        message.answer.reverse();
        message
    }),
    ("an address for an answer", |asked, victim| asked.message.respond().answer(&format!("{victim} 300 A {LIE}"))),
    ("an address in the additional section", |asked, victim| own(asked).additional(&format!("{victim} 300 A {LIE}"))),
    ("an address in the authority section", |asked, victim| own(asked).authority(&format!("{victim} 300 A {LIE}"))),
    ("a name server for it", |asked, victim| {
        let message = own(asked).authority(&format!("{victim} 300 NS ns.evil.example."));
        message.additional(&format!("ns.evil.example. 300 A {LIE}"))
    }),
    ("a name server for the zone above it", |asked, victim| {
        let zone = victim.split_once('.').unwrap().1;
        let message = own(asked).authority(&format!("{zone} 300 NS ns.evil.example."));
        message.additional(&format!("ns.evil.example. 300 A {LIE}"))
    }),
    ("glue, for it is our name server", |asked, victim| {
        let message = own(asked).authority(&format!("evil.example. 300 NS {victim}"));
        message.additional(&format!("{victim} 300 A {LIE}"))
    }),
    ("an alias that leads there", |asked, victim| {
        let message = asked.message.respond().answer(&format!("{} 300 CNAME {victim}", asked.message.qname()));
        message.answer(&format!("{victim} 300 A {LIE}"))
    }),
    ("an alias that leads there by a detour", |asked, victim| {
        let message = asked.message.respond().answer(&format!("{} 300 CNAME x.evil.example.", asked.message.qname()));
        message.answer(&format!("x.evil.example. 300 CNAME {victim}")).answer(&format!("{victim} 300 A {LIE}"))
    }),
    ("a DNAME record that leads there", |asked, victim| {
        let (first, zone) = victim.split_once('.').unwrap();
        let message = asked.message.respond().answer(&format!("evil.example. 300 DNAME {zone}"));
        // The alias that follows from it is another name's, so it says nothing of the question.
        let message = message.answer(&format!("{first}.evil.example. 300 CNAME {victim}"));
        message.answer(&format!("{victim} 300 A {LIE}"))
    }),
    ("a DNAME record above it", |asked, victim| {
        let zone = victim.split_once('.').unwrap().1;
        own(asked).answer(&format!("{zone} 300 DNAME evil.example."))
    }),
    ("a denial of it", |asked, victim| {
        let soa = format!("{victim} 300 SOA ns.evil.example. host.evil.example. 1 2 3 4 300");
        asked.message.respond().rcode("NXDOMAIN").authority(&soa)
    }),
    ("a denial by the root", |asked, _| {
        let soa = ". 300 SOA ns.evil.example. host.evil.example. 1 2 3 4 300";
        asked.message.respond().rcode("NXDOMAIN").authority(soa)
    }),
    ("a service that it provides", |asked, victim| {
        let message = asked.message.respond().answer(&format!("{} 300 SRV 1 1 80 {victim}", asked.message.qname()));
        message.additional(&format!("{victim} 300 A {LIE}"))
    }),
    ("an answer to the question for it", |asked, victim| Message {
        question: query(&format!("{victim} A")).question,
        ..asked.message.respond().answer(&format!("{victim} 300 A {LIE}"))
    }),
];

#[test]
fn an_upstream_has_no_say_over_names_of_other_rules() {
    // a7v2.evil.example is the seventh attack on the second kind of victim.
    let victims = |attack: usize| {
        [
            (format!("v{attack}.corp.example."), "192.0.2.10"),
            (format!("v{attack}.static.example."), "192.0.2.30"),
            (format!("v{attack}.service.consul."), "192.0.2.40"),
            (format!("v{attack}.overlaid.example."), "192.0.2.60"),
            (format!("v{attack}.example."), "192.0.2.50"),
        ]
    };
    let evil = Upstream::new(move |asked| {
        let qname = asked.message.qname().to_lowercase();
        let numbers: Option<(usize, usize)> = qname.split_once('.').and_then(|(label, _)| {
            let (attack, victim) = label.strip_prefix('a')?.split_once('v')?;
            Some((attack.parse().ok()?, victim.parse().ok()?))
        });
        match numbers {
            Some((attack, victim)) => vec![Act::Reply(ATTACKS[attack].1(asked, &victims(attack)[victim].0))],
            None => vec![Act::Reply(own(asked))],
        }
    });
    let [corp, consul, public] = ["192.0.2.10", "192.0.2.40", "192.0.2.50"].map(Upstream::saying);
    let config = [
        forward(".", &[public.address()]),
        forward("corp.example", &[corp.address()]),
        forward("consul", &[consul.address()]),
        forward("evil.example", &[evil.address()]),
        "[[zone]]\napex = \"static.example\"\nfile = \"<DIR>/static.zone\"\n".to_owned(),
        "[[zone]]\napex = \"overlaid.example\"\nfile = \"<DIR>/some.overlay\"\nmode = \"overlay\"\n".to_owned(),
    ];
    let daemon = Setup::new(&config.concat())
        .file("static.zone", "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n* A 192.0.2.30\n")
        .file("some.overlay", "$TTL 60\n* A 192.0.2.60\n")
        .start();
    let attempt = |attack: usize| {
        for (number, (victim, address)) in victims(attack).iter().enumerate() {
            let case = format!("{}: {victim}", ATTACKS[attack].0);
            for (over_tcp, qtype) in [(false, "A"), (true, "SRV"), (false, "ANY")] {
                let query = query(&format!("a{attack}v{number}.evil.example {qtype}")).edns(4096);
                let reply = if over_tcp { daemon.tcp(&query) } else { daemon.udp(&query) };
                for record in reply.answer.iter().chain(&reply.authority).chain(&reply.additional) {
                    let line = record.line();
                    assert!(!line.contains(LIE) || line.contains(".evil.example. "), "{case}: {line}");
                    let is_victims = record.owner.eq_ignore_ascii_case(victim) && record.rtype == 1;
                    assert!(!is_victims || record.data() == *address, "{case}: {line}");
                }
            }
            for over_tcp in [false, true, false] {
                daemon.demand(&format!("{victim} A"), address, over_tcp);
            }
        }
    };
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // The last one takes the most time.
                while let Some(attack) = ATTACKS.len().checked_sub(1 + next.fetch_add(1, Ordering::Relaxed)) {
                    attempt(attack);
                }
            });
        }
    });
    for (upstream, suffix) in [(&corp, ".corp.example. "), (&consul, ".consul. "), (&evil, ".evil.example. ")] {
        // One that leaves queries unanswered is asked for the root, to see whether it is there.
        let is_right = |asked: &String| asked.contains(suffix) || asked == ". NS";
        assert!(upstream.asked().iter().all(is_right), "{suffix}: {:?}", upstream.asked());
    }
    let kept = [".corp.", ".consul.", ".evil.", ".static.", ".overlaid."];
    assert!(public.asked().iter().all(|asked| !kept.iter().any(|part| asked.contains(part))), "{:?}", public.asked());
}
