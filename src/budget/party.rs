//! The remote parties that data waits for.

use std::net::IpAddr;

/// A remote party that data waits for; all accounts of a party count together.
///
/// A server that this daemon asks is a party of its own, even at the address of a client: what a server sends costs no client
/// its replies, unless the limit in all is exceeded and the server is not the one that holds most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// A client: an IPv4 address, or the first 64 bits of an IPv6 address.
    Client(IpAddr),
    /// A host that is checked, by its address as for clients. It has the limits of a client.
    Checked(IpAddr),
    /// The Consul agent. Each of its responses has a limit of its own (`catalog.consul.max_response_bytes`); all of them
    /// together have the limit in all.
    Agent,
}

impl Party {
    /// The names of the kinds of parties.
    pub const KINDS: [&'static str; 3] = ["client", "checked_host", "agent"];

    /// The index of its kind in [`KINDS`](Self::KINDS).
    pub(super) fn kind(self) -> usize {
        match self {
            Self::Client(_) => 0,
            Self::Checked(_) => 1,
            Self::Agent => 2,
        }
    }
}
