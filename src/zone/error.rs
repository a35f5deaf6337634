//! What can be wrong with a file, and where.

use std::{
    collections::{HashMap, hash_map},
    mem::{Discriminant, discriminant},
    path::PathBuf,
};

use bytesize::ByteSize;

use crate::{
    location::Location,
    wire::{Class, Name, NameError, Rtype, SuffixError},
};

/// A fault of a zone, overlay or hosts file: `file:line: what is wrong; what to do`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{location}: {problem}")]
pub struct Error {
    /// The file, and the line that begins the entry at fault.
    pub location: Location,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with an override zone, an overlay or a hosts file; [`Error`] prints it after its [`Location`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The file cannot be opened or read.
    #[error("cannot be read: {0}; make it a regular file that this user may read")]
    Unreadable(String),
    /// The file, with the files that it includes, is larger than it may be; it is so with this one.
    #[error("{}larger than {}; make it smaller, or raise zones.max_file_bytes", of_included(.0), .1.display().iec())]
    FileTooLarge(Option<PathBuf>, ByteSize),
    /// The folder of zones cannot be listed.
    #[error("the folder cannot be listed: {0}; create it, or correct zones.directory")]
    NoDirectory(String),
    /// The file holds more names than can be told apart.
    #[error("more than 4 GiB of names or data; split the file")]
    TooLarge,
    /// So many faults that the rest is not looked for.
    #[error("more faults follow; mend these first")]
    MoreFaults,
    /// The name of the file is not that of a zone.
    #[error("the file's name does not say for which apex it is ({0}); name it APEX.zone, APEX.overlay or @.overlay")]
    BadFileName(SuffixError),
    /// Two zone files have the same apex.
    #[error("{apex} is the zone of {} already; leave out one of them", other.display())]
    SameApex {
        /// The apex of both.
        apex: Name,
        /// The file that came first.
        other: PathBuf,
    },

    /// A `"` without its partner on the same line.
    #[error("a quotation mark is not closed on its line; close it, or write \\\"")]
    OpenQuote,
    /// A word that is too long for any record.
    #[error("a word of more than {} KiB; no RDATA has so much", MAX_WORD_BYTES >> 10)]
    LongWord,
    /// A `(` without its partner.
    #[error("a parenthesis is not closed; add `)`")]
    OpenParenthesis,
    /// A `)` without its partner.
    #[error("`)` closes nothing; remove it, or write \\)")]
    StrayParenthesis,
    /// A `$WORD` that is not known.
    #[error("unknown directive {0}; known are $ORIGIN, $TTL, $INCLUDE and $GENERATE")]
    UnknownDirective(String),
    /// A directive with too few or too many arguments.
    #[error("malformed directive; write `{0}`")]
    BadDirective(&'static str),
    /// A file that includes itself.
    #[error("{} includes itself; break the circle", .0.display())]
    IncludeCircle(PathBuf),
    /// Too many files between this one and the first.
    #[error("includes are nested deeper than {0} files; include it from a file further up")]
    IncludeDepth(usize),

    /// The first record has no owner to take over.
    #[error("the entry has no owner; begin the line with a name, or with @ for the apex")]
    NoOwner,
    /// Text that is not a name.
    #[error("`{text}` is not a name: {error}; write it with labels of at most 63 octets between single dots")]
    BadName {
        /// The text.
        text: String,
        /// Why not.
        error: NameError,
    },
    /// Warning: a name with letters beyond ASCII. It is their octets, which no client asks for.
    #[error("`{0}` has letters beyond ASCII and will not be asked for in this form; write the xn-- form")]
    BadLetters(String),
    /// Warning: a record outside its zone.
    #[error("owner name {owner} lies outside the apex {apex} and is ignored; give it a zone file of its own")]
    OutOfZone {
        /// The owner.
        owner: Name,
        /// The apex.
        apex: Name,
    },
    /// Text that is not a TTL.
    #[error("`{0}` is not a TTL; write seconds up to 2147483647, or units as in 1h30m")]
    BadTtl(String),
    /// Warning: a TTL above 2^31-1 (RFC 2181 §8).
    #[error("the TTL {0} is above 2147483647 s and becomes 0; write a smaller one")]
    LongTtl(String),
    /// A range, or a modifier of `$`, that `$GENERATE` does not understand.
    #[error("bad $GENERATE: {0}; write `$GENERATE 1-254 host-$ A 192.0.2.$`")]
    BadGenerate(String),
    /// A record without TTL, and nothing to take one from.
    #[error("no TTL; put `$TTL 1h` at the top of the file")]
    NoTtl,
    /// A class other than IN.
    #[error("class {0} is not served; only IN is")]
    ForeignClass(Class),
    /// An entry that ends before its type.
    #[error("the entry has no type; write `OWNER TTL IN TYPE RDATA`")]
    NoType,
    /// A word in the place of the type.
    #[error("`{0}` is not a record type; write its mnemonic, or TYPE and its number (RFC 3597)")]
    UnknownType(String),
    /// A type that can only be asked for.
    #[error("{0} is a type for queries, not for records; remove the record")]
    QueryType(Rtype),
    /// RDATA that its type does not allow.
    #[error("bad RDATA for {rtype}: {reason}; write `{example}`")]
    BadRdata {
        /// The type.
        rtype: Rtype,
        /// Why not.
        reason: String,
        /// What it looks like when it is right.
        example: &'static str,
    },

    /// A whole zone without the record that heads it.
    #[error("the zone has no SOA record; add `{apex} 1h IN SOA {apex} nobody.invalid. 1 1h 20m 1w 1m`")]
    NoSoa {
        /// The apex.
        apex: Name,
    },
    /// A second SOA record at the apex.
    #[error("a second SOA record; keep one")]
    SecondSoa,
    /// An SOA record below the apex.
    #[error("an SOA record at {owner}, below the apex; give {owner} a zone file of its own")]
    SoaBelowApex {
        /// The owner.
        owner: Name,
    },
    /// CNAME and anything else (RFC 1034 §3.6.2, RFC 2181 §10.1).
    #[error("{owner} has a CNAME record beside other data; keep the CNAME record or the others")]
    CnameBesideData {
        /// The owner.
        owner: Name,
    },
    /// Two records of a type of which a name has one (RFC 2181 §10.1, RFC 6672 §2.4).
    #[error("{owner} has more than one {rtype} record; keep one")]
    SecondAlias {
        /// The owner.
        owner: Name,
        /// CNAME or DNAME.
        rtype: Rtype,
    },
    /// Warning: data where a DNAME record leads away (RFC 6672 §2.4).
    #[error("{owner} lies below the DNAME record of {dname} and is never served; remove one of them")]
    BelowDname {
        /// The owner.
        owner: Name,
        /// The owner of the DNAME record.
        dname: Name,
    },
    /// NS at a wildcard (RFC 4592 §4.2).
    #[error("a wildcard cannot have NS records; name the children one by one")]
    WildcardNs,
    /// Warning: DNAME at a wildcard, whose meaning is undefined (RFC 4592 §4.4).
    #[error("the DNAME record of a wildcard redirects nothing; name the children one by one")]
    WildcardDname,
    /// Warning: DNAME in an overlay, which would hold names that are not in it.
    #[error(
        "a DNAME record in an overlay redirects nothing, and its owner has no other data; use `*.OWNER CNAME *.TARGET`"
    )]
    DnameInOverlay,
    /// Warning: an overlay with an SOA record at its apex, perhaps without the intent.
    #[error(
        "the SOA record makes this a response policy zone, whose owners are relative to {apex}: `www` rules on `www.`, \
         not on `www.{apex}`; remove the SOA record to rule on names below {apex}"
    )]
    RelativeToSoa {
        /// The owner of the SOA record.
        apex: Name,
    },
    /// Warning: an alias in an overlay whose target the same overlay holds.
    #[error(
        "the target {target} of a CNAME record is looked up beneath the overlays, not in this file; write its records \
         at the owner of the CNAME record"
    )]
    TargetInOverlay {
        /// The target.
        target: Name,
    },

    /// Warning: NS, MX or SRV leads to an alias (RFC 2181 §10.3).
    #[error("{rtype} leads to {target}, which is an alias; name the target of its CNAME record")]
    TargetIsAlias {
        /// NS, MX or SRV.
        rtype: Rtype,
        /// The alias.
        target: Name,
    },
    /// Warning: TTLs differ in an RRset (RFC 2181 §5.2).
    #[error("the TTLs of {owner} {rtype} differ; all get the smallest, {ttl} s")]
    TtlsDiffer {
        /// The owner.
        owner: Name,
        /// The type.
        rtype: Rtype,
        /// The smallest.
        ttl: u32,
    },
    /// Warning: data that belongs to the other side of a delegation.
    #[error("{rtype} at {owner} is never served, for {cut} is delegated; move it to that zone")]
    Occluded {
        /// The owner.
        owner: Name,
        /// The type.
        rtype: Rtype,
        /// The owner of the NS records.
        cut: Name,
    },
    /// Warning: an RPZ trigger other than the qname.
    #[error("{owner} is a response policy trigger that is not supported and is passed over; remove it")]
    ForeignTrigger {
        /// The owner.
        owner: Name,
    },
    /// Warning: files in the folder of zones whose names say nothing.
    #[error("{} are passed over: {}; name them APEX.zone, APEX.overlay or @NAME.overlay, or move them away", plural(.0.len(), "file"), list(.0))]
    PassedOver(Vec<String>),
    /// Warning: an entry of `zones.order` that is no file's.
    #[error("zones.order names `{}`, which is no overlay or hosts file; correct or remove it", .0.display())]
    OrderOfNothing(PathBuf),
    /// Warning: a line of a hosts file that does not begin with an address.
    #[error("`{0}` is not an address; the line is passed over")]
    BadAddress(String),
    /// Warning: an address without a name.
    #[error("{0} has no name behind it; the line is passed over")]
    NoNames(String),
    /// Warning: a word in a hosts file that no host can be called.
    #[error("`{0}` is not the name of a host and is passed over; write letters, digits, hyphens and single dots")]
    BadHost(String),
    /// Warning: a line of a hosts file that is too long.
    #[error("the line is longer than 64 KiB and is passed over; split it")]
    LongLine,
    /// The last example of a warning that there are more of.
    #[error("{first}; and {more} more of the kind")]
    More {
        /// The example.
        first: Box<Problem>,
        /// How many more.
        more: usize,
    },
}

