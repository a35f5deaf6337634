//! Many datagrams sent with one system call, and several of them as one.
//!
//! Datagrams of one length that are queued to one peer without another between them go to the kernel as one message that it
//! cuts into segments (UDP_SEGMENT): its way through the kernel is then gone once, not for each. The last of them may be
//! shorter, as one of the two replies to a client that asks for both addresses of a name mostly is. Whoever receives them
//! sees no difference but their order.
//! A kernel or a device that cannot do this refuses again and again, and is then given one at a time. Once or twice, it may
//! be the way to one peer alone, whom the others are not to suffer for.
#![allow(unsafe_code)]

use std::{
    cmp::Reverse,
    io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};

use super::{
    Local,
    batch::{CONTROL_BYTES, Control, Slots},
};

/// Room for a batch of datagrams to send.
pub struct Outbox {
    slots: Slots,
    payloads: Vec<Vec<u8>>,
    ways: Box<[Way]>,
    queued: usize,
    /// How many headers they are arranged under, once they are: as many or fewer.
    messages: usize,
    cuts: bool,
    /// How many messages in turn the kernel has refused to cut.
    refusals: u32,
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    /// `None` on a connected socket.
    peer: Option<SocketAddr>,
    local: Option<Local>,
}

/// The datagrams under one header.
#[derive(Debug, Clone, Copy)]
struct Message {
    /// The length of each of them, but that the last may be shorter.
    segment_bytes: usize,
    count: usize,
    is_closed: bool,
    /// The length of the control messages without the size of segments.
    control_bytes: usize,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Handed to the kernel.
    pub sent: usize,
    /// Refused by the kernel: no route to the client, or its buffer is full.
    pub dropped: usize,
}

impl Outbox {
    /// Room for `room` datagrams; each buffer starts with `datagram_bytes` and grows if it must.
    pub fn new(room: usize, datagram_bytes: usize) -> Self {
        Self {
            slots: Slots::new(room, 0),
            payloads: (0..room).map(|_| Vec::with_capacity(datagram_bytes)).collect(),
            ways: vec![Way { peer: None, local: None }; room].into(),
            queued: 0,
            messages: 0,
            cuts: true,
            refusals: 0,
        }
    }

    /// Whether it must be sent before another datagram can be queued.
    pub fn is_full(&self) -> bool {
        self.queued == self.payloads.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// The buffer of the next datagram, to be filled and then [`queue`](Self::queue)d. Must not be full.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.payloads[self.queued]
    }

    /// Queues what [`buffer`](Self::buffer) holds, to `peer`, from `local` if that is given.
    pub fn queue(&mut self, peer: SocketAddr, local: Option<Local>) {
        self.add(Way { peer: Some(peer), local });
    }

    /// Queues what [`buffer`](Self::buffer) holds, for a connected socket, as all of the batch must be then.
    pub fn queue_connected(&mut self) {
        self.add(Way { peer: None, local: None });
    }

    fn add(&mut self, way: Way) {
        let slot = self.queued;
        let payload = &mut self.payloads[slot];
        self.slots.iovecs[slot] = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        self.ways[slot] = way;
        self.queued += 1;
    }

    /// Puts all that is queued under headers. Among the datagrams of a way that follow each other none comes first: they leave
    /// in an order in which many can be sent as one.
    fn arrange(&mut self) {
        self.messages = 0;
        let mut start = 0;
        while start < self.queued {
            let way = self.ways[start];
            let end = self.ways[start..self.queued].iter().position(|next| *next != way);
            let end = end.map_or(self.queued, |count| start + count);
            if self.cuts {
                self.slots.iovecs[start..end].sort_unstable_by_key(|datagram| Reverse(datagram.iov_len));
            }
            let mut last = Message::NONE;
            for slot in start..end {
                last = self.put(slot, way, last);
            }
            start = end;
        }
    }

