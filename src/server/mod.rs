//! What faces clients: listeners, access control.

mod acl;
mod config;
mod connections;
mod cookie;
mod departure;
mod encrypted;
mod face;
mod https;
mod kernel;
mod limit;
mod quic;
mod tcp;
mod udp;

pub use acl::Acl;
pub use config::{Config, ListenAddress, Problem, Service};
pub use connections::Connections;
pub use cookie::Secret;
pub use encrypted::{Certificate, CertificateError, Identity, load_certificate, spoken};
pub use face::{Desk, Face, Incoming, Taken};
pub use kernel::KernelDrops;
pub use limit::Config as RateLimitConfig;
pub use quic::serve as serve_quic;
pub use tcp::serve as serve_tcp;
pub use udp::{Handle, WORKER, spawn as spawn_worker};
