//! Overlays as response policy zones: the same files, and the same questions, to BIND and to us.

use crate::harness::{daemon::forward, message::TC, programs::Program, *};

/// What a policy zone begins with, for BIND demands it.
const HEAD: &str = "$TTL 300\n@ SOA localhost. nobody.invalid. 1 1h 20m 1w 60\n@ NS localhost.\n";

const UPSTREAM: &[&str] = &[
    "www.example. 300 A 198.51.100.1",
    "www.apis.example. 300 A 198.51.100.2",
    "restricted.apis.example. 300 A 198.51.100.3",
    "self.example. 300 A 198.51.100.4",
    "one.chain.example. 300 CNAME two.chain.example.",
    "two.chain.example. 300 CNAME bad.example.",
    "bad.example. 300 A 198.51.100.5",
    "other.example. 300 A 198.51.100.6",
    "garden.example. 300 A 198.51.100.7",
    "www.walled.example.garden.example. 300 A 198.51.100.8",
    "ads.shop.example. 300 A 198.51.100.9",
    "www.shop.example. 300 A 198.51.100.10",
    "deep.ads.shop.example. 300 A 198.51.100.11",
    "alias.shop.example. 300 CNAME bad.example.",
    "web.example. 300 A 198.51.100.12",
    "rpz-ip.good.example. 300 A 198.51.100.13",
    "ring.example. 300 A 198.51.100.14",
    "ring2.example. 300 A 198.51.100.15",
    "tcp.example. 300 CNAME bad.example.",
    "dname.example. 300 A 198.51.100.16",
    "x.wild.example. 300 A 198.51.100.17",
    "unblocked.example. 300 A 198.51.100.18",
];

/// The allow list comes first.
const ALLOW: &str = "\
*.shop.example CNAME rpz-passthru.
unblocked.example CNAME unblocked.example.
";

const BLOCK: &str = "\
*.apis.example CNAME restricted.apis.example.
self.example CNAME SELF.example.
bad.example CNAME .
*.bad.example CNAME .
empty.example CNAME *.
*.walled.example CNAME *.garden.example.
one.example CNAME garden.example.
alias.example CNAME web.example.
web.example A 192.0.2.1
web.example TXT \"local\"
ring.example CNAME ring2.example.
ring2.example CNAME ring.example.
toblocked.example CNAME bad.example.
ads.shop.example CNAME .
*.ads.shop.example CNAME .
unblocked.example CNAME .
*.wild.example A 192.0.2.2
exact.wild.example A 192.0.2.3
*.deep.wild.example A 192.0.2.4
tcp.example CNAME rpz-tcp-only.
dname.example DNAME elsewhere.example.
rpz-ip.good.example CNAME rpz-passthru.
32.1.100.51.198.rpz-client-ip CNAME .
gone.example CNAME nothing.example.
Case.Example A 192.0.2.5
";

const QUESTIONS: &[&str] = &[
    "www.example A",
    "other.example A",
    "www.apis.example A",
    "www.apis.example AAAA",
    "www.apis.example CNAME",
    "restricted.apis.example A",
    "x.y.apis.example A",
    "apis.example A",
    "self.example A",
    "bad.example A",
    "bad.example CNAME",
    "a.b.bad.example MX",
    "empty.example A",
    "one.chain.example A",
    "two.chain.example A",
    "www.walled.example A",
    "walled.example A",
    "one.example A",
    "one.example CNAME",
    "alias.example A",
    "alias.example TXT",
    "web.example A",
    "web.example TXT",
    "web.example AAAA",
    "ring.example A",
    "ring2.example A",
    "toblocked.example A",
    "ads.shop.example A",
    "www.shop.example A",
    "shop.example A",
    "deep.ads.shop.example A",
    "alias.shop.example A",
    "unblocked.example A",
    "x.wild.example A",
    "wild.example A",
    "exact.wild.example A",
    "a.exact.wild.example A",
    "a.deep.wild.example A",
    "deep.wild.example A",
    "dname.example A",
    "rpz-ip.good.example A",
    "gone.example A",
    "case.example A",
    "CASE.example AAAA",
    "block.rpz.example A",
];

/// Where we differ on purpose, and why. A row that no longer differs fails.
const DEVIATIONS: &[(&str, &str)] = &[
    (
        "a.exact.wild.example A",
        "a name does not hide the wildcard above it: blocklists do not mean that (RFC 4592 does)",
    ),
    ("deep.wild.example A", "nor does a name that is only there because of others below it"),
];

/// The rcode, and the owners and data of the answer. Aliases come first with both, for the test of their order is elsewhere.
fn told(message: &Message) -> String {
    let records = message.answer.iter().map(|record| format!("{} {}", record.owner.to_lowercase(), record.data()));
    format!("{} {}", message.rcode_name(), records.collect::<Vec<_>>().join(", "))
}

