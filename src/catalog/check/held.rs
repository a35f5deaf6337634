//! What a probe keeps of a response, charged to the host that is checked.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connect::Error;
use crate::budget::{Account, Charge};

/// Bytes that a probe keeps.
///
/// The first [`FREE_BYTES`] are not charged: every probe may keep as much, and no usual response needs more. So a flood of
/// large responses fails no check with a usual one.
pub(super) struct Held {
    account: Account,
    charge: Charge,
    /// The part that does not change while a buffer grows.
    pub fixed: usize,
}

impl Held {
    /// Nothing yet.
    pub fn new(account: &Account) -> Result<Self, Error> {
        let charge = account.charge(0).map_err(|_| Error::NoRoom)?;
        Ok(Self { account: account.clone(), charge, fixed: 0 })
    }

    /// Makes room for `more` bytes in a buffer.
    pub fn reserve(&mut self, buffer: &mut Vec<u8>, more: usize) -> Result<(), Error> {
        if buffer.capacity() - buffer.len() < more {
            let room = buffer.len() + more.max(buffer.len());
            self.keep(self.fixed + room)?;
            buffer.reserve_exact(room - buffer.len());
        }
        Ok(())
    }

    /// Returns when what is kept has to be dropped, because its host has exceeded a limit.
    pub fn revoked(&self) -> impl Future<Output = ()> + use<> {
        let account = self.account.clone();
        async move { account.revoked().await }
    }

    fn keep(&mut self, bytes: usize) -> Result<(), Error> {
        let charged = bytes.saturating_sub(FREE_BYTES);
        if charged == self.charge.bytes() { Ok(()) } else { self.charge.resize(charged).map_err(|_| Error::NoRoom) }
    }
}

/// A stream for a protocol that keeps a part of what it has read: all of it counts, up to what the protocol keeps at most.
pub(super) struct Metered<S> {
    stream: S,
    held: Held,
    most: usize,
    read: usize,
}

impl<S> Metered<S> {
    /// A stream whose reader keeps `most` bytes at most.
    pub fn new(stream: S, held: Held, most: usize) -> Self {
        Self { stream, held, most, read: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        self.read = self.read.saturating_add(buffer.filled().len() - before);
        let kept = self.read.min(self.most);
        Poll::Ready(self.held.keep(kept).map_err(io::Error::other))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What every probe may keep: an output, and a line of a header.
pub(super) const FREE_BYTES: usize = 16 << 10;
