//! One client of the load: a socket or a connection, and the queries that it waits for.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use watershed::sys::{Inbox, Outbox, Poller};

use super::{load::Outcome, traffic};

/// How queries travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    /// One connection for each client, which is opened anew whenever the server ends it.
    Tcp,
}

pub struct Client {
    line: Line,
    rules: u32,
    /// By id: the number asked and when, if the reply is awaited.
    asked: Vec<Option<(u32, Instant)>>,
    free: VecDeque<u16>,
}

enum Line {
    Datagrams { socket: UdpSocket, outbox: Outbox },
    Stream { stream: TcpStream, unsent: Vec<u8>, received: Vec<u8>, message: Vec<u8> },
}

impl Client {
    pub fn open(transport: Transport, server: SocketAddr, share: usize, rules: u32) -> io::Result<Self> {
        let line = Line::open(transport, server)?;
        Ok(Self { line, rules, asked: vec![None; share], free: (0..share as u16).collect() })
    }

    /// Has `poller` report under this number that replies are there.
    pub fn join(&self, poller: &Poller, number: usize) -> io::Result<()> {
        match &self.line {
            Line::Datagrams { socket, .. } => poller.add(socket.as_fd(), number as u64),
            Line::Stream { stream, .. } => poller.add(stream.as_fd(), number as u64),
        }
    }

    pub fn is_waiting(&self) -> bool {
        self.free.len() < self.asked.len()
    }

    pub fn outstanding(&self) -> u64 {
        self.asked.iter().flatten().count() as u64
    }

    /// Asks as much as may be outstanding.
    pub fn ask_all(&mut self, numbers: &mut impl Iterator<Item = u32>, now: Instant) -> io::Result<()> {
        while !self.free.is_empty() {
            let Some(number) = numbers.next() else { break };
            self.ask(number, now)?;
        }
        self.flush()
    }

    /// Asks for a number, at the next flush; false if no more may be outstanding.
    pub fn ask(&mut self, number: u32, now: Instant) -> io::Result<bool> {
        let Some(id) = self.free.pop_front() else { return Ok(false) };
        self.line.queue(number, self.rules, id);
        self.asked[usize::from(id)] = Some((number, now));
        Ok(true)
    }

    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.line {
            Line::Datagrams { socket, outbox } => {
                outbox.send(socket.as_fd());
            }
            Line::Stream { stream, unsent, .. } => {
                if unsent.is_empty() {
                    return Ok(());
                }
                match stream.write(unsent) {
                    Ok(count) => drop(unsent.drain(..count)),
                    // An end of the connection is seen where replies are read.
                    Err(error) if is_end(&error) || error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Takes what is there, with a note of how long it was waited for if `is_timed`; false if the server has ended the
    /// connection.
    pub fn take_replies(
        &mut self,
        inbox: &mut Inbox,
        now: Instant,
        is_timed: bool,
        outcome: &mut Outcome,
    ) -> io::Result<bool> {
        let (asked, free) = (&mut self.asked, &mut self.free);
        let mut settle = |message: &[u8]| {
            let id = message.first_chunk().map_or(u16::MAX, |id| u16::from_be_bytes(*id));
            let Some((number, at)) = asked.get_mut(usize::from(id)).and_then(Option::take) else { return };
            outcome.answered += 1;
            if traffic::is_failure(message) {
                outcome.failed += 1;
            } else if !traffic::is_reply(message, number) {
                outcome.wrong += 1;
            } else if is_timed {
                outcome.waits.push(now - at);
            }
            free.push_back(id);
        };
        match &mut self.line {
            Line::Datagrams { socket, .. } => {
                let received = inbox.receive(socket.as_fd())?;
                (0..received).filter_map(|slot| inbox.get(slot)).for_each(|datagram| settle(datagram.payload));
                Ok(true)
            }
            Line::Stream { stream, received, .. } => {
                let mut buffer = [0; 1 << 14];
                let is_open = match stream.read(&mut buffer) {
                    Ok(count) => {
                        received.extend(&buffer[..count]);
                        count > 0
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => true,
                    Err(error) if is_end(&error) => false,
                    Err(error) => return Err(error),
                };
                let mut taken = 0;
                while let Some((length, rest)) = received[taken..].split_first_chunk()
                    && let Some(message) = rest.get(..usize::from(u16::from_be_bytes(*length)))
                {
                    settle(message);
                    taken += 2 + message.len();
                }
                received.drain(..taken);
                Ok(is_open)
            }
        }
    }

    /// Opens the connection anew, and asks again what was not answered.
    pub fn reopen(&mut self, server: SocketAddr, now: Instant) -> io::Result<()> {
        self.line = Line::open(Transport::Tcp, server)?;
        for (id, asked) in (0..).zip(&mut self.asked) {
            if let Some((number, at)) = asked {
                self.line.queue(*number, self.rules, id);
                *at = now;
            }
        }
        self.flush()
    }

    /// Waits no longer for what was asked long ago; says for how many.
    pub fn give_up(&mut self, now: Instant, patience: Duration) -> u64 {
        let mut given_up = 0;
        for (id, asked) in (0..).zip(&mut self.asked) {
            if asked.take_if(|(_, at)| now - *at > patience).is_some() {
                given_up += 1;
                self.free.push_back(id);
            }
        }
        given_up
    }
}

impl Line {
    fn open(transport: Transport, server: SocketAddr) -> io::Result<Self> {
        Ok(match transport {
            Transport::Udp => {
                let socket = watershed::sys::connect_udp(server)?;
                Self::Datagrams { socket, outbox: Outbox::new(BATCH, 128) }
            }
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                Self::Stream { stream, unsent: Vec::new(), received: Vec::new(), message: Vec::new() }
            }
        })
    }

    fn queue(&mut self, number: u32, rules: u32, id: u16) {
        match self {
            Self::Datagrams { socket, outbox } => {
                if outbox.is_full() {
                    outbox.send(socket.as_fd());
                }
                traffic::query(number, rules, id, outbox.buffer());
                outbox.queue_connected();
            }
            Self::Stream { unsent, message, .. } => {
                traffic::query(number, rules, id, message);
                unsent.extend((message.len() as u16).to_be_bytes());
                unsent.extend(&*message);
            }
        }
    }
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}

pub const BATCH: usize = 64;
