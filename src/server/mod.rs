//! What faces clients: listeners, access control.

mod acl;
mod config;

pub use acl::Acl;
pub use config::{Config, ListenAddress, Problem};