    /// Puts a datagram under the last header or a new one, which is then the last.
    fn put(&mut self, slot: usize, way: Way, last: Message) -> Message {
        let bytes = self.slots.iovecs[slot].iov_len;
        if last.takes(bytes) {
            let control = &mut self.slots.controls[self.messages - 1];
            let header = &mut self.slots.headers[self.messages - 1].msg_hdr;
            if last.count == 1 {
                header.msg_controllen = write_segment(last.segment_bytes, control, last.control_bytes);
            }
            let count = last.count + 1;
            header.msg_iovlen = count;
            return Message { count, is_closed: bytes < last.segment_bytes, ..last };
        }
        let header = &mut self.slots.headers[self.messages].msg_hdr;
        let name = &mut self.slots.names[self.messages];
        header.msg_iov = &raw mut self.slots.iovecs[slot];
        header.msg_iovlen = 1;
        (header.msg_name, header.msg_namelen) = match way.peer {
            Some(peer) => (ptr::from_mut(name).cast(), write_address(peer, name)),
            None => (ptr::null_mut(), 0),
        };
        let control_bytes = way.local.map_or(0, |local| write_local(local, &mut self.slots.controls[self.messages]));
        header.msg_controllen = control_bytes;
        self.messages += 1;
        Message { segment_bytes: bytes, count: 1, is_closed: !self.cuts, control_bytes }
    }

    /// Sends all that is queued, and is empty afterwards. What cannot be sent at the second attempt is dropped: the first
    /// error may be that of an earlier datagram.
    pub fn send(&mut self, socket: BorrowedFd<'_>) -> Sent {
        self.arrange();
        self.send_arranged(socket)
    }

    fn send_arranged(&mut self, socket: BorrowedFd<'_>) -> Sent {
        let mut outcome = Sent::default();
        let mut next = 0;
        let mut has_failed = false;
        while next < self.messages {
            // SAFETY: headers `next..messages` point into `slots`, whose boxes nobody moves while `self` lives, and through
            // iovecs into payloads that were not touched since `add`, for only `buffer` gives access, to the one after.
            let sent = unsafe {
                libc::sendmmsg(
                    socket.as_raw_fd(),
                    self.slots.headers.as_mut_ptr().add(next),
                    (self.messages - next) as u32,
                    libc::MSG_DONTWAIT,
                )
            };
            if sent > 0 {
                let headers = &self.slots.headers[next..next + sent as usize];
                outcome.sent += headers.iter().map(|header| header.msg_hdr.msg_iovlen).sum::<usize>();
                if headers.iter().any(|header| header.msg_hdr.msg_iovlen > 1) {
                    self.refusals = 0;
                }
                next += sent as usize;
                has_failed = false;
                continue;
            }
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            // The error is the first message's; those behind it may well go.
            if has_failed && self.slots.headers[next].msg_hdr.msg_iovlen > 1 {
                self.refusals += u32::from(is_refusal(&error));
                self.cuts = self.refusals < MOST_REFUSALS;
                let apart = self.send_apart(socket, next);
                outcome = Sent { sent: outcome.sent + apart.sent, dropped: outcome.dropped + apart.dropped };
                next += 1;
            } else {
                outcome.dropped += usize::from(has_failed);
                next += usize::from(has_failed);
            }
            has_failed = !has_failed;
        }
        (self.queued, self.messages) = (0, 0);
        outcome
    }

    /// Sends the datagrams of a message one by one.
    fn send_apart(&mut self, socket: BorrowedFd<'_>, message: usize) -> Sent {
        let mut outcome = Sent::default();
        let mut header = self.slots.headers[message].msg_hdr;
        let count = mem::replace(&mut header.msg_iovlen, 1);
        header.msg_controllen -= SEGMENT_BYTES;
        for _ in 0..count {
            // SAFETY: as in `send_arranged`; the header is a copy that shows one of the iovecs that were queued under it.
            let send = || unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
            match send() {
                result if result >= 0 || send() >= 0 => outcome.sent += 1,
                _ => outcome.dropped += 1,
            }
            header.msg_iov = header.msg_iov.wrapping_add(1);
        }
        outcome
    }
}

impl Message {
    /// None that takes any.
    const NONE: Self = Self { segment_bytes: 0, count: 0, is_closed: true, control_bytes: 0 };

    /// Whether a datagram can follow those of this message.
    fn takes(&self, bytes: usize) -> bool {
        !self.is_closed
            && self.count < MOST_SEGMENTS
            && self.segment_bytes <= LONGEST_SEGMENT_BYTES
            && (1..=self.segment_bytes).contains(&bytes)
            && (self.count + 1) * self.segment_bytes <= MOST_BYTES
    }
}

/// Whether an error says that segments are not to be had here, or not of this length.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE | libc::EOPNOTSUPP | libc::ENOPROTOOPT)
    )
}

/// Returns the length of the address.
fn write_address(address: SocketAddr, storage: &mut libc::sockaddr_storage) -> u32 {
    match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: the storage is large and aligned enough for any socket address.
            unsafe { *ptr::from_mut(storage).cast() = raw };
            mem::size_of_val(&raw) as u32
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { *ptr::from_mut(storage).cast() = raw };
            mem::size_of_val(&raw) as u32
        }
    }
}

