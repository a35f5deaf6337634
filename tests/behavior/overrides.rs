//! Override zones, overlays and hosts files: local data outranks the upstreams, by the rules of master files and RPZ.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use crate::harness::{daemon::forward, message::AA, netns::Netns, *};

const HEAD: &str = "$TTL 300\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n";

/// A daemon with these files in its folder of zones, and everything else forwarded.
fn with_zones(upstream: &Upstream, files: &[(&str, &str)]) -> Daemon {
    let zones = "[zones]\ndirectory = \"<DIR>/zones\"\nhosts = []\n";
    let setup = Setup::new(&(forward(".", &[upstream.address()]) + zones)).file("zones/empty.txt", "not a zone");
    files.iter().fold(setup, |setup, (name, text)| setup.file(&format!("zones/{name}"), text)).start()
}

#[test]
fn a_zone_file_is_served_by_the_rules_of_master_files() {
    let upstream = Upstream::saying("203.0.113.66");
    let zone = format!(
        "{HEAD}{}",
        r#"
@           600 IN  MX      10 mail
            IN  TXT     "of the apex" ; the owner is the one before
www             A       192.0.2.80
                AAAA    2001:db8::80
$ORIGIN sub.site.example.
www             A       192.0.2.81
absolute.site.example.  A 192.0.2.82
$INCLUDE included.txt included.site.example.
$ORIGIN site.example.
after           A       192.0.2.83
generic         TYPE65280 \# 4 ( 0102
                                 0304 )
empty-rdata     TYPE65281 \# 0
octets          TYPE1   \# 4 C0000254
esc\.aped       A       192.0.2.85
alias           CNAME   www
far             CNAME   www.elsewhere.test.
tree            DNAME   sub
*.wild          A       192.0.2.90
*.wild          MX      10 mail
held.wild       TXT     "no address"
x.ent.wild      A       192.0.2.91
child           NS      ns.child
ns.child        A       192.0.2.99
"#
    );
    let daemon =
        with_zones(&upstream, &[("site.example.zone", &zone), ("included.txt", "www A 192.0.2.84\n@ A 192.0.2.86\n")]);
    for (question, expected) in [
        ("site.example MX", "site.example. 600 MX 10 mail.site.example."),
        ("site.example TXT", "site.example. 300 TXT \"of the apex\""),
        ("site.example SOA", "site.example. 300 SOA ns.site.example. host.site.example. 1 2 3 4 60"),
        ("site.example NS", "site.example. 300 NS ns.site.example."),
        ("www.site.example A", "www.site.example. 300 A 192.0.2.80"),
        ("WWW.SITE.example AAAA", "WWW.SITE.example. 300 AAAA 2001:db8::80"),
        ("www.sub.site.example A", "www.sub.site.example. 300 A 192.0.2.81"),
        ("absolute.site.example A", "absolute.site.example. 300 A 192.0.2.82"),
        ("www.included.site.example A", "www.included.site.example. 300 A 192.0.2.84"),
        ("included.site.example A", "included.site.example. 300 A 192.0.2.86"),
        ("after.site.example A", "after.site.example. 300 A 192.0.2.83"),
        ("generic.site.example TYPE65280", "generic.site.example. 300 TYPE65280 \\# 4 01020304"),
        ("empty-rdata.site.example TYPE65281", "empty-rdata.site.example. 300 TYPE65281 \\# 0"),
        ("octets.site.example A", "octets.site.example. 300 A 192.0.2.84"),
        ("esc\\.aped.site.example A", "esc\\.aped.site.example. 300 A 192.0.2.85"),
        ("any.wild.site.example A", "any.wild.site.example. 300 A 192.0.2.90"),
        ("a.b.wild.site.example A", "a.b.wild.site.example. 300 A 192.0.2.90"), // RFC 4592 §2.2.1
        ("*.wild.site.example A", "*.wild.site.example. 300 A 192.0.2.90"),
        ("alias.site.example CNAME", "alias.site.example. 300 CNAME www.site.example."),
    ] {
        let reply = daemon.ask(question);
        assert_eq!(reply.answers(), [expected], "{question}");
        assert!(reply.has(AA), "{question}");
    }
    for (question, expected) in [
        ("no.site.example A", "NXDOMAIN"),
        ("www.site.example MX", "NOERROR"),
        ("sub.site.example A", "NOERROR"),         // an empty non-terminal exists
        ("held.wild.site.example A", "NOERROR"),   // a name that exists hides the wildcard
        ("ent.wild.site.example A", "NOERROR"),    // also an empty non-terminal
        ("y.ent.wild.site.example A", "NXDOMAIN"), // and what is below it
        ("any.wild.site.example AAAA", "NOERROR"),
    ] {
        let reply = daemon.ask(question);
        assert_eq!((reply.rcode_name(), reply.answer.len()), (expected, 0), "{question}");
        let soa = reply.soa().unwrap_or_else(|| panic!("{question}: no SOA record"));
        assert_eq!((soa.owner.as_str(), soa.ttl), ("site.example.", 60), "{question}: the SOA minimum (RFC 2308 §3)");
    }
    assert_eq!(daemon.ask("alias.site.example A").data(), ["www.site.example.", "192.0.2.80"]);
    assert_eq!(daemon.ask("far.site.example A").data(), ["www.elsewhere.test.", "203.0.113.66"]);
    let renamed = daemon.ask("www.tree.site.example A");
    assert_eq!(renamed.data(), ["sub.site.example.", "www.sub.site.example.", "192.0.2.81"]);
    let referral = daemon.ask("x.child.site.example A");
    assert_eq!((referral.rcode_name(), referral.answer.len(), referral.has(AA)), ("NOERROR", 0, false));
    assert_eq!(referral.authority[0].line(), "child.site.example. 300 NS ns.child.site.example.");
    assert_eq!(referral.additional[0].line(), "ns.child.site.example. 300 A 192.0.2.99");
    assert_eq!(upstream.asked(), ["www.elsewhere.test. A"]);
}