impl Problem {
    /// Whether the file can be served in spite of this.
    pub fn is_warning(&self) -> bool {
        match self {
            Self::More { first, .. } => first.is_warning(),
            Self::BadLetters(_)
            | Self::OutOfZone { .. }
            | Self::LongTtl(_)
            | Self::BelowDname { .. }
            | Self::WildcardDname
            | Self::DnameInOverlay
            | Self::RelativeToSoa { .. }
            | Self::TargetInOverlay { .. }
            | Self::TargetIsAlias { .. }
            | Self::TtlsDiffer { .. }
            | Self::Occluded { .. }
            | Self::ForeignTrigger { .. }
            | Self::PassedOver(_)
            | Self::OrderOfNothing(_)
            | Self::BadAddress(_)
            | Self::NoNames(_)
            | Self::BadHost(_)
            | Self::LongLine => true,
            _ => false,
        }
    }

    fn kind(&self) -> Kind {
        let rtype = if let Self::BadRdata { rtype, .. } = self { *rtype } else { Rtype(0) };
        (discriminant(self), rtype)
    }

    /// How many faults or warnings of this kind a file gives with their lines. The others are only counted.
    fn most_examples(&self) -> usize {
        match self {
            Self::TargetIsAlias { .. } | Self::TtlsDiffer { .. } | Self::Occluded { .. } | Self::BelowDname { .. } => {
                20
            }
            _ if self.is_warning() => 1,
            _ => MOST_EXAMPLES,
        }
    }