/// Returns the length of the control message.
fn write_local(local: Local, control: &mut Control) -> usize {
    match local.ip {
        IpAddr::V4(ip) => {
            // The kernel takes the source address from `ipi_spec_dst`. The interface is left to the routes.
            let source = libc::in_addr { s_addr: u32::from(ip).to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } };
            write_control(libc::IPPROTO_IP, libc::IP_PKTINFO, info, control, 0)
        }
        IpAddr::V6(ip) => {
            let interface = if ip.is_unicast_link_local() { local.interface } else { 0 };
            let info =
                libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: ip.octets() }, ipi6_ifindex: interface };
            write_control(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info, control, 0)
        }
    }
}

/// Has the kernel cut the message; returns the length of all control messages.
fn write_segment(segment_bytes: usize, control: &mut Control, at: usize) -> usize {
    write_control(libc::SOL_UDP, libc::UDP_SEGMENT, segment_bytes as u16, control, at)
}

/// Writes a control message behind those before `at`; returns where it ends.
fn write_control<T>(level: i32, kind: i32, data: T, control: &mut Control, at: usize) -> usize {
    let bytes = mem::size_of::<T>() as u32;
    // SAFETY: arithmetic on a length alone.
    let (space, length) = unsafe { (libc::CMSG_SPACE(bytes) as usize, libc::CMSG_LEN(bytes) as usize) };
    assert!(at.is_multiple_of(mem::align_of::<libc::cmsghdr>()) && at + space <= CONTROL_BYTES);
    let head = control.0[at..].as_mut_ptr().cast::<libc::cmsghdr>();
    // SAFETY: `head` is aligned for a `cmsghdr` and has room for `space` octets, as was just made sure.
    unsafe { *head = libc::cmsghdr { cmsg_len: length, cmsg_level: level, cmsg_type: kind } };
    // SAFETY: the data begins behind the head; `length` octets from `head` on are ours.
    unsafe { ptr::write_unaligned(libc::CMSG_DATA(head).cast::<T>(), data) };
    at + space
}