#[test]
fn the_ttl_of_local_data_does_not_age() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = with_zones(&upstream, &[("site.example.zone", &format!("{HEAD}www A 192.0.2.80\n"))]);
    daemon.ask("www.site.example A");
    daemon.ask("www.example A");
    // A forwarded answer ages meanwhile, which shows that a second has passed.
    wait_until("a TTL that ages", PATIENCE, || (daemon.ask("www.example A").answer[0].ttl < 300).then_some(()));
    assert_eq!(daemon.ask("www.site.example A").answer[0].ttl, 300);
}

#[test]
fn any_on_local_data_is_answered_with_little() {
    let upstream = Upstream::saying("192.0.2.1");
    let zone = format!("{HEAD}www A 192.0.2.80\nwww AAAA 2001:db8::80\nwww TXT \"x\"\n");
    let daemon = with_zones(&upstream, &[("site.example.zone", &zone)]);
    let reply = daemon.ask("www.site.example ANY");
    let mut types: Vec<u16> = reply.answer.iter().map(|record| record.rtype).collect();
    types.dedup();
    assert_eq!((reply.rcode_name(), types.len()), ("NOERROR", 1), "one RRset, or HINFO (RFC 8482 §4): {reply:#?}");
}

#[test]
fn an_overlay_speaks_for_its_names_alone() {
    let upstream = Upstream::saying("198.51.100.1");
    let daemon = with_zones(
        &upstream,
        &[
            (
                "example.overlay",
                "$TTL 300\nwww A 192.0.2.1\nblocked CNAME .\n*.blocked CNAME .\nempty CNAME *.\npass.blocked CNAME rpz-passthru.\n\
             *.wild A 192.0.2.2\nexact.wild A 192.0.2.3\nalias CNAME www.elsewhere.test.\n",
            ),
            ("sub.example.overlay", "$TTL 300\n@ A 192.0.2.4\n*.wild A 192.0.2.5\n"),
            ("wild.example.overlay", "$TTL 300\n*.deep A 192.0.2.6\n"),
            ("zone.example.zone", &format!("{HEAD}www A 192.0.2.7\nfixed A 192.0.2.8\n")),
            ("overlaid.overlay", "$TTL 300\nx A 192.0.2.9\n"),
        ],
    );
    for (question, expected) in [
        ("www.example A", "192.0.2.1"),
        ("sub.example A", "192.0.2.4"),
        ("any.wild.example A", "192.0.2.2"),
        ("exact.wild.example A", "192.0.2.3"),  // exact beats wildcard
        ("x.deep.wild.example A", "192.0.2.6"), // then the longer apex
        ("x.wild.sub.example A", "192.0.2.5"),
        ("other.example A", "198.51.100.1"), // what it does not hold falls through
        ("a.www.example A", "198.51.100.1"), // a name below a held one is not held
        ("example A", "198.51.100.1"),
        ("pass.blocked.example A", "198.51.100.1"), // rpz-passthru
        ("www.zone.example A", "192.0.2.7"),
        ("blocked.example A", "NXDOMAIN"),
        ("a.b.blocked.example A", "NXDOMAIN"),
        ("blocked.example MX", "NXDOMAIN"),
        ("empty.example A", "NODATA"),
        ("www.example MX", "NODATA"), // it owns a name for all types
        ("any.wild.example AAAA", "NODATA"),
    ] {
        let reply = daemon.ask(question);
        let found = match reply.answer.first() {
            Some(record) => record.data(),
            None if reply.rcode == 0 && reply.soa().is_some() => "NODATA".to_owned(),
            None => reply.rcode_name().to_owned(),
        };
        assert_eq!(found, expected, "{question}");
        assert!(!reply.answer.is_empty() || reply.soa().is_some(), "{question}: a denial has its SOA record");
    }
    assert_eq!(daemon.ask("alias.example A").data(), ["www.elsewhere.test.", "198.51.100.1"]);
    let allowed =
        ["other.example. A", "a.www.example. A", "example. A", "pass.blocked.example. A", "www.elsewhere.test. A"];
    assert!(upstream.asked().iter().all(|asked| allowed.contains(&asked.as_str())), "{:?}", upstream.asked());
}

