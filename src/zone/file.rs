//! The reader of master files: from text to records, with every fault on the way (RFC 1035 §5, RFC 2308 §4).
//!
//! What is accepted is what BIND accepts. A record without TTL gets that of `$TTL`; without one the last TTL written in the
//! file. If the first record without TTL is the SOA record, its minimum stands for `$TTL`. An overlay needs neither: there
//! the TTL is five minutes.
//!
//! The text may be in any encoding that contains ASCII: what is not ASCII counts as octets, as if written `\DDD`.

use std::{
    borrow::Cow,
    ffi::OsStr,
    fmt::Write,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use bytesize::ByteSize;

use super::{
    MAX_FILE_BYTES, Mode, Problem,
    contents::{Contents, Entry, Origin},
    entry::Entries,
    generate::{self, Generate},
    rdata::{self, MAX_TTL, is_quoted, read_name, read_octets, read_rtype, read_seconds},
};
use crate::{
    files::access,
    location::Location,
    wire::{Class, Name, Rtype},
};

/// Reads a file and what it includes, which may have so many bytes together.
pub(super) fn read(path: &Path, apex: &Name, mode: Mode, origin: Origin, most_bytes: u64) -> Contents {
    let mut reader = Reader::new(apex, mode, origin, most_bytes);
    if let Some(text) = reader.open(path, &Location::file(path)) {
        reader.read_text(path, &text, Scope::new(apex));
    }
    reader.finish()
}

/// Reads a text as if it stood in `path`.
pub(super) fn parse(path: &Path, text: &str, apex: &Name, mode: Mode) -> Contents {
    let mut reader = Reader::new(apex, mode, Origin::Disk, MAX_FILE_BYTES.1);
    reader.read_text(path, &to_ascii(text.as_bytes()), Scope::new(apex));
    reader.finish()
}

/// The state of reading that an included file inherits, and cannot change for the file that includes it.
#[derive(Clone)]
struct Scope {
    origin: Name,
    owner: Owner,
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
        Self { origin: apex.clone(), owner: Owner::None, trail: Vec::new() }
    }
}

struct Reader {
    contents: Contents,
    mode: Mode,
    /// Bytes that the file and what it includes may have.
    most_bytes: u64,
    soa_minimum: Option<u32>,
    dollar_ttl: Option<u32>,
    last_ttl: Option<u32>,
    /// How many records `$GENERATE` has made.
    generated: usize,
    /// The RDATA being read.
    scratch: Vec<u8>,
}

impl Reader {
    fn new(apex: &Name, mode: Mode, origin: Origin, most_bytes: u64) -> Self {
        Self {
            contents: Contents::new(apex, origin, most_bytes),
            most_bytes,
            mode,
            soa_minimum: None,
            dollar_ttl: None,
            last_ttl: None,
            generated: 0,
            scratch: Vec::new(),
        }
    }

    fn finish(mut self) -> Contents {
        self.contents.records.sort_by_key(|entry| (entry.owner, entry.rtype));
        self.contents
    }

    /// The text of a file; what keeps it from being read is blamed on `blame`.
    fn open(&mut self, path: &Path, blame: &Location) -> Option<String> {
        match self.contents.read(path) {
            Ok(bytes) => Some(match String::from_utf8(bytes) {
                Ok(text) if text.is_ascii() => text,
                Ok(text) => to_ascii(text.as_bytes()).into_owned(),
                Err(error) => to_ascii(error.as_bytes()).into_owned(),
            }),
            Err(error) => {
                let reason =
                    if blame.line.is_some() { format!("{}: {error}", path.display()) } else { error.to_string() };
                let problem = match error.kind() {
                    io::ErrorKind::FileTooLarge => {
                        let included = blame.line.is_some().then(|| path.to_path_buf());
                        Problem::FileTooLarge(included, ByteSize::b(self.most_bytes))
                    }
                    _ => Problem::Unreadable(reason),
                };
                self.contents.findings.add(problem.at(blame.clone()));
                None
            }
        }
    }

