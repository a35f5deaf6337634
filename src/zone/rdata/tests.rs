//! RDATA in text form and what it becomes. `tests/behavior/master_files.rs` has BIND read the same types.

use super::*;

fn read_text(text: &str) -> Result<(u16, Vec<u8>), String> {
    let mut words = Vec::new();
    let fault = crate::zone::entry::Entries::new(text).next(&mut words).and_then(|entry| entry.fault);
    assert_eq!(fault, None, "{text}");
    let rtype = read_rtype(words[0]).map_err(|problem| problem.to_string())?;
    let mut out = Vec::new();
    let origin = "example.".parse().unwrap();
    read(rtype, &words[1..], &origin, &mut out).map_err(|problem| problem.to_string())?;
    Ok((rtype.0, out))
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.replace(' ', "").as_bytes()).unwrap()
}

#[test]
fn every_form_of_rdata_becomes_its_wire_form() {
    let host = "04686f7374 076578616d706c65 00";
    for (text, rtype, rdata) in [
        ("A 192.0.2.1", 1, "c0000201"),
        ("TYPE1 192.0.2.1", 1, "c0000201"),
        ("a \\# 4 c0 000201", 1, "c0000201"),
        ("TYPE65280 \\# 0", 65_280, ""),
        ("TYPE65280 \\# 2 abCD", 65_280, "abcd"),
        ("PTR host", 12, host),
        ("PTR host.example.", 12, host),
        ("NSAP-PTR host", 23, host),
        ("MX 10 @", 15, "000a 076578616d706c65 00"),
        ("TXT @", 16, "0140"), // the origin only where a name is expected
        ("TXT \"a b\" c\"d\"", 16, "03612062 0163 0164"),
        ("TXT ( \"a;\" ; comment\n  \\100\\; )", 16, "02613b 02643b"),
        ("TXT \"\"", 16, "00"),
        ("SOA @ . 1 1h 2m 3 4294967295", 6, "076578616d706c6500 00 00000001 00000e10 00000078 00000003 ffffffff"),
        ("LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m", 29, "00001613 8b3cf018 810cbce0 009895b8"),
        ("LOC 0 S 180 W 0", 29, "00121613 80000000 59604e00 00989680"),
        ("URI 10 1 \"ftp://a/\"", 256, "000a0001 6674703a2f2f612f"),
        ("CERT PKIX 1 RSASHA256 AQID", 37, "0001 0001 08 010203"),
        ("EUI48 00-00-5E-00-53-2a", 108, "00005e00532a"),
        (
            "APL 1:192.168.32.0/21 !1:192.168.38.0/28 2:ff00::/8",
            42,
            "0001 15 03 c0a820 0001 1c 83 c0a826 0002 08 01 ff",
        ),
        ("APL", 42, ""),
        ("CSYNC 66 3 A NS AAAA", 62, "00000042 0003 0004 60000008"),
        (
            "HIP 2 200100107B1A74DF365639CC39F1D578 AwEAAQ== host",
            55,
            &format!("10 02 0004 200100107b1a74df365639cc39f1d578 03010001 {host}"),
        ),
        ("NID 10 0014:4fff:ff20:ee64", 104, "000a 00144fffff20ee64"),
        ("L32 10 10.1.2.0", 105, "000a 0a010200"),
        ("IPSECKEY 10 1 2 192.0.2.38 AQID", 45, "0a 01 02 c0000226 010203"),
        ("IPSECKEY 10 0 2 . AQID", 45, "0a 00 02 010203"),
        ("AMTRELAY 10 1 3 host", 260, &format!("0a 83 {host}")),
        ("A6 64 ::1:2:3:4 host", 38, &format!("40 0001000200030004 {host}")),
        ("A6 0 2001:db8::1", 38, "00 20010db8000000000000000000000001"),
        ("NSAP 0x47.0005", 22, "470005"),
        ("WKS 192.0.2.1 tcp smtp 0", 11, "c0000201 06 80000040"),
        ("X25 31105", 19, "053331313035"),
        ("NSEC host A TYPE256", 47, &format!("{host} 0001 40 0101 80")),
        (
            "RRSIG A 13 2 3600 20260101000000 20251201000000 1 @ AQID",
            46,
            "0001 0d 02 00000e10 6955b900 692cda80 0001 076578616d706c6500 010203",
        ),
        ("CAA 0 issue \"ca.test\"", 257, "00 05 6973737565 63612e74657374"),
        ("HTTPS 1 . alpn=\"h2\"", 65, "0001 00 0001 0003 026832"),
        ("NAPTR 1 2 \"u\" \"x\" \"!a!b!i\" .", 35, "0001 0002 0175 0178 062161216221 69 00"),
        ("CDNSKEY 0 3 0 AA==", 60, "0000 03 00 00"),
        (
            "DS 1 ECDSAP256SHA256 SHA-1 00000000000000000000 00000000000000000000",
            43,
            "0001 0d 01 0000000000000000000000000000000000000000",
        ),
        ("GPOS \"-32\" 116 10", 27, "032d3332 03313136 023130"),
        ("ATMA +358400", 34, "01 333538343030"),
    ] {
        let read = read_text(text);
        assert_eq!(read, Ok((rtype, hex(rdata))), "{text}");
        // The same octets behind `\#` make sense as the same type.
        let octets = read.unwrap().1;
        let generic = format!("TYPE{rtype} \\# {} {}", octets.len(), data_encoding::HEXLOWER.encode(&octets));
        assert_eq!(read_text(&generic), Ok((rtype, octets)), "{text}");
    }
}

