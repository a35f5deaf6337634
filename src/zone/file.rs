//! The reader of master files: from text to records, with every fault on the way (RFC 1035 §5, RFC 2308 §4, RFC 3597 §5).
//!
//! Entries, owners, TTLs and the types of which there are many are read here; the RDATA of all others is left to the
//! crate `domain`. Its reader alone would not do: it stops at the first fault, and knows no `1h`.
//!
//! A record without TTL gets that of `$TTL`; without one the last TTL written in the file; without one the SOA
//! minimum; and in an overlay, which needs no SOA, five minutes.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use domain::{
    base::{
        ParsedName, iana,
        rdata::{ComposeRecordData, ParseRecordData},
    },
    dep::octseq::Parser,
    rdata::ZoneRecordData,
    zonefile::inplace,
};

use super::{
    Mode, Problem,
    contents::{Contents, Entry, read_file},
    entry::Entries,
};
use crate::{
    location::Location,
    wire::{Class, Name, NameError, Rtype},
};

/// Reads a file and what it includes.
pub(super) fn read(path: &Path, apex: &Name, mode: Mode) -> Contents {
    let mut reader = Reader::new(apex, mode);
    if let Some(text) = reader.open(path, &Location::file(path)) {
        reader.read_text(path, &text, Scope::new(apex));
    }
    reader.finish()
}

/// Reads a text as if it stood in `path`.
pub(super) fn parse(path: &Path, text: &str, apex: &Name, mode: Mode) -> Contents {
    let mut reader = Reader::new(apex, mode);
    reader.read_text(path, text, Scope::new(apex));
    reader.finish()
}

/// The state of reading that an included file inherits.
#[derive(Clone)]
struct Scope {
    origin: Name,
    owner: Owner,
    dollar_ttl: Option<u32>,
    last_ttl: Option<u32>,
    /// The files from the first to this one.
    trail: Vec<PathBuf>,
}

#[derive(Clone)]
enum Owner {
    None,
    /// Could not be read or used, which has been said: what else belongs to it is passed over.
    Faulty,
    Name(Name),
}

impl Scope {
    fn new(apex: &Name) -> Self {
        Self { origin: apex.clone(), owner: Owner::None, dollar_ttl: None, last_ttl: None, trail: Vec::new() }
    }
}

struct Reader {
    contents: Contents,
    mode: Mode,
    soa_minimum: Option<u32>,
    /// The RDATA being read.
    scratch: Vec<u8>,
}

impl Reader {
    fn new(apex: &Name, mode: Mode) -> Self {
        Self { contents: Contents::new(apex), mode, soa_minimum: None, scratch: Vec::new() }
    }

    fn finish(mut self) -> Contents {
        self.contents.records.sort_by_key(|entry| (entry.owner, entry.rtype));
        self.contents
    }

    /// The text of a file; what keeps it from being read is blamed on `blame`.
    fn open(&mut self, path: &Path, blame: &Location) -> Option<String> {
        match read_file(path) {
            Ok((bytes, stamp)) => {
                self.contents.stamps.push((path.to_path_buf(), Some(stamp)));
                let text = String::from_utf8(bytes).map_err(|error| {
                    let good = error.utf8_error().valid_up_to();
                    let line = 1 + error.as_bytes()[..good].iter().filter(|&&byte| byte == b'\n').count();
                    self.contents.errors.push(Problem::NotUtf8.at(Location::line(path, line)));
                });
                text.ok()
            }
            Err(error) => {
                self.contents.stamps.push((path.to_path_buf(), None));
                let reason =
                    if blame.line.is_some() { format!("{}: {error}", path.display()) } else { error.to_string() };
                self.contents.errors.push(Problem::Unreadable(reason).at(blame.clone()));
                None
            }
        }
    }

