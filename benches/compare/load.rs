//! Load: so many queries outstanding, or so many in a second, each reply checked.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use watershed::sys::{Inbox, Poller};

use super::{
    client::{BATCH, Client, Transport},
    traffic::NEW_NAMES,
};

/// What is asked, how, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub names: Names,
    /// Over how many rules the names are spread.
    pub rules: u32,
    pub transport: Transport,
    /// Sockets or connections that take turns.
    pub clients: usize,
    /// At most; without a pace there are always so many.
    pub outstanding: usize,
    pub pace: Option<Pace>,
    pub lasts: Duration,
    /// How long a reply is waited for.
    pub patience: Duration,
}

/// Which names are asked.
#[derive(Debug, Clone, Copy)]
pub enum Names {
    /// Any of these, each equally often.
    Any { first: u32, count: u32 },
    /// Each of these, once.
    Each { first: u32, count: u32 },
    /// One, so often.
    Same { number: u32, count: u32 },
}

/// How queries arrive: at random, so many in a second on average, whatever becomes of those before.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub per_second: f64,
    pub between: Between,
}

/// What is done while no query is due and no reply is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Look again, so that no reply waits for us.
    Spin,
    /// Leave the core to the upstream for a moment.
    Sleep,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    pub answered: u64,
    /// Replies that say that the server has failed.
    pub failed: u64,
    /// Replies that are not what the upstream has said.
    pub wrong: u64,
    /// Queries without reply.
    pub lost: u64,
    /// From query to reply, of those that were answered rightly; known with a pace.
    pub waits: Vec<Duration>,
}

/// When queries are due.
struct Arrivals {
    mean_gap: Duration,
    next: Instant,
    rng: StdRng,
}

impl Load {
    /// By UDP from some clients, without a pace.
    pub fn new(names: Names, outstanding: usize, lasts: Duration) -> Self {
        let patience = Duration::from_secs(2);
        Self { names, rules: 0, transport: Transport::Udp, clients: 16, outstanding, pace: None, lasts, patience }
    }

    /// With a pace.
    pub fn paced(self, per_second: f64, between: Between) -> Self {
        Self { pace: Some(Pace { per_second, between }), ..self }
    }

    /// For the run before the one that counts, after which what happens but once in the life of a server is over: as hot,
    /// or as new and not asked again.
    pub fn before(self) -> Self {
        let names = match self.names {
            Names::Each { first, .. } => Names::Each { first: first - NEW_NAMES, count: NEW_NAMES },
            names => names,
        };
        Self { names, lasts: self.lasts / 5, ..self }
    }

    pub fn run(&self, server: SocketAddr) -> io::Result<Outcome> {
        let count = self.clients.min(self.outstanding);
        let poller = Poller::new()?;
        let mut clients = Vec::new();
        for number in 0..count {
            let share = self.outstanding / count + usize::from(number < self.outstanding % count);
            let client = Client::open(self.transport, server, share, self.rules)?;
            client.join(&poller, number)?;
            clients.push(client);
        }
        let mut inbox = Inbox::new(BATCH, 1500);
        let mut numbers = self.names.numbers();
        let (mut outcome, mut tokens) = (Outcome::default(), Vec::new());
        let start = Instant::now();
        let (mut now, mut next_check, mut turn) = (start, start + CHECK, 0);
        let mut arrivals = self.pace.map(|pace| Arrivals::new(pace, start));
        if arrivals.is_none() {
            for client in &mut clients {
                client.ask_all(&mut numbers, now)?;
            }
        }
        loop {
            let is_over = now - start >= self.lasts;
            let is_waiting = clients.iter().any(Client::is_waiting);
            let is_done = !is_waiting && (is_over || arrivals.is_none());
            if is_done || now - start >= self.lasts + self.patience {
                break;
            }
            let timeout = if arrivals.is_some() { Duration::ZERO } else { CHECK };
            poller.wait(&mut tokens, Some(timeout))?;
            now = Instant::now();
            for &token in &tokens {
                let client = &mut clients[token as usize];
                if !client.take_replies(&mut inbox, now, arrivals.is_some(), &mut outcome)? {
                    client.reopen(server, now)?;
                    client.join(&poller, token as usize)?;
                }
                if !is_over && arrivals.is_none() {
                    client.ask_all(&mut numbers, now)?;
                }
            }
            if now >= next_check {
                next_check = now + CHECK;
                for client in &mut clients {
                    outcome.lost += client.give_up(now, self.patience);
                    if !is_over && arrivals.is_none() {
                        client.ask_all(&mut numbers, now)?;
                    }
                }
            }
            let Some(arrivals) = arrivals.as_mut() else { continue };
            while !is_over && arrivals.is_due(now) {
                let Some(number) = numbers.next() else { break };
                turn = (turn + 1) % count;
                // Nobody waits for a reply that there is no room to wait for.
                outcome.lost += u64::from(!clients[turn].ask(number, now)?);
                clients[turn].flush()?;
            }
            if tokens.is_empty() && self.pace.is_some_and(|pace| pace.between == Between::Sleep) {
                std::thread::sleep(MOMENT);
            }
        }
        outcome.lost += clients.iter().map(Client::outstanding).sum::<u64>();
        Ok(outcome)
    }
}

impl Outcome {
    /// The wait that so many of a hundred do not exceed, in microseconds.
    pub fn percentile(&mut self, percent: f64) -> f64 {
        self.waits.sort_unstable();
        let at = (self.waits.len() as f64 * percent / 100.0) as usize;
        self.waits.get(at.min(self.waits.len().saturating_sub(1))).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e6)
    }
}

impl Names {
    fn numbers(self) -> Box<dyn Iterator<Item = u32>> {
        match self {
            Self::Each { first, count } => Box::new(first..first + count),
            Self::Same { number, count } => Box::new(std::iter::repeat_n(number, count as usize)),
            Self::Any { first, count } => {
                let mut rng = StdRng::seed_from_u64(rand::rng().next_u64());
                Box::new(std::iter::repeat_with(move || first + rng.random_range(0..count)))
            }
        }
    }
}

impl Arrivals {
    fn new(pace: Pace, start: Instant) -> Self {
        let mean_gap = Duration::from_secs_f64(1.0 / pace.per_second);
        Self { mean_gap, next: start, rng: StdRng::seed_from_u64(rand::rng().next_u64()) }
    }

    /// Whether a query is due; the next is then due later.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.next <= now;
        if is_due {
            let share: f64 = self.rng.random();
            self.next += self.mean_gap.mul_f64(-(1.0 - share).ln());
        }
        is_due
    }
}

/// How often one looks for queries that nobody will answer.
const CHECK: Duration = Duration::from_millis(100);
const MOMENT: Duration = Duration::from_micros(50);