#[test]
fn hosts_files_answer_names_and_addresses() {
    let upstream = Upstream::holding(&[]);
    let zones = "[zones]\nhosts = [\"<DIR>/hosts\"]\n";
    let hosts = "# comment\n192.0.2.1 db.example db # behind\n2001:db8::1\tdb.example\n192.0.2.2 DB2.Example\n\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + zones)).file("hosts", hosts).start();
    for (question, expected) in [
        ("db.example A", "192.0.2.1"),
        ("db A", "192.0.2.1"),
        ("db.example AAAA", "2001:db8::1"),
        ("db2.example A", "192.0.2.2"),
        ("1.2.0.192.in-addr.arpa PTR", "db.example."),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa PTR", "db.example."),
    ] {
        assert_eq!(daemon.ask(question).one(), expected, "{question}");
    }
    let lacking = daemon.ask("db2.example AAAA");
    assert_eq!((lacking.rcode_name(), lacking.answer.len()), ("NOERROR", 0), "a hosts entry owns its name");
    assert!(lacking.soa().is_some());
    assert_eq!(daemon.ask("other.example A").rcode_name(), "NXDOMAIN");
    assert_eq!(upstream.asked(), ["other.example. A"]);
}

#[test]
fn a_loopback_address_of_a_hosts_file_is_for_loopback_clients_only() {
    let Some(netns) = Netns::new("") else { return };
    let upstream = Upstream::at(SocketAddr::new(netns.host(), 5353), upstream::saying("192.0.2.1"));
    let config = forward(".", &[upstream.address()])
        + "[server]\nlisten = [\"0.0.0.0:53\"]\nallow = [\"any\"]\n[zones]\nhosts = [\"<DIR>/hosts\"]\n";
    let hosts = "127.0.1.1 monitor.example\n192.0.2.9 both.example\n";
    let daemon = Setup::new(&config).file("hosts", hosts).within(&netns).start();
    let from_outside = |question: &str| udp(SocketAddr::new(netns.guest(), 53), &query(question)).one();
    let from_loopback = |name: &str| run(netns.command("dig").args(["+short", "@127.0.0.1", name, "A"]));
    // Both orders, so that neither finds in the cache what is the other's.
    assert_eq!(from_loopback("monitor.example").trim(), "127.0.1.1");
    assert_eq!(from_outside("monitor.example A"), "192.0.2.1");
    assert_eq!(from_loopback("monitor.example").trim(), "127.0.1.1");
    assert_eq!(from_outside("both.example A"), "192.0.2.9");
    assert_eq!(from_loopback("both.example").trim(), "192.0.2.9");
    drop(daemon);
}

