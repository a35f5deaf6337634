//! Sockets set up as a name server needs them.
#![allow(unsafe_code)]

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::AsRawFd,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// A listening TCP socket, nonblocking. Without SO_REUSEPORT: it is the lock against a second daemon.
///
/// An address that the host does not have yet is no error (IP_FREEBIND): at boot the daemon may be first.
pub fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = open(address, Type::STREAM, Protocol::TCP)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    let listener = socket.into();
    adopt_tcp(&listener)?;
    SockRef::from(&listener).listen(TCP_BACKLOG)?;
    Ok(listener)
}

/// Sets a bound TCP socket up as [`bind_tcp`] does; for one that somebody else has bound.
pub fn adopt_tcp(listener: &TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let options = SockRef::from(listener);
    // What is accepted inherits both. By itself the kernel would keep 4 MiB for each client that does not read.
    options.set_tcp_nodelay(true)?;
    options.set_send_buffer_size(TCP_SEND_BUFFER_BYTES)
}

/// One of several UDP sockets of an address, nonblocking; the kernel shares the clients out among them.
///
/// On a wildcard address every datagram tells which address it was sent to, so that the reply can leave from there.
pub fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = open(address, Type::DGRAM, Protocol::UDP)?;
    // A port that is given may be shared; one that the kernel is to choose it would choose among those that others share.
    socket.set_reuse_port(address.port() != 0)?;
    socket.bind(&address.into())?;
    socket.set_reuse_port(true)?;
    let socket = socket.into();
    adopt_udp(&socket)?;
    Ok(socket)
}

/// A nonblocking UDP socket that sends to `peer` and hears nobody else. The kernel chooses its port at random.
pub fn connect_udp(peer: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(peer), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.connect(&peer.into())?;
    Ok(socket.into())
}

/// Takes peer and port from a socket of [`connect_udp`]. It hears nobody until it is connected again, and has another port
/// then, again one at random: to open a new one costs four times as much.
pub fn disconnect_udp(socket: &UdpSocket) -> io::Result<()> {
    Ok(rustix::net::connect_unspec(socket)?)
}

/// Sets a bound UDP socket up as [`bind_udp`] does; for one that somebody else has bound.
pub fn adopt_udp(socket: &UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let options = SockRef::from(socket);
    options.set_recv_buffer_size(UDP_BUFFER_BYTES)?;
    options.set_send_buffer_size(UDP_BUFFER_BYTES)?;
    match socket.local_addr()? {
        address if !address.ip().is_unspecified() => Ok(()),
        SocketAddr::V4(_) => enable(socket, libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => enable(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    }
}

fn open(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), Some(protocol))?;
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_freebind_v6(true)?;
            socket.set_only_v6(true)?;
        }
    }
    Ok(socket)
}

fn enable(socket: &UdpSocket, level: i32, option: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is the `c_int` at the pointer, with its length beside it.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size_of_val(&on) as libc::socklen_t)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How many datagrams the kernel has dropped at a socket because its buffer was full (or they were damaged), since it was
/// opened and modulo 2^32.
pub fn kernel_drops(socket: &UdpSocket) -> io::Result<u32> {
    let mut counts = [0u32; MEMINFO_COUNTS];
    let mut length = size_of_val(&counts) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` octets to where `counts` lies, and says how many in `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            counts.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(counts[MEMINFO_DROPS]) }
}

/// Whether an error says that descriptors or memory have run out here: no fault of whoever is at the other end.
pub fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// The error that says that descriptors have run out.
pub fn exhaustion() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// Room for some of the largest replies; a client that reads has it empty soon.
const TCP_SEND_BUFFER_BYTES: usize = 256 << 10;
/// Connections that wait to be accepted.
const TCP_BACKLOG: i32 = 1024;
/// What SO_MEMINFO tells of, and where in that the drops stand (SK_MEMINFO_VARS, SK_MEMINFO_DROPS of linux/sock_diag.h).
const MEMINFO_COUNTS: usize = 9;
const MEMINFO_DROPS: usize = 8;
/// Room for some thousand queries while a worker is busy; the kernel grants what `net.core.rmem_max` allows.
const UDP_BUFFER_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_listener_on_an_address_is_refused_but_more_udp_sockets_are_not() {
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = bind_tcp(any).unwrap();
        let refused = bind_tcp(listener.local_addr().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        let first = bind_udp(any).unwrap();
        let _second = bind_udp(first.local_addr().unwrap()).unwrap();
    }

    #[test]
    fn a_port_that_the_kernel_chooses_is_nobody_elses() {
        let sockets: Vec<UdpSocket> = (0..600).map(|_| bind_udp("127.0.0.1:0".parse().unwrap()).unwrap()).collect();
        let ports: std::collections::HashSet<u16> =
            sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), sockets.len());
    }

    #[test]
    fn a_client_that_does_not_read_is_kept_little_for() {
        let units = TcpListener::bind("127.0.0.1:0").unwrap();
        adopt_tcp(&units).unwrap();
        for listener in [bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap(), units] {
            listener.set_nonblocking(false).unwrap();
            let _client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            // The kernel doubles what is asked for, for its own needs.
            let bytes = SockRef::from(&stream).send_buffer_size().unwrap();
            assert!(bytes <= 2 * TCP_SEND_BUFFER_BYTES, "{bytes}");
        }
    }

    #[test]
    fn connected_sockets_have_ports_that_do_not_follow_from_each_other() {
        let peer = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sockets: Vec<UdpSocket> = (0..20).map(|_| connect_udp(peer).unwrap()).collect();
        let ports: Vec<u16> = sockets.iter().map(|socket| socket.local_addr().unwrap().port()).collect();
        let steps: std::collections::HashSet<i32> =
            ports.windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0])).collect();
        assert!(steps.len() > 10, "{ports:?}");
        assert_eq!(sockets[0].recv(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let server = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        SockRef::from(&server).set_recv_buffer_size(4096).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(kernel_drops(&server).unwrap(), 0);
        for _ in 0..100 {
            client.send_to(&[0; 512], server.local_addr().unwrap()).unwrap();
        }
        let received = std::iter::repeat_with(|| server.recv(&mut [0; 512])).take_while(Result::is_ok).count();
        assert!(received < 100);
        assert_eq!(kernel_drops(&server).unwrap() as usize, 100 - received);
    }

    #[test]
    fn an_address_that_is_not_there_yet_can_be_bound() {
        bind_udp("192.0.2.1:0".parse().unwrap()).unwrap();
        bind_tcp("192.0.2.1:0".parse().unwrap()).unwrap();
    }
}
