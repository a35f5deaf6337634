//! What overlays say, alone and together.

use super::*;

fn overlay(apex: &str, text: &str) -> Arc<Overlay> {
    Arc::new(Overlay::parse(Path::new("test.overlay"), text, &apex.parse().unwrap()).unwrap())
}

/// What is said, in short: the rcode of a denial or the RDATA's last octets; nothing if the name falls through.
fn ask(overlays: &Overlays, qname: &str, qtype: Rtype) -> String {
    let question = Question { qname: qname.parse().unwrap(), qtype, qclass: Class::IN };
    match overlays.answer(&question, Client::Remote) {
        None => String::new(),
        Some(Ruling::Answer { answer, .. }) if answer.answer.is_empty() => {
            assert!(answer.rcode == Rcode::YXDOMAIN || answer.authority[0].owner == question.qname, "{qname}: SOA");
            answer.rcode.to_string()
        }
        Some(Ruling::Answer { answer, .. }) => {
            let texts = answer.answer.iter().map(|record| match record.target() {
                Some(target) => format!("{} {target}", record.rtype),
                None => format!("{} {}", record.rtype, record.rdata.last().copied().unwrap_or_default()),
            });
            texts.collect::<Vec<_>>().join(", ")
        }
        Some(other) => format!("{other:?}"),
    }
}

#[test]
fn an_overlay_owns_its_names_for_all_types_and_no_others() {
    let file = overlay("example.", "a.b 60 A 192.0.2.1\na.b 60 A 192.0.2.2\nalias CNAME www.other.test.\n");
    let overlays = Overlays::new(vec![file], Vec::new());
    for (qname, qtype, expected) in [
        ("a.b.example.", Rtype::A, "A 1, A 2"),
        ("a.b.example.", Rtype::ANY, "A 1, A 2"),
        ("a.b.example.", Rtype::AAAA, "NOERROR"),
        ("b.example.", Rtype::A, ""), // an empty non-terminal
        ("x.a.b.example.", Rtype::A, ""),
        ("example.", Rtype::A, ""),
        ("alias.example.", Rtype::A, "CNAME www.other.test."),
        ("alias.example.", Rtype::CNAME, "CNAME www.other.test."),
    ] {
        assert_eq!(ask(&overlays, qname, qtype), expected, "{qname} {qtype}");
    }
    let chaos = Question { qname: "a.b.example.".parse().unwrap(), qtype: Rtype::A, qclass: Class::CH };
    assert_eq!(overlays.answer(&chaos, Client::Remote), None);
}

