//! What an OPT record says, and its options (RFC 6891 §6.1).

use super::read_u16;

/// What a client said of itself in its OPT record (RFC 6891 §6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientEdns {
    /// The largest UDP payload it takes, as it said.
    pub udp_size: u16,
    /// The EDNS version; all but 0 are answered BADVERS.
    pub version: u8,
    /// The DO bit: it wants DNSSEC records.
    pub dnssec_ok: bool,
}

/// Those options of a client's OPT record to which replies have something to say. All others are passed over, whatever they
/// hold (RFC 6891 §6.1.2), and none goes to an upstream: they are a matter between two neighbors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientOptions<'a> {
    /// COOKIE (RFC 7873 §4): 8 octets of the client's, and then, if it has any of a server, 8 to 32 of those.
    pub cookie: Option<&'a [u8]>,
    /// edns-tcp-keepalive (RFC 7828): it would like to know how long a connection may be idle.
    pub keepalive: bool,
    /// Padding (RFC 7830): its length shall say nothing, and that of the reply neither.
    pub padding: bool,
}

impl<'a> ClientOptions<'a> {
    /// Nothing for options that are not whole, or a cookie of an impossible length (RFC 7873 §5.2.2).
    pub(super) fn read(rdata: &'a [u8]) -> Option<Self> {
        let mut read = Self::default();
        for option in options(rdata) {
            match option? {
                // Of several, the first counts (RFC 7873 §5.2).
                (OPTION_COOKIE, data) if read.cookie.is_none() => {
                    read.cookie = matches!(data.len(), 8 | 16..=40).then_some(data);
                    read.cookie?;
                }
                (OPTION_KEEPALIVE, _) => read.keepalive = true,
                (OPTION_PADDING, _) => read.padding = true,
                _ => {}
            }
        }
        Some(read)
    }
}

/// The options of an OPT record's RDATA: code and data of each, until one does not fit.
pub(super) fn options(rdata: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= rdata.len() {
            return None;
        }
        let option = (|| {
            let length = usize::from(read_u16(rdata, at + 2)?);
            Some((read_u16(rdata, at)?, rdata.get(at + 4..at + 4 + length)?))
        })();
        at = option.map_or(rdata.len(), |(_, data)| at + 4 + data.len());
        Some(option)
    })
}

/// The option code COOKIE (RFC 7873 §8).
pub(super) const OPTION_COOKIE: u16 = 10;
/// The option code edns-tcp-keepalive (RFC 7828 §3.1).
pub(super) const OPTION_KEEPALIVE: u16 = 11;
/// The option code Padding (RFC 7830 §3).
pub const OPTION_PADDING: u16 = 12;
/// The option code of extended errors (RFC 8914 §5.1).
pub(super) const OPTION_EXTENDED_ERROR: u16 = 15;
