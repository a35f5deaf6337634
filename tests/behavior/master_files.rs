//! Master files in the manner of real deployments, read by BIND's `named-compilezone` and by us: the same files are refused,
//! and the others hold the same records.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use watershed::{wire::Name, zone::Zone};

use crate::harness::{require, *};

/// A record: owner in lower case, type, TTL, RDATA in wire form.
type Line = (String, u16, u32, Vec<u8>);

/// A record for comparison. Of equal records that differ in case, BIND keeps the last and we keep the first.
fn line(owner: &Name, rtype: u16, ttl: u32, rdata: &[u8]) -> Line {
    let has_names = matches!(rtype, 2 | 5 | 6 | 12 | 39);
    let rdata = if has_names { rdata.to_ascii_lowercase() } else { rdata.to_vec() };
    (owner.to_lower().to_string(), rtype, ttl, rdata)
}

/// Files of the corpus that are read differently on purpose, and why. A row that no longer applies fails.
const FILES: &[(&str, &str)] = &[
    ("bom.zone", "a byte order mark is no part of the text; BIND refuses the file"),
    ("ttls_differ.zone", "the smallest TTL of an RRset is given to all (RFC 2181 §5.2); BIND gives the first"),
];

/// Texts of which one reader takes in what the other refuses, on purpose.
const TEXTS: &[(&str, &str)] = &[
    ("$GENERATE 1-2 h$ ( A 192.0.2.1 )", "parentheses hold words together in every entry"),
    ("@ 30 SOA b c 1 2 3 4 5", "the smallest TTL is given to all (RFC 2181 §5.2); BIND gives the first"),
    ("$GENERATE 1-2 h$ TXT \"${500} $\"", "an offset is that of its own sign; BIND keeps it for the signs that follow"),
    ("a SVCB 1 b ohttp", "RFC 9540 is newer than BIND 9.18"),
    ("a NAPTR 1 2 u x \"!(!b!\" .", "the expression between the delimiters is not compiled"),
];