    fn read_text(&mut self, path: &Path, text: &str, mut scope: Scope) {
        let file = self.contents.files.len() as u16;
        self.contents.files.push(path.to_path_buf());
        scope.trail.push(path.to_path_buf());
        let mut entries = Entries::new(text);
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
                    self.read_directive(&words, &mut scope, &Location::line(path, entry.line), file)
                }
                (None, _) => self.read_record(&words, entry.indented, &mut scope, (file, entry.line as u32)),
            };
            if let Err(problem) = result {
                self.contents.mentions_soa |= words.iter().any(|word| word.eq_ignore_ascii_case("SOA"));
                self.contents.findings.add(problem.at(Location::line(path, entry.line)));
            }
            let faults = self.contents.findings.faults();
            if faults >= MAX_ERRORS {
                if faults == MAX_ERRORS {
                    self.contents.findings.add(Problem::MoreFaults.at(Location::line(path, entry.line)));
                }
                return;
            }
        }
    }

    fn read_directive(&mut self, words: &[&str], scope: &mut Scope, here: &Location, file: u16) -> Result<(), Problem> {
        let arguments = &words[1..];
        match words[0].to_ascii_uppercase().as_str() {
            "$ORIGIN" => match arguments {
                [origin] => scope.origin = read_name(origin, &scope.origin)?,
                _ => return Err(Problem::BadDirective("$ORIGIN NAME")),
            },
            "$TTL" => match arguments {
                [ttl] => self.dollar_ttl = Some(self.read_ttl(ttl, here)?),
                _ => return Err(Problem::BadDirective("$TTL 1h")),
            },
            "$INCLUDE" => {
                let (included, origin) = match arguments {
                    [included] => (included, scope.origin.clone()),
                    [included, origin] => (included, read_name(origin, &scope.origin)?),
                    _ => return Err(Problem::BadDirective("$INCLUDE FILE [ORIGIN]")),
                };
                let octets = read_octets(included).map_err(|_| Problem::BadDirective("$INCLUDE FILE [ORIGIN]"))?;
                // Origin and owner of the included file do not outlive it (RFC 1035 §5.1); TTLs do, as in BIND.
                self.include(Path::new(OsStr::from_bytes(&octets)), Scope { origin, ..scope.clone() }, here)?;
            }
            "$GENERATE" => self.generate(arguments, &scope.origin, (file, here.line.unwrap_or_default() as u32))?,
            _ => return Err(Problem::UnknownDirective(words[0].to_string())),
        }
        Ok(())
    }

    /// Makes the records of `$GENERATE`. The owner of the entry before stays the current one.
    fn generate(&mut self, arguments: &[&str], origin: &Name, at: (u16, u32)) -> Result<(), Problem> {
        let generate = Generate::new(arguments)?;
        let (_, head) = generate.middle.split_last().unwrap_or((&"", &[]));
        let is_head = |word: &&&str| read_seconds(word).is_some() || read_class(word).is_some();
        if let Some(word) = head.iter().find(|word| !is_head(word)) {
            let reason = format!("`{word}` is neither TTL nor class; put RDATA of several words in quotation marks");
            return Err(generate::bad(reason));
        }
        self.generated = self.generated.saturating_add(generate.count());
        if self.generated > MAX_GENERATED {
            return Err(generate::bad(format!("the file generates more than {MAX_GENERATED} records")));
        }
        let mut scope = Scope::new(origin);
        for number in generate.numbers() {
            let owner = generate::expand(generate.owner, number)?;
            let text = generate::expand(generate.rdata, number)?;
            let (mut entries, mut words) = (Entries::new(&text), Vec::new());
            if let Some(fault) = entries.next(&mut words).and_then(|entry| entry.fault) {
                return Err(fault);
            }
            let words = [&[owner.as_str()], generate.middle, &*words].concat();
            self.read_record(&words, false, &mut scope, at)?;
        }
        Ok(())
    }

    /// A TTL, or 0 for one that is too large (RFC 2181 §8).
    fn read_ttl(&mut self, word: &str, here: &Location) -> Result<u32, Problem> {
        match read_seconds(word) {
            Some(ttl) if ttl > MAX_TTL => {
                self.contents.findings.add(Problem::LongTtl(word.to_string()).at(here.clone()));
                Ok(0)
            }
            Some(ttl) => Ok(ttl),
            None => Err(Problem::BadTtl(word.to_string())),
        }
    }

    fn include(&mut self, file: &Path, scope: Scope, here: &Location) -> Result<(), Problem> {
        let path = here.file.parent().unwrap_or(Path::new("")).join(file);
        if scope.trail.len() > MAX_INCLUDE_DEPTH || self.contents.files.len() >= usize::from(u16::MAX) {
            return Err(Problem::IncludeDepth(MAX_INCLUDE_DEPTH));
        }
        // Names of one file may differ, and seldom is there a need to know.
        let is_open = |real: PathBuf| scope.trail.iter().any(|above| real_path(above).is_ok_and(|above| above == real));
        if real_path(&path).is_ok_and(is_open) {
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
        let here = |reader: &Self| {
            let path = reader.contents.files.get(usize::from(file)).cloned().unwrap_or_default();
            Location::line(path, line as usize)
        };
        if let Some((first, rest)) = words.split_first().filter(|_| !indented) {
            words = rest;
            scope.owner = Owner::Faulty;
            let word = if is_quoted(first) { first.trim_matches('"') } else { first };
            let owner = read_name(word, &scope.origin)?;
            if !owner.is_at_or_below(&self.contents.apex) {
                let problem = Problem::OutOfZone { owner, apex: self.contents.apex.clone() };
                self.contents.findings.add(problem.at(here(self)));
                return Ok(());
            }
            if !owner.wire().is_ascii() {
                self.contents.findings.add(Problem::BadLetters(word.to_string()).at(here(self)));
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
                ttl = Some(self.read_ttl(word, &here(self))?);
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
        rdata::read(rtype, words, &scope.origin, &mut self.scratch)?;
        let rdata_bytes = self.scratch.len() as u16;
        if rtype == Rtype::SOA {
            let minimum = self.scratch.last_chunk().map(|octets| u32::from_be_bytes(*octets).min(MAX_TTL));
            self.soa_minimum = self.soa_minimum.or(minimum);
            if ttl.or(self.dollar_ttl).or(self.last_ttl).is_none() {
                self.dollar_ttl = minimum;
            }
        }
        self.last_ttl = ttl.or(self.last_ttl);
        let default = match self.mode {
            Mode::Zone => None,
            Mode::Overlay => self.soa_minimum.or(Some(OVERLAY_TTL)),
        };
        let ttl = ttl.or(self.dollar_ttl).or(self.last_ttl).or(default).ok_or(Problem::NoTtl)?;

        let contents = &mut self.contents;
        let rdata_at = u32::try_from(contents.octets.len()).map_err(|_| Problem::TooLarge)?;
        let owner = contents.names.insert(owner.wire()).ok_or(Problem::TooLarge)?;
        contents.octets.extend_from_slice(&self.scratch);
        contents.records.push(Entry { owner, rtype, ttl, rdata_at, rdata_bytes, file, line });
        Ok(())
    }
}

/// The path without links.
fn real_path(path: &Path) -> io::Result<PathBuf> {
    access(path, || path.canonicalize())
}

/// The text with octets beyond ASCII written as `\DDD`. A byte order mark before it is no part of it.
fn to_ascii(bytes: &[u8]) -> Cow<'_, str> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if let Ok(text) = str::from_utf8(bytes)
        && text.is_ascii()
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() + bytes.len() / 8);
    let mut is_escaped = false;
    for &byte in bytes {
        match byte {
            // The backslash is there already.
            0x80.. if is_escaped => drop(write!(text, "{byte}")),
            0x80.. => drop(write!(text, "\\{byte}")),
            _ => text.push(char::from(byte)),
        }
        is_escaped = byte == b'\\' && !is_escaped;
    }
    Cow::Owned(text)
}

