//! The rules of the house that a program can check: floors, fences, and documents that agree with the code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each module of `src/` and its floor. A file imports lower floors and its own module, nothing else; so rooms on one
/// floor never meet.
const FLOORS: &[(&str, u8)] = &[
    ("budget", 0),
    ("clock", 0),
    ("endpoint", 0),
    ("escape", 0),
    ("files", 0),
    ("location", 0),
    ("metrics", 0),
    ("sys", 0),
    ("tls", 0),
    ("wire", 0),
    ("cache", 1),
    ("catalog", 1),
    ("forward", 1),
    ("router", 1),
    ("zone", 1),
    ("resolve", 2),
    ("control", 3),
    ("server", 3),
    ("config", 4),
    ("daemon", 5),
    ("cli", 6),
    ("main", 7),
];

/// What may be named only in these files, folders or, where it is said, tests.
const FENCES: &[(&str, &[&str])] = &[
    ("quinn::", &["server/quic.rs"]),
    ("hickory_", &["server/quic.rs", "forward/transport.rs", "wire/answer.rs"]),
    ("libc::", &["sys/"]),
    ("unsafe ", &["sys/"]),
    ("prometheus::", &["metrics/"]),
    ("domain::", &["zone/rdata/"]),
    ("anyhow", &["daemon", "cli", "main.rs"]),
    ("axum", &["control/"]),
];

/// Circles that are left. The list may only become shorter.
const KNOWN_CYCLES: &[&str] = &[
    "catalog: config identity live registry remote snapshot source",
    "catalog/source: definition file index sidecar",
    "catalog/source: external registered",
    "catalog/source/consul: api client config mirror plan",
    "daemon: catalog check data exposure places reading registrations",
    "daemon: inherited listen",
];

/// Text of a source file without its comments and its tests.
struct Source {
    /// Relative to `src/`.
    path: String,
    lines: Vec<(usize, String)>,
}