#[test]
fn a_changed_file_is_picked_up_within_a_second() {
    let upstream = Upstream::saying("198.51.100.1");
    let zones = "[zones]\ndirectory = \"<DIR>/zones\"\nhosts = [\"<DIR>/hosts\"]\n";
    let zone = |address: &str| format!("{HEAD}www A {address}\n");
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + zones))
        .file("zones/site.example.zone", &zone("192.0.2.1"))
        .file("hosts", "192.0.2.11 host.example\n")
        .start();
    let becomes = |question: &str, address: &str| {
        // A second for the daemon, the rest for a busy machine.
        wait_until(&format!("{question} {address}"), Duration::from_secs(4), || {
            (daemon.ask(question).data() == [address]).then_some(())
        });
    };
    becomes("www.site.example A", "192.0.2.1");
    becomes("new.example A", "198.51.100.1");
    daemon.write("zones/site.example.zone", &zone("192.0.2.2")); // replaced, as editors do
    becomes("www.site.example A", "192.0.2.2");
    fs::write(daemon.folder().join("zones/site.example.zone"), zone("192.0.2.3")).unwrap(); // written in place
    becomes("www.site.example A", "192.0.2.3");
    daemon.write("zones/new.example.zone", &format!("{HEAD}@ A 192.0.2.4\n")); // new
    becomes("new.example A", "192.0.2.4");
    fs::remove_file(daemon.folder().join("zones/new.example.zone")).unwrap(); // gone
    becomes("new.example A", "198.51.100.1");
    daemon.write("hosts", "192.0.2.12 host.example\n");
    becomes("host.example A", "192.0.2.12");
}

#[test]
fn a_faulty_file_is_refused_and_the_last_good_version_stays() {
    let upstream = Upstream::saying("198.51.100.1");
    let good = format!("{HEAD}www A 192.0.2.1\n");
    let other = format!("{HEAD}www A 192.0.2.5\n");
    let daemon = with_zones(&upstream, &[("site.example.zone", &good), ("other.example.zone", &other)]);
    let from = daemon.log_length();
    daemon.write("zones/site.example.zone", &format!("{HEAD}www A 192.0.2.2\nbroken A not-an-address\n"));
    let line = daemon.wait_for_log(from, |line| line.contains("site.example.zone") && line.contains(":6"));
    assert!(line.contains("ERROR"), "an operator must act: {line}");
    assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.1");
    assert_eq!(daemon.ask("broken.site.example A").rcode_name(), "NXDOMAIN");
    assert_eq!(daemon.ask("www.other.example A").one(), "192.0.2.5");
    // Mended, it is served again.
    daemon.write("zones/site.example.zone", &format!("{HEAD}www A 192.0.2.3\n"));
    wait_until("the mended zone", Duration::from_secs(4), || {
        (daemon.ask("www.site.example A").data() == ["192.0.2.3"]).then_some(())
    });
}

#[test]
fn the_zones_and_examples_that_are_shipped_are_without_fault() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (folder, file) in [("zones", "localhost.zone"), ("examples/zones", "")] {
        let folder = shipped.join(folder);
        assert!(folder.join(file).exists(), "{file}");
        let config = format!("[zones]\ndirectory = \"{}\"\nhosts = []\n", folder.display());
        let ended = Setup::new(&(forward(".", &["127.0.0.1:1".parse().unwrap()]) + &config)).check();
        assert_eq!(ended.code, Some(0), "{}: {}", folder.display(), ended.text);
    }
    let example = fs::read_to_string(shipped.join("examples/watershed.toml")).unwrap();
    let zones = shipped.join("examples/zones").display().to_string();
    let ended = Setup::new(&example.replace("/etc/watershed/zones", &zones)).check();
    assert_eq!(ended.code, Some(0), "{}", ended.text);
}
