//! Names of strangers do not lead to hosts of ours, where a rule says so.

use crate::harness::{daemon::forward, *};

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
