//! Which names of private use a configuration keeps from the upstreams of a rule, for `check` to show.

use std::collections::HashSet;

use super::{Loaded, check::catalog_domains};
use crate::{
    router::Router,
    wire::{Name, Suffixes},
    zone::{Mode, builtin},
};

/// The special names that are answered here because of a rule's `block_special`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The first suffix of the rule.
    pub rule: Name,
    /// Whether the rule says so itself; if not, it is because all its upstreams have public addresses.
    pub is_configured: bool,
    /// The names, and the networks whose reverse names these are.
    pub names: Vec<String>,
}

impl Loaded {
    /// The special names that are answered here instead of by a forward rule; rules that keep none are left out. `zones` are
    /// the apexes of all whole zones.
    pub fn kept_special_names(&self, zones: impl IntoIterator<Item = Name>) -> Vec<Kept> {
        // The place of a rule, nothing for whoever else answers. What is inserted later outranks what was there.
        let mut router = Router::new();
        for name in &self.refused {
            router.insert(name.clone(), None);
        }
        for (index, rule) in self.rules.iter().enumerate() {
            for suffix in &rule.suffixes {
                router.insert(suffix.get_ref().clone(), Some(index));
            }
        }
        let listed = self.zones.iter().filter(|zone| zone.mode == Mode::Zone).map(|zone| zone.apex.clone());
        let domains = catalog_domains(&self.config.catalog).map(|(_, domain)| domain);
        for apex in zones.into_iter().chain(listed).chain(domains) {
            router.insert(apex, None);
        }
        let mut kept = Vec::new();
        for (index, rule) in self.rules.iter().enumerate().filter(|(_, rule)| rule.blocks_special()) {
            let apexes = builtin::private().iter().map(|zone| zone.apex());
            let apexes = apexes.filter(|apex| router.exact(apex).is_none() && router.route(apex) == Some(&Some(index)));
            let names = in_networks(apexes.collect());
            if let (false, Some(first)) = (names.is_empty(), rule.suffixes.first()) {
                let is_configured = rule.block_special.is_some();
                kept.push(Kept { rule: first.get_ref().clone(), is_configured, names });
            }
        }
        kept
    }
}

/// Names as they are, reverse names by their networks.
fn in_networks(apexes: Vec<&Name>) -> Vec<String> {
    let mut left: HashSet<&Name> = apexes.iter().copied().collect();
    let mut networks = Vec::new();
    for network in NETWORKS {
        let zones = Suffixes::read(network).map(|suffixes| suffixes.names).unwrap_or_default();
        let count = zones.iter().filter(|zone| left.contains(zone)).count();
        left.retain(|apex| !zones.contains(apex));
        match count {
            0 => {}
            count if count == zones.len() => networks.push(network.to_owned()),
            count => networks.push(format!("{network} ({count} of {} zones)", zones.len())),
        }
    }
    let names = apexes.into_iter().filter(|apex| left.contains(apex)).map(ToString::to_string);
    names.chain(networks).collect()
}

/// The networks of [`builtin::private`].
const NETWORKS: [&str; 9] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "fd00::/8",
    "2001:db8::/32",
];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Source, System};

    fn kept(text: &str, zones: &[&str]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("watershed.toml");
        fs::write(&file, text).unwrap();
        let system = System { resolv_confs: Vec::new(), is_local: |_| false };
        let loaded = Source { file: Some(file), system, ..Source::default() }.load().unwrap();
        let kept = loaded.kept_special_names(zones.iter().map(|zone| zone.parse().unwrap()));
        kept.iter().map(|kept| format!("{} {} {}", kept.rule, kept.is_configured, kept.names.join(" "))).collect()
    }

    #[test]
    fn special_names_are_kept_by_the_rule_that_would_be_asked() {
        let all = "local. home.arpa. test. internal. 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 192.0.2.0/24 \
                   198.51.100.0/24 203.0.113.0/24 fd00::/8 2001:db8::/32";
        let public = "[[forward]]\nsuffixes = ['.']\nupstreams = ['203.0.113.53']\n";
        assert_eq!(kept(public, &[]), [format!(". false {all}")]);
        assert_eq!(kept(&format!("{public}block_special = true"), &[]), [format!(". true {all}")]);
        assert_eq!(kept(&format!("{public}block_special = false"), &[]), [""; 0]);
        // Azure's resolver answers for private zones.
        assert_eq!(kept(&public.replace("203.0.113.53", "168.63.129.16"), &[]), [""; 0]);
        let site = "[[forward]]\nsuffixes = ['internal', '172.16.0.0/16', '10.0.0.0/8']\nupstreams = ['10.1.1.1']\n";
        let less = all.replace(" internal.", "").replace(" 10.0.0.0/8", "").replace("/12 ", "/12 (15 of 16 zones) ");
        let less = less.replace("local. ", "");
        assert_eq!(kept(&format!("{public}{site}"), &["local"]), [format!(". false {less}")]);
    }

    #[test]
    fn every_reverse_zone_belongs_to_a_network() {
        let apexes = builtin::private().iter().map(|zone| zone.apex());
        let names = in_networks(apexes.collect());
        assert!(names.iter().all(|name| name.contains('/') || !name.ends_with("addr.arpa.") && !name.contains("ip6")));
    }
}