/// What both readers take in or both refuse: each a line of a zone that is good but for it. The corpus has what is good of
/// every type; here are the limits.
const LINES: &[&str] = &[
    "a A 127.1",
    "a A 001.2.3.4",
    "a A \"192.0.2.1\"",
    "a A 192.0.2.1 x",
    "a A",
    "a AAAA fe80::1%eth0",
    "a AAAA ::ffff:192.0.2.1",
    "a CNAME \"b\"",
    "a CNAME a..b",
    "a NS",
    "a MX b",
    "a MX 65536 b",
    "a MX 0x10 b",
    "a MX -1 b",
    "a MX 10",
    "a TXT",
    "a TXT \\256",
    "a TXT \\1",
    "a TXT \"open",
    "a TXT a\"b c\"d",
    "a HINFO x",
    "a SOA b c 1 2 3 4 5",
    "@ SOA b c 2 2 3 4 5",
    "@ SOA b c 1 2 3 4",
    "a CH A 192.0.2.1",
    "a CLASS3 A 192.0.2.1",
    "a ANY x",
    "a OPT x",
    "a TYPE0 \\# 0",
    "a TYPE128 \\# 0",
    "a BOGUS x",
    "a NULL x",
    "a MD b",
    "a MF b",
    "a 4294967296 A 192.0.2.1",
    "a 1y A 192.0.2.1",
    "a 1h30 A 192.0.2.1",
    "a 60 60 A 192.0.2.1",
    "a IN IN A 192.0.2.1",
    "a IN 60 IN A 192.0.2.1",
    "a A ( 192.0.2.1",
    "a A 192.0.2.1 )",
    "a A ( 192.0.2.1 ) )",
    "\"q\" TXT x",
    "a..b A 192.0.2.1",
    "$FOO x",
    "$TTL",
    "$TTL x",
    "$TTL 1 2",
    "$ORIGIN",
    "$ORIGIN a b",
    "$INCLUDE",
    "$INCLUDE nothing.inc",
    "a CNAME b\na A 192.0.2.1",
    "a CNAME b\na CNAME c",
    "a DNAME b\na DNAME c",
    "@ SOA B C 1 2 3 4 5",
    "@ 30 SOA b c 1 2 3 4 5",
    "a CNAME b\na CNAME B",
    "*.w NS b",
    "*.w DNAME b",
    "a X25 123",
    "a X25 abcd",
    "a X25 \"1234\"",
    "a GPOS 1 2",
    "a LOC 91 N 1 E 0",
    "a LOC 90 0 0.001 N 1 E 0",
    "a LOC 1 60 N 1 E 0",
    "a LOC 1 N 1 E",
    "a LOC 1 n 1 e 0",
    "a LOC 1 N 1 E 0.123",
    "a LOC 1 N 1 E 42849672.96",
    "a LOC 1 N 1 E 0m 100000000m",
    "a LOC 1 N 181 E 0",
    "a LOC 1 N 1 E -100000.01",
    "a URI 1 1 unquoted",
    "a URI 1 1",
    "a CERT X 1 1 AQID",
    "a CERT PKIX 1 1",
    "a CERT PKIX 1 BOGUS AQID",
    "a EUI48 00-00-5e-00-53",
    "a EUI48 000-0-0-0-0-0",
    "a EUI64 00-00-5e-00-53-01",
    "a APL 1:192.0.2.0/33",
    "a APL 1:192.0.2.1/24",
    "a APL 3:x/1",
    "a APL 1:192.0.2.0",
    "a NID 1 1:2:3",
    "a NID 1 0:0:0:0g",
    "a L32 1 ::1",
    "a L64 1 ::1",
    "a IPSECKEY 1 4 1 . AQID",
    "a IPSECKEY 1 0 1 .",
    "a IPSECKEY 1 1 0 192.0.2.1",
    "a AMTRELAY 1 2 0 .",
    "a AMTRELAY 1 0 4 AA",
    "a AMTRELAY 1 1 4 AA",
    "a A6 129 ::",
    "a A6 64 ::",
    "a NSAP 47",
    "a NSAP 0x",
    "a WKS 192.0.2.1 nosuch 25",
    "a WKS 192.0.2.1 6 65536",
    "a NSEC b",
    "a NXT b A TYPE128",
    "a NSEC3 1 0 1 - 2t7b4g4vsa5smi47k61mv5bv1a22bojr",
    "a DS 1 13 1 00",
    "a DS 1 13 2",
    "a DS 1 BOGUS 99 00",
    "a SSHFP 1 1 00",
    "a SSHFP 1 2 00",
    "a ZONEMD 1 1 1 00",
    "a ZONEMD 1 1 3 00",
    "a TLSA 1 1 1",
    "a TLSA 1 1 1 0",
    "a RRSIG A 13 2 1h 20260101000000 1 1 @ AQID",
    "a RRSIG A 13 2 60 20261301000000 20251201000000 1 @ AQID",
    "a RRSIG A 13 2 60 20260230000000 20251201000000 1 @ AQID",
    "a KEY 512 3 1",
    "a KEY 49152 3 1 AQID",
    "a DNSKEY 257 3 13",
    "a DNSKEY 257 3 BOGUS AQID",
    "a CAA 0 is-sue x",
    "a CAA 256 issue x",
    "a CAA 0 \"issue\" x",
    "a CAA 0 issue",
    "a NAPTR 1 2 u x \"!a!b\" .",
    "a NAPTR 1 2 u x \"1a1b1\" .",
    "a NAPTR 1 2 u x \"a\" .",
    "a HTTPS 1 . mandatory=alpn",
    "a HTTPS 1 . no-default-alpn",
    "a HTTPS 1 . port=443 port=444",
    "a HTTPS 1 . foo=bar",
    "a HTTPS 1 . alpn",
    "a HTTPS 1 . alpn=h2,",
    "a HTTPS 1 . port=65536",
    "a HTTPS 1 . ipv4hint=::1",
    "a HTTPS 1 . ipv4hint=",
    "a HTTPS 1 . mandatory=port,port port=1",
    "a HTTPS 1 . mandatory=mandatory",
    "a HTTPS 1 . alpn=\"a\\\\,b\"",
    "a HTTPS 1 . ech=",
    "a HTTPS 1 . key65535=x",
    "a HTTPS 1 . key03=x",
    "a SVCB 1 b dohpath=x",
    "a SVCB 1 b dohpath=/q",
    "a SVCB 1 b no-default-alpn=x alpn=h2",
    "a SVCB 1 b alpn=,",
    "a SVCB 1 b key3=x",
    "a SVCB 1 b port",
    "a HTTPS \\# 7 000100 00030000",
    "a HTTPS \\# 4 00010001",
    "a HTTPS 0 b port=1",
    "a HTTPS 1 b key0=x",
    "a HTTPS x .",
    "a HTTPS",
    "a HIP 2 00",
    "a HIP 2 - AQ==",
    "a HIP x 00 AQ==",
    "a DHCID !",
    "a OPENPGPKEY",
    "a OPENPGPKEY AQI",
    "a SMIMEA 3 0 0",
    "a PX 1 b",
    "a RT b",
    "a KX 1 \"b\"",
    "a SINK 1 2",
    "a DOA 0 1 2 x",
    "a CSYNC 1",
    "a TALINK a",
    "a A \\# 3 000000",
    "a A \\# 4 C0000201 00",
    "a A \\# 4 C000",
    "a MX \\# 2 0001",
    "a MX \\# 3 0001c0",
    "a TXT \\# 0",
    "a TXT \\# 2 0541",
    "a LOC \\# 2 0000",
    "a TLSA \\# 3 010101",
    "a CAA \\# 3 000169",
    "a SOA \\# 1 00",
    "a NSEC \\# 4 00000100",
    "a TYPE65280 x",
    "a TYPE65280 \\# 1",
    "a TYPE65280 \\# x",
    "a TYPE65280 \\# 2 ab",
    "a TYPE65536 \\# 0",
    "$GENERATE 3-1 h$ A 192.0.2.1",
    "$GENERATE 1 h$ A 192.0.2.1",
    "$GENERATE 1-2/0 h$ A 192.0.2.1",
    "$GENERATE -1-2 h$ A 192.0.2.1",
    "$GENERATE 1-2 h${1 A 192.0.2.1",
    "$GENERATE 1-2 h${a} A 192.0.2.1",
    "$GENERATE 1-2 h${1,2,q} A 192.0.2.1",
    "$GENERATE 1-2 h${0,300,d} A 192.0.2.1",
    "$GENERATE 1-2 h$",
    "$GENERATE 1-2 h$ A",
    "$GENERATE 1-2 h$ A 192.0.2.1 x",
    "$GENERATE 1-2 h$ MX 10 a",
    "$GENERATE 1-300 h A 192.0.2.$",
    "$GENERATE 1-2 h$ CH A 192.0.2.1",
    "$GENERATE 1-2 h$ ( A 192.0.2.1 )",
    "$GENERATE 1-2 h${0,4,N}.r A 192.0.2.1",
    "$GENERATE 1-2 h$ TXT \"(\"",
    "$GENERATE",
    "$GENERATE 1-2 h$ TXT \"${500} $\"",
    "a UNSPEC x",
    "a SVCB 1 b ohttp",
    "a NAPTR 1 2 u x \"!(!b!\" .",
];