fn read_class(word: &str) -> Option<Class> {
    // ANY is a type as well, and a class only in queries.
    word.parse().ok().filter(|&class| class != Class::ANY)
}

/// TTL of an overlay's records if nothing says otherwise.
const OVERLAY_TTL: u32 = 300;
/// How many files may stand between a file and the first.
const MAX_INCLUDE_DEPTH: usize = 8;
/// How many records one file may generate: as many as a /10 has addresses.
const MAX_GENERATED: usize = 1 << 22;
/// Past so many faults a file is not what it is taken for.
const MAX_ERRORS: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Contents {
        parse(Path::new("test"), text, &"example.".parse().unwrap(), Mode::Zone)
    }

    #[test]
    fn a_ttl_is_taken_from_the_nearest_place_that_has_one() {
        for (text, ttl) in [
            ("$TTL 1h\n@ 60 A 192.0.2.1", Some(60)),
            ("$TTL 1h30m\n@ A 192.0.2.1", Some(5400)),
            ("$TTL 1h\n@ 7 A 192.0.2.1\n@ A 192.0.2.2", Some(3600)), // $TTL before the last one (RFC 2308 §4)
            ("@ 7 A 192.0.2.1\n@ A 192.0.2.2", Some(7)),             // the last one (RFC 1035 §5.1)
            ("@ SOA @ @ 1 2 3 4 5\n@ TXT x", Some(5)),               // the SOA minimum
            ("@ SOA @ @ 1 2 3 4 5\n@ 7 A 192.0.2.1\n@ TXT x", Some(5)), // which stands for $TTL then
            ("@ 9 SOA @ @ 1 2 3 4 5\n@ TXT x", Some(9)),
            ("@ IN 2147483647 A 192.0.2.1", Some(2_147_483_647)),
            ("@ A 192.0.2.1", None),
        ] {
            let contents = read_text(text);
            assert_eq!(contents.records.last().map(|entry| entry.ttl), ttl, "{text}");
            assert_eq!(contents.findings.count() == 0, ttl.is_some(), "{text}: {:?}", contents.findings);
        }
        let overlay = parse(Path::new("test"), "@ CNAME .", &Name::root(), Mode::Overlay);
        assert_eq!(overlay.records[0].ttl, OVERLAY_TTL);
    }

    #[test]
    fn origin_and_owner_of_an_included_file_do_not_outlive_it_and_ttls_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("main.zone");
        std::fs::write(&path, "$TTL 60\nwww A 192.0.2.1\n$INCLUDE more.inc sub\n AAAA 2001:db8::1\n").unwrap();
        std::fs::write(folder.path().join("more.inc"), "$TTL 7\n$ORIGIN x.example.\nmail A 192.0.2.2\n").unwrap();
        let contents = read(&path, &"example.".parse().unwrap(), Mode::Zone, Origin::Disk, 1 << 20);
        assert_eq!(contents.findings.count(), 0, "{:?}", contents.findings);
        let owners: Vec<Name> = contents.names.iter().map(|wire| Name::from_wire(wire).unwrap()).collect();
        let read = contents.records.iter().map(|e| (owners[e.owner as usize].to_string(), e.rtype, e.ttl));
        let expected = [("www", Rtype::A, 60), ("www", Rtype::AAAA, 7), ("mail.x", Rtype::A, 7)];
        let expected = expected.map(|(owner, rtype, ttl)| (format!("{owner}.example."), rtype, ttl));
        assert_eq!(read.collect::<Vec<_>>(), expected);
        assert_eq!(contents.stamps.len(), 2);
    }

    #[test]
    fn large_ttls_become_0_with_one_warning_in_all() {
        let contents = read_text("$TTL 4294967295\n@ A 192.0.2.1\n@ 2147483648 A 192.0.2.2\n@ 100w100w TXT x\n");
        assert_eq!(contents.records.iter().map(|entry| entry.ttl).collect::<Vec<_>>(), [0, 0, 120_960_000]);
        let warnings: Vec<String> = contents.findings.into_errors().iter().map(ToString::to_string).collect();
        assert_eq!(
            warnings,
            [
                "test:1: the TTL 4294967295 is above 2147483647 s and becomes 0; write a smaller one; and 1 more of the kind"
            ]
        );
        assert!(read_text("@ 4294967296 A 192.0.2.1\n").findings.faults() > 0, "more than 32 bits");
    }

    #[test]
    fn text_beyond_ascii_is_octets() {
        let octets = |bytes: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x.zone");
            std::fs::write(&path, bytes).unwrap();
            let contents = read(&path, &"example.".parse().unwrap(), Mode::Zone, Origin::Disk, 1 << 20);
            assert_eq!(contents.findings.faults(), 0, "{:?}", contents.findings);
            contents.records.last().map(|entry| contents.rdata(entry).to_vec()).unwrap()
        };
        assert_eq!(octets(b"@ 60 TXT \"M\xfcnchen\" ; caf\xe9\n"), b"\x07M\xfcnchen");
        assert_eq!(octets("@ 60 TXT \"M\u{fc}nchen\"\n".as_bytes()), b"\x08M\xc3\xbcnchen");
        assert_eq!(octets(b"@ 60 TXT \"\\\xfc \\\\\xfc\"\n"), b"\x04\xfc \\\xfc"); // escaped, and behind a backslash
        assert_eq!(octets("\u{feff}@ 60 TXT x\n".as_bytes()), b"\x01x");
        let contents = read_text("b\u{fc}cher 60 A 192.0.2.1\nm\u{fc}ll 60 A 192.0.2.1\n");
        assert_eq!((contents.records.len(), contents.findings.faults(), contents.findings.count()), (2, 0, 2));
    }

    #[test]
    fn generated_records_are_bounded_and_have_the_line_of_their_directive() {
        let contents = read_text("$TTL 60\nwww A 192.0.2.1\n$GENERATE 1-3 h$ A 192.0.2.${100,3}\n TXT x\n");
        assert_eq!(contents.findings.count(), 0, "{:?}", contents.findings);
        let lines: Vec<_> = contents.records.iter().map(|entry| (entry.owner, entry.rtype, entry.line)).collect();
        let expected = [(0, Rtype::A, 2), (0, Rtype::TXT, 4), (1, Rtype::A, 3), (2, Rtype::A, 3), (3, Rtype::A, 3)];
        assert_eq!(lines, expected, "the owner before stays");
        for (text, expected) in [
            ("$GENERATE 0-2147483647 h$ 60 A 192.0.2.1", "more than 4194304 records"),
            ("$GENERATE 1-300 h$ 60 A 192.0.2.$", "bad RDATA for A"),
            ("$GENERATE 1-2 h$ 60 MX 10 mail$", "quotation marks"),
            ("$GENERATE 1-2 h$ ( 60 A 192.0.2.$", "parenthesis"),
            ("$GENERATE 1-2 h$ 60 TXT \"(\"", "parenthesis"),
        ] {
            let errors = read_text(text).findings.into_errors();
            assert_eq!(errors.len(), 1, "{text}: {errors:?}");
            assert!(errors[0].to_string().contains(expected), "{text}: {}", errors[0]);
        }
    }
}
