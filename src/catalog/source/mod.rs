//! Where a catalog comes from. A source reads or follows what others know, and gives it as a `catalog::Set`: all it knows.

pub mod consul;
mod definition;
pub mod external;
pub mod file;
mod hcl;
mod index;
mod json;
pub mod registered;
mod sidecar;
pub mod value;
