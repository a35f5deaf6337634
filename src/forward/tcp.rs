//! A TCP or TLS connection that many queries share: pipelined, with messages framed by their length (RFC 7766 §6.2).
//!
//! A task owns the stream. It gives each query an id that no other query on this connection has, and the reply its
//! own id back. It ends when the stream does, when it has had nothing to do for a while, or when nobody holds its
//! [`Sender`] any more. Queries that are open at the end are told how it came, for most ends are no fault of theirs.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{OwnedSemaphorePermit, mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use super::pace::Pace;
use crate::wire::{MAX_MESSAGE_BYTES, put_u16, read_frame, read_u16, write_frame};

/// Where queries for a connection are handed in. The queue holds 64; when it is full, queries wait before it.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    queries: mpsc::Sender<Query>,
    /// How many queries the connection has been given.
    given: Arc<AtomicUsize>,
    pace: Arc<Pace>,
}

/// How a connection has ended before the answer to a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The server has closed it in order.
    Closed,
    /// The server has reset it after it had answered something.
    Reset,
    /// It has failed: reset with nothing answered, or an error of TLS.
    Broken,
    /// Nothing was heard for too long.
    Idle,
}

#[derive(Debug)]
struct Query {
    wire: Vec<u8>,
    reply: oneshot::Sender<Result<Vec<u8>, End>>,
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
    answered: usize,
    pace: Arc<Pace>,
}

struct Waiting {
    id: u16,
    reply: oneshot::Sender<Result<Vec<u8>, End>>,
}

/// Starts the task of a connection, which is closed when nothing has been said on it for `max_idle`. It holds the permit as long
/// as it may have queries open.
pub(super) fn spawn(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    max_idle: Duration,
    pace: Arc<Pace>,
    permit: OwnedSemaphorePermit,
) -> Sender {
    let (sender, queries) = mpsc::channel(64);
    let mut line = Line {
        stream,
        in_flight: HashMap::new(),
        next_id: rand::random(),
        incoming: Vec::with_capacity(4096),
        outgoing: Vec::new(),
        is_unflushed: false,
        answered: 0,
        pace: Arc::clone(&pace),
    };
    tokio::spawn(async move {
        let end = line.run(queries, max_idle).await;
        for (_, waiting) in line.in_flight.drain() {
            // An error means that nobody waits any more.
            let _ = waiting.reply.send(Err(end));
        }
        drop(permit);
        line.learn_limit(end).await;
    });
    Sender { queries: sender, given: Arc::default(), pace }
}

impl Sender {
    /// True if the task has ended, or ends.
    pub fn is_closed(&self) -> bool {
        self.queries.is_closed()
    }

    /// Takes one of the places for queries that the server answers on one connection; false if there is none left.
    pub fn take_place(&self) -> bool {
        let most = self.pace.most_queries();
        self.given.fetch_update(Relaxed, Relaxed, |given| (given < most).then_some(given + 1)).is_ok()
    }

