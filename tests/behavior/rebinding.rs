//! Names of strangers do not lead to hosts of ours, where a rule says so.

use crate::harness::{daemon::forward, programs::Program, *};

const RECORDS: [&str; 14] = [
    "public.example. 60 A 192.0.2.1",
    "private.example. 60 A 10.0.0.1",
    "private.example. 60 AAAA fd00::1",
    "mixed.example. 60 A 192.0.2.1",
    "mixed.example. 60 A 192.168.0.1",
    "metadata.example. 60 A 169.254.169.254",
    "zero.example. 60 A 0.0.0.0",
    "mapped.example. 60 AAAA ::ffff:127.0.0.1",
    "alias.example. 60 CNAME private.example.",
    "inward.example. 60 CNAME app.corp.test.",
    "nas.exempt.example. 60 A 10.0.0.9",
    // Priority 1, our own name, ipv4hint 10.0.0.1.
    "bound.example. 60 HTTPS \\# 11 000100000400040a000001",
    "mail.example. 60 MX 10 private.example.",
    "text.example. 60 TXT \"10.0.0.1\"",
];

#[test]
fn addresses_within_a_site_are_left_out_where_a_rule_guards_against_them() {
    let public = Upstream::holding(&RECORDS);
    let corp = Upstream::holding(&["app.corp.test. 60 A 10.0.0.5"]);
    let config =
        forward(".", &[public.address()]) + "block_special = false\n" + &forward("corp.test", &[corp.address()]);
    let daemon = Setup::new(&config).start();
    // What each is told without the guard, and with it; a reload forgets what was cached without.
    let cases: [(&str, &[&str], &[&str]); 15] = [
        ("public.example A", &["192.0.2.1"], &["192.0.2.1"]),
        ("private.example A", &["10.0.0.1"], &[]),
        ("private.example AAAA", &["fd00::1"], &[]),
        ("mixed.example A", &["192.0.2.1", "192.168.0.1"], &["192.0.2.1"]),
        ("metadata.example A", &["169.254.169.254"], &[]),
        ("zero.example A", &["0.0.0.0"], &[]),
        ("mapped.example AAAA", &["::ffff:127.0.0.1"], &[]),
        ("alias.example A", &["private.example.", "10.0.0.1"], &["private.example."]),
        ("inward.example A", &["app.corp.test.", "10.0.0.5"], &["app.corp.test."]), // over to another rule
        ("app.corp.test A", &["10.0.0.5"], &["10.0.0.5"]),                          // which speaks for itself
        ("nas.exempt.example A", &["10.0.0.9"], &["10.0.0.9"]),
        ("bound.example HTTPS", &["\\# 11 000100000400040a000001"], &[]),
        ("mail.example MX", &["10 private.example."], &["10 private.example."]),
        ("text.example TXT", &["\"10.0.0.1\""], &["\"10.0.0.1\""]),
        ("none.example A", &[], &[]),
    ];
    let withheld = || daemon.metric("watershed_resolve_withheld_total", &[]);
    for (is_guarded, times) in [(false, 1), (true, 2)] {
        if is_guarded {
            let keys = "block_special = false\nrebinding_guard = true\nrebinding_exempt = [\"exempt.example\"]\n";
            daemon.edit_config(|config| config.replace("block_special = false\n", keys));
            assert!(daemon.reload().contains("reloaded"));
        }
        // The second time from the cache.
        for _ in 0..times {
            for (question, without, with) in cases {
                let reply = daemon.ask(question);
                let expected = if is_guarded { with } else { without };
                assert_eq!(reply.data(), expected, "{question}, guarded: {is_guarded}");
                let is_less = expected.len() < without.len();
                assert_eq!(reply.extended_errors().contains(&15), is_less, "{question}: {reply:?}");
                assert_eq!(reply.rcode_name(), if question.starts_with("none") { "NXDOMAIN" } else { "NOERROR" });
            }
        }
        assert_eq!(withheld() > 0.0, is_guarded);
    }
    // Of glue in a message, too.
    public.change(|asked| {
        let response = asked.message.respond().answer(&format!("{} 60 MX 10 mx.example.", asked.message.qname()));
        vec![Act::Reply(response.additional("mx.example. 60 A 192.0.2.9").additional("mx.example. 60 A 10.0.0.9"))]
    });
    let reply = daemon.ask("glue.example MX");
    let glue: Vec<_> = reply.additional.iter().map(message::Record::line).collect();
    assert_eq!(
        (reply.data(), glue),
        (vec!["10 mx.example.".to_owned()], vec!["mx.example. 60 A 192.0.2.9".to_owned()])
    );
}

/// Unbound leaves out what `private-address` lists. With our networks in that list the answers are the same.
#[test]
fn unbound_leaves_out_the_same_addresses() {
    const NETWORKS: [&str; 20] = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/29",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "::/127",
        "::ffff:10.0.0.0/104",
        "::ffff:0:10.0.0.0/104",
        "64:ff9b::10.0.0.0/104",
        "64:ff9b:1::/48",
        "2001:2::/48",
        "2002:a00::/24",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
    ];
    let addresses = [
        "A 10.1.2.3",
        "A 100.127.0.1",
        "A 172.32.0.1",
        "A 192.0.0.2",
        "A 192.0.0.170",
        "A 198.19.0.1",
        "A 198.20.0.1",
        "A 203.0.113.1",
        "A 240.0.0.1",
        "A 255.255.255.255",
        "AAAA ::1",
        "AAAA ::ffff:10.0.0.1",
        "AAAA ::ffff:0:10.0.0.1",
        "AAAA 64:ff9b::10.0.0.1",
        "AAAA 64:ff9b::203.0.113.1",
        "AAAA 64:ff9b:1::203.0.113.1",
        "AAAA 2001:2::1",
        "AAAA 2001:db8::1",
        "AAAA 2002:a00:1::1",
        "AAAA 5f00::1",
        "AAAA fd00::1",
        "AAAA fe80::1",
    ];
    let mut records = vec!["www.example. 300 A 192.0.2.1".to_owned()];
    let names = addresses.iter().enumerate().map(|(number, data)| (format!("n{number}.example."), data));
    for (name, data) in names.clone() {
        records.push(format!("{name} 300 {data}"));
        records.push(format!("alias-{name} 300 CNAME {name}"));
        records.push(format!("mixed-{name} 300 {data}"));
        let public = if data.starts_with("AAAA") { "AAAA 2001:db8::9" } else { "A 192.0.2.9" };
        records.push(format!("mixed-{name} 300 {public}"));
    }
    let upstream = Upstream::holding(&records.iter().map(String::as_str).collect::<Vec<_>>());
    let Some(unbound) = Program::unbound_guarded(upstream.address(), &NETWORKS) else { return };
    let config = forward(".", &[upstream.address()]) + "block_special = false\nrebinding_guard = true\n";
    let daemon = Setup::new(&config).start();
    for (name, data) in names {
        let qtype = data.split(' ').next().unwrap();
        for prefix in ["", "alias-", "mixed-"] {
            let question = query(&format!("{prefix}{name} {qtype}")).edns(1232);
            let [mut ours, mut theirs] =
                [daemon.address(), unbound.address()].map(|server| udp(server, &question).data());
            ours.sort();
            theirs.sort();
            assert_eq!(ours, theirs, "{prefix}{name} {data}");
        }
    }
}
