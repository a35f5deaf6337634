//! A checksum for files that only this program writes.

/// FNV-1a in words of eight bytes: the same in every build. It detects accidents, not forgery.
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_be_bytes(*word));
    let mix = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(29);
    let sum = words.chain(rest.iter().map(|byte| u64::from(*byte))).fold(0xcbf2_9ce4_8422_2325, mix);
    mix(sum, bytes.len() as u64)
}
