//! Many datagrams with one system call: `recvmmsg` here, `sendmmsg` in [`super::outbox`].
//!
//! Buffers, headers and addresses are allocated once. A datagram on a wildcard socket carries the address it was sent
//! to (PKTINFO), and a reply can be given the address to leave from.
#![allow(unsafe_code)]

use std::{
    io,
    marker::PhantomData,
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

/// The local end of a datagram: the address it was sent to, and the interface it came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    /// The address asked, and from which the reply has to leave.
    pub ip: IpAddr,
    /// The interface's number; needed for link-local addresses.
    pub interface: u32,
}

/// A datagram that was received.
#[derive(Debug, Clone, Copy)]
pub struct Datagram<'a> {
    /// What it holds.
    pub payload: &'a [u8],
    /// Who sent it.
    pub peer: SocketAddr,
    /// Where it was sent to; known on wildcard sockets alone.
    pub local: Option<Local>,
}

/// Room for a batch of datagrams to receive.
pub struct Inbox {
    slots: Slots,
    /// From the start of one datagram to that of the next.
    stride_bytes: usize,
    /// How many slots the last call filled: the kernel has changed the lengths in their headers.
    filled: usize,
}

impl Inbox {
    /// Room for `room` datagrams of at most `datagram_bytes` each; longer ones are cut.
    pub fn new(room: usize, datagram_bytes: usize) -> Self {
        // An odd number of cache lines: at multiples of a page all datagrams would contend for the same few lines.
        let stride_bytes = (datagram_bytes.div_ceil(CACHE_LINE_BYTES) | 1) * CACHE_LINE_BYTES;
        let mut slots = Slots::new(room, room * stride_bytes);
        for (slot, buffer) in slots.buffer.chunks_exact_mut(stride_bytes).enumerate() {
            slots.iovecs[slot] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: datagram_bytes };
        }
        Self { slots, stride_bytes, filled: room }
    }

    /// Receives what waits, without waiting for more: the number of datagrams, 0 if there are none.
    ///
    /// An error that an earlier datagram provoked (ICMP), or a passing want of memory, counts as none.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        match self.try_receive(socket, self.room()) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(
                        libc::ECONNREFUSED
                            | libc::EHOSTUNREACH
                            | libc::ENETUNREACH
                            | libc::ENETDOWN
                            | libc::ENOMEM
                            | libc::ENOBUFS
                    )
                ) =>
            {
                Ok(0)
            }
            outcome => outcome,
        }
    }

    /// The same for at most `most`, and every error is one: on a connected socket it tells that the peer is not there.
    pub fn try_receive(&mut self, socket: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let most = most.min(self.room());
        let slots = &mut self.slots;
        for header in &mut slots.headers[..self.filled] {
            header.msg_hdr.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as u32;
            header.msg_hdr.msg_controllen = CONTROL_BYTES;
        }
        // SAFETY: every header points into `slots`, whose boxes `Slots::new` allocated once and nobody moves or frees
        // while `self` lives; `most` is not more than their number, and a null timeout is allowed.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                slots.headers.as_mut_ptr(),
                most as u32,
                libc::MSG_DONTWAIT,
                ptr::null_mut(),
            )
        };
        self.filled = received.max(0) as usize;
        if received >= 0 {
            return Ok(self.filled);
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => Ok(0),
            error => Err(error),
        }
    }

    /// The datagram in a slot that the last [`receive`](Self::receive) filled.
    ///
    /// `None` if its sender's address is neither IPv4 nor IPv6.
    pub fn get(&self, slot: usize) -> Option<Datagram<'_>> {
        let header = self.slots.headers.get(slot)?;
        let start = slot * self.stride_bytes;
        let payload = self.slots.buffer.get(start..start + header.msg_len as usize)?;
        let peer = read_address(&self.slots.names[slot])?;
        Some(Datagram { payload, peer, local: read_local(&self.slots.controls[slot], &header.msg_hdr) })
    }

    /// How many datagrams one call can bring.
    pub fn room(&self) -> usize {
        self.slots.headers.len()
    }
}

/// Headers with all that they point to. Not `Send`: it stays with the thread that made it.
pub(super) struct Slots {
    pub headers: Box<[libc::mmsghdr]>,
    pub iovecs: Box<[libc::iovec]>,
    pub names: Box<[libc::sockaddr_storage]>,
    pub controls: Box<[Control]>,
    buffer: Box<[u8]>,
    _stays: PhantomData<*mut u8>,
}

/// Room for a PKTINFO message and one that gives the size of segments, aligned as `cmsghdr` demands.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Control(pub [u8; CONTROL_BYTES]);

impl Slots {
    pub fn new(room: usize, buffer_bytes: usize) -> Self {
        // SAFETY: these are plain C structs, for which all zeros are valid values.
        let zeroed = unsafe { mem::zeroed::<(libc::mmsghdr, libc::iovec, libc::sockaddr_storage)>() };
        let mut slots = Self {
            headers: vec![zeroed.0; room].into(),
            iovecs: vec![zeroed.1; room].into(),
            names: vec![zeroed.2; room].into(),
            controls: vec![Control([0; CONTROL_BYTES]); room].into(),
            buffer: vec![0; buffer_bytes].into(),
            _stays: PhantomData,
        };
        let parts = slots.iovecs.iter_mut().zip(&mut slots.names).zip(&mut slots.controls);
        for (header, ((iovec, name), control)) in slots.headers.iter_mut().zip(parts) {
            header.msg_hdr.msg_iov = iovec;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_name = ptr::from_mut(name).cast();
            header.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        }
        slots
    }
}