/// What the kernel takes (UDP_MAX_SEGMENTS), and what a datagram can hold with room to spare for headers.
const MOST_SEGMENTS: usize = 64;
const MOST_BYTES: usize = 65_000;
/// Each segment has to pass unfragmented; longer ones would be refused on some paths, and then all on all of them.
const LONGEST_SEGMENT_BYTES: usize = 1232;
/// So often in turn is no accident.
const MOST_REFUSALS: u32 = 16;
/// The control message that gives the size of segments.
const SEGMENT_BYTES: usize = 24;

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::fd::AsFd, time::Duration};

    use super::*;
    use crate::sys::bind_udp;

    fn queue(outbox: &mut Outbox, payload: &[u8], peer: SocketAddr, local: Option<Local>) {
        outbox.buffer().clear();
        outbox.buffer().extend(payload);
        outbox.queue(peer, local);
    }

    fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut buffer = [0; 2048];
        let mut next = || socket.recv(&mut buffer).map(|length| buffer[..length].to_vec()).unwrap();
        (0..count).map(|_| next()).collect()
    }

    /// Of those of one length none comes first.
    fn receive_sorted(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
        let mut datagrams = receive(socket, count);
        datagrams.sort();
        datagrams
    }

    /// Lengths that can be cut from one message, that cannot, and that end one.
    const LENGTHS: [usize; 16] = [40, 40, 40, 30, 30, 40, 0, 50, 50, 50, 50, 50, 1, 1, 1900, 1900];

    #[test]
    fn datagrams_arrive_one_by_one_whatever_their_lengths() {
        for (wildcard, asked) in [("127.0.0.1:0", None), ("0.0.0.0:0", Some("127.0.0.9")), ("[::]:0", Some("::1"))] {
            let server = bind_udp(wildcard.parse().unwrap()).unwrap();
            let local = asked.map(|ip| Local { ip: ip.parse().unwrap(), interface: 0 });
            let any = if wildcard.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
            let clients = [UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap()];
            for cuts in [true, false] {
                let mut outbox = Outbox::new(2 * LENGTHS.len(), 64);
                outbox.cuts = cuts;
                for client in &clients {
                    for (i, length) in LENGTHS.into_iter().enumerate() {
                        queue(&mut outbox, &vec![i as u8; length], client.local_addr().unwrap(), local);
                    }
                }
                outbox.arrange();
                // Of 1900 none is cut; 50 goes with a 40, 40 with a 30, 30 with a 1; 1 alone; and 0 alone.
                assert_eq!(outbox.messages, if cuts { 2 * 7 } else { 2 * LENGTHS.len() });
                assert_eq!(outbox.send_arranged(server.as_fd()), Sent { sent: 2 * LENGTHS.len(), dropped: 0 });
                for client in &clients {
                    let mut expected: Vec<_> = LENGTHS.iter().enumerate().map(|(i, &l)| vec![i as u8; l]).collect();
                    let mut got = receive(client, LENGTHS.len());
                    assert!(got.is_sorted_by_key(|datagram| Reverse(datagram.len())) || !cuts);
                    if cuts {
                        expected.sort();
                        got.sort();
                    }
                    assert_eq!(got, expected, "{wildcard}");
                }
            }
        }
    }

    #[test]
    fn two_replies_to_one_client_leave_as_one() {
        let server = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let clients = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut outbox = Outbox::new(8, 64);
        // Whichever is asked first.
        for (client, lengths) in clients.iter().zip([&[45, 57][..], &[57, 45], &[50]]) {
            for &length in lengths {
                queue(&mut outbox, &vec![0; length], client.local_addr().unwrap(), None);
            }
        }
        outbox.arrange();
        assert_eq!(outbox.messages, 3);
        assert_eq!(outbox.send_arranged(server.as_fd()), Sent { sent: 5, dropped: 0 });
        for (client, lengths) in clients.iter().zip([&[57, 45][..], &[57, 45], &[50]]) {
            let got = receive(client, lengths.len());
            assert!(got.iter().map(Vec::len).eq(lengths.iter().copied()), "{got:?}");
        }
    }

    #[test]
    fn on_a_connected_socket_what_is_of_one_length_leaves_together() {
        let (server, client) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        client.connect(server.local_addr().unwrap()).unwrap();
        let mut outbox = Outbox::new(LENGTHS.len(), 64);
        for _ in 0..2 {
            for (i, length) in LENGTHS.into_iter().enumerate() {
                outbox.buffer().clear();
                outbox.buffer().resize(length, i as u8);
                outbox.queue_connected();
            }
            assert_eq!(outbox.send(client.as_fd()), Sent { sent: LENGTHS.len(), dropped: 0 });
            let mut expected: Vec<Vec<u8>> = LENGTHS.iter().enumerate().map(|(i, &l)| vec![i as u8; l]).collect();
            let mut got = receive(&server, LENGTHS.len());
            assert!(got.is_sorted_by_key(|datagram| Reverse(datagram.len())));
            got.sort();
            expected.sort();
            assert_eq!(got, expected);
        }
    }

    #[test]
    fn what_the_kernel_does_not_cut_is_sent_one_by_one() {
        let server = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = client.local_addr().unwrap();
        let mut outbox = Outbox::new(8, 64);
        let mut send = |is_refused: bool| {
            for i in 0..3 {
                queue(&mut outbox, &[i; 100], peer, None);
            }
            outbox.arrange();
            assert_eq!(outbox.messages, 1);
            if is_refused {
                // More segments than any kernel takes.
                write_segment(1, &mut outbox.slots.controls[0], 0);
            }
            assert_eq!(outbox.send_arranged(server.as_fd()), Sent { sent: 3, dropped: 0 });
            assert_eq!(receive_sorted(&client, 3), [[0; 100], [1; 100], [2; 100]]);
            outbox.cuts
        };
        for _ in 1..MOST_REFUSALS {
            assert!(send(true), "it may be the way to this peer");
        }
        assert!(send(false), "what goes is no refusal");
        for _ in 1..MOST_REFUSALS {
            assert!(send(true));
        }
        assert!(!send(true), "and is not asked to again");
    }

    #[test]
    fn a_message_that_has_no_way_out_drops_all_its_datagrams_and_no_others() {
        let server = bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = client.local_addr().unwrap();
        let mut outbox = Outbox::new(8, 64);
        for (i, peer) in
            [(0, peer), (1, peer), (2, "[::1]:1".parse().unwrap()), (3, "[::1]:1".parse().unwrap()), (4, peer)]
        {
            queue(&mut outbox, &[i; 10], peer, None);
        }
        assert_eq!(outbox.send(server.as_fd()), Sent { sent: 3, dropped: 2 });
        assert_eq!(receive_sorted(&client, 3), [[0; 10], [1; 10], [4; 10]]);
    }
}
