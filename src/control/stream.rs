//! The stream of an HTTP connection: what comes in is charged to the connection, and a client that does not read is cut off.
//!
//! hyper keeps what has come of a head that is not complete, and what a client has not taken of a response, for as long as
//! the stream lets it. So the stream charges the bytes of an incomplete head beyond the first few, and fails when the client
//! does not take some part of a response in time.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::budget::{Account, Charge};

/// The stream.
pub(super) struct Stream {
    inner: TcpStream,
    unread: Unread,
    charge: Charge,
    /// How long the client may take to read some part of a response.
    patience: Duration,
    /// Runs while the client has to read.
    deadline: Option<Pin<Box<Sleep>>>,
    /// What the client has read since the deadline was set.
    taken: usize,
}

/// How many bytes have come that no request has been made of yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Unread(Arc<AtomicUsize>);

impl Unread {
    /// A request was made of them, or its response is complete.
    pub fn reset(&self) {
        self.0.store(0, Relaxed);
    }
}

impl Stream {
    /// The stream of a connection with this account, and the count of what is unread there.
    pub fn new(inner: TcpStream, account: &Account, patience: Duration) -> io::Result<(Self, Unread)> {
        let unread = Unread::default();
        let charge = account.charge(0).map_err(over_limit)?;
        Ok((Self { inner, unread: unread.clone(), charge, patience, deadline: None, taken: 0 }, unread))
    }

    fn count_unread(&mut self, bytes: usize) -> io::Result<()> {
        let unread = self.unread.0.fetch_add(bytes, Relaxed) + bytes;
        let held = if unread > FREE_BYTES { unread.min(MOST_HEAD_BYTES) } else { 0 };
        if held == self.charge.bytes() { Ok(()) } else { self.charge.resize(held).map_err(over_limit) }
    }

    /// Passes on what a write has come to, unless the client takes too long.
    fn limit<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            return outcome;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(self.patience)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn note_taken(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.taken += bytes;
            if self.taken >= PART_BYTES {
                (self.deadline, self.taken) = (None, 0);
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.count_unread(buffer.filled().len() - before)?;
        outcome
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.note_taken(&written);
        self.limit(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.note_taken(&written);
        self.limit(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// hyper calls it when all of what there is to write is written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        (self.deadline, self.taken) = (None, 0);
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

fn over_limit(_: crate::budget::Exceeded) -> io::Error {
    io::Error::other("more data waits for this connection than the limits allow")
}

/// The longest head of a request, and the room for what is read at a time of a body.
pub(super) const MOST_HEAD_BYTES: usize = 16 << 10;
/// What is not charged: most heads are shorter.
const FREE_BYTES: usize = 4 << 10;
/// How much of a response a client has to read at a time for the deadline to be set again.
const PART_BYTES: usize = 64 << 10;