    fn read_text(&mut self, path: &Path, text: &str, mut scope: Scope) {
        let file = self.contents.files.len() as u16;
        self.contents.files.push(path.to_path_buf());
        scope.trail.push(path.to_path_buf());
        // Some editors begin a text with a byte order mark, which is no part of it.
        let mut entries = Entries::new(text.strip_prefix('\u{feff}').unwrap_or(text));
        let mut words = Vec::new();
        while let Some(entry) = entries.next(&mut words) {
            let result = match (entry.fault, words.first()) {
                (Some(fault), _) => {
                    // Whatever the owner was meant to be, the next line does not inherit the one before.
                    if !entry.indented {
                        scope.owner = Owner::Faulty;
                    }
                    Err(fault)
                }
                (None, Some(word)) if word.starts_with('$') && !entry.indented => {
                    self.read_directive(&words, &mut scope, &Location::line(path, entry.line))
                }
                (None, _) => self.read_record(&words, entry.indented, &mut scope, (file, entry.line as u32)),
            };
            if let Err(problem) = result {
                self.contents.mentions_soa |= words.iter().any(|word| word.eq_ignore_ascii_case("SOA"));
                self.contents.errors.push(problem.at(Location::line(path, entry.line)));
            }
            if self.contents.errors.len() >= MAX_ERRORS {
                if self.contents.errors.len() == MAX_ERRORS {
                    self.contents.errors.push(Problem::MoreFaults.at(Location::line(path, entry.line)));
                }
                return;
            }
        }
    }

    fn read_directive(&mut self, words: &[&str], scope: &mut Scope, here: &Location) -> Result<(), Problem> {
        let arguments = &words[1..];
        match words[0].to_ascii_uppercase().as_str() {
            "$ORIGIN" => match arguments {
                [origin] => scope.origin = read_name(origin, &scope.origin)?,
                _ => return Err(Problem::BadDirective("$ORIGIN NAME")),
            },
            "$TTL" => match arguments {
                [ttl] => scope.dollar_ttl = Some(read_ttl(ttl)?),
                _ => return Err(Problem::BadDirective("$TTL 1h")),
            },
            "$INCLUDE" => {
                let (file, origin) = match arguments {
                    [file] => (file, scope.origin.clone()),
                    [file, origin] => (file, read_name(origin, &scope.origin)?),
                    _ => return Err(Problem::BadDirective("$INCLUDE FILE [ORIGIN]")),
                };
                // What the included file sets does not outlive it (RFC 1035 §5.1).
                self.include(file.trim_matches('"'), Scope { origin, ..scope.clone() }, here)?;
            }
            _ => return Err(Problem::UnknownDirective(words[0].to_string())),
        }
        Ok(())
    }

    fn include(&mut self, file: &str, scope: Scope, here: &Location) -> Result<(), Problem> {
        let path = here.file.parent().unwrap_or(Path::new("")).join(file);
        if scope.trail.len() > MAX_INCLUDE_DEPTH || self.contents.files.len() >= usize::from(u16::MAX) {
            return Err(Problem::IncludeDepth(MAX_INCLUDE_DEPTH));
        }
        // Names of one file may differ, and seldom is there a need to know.
        let is_open =
            |real: PathBuf| scope.trail.iter().any(|above| above.canonicalize().is_ok_and(|above| above == real));
        if path.canonicalize().is_ok_and(is_open) {
            return Err(Problem::IncludeCircle(path));
        }
        if let Some(text) = self.open(&path, here) {
            self.read_text(&path, &text, scope);
        }
        Ok(())
    }

    fn read_record(
        &mut self,
        words: &[&str],
        indented: bool,
        scope: &mut Scope,
        (file, line): (u16, u32),
    ) -> Result<(), Problem> {
        let mut words = words;
        if let Some((first, rest)) = words.split_first().filter(|_| !indented) {
            words = rest;
            scope.owner = Owner::Faulty;
            let owner = read_name(first, &scope.origin)?;
            if !owner.is_at_or_below(&self.contents.apex) {
                return Err(Problem::OutOfZone { owner, apex: self.contents.apex.clone() });
            }
            scope.owner = Owner::Name(owner);
        }
        let owner = match &scope.owner {
            Owner::None => return Err(Problem::NoOwner),
            Owner::Faulty => return Ok(()),
            Owner::Name(owner) => owner,
        };
        let (mut ttl, mut class) = (None, None);
        let rtype = loop {
            let (word, rest) = words.split_first().ok_or(Problem::NoType)?;
            words = rest;
            if ttl.is_none() && word.starts_with(|first: char| first.is_ascii_digit()) {
                ttl = Some(read_ttl(word)?);
            } else if let (None, Some(read)) = (class, read_class(word)) {
                class = Some(read);
            } else {
                break read_rtype(word)?;
            }
        };
        if let Some(class) = class.filter(|&class| class != Class::IN) {
            return Err(Problem::ForeignClass(class));
        }
        self.scratch.clear();
        read_rdata(rtype, words, &scope.origin, &mut self.scratch)?;
        let rdata_bytes =
            u16::try_from(self.scratch.len()).map_err(|_| bad_rdata(rtype, "longer than 65535 octets".to_string()))?;
        if rtype == Rtype::SOA && owner == &self.contents.apex {
            self.soa_minimum = self.scratch.last_chunk().map(|octets| u32::from_be_bytes(*octets));
        }
        scope.last_ttl = ttl.or(scope.last_ttl);
        let default = match self.mode {
            Mode::Zone => self.soa_minimum,
            Mode::Overlay => self.soa_minimum.or(Some(OVERLAY_TTL)),
        };
        let ttl = ttl.or(scope.dollar_ttl).or(scope.last_ttl).or(default).ok_or(Problem::NoTtl)?;

        let contents = &mut self.contents;
        let rdata_at = u32::try_from(contents.octets.len()).map_err(|_| Problem::TooLarge)?;
        let owner = contents.names.insert(owner.wire()).ok_or(Problem::TooLarge)?;
        contents.octets.extend_from_slice(&self.scratch);
        contents.records.push(Entry { owner, rtype, ttl, rdata_at, rdata_bytes, file, line });
        Ok(())
    }
}