fn read_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel wrote a `sockaddr_in`, as the family says; the storage is large and aligned enough.
            let address = unsafe { *ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddrV4::new(ip, u16::from_be(address.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, a `sockaddr_in6`.
            let address = unsafe { *ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            let port = u16::from_be(address.sin6_port);
            Some(SocketAddrV6::new(ip, port, address.sin6_flowinfo, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn read_local(control: &Control, header: &libc::msghdr) -> Option<Local> {
    // The macro reads the header's fields alone, so it may be given a copy that points at our borrow.
    let mut header = *header;
    header.msg_control = control.0.as_ptr().cast_mut().cast();
    // SAFETY: `msg_control` and `msg_controllen` describe octets of `control` that the kernel wrote.
    let message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    if message.is_null() {
        return None;
    }
    // SAFETY: not null, so a whole `cmsghdr` lies there, aligned as `Control` is.
    let head = unsafe { *message };
    // SAFETY: the data of a message begins behind its head, inside `control`.
    let data = unsafe { libc::CMSG_DATA(message) };
    match (head.cmsg_level, head.cmsg_type) {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
            // SAFETY: level and type say that an `in_pktinfo` follows, written whole by the kernel.
            let info = unsafe { ptr::read_unaligned(data.cast::<libc::in_pktinfo>()) };
            let ip = Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr));
            Some(Local { ip: ip.into(), interface: info.ipi_ifindex as u32 })
        }
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
            // SAFETY: as above, an `in6_pktinfo`.
            let info = unsafe { ptr::read_unaligned(data.cast::<libc::in6_pktinfo>()) };
            Some(Local { ip: Ipv6Addr::from(info.ipi6_addr.s6_addr).into(), interface: info.ipi6_ifindex })
        }
        _ => None,
    }
}

const CACHE_LINE_BYTES: usize = 64;
/// Room for an `in6_pktinfo` behind its head, 16 + 20, and for a `u16` behind its own, both rounded up.
pub(super) const CONTROL_BYTES: usize = 40 + 24;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Outbox, Sent, bind_udp};
    use std::{net::UdpSocket, os::fd::AsFd};

    /// Sends through `Outbox` or one by one, receives through `Inbox` or one by one: all agree.
    #[test]
    fn a_batch_carries_what_single_calls_carry() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = bind_udp(address.parse().unwrap()).unwrap();
            let client = UdpSocket::bind(address).unwrap();
            let (to, from) = (server.local_addr().unwrap(), client.local_addr().unwrap());
            let payloads: Vec<Vec<u8>> = (0..20u8).map(|i| vec![i; usize::from(i) * 3]).collect();

            for payload in &payloads {
                client.send_to(payload, to).unwrap();
            }
            let mut inbox = Inbox::new(16, 512);
            let mut got = Vec::new();
            loop {
                let count = inbox.receive(server.as_fd()).unwrap();
                if count == 0 {
                    break;
                }
                for slot in 0..count {
                    let datagram = inbox.get(slot).unwrap();
                    assert_eq!((datagram.peer, datagram.local), (from, None));
                    got.push(datagram.payload.to_vec());
                }
            }
            assert_eq!(got, payloads);

            let mut outbox = Outbox::new(20, 64);
            for payload in &payloads {
                outbox.buffer().clear();
                outbox.buffer().extend(payload);
                outbox.queue(from, None);
            }
            assert!(outbox.is_full());
            assert_eq!(outbox.send(server.as_fd()), Sent { sent: 20, dropped: 0 });
            assert!(outbox.is_empty());
            for payload in payloads.iter().rev() {
                let mut buffer = [0; 512];
                let (length, peer) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..length], peer), (&payload[..], to));
            }
        }
    }

    #[test]
    fn a_wildcard_socket_replies_from_the_address_that_was_asked() {
        for (wildcard, asked) in [("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "::1")] {
            let server = bind_udp(wildcard.parse().unwrap()).unwrap();
            let asked = SocketAddr::new(asked.parse().unwrap(), server.local_addr().unwrap().port());
            let any = if asked.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
            let client = UdpSocket::bind(any).unwrap();
            client.connect(asked).unwrap(); // so that only replies from there arrive
            client.send(b"ping").unwrap();
            let mut inbox = Inbox::new(4, 512);
            assert_eq!(inbox.receive(server.as_fd()).unwrap(), 1);
            let datagram = inbox.get(0).unwrap();
            assert_eq!(datagram.local.map(|local| local.ip), Some(asked.ip()));
            let mut outbox = Outbox::new(4, 64);
            outbox.buffer().extend(b"pong");
            outbox.queue(datagram.peer, datagram.local);
            assert_eq!(outbox.send(server.as_fd()).sent, 1);
            let mut buffer = [0; 16];
            assert_eq!(client.recv(&mut buffer).unwrap(), 4);
        }
    }

    #[test]
    fn a_datagram_without_a_way_out_does_not_stop_the_others() {
        let server = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut outbox = Outbox::new(4, 64);
        for peer in [client.local_addr().unwrap(), "[::1]:1".parse().unwrap(), client.local_addr().unwrap()] {
            outbox.buffer().clear();
            outbox.buffer().extend(b"x");
            outbox.queue(peer, None);
        }
        assert_eq!(outbox.send(server.as_fd()), Sent { sent: 2, dropped: 1 });
    }
}