impl Source {
    fn module(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    fn path_of_module(&self) -> Vec<&str> {
        let path = self.path.trim_end_matches(".rs");
        path.strip_suffix("/mod").unwrap_or(path).split('/').collect()
    }
}

#[test]
fn imports_run_downhill() {
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| source.path != "lib.rs") {
        let own = source.module();
        let Some(floor) = floor_of(own) else {
            faults.push(format!("src/{}: the module {own} has no floor; give it one in FLOORS", source.path));
            continue;
        };
        for (line, text) in &source.lines {
            for path in paths(text) {
                let &[root, module, ..] = &*path else { continue };
                let allowed = match floor_of(module) {
                    _ if !matches!(root, "crate" | "watershed") => true,
                    None => true, // an item of the crate's root; there is none, and the compiler says so
                    Some(_) if module == own => true,
                    Some(other) => other < floor,
                };
                if !allowed {
                    faults.push(format!(
                        "src/{}:{line}: {own} stands no higher than {module}, which it imports",
                        source.path
                    ));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Inside a folder files form a slope, too: of two files one imports the other, or neither does. The folder's `mod.rs` is its
/// face, and stands outside; what it re-exports counts as an import of the file that has it.
#[test]
fn no_files_of_a_folder_import_each_other_in_a_circle() {
    let found = cycles(&sources());
    let known: BTreeSet<_> = KNOWN_CYCLES.iter().map(|cycle| (*cycle).to_owned()).collect();
    let new: Vec<_> = found.difference(&known).collect();
    let gone: Vec<_> = known.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "files that import each other in a circle: {new:#?}; move what they share into the lower file\n\
         cycles that are no more as KNOWN_CYCLES has them: {gone:#?}; strike the files that are out of them"
    );
}

/// The circles of imports between the files of each folder: the folder, and the files of a circle or of several that meet.
fn cycles(sources: &[Source]) -> BTreeSet<String> {
    let modules: BTreeMap<Vec<&str>, &Source> =
        sources.iter().map(|source| (source.path_of_module(), source)).collect();
    let mut imports = BTreeMap::<(&[&str], &str), BTreeSet<&str>>::new();
    for (own, source) in &modules {
        for path in source.lines.iter().flat_map(|(_, text)| paths(text)) {
            let Some(absolute) = absolute(own, &path) else { continue };
            let Some(other) = module_of(absolute, &modules) else { continue };
            let common = own.iter().zip(other).take_while(|(a, b)| a == b).count();
            // Between folders of `src/` the floors rule.
            if let (1.., Some(from), Some(to)) = (common, own.get(common), other.get(common)) {
                imports.entry((&own[..common], from)).or_default().insert(to);
            }
        }
    }
    let reached = |folder, file| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![file]);
        while let Some(file) = open.pop() {
            let next = imports.get(&(folder, file)).into_iter().flatten();
            open.extend(next.filter(|next| reached.insert(**next)));
        }
        reached
    };
    let circle = |&(folder, file): &(_, _)| {
        let circle: Vec<_> =
            reached(folder, file).into_iter().filter(|other| reached(folder, other).contains(file)).collect();
        (circle.len() > 1).then(|| format!("{}: {}", folder.join("/"), circle.join(" ")))
    };
    imports.keys().filter_map(circle).collect()
}

/// A path from the root of the crate; nothing for one that leads out of it.
fn absolute<'a>(own: &[&'a str], path: &[&'a str]) -> Option<Vec<&'a str>> {
    let ups = path.iter().take_while(|part| **part == "super").count();
    match path[0] {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([own, &path[1..]].concat()),
        _ if ups > 0 => Some([own.get(..own.len().checked_sub(ups)?)?, &path[ups..]].concat()),
        _ => None,
    }
}

/// The module that has what a path leads to, which the folder's `mod.rs` may re-export.
fn module_of<'a>(path: Vec<&'a str>, modules: &'a BTreeMap<Vec<&'a str>, &'a Source>) -> Option<&'a [&'a str]> {
    let length = (1..=path.len()).rev().find(|&length| modules.contains_key(&path[..length]))?;
    let (module, source) = modules.get_key_value(&path[..length])?;
    let Some(item) = path.get(length) else { return Some(module) };
    let exported = source
        .lines
        .iter()
        .filter_map(|(_, text)| text.split_once("use ").filter(|(before, _)| before.starts_with("pub")));
    let mut exports = Vec::new();
    exported.for_each(|(_, list)| _ = write_out(list, &[], &mut exports));
    let export =
        exports.iter().find(|export| export.last() == Some(item) && export[0] != "super" && export[0] != "crate");
    match export {
        Some(export) => module_of([module, &**export].concat(), modules),
        None => Some(module),
    }
}

#[test]
fn every_module_has_a_floor_and_the_crate_lists_them_in_that_order() {
    let root = read("src/lib.rs");
    let declared: Vec<&str> = root
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ").or(line.strip_prefix("mod "))?.strip_suffix(';'))
        .collect();
    let floors: Vec<u8> =
        declared.iter().map(|module| floor_of(module).unwrap_or_else(|| panic!("{module} has no floor"))).collect();
    // From floor 4 on there is one room on each, and their order is the alphabet's.
    let grouped: Vec<u8> = floors.iter().map(|floor| (*floor).min(4)).collect();
    assert!(grouped.is_sorted(), "{declared:?} {floors:?}");
    let gone: Vec<_> = FLOORS.iter().filter(|(module, _)| *module != "main" && !declared.contains(module)).collect();
    assert!(gone.is_empty(), "no such modules: {gone:?}");
}

#[test]
fn what_is_fenced_stays_within_its_fence() {
    let mut faults = Vec::new();
    for source in sources() {
        for (line, text) in &source.lines {
            for (word, homes) in FENCES {
                let home = homes.iter().any(|home| source.path.starts_with(home));
                if !home && contains_word(text, word) {
                    faults.push(format!("src/{}:{line}: {word} belongs to {homes:?}: {}", source.path, text.trim()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_is_left_to_do_later() {
    let marks = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("].map(|mark| mark.to_owned());
    let mut faults = Vec::new();
    for path in files("src", "rs").into_iter().chain(files("tests/behavior", "rs")).chain(files("benches", "rs")) {
        for (number, line) in read(&path).lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark.as_str())) {
                faults.push(format!("{}:{}: {line}", path.display(), number + 1));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_is_unwrapped_outside_of_tests() {
    let mut faults = Vec::new();
    for source in sources() {
        for (line, text) in &source.lines {
            if [".unwrap()", ".unwrap_err()", ".expect(\"\")"].iter().any(|word| text.contains(word)) {
                faults.push(format!("src/{}:{line}: {}", source.path, text.trim()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_module_opens_with_what_it_is_about() {
    for path in files("src", "rs").into_iter().filter(|path| !path.ends_with("main.rs") && !is_test(path)) {
        let text = read(&path);
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{}: no module doc", path.display());
    }
}

/// The README shows configuration that the daemon accepts.
#[test]
fn every_toml_snippet_of_the_readme_is_a_configuration() {
    let snippets = snippets("toml");
    assert!(!snippets.is_empty(), "the README shows no configuration");
    let folder = tempfile::tempdir().unwrap();
    for (line, snippet) in snippets {
        let file = folder.path().join("readme.toml");
        fs::write(&file, &snippet).unwrap();
        let source = watershed::config::Source { file: Some(file), ..Default::default() };
        if let Err(faults) = source.load() {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            panic!("README.md, the snippet at line {line}:\n{}", faults.join("\n"));
        }
    }
}

#[test]
fn every_key_of_the_readme_stands_in_the_reference() {
    let reference = read("src/config/reference.toml");
    for (line, snippet) in snippets("toml") {
        for text in snippet.lines() {
            let key = text.split_once('=').map_or("", |(key, _)| key.trim());
            if key.is_empty() || !key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                continue;
            }
            assert!(
                reference.lines().any(|known| known.trim_start_matches(['#', ' ']).starts_with(&format!("{key} "))),
                "README.md, the snippet at line {line}: {key} is not in reference.toml"
            );
        }
    }
}

#[test]
fn the_readme_lists_the_metrics_that_there_are() {
    let declared = metric_names();
    assert!(declared.len() > 10, "{declared:?}");
    let readme = read("README.md");
    let mut listed = BTreeSet::new();
    for part in readme.split("watershed_").skip(1) {
        let rest: String =
            part.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_' || c.is_ascii_digit()).collect();
        // A prefix alone, as in `watershed_cache_*`, names no metric.
        if !rest.is_empty() && !rest.ends_with('_') {
            listed.insert(format!("watershed_{rest}"));
        }
    }
    // What Prometheus makes of a histogram.
    let is_series = |name: &str| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .any(|end| name.strip_suffix(end).is_some_and(|family| declared.contains(family)))
    };
    let unknown: Vec<_> = listed.iter().filter(|name| !declared.contains(*name) && !is_series(name)).collect();
    assert!(unknown.is_empty(), "the README names metrics that do not exist: {unknown:?}");
    let unlisted: Vec<_> = declared.iter().filter(|name| !listed.contains(*name)).collect();
    assert!(unlisted.is_empty(), "the README does not name these metrics: {unlisted:?}");
}

#[test]
fn metric_names_follow_the_pattern() {
    for name in metric_names() {
        let room = name.split('_').nth(1).unwrap();
        let is_room = floor_of(room).is_some() || ["build", "catalog"].contains(&room);
        assert!(is_room, "{name}: {room} is no room");
    }
}

/// Every dependency may be used under a license that deny.toml allows, and comes from crates.io.
#[test]
fn dependencies_have_licenses_and_sources_that_are_allowed() {
    let deny: toml::Table = read("deny.toml").parse().unwrap();
    let allowed: Vec<&str> = deny["licenses"]["allow"].as_array().unwrap().iter().filter_map(|l| l.as_str()).collect();
    let cargo = std::process::Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform"])
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH))
        .current_dir(root())
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{}", packages.len());
    let (mut faults, mut used) = (Vec::new(), BTreeSet::<&str>::new());
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let license = package["license"].as_str().unwrap_or("no license");
        if !is_allowed(license, &allowed) {
            faults.push(format!("{name}: {license}"));
        }
        used.extend(allowed.iter().filter(|known| license.contains(**known)).copied());
        let source = package["source"].as_str();
        let from_registry = source == Some("registry+https://github.com/rust-lang/crates.io-index");
        if !from_registry && (source.is_some() || name != "watershed") {
            faults.push(format!("{name}: comes from {source:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let idle: Vec<_> = allowed.iter().filter(|license| !used.contains(*license)).collect();
    assert!(idle.is_empty(), "deny.toml allows licenses that no dependency has: {idle:?}");
}

/// Whether a license expression (SPDX) can be met by those that are allowed. AND binds closer than OR.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    // What is in parentheses comes first, and becomes one that is allowed or none that is.
    if let Some(close) = expression.find(')')
        && let Some(open) = expression[..close].rfind('(')
    {
        let within = if is_allowed(&expression[open + 1..close], allowed) { allowed[0] } else { "-" };
        return is_allowed(&format!("{}{within}{}", &expression[..open], &expression[close + 1..]), allowed);
    }
    let is_one = |license: &str| allowed.contains(&license.trim());
    // Old manifests write a slash.
    expression.replace('/', " OR ").split(" OR ").any(|all| all.split(" AND ").all(is_one))
}

#[test]
fn license_expressions_are_read_as_spdx_means_them() {
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT/GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR GPL-3.0) AND ISC", true),
        ("(MIT OR ISC) AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception", false), // an exception makes another license of it
        ("no license", false),
    ] {
        assert_eq!(is_allowed(expression, &["MIT", "ISC", "Apache-2.0"]), expected, "{expression}");
    }
}

/// The unsafe code stands in one room: the crate denies it, and no other file takes that back.
#[test]
fn no_room_but_one_allows_unsafe_code() {
    assert!(read("src/lib.rs").contains("#![deny(unsafe_code)]"));
    for path in files("src", "rs") {
        let room = path.strip_prefix(root().join("src")).unwrap();
        let takes_back = read(&path).contains("allow(unsafe_code");
        assert!(!takes_back || room.starts_with("sys"), "{}", room.display());
    }
}

/// What is named in the README as a file or folder of the repository is there.
#[test]
fn the_paths_of_the_readme_exist() {
    let readme = read("README.md");
    for part in readme.split('`').skip(1).step_by(2) {
        let is_path = part.contains('/') && !part.contains([' ', '*', '<', '{', ':', '$', '\n']) && part.is_ascii();
        let of_ours =
            ["src/", "tests/", "zones/", "examples/", "benches/", ".ci/"].iter().any(|top| part.starts_with(top));
        if is_path && of_ours {
            let plain = part.trim_end_matches('/');
            assert!(root().join(plain).exists(), "README.md names `{part}`, which is not there");
        }
    }
}

/// Names as `Metrics::new` declares them, in the form that Prometheus sees.
/// The tests that README's table of what is survived names are there.
#[test]
fn the_tests_that_the_readme_names_exist() {
    let readme = read("README.md");
    let table = readme.split("## What it survives").nth(1).expect("a section").split("\n## ").next().expect("its text");
    let named: Vec<_> = table.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit('`').next()).collect();
    assert!(named.len() > 30, "{named:?}");
    for test in named {
        let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{test} names no file"));
        let text = ["tests/behavior/", "tests/", ""]
            .iter()
            .find_map(|folder| fs::read_to_string(root().join(format!("{folder}{file}.rs"))).ok());
        let is_there = text.is_some_and(|text| text.contains(&format!("fn {name}()")));
        assert!(is_there, "README.md names the test {test}, which is not there");
    }
}

fn metric_names() -> BTreeSet<String> {
    let text = read("src/metrics/mod.rs");
    let declarations = ["counters(", "gauges(", "histograms("];
    let names = text.lines().filter_map(|line| {
        let (_, rest) = declarations.iter().find_map(|call| line.split_once(&format!("declare.{call}")))?;
        Some(format!("watershed_{}", rest.strip_prefix('"')?.split_once('"')?.0))
    });
    names.collect()
}

/// The fenced blocks of the README in this language, with their lines.
fn snippets(language: &str) -> Vec<(usize, String)> {
    let readme = read("README.md");
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (number, line) in readme.lines().enumerate() {
        match &mut open {
            None if line.trim() == format!("```{language}") => open = Some((number + 2, String::new())),
            Some(_) if line.trim() == "```" => found.extend(open.take()),
            Some((_, text)) => text.push_str(&format!("{line}\n")),
            None => {}
        }
    }
    found
}

fn floor_of(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
}

/// The paths of ours that a line names, braces written out: `super::{a::B, c}` is `super::a::B` and `super::c`.
fn paths(line: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    for root in ["crate::", "super::", "self::", "watershed::"] {
        for (at, _) in line.match_indices(root).filter(|(at, _)| !line[..*at].ends_with(is_part_of_path)) {
            write_out(&line[at..], &[], &mut found);
        }
    }
    found
}

/// Reads one path or group of paths and returns the rest of the text.
fn write_out<'a>(mut rest: &'a str, prefix: &[&'a str], found: &mut Vec<Vec<&'a str>>) -> &'a str {
    let mut path = prefix.to_vec();
    loop {
        if let Some(mut group) = rest.strip_prefix('{') {
            loop {
                group = group.trim_start_matches([' ', ',']);
                if group.is_empty() || group.starts_with('}') {
                    return group.get(1..).unwrap_or_default();
                }
                group = write_out(group, &path, found);
            }
        }
        let end = rest.find(|c| !is_part_of_path(c) || c == ':').unwrap_or(rest.len());
        path.push(&rest[..end]);
        match rest[end..].strip_prefix("::") {
            Some(more) => rest = more,
            None => break,
        }
    }
    found.push(path);
    // An alias belongs to the path.
    &rest[rest.find([',', '}']).unwrap_or(rest.len())..]
}

fn is_part_of_path(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == ':'
}

/// Whether the word stands in the line with nothing of a name before it.
fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| !line[..at].ends_with(is_part_of_path))
}

/// All of `src/`, each file's statements on lines of their own.
fn sources() -> Vec<Source> {
    let parse = |path: PathBuf| {
        let text = read(&path);
        let mut lines: Vec<(usize, String)> = Vec::new();
        let mut in_import = false;
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("#[cfg(test)]") {
                break; // tests stand last
            }
            let code = line.split("//").next().unwrap_or_default();
            // An import over several lines counts as one.
            match lines.last_mut().filter(|_| in_import) {
                Some((_, import)) => import.push_str(code.trim()),
                None => lines.push((number + 1, code.to_owned())),
            }
            let starts = ["use ", "pub use ", "pub(super) use ", "pub(crate) use "];
            let starts = starts.iter().any(|start| code.trim_start().starts_with(start));
            in_import = (in_import || starts) && !code.contains(';');
        }
        let path = path.strip_prefix(root().join("src")).unwrap().display().to_string();
        Source { path, lines }
    };
    files("src", "rs").into_iter().filter(|path| !is_test(path)).map(parse).collect()
}

/// Tests that are a file of their own beside what they test, and what they share.
fn is_test(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with("tests.rs") || name == "testing.rs"
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn imports_are_read_as_rust_reads_them() {
    for (line, expected) in [
        ("use crate::wire::Name;", &["crate::wire::Name"][..]),
        (
            "use crate::{cache::{self, Key as K},wire::{Name, View}, metrics};",
            &["crate::cache::self", "crate::cache::Key", "crate::wire::Name", "crate::wire::View", "crate::metrics"],
        ),
        ("let x = crate::zone::Zone::load(watershed::cli::run);", &["crate::zone::Zone::load", "watershed::cli::run"]),
        ("pub(super) use super::wire::*;", &["super::wire::"]),
        ("fn f(x: &super::super::A) -> mysuper::B {", &["super::super::A"]),
    ] {
        let found: Vec<_> = paths(line).iter().map(|path| path.join("::")).collect();
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn circles_are_found_whatever_way_they_are_closed() {
    let source = |path: &str, text: &str| Source { path: path.to_owned(), lines: vec![(1, text.to_owned())] };
    for (b, expected) in [
        ("use super::c::C;", None),
        ("use super::A;", Some("x: a b")),
        ("use crate::x::a;", Some("x: a b")),
        ("fn f(c: super::d::inner::D) {", Some("x: a b d")),
        ("use super::own;", None),
    ] {
        let sources = [
            source("x/mod.rs", "pub use a::{A, Other};"),
            source("x/a.rs", "use super::{b::B, own};"),
            source("x/b.rs", b),
            source("x/c.rs", ""),
            source("x/d/mod.rs", "pub mod inner;"),
            source("x/d/inner.rs", "use super::super::Other;"),
        ];
        let found: Vec<_> = cycles(&sources).into_iter().collect();
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{b}");
    }
}
