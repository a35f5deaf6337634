//! What a test needs of the machine: a test that lacks it is skipped and says so, or fails where nothing may be skipped.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// The path of a program; `None` tells the test to end.
pub fn program(name: &str) -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_BIN_EXE_watershed")).ancestors().nth(2).unwrap().join("consul/usr/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into(), unpacked]);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        missing(&format!("the program `{name}`"), "run `bash tests/run`, which installs what is missing");
    }
    found
}

/// A file of a library; `None` tells the test to end.
pub fn file(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(path);
    let is_there = path.is_file();
    if !is_there {
        missing(&format!("the file {}", path.display()), "run `bash tests/run`, which installs what is missing");
    }
    is_there.then_some(path)
}

/// Whether the test may make network namespaces, bind low ports and change its user.
pub fn root() -> bool {
    let uid = Command::new("id").arg("-u").output().expect("id");
    let is_root = uid.stdout.trim_ascii() == b"0";
    if !is_root {
        missing("root", "run the tests as root");
    }
    is_root
}

/// Says what is missing; where every test has to run, that is a failure.
fn missing(what: &str, remedy: &str) {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|set| set == value);
    let strict = is("CI", "true") || is("WATERSHED_REQUIRE_ALL", "1");
    assert!(!strict, "this test needs {what}: {remedy}");
    eprintln!("skipped: this test needs {what}: {remedy}");
}
