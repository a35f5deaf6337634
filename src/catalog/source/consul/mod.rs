//! A Consul agent, followed over its HTTP API.
//!
//! [`Plan`](plan::Plan) says what is to be asked and what follows from the answers; here it is asked. What becomes known
//! goes out as [`News`], and those who wait for it are told once it is taken in.

mod api;
mod client;
mod config;
mod mirror;
mod plan;
mod size;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

pub use api::Introduction;
pub use client::FileError;
pub use config::{Addresses, Config};

use self::{
    client::Client,
    plan::{Ask, Note, Plan},
};
use crate::{
    budget::Budget,
    catalog::{News, Resumed, ServiceKey, Standing, Wish},
    clock::{Moment, unix_seconds},
    metrics::Metrics,
};

/// An agent that is to be followed.
pub struct Agent {
    client: Arc<Client>,
    config: Config,
    max_stale: Duration,
    /// When it has answered last, in milliseconds of [`Moment`].
    contact: AtomicU64,
}

/// Which agents a configuration means, as it is kept for the next process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Source {
    addresses: Vec<String>,
    namespace: Option<String>,
    partition: Option<String>,
}

/// What it sends out.
#[derive(Debug)]
pub enum Event {
    /// Who the agent is; other news of it come after this.
    Agent(Introduction),
    /// What the catalog is to take in, in this order.
    News(Vec<News>),
}

/// Why an agent has not answered.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0} is neither an address nor a name in /etc/hosts; write its address")]
    Resolve(String),
    #[error("connect to {address}: {cause}")]
    Connect { address: SocketAddr, cause: io::Error },
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("{0}")]
    Io(io::Error),
    #[error("HTTP: {0}")]
    Http(String),
    #[error("HTTP status {status}: {text}")]
    Status { status: u16, text: String },
    #[error("the response is not what Consul says: {0}")]
    Json(String),
    #[error("the response has no X-Consul-Index; is there a Consul agent")]
    NoIndex,
    #[error("the response is larger than {}; raise catalog.consul.max_response_bytes", .0.display().iec())]
    TooLong(ByteSize),
    #[error("the response lists more than fits into {} in memory; raise catalog.consul.max_response_bytes", .0.display().iec())]
    TooMany(ByteSize),
    #[error("the response finds no room among what waits; raise limits.total_bytes")]
    NoRoom,
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the token cannot be read: {0}")]
    Token(String),
    #[error("the request cannot be made: {0}")]
    Request(String),
    #[error("closed")]
    Closed,
}

impl Source {
    /// Whether the two have an agent in common, asked for the same.
    pub fn meets(&self, other: &Self) -> bool {
        (&self.namespace, &self.partition) == (&other.namespace, &other.partition)
            && self.addresses.iter().any(|address| other.addresses.contains(address))
    }
}

impl Agent {
    /// Reads the files that the section names.
    pub fn new(config: &Config, max_stale: Duration) -> Result<Self, FileError> {
        Ok(Self { client: Client::new(config)?.into(), config: config.clone(), max_stale, contact: AtomicU64::new(0) })
    }

    /// Whether it is the same agent, followed in the same way.
    pub fn is_like(&self, other: &Self) -> bool {
        (&self.config, self.max_stale) == (&other.config, other.max_stale)
    }

    /// When it has answered last, as far as it is followed.
    pub fn last_contact(&self) -> Moment {
        Moment::from_millis(self.contact.load(Ordering::Relaxed))
    }

    /// Which agents it means.
    pub fn source(&self) -> Source {
        let Config { address, namespace, partition, .. } = &self.config;
        let addresses = address.urls().iter().map(ToString::to_string).collect();
        Source { addresses, namespace: namespace.clone(), partition: partition.clone() }
    }

    /// How long what it has said holds while it is away.
    pub fn max_stale(&self) -> Duration {
        self.max_stale
    }

