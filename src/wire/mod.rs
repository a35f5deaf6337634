//! DNS messages as bytes: read in place, patched, written.
//!
//! Everything here treats its input as hostile: nothing is indexed, every length is checked, a malformed message is
//! a value, not a panic. Positions and sizes are bytes.

mod answer;
mod edns;
mod frame;
mod name;
mod query;
mod question;
mod rdata;
mod record;
mod reply;
mod response;
mod rotation;
mod suffix;
mod types;

pub use answer::{Answer, Record, Soa};
pub use edns::{ClientEdns, ClientOptions};
pub use frame::{read_frame, write_frame};
pub(crate) use name::label_starts;
pub use name::{MAX_NAME_BYTES, Name, NameError};
pub use query::{Query, Reject, UpstreamEdns, UpstreamQuery};
pub use question::Question;
pub use record::{RecordView, Section};
pub use reply::{Asker, COOKIE_BYTES, Cookie, ReplyOptions, ReplySize, Ttls, padding, write_error, write_reply};
pub use response::{ExtendedError, Malformed, Match, Received, Response, View};
pub use rotation::Shape;
pub use suffix::{SuffixError, Suffixes, read_name};
pub use types::{Class, Opcode, Rcode, Rtype};

/// Longest message: the length prefix of TCP is 16 bits (RFC 1035 §4.2.2).
pub const MAX_MESSAGE_BYTES: usize = 65_535;
/// Length of the message header (RFC 1035 §4.1.1).
pub const HEADER_BYTES: usize = 12;
/// Header flag bits, as the second 16-bit word of the header shows them (RFC 1035 §4.1.1, RFC 4035 §3.2).
pub mod flag {
    /// Response.
    pub const QR: u16 = 0x8000;
    /// Authoritative answer.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion desired.
    pub const RD: u16 = 0x0100;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
    /// Authentic data.
    pub const AD: u16 = 0x0020;
    /// Checking disabled.
    pub const CD: u16 = 0x0010;
}

/// The big-endian 16-bit number at `at`.
pub(crate) fn read_u16(wire: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*wire.get(at..)?.first_chunk()?))
}

/// The big-endian 32-bit number at `at`.
pub(crate) fn read_u32(wire: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*wire.get(at..)?.first_chunk()?))
}

/// Overwrites the 16-bit number at `at`; out of range does nothing.
pub(crate) fn put_u16(wire: &mut [u8], at: usize, value: u16) {
    if let Some(place) = wire.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}
