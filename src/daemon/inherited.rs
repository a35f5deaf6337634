//! Sockets that were open before this process began, so that what is queued in them is answered by it.
//!
//! A socket unit's (`LISTEN_FDS`) are served whatever is configured. Ours, which come out of the service manager's
//! store or from the process that this one follows, are taken up where they are configured still.

use std::{
    env, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::OwnedFd,
    sync::Arc,
};

use listenfd::ListenFd;
use socket2::{SockRef, Type};

use super::{listen::Listener, store};
use crate::{server::Service, sys};

/// What nobody has taken up yet.
#[derive(Default)]
pub(super) struct Inherited {
    tcp: Vec<Kept<TcpListener>>,
    udp: Vec<Kept<UdpSocket>>,
}

struct Kept<Socket> {
    owner: Owner,
    address: SocketAddr,
    socket: Socket,
}

/// Who decides whether a socket is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The socket unit.
    Unit,
    /// The configuration.
    Us,
}

/// Why sockets cannot be taken over; says what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "the service manager handed over no UDP socket for {address}; add ListenDatagram={address} to its socket unit"
    )]
    NoUdp { address: SocketAddr },
    #[error("the service manager's sockets cannot be taken over: {0}; check its socket unit")]
    Manager(io::Error),
    #[error("the sockets of the process that runs cannot be taken over: {0}")]
    Predecessor(io::Error),
}

impl Inherited {
    /// What the service manager has passed, and what the predecessor has, by their names.
    pub fn take(from_predecessor: Vec<(String, OwnedFd)>) -> Result<Self, Error> {
        let mut inherited = Self::default();
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(Owner::of);
        let mut handed = ListenFd::from_env();
        for index in 0..handed.len() {
            let owner = names.next().unwrap_or(Owner::Unit);
            if let Ok(Some(listener)) = handed.take_tcp_listener(index) {
                inherited.add_tcp(owner, listener).map_err(Error::Manager)?;
            } else if let Some(socket) = handed.take_udp_socket(index).map_err(Error::Manager)? {
                inherited.add_udp(owner, socket).map_err(Error::Manager)?;
            }
        }
        for (name, descriptor) in from_predecessor {
            inherited.add(Owner::of(&name), descriptor).map_err(Error::Predecessor)?;
        }
        Ok(inherited)
    }

    fn add(&mut self, owner: Owner, descriptor: OwnedFd) -> io::Result<()> {
        match SockRef::from(&descriptor).r#type()? {
            Type::STREAM => self.add_tcp(owner, descriptor.into()),
            _ => self.add_udp(owner, descriptor.into()),
        }
    }

    fn add_tcp(&mut self, owner: Owner, socket: TcpListener) -> io::Result<()> {
        sys::adopt_tcp(&socket)?;
        self.tcp.push(Kept { owner, address: socket.local_addr()?, socket });
        Ok(())
    }

    fn add_udp(&mut self, owner: Owner, socket: UdpSocket) -> io::Result<()> {
        sys::adopt_udp(&socket)?;
        self.udp.push(Kept { owner, address: socket.local_addr()?, socket });
        Ok(())
    }

    /// The listeners of a socket unit; their one UDP socket serves all workers.
    pub fn take_units(&mut self, workers: usize) -> Result<Vec<Listener>, Error> {
        let mut tcp: Vec<_> = self.tcp.extract_if(.., |kept| kept.owner == Owner::Unit).collect();
        let udp = self.udp.extract_if(.., |kept| kept.owner == Owner::Unit);
        let listeners = udp.map(|Kept { address, socket, .. }| {
            let its = tcp.iter().position(|kept| kept.address == address);
            let tcp = its.map(|at| tcp.swap_remove(at).socket);
            let socket = Arc::new(socket);
            Listener { service: Service::Plain, address, tcp, udp: vec![socket; workers] }
        });
        let listeners = listeners.collect();
        match tcp.first() {
            Some(&Kept { address, .. }) => Err(Error::NoUdp { address }),
            None => Ok(listeners),
        }
    }

    /// Our TCP listener at an address, if there is one.
    pub fn take_tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self.tcp.iter().position(|kept| kept.owner == Owner::Us && kept.address == address)?;
        Some(self.tcp.swap_remove(at).socket)
    }

    /// Our UDP sockets at an address.
    pub fn take_udp(&mut self, address: SocketAddr) -> Vec<UdpSocket> {
        let ours = self.udp.extract_if(.., |kept| kept.owner == Owner::Us && kept.address == address);
        ours.map(|kept| kept.socket).collect()
    }

    /// Closes what nobody has taken up, for good.
    pub fn close(self) {
        let tcp = self.tcp.iter().map(|kept| kept.address);
        for address in tcp.chain(self.udp.iter().map(|kept| kept.address)) {
            store::forget(address);
            tracing::info!(%address, "no longer listening");
        }
    }
}

impl Owner {
    fn of(name: &str) -> Self {
        if store::is_ours(name) { Self::Us } else { Self::Unit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_taken_up_by_their_address_and_owner() {
        let mut inherited = Inherited::default();
        let ours = sys::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = ours.local_addr().unwrap();
        let unit = sys::bind_tcp("127.0.0.2:0".parse().unwrap()).unwrap();
        let of_unit = unit.local_addr().unwrap();
        inherited.add(Owner::of(&store::name(address)), ours.into()).unwrap();
        inherited.add(Owner::of("watershed.socket"), unit.into()).unwrap();
        for _ in 0..3 {
            let socket = sys::bind_udp(address).unwrap();
            inherited.add(Owner::of(&store::name(address)), socket.into()).unwrap();
        }
        assert!(inherited.take_tcp(of_unit).is_none(), "the unit's is served whatever is configured");
        assert!(inherited.take_udp(of_unit).is_empty());
        assert_eq!(inherited.take_udp(address).len(), 3);
        assert_eq!(inherited.take_tcp(address).unwrap().local_addr().unwrap(), address);
        assert!(inherited.take_tcp(address).is_none(), "once");
        assert!(matches!(inherited.take_units(2), Err(Error::NoUdp { address }) if address == of_unit));
    }
}
