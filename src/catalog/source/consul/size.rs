//! How much memory a response will take, told from its text as it comes.
//!
//! A few octets of JSON can become some hundred bytes: a service of one letter, an empty check. So a response has a limit for
//! the elements of its list, and one for all values, in proportion to the limit of its bytes. What Consul writes reaches the
//! limit of bytes first, or soon after.

/// Counts the elements and values of a JSON text that comes in pieces.
#[derive(Debug)]
pub(super) struct Size {
    most_bytes: u64,
    /// The depth at which the elements of the list lie.
    list_depth: u32,
    depth: u32,
    is_in_string: bool,
    is_escaped: bool,
    elements: u64,
    values: u64,
}

impl Size {
    /// Nothing yet; the elements of the list lie within so many brackets.
    pub fn new(most_bytes: u64, list_depth: u32) -> Self {
        Self { most_bytes, list_depth, depth: 0, is_in_string: false, is_escaped: false, elements: 0, values: 0 }
    }

    /// Counts the next piece; false if the response would take too much memory.
    pub fn add(&mut self, piece: &[u8]) -> bool {
        for &octet in piece {
            if self.is_in_string {
                match octet {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.is_in_string = false,
                    _ => {}
                }
                continue;
            }
            match octet {
                b'"' => self.is_in_string = true,
                b'[' | b'{' => self.depth += 1,
                b']' | b'}' => self.depth = self.depth.saturating_sub(1),
                b',' => {
                    self.values += 1;
                    self.elements += u64::from(self.depth == self.list_depth);
                }
                _ => {}
            }
        }
        self.elements <= self.most_bytes / ELEMENT_BYTES && self.values <= self.most_bytes / VALUE_BYTES
    }
}

/// An element of a list (an instance with its node, the name of a service) takes up to 3 KiB in the catalog; Consul writes some
/// hundred octets for a node, and 1 KiB to 3 KiB for an instance.
const ELEMENT_BYTES: u64 = 1024;
/// A value takes up to 200 bytes; Consul writes some 25 octets for one.
const VALUE_BYTES: u64 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_and_values_are_counted_in_pieces_of_any_length() {
        let list = r#"[{"a": "x,y\\\",{[", "b": [1, 2]}, {"c": {}}, []]"#;
        let query = format!(r#"{{"Service": "web", "Nodes": {list}, "DNS": {{"TTL": ""}}}}"#);
        for (text, depth, elements, values) in [(list, 1, 2, 4), (&query, 2, 2, 6), (r#"{"a": [], "b": []}"#, 1, 1, 1)]
        {
            for length in 1..=text.len() {
                let mut size = Size::new(1 << 20, depth);
                assert!(text.as_bytes().chunks(length).all(|piece| size.add(piece)));
                assert_eq!((size.elements, size.values, size.depth), (elements, values, 0), "{text}");
            }
        }
    }

    #[test]
    fn a_response_of_tiny_elements_or_values_is_too_large() {
        const MOST: u64 = 1 << 20;
        for (case, text, is_taken) in [
            ("elements", format!("[{}0]", "0,".repeat(1024)), true),
            ("more", format!("[{}0]", "0,".repeat(1025)), false),
            ("values", format!("[[{}0]]", "0,".repeat(43_690)), true),
            ("more of these", format!("[[{}0]]", "0,".repeat(43_691)), false),
        ] {
            assert_eq!(Size::new(MOST, 1).add(text.as_bytes()), is_taken, "{case}");
        }
    }
}
