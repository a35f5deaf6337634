//! What can be wrong with a file, and where.

use std::path::PathBuf;

use crate::{
    location::Location,
    wire::{Class, Name, NameError, Rtype},
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
    /// The folder of zones cannot be listed.
    #[error("the folder cannot be listed: {0}; create it, or correct zones.directory")]
    NoDirectory(String),
    /// The file holds octets that are not UTF-8.
    #[error("not UTF-8 text; write other octets as \\DDD")]
    NotUtf8,
    /// The file holds more names than can be told apart.
    #[error("more than 4 GiB of names or data; split the file")]
    TooLarge,
    /// So many faults that the rest is not looked for.
    #[error("more faults follow; mend these first")]
    MoreFaults,
    /// The name of the file is not that of a zone.
    #[error("the file's name does not say for which apex it is ({0}); name it APEX.zone, APEX.overlay or @.overlay")]
    BadFileName(NameError),
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
    /// A `(` without its partner.
    #[error("a parenthesis is not closed; add `)`")]
    OpenParenthesis,
    /// A `)` without its partner.
    #[error("`)` closes nothing; remove it, or write \\)")]
    StrayParenthesis,
    /// A `$WORD` that is not known.
    #[error("unknown directive {0}; known are $ORIGIN, $TTL and $INCLUDE")]
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
    /// A name with a quotation mark or letters beyond ASCII.
    #[error("`{0}` is not a name; write letters beyond ASCII in the xn-- form, and other signs as \\DDD")]
    BadLetters(String),
    /// A record outside its zone.
    #[error("owner name {owner} lies outside the apex {apex}; give it a zone file of its own")]
    OutOfZone {
        /// The owner.
        owner: Name,
        /// The apex.
        apex: Name,
    },
    /// Text that is not a TTL, or one above 2^31-1 (RFC 2181 §8).
    #[error("`{0}` is not a TTL; write seconds up to 2147483647, or units as in 1h30m")]
    BadTtl(String),
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
    /// Data where a DNAME record leads away (RFC 6672 §2.4).
    #[error("{owner} lies below the DNAME record of {dname} and can never be reached; remove one of them")]
    BelowDname {
        /// The owner.
        owner: Name,
        /// The owner of the DNAME record.
        dname: Name,
    },
    /// NS or DNAME at a wildcard, of which nobody can say what it means (RFC 4592 §4.2, §4.4).
    #[error("a wildcard cannot have {0} records; name the children one by one")]
    WildcardCut(Rtype),
    /// DNAME in an overlay, which would hold names that are not in it.
    #[error("an overlay cannot have DNAME records; use `*.OWNER CNAME *.TARGET`")]
    DnameInOverlay,

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
    /// Warning: a line of a hosts file that does not begin with an address.
    #[error("`{0}` is not an address; the line is passed over")]
    BadAddress(String),
    /// Warning: an address without a name.
    #[error("{0} has no name behind it; the line is passed over")]
    NoNames(String),
}

impl Problem {
    /// Whether the file can be served in spite of this.
    pub fn is_warning(&self) -> bool {
        matches!(
            self,
            Self::TargetIsAlias { .. }
                | Self::TtlsDiffer { .. }
                | Self::Occluded { .. }
                | Self::ForeignTrigger { .. }
                | Self::BadAddress(_)
                | Self::NoNames(_)
        )
    }

    pub(super) fn at(self, location: Location) -> Error {
        Error { location, problem: self }
    }
}