/// A name, relative to `origin` unless it ends with a dot.
fn read_name(word: &str, origin: &Name) -> Result<Name, Problem> {
    if word == "@" {
        return Ok(origin.clone());
    }
    if !word.is_ascii() || word.starts_with('"') {
        return Err(Problem::BadLetters(word.to_string()));
    }
    let bad_name = |error| Problem::BadName { text: word.to_string(), error };
    let name: Name = word.parse().map_err(bad_name)?;
    let before_dot = word.strip_suffix('.');
    let is_absolute = before_dot.is_some_and(|rest| {
        let backslashes = rest.len() - rest.trim_end_matches('\\').len();
        backslashes % 2 == 0
    });
    if is_absolute {
        return Ok(name);
    }
    let labels = &name.wire()[..name.wire().len() - 1];
    Name::from_wire(&[labels, origin.wire()].concat()).map_err(|_| bad_name(NameError::LongName))
}

/// Seconds, or numbers with units as in `1h30m`, up to 2^31-1 (RFC 2181 §8).
fn read_ttl(word: &str) -> Result<u32, Problem> {
    read_seconds(word).filter(|&ttl| ttl <= MAX_TTL).ok_or_else(|| Problem::BadTtl(word.to_string()))
}

fn read_seconds(word: &str) -> Option<u32> {
    if let Ok(seconds) = word.parse() {
        return (!word.starts_with('+')).then_some(seconds);
    }
    let mut rest = word;
    let mut total = 0u32;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let unit_seconds = match rest.as_bytes().get(digits)?.to_ascii_lowercase() {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        let number: u32 = rest[..digits].parse().ok()?;
        total = total.checked_add(number.checked_mul(unit_seconds)?)?;
        rest = &rest[digits + 1..];
    }
    Some(total)
}

fn read_class(word: &str) -> Option<Class> {
    // ANY is a type as well, and a class only in queries.
    word.parse().ok().filter(|&class| class != Class::ANY)
}

fn read_rtype(word: &str) -> Result<Rtype, Problem> {
    let known: iana::Rtype = word.parse().map_err(|_| Problem::UnknownType(word.to_string()))?;
    let rtype = Rtype(known.to_int());
    if rtype.is_meta() { Err(Problem::QueryType(rtype)) } else { Ok(rtype) }
}

/// The RDATA of a record, in wire form.
fn read_rdata(rtype: Rtype, words: &[&str], origin: &Name, out: &mut Vec<u8>) -> Result<(), Problem> {
    let bad = |reason: &str| Err(bad_rdata(rtype, reason.to_string()));
    match (rtype, words) {
        (_, []) => return bad("it is missing"),
        (_, ["\\#", ..]) => read_by_domain(rtype, words, origin, out).map_err(|reason| bad_rdata(rtype, reason))?,
        (Rtype::A, [address]) => match address.parse::<Ipv4Addr>() {
            Ok(address) => out.extend(address.octets()),
            Err(_) => return bad("not an IPv4 address"),
        },
        (Rtype::AAAA, [address]) => match address.parse::<Ipv6Addr>() {
            Ok(address) => out.extend(address.octets()),
            Err(_) => return bad("not an IPv6 address"),
        },
        (Rtype::CNAME | Rtype::DNAME | Rtype::NS | Rtype::PTR, [target]) => {
            out.extend_from_slice(read_name(target, origin)?.wire());
        }
        (Rtype::SOA, [mname, rname, serial, times @ ..]) if times.len() == 4 => {
            out.extend_from_slice(read_name(mname, origin)?.wire());
            out.extend_from_slice(read_name(rname, origin)?.wire());
            match serial.parse::<u32>() {
                Ok(serial) => out.extend(serial.to_be_bytes()),
                Err(_) => return bad("the serial is not a number"),
            }
            for time in times {
                out.extend(read_ttl(time)?.to_be_bytes());
            }
        }
        (Rtype::A | Rtype::AAAA | Rtype::CNAME | Rtype::DNAME | Rtype::NS | Rtype::PTR, _) => {
            return bad("there is more than one word");
        }
        (Rtype::SOA, _) => return bad("there are not seven words"),
        _ => read_by_domain(rtype, words, origin, out).map_err(|reason| bad_rdata(rtype, reason))?,
    }
    Ok(())
}

