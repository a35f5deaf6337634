//! Waiting for many sockets at once: `epoll`, level-triggered, and the `eventfd` that ends a wait from outside.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::{Errno, read, write},
};

/// A set of sockets to wait for until one can be read.
///
/// A socket that is closed leaves the set by itself, unless its descriptor was duplicated.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

/// Ends the wait of a [`Poller`] it was added to; clones wake the same one.
#[derive(Debug, Clone)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Adds a socket; `token` is what [`wait`](Self::wait) reports when it can be read, or has failed.
    pub fn add(&self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(token), epoll::EventFlags::IN)?)
    }

    /// Takes a socket out of the set.
    pub fn remove(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, socket)?)
    }

    /// Waits until a socket can be read or `timeout` is over, whole milliseconds rounded up; `None` waits for ever.
    ///
    /// `tokens` is emptied and then holds the tokens of the sockets to look at. A signal ends the wait early.
    pub fn wait(&self, tokens: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        tokens.clear();
        // Three kilobytes, of which a wait seldom needs more than the beginning: not worth filling with zeros.
        let mut events = [const { MaybeUninit::uninit() }; EVENTS_PER_WAIT];
        let timeout = timeout.map(|timeout| timeout.min(LONGEST_WAIT)).map(|timeout| Timespec {
            tv_sec: timeout.as_secs().cast_signed(),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok((ready, _)) => tokens.extend(ready.iter().map(|event| event.data.u64())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Waker {
    /// Not yet woken.
    pub fn new() -> io::Result<Self> {
        Ok(Self { event: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?) })
    }

    /// Makes the descriptor readable until [`clear`](Self::clear).
    pub fn wake(&self) {
        // The write fails only if the counter is full. The descriptor is readable then.
        let _ = write(&self.event, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable again.
    pub fn clear(&self) {
        // The read fails only if the counter is zero. The descriptor is unreadable then.
        let _ = read(&self.event, &mut [0; 8]);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// More ready sockets than this are reported by the next wait.
const EVENTS_PER_WAIT: usize = 256;
/// The longest timeout that every kernel takes: it counts milliseconds in an `int` (epoll_wait(2)).
const LONGEST_WAIT: Duration = Duration::from_millis(i32::MAX as u64);

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn a_wait_reports_what_can_be_read_until_it_is_read() {
        let poller = Poller::new().unwrap();
        let waker = Waker::new().unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        poller.add(socket.as_fd(), 7).unwrap();
        poller.add(waker.as_fd(), 8).unwrap();
        let mut tokens = vec![1];
        poller.wait(&mut tokens, Some(Duration::ZERO)).unwrap();
        assert!(tokens.is_empty());
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        for _ in 0..2 {
            poller.wait(&mut tokens, None).unwrap();
            assert_eq!(tokens, [7]);
        }
        socket.recv(&mut [0; 8]).unwrap();
        waker.clone().wake();
        poller.wait(&mut tokens, None).unwrap();
        assert_eq!(tokens, [8]);
        waker.clear();
        poller.remove(socket.as_fd()).unwrap();
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        poller.wait(&mut tokens, Some(Duration::ZERO)).unwrap();
        assert!(tokens.is_empty());
    }
}
