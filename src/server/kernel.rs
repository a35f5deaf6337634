//! What the kernel drops before a worker sees it, read when somebody scrapes: it costs the workers nothing.

use std::{
    net::UdpSocket,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use crate::{metrics::ListenerCells, sys::kernel_drops};

/// The UDP sockets of all listeners, and what each has lost so far.
#[derive(Debug, Default)]
pub struct KernelDrops(Mutex<Vec<Watched>>);

#[derive(Debug)]
struct Watched {
    /// Whoever serves it keeps it open.
    socket: Weak<UdpSocket>,
    counted: u32,
    cells: Arc<ListenerCells>,
}

impl KernelDrops {
    /// Watches the sockets of a listener until they are closed. One that several workers share is watched once.
    pub fn watch(&self, sockets: &[Arc<UdpSocket>], cells: &Arc<ListenerCells>) {
        let mut watched = self.0.lock();
        watched.retain(|known| known.socket.strong_count() > 0);
        for socket in sockets {
            let socket = Arc::downgrade(socket);
            if !watched.iter().any(|known| known.socket.ptr_eq(&socket)) {
                watched.push(Watched { socket, counted: 0, cells: cells.clone() });
            }
        }
    }

    /// Counts what was lost since the last time.
    pub fn count(&self) {
        for watched in self.0.lock().iter_mut() {
            // Where the kernel does not tell, nothing is known to be lost.
            if let Some(drops) = watched.socket.upgrade().and_then(|socket| kernel_drops(&socket).ok()) {
                watched.cells.kernel_dropped(drops.wrapping_sub(watched.counted).into());
                watched.counted = drops;
            }
        }
    }
}
