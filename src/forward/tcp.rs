//! A TCP or TLS connection that many queries share: pipelined, with messages framed by their length (RFC 7766 §6.2).
//!
//! A task owns the stream. It gives each query an id that no other query on this connection has, and the reply its
//! own id back. It ends when the stream does, when it has had nothing to do for a while, or when nobody holds its
//! [`Sender`] any more.

use std::{collections::HashMap, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until},
};

use super::transport::Error;
use crate::wire::{MAX_MESSAGE_BYTES, put_u16, read_frame, read_u16, write_frame};

/// Where queries for a connection are handed in. The queue holds 64; when it is full, queries wait before it.
#[derive(Debug, Clone)]
pub(super) struct Sender(mpsc::Sender<Query>);

#[derive(Debug)]
struct Query {
    wire: Vec<u8>,
    reply: oneshot::Sender<Vec<u8>>,
}

/// The connection from within.
struct Line<S> {
    stream: S,
    in_flight: HashMap<u16, Waiting>,
    next_id: u16,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// Whether something may have been written that the stream still holds back, as TLS does.
    is_unflushed: bool,
}

struct Waiting {
    id: u16,
    reply: oneshot::Sender<Vec<u8>>,
}

/// Starts the task of a connection, which is closed when nothing has been said on it for `max_idle`.
pub(super) fn spawn(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, max_idle: Duration) -> Sender {
    let (sender, queries) = mpsc::channel(64);
    let line = Line {
        stream,
        in_flight: HashMap::new(),
        next_id: rand::random(),
        incoming: Vec::with_capacity(4096),
        outgoing: Vec::new(),
        is_unflushed: false,
    };
    tokio::spawn(async move {
        // Those in flight learn of the end, whatever it was, by their channels' closing.
        let _ = line.run(queries, max_idle).await;
    });
    Sender(sender)
}

impl Sender {
    /// Whether the task has ended.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Sends a query and waits for the message that has its id.
    pub async fn exchange(&self, query: &[u8]) -> Result<Vec<u8>, Error> {
        let (reply, response) = oneshot::channel();
        self.0.send(Query { wire: query.to_vec(), reply }).await.map_err(|_| Error::Closed)?;
        response.await.map_err(|_| Error::Closed)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    async fn run(mut self, mut queries: mpsc::Receiver<Query>, max_idle: Duration) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let mut idle_at = Instant::now() + max_idle;
        let mut is_held = true;
        while is_held || !self.in_flight.is_empty() {
            // Every branch can be dropped half-way without losing an octet.
            tokio::select! {
                query = queries.recv(), if is_held && self.in_flight.len() < MAX_IN_FLIGHT => match query {
                    Some(query) => {
                        enqueue(query, &mut self.in_flight, &mut self.next_id, &mut self.outgoing);
                        idle_at = Instant::now() + max_idle;
                    }
                    None => is_held = false,
                },
                written = write_or_flush(&mut writer, &self.outgoing), if self.is_unflushed || !self.outgoing.is_empty() => {
                    self.is_unflushed = !self.outgoing.is_empty();
                    self.outgoing.drain(..written?);
                }
                read = reader.read_buf(&mut self.incoming) => {
                    if read? == 0 {
                        return Ok(());
                    }
                    take_frames(&mut self.incoming, &mut self.in_flight);
                    idle_at = Instant::now() + max_idle;
                }
                () = sleep_until(idle_at) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// Writes some of it, or if there is nothing, what the stream holds back.
async fn write_or_flush(writer: &mut (impl AsyncWrite + Unpin), outgoing: &[u8]) -> io::Result<usize> {
    match outgoing {
        [] => writer.flush().await.map(|()| 0),
        _ => writer.write(outgoing).await,
    }
}

/// Gives the query an id of this connection and appends its frame to `outgoing`.
fn enqueue(query: Query, in_flight: &mut HashMap<u16, Waiting>, next_id: &mut u16, outgoing: &mut Vec<u8>) {
    if in_flight.len() >= PRUNE_ABOVE {
        in_flight.retain(|_, waiting| !waiting.reply.is_closed());
    }
    // Far fewer are in flight than there are ids. That they can be guessed is no matter on a stream.
    while in_flight.contains_key(next_id) {
        *next_id = next_id.wrapping_add(1);
    }
    let Query { mut wire, reply } = query;
    let Some(id) = read_u16(&wire, 0).filter(|_| wire.len() <= MAX_MESSAGE_BYTES) else { return };
    put_u16(&mut wire, 0, *next_id);
    write_frame(&wire, outgoing);
    in_flight.insert(*next_id, Waiting { id, reply });
    *next_id = next_id.wrapping_add(1);
}

/// Takes the whole frames off `incoming` and gives them to those who wait for them.
fn take_frames(incoming: &mut Vec<u8>, in_flight: &mut HashMap<u16, Waiting>) {
    let mut at = 0;
    while let Some((frame, end)) = read_frame(incoming, at) {
        if let Some(waiting) = read_u16(frame, 0).and_then(|id| in_flight.remove(&id)) {
            let mut message = frame.to_vec();
            put_u16(&mut message, 0, waiting.id);
            // An error means that nobody waits any more.
            let _ = waiting.reply.send(message);
        }
        at = end;
    }
    incoming.drain(..at);
}

const MAX_IN_FLIGHT: usize = 4096;
/// Above this, those that are not waited for any more are looked for.
const PRUNE_ABOVE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const A_MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn frames_may_come_in_pieces_and_several_at_once() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let sender = spawn(ours, A_MINUTE);
        let (first, second) = (sender.exchange(b"\x00\x07first"), sender.exchange(b"\x00\x07second"));
        let server = async {
            let mut frames = vec![0; 2 + 7 + 2 + 8];
            theirs.read_exact(&mut frames).await.unwrap();
            let stranger = [0, 3, frames[2].wrapping_add(9), frames[3], 0];
            theirs.write_all(&stranger).await.unwrap();
            for piece in frames.chunks(5) {
                theirs.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (first, second, ()) = tokio::join!(first, second, server);
        assert_eq!(first.unwrap(), b"\x00\x07first");
        assert_eq!(second.unwrap(), b"\x00\x07second");
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let sender = spawn(ours, Duration::ZERO);
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        assert!(sender.is_closed());
    }

    #[tokio::test]
    async fn a_connection_that_nobody_holds_is_closed() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        drop(spawn(ours, A_MINUTE));
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
    }
}