fn compile(program: &Path, folder: &Path, apex: &str, file: &str, out: &Path) -> Output {
    let mut command = Command::new(program);
    // What is checked beyond reading is left out: it is a matter of policy.
    command.args(["-i", "none", "-k", "ignore", "-n", "ignore", "-r", "ignore", "-m", "ignore"]);
    command.args(["-M", "ignore", "-S", "ignore", "-T", "ignore", "-W", "ignore", "-F", "raw", "-o"]).arg(out);
    command.arg(apex).arg(file).current_dir(folder).output().unwrap()
}

/// The records in BIND's raw format, version 1.
fn read_raw(bytes: &[u8]) -> BTreeSet<Line> {
    let (head, mut rest) = bytes.split_at(24);
    assert_eq!(head[..8], [0, 0, 0, 2, 0, 0, 0, 1], "format and version");
    let mut take = |count: usize| {
        let (taken, left) = rest.split_at(count);
        rest = left;
        (taken, left.is_empty())
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    let mut lines = BTreeSet::new();
    loop {
        let (fixed, _) = take(20);
        let (rtype, ttl, count) = (number(&fixed[6..8]) as u16, number(&fixed[10..14]), number(&fixed[14..18]));
        let owner = take(number(&fixed[18..20]) as usize).0;
        let owner = Name::from_wire(owner).unwrap();
        let mut is_end = false;
        for _ in 0..count {
            let length = number(take(2).0) as usize;
            let (rdata, end) = take(length);
            lines.insert(line(&owner, rtype, ttl, rdata));
            is_end = end;
        }
        if is_end {
            return lines;
        }
    }
}

fn read_ours(path: &Path, apex: &str) -> Result<BTreeSet<Line>, String> {
    let zone = Zone::load(path, &apex.parse().unwrap())
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
    let lines = zone.records().map(|record| line(&record.owner, record.rtype.0, record.ttl, &record.rdata));
    Ok(lines.collect())
}

/// What BIND and we make of a file differently; nothing if it is the same.
fn difference(program: &Path, folder: &Path, apex: &str, file: &str) -> Option<String> {
    let out = tempfile::tempdir().unwrap();
    let raw = out.path().join("raw");
    let output = compile(program, folder, apex, file, &raw);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    match (output.status.success(), read_ours(&folder.join(file), apex)) {
        (true, Ok(ours)) => {
            let theirs = read_raw(&fs::read(&raw).unwrap());
            (theirs != ours).then(|| {
                let only =
                    |a: &BTreeSet<Line>, b: &BTreeSet<Line>| a.difference(b).take(5).cloned().collect::<Vec<_>>();
                format!("only BIND: {:?}\nonly ours: {:?}", only(&theirs, &ours), only(&ours, &theirs))
            })
        }
        (true, Err(errors)) => Some(format!("BIND takes it in, we say {errors}")),
        (false, Ok(_)) => Some(format!("we take it in, BIND says {said}")),
        (false, Err(_)) => None,
    }
}

fn apex_of(file: &str) -> &'static str {
    match file {
        "reverse_v4.zone" | "classless.zone" => "2.0.192.in-addr.arpa",
        "reverse_v6.zone" => "8.b.d.0.1.0.0.2.ip6.arpa",
        "internal_root.zone" => ".",
        _ => "example",
    }
}

