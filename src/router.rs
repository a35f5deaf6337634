//! The longest suffix wins.
//!
//! A rule stands at a name and holds for it and all that lies below, until a longer name has a rule of its own. The
//! router knows nothing of what its rules mean.

use std::{collections::HashMap, fmt};

use foldhash::fast::RandomState;

use crate::wire::{MAX_NAME_BYTES, Name};

/// Rules by the suffix at which they stand, found without regard to case.
///
/// A look-up probes one hash table once per label of the name, however many rules there are.
#[derive(Clone)]
pub struct Router<T> {
    /// By lower-cased wire form.
    rules: HashMap<Box<[u8]>, T, RandomState>,
    /// The length of the longest suffix: what is longer need not be looked up.
    longest_bytes: usize,
}

impl<T> Router<T> {
    /// A router without rules.
    pub fn new() -> Self {
        Self { rules: HashMap::default(), longest_bytes: 0 }
    }

    /// Sets the rule at `suffix`, and gives back the one it replaces. The root is a suffix of every name.
    pub fn insert(&mut self, suffix: Name, rule: T) -> Option<T> {
        let wire = suffix.wire().to_ascii_lowercase();
        self.longest_bytes = self.longest_bytes.max(wire.len());
        self.rules.insert(wire.into(), rule)
    }

    /// The rule at the longest suffix of `qname`, which may be `qname` itself.
    pub fn route(&self, qname: &Name) -> Option<&T> {
        self.route_with_suffix(qname).map(|(_, rule)| rule)
    }

    /// The same with the suffix's wire form, in the letters of `qname`.
    pub fn route_with_suffix<'q>(&self, qname: &'q Name) -> Option<(&'q [u8], &T)> {
        with_lower(qname, |lower| {
            let candidates = qname.suffixes().filter(|suffix| suffix.len() <= self.longest_bytes);
            candidates.into_iter().find_map(|suffix| {
                let rule = self.rules.get(lower.get(lower.len() - suffix.len()..)?)?;
                Some((suffix, rule))
            })
        })
    }

    /// The rule that stands at this very name.
    pub fn exact(&self, name: &Name) -> Option<&T> {
        with_lower(name, |lower| self.rules.get(lower))
    }

    /// All suffixes, in lower case, with their rules; in no order.
    pub fn iter(&self) -> impl Iterator<Item = (Name, &T)> {
        self.rules.iter().map(|(wire, rule)| (Name::from_wire(wire).expect("only names are inserted"), rule))
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
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
    let lower = &mut buffer[..name.wire().len()];
    lower.copy_from_slice(name.wire());
    lower.make_ascii_lowercase();
    look_up(lower)
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
        for (qname, expected, suffix) in [
            ("www.example.org.", "public", "."),
            (".", "public", "."),
            ("example.", "public", "."),
            ("corp.example.", "corp", "corp.example."), // a suffix covers itself
            ("notcorp.example.", "public", "."),        // labels are compared, not letters
            ("corp.example.org.", "public", "."),       // and from the right
            ("x.LAB.corp.example.", "lab", "LAB.corp.example."), // without regard to case
            ("x.lab.corp.example.", "lab", "lab.corp.example."), // between a rule below and one above
            ("a.b.c.deep.x.lab.corp.example.", "deep", "deep.x.lab.corp.example."),
        ] {
            let qname = name(qname);
            assert_eq!(router.route(&qname), Some(&expected), "{qname}");
            let (wire, _) = router.route_with_suffix(&qname).unwrap();
            assert_eq!(Name::from_wire(wire).unwrap().to_string(), suffix, "{qname}");
        }
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
        assert_eq!(router.insert(name("Corp.Example"), "other"), Some("corp"));
        assert_eq!(router.route(&name("www.corp.example")), Some(&"other"));
        let mut rules: Vec<(String, &str)> = router.iter().map(|(name, rule)| (name.to_string(), *rule)).collect();
        rules.sort();
        assert_eq!(rules, [(".".into(), "public"), ("corp.example.".into(), "other")]);
        assert_eq!((router.len(), router.is_empty()), (2, false));
    }
}
