//! What must hold whatever octets come in, one function for each way in.
//!
//! `cargo fuzz` feeds them what it makes up; `tests/fuzz_corpus.rs` feeds them the corpus, in which each fault that was found
//! has left the octets that showed it. A function panics if something does not hold.

mod cache;
mod catalog;
mod config;
mod local;
mod messages;
mod octets;
mod resolver;
mod rotation;

/// A way in: its name, which is that of its folder in the corpus, and what is to hold there.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("query", messages::query),
    ("response", messages::response),
    ("reply", messages::reply),
    ("frames", messages::frames),
    ("rotation", rotation::rotation),
    ("cache", cache::cache),
    ("snapshot", cache::snapshot),
    ("resolver", resolver::resolver),
    ("zone", local::zone),
    ("hosts", local::hosts),
    ("definitions", catalog::definitions),
    ("registrations", catalog::registrations),
    ("consul", catalog::consul),
    ("config", config::config),
];

/// Feeds a target, which is there, with octets.
pub fn run(target: &str, octets: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target of this name");
    run(octets);
}