    /// Sends a query and waits for the message that has its id.
    pub async fn exchange(&self, query: &[u8]) -> Result<Vec<u8>, End> {
        let (reply, response) = oneshot::channel();
        // Nothing of a query that was not taken has been sent.
        self.queries.send(Query { wire: query.to_vec(), reply }).await.map_err(|_| End::Reset)?;
        response.await.map_err(|_| End::Reset)?
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    async fn run(&mut self, mut queries: mpsc::Receiver<Query>, max_idle: Duration) -> End {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        let mut idle_at = Instant::now() + max_idle;
        let (mut is_held, mut is_writable) = (true, true);
        while is_held || !self.in_flight.is_empty() {
            // Every branch can be dropped half-way without losing an octet.
            tokio::select! {
                query = queries.recv(), if is_held && self.in_flight.len() < MAX_IN_FLIGHT => match query {
                    Some(query) => {
                        enqueue(query, &mut self.in_flight, &mut self.next_id, &mut self.outgoing);
                        idle_at = Instant::now() + max_idle;
                    }
                    None => {
                        is_held = false;
                        idle_at = idle_at.min(Instant::now() + MAX_DRAIN);
                    }
                },
                written = write_or_flush(&mut writer, &self.outgoing),
                    if is_writable && (self.is_unflushed || !self.outgoing.is_empty()) =>
                {
                    match written {
                        Ok(written) => {
                            self.is_unflushed = !self.outgoing.is_empty();
                            self.outgoing.drain(..written);
                        }
                        // What the server had sent before it closed may still be there to be read.
                        Err(_) => {
                            (is_held, is_writable) = (false, false);
                            queries.close();
                            idle_at = Instant::now() + MAX_LEFT;
                        }
                    }
                }
                read = reader.read_buf(&mut self.incoming) => match read {
                    Ok(1..) => {
                        let answered = take_frames(&mut self.incoming, &mut self.in_flight);
                        if answered > 0 {
                            self.answered += answered;
                            self.pace.note_answer();
                        }
                        if is_held {
                            idle_at = Instant::now() + max_idle;
                        }
                    }
                    ended => {
                        queries.close();
                        let end = match ended {
                            Ok(_) => End::Closed,
                            // TLS without its own end is as good as any here: each message says how long it is.
                            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => End::Closed,
                            Err(_) if self.answered > 0 => End::Reset,
                            Err(_) => End::Broken,
                        };
                        if end != End::Broken {
                            let has_open = self.in_flight.values().any(|waiting| !waiting.reply.is_closed());
                            self.pace.note_closed(self.answered, has_open, Instant::now());
                        }
                        return end;
                    }
                },
                () = sleep_until(idle_at) => {
                    return if is_writable { End::Idle } else if self.answered > 0 { End::Reset } else { End::Broken };
                }
            }
        }
        End::Idle
    }

    /// Finds out whether the server closes a connection that has had as many queries as it may.
    async fn learn_limit(mut self, end: End) {
        if end != End::Idle || self.answered < self.pace.most_queries() {
            return;
        }
        let is_closed = timeout(CLOSING, self.stream.read(&mut [0])).await.is_ok();
        if !is_closed {
            self.pace.note_left_open(self.answered);
        }
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

/// Takes the whole frames off `incoming` and gives them to those who wait for them; how many there were.
fn take_frames(incoming: &mut Vec<u8>, in_flight: &mut HashMap<u16, Waiting>) -> usize {
    let (mut at, mut answered) = (0, 0);
    while let Some((frame, end)) = read_frame(incoming, at) {
        if let Some(waiting) = read_u16(frame, 0).and_then(|id| in_flight.remove(&id)) {
            let mut message = frame.to_vec();
            put_u16(&mut message, 0, waiting.id);
            // An error means that nobody waits any more.
            let _ = waiting.reply.send(Ok(message));
            answered += 1;
        }
        at = end;
    }
    incoming.drain(..at);
    answered
}

/// How long a connection that gets no more queries waits for the answers to those it has: until all have been given up.
const MAX_DRAIN: Duration = Duration::from_secs(4);
/// How long what is left in a connection that cannot be written is read: it has arrived already.
const MAX_LEFT: Duration = Duration::from_millis(200);
/// How soon a server closes a connection after its last answer.
const CLOSING: Duration = Duration::from_millis(100);
const MAX_IN_FLIGHT: usize = 4096;
/// Above this, those that are not waited for any more are looked for.
const PRUNE_ABOVE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn spawn_line(stream: tokio::io::DuplexStream, max_idle: Duration) -> Sender {
        let permit = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        spawn(stream, max_idle, Arc::default(), permit)
    }

    const A_MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn frames_may_come_in_pieces_and_several_at_once() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let sender = spawn_line(ours, A_MINUTE);
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
        let sender = spawn_line(ours, Duration::ZERO);
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
        assert!(sender.is_closed());
    }

    #[tokio::test]
    async fn a_connection_that_nobody_holds_is_closed() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        drop(spawn_line(ours, A_MINUTE));
        assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0);
    }
}