/// Has the crate `domain` read the RDATA, as a zone of one record.
fn read_by_domain(rtype: Rtype, words: &[&str], origin: &Name, out: &mut Vec<u8>) -> Result<(), String> {
    // These look like others that the crate knows (RFC 1183 §1, §3.3; RFC 2230 §3; RFC 7208 §3.1).
    let layout = match rtype {
        Rtype::AFSDB | Rtype(21) | Rtype(36) => Rtype::MX,
        Rtype::SPF => Rtype::TXT,
        _ => rtype,
    };
    // It takes `@` for a label where the origin is meant (RFC 1035 §5.1).
    let has_names = !matches!(layout, Rtype::TXT | Rtype::HINFO | Rtype::CAA);
    let absolute = origin.to_string();
    let words: Vec<&str> = words.iter().map(|&word| if word == "@" && has_names { &absolute } else { word }).collect();
    let text = format!("$ORIGIN {absolute}\n. 0 CLASS1 TYPE{} {}\n", layout.0, words.join(" "));
    match inplace::Zonefile::from(text.as_str()).next_entry() {
        Ok(Some(inplace::Entry::Record(record))) => {
            let Ok(()) = record.data().compose_rdata(out);
        }
        Ok(_) => return Err("it is not a record".to_string()),
        // Its message begins with line and column in a text that the operator never sees.
        Err(error) => return Err(error.to_string().splitn(3, ':').last().unwrap_or_default().trim().to_string()),
    }
    // It lets empty labels pass, and octets behind `\#` that make no sense as their type (RFC 3597 §5).
    let mut parser = Parser::from_ref(out.as_slice());
    match ZoneRecordData::<&[u8], ParsedName<&[u8]>>::parse_rdata(layout.0.into(), &mut parser) {
        Ok(_) if parser.remaining() == 0 => Ok(()),
        _ => Err("a name or number in it is malformed".to_string()),
    }
}

fn bad_rdata(rtype: Rtype, reason: String) -> Problem {
    let example = match rtype {
        Rtype::A => "A 192.0.2.1",
        Rtype::AAAA => "AAAA 2001:db8::1",
        Rtype::CNAME => "CNAME target.example.",
        Rtype::DNAME => "DNAME target.example.",
        Rtype::NS => "NS ns.example.",
        Rtype::PTR => "PTR host.example.",
        Rtype::MX => "MX 10 mail.example.",
        Rtype::TXT => "TXT \"up to 255 octets\" \"and more\"",
        Rtype::SRV => "SRV 0 5 443 host.example.",
        Rtype::SOA => "SOA ns.example. hostmaster.example. 1 1h 20m 1w 1m",
        _ => "\\# LENGTH HEX",
    };
    Problem::BadRdata { rtype, reason, example }
}

