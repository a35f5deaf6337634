//! The service manager's store of descriptors, which keeps our sockets open while no process runs.
//!
//! What comes in meanwhile is queued, and answered by the next process, to which the manager passes the sockets
//! (`FileDescriptorStoreMax=` in the unit, FDSTORE in sd_notify(3)). Without a manager, or without room in its store, nothing
//! is kept.

use std::{net::SocketAddr, os::fd::BorrowedFd};

use sd_notify::NotifyState;

/// Has a socket of this address kept. One that is kept already is kept once.
pub(super) fn keep(address: SocketAddr, socket: BorrowedFd<'_>) {
    let name = name(address);
    // FDPOLL=0: the manager keeps a socket that has failed or that was shut down. We remove it ourselves.
    let message = [NotifyState::FdStore, NotifyState::FdName(&name), NotifyState::Custom("FDPOLL=0")];
    if let Err(error) = sd_notify::notify_with_fds(&message, &[socket]) {
        tracing::warn!(%address, %error, "the service manager does not keep a socket; a restart may lose queries");
    }
}

/// Has the sockets of an address kept no longer.
pub(super) fn forget(address: SocketAddr) {
    super::notify_manager(&[NotifyState::FdStoreRemove, NotifyState::FdName(&name(address))]);
}

/// The name under which sockets of an address are kept; such a name has no colon.
pub(super) fn name(address: SocketAddr) -> String {
    format!("{PREFIX}{}", address.to_string().replace(':', ";"))
}

/// Whether a name is one that we have given.
pub(super) fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// What a successor is told of sockets that are a unit's.
pub(super) const UNIT: &str = "unit";
/// No socket unit's sockets are called so, unless somebody wants them to be ours.
const PREFIX: &str = "watershed/";