    /// Follows it until `closing`. What is wished for is fetched; `tell` takes the news in before it returns. `standing` is
    /// how the catalog stands to what it holds of another agent, or, if there is something to go on from (`resumed`), of this one.
    /// Responses are charged to the budget until they have been read.
    pub async fn run(
        &self,
        wishes: &mut mpsc::Receiver<Wish>,
        (standing, resumed): (Standing, Option<Resumed>),
        tell: impl Fn(Event),
        (metrics, budget): (&Metrics, &Arc<Budget>),
        closing: CancellationToken,
    ) {
        let now = Moment::now();
        let addresses = self.config.address.urls().len();
        let mut plan = Plan::new(addresses, self.config.wait, self.max_stale, standing, rand::random(), now);
        if let Some(resumed) = resumed {
            plan.resume(resumed, now);
        }
        let contact = |plan: &Plan| self.contact.store(plan.last_contact().as_millis(), Ordering::Relaxed);
        contact(&plan);
        let mut running = JoinSet::new();
        let mut aborts: HashMap<u64, AbortHandle> = HashMap::new();
        // When a response was last said to be too large.
        let mut too_long = None;
        loop {
            let now = Moment::now();
            let todo = plan.advance(now);
            for id in todo.aborts {
                if let Some(abort) = aborts.remove(&id) {
                    abort.abort();
                }
            }
            if let Some(agent) = todo.agent {
                tell(Event::Agent(agent));
            }
            if !todo.news.is_empty() {
                tell(Event::News(todo.news));
            }
            // Nobody is told what is not yet so.
            for note in todo.notes {
                self.note(note, metrics);
            }
            // They look at the catalog as soon as they hear it, and must find what they have waited for.
            for done in todo.told {
                let _ = done.send(());
            }
            for ask in todo.asks {
                aborts.insert(ask.id, running.spawn(send(self.client.clone(), ask, budget.clone())));
            }
            let levels = metrics.levels();
            levels.catalog_source_followed.set(plan.followed() as u64);
            let wake = Instant::now() + plan.wake().since(now).min(LONGEST_SLEEP);
            tokio::select! {
                () = closing.cancelled() => return,
                Some(wish) = wishes.recv() => {
                    plan.wish(wish, Moment::now());
                    while let Ok(wish) = wishes.try_recv() {
                        plan.wish(wish, Moment::now());
                    }
                }
                Some(ended) = running.join_next() => {
                    let mut next = Some(ended);
                    while let Some(ended) = next {
                        // What was aborted is known to be.
                        if let Ok((id, outcome)) = ended {
                            aborts.remove(&id);
                            levels.add_catalog_request(outcome.is_ok());
                            if let Err(error @ (Fault::TooLong(_) | Fault::TooMany(_) | Fault::NoRoom)) = &outcome
                                && too_long.is_none_or(|told: Instant| told.elapsed() >= TOO_LONG_INTERVAL)
                            {
                                too_long = Some(Instant::now());
                                tracing::warn!(source = "consul", %error, "not believed; what it said before stays");
                            }
                            plan.take_in(id, outcome, Moment::now());
                        }
                        next = running.try_join_next();
                    }
                    contact(&plan);
                    let age = Moment::now().since(plan.last_contact());
                    levels.catalog_source_contact.set(unix_seconds().saturating_sub(age.as_secs()));
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    fn note(&self, note: Note, metrics: &Metrics) {
        let (source, address) = ("consul", &self.config.address);
        match note {
            Note::Followed => {
                metrics.levels().catalog_source_up.set(1);
                tracing::info!(source, %address, "source followed");
            }
            Note::Away(error) => {
                metrics.levels().catalog_source_up.set(0);
                tracing::warn!(source, %address, %error, "source away; what it said last stays in service");
            }
            Note::Unreached(error) => {
                tracing::warn!(source, %address, %error, "source not reached yet; its names are forwarded");
            }
            Note::StillAway(error) => tracing::debug!(source, %address, %error, "source not reached"),
            Note::Reset => {
                metrics.levels().catalog_source_up.set(0);
                tracing::warn!(source, %address, "source has another past than it had; it is read anew");
            }
            Note::Lost => {
                tracing::error!(source, %address, "source lost for longer than max_stale; its names are forwarded");
            }
        }
    }
}

/// What the catalog hears of an agent that has these answers, one to each request, in turn; nothing is sent.
///
/// An answer is the index and the body of a response. With the first request beyond them the agent is silent. `wished` are
/// asked for as soon as the agent is followed. For the tests that have an agent say what none should.
pub fn rehearse(answers: &[(u64, &[u8])], wished: &[ServiceKey], now: Moment) -> Vec<News> {
    let mut plan = Plan::new(1, Duration::from_secs(60), Duration::from_secs(3600), Standing::Lost, 1, now);
    let (mut now, mut news, mut is_followed) = (now, Vec::new(), false);
    let mut answers = answers.iter();
    loop {
        let todo = plan.advance(now);
        news.extend(todo.news);
        if !is_followed && todo.notes.iter().any(|note| matches!(note, Note::Followed)) {
            is_followed = true;
            for what in wished {
                plan.wish(Wish { what: what.clone(), done: Some(oneshot::channel().0) }, now);
            }
            continue;
        }
        for ask in &todo.asks {
            let Some(&(index, body)) = answers.next() else { return news };
            let read = ask.what.read(body).map(|reply| api::Response { reply, index });
            plan.take_in(ask.id, read, now);
        }
        // Nothing more comes of it at once: the time passes.
        if todo.asks.is_empty() {
            now = now.max(plan.wake()) + Duration::from_millis(1);
        }
    }
}

async fn send(client: Arc<Client>, ask: Ask, budget: Arc<Budget>) -> (u64, Result<api::Response, Fault>) {
    let Ask { id, place, what, after, limit } = ask;
    let outcome = timeout(limit, client.ask(place, &what, after, &budget)).await;
    (id, outcome.unwrap_or(Err(Fault::Timeout(limit))))
}

impl Fault {
    /// What went wrong on a connection, with its causes: its own words name the part of the protocol alone.
    fn http(error: hyper::Error) -> Self {
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source());
        Self::Http(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
    }
}

/// A response that is too large is asked for again and again, and told of once a minute.
const TOO_LONG_INTERVAL: Duration = Duration::from_secs(60);
/// A clock that stands still is no reason to sleep forever.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
