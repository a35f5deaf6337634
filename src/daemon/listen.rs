//! The listening sockets: opened, or taken up where they are open already.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::Arc,
};

use super::inherited::Inherited;
use crate::{endpoint::Endpoint, server::Service, sys};

/// The sockets of one address.
pub(super) struct Listener {
    pub service: Service,
    /// With the port, and the index of the interface, that it has.
    pub address: SocketAddr,
    pub tcp: Option<TcpListener>,
    /// One for each worker; of sockets that were open already, some may have to share one. QUIC has one, which is no worker's.
    /// None for TLS and HTTPS.
    pub udp: Vec<Arc<UdpSocket>>,
}

/// Why an address cannot be served; says what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(
        "cannot listen on {address}: another program does; find it with `ss -lunpt 'sport = :{port}'` and stop it, or \
         choose another address in {}", choice(*.service)
    )]
    InUse { service: Service, address: Endpoint, port: u16 },
    #[error(
        "cannot listen on {address}: ports below 1024 need a privilege; give the program CAP_NET_BIND_SERVICE (systemd: \
         AmbientCapabilities=CAP_NET_BIND_SERVICE; by hand: `setcap cap_net_bind_service=+ep` on the file), or choose \
         another port in {}", choice(*.service)
    )]
    Denied { service: Service, address: Endpoint },
    #[error("cannot listen on {address}: {error}; mend server.{}", .service.key())]
    Other { service: Service, address: Endpoint, error: io::Error },
}

impl Listener {
    /// Opens TCP, which is the lock against a second daemon, and then as many UDP sockets as there are workers, unless they
    /// are open already.
    ///
    /// If there were more workers before, their sockets come as further listeners: closing one would lose what is queued.
    pub fn open(
        service: Service,
        address: Endpoint,
        workers: usize,
        inherited: &mut Inherited,
    ) -> Result<Vec<Self>, Error> {
        let fault = |error: io::Error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::InUse { service, address, port: address.port() },
            io::ErrorKind::PermissionDenied => Error::Denied { service, address },
            _ => Error::Other { service, address, error },
        };
        // Port 0 asks for any: UDP gets the one that TCP was given, unless somebody has it already.
        let tries = if address.port() == 0 { 16 } else { 1 };
        (1..=tries)
            .find_map(|attempt| match Self::bind(service, address, workers, inherited) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && attempt < tries => None,
                outcome => Some(outcome.map_err(fault)),
            })
            .expect("the last attempt is an outcome")
    }

    fn bind(service: Service, address: Endpoint, workers: usize, inherited: &mut Inherited) -> io::Result<Vec<Self>> {
        let address = address.resolve()?;
        if service == Service::Quic {
            // Never one that was open already: a connection cannot go on in another process.
            let socket = Arc::new(sys::bind_udp(address)?);
            return Ok(vec![Self { service, address: socket.local_addr()?, tcp: None, udp: vec![socket] }]);
        }
        let tcp = inherited.take_tcp(address).map_or_else(|| sys::bind_tcp(address), Ok)?;
        let address = tcp.local_addr()?;
        let mut udp = Vec::new();
        if service == Service::Plain {
            udp.extend(inherited.take_udp(address).into_iter().map(Arc::new));
            let open_already = udp.len();
            while udp.len() < workers {
                match sys::bind_udp(address) {
                    Ok(socket) => udp.push(Arc::new(socket)),
                    // Another user's process may have opened those, and then we are not let in beside them.
                    Err(_) if open_already > 0 => udp.push(udp[udp.len() % open_already].clone()),
                    Err(error) => return Err(error),
                }
            }
        }
        let spare = udp.split_off(workers.min(udp.len()));
        let further = spare.chunks(workers.max(1)).map(|udp| Self { service, address, tcp: None, udp: udp.to_vec() });
        let mut listeners: Vec<Self> = further.collect();
        listeners.insert(0, Self { service, address, tcp: Some(tcp), udp });
        Ok(listeners)
    }
}

/// Where addresses are chosen.
fn choice(service: Service) -> String {
    let flag = if service == Service::Plain { " or with --listen" } else { "" };
    format!("server.{}{flag}", service.key())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::store;

    /// As many sockets of a process before as there were workers.
    fn inherited(address: SocketAddr, workers: usize) -> Inherited {
        let ours = |socket: std::os::fd::OwnedFd| (store::name(address), socket);
        let tcp = sys::bind_tcp(address).unwrap();
        let udp = (0..workers).map(|_| ours(sys::bind_udp(address).unwrap().into()));
        Inherited::take(udp.chain([ours(tcp.into())]).collect()).unwrap()
    }

    #[test]
    fn every_worker_has_a_socket_and_every_socket_a_worker_however_many_there_were() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        for (before, now, expected) in [
            (2, 2, &[2][..]),
            (2, 3, &[3]),
            (0, 2, &[2]),
            (3, 2, &[2, 1]),
            (5, 2, &[2, 2, 1]), // what no worker is left for is served by those that there are
        ] {
            let mut inherited = inherited(address, before);
            let listeners = Listener::open(Service::Plain, address.into(), now, &mut inherited).unwrap();
            let shares: Vec<usize> = listeners.iter().map(|listener| listener.udp.len()).collect();
            assert_eq!(shares, expected, "{before} before, {now} now");
            let tcp: Vec<bool> = listeners.iter().map(|listener| listener.tcp.is_some()).collect();
            assert_eq!((tcp[0], tcp.iter().filter(|has| **has).count()), (true, 1));
            assert!(inherited.take_udp(address).is_empty());
        }
    }
}
