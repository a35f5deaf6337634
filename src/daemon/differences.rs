//! In what one configuration differs from another, by the names of its keys. No value is told: some are secrets.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use crate::config::Config;

/// The keys, rules and sections that differ, in the order of their names.
pub(super) fn between(old: &Config, new: &Config) -> Vec<String> {
    let table = |config: &Config| match Value::try_from(config) {
        Ok(Value::Table(table)) => table,
        // Every value of the configuration has a form in TOML; without it, nothing is told.
        _ => Table::new(),
    };
    let mut found = BTreeSet::new();
    compare_tables("", &table(old), &table(new), &mut found);
    found.into_iter().collect()
}

fn compare_tables(path: &str, old: &Table, new: &Table, found: &mut BTreeSet<String>) {
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match (old.get(key), new.get(key)) {
            (old, new) if old == new => {}
            (Some(Value::Table(old)), Some(Value::Table(new))) => compare_tables(&inner, old, new, found),
            (old, new) if is_list_of_tables(old) || is_list_of_tables(new) => {
                compare_lists(&inner, &by_name(old), &by_name(new), found);
            }
            (None, Some(Value::Table(_))) => drop(found.insert(format!("{inner} (added)"))),
            (Some(Value::Table(_)), None) => drop(found.insert(format!("{inner} (removed)"))),
            _ => drop(found.insert(inner)),
        }
    }
}

fn compare_lists(
    path: &str,
    old: &BTreeMap<String, Vec<&Value>>,
    new: &BTreeMap<String, Vec<&Value>>,
    found: &mut BTreeSet<String>,
) {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        let what = match (old.get(name), new.get(name)) {
            (old, new) if old == new => continue,
            (None, _) => "added",
            (_, None) => "removed",
            _ => "changed",
        };
        found.insert(format!("{path} {name} ({what})"));
    }
}

fn is_list_of_tables(value: Option<&Value>) -> bool {
    value.and_then(Value::as_array).is_some_and(|items| !items.is_empty() && items.iter().all(Value::is_table))
}

/// The items of a list by what they are known by: rules by their suffixes, zones by their apex.
fn by_name(list: Option<&Value>) -> BTreeMap<String, Vec<&Value>> {
    let mut named = BTreeMap::<String, Vec<&Value>>::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        let texts = |value: &Value| match value {
            Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
            other => other.as_str().unwrap_or_default().to_owned(),
        };
        let name = ["suffixes", "apex"].iter().find_map(|key| item.get(key)).map(texts).unwrap_or_default();
        named.entry(name).or_default().push(item);
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn what_differs_is_named_and_no_value_is() {
        let base = "[server]\nlisten = [\"127.0.0.1:53\"]\n[cache]\nsize = \"64MiB\"\n\
             [[forward]]\nsuffixes = [\".\"]\nupstreams = [\"192.0.2.1\"]\n\
             [[forward]]\nsuffixes = [\"corp.example\", \"lab.example\"]\nupstreams = [\"192.0.2.2\"]\n\
             [catalog.api]\nenable_registration = true\ntoken = \"old secret\"\n";
        let changed = |from: &str, to: &str| {
            assert!(base.contains(from), "{from}");
            between(&config(base), &config(&base.replace(from, to)))
        };
        assert_eq!(changed("64MiB", "64MiB"), [""; 0]);
        assert_eq!(changed("64MiB", "65MiB"), ["cache.size"]);
        assert_eq!(changed("127.0.0.1:53\"", "127.0.0.1:54\""), ["server.listen"]);
        assert_eq!(changed("192.0.2.2", "192.0.2.3"), ["forward corp.example lab.example (changed)"]);
        assert_eq!(
            changed("\"lab.example\"", "\"x.example\""),
            ["forward corp.example lab.example (removed)", "forward corp.example x.example (added)"]
        );
        assert_eq!(changed("old secret", "new secret"), ["catalog.api.token"]);
        assert_eq!(
            changed("[catalog.api]", "[catalog.service.db]\npolicy = \"one\"\n[catalog.api]"),
            ["catalog.service.db (added)"]
        );
        assert_eq!(
            changed("[cache]", "[[refuse]]\nsuffixes = [\"ads.example\"]\n[cache]"),
            ["refuse ads.example (added)"]
        );
    }
}
