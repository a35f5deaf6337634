//! Messages to another process that bring it a descriptor (SCM_RIGHTS, unix(7)).

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    slice,
    time::Duration,
};

use rustix::{
    io::retry_on_intr,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};
use socket2::SockRef;

/// Two joined sockets. A message arrives as it was sent, whole, and the end of one process is seen by the other.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Bounds how long a message is waited for, in either direction.
pub fn set_message_timeout(socket: &impl AsFd, timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))
}

/// Sends a message, which must not be empty, on a connected socket, with a descriptor that the receiver is to have too.
pub fn send_message(socket: impl AsFd, text: &[u8], descriptor: Option<impl AsFd>) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut room);
    let descriptor = descriptor.as_ref().map(AsFd::as_fd);
    if let Some(descriptor) = &descriptor
        && !control.push(SendAncillaryMessage::ScmRights(slice::from_ref(descriptor)))
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // With a timeout set, a signal interrupts the call whatever its handler was installed with (signal(7)).
    retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// Waits for the next message, which is cut to [`MOST_MESSAGE_BYTES`], and takes the descriptor that it brings; `None` at the end.
pub fn receive_message(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut text = vec![0; MOST_MESSAGE_BYTES];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let mut receive = || recvmsg(&socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC);
    let received = retry_on_intr(&mut receive)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    text.truncate(received.bytes);
    let mut descriptor = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut brought) = message {
            descriptor = brought.next();
        }
    }
    Ok(Some((text, descriptor)))
}

/// The longest message that can be received.
pub const MOST_MESSAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::unix::thread::JoinHandleExt, thread};

    use super::*;

    #[test]
    #[allow(unsafe_code)]
    fn a_signal_does_not_end_the_waiting_for_a_message() {
        extern "C" fn ignore(_: libc::c_int) {}
        // SAFETY: the handler does nothing.
        unsafe { libc::signal(libc::SIGUSR1, ignore as extern "C" fn(libc::c_int) as libc::sighandler_t) };
        let (ours, theirs) = message_pair().unwrap();
        set_message_timeout(&theirs, Duration::from_secs(60)).unwrap();
        let waiting = thread::spawn(move || receive_message(&theirs));
        let thread = waiting.as_pthread_t();
        for _ in 0..50 {
            // SAFETY: the thread is not joined yet.
            assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
            thread::sleep(Duration::from_millis(2));
        }
        send_message(&ours, b"late", None::<&UdpSocket>).unwrap();
        assert_eq!(waiting.join().unwrap().unwrap().unwrap().0, b"late");
    }

    #[test]
    fn a_message_brings_a_descriptor_and_the_end_is_seen() {
        let (ours, theirs) = message_pair().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        send_message(&ours, b"with", Some(&socket)).unwrap();
        send_message(&ours, b"without", None::<&UdpSocket>).unwrap();
        drop(ours);
        let (text, descriptor) = receive_message(&theirs).unwrap().unwrap();
        let brought = UdpSocket::from(descriptor.unwrap());
        assert_eq!((&*text, brought.local_addr().unwrap()), (&b"with"[..], socket.local_addr().unwrap()));
        let (text, descriptor) = receive_message(&theirs).unwrap().unwrap();
        assert_eq!((&*text, descriptor.is_none()), (&b"without"[..], true));
        assert!(receive_message(&theirs).unwrap().is_none());
    }

    #[test]
    fn a_message_that_does_not_come_is_not_waited_for_any_longer_than_told() {
        let (ours, _theirs) = message_pair().unwrap();
        set_message_timeout(&ours, Duration::from_millis(1)).unwrap();
        assert_eq!(receive_message(&ours).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
