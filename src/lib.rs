//! watershed: a fast split-horizon forwarding DNS resolver.
//!
//! The modules stand in the order of their floors, from the lowest to the highest. A module imports lower floors
//! and its own folder, nothing else; `tests/architecture.rs` holds them to it.

#![deny(unsafe_code)]
#![deny(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

// Floor 0: knows nothing of the others.
pub mod budget;
pub mod clock;
pub mod endpoint;
pub mod escape;
pub mod files;
pub mod location;
pub mod metrics;
pub mod sys;
pub mod tls;
pub mod wire;

// Floor 1: the parts of the heart, which do not know each other.
pub mod cache;
pub mod catalog;
pub mod forward;
pub mod router;
pub mod zone;

// Floor 2: the heart.
pub mod resolve;

// Floor 3: the faces.
pub mod control;
pub mod server;

// Floor 4 and above: one daemon from all of it.
pub mod cli;
pub mod config;
pub mod daemon;
