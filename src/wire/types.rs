//! The registered numbers: types, classes, opcodes, response codes.

use std::{fmt, str::FromStr};

/// A type of resource record, or a qtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rtype(pub u16);

/// A class; all that is served is IN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Class(pub u16);

/// A response code, extended ones (RFC 6891 §6.1.3) included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rcode(pub u16);

/// The kind of query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Opcode(pub u8);

/// Declares named numbers with the table from which they are printed and read.
macro_rules! registry {
    ($type:ident, $prefix:literal: $($name:ident $label:literal = $value:literal,)*) => {
        #[allow(missing_docs)] // the name is the registry's, and its meaning is there
        impl $type {
            $(pub const $name: Self = Self($value);)*

            /// The registered mnemonic, if this table has it.
            pub fn mnemonic(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($label),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.mnemonic() {
                    Some(label) => f.write_str(label),
                    None => write!(f, concat!($prefix, "{}"), self.0),
                }
            }
        }

        impl FromStr for $type {
            type Err = ();
            fn from_str(text: &str) -> Result<Self, ()> {
                $(if text.eq_ignore_ascii_case($label) {
                    return Ok(Self($value));
                })*
                match text.get(..$prefix.len()) {
                    Some(prefix) if prefix.eq_ignore_ascii_case($prefix) => {
                        text[$prefix.len()..].parse().map(Self).map_err(|_| ())
                    }
                    _ => Err(()),
                }
            }
        }
    };
}

registry!(Rtype, "TYPE":
    A "A" = 1, NS "NS" = 2, MD "MD" = 3, MF "MF" = 4, CNAME "CNAME" = 5, SOA "SOA" = 6, MB "MB" = 7, MG "MG" = 8,
    MR "MR" = 9, NULL "NULL" = 10, WKS "WKS" = 11, PTR "PTR" = 12, HINFO "HINFO" = 13, MINFO "MINFO" = 14,
    MX "MX" = 15, TXT "TXT" = 16, RP "RP" = 17, AFSDB "AFSDB" = 18, SIG "SIG" = 24, KEY "KEY" = 25, AAAA "AAAA" = 28,
    LOC "LOC" = 29, SRV "SRV" = 33, NAPTR "NAPTR" = 35, CERT "CERT" = 37, DNAME "DNAME" = 39, OPT "OPT" = 41,
    DS "DS" = 43, SSHFP "SSHFP" = 44, RRSIG "RRSIG" = 46, NSEC "NSEC" = 47, DNSKEY "DNSKEY" = 48,
    NSEC3 "NSEC3" = 50, NSEC3PARAM "NSEC3PARAM" = 51, TLSA "TLSA" = 52, CDS "CDS" = 59, CDNSKEY "CDNSKEY" = 60,
    OPENPGPKEY "OPENPGPKEY" = 61, SVCB "SVCB" = 64, HTTPS "HTTPS" = 65, SPF "SPF" = 99, TKEY "TKEY" = 249,
    TSIG "TSIG" = 250, IXFR "IXFR" = 251, AXFR "AXFR" = 252, MAILB "MAILB" = 253, MAILA "MAILA" = 254,
    ANY "ANY" = 255, URI "URI" = 256, CAA "CAA" = 257,
);

registry!(Class, "CLASS":
    IN "IN" = 1, CH "CH" = 3, HS "HS" = 4, NONE "NONE" = 254, ANY "ANY" = 255,
);

registry!(Rcode, "RCODE":
    NOERROR "NOERROR" = 0, FORMERR "FORMERR" = 1, SERVFAIL "SERVFAIL" = 2, NXDOMAIN "NXDOMAIN" = 3,
    NOTIMP "NOTIMP" = 4, REFUSED "REFUSED" = 5, YXDOMAIN "YXDOMAIN" = 6, YXRRSET "YXRRSET" = 7,
    NXRRSET "NXRRSET" = 8, NOTAUTH "NOTAUTH" = 9, NOTZONE "NOTZONE" = 10, BADVERS "BADVERS" = 16,
    BADCOOKIE "BADCOOKIE" = 23,
);

registry!(Opcode, "OPCODE":
    QUERY "QUERY" = 0, IQUERY "IQUERY" = 1, STATUS "STATUS" = 2, NOTIFY "NOTIFY" = 4, UPDATE "UPDATE" = 5,
    DSO "DSO" = 6,
);

impl Rtype {
    /// Whether this can only be asked for, never be stored (RFC 6895 §3.1), or belongs to the transport.
    pub fn is_meta(self) -> bool {
        matches!(self.0, 41 | 128..=255)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_mnemonics_are_read_back_as_printed() {
        for number in [0, 1, 28, 64, 99, 255, 257, 300, 65_280, 65_535] {
            assert_eq!(Rtype(number).to_string().parse(), Ok(Rtype(number)), "{number}");
        }
        assert_eq!("type65280".parse(), Ok(Rtype(65_280)));
        assert_eq!("aaaa".parse(), Ok(Rtype::AAAA));
        assert_eq!("TYPE70000".parse::<Rtype>(), Err(()));
        assert_eq!("BOGUS".parse::<Rtype>(), Err(()));
    }
}