fn compare(bind: &Program, ours: &Daemon, questions: &[&str]) {
    let differences: Vec<String> = questions
        .iter()
        .filter_map(|question| {
            let (theirs, own) = (told(&udp(bind.address(), &query(question))), told(&ours.ask(question)));
            let is_deviation = DEVIATIONS.iter().any(|(known, _)| known == question);
            (is_deviation == (theirs == own)).then(|| format!("{question}\n  BIND: {theirs}\n  ours: {own}"))
        })
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn with_policies(upstream: &Upstream, order: &str, files: &[(&str, &str)]) -> Daemon {
    let zones = format!("[zones]\ndirectory = \"<DIR>/zones\"\nhosts = []\norder = [{order}]\n");
    let setup = Setup::new(&(forward(".", &[upstream.address()]) + &zones));
    files.iter().fold(setup, |setup, (name, text)| setup.file(&format!("zones/{name}"), text)).start()
}

#[test]
fn policies_decide_as_in_bind() {
    let upstream = Upstream::holding(UPSTREAM);
    let (allow, block) = (format!("{HEAD}{ALLOW}"), format!("{HEAD}{BLOCK}"));
    let policies = [("allow.rpz", allow.as_str()), ("block.rpz", block.as_str())];
    let Some(bind) = Program::bind_with_policies(upstream.address(), &policies) else { return };
    // The files that BIND reads, in the order of its `response-policy`.
    let order = "\"allow.rpz.overlay\", \"block.rpz.overlay\"";
    let ours = with_policies(&upstream, order, &[("allow.rpz.overlay", &allow), ("block.rpz.overlay", &block)]);
    // Twice, so that the answers of the cache are seen, too.
    compare(&bind, &ours, QUESTIONS);
    compare(&bind, &ours, QUESTIONS);
    let truncated = |message: &Message| message.has(TC);
    assert!(truncated(&udp(bind.address(), &query("tcp.example A"))) && truncated(&ours.ask("tcp.example A")));
    let (theirs, own) = (tcp(bind.address(), &query("tcp.example A")), ours.tcp(&query("tcp.example A")));
    assert_eq!(told(&own), told(&theirs), "over TCP");
}

#[test]
fn the_first_policy_that_holds_a_name_decides_as_in_bind() {
    let upstream = Upstream::holding(UPSTREAM);
    let (allow, block) = (format!("{HEAD}{ALLOW}"), format!("{HEAD}{BLOCK}"));
    let policies = [("block.rpz", block.as_str()), ("allow.rpz", allow.as_str())];
    let Some(bind) = Program::bind_with_policies(upstream.address(), &policies) else { return };
    let order = "\"@block.overlay\", \"@allow.overlay\"";
    // Here the policies have no SOA record, as a list that a site writes for itself.
    let ours = with_policies(&upstream, order, &[("@allow.overlay", ALLOW), ("@block.overlay", BLOCK)]);
    compare(&bind, &ours, QUESTIONS);
}

#[test]
fn a_feed_with_the_name_of_its_zone_in_all_owners_blocks_as_in_bind() {
    let upstream = Upstream::holding(UPSTREAM);
    // As `dig axfr` writes it.
    let feed = "rpz.vendor.test. 300 IN SOA localhost. nobody.invalid. 1 3600 1200 604800 60\n\
                rpz.vendor.test. 300 IN NS localhost.\n\
                bad.example.rpz.vendor.test. 300 IN CNAME .\n\
                *.wild.example.rpz.vendor.test. 300 IN CNAME *.\n\
                self.example.rpz.vendor.test. 300 IN CNAME rpz-passthru.\n\
                one.example.rpz.vendor.test. 300 IN A 192.0.2.9\n\
                rpz.vendor.test. 300 IN SOA localhost. nobody.invalid. 1 3600 1200 604800 60\n";
    let Some(bind) = Program::bind_with_policies(upstream.address(), &[("rpz.vendor.test", feed)]) else { return };
    let questions =
        ["bad.example A", "x.wild.example A", "self.example A", "one.example A", "other.example A", "wild.example A"];
    for name in ["rpz.vendor.test.overlay", "@vendor.overlay"] {
        compare(&bind, &with_policies(&upstream, "", &[(name, feed)]), &questions);
    }
}

#[test]
fn an_alias_of_an_overlay_may_lead_to_a_hosts_file() {
    let upstream = Upstream::holding(UPSTREAM);
    let zones = "[zones]\ndirectory = \"<DIR>/zones\"\nhosts = [\"<DIR>/hosts\"]\n";
    let ours = Setup::new(&(forward(".", &[upstream.address()]) + zones))
        .file("zones/@site.overlay", "db.example CNAME host1.example.\nhost1.example A 192.0.2.66\n")
        .file("hosts", "192.0.2.1 host1.example\n")
        .start();
    assert_eq!(ours.ask("db.example A").data(), ["host1.example.", "192.0.2.1"], "beneath the overlays");
    assert_eq!(ours.ask("host1.example A").one(), "192.0.2.66");
}

#[test]
fn unsupported_triggers_and_files_passed_over_are_one_line_each() {
    let upstream = Upstream::holding(UPSTREAM);
    let triggers: String = (0..5000).map(|i| format!("32.{}.{}.0.10.rpz-ip CNAME .\n", i % 256, i / 256)).collect();
    let feed = format!("{HEAD}{triggers}bad.example CNAME .\n");
    let ours =
        with_policies(&upstream, "\"gone.overlay\"", &[("@feed.overlay", &feed), ("notes.txt", ""), ("x.db", "")]);
    assert_eq!(ours.ask("bad.example A").rcode_name(), "NXDOMAIN");
    let lines = |wanted: &str| ours.log_from(0).iter().filter(|line| line.contains(wanted)).count();
    assert_eq!(lines("response policy trigger"), 1);
    assert_eq!(lines("and 4999 more of the kind"), 1);
    assert_eq!(lines("2 files are passed over: notes.txt, x.db"), 1);
    assert_eq!(lines("zones.order names `gone.overlay`"), 1);
    let from = ours.log_length();
    ours.write("zones/@other.overlay", "ads.example CNAME .\n");
    wait_until("the new overlay", PATIENCE, || (ours.ask("ads.example A").rcode_name() == "NXDOMAIN").then_some(()));
    assert!(!ours.log_from(from).iter().any(|line| line.contains("passed over") || line.contains("zones.order")));
}
