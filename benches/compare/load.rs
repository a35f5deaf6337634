//! Load: so many queries outstanding, each reply checked and followed by the next query.

use std::{
    collections::VecDeque,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use watershed::sys::{Inbox, Outbox, Poller};

use super::traffic;

/// What is asked, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub names: Names,
    /// Over how many rules the names are spread.
    pub rules: u32,
    pub outstanding: usize,
    pub lasts: Duration,
}

/// Which names are asked.
#[derive(Debug, Clone, Copy)]
pub enum Names {
    /// Any of so many, each equally often.
    Any(u32),
    /// Each of these, once.
    Each { first: u32, count: u32 },
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    pub answered: u64,
    /// Replies that are not what the upstream has said.
    pub wrong: u64,
    /// Queries without reply.
    pub lost: u64,
}

struct Client {
    socket: UdpSocket,
    outbox: Outbox,
    /// By id: the number asked and when, if the reply is awaited.
    asked: Vec<Option<(u32, Instant)>>,
    free: VecDeque<u16>,
}

impl Load {
    pub fn run(&self, server: SocketAddr) -> io::Result<Outcome> {
        let clients = self.outstanding.min(CLIENTS);
        let poller = Poller::new()?;
        let new = |number: usize| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.set_nonblocking(true)?;
            socket.connect(server)?;
            poller.add(socket.as_fd(), number as u64)?;
            let share = self.outstanding / clients + usize::from(number < self.outstanding % clients);
            Ok(Client {
                socket,
                outbox: Outbox::new(BATCH, 128),
                asked: vec![None; share],
                free: (0..share as u16).collect(),
            })
        };
        let mut clients = (0..clients).map(new).collect::<io::Result<Vec<Client>>>()?;
        let mut inbox = Inbox::new(BATCH, 1500);
        let mut numbers = self.names.numbers();
        let (mut outcome, mut tokens) = (Outcome::default(), Vec::new());
        let start = Instant::now();
        let mut now = start;
        for client in &mut clients {
            client.ask(&mut numbers, self.rules, now);
        }
        while clients.iter().any(Client::is_waiting) && now - start < self.lasts + PATIENCE {
            poller.wait(&mut tokens, Some(Duration::from_millis(100)))?;
            now = Instant::now();
            let is_over = now - start >= self.lasts;
            for &token in &tokens {
                let client = &mut clients[token as usize];
                client.take_replies(&mut inbox, &mut outcome)?;
                if !is_over {
                    client.ask(&mut numbers, self.rules, now);
                }
            }
            if tokens.is_empty() {
                for client in &mut clients {
                    outcome.lost += client.give_up(now);
                    if !is_over {
                        client.ask(&mut numbers, self.rules, now);
                    }
                }
            }
        }
        outcome.lost += clients.iter().flat_map(|client| client.asked.iter().flatten()).count() as u64;
        Ok(outcome)
    }
}

impl Names {
    fn numbers(self) -> Box<dyn Iterator<Item = u32>> {
        match self {
            Self::Each { first, count } => Box::new(first..first + count),
            Self::Any(count) => {
                let mut rng = StdRng::seed_from_u64(rand::rng().next_u64());
                Box::new(std::iter::repeat_with(move || rng.random_range(0..count)))
            }
        }
    }
}

impl Client {
    fn is_waiting(&self) -> bool {
        self.free.len() < self.asked.len()
    }

    /// Asks as much as may be outstanding.
    fn ask(&mut self, numbers: &mut impl Iterator<Item = u32>, rules: u32, now: Instant) {
        while let Some(id) = self.free.pop_front() {
            let Some(number) = numbers.next() else {
                self.free.push_front(id);
                break;
            };
            if self.outbox.is_full() {
                self.outbox.send(self.socket.as_fd());
            }
            traffic::query(number, rules, id, self.outbox.buffer());
            self.outbox.queue_connected();
            self.asked[usize::from(id)] = Some((number, now));
        }
        self.outbox.send(self.socket.as_fd());
    }

    fn take_replies(&mut self, inbox: &mut Inbox, outcome: &mut Outcome) -> io::Result<()> {
        let received = inbox.receive(self.socket.as_fd())?;
        for datagram in (0..received).filter_map(|slot| inbox.get(slot)) {
            let id = datagram.payload.first_chunk().map_or(u16::MAX, |id| u16::from_be_bytes(*id));
            let Some((number, _)) = self.asked.get_mut(usize::from(id)).and_then(Option::take) else { continue };
            outcome.answered += 1;
            outcome.wrong += u64::from(!traffic::is_reply(datagram.payload, number));
            self.free.push_back(id);
        }
        Ok(())
    }

    /// Waits no longer for what was asked long ago; says for how many.
    fn give_up(&mut self, now: Instant) -> u64 {
        let mut given_up = 0;
        for (id, asked) in (0..).zip(&mut self.asked) {
            if asked.take_if(|(_, at)| now - *at > PATIENCE).is_some() {
                given_up += 1;
                self.free.push_back(id);
            }
        }
        given_up
    }
}

const CLIENTS: usize = 16;
const BATCH: usize = 64;
/// How long a reply is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