#[test]
fn the_hashes_of_nsec3_are_read() {
    let (_, rdata) = read_text("NSEC3 1 0 5 AABB 2T7B4G4VSA5SMI47K61MV5BV1A22BOJR A RRSIG").unwrap();
    assert_eq!(rdata[..8], hex("01000005 02aabb 14"));
    let next = data_encoding::BASE32HEX_NOPAD.decode(b"2T7B4G4VSA5SMI47K61MV5BV1A22BOJR").unwrap();
    assert_eq!(rdata[8..28], next);
    assert_eq!(rdata[28..], hex("0006 400000000002"));
    let (_, rdata) = read_text("NSEC3 1 0 5 - 2t7b4g4vsa5smi47k61mv5bv1a22bojr").unwrap();
    assert_eq!((rdata.len(), rdata[4]), (26, 0), "neither salt nor types");
}

#[test]
fn malformed_rdata_is_refused() {
    for text in [
        "A 192.0.2",
        "A 192.0.2.1 x",
        "A \"192.0.2.1\"",
        "A 192.0.02.1",
        "A",
        "AAAA fe80::1%eth0",
        "MX mail",
        "MX 65536 mail",
        "MX +1 mail",
        "MX 10",
        "CNAME \"host\"",
        "CNAME a..b",
        "TXT",
        "TXT \\256",
        "TXT \\1",
        "SOA @ @ 1 2 3 4",
        "SOA @ @ x 2 3 4 5",
        "SOA @ @ 1 2 3 4 5 6",
        "HINFO x",
        "LOC 91 N 0 E 0",
        "LOC 90 0 0.001 N 0 E 0",
        "LOC 1 N 1 E",
        "LOC 1 60 N 0 E 0",
        "LOC 1 N 1 E 42849672.96m",
        "URI 1 1 unquoted",
        "CERT X 1 1 AQID",
        "CERT 1 1 1",
        "EUI48 00-00-5e-00-53",
        "EUI48 0:0",
        "APL 1:192.0.2.0/33",
        "APL 3:x/1",
        "APL 1:192.0.2.0",
        "NID 1 1:2:3",
        "L32 1 ::1",
        "IPSECKEY 1 4 1 . AQID",
        "IPSECKEY 1 0 1 . ",
        "AMTRELAY 1 2 0 .",
        "A6 129 ::",
        "NSAP 47",
        "WKS 192.0.2.1 tcp nosuch",
        "X25 123",
        "NSEC host",
        "NSEC3 1 0 5 - ! A",
        "RRSIG A 13 2 3600 20261301000000 1 1 @ AQID",
        "RRSIG A 13 2 3600 20250230000000 1 1 @ AQID",
        "CAA 0 is-sue x",
        "CAA 256 issue x",
        "HTTPS x .",
        "NAPTR 1 2 u x \"!a!b\" .",
        "DS 1 13 1 00",
        "DS 1 13 2",
        "TYPE65280 x",
        "TYPE65280 \\# 1",
        "TYPE65280 \\# 1 a",
        "A \\# 3 000000",
        "MX \\# 2 0001",
        "MX \\# 3 0001c0",
        "NSEC \\# 4 00000100",
        "LOC \\# 2 0000",
        "NULL x",
        "OPT x",
        "ANY x",
        "TYPE0 \\# 0",
        "TYPE128 \\# 0",
        "BOGUS x",
        "SSHFP 1 1 00",
        "ZONEMD 1 1 1 00",
        "NXT a TYPE128",
        "GPOS 1 2",
        "ATMA +x",
        "HIP 1 00 AA== a..b",
        "HIP 1 - AA==",
        "DHCID !",
        "OPENPGPKEY",
    ] {
        assert!(read_text(text).is_err(), "{text}: {:?}", read_text(text));
    }
}

#[test]
fn names_are_relative_to_the_origin_unless_they_end_with_a_dot() {
    let origin = "sub.example.".parse().unwrap();
    for (word, expected) in [
        ("@", "sub.example."),
        ("www", "www.sub.example."),
        ("www.example.", "www.example."),
        ("a\\.", "a\\..sub.example."), // an escaped dot ends no name
        ("a\\\\.", "a\\\\."),
        (".", "."),
        ("\\@", "\\@.sub.example."),
    ] {
        assert_eq!(read_name(word, &origin).unwrap().to_string(), expected, "{word}");
    }
    for word in ["", "a..b", "..", &"abc.".repeat(64)] {
        assert!(read_name(word, &origin).is_err(), "{word}");
    }
}