#[test]
fn master_files_of_real_deployments_hold_what_bind_reads_in_them() {
    let Some(program) = require::program("named-compilezone") else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/master");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "zone"));
    assert!(files.len() >= 30, "{} files", files.len());
    let mut faults = Vec::new();
    for path in &files {
        let file = path.file_name().unwrap().to_str().unwrap();
        let is_deviation = FILES.iter().any(|(known, _)| *known == file);
        match difference(&program, &folder, apex_of(file), file) {
            None if is_deviation => faults.push(format!("{file}: no longer differs")),
            Some(difference) if !is_deviation => faults.push(format!("{file}: {difference}")),
            _ => {}
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn what_bind_prints_of_its_own_zones_is_read_back() {
    let Some(program) = require::program("named-compilezone") else { return };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/master");
    for style in ["full", "relative"] {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(&program);
        command
            .args(["-i", "none", "-k", "ignore", "-F", "text", "-s", style, "-o"])
            .arg(folder.path().join("printed.zone"));
        run(command.args(["example", "every_type.zone"]).current_dir(&source));
        let original = read_ours(&source.join("every_type.zone"), "example").unwrap();
        let printed = read_ours(&folder.path().join("printed.zone"), "example").unwrap();
        assert!(original == printed, "{style}: {:?}", original.symmetric_difference(&printed).collect::<Vec<_>>());
    }
}

#[test]
fn a_signed_zone_is_read_as_bind_reads_it() {
    let (Some(program), Some(keygen), Some(sign)) =
        (require::program("named-compilezone"), require::program("dnssec-keygen"), require::program("dnssec-signzone"))
    else {
        return;
    };
    for arguments in [&["-x"][..], &["-3", "aabb", "-H", "5", "-A"]] {
        let folder = tempfile::tempdir().unwrap();
        let zone = "$TTL 300\n@ SOA ns.example.net. host 1 1h 15m 2w 5m\n@ NS ns.example.net.\nwww A 192.0.2.1\n*.w TXT x\nsub NS ns.sub\nns.sub A 192.0.2.2\n";
        fs::write(folder.path().join("example"), zone).unwrap();
        run(Command::new(&keygen).args(["-q", "-a", "ECDSAP256SHA256", "-f", "KSK", "example"]).current_dir(&folder));
        run(Command::new(&keygen).args(["-q", "-a", "ECDSAP256SHA256", "example"]).current_dir(&folder));
        run(Command::new(&sign).args(["-S", "-o", "example"]).args(arguments).arg("example").current_dir(&folder));
        assert_eq!(difference(&program, folder.path(), "example", "example.signed"), None, "{arguments:?}");
        assert!(read_ours(&folder.path().join("example.signed"), "example").unwrap().len() > 10);
    }
}

#[test]
fn what_bind_refuses_is_refused() {
    let Some(program) = require::program("named-compilezone") else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut faults = Vec::new();
    for text in LINES {
        let zone = format!("$TTL 60\n@ SOA b c 1 2 3 4 5\n@ NS ns.example.net.\n{text}\n");
        fs::write(folder.path().join("x.zone"), zone).unwrap();
        let is_deviation = TEXTS.iter().any(|(known, _)| known == text);
        match difference(&program, folder.path(), "example", "x.zone") {
            None if is_deviation => faults.push(format!("{text}: no longer differs")),
            Some(difference) if !is_deviation => faults.push(format!("{text}: {difference}")),
            _ => {}
        }
    }
    assert!(TEXTS.iter().all(|(known, _)| LINES.contains(known)), "a row of a text that is not tried");
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}
