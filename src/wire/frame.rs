//! Messages on a stream: each stands behind its length (RFC 1035 §4.2.2).

use super::read_u16;

/// The message whose length stands at `at`, and where it ends; `None` while it is not all there.
pub fn read_frame(stream: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let end = at + LENGTH_BYTES + usize::from(read_u16(stream, at)?);
    Some((stream.get(at + LENGTH_BYTES..end)?, end))
}

/// Appends a message, which is no longer than its length can tell, as a frame.
pub fn write_frame(message: &[u8], out: &mut Vec<u8>) {
    debug_assert!(message.len() <= super::MAX_MESSAGE_BYTES);
    out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    out.extend_from_slice(message);
}

const LENGTH_BYTES: usize = 2;