#[test]
fn response_policy_actions_are_obeyed() {
    let file = overlay(
        ".",
        "
@ SOA localhost. nobody.invalid. 1 1h 20m 1w 30
@ NS localhost.
gone.test CNAME .
empty.test CNAME *.
good.test CNAME rpz-passthru.
drop.test CNAME RPZ-drop.
tcp.test CNAME rpz-tcp-only.
*.walled.test CNAME *.garden.example.
one.test CNAME garden.example.
32.1.2.0.192.rpz-ip CNAME .
",
    );
    assert_eq!(file.warnings().len(), 1, "a trigger that is not a name is passed over");
    let overlays = Overlays::new(vec![file.clone()], Vec::new());
    for (qname, qtype, expected) in [
        ("gone.test.", Rtype::A, "NXDOMAIN"),
        ("gone.test.", Rtype::CNAME, "NXDOMAIN"), // the record is an action, no data
        ("x.gone.test.", Rtype::A, ""),
        ("empty.test.", Rtype::MX, "NOERROR"),
        ("good.test.", Rtype::A, "PassThrough"),
        ("drop.test.", Rtype::A, "Drop"),
        ("tcp.test.", Rtype::A, "TcpOnly"),
        ("www.walled.test.", Rtype::A, "CNAME www.walled.test.garden.example."),
        ("walled.test.", Rtype::A, ""),
        ("one.test.", Rtype::A, "CNAME garden.example."),
        ("32.1.2.0.192.rpz-ip.", Rtype::A, ""),
        (".", Rtype::NS, ""), // what RPZ demands at the apex is no data
    ] {
        assert_eq!(ask(&overlays, qname, qtype), expected, "{qname} {qtype}");
    }
    let long = format!("{}walled.test.", "abcdefghi.".repeat(23));
    assert_eq!(ask(&overlays, &long, Rtype::A), "YXDOMAIN");
    let question = Question { qname: "gone.test.".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
    let Some(Ruling::Answer { answer, generation }) = overlays.answer(&question, Client::Remote) else { panic!() };
    assert_eq!((answer.authority[0].ttl, generation), (30, file.generation()), "the SOA minimum of the file");
}

#[test]
fn exact_beats_wildcard_then_the_longer_apex_then_the_order_of_files() {
    let root = overlay(".", "*.example A 192.0.2.1\nexact.deep.example A 192.0.2.2\nboth.example A 192.0.2.3\n");
    let deep = overlay("deep.example.", "* A 192.0.2.4\n*.x A 192.0.2.5\ngood.x CNAME rpz-passthru.\n");
    let late = overlay(".", "both.example A 192.0.2.6\nlate.test A 192.0.2.7\n*.example A 192.0.2.8\n");
    let hosts = Hosts::parse(Path::new("hosts"), b"192.0.2.9 hosts.deep.example both.example\n");
    let overlays = Overlays::new(vec![root, deep, late], vec![Arc::new(hosts)]);
    for (qname, expected) in [
        ("exact.deep.example.", "A 2"),
        ("other.deep.example.", "A 4"),
        ("deep.example.", "A 1"),
        ("y.x.deep.example.", "A 5"),
        ("x.deep.example.", "A 4"),
        ("good.x.deep.example.", "PassThrough"),
        ("a.good.x.deep.example.", "A 5"), // the longest wildcard, whatever names exist
        ("both.example.", "A 3"),
        ("hosts.deep.example.", "A 9"), // exact in a hosts file
        ("late.test.", "A 7"),
        ("a.b.c.example.", "A 1"),
        ("*.example.", "A 1"),
        ("example.", ""),
    ] {
        assert_eq!(ask(&overlays, qname, Rtype::A), expected, "{qname}");
    }
}

#[test]
fn names_of_which_the_same_is_said_share_it() {
    let text: String = (0..100).map(|i| format!("a{i} CNAME .\nb{i} A 0.0.0.0\nb{i} AAAA ::\n")).collect();
    let file = overlay(".", &text);
    assert_eq!(file.actions.len(), 3);
    let overlays = Overlays::new(vec![file], Vec::new());
    assert_eq!(ask(&overlays, "b7.", Rtype::ANY), "A 0, AAAA 0");
    assert_eq!(ask(&overlays, "a99.", Rtype::A), "NXDOMAIN");
}

#[test]
fn a_name_that_leads_to_itself_is_left_alone() {
    let file = overlay(
        ".",
        "self.test CNAME SELF.test.\n*.apis.test CNAME restricted.apis.test.\n*.wild.test CNAME *.wild.test.\n",
    );
    assert_eq!(file.warnings(), []);
    let overlays = Overlays::new(vec![file], Vec::new());
    for (qname, expected) in [
        ("self.test.", "PassThrough"),
        ("www.apis.test.", "CNAME restricted.apis.test."),
        ("restricted.apis.test.", "PassThrough"),
        ("www.wild.test.", "CNAME www.wild.test.wild.test."),
    ] {
        assert_eq!(ask(&overlays, qname, Rtype::A), expected, "{qname}");
    }
}

#[test]
fn files_with_a_place_in_the_order_are_asked_one_after_the_other() {
    let allow = overlay(".", "*.shop.test CNAME rpz-passthru.\n");
    let block = overlay(".", "ads.shop.test CNAME .\n*.test A 192.0.2.1\nheld.test A 192.0.2.2\n");
    let site = overlay("site.test.", "www A 192.0.2.3\n");
    let hosts = Arc::new(Hosts::parse(Path::new("hosts"), b"192.0.2.4 db.test www.site.test\n"));
    let unordered = || Overlays::new(vec![allow.clone(), block.clone(), site.clone()], vec![hosts.clone()]);
    let by_order = |ordered: Vec<Ordered>| Overlays::new(vec![site.clone()], Vec::new()).with_ordered(ordered);
    let (allow, block, hosts) =
        (Ordered::Overlay(allow.clone()), Ordered::Overlay(block.clone()), Ordered::Hosts(hosts.clone()));
    let allow_first = by_order(vec![allow.clone(), block.clone(), hosts.clone()]);
    let block_first = by_order(vec![block.clone(), allow.clone(), hosts.clone()]);
    let hosts_first = by_order(vec![hosts, allow, block]);
    for (qname, expected) in [
        // The wildcard of the first file is before the name in the second, unless there is no order.
        ("ads.shop.test.", ["NXDOMAIN", "PassThrough", "NXDOMAIN", "PassThrough"]),
        ("x.shop.test.", ["PassThrough", "PassThrough", "A 1", "PassThrough"]),
        ("held.test.", ["A 2", "A 2", "A 2", "A 2"]),
        ("db.test.", ["A 4", "A 1", "A 1", "A 4"]),
        // A longer apex does not help a file without a place.
        ("www.site.test.", ["A 3", "A 1", "A 1", "A 4"]),
    ] {
        let found = [&unordered(), &allow_first, &block_first, &hosts_first].map(|o| ask(o, qname, Rtype::A));
        assert_eq!(found, expected, "{qname}");
    }
    assert!(!hosts_first.is_client_dependent(&"db.test.".parse().unwrap()));
}

#[test]
fn a_response_policy_zone_is_relative_to_the_owner_of_its_soa() {
    let text = "$ORIGIN rpz.vendor.test.\n$TTL 60\nbad.test CNAME .\n@ SOA localhost. nobody.invalid. 1 1h 20m 1w 30\n\
                @ NS localhost.\n*.wild.test CNAME *.\nGood.Test CNAME rpz-passthru.\nlocal.test CNAME garden\n\
                bad.test RRSIG CNAME 13 2 60 20380101000000 20250101000000 1 rpz.vendor.test. AQID\n\
                nsec.test NSEC @ CNAME\n";
    for apex in [".", "rpz.vendor.test.", "vendor.test."] {
        let file = overlay(apex, text);
        assert_eq!(file.warnings(), [], "{apex}");
        let overlays = Overlays::new(vec![file], Vec::new());
        for (qname, expected) in [
            ("bad.test.", "NXDOMAIN"),
            ("x.wild.test.", "NOERROR"),
            ("good.test.", "PassThrough"),
            ("local.test.", "CNAME garden.rpz.vendor.test."),
            ("nsec.test.", ""),
            ("bad.test.rpz.vendor.test.", ""),
            ("rpz.vendor.test.", ""),
            (".", ""),
        ] {
            assert_eq!(ask(&overlays, qname, Rtype::A), expected, "{qname} {apex}");
        }
    }
}

#[test]
fn many_unsupported_triggers_are_one_warning() {
    let text: String = (0..5000).map(|i| format!("32.{}.{}.0.10.rpz-ip CNAME .\n", i % 256, i / 256)).collect();
    let file = overlay(".", &(text + "bad.test CNAME .\n"));
    let warnings: Vec<String> = file.warnings().iter().map(ToString::to_string).collect();
    let expected = "test.overlay:1: 32.0.0.0.10.rpz-ip. is a response policy trigger that is not supported and is passed over; \
                    remove it; and 4999 more of the kind";
    assert_eq!(warnings, [expected]);
    assert_eq!(ask(&Overlays::new(vec![file], Vec::new()), "bad.test.", Rtype::A), "NXDOMAIN");
}
