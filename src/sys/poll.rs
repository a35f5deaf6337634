//! Waiting for many sockets at once: `epoll`, level-triggered, and the `eventfd` that ends a wait from outside.
#![allow(unsafe_code)]

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::Arc,
    time::Duration,
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
        // SAFETY: takes no pointer; the result is checked.
        let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `epoll` was just opened and nobody else owns it.
        Ok(Self { epoll: unsafe { OwnedFd::from_raw_fd(epoll) } })
    }

    /// Adds a socket; `token` is what [`wait`](Self::wait) reports when it can be read, or has failed.
    pub fn add(&self, socket: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: both descriptors are open while borrowed, and `event` lives through the call.
        check(unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, socket.as_raw_fd(), &raw mut event)
        })?;
        Ok(())
    }

    /// Takes a socket out of the set.
    pub fn remove(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        // SAFETY: both descriptors are open while borrowed; the event is not used by EPOLL_CTL_DEL.
        check(unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, socket.as_raw_fd(), ptr::null_mut())
        })?;
        Ok(())
    }

    /// Waits until a socket can be read or `timeout` is over, whole milliseconds rounded up; `None` waits for ever.
    ///
    /// `tokens` is emptied and then holds the tokens of the sockets to look at. A signal ends the wait early.
    pub fn wait(&self, tokens: &mut Vec<u64>, timeout: Option<Duration>) -> io::Result<()> {
        tokens.clear();
        // Three kilobytes, of which a wait seldom needs more than the beginning: not worth filling with zeros.
        let mut events = [const { MaybeUninit::<libc::epoll_event>::uninit() }; EVENTS_PER_WAIT];
        let millis = timeout.map_or(-1, |t| t.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
        // SAFETY: `events` has room for as many events as the third argument says, and lives through the call.
        let count = check(unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr().cast(), EVENTS_PER_WAIT as i32, millis)
        });
        match count {
            Ok(count) => tokens.extend(events.iter().take(count as usize).map(|event| {
                // SAFETY: the kernel has written as many events as it has counted.
                unsafe { event.assume_init_ref() }.u64
            })),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Waker {
    /// Not yet woken.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointer; the result is checked.
        let event = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: `event` was just opened and nobody else owns it.
        Ok(Self { event: Arc::new(unsafe { OwnedFd::from_raw_fd(event) }) })
    }

    /// Makes the descriptor readable until [`clear`](Self::clear).
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight octets are read from `one`, which has eight. A full counter is awake already.
        unsafe { libc::write(self.event.as_raw_fd(), (&raw const one).cast(), 8) };
    }

    /// Makes the descriptor unreadable again.
    pub fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight octets are written to `count`, which has eight. An empty counter is an error nobody minds.
        unsafe { libc::read(self.event.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The error number of a call that returned less than zero.
fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// More ready sockets than this are reported by the next wait.
const EVENTS_PER_WAIT: usize = 256;

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
