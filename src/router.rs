//! The longest suffix wins.
//!
//! A rule stands at a name and holds for it and all that lies below, until a longer name has a rule of its own. The
//! router knows nothing of what its rules mean.

use std::{collections::HashMap, fmt};

use foldhash::fast::RandomState;

use crate::wire::{MAX_NAME_BYTES, Name, label_starts};

/// Rules by the suffix at which they stand, found without regard to case.
///
/// A look-up goes from the root down, label by label, as far as there are rules below: however many there are, most names
/// leave the way after one label or two.
#[derive(Clone)]
pub struct Router<T> {
    /// Every suffix with a rule and every name above it, by lower-cased wire form.
    nodes: HashMap<Box<[u8]>, Option<T>, RandomState>,
    rules: usize,
}

impl<T> Router<T> {
    /// A router without rules.
    pub fn new() -> Self {
        Self { nodes: HashMap::default(), rules: 0 }
    }

    /// Sets the rule at `suffix`, and gives back the one it replaces. The root is a suffix of every name.
    pub fn insert(&mut self, suffix: Name, rule: T) -> Option<T> {
        let suffix = suffix.to_lower();
        for above in suffix.suffixes().skip(1) {
            self.nodes.entry(above.into()).or_insert(None);
        }
        let replaced = self.nodes.entry(suffix.wire().into()).or_insert(None).replace(rule);
        self.rules += usize::from(replaced.is_none());
        replaced
    }

    /// The rule at the longest suffix of `qname`, which may be `qname` itself.
    pub fn route(&self, qname: &Name) -> Option<&T> {
        with_lower(qname, |lower| {
            let mut longest = None;
            for &start in label_starts(lower).iter().rev() {
                let Some(rule) = self.nodes.get(&lower[usize::from(start)..]) else { break };
                longest = rule.as_ref().or(longest);
            }
            longest
        })
    }

    /// The rule that stands at this very name.
    pub fn exact(&self, name: &Name) -> Option<&T> {
        with_lower(name, |lower| self.nodes.get(lower)?.as_ref())
    }

    /// All suffixes, in lower case, with their rules; in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Name, &T)> {
        let rules = self.nodes.iter().filter_map(|(wire, rule)| Some((wire, rule.as_ref()?)));
        rules.map(|(wire, rule)| (Name::from_wire(wire).expect("only names are inserted"), rule))
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules == 0
    }
}

impl<T> Default for Router<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for Router<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Lends the name's wire form in lower case, without an allocation.
fn with_lower<R>(name: &Name, look_up: impl FnOnce(&[u8]) -> R) -> R {
    let mut buffer = [0; MAX_NAME_BYTES];
    let length = name.wire().len();
    buffer[..length].copy_from_slice(name.wire());
    // By whole blocks, which is done at once: behind the name there are no letters.
    buffer[..length.next_multiple_of(32).min(MAX_NAME_BYTES)].make_ascii_lowercase();
    look_up(&buffer[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn router(rules: &[(&str, &'static str)]) -> Router<&'static str> {
        let mut router = Router::new();
        for (suffix, rule) in rules {
            assert_eq!(router.insert(name(suffix), *rule), None, "{suffix}");
        }
        router
    }

    #[test]
    fn the_longest_suffix_wins() {
        let router = router(&[
            (".", "public"),
            ("corp.example", "corp"),
            ("Lab.Corp.Example", "lab"),
            ("deep.x.lab.corp.example", "deep"),
        ]);
        for (qname, expected) in [
            ("www.example.org.", "public"),
            (".", "public"),
            ("example.", "public"),
            ("www.example.", "public"),
            ("corp.example.", "corp"),       // a suffix covers itself
            ("notcorp.example.", "public"),  // labels are compared, not letters
            ("corp.example.org.", "public"), // and from the right
            ("x.LAB.corp.example.", "lab"),  // without regard to case
            ("x.lab.corp.example.", "lab"),  // between a rule below and one above
            ("a.b.c.deep.x.lab.corp.example.", "deep"),
        ] {
            assert_eq!(router.route(&name(qname)), Some(&expected), "{qname}");
        }
        let longest = format!("{}corp.example.", "a.".repeat(120));
        assert_eq!(router.route(&name(&longest)), Some(&"corp"));
    }

    #[test]
    fn without_a_rule_at_the_root_other_names_have_none() {
        let router = router(&[("consul", "consul")]);
        assert_eq!(router.route(&name("consul")), Some(&"consul"));
        assert_eq!(router.route(&name("example")), None);
        assert_eq!(router.route(&Name::root()), None);
        assert_eq!(Router::<u8>::new().route(&name("example")), None);
    }

    #[test]
    fn a_label_that_looks_like_a_suffix_is_none() {
        // The label's octets are those of "\x03www\x00", and "www." has a rule.
        let router = router(&[("www", "www")]);
        assert_eq!(router.route(&name("\\003www\\000")), None);
    }

    #[test]
    fn a_rule_is_found_where_it_stands_and_replaced_there() {
        let mut router = router(&[(".", "public"), ("corp.example", "corp")]);
        assert_eq!(router.exact(&name("CORP.example")), Some(&"corp"));
        assert_eq!(router.exact(&name("www.corp.example")), None);
        assert_eq!(router.exact(&name("example")), None, "above a rule there is none");
        assert_eq!(router.insert(name("Corp.Example"), "other"), Some("corp"));
        assert_eq!(router.route(&name("www.corp.example")), Some(&"other"));
        let mut rules: Vec<(String, &str)> = router.iter().map(|(name, rule)| (name.to_string(), *rule)).collect();
        rules.sort();
        assert_eq!(rules, [(".".into(), "public"), ("corp.example.".into(), "other")]);
        assert_eq!((router.len(), router.is_empty()), (2, false));
    }
}