    pub(super) fn at(self, location: Location) -> Error {
        Error { location, problem: self }
    }
}

/// What faults have in common that are counted together: RDATA is faulty in another way in each type.
type Kind = (Discriminant<Problem>, Rtype);

/// What has been found in a file: of each kind of fault or warning a few examples and their number.
#[derive(Debug, Default)]
pub(super) struct Findings {
    errors: Vec<Error>,
    faults: usize,
    /// How often each kind was found, and the place of its last example.
    kinds: HashMap<Kind, (usize, usize)>,
}

impl Findings {
    pub fn add(&mut self, error: Error) {
        self.add_many(error, 1);
    }

    /// Adds a warning that was found `count` times, with its first example.
    pub fn add_many(&mut self, error: Error, count: usize) {
        if !error.problem.is_warning() {
            self.faults += 1;
        }
        let most = error.problem.most_examples();
        let (known, last) = match self.kinds.entry(error.problem.kind()) {
            hash_map::Entry::Occupied(known) => known.into_mut(),
            hash_map::Entry::Vacant(vacant) => vacant.insert((0, 0)),
        };
        if *known < most {
            *last = self.errors.len();
            self.errors.push(error);
        }
        *known += count;
    }

    /// How many faults.
    pub fn faults(&self) -> usize {
        self.faults
    }

    /// How many errors of any kind.
    pub fn count(&self) -> usize {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    /// All of them, in the order of the lines.
    pub fn into_errors(mut self) -> Vec<Error> {
        for (count, last) in self.kinds.into_values() {
            let Some(error) = self.errors.get_mut(last) else { continue };
            let more = count.saturating_sub(error.problem.most_examples());
            if more > 0 {
                let first = Box::new(error.problem.clone());
                error.problem = Problem::More { first, more };
            }
        }
        self.errors.sort_by(|a, b| (&a.location.file, a.location.line).cmp(&(&b.location.file, b.location.line)));
        self.errors
    }

    /// The warnings, unless there are faults: then all errors.
    pub fn refuse_faults(self) -> Result<Vec<Error>, Vec<Error>> {
        let is_refused = self.faults > 0;
        let errors = self.into_errors();
        if is_refused { Err(errors) } else { Ok(errors) }
    }
}

/// Twice the 65,535 octets of the longest RDATA, each written as `\DDD`.
pub(super) const MAX_WORD_BYTES: usize = 512 << 10;
/// So many faults of one kind in one file have a line each.
const MOST_EXAMPLES: usize = 10;

fn of_included(file: &Option<PathBuf>) -> String {
    file.as_ref().map(|file| format!("{} is included, and with it the zone is ", file.display())).unwrap_or_default()
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The first few of many names.
fn list(names: &[String]) -> String {
    const MOST: usize = 8;
    let mut text = names[..names.len().min(MOST)].join(", ");
    if names.len() > MOST {
        text += &format!(" and {} more", names.len() - MOST);
    }
    text
}