/// Largest TTL (RFC 2181 §8).
const MAX_TTL: u32 = i32::MAX as u32;
/// TTL of an overlay's records if nothing says otherwise.
const OVERLAY_TTL: u32 = 300;
/// How many files may stand between a file and the first.
const MAX_INCLUDE_DEPTH: usize = 8;
/// Past so many faults a file is not what it is taken for.
const MAX_ERRORS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Contents {
        parse(Path::new("test"), text, &"example.".parse().unwrap(), Mode::Zone)
    }

    #[test]
    fn every_form_of_rdata_becomes_its_wire_form() {
        let host = b"\x04host\x07example\x00".as_slice();
        for (text, rtype, rdata) in [
            ("A 192.0.2.1", 1, b"\xc0\x00\x02\x01".to_vec()),
            ("TYPE1 192.0.2.1", 1, b"\xc0\x00\x02\x01".to_vec()),
            ("A \\# 4 c0000201", 1, b"\xc0\x00\x02\x01".to_vec()),
            ("A \\# 4 c000 0201", 1, b"\xc0\x00\x02\x01".to_vec()),
            ("TYPE65280 \\# 0", 65_280, vec![]),
            ("TYPE65280 \\# 2 abcd", 65_280, vec![0xab, 0xcd]),
            ("PTR host", 12, host.to_vec()),
            ("MX 10 @", 15, b"\x00\x0a\x07example\x00".to_vec()),
            ("TXT @", 16, b"\x01@".to_vec()), // only where a name is expected
            ("MX 10 host", 15, [b"\x00\x0a", host].concat()),
            ("AFSDB 1 host", 18, [b"\x00\x01", host].concat()),
            ("SRV 1 2 3 host.example.", 33, [b"\x00\x01\x00\x02\x00\x03", host].concat()),
            ("TXT \"a b\" c", 16, b"\x03a b\x01c".to_vec()),
            ("TXT ( \"a;\" ; comment\n  \\100\\; )", 16, b"\x02a;\x02d;".to_vec()),
            ("SPF \"v=spf1 -all\"", 99, b"\x0bv=spf1 -all".to_vec()),
            ("CAA 0 issue \"ca.test\"", 257, b"\x00\x05issueca.test".to_vec()),
            ("RP @ .", 17, b"\x07example\x00\x00".to_vec()),
            ("HTTPS 1 . alpn=\"h2\"", 65, b"\x00\x01\x00\x00\x01\x00\x03\x02h2".to_vec()),
        ] {
            let contents = read_text(&format!("@ 60 IN {text}\n"));
            assert_eq!(contents.errors, [], "{text}");
            let entry = contents.records[0];
            assert_eq!((entry.rtype, contents.rdata(&entry)), (Rtype(rtype), &*rdata), "{text}");
        }
    }

    #[test]
    fn a_ttl_is_taken_from_the_nearest_place_that_has_one() {
        for (text, ttl) in [
            ("$TTL 1h\n@ 60 A 192.0.2.1", Some(60)),
            ("$TTL 1h30m\n@ A 192.0.2.1", Some(5400)),
            ("$TTL 1h\n@ 7 A 192.0.2.1\n@ A 192.0.2.2", Some(3600)), // $TTL before the last one (RFC 2308 §4)
            ("@ 7 A 192.0.2.1\n@ A 192.0.2.2", Some(7)),             // the last one (RFC 1035 §5.1)
            ("@ SOA @ @ 1 2 3 4 5\n@ TXT x", Some(5)),               // the SOA minimum
            ("@ IN 2147483647 A 192.0.2.1", Some(2_147_483_647)),
            ("@ A 192.0.2.1", None),
        ] {
            let contents = read_text(text);
            assert_eq!(contents.records.last().map(|entry| entry.ttl), ttl, "{text}");
            assert_eq!(contents.errors.is_empty(), ttl.is_some(), "{text}: {:?}", contents.errors);
        }
        let overlay = parse(Path::new("test"), "@ CNAME .", &Name::root(), Mode::Overlay);
        assert_eq!(overlay.records[0].ttl, OVERLAY_TTL);
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
        for word in ["", "a..b", "..", "b\u{fc}cher", "\"quoted\"", &"abc.".repeat(64)] {
            assert!(read_name(word, &origin).is_err(), "{word}");
        }
    }

    #[test]
    fn what_an_included_file_sets_does_not_outlive_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("main.zone");
        std::fs::write(&path, "$TTL 60\nwww A 192.0.2.1\n$INCLUDE more.inc sub\n AAAA 2001:db8::1\n").unwrap();
        std::fs::write(folder.path().join("more.inc"), "$TTL 7\n$ORIGIN x.example.\nmail A 192.0.2.2\n").unwrap();
        let contents = read(&path, &"example.".parse().unwrap(), Mode::Zone);
        assert_eq!(contents.errors, []);
        let owners: Vec<Name> = contents.names.iter().map(|wire| Name::from_wire(wire).unwrap()).collect();
        let read = contents.records.iter().map(|e| (owners[e.owner as usize].to_string(), e.rtype, e.ttl));
        let expected = [("www", Rtype::A, 60), ("www", Rtype::AAAA, 60), ("mail.x", Rtype::A, 7)];
        let expected = expected.map(|(owner, rtype, ttl)| (format!("{owner}.example."), rtype, ttl));
        assert_eq!(read.collect::<Vec<_>>(), expected);
        assert_eq!(contents.stamps.len(), 2);
    }
}
