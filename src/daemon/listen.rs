//! The listening sockets: opened, taken over from the service manager, closed.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
};

use listenfd::ListenFd;

use crate::{server::Service, sys};

/// The sockets of one address.
pub(super) struct Listener {
    pub service: Service,
    pub address: SocketAddr,
    pub tcp: Option<TcpListener>,
    /// One for each worker; after a hand-over they may be the same socket. None for what is encrypted.
    pub udp: Vec<Arc<UdpSocket>>,
}

/// Why an address cannot be served; says what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "cannot listen on {address}: another program does; find it with `ss -lunpt 'sport = :{port}'` and stop it, or \
         choose another address in {}", choice(*.service)
    )]
    InUse { service: Service, address: SocketAddr, port: u16 },
    #[error(
        "cannot listen on {address}: ports below 1024 need a privilege; give the program CAP_NET_BIND_SERVICE (systemd: \
         AmbientCapabilities=CAP_NET_BIND_SERVICE; by hand: `setcap cap_net_bind_service=+ep` on the file), or choose \
         another port in {}", choice(*.service)
    )]
    Denied { service: Service, address: SocketAddr },
    #[error("cannot listen on {address}: {error}; mend server.{}", .service.key())]
    Other { service: Service, address: SocketAddr, error: io::Error },
    #[error(
        "the service manager handed over no UDP socket for {address}; add ListenDatagram={address} to its socket unit"
    )]
    NoUdp { address: SocketAddr },
    #[error("the service manager's sockets cannot be taken over: {0}; check its socket unit")]
    HandOver(io::Error),
}

impl Listener {
    /// Opens TCP, which is the lock against a second daemon, and then as many UDP sockets as there are workers.
    pub fn open(service: Service, address: SocketAddr, workers: usize) -> Result<Self, Error> {
        let fault = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::InUse { service, address, port: address.port() },
            io::ErrorKind::PermissionDenied => Error::Denied { service, address },
            _ => Error::Other { service, address, error },
        };
        // Port 0 asks for any: UDP gets the one that TCP was given, unless somebody has it already.
        let tries = if address.port() == 0 { 16 } else { 1 };
        (1..=tries)
            .find_map(|attempt| match Self::bind(service, address, workers) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < tries => None,
                outcome => Some(outcome.map_err(fault)),
            })
            .expect("the last attempt is an outcome")
    }

    fn bind(service: Service, address: SocketAddr, workers: usize) -> io::Result<Self> {
        let tcp = sys::bind_tcp(address)?;
        let address = tcp.local_addr()?;
        let udp_sockets = if service == Service::Plain { workers } else { 0 };
        let udp = (0..udp_sockets).map(|_| sys::bind_udp(address).map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self { service, address, tcp: Some(tcp), udp })
    }

    /// The sockets that the service manager has opened (`LISTEN_FDS`); empty if it has opened none.
    pub fn take_over(workers: usize) -> Result<Vec<Self>, Error> {
        let mut handed = ListenFd::from_env();
        let mut tcp = HashMap::new();
        let mut udp: Vec<Self> = Vec::new();
        for index in 0..handed.len() {
            if let Ok(Some(listener)) = handed.take_tcp_listener(index) {
                listener.set_nonblocking(true).map_err(Error::HandOver)?;
                tcp.insert(listener.local_addr().map_err(Error::HandOver)?, listener);
            } else if let Some(socket) = handed.take_udp_socket(index).map_err(Error::HandOver)? {
                sys::adopt_udp(&socket).map_err(Error::HandOver)?;
                let address = socket.local_addr().map_err(Error::HandOver)?;
                let socket = Arc::new(socket);
                udp.push(Self { service: Service::Plain, address, tcp: None, udp: vec![socket; workers] });
            }
        }
        for listener in &mut udp {
            listener.tcp = tcp.remove(&listener.address);
        }
        match tcp.into_keys().next() {
            Some(address) => Err(Error::NoUdp { address }),
            None => Ok(udp),
        }
    }
}

/// Where addresses are chosen.
fn choice(service: Service) -> String {
    let flag = if service == Service::Plain { " or with --listen" } else { "" };
    format!("server.{}{flag}", service.key())
}
