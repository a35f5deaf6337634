//! What has been found by making up octets stays mended: every file of the fuzzing corpus goes through its target.

#[path = "fuzz/src/lib.rs"]
mod fuzz;

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_file_of_the_corpus_holds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let (mut files, mut broken) = (0, Vec::new());
    for (target, _) in fuzz::TARGETS {
        for entry in fs::read_dir(corpus.join(target)).unwrap_or_else(|error| panic!("{target}: {error}")) {
            let path = entry.unwrap().path();
            let octets = fs::read(&path).unwrap();
            let outcome = std::panic::catch_unwind(|| fuzz::run(target, &octets));
            if outcome.is_err() {
                broken.push(path);
            }
            files += 1;
        }
    }
    assert!(broken.is_empty(), "these do not hold, see the panics above: {broken:#?}");
    assert!(files > fuzz::TARGETS.len(), "{files} files");
}

/// A target without corpus, binary or mention in the manifest would be forgotten.
#[test]
fn every_target_has_its_binary_and_its_corpus() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let names = |folder: &str, cut: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(fuzz.join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.map(|name| name.trim_end_matches(cut).to_owned()).collect()
    };
    let targets: BTreeSet<String> = fuzz::TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut binaries = names("fuzz_targets", ".rs");
    assert!(binaries.remove("any"), "the one that `tests/run` builds in place of all");
    assert_eq!(binaries, targets);
    assert_eq!(names("corpus", ""), targets);
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for target in &targets {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in tests/fuzz/Cargo.toml");
        let binary = fs::read_to_string(fuzz.join("fuzz_targets").join(format!("{target}.rs"))).unwrap();
        assert!(binary.contains(&format!("run(\"{target}\"")), "{target}: the binary runs another target");
    }
}
