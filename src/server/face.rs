//! What all listeners have in common: a message comes in, a reply goes out or somebody waits for it.

use std::{
    collections::HashMap,
    net::{IpAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use rand::Rng;
use tokio::runtime;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Config,
    cookie::{self, Secret},
    departure::{Departures, Kept, MOST_WAIT, Reply, TURN},
    limit::{Allowance, Limiter},
};
use crate::{
    budget::{self, Budget},
    clock::{Moment, unix_seconds},
    forward::{self, Exchange, LoopWatch},
    metrics::{Cells, Dropped, Metrics, Rejection, Transport},
    resolve::{
        AtOnce, Begun, Client, From, Job, LOST, Next, Outgoing, Pending, Reason, Resolver, Settled, Waiter, Way,
    },
    sys::Outbox,
    wire::{self, Asker, ClientOptions, Query, Rcode, Reject, ReplyOptions, ReplySize, Ttls, View, flag},
};

/// What listeners share: the heart, the settings, and the tasks for what takes time.
pub struct Face {
    resolver: Arc<Resolver>,
    config: ArcSwap<Config>,
    /// Makes cookies, unless the settings have another.
    secret: Secret,
    /// Made when a limit is first set.
    limiter: OnceLock<Limiter>,
    /// Made when the first reply is to leave that has waited.
    departures: OnceLock<Departures>,
    /// A UDP socket of each listener, for replies from tasks.
    sockets: RwLock<HashMap<u32, Arc<UdpSocket>>>,
    tasks: TaskTracker,
    runtime: runtime::Handle,
    /// How many questions tasks see to.
    exchanges: AtomicUsize,
    /// Ends them, when the process does.
    hurry: CancellationToken,
    loops: LoopWatch,
    budget: Arc<Budget>,
    /// Counts for all tasks; workers have cells of their own.
    cells: Arc<Cells>,
}

/// A message that came in.
#[derive(Clone, Copy)]
pub struct Incoming<'a> {
    /// Its octets.
    pub wire: &'a [u8],
    /// Who sent it; `None` for somebody who is not served.
    pub client: Option<Client>,
    /// The address that it came from.
    pub peer: IpAddr,
    /// How it came.
    pub transport: Transport,
}

/// What one thread does its work with.
pub struct Desk<'a, R> {
    /// Read once a round.
    pub now: Moment,
    /// For ids, letters and choices; from the system's CSPRNG.
    pub rng: &'a mut R,
    /// What the thread counts in.
    pub cells: &'a Cells,
}

/// What became of a message.
pub enum Taken {
    /// The reply is written. If the cached answer ends soon, there is an exchange to renew it.
    Reply(Option<(Exchange, Box<Job>)>),
    /// It is a query, and is to get no reply.
    Dropped,
    /// It is no query.
    NoQuery,
    /// It waits.
    Joined,
    /// It waits for this exchange, which has to be driven.
    Exchange(Exchange, Box<Job>),
    /// It waits for a source of the catalog; a task [drives](Face::drive) what comes of it.
    Wait(Pending, Box<Job>),
}

/// A question that a task sees to. If the task ends otherwise than with an outcome (it was cut off, or has panicked), those
/// who wait are told, and nobody waits for it any more.
struct Driven {
    face: Arc<Face>,
    job: Option<Box<Job>>,
}

impl Driven {
    async fn see_to(&mut self, mut next: Next) {
        let (face, resolver) = (&self.face, &self.face.resolver);
        loop {
            next = match next {
                Next::Settled(settled) => {
                    self.job = None;
                    return face.deliver(settled);
                }
                Next::Exchange(exchange, job) => {
                    let impatient = || face.deliver(resolver.lose_patience(&job, Moment::now()));
                    let outcome = forward::run(exchange, impatient).await;
                    resolver.finish(job, outcome, Moment::now(), &mut rand::rng())
                }
                Next::Wait(pending, job) => {
                    pending.wait(|| face.deliver(resolver.lose_patience(&job, Moment::now()))).await;
                    resolver.resume(job, Moment::now(), &mut rand::rng())
                }
            }
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.face.exchanges.fetch_sub(1, Relaxed);
        if let Some(job) = self.job.take() {
            let why = if self.face.hurry.is_cancelled() { STOPPING } else { LOST };
            self.face.deliver(self.face.resolver.abandon(&job, why, Moment::now()));
        }
    }
}

/// What of a message is held back by the rate limit.
pub(super) enum HeldBack {
    /// It is to be [taken](Face::take) in.
    Nothing,
    /// Its reply; the one that is written says to come by TCP.
    Reply,
    /// Every reply.
    All,
}

/// What a message means for the stream that it came by.
pub(super) enum Fate {
    /// It is replied to.
    Settled,
    /// A reply will come by the queue.
    Open,
    /// It gets no reply.
    Silent,
    /// Whoever sends this does not speak DNS.
    Hopeless,
}

impl Face {
    /// For listeners with these settings. Tasks run on `runtime`, which calls this.
    pub fn new(resolver: Arc<Resolver>, config: Config, metrics: &Metrics, runtime: runtime::Handle) -> Self {
        Self {
            resolver,
            config: ArcSwap::from_pointee(config),
            secret: Secret::random(&mut rand::rng()),
            limiter: OnceLock::new(),
            departures: OnceLock::new(),
            sockets: RwLock::default(),
            tasks: TaskTracker::new(),
            runtime,
            exchanges: AtomicUsize::new(0),
            hurry: CancellationToken::new(),
            loops: LoopWatch::default(),
            budget: Arc::default(),
            cells: metrics.shared_cells(),
        }
    }

    /// Charges what waits for clients to this budget, and not to one of its own.
    pub fn charging(self, budget: Arc<Budget>) -> Self {
        Self { budget, ..self }
    }

    /// The settings in force.
    pub fn config(&self) -> Arc<Config> {
        self.config.load_full()
    }

    /// Puts new settings in force.
    pub fn set_config(&self, config: Config) {
        self.config.store(Arc::new(config));
    }

    /// The heart.
    pub fn resolver(&self) -> &Arc<Resolver> {
        &self.resolver
    }

    /// The tasks that serve clients.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// How many questions are seen to by tasks.
    pub fn exchanges(&self) -> usize {
        self.exchanges.load(Relaxed)
    }

    /// Whether queries to upstreams come back.
    pub fn loops(&self) -> &LoopWatch {
        &self.loops
    }

    /// What may wait for clients.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// The counts of all tasks.
    pub fn cells(&self) -> &Cells {
        &self.cells
    }

    /// Makes a socket of a listener known, or a listener that is gone unknown.
    pub fn set_socket(&self, listener: u32, socket: Option<Arc<UdpSocket>>) {
        match socket {
            Some(socket) => self.sockets.write().insert(listener, socket),
            None => self.sockets.write().remove(&listener),
        };
    }

    /// Has the socket of a listener take in nothing any more; it can still send.
    pub fn deafen_socket(&self, listener: u32) {
        if let Some(socket) = self.sockets.read().get(&listener)
            && let Ok(own) = socket.local_addr()
        {
            // Connected to itself it leaves the group that shares the address. If that fails, it goes on hearing for a while.
            let _ = socket.connect(own);
        }
    }

    /// A client that asks by UDP; `None` if it is not served.
    pub fn datagram_client(&self, ip: IpAddr, config: &Config) -> Option<Client> {
        let is_loopback = ip.to_canonical().is_loopback();
        let ceiling_bytes = if is_loopback { config.udp_size_loopback } else { config.udp_size };
        let size = ReplySize::Datagram { ceiling_bytes };
        config.allow.allows(ip).then_some(Client { is_loopback, size, sees_cache: true })
    }

    /// Whether the reply to a client at this address is held back, for its network has had enough of them by UDP.
    pub(super) fn hold_back<R: Rng>(
        &self,
        incoming: Incoming<'_>,
        config: &Config,
        desk: &mut Desk<'_, R>,
        out: &mut Vec<u8>,
    ) -> HeldBack {
        let Incoming { wire, client, peer, transport } = incoming;
        // Who is not served would find no service by TCP either.
        let asking = Query::parse(wire).ok().zip(client);
        let asking = asking.map(|(query, client)| (query, self.asker(&query, client, peer, transport)));
        // It takes nothing of what the others of its network may be sent.
        if asking.is_some_and(|(_, asker)| asker.is_proven()) {
            return HeldBack::Nothing;
        }
        let allowance = self.limiter.get_or_init(Limiter::new).take(peer, &config.rate_limit, desk.now);
        let (query, asker) = match (allowance, asking) {
            (Allowance::Reply, _) => return HeldBack::Nothing,
            (Allowance::Truncated, Some(asking)) => asking,
            _ => {
                desk.cells.dropped(Dropped::RateLimit);
                return HeldBack::All;
            }
        };
        let view = View { flags: flag::TC, ..View::bare(Rcode::NOERROR, &[]) };
        wire::write_reply(view, &asker, query.question_bytes(), Ttls::Aged(0), desk.rng, out);
        desk.cells.reject(Rejection::RateLimit);
        desk.cells.reply(transport, Rcode::NOERROR.0);
        HeldBack::Reply
    }

    /// A client that asks by a connection; `None` if it is not served.
    pub fn stream_client(&self, ip: IpAddr, config: &Config) -> Option<Client> {
        let is_loopback = ip.to_canonical().is_loopback();
        config.allow.allows(ip).then_some(Client { is_loopback, size: ReplySize::Stream, sees_cache: true })
    }

    /// Takes in a message. A reply is written into `out`; `waiter` is called if the client has to wait.
    pub fn take<R: Rng>(
        &self,
        incoming: Incoming<'_>,
        waiter: impl FnOnce(Asker, &[u8]) -> Waiter,
        desk: &mut Desk<'_, R>,
        out: &mut Vec<u8>,
    ) -> Taken {
        let Incoming { wire, client, peer, transport } = incoming;
        let Some(client) = client else { return self.turn_away(wire, transport, desk, out) };
        let reply = |rcode: Rcode, refresh| {
            desk.cells.reply(transport, rcode.0);
            Taken::Reply(refresh)
        };
        let refusal = |rcode: Rcode| {
            match rcode {
                Rcode::NOERROR => {}
                Rcode::FORMERR => desk.cells.reject(Rejection::Malformed),
                _ => desk.cells.reject(Rejection::Unsupported),
            }
            reply(rcode, None)
        };
        let query = match Query::parse(wire) {
            Ok(query) => query,
            Err(Reject::Drop) => {
                desk.cells.dropped(Dropped::NotAQuery);
                return Taken::NoQuery;
            }
            Err(Reject::Reply(rcode)) => {
                wire::write_error(wire, rcode, out);
                return refusal(rcode);
            }
        };
        let asker = self.asker(&query, client, peer, transport);
        // A query without RD could tell a stranger which names others have asked for.
        let at_once = if query.recursion_desired() || self.config.load().allow_query_cache.allows(peer) {
            self.resolver.at_once(query, asker, client, desk.now, desk.rng, out)
        } else {
            self.resolver.at_once_without_cache(query, asker, client, desk.rng, out)
        };
        let miss = match at_once {
            AtOnce::Refusal(rcode) => return refusal(rcode),
            AtOnce::Reply(rcode, qtype, from) => {
                desk.cells.query(transport, qtype.0);
                let refresh = match from {
                    From::Stale => {
                        desk.cells.stale();
                        return reply(rcode, None);
                    }
                    From::Expiring(key) => self.resolver.refresh(&key, client, desk.now, desk.rng),
                    _ => None,
                };
                desk.cells.hit();
                if refresh.is_some() {
                    desk.cells.prefetch();
                }
                return reply(rcode, refresh);
            }
            AtOnce::Miss(miss) if self.loops.is_returned(miss.qname()) => {
                desk.cells.query(transport, miss.qtype().0);
                desk.cells.dropped(Dropped::Loop);
                return Taken::Dropped;
            }
            AtOnce::Miss(miss) => miss,
        };
        desk.cells.query(transport, miss.qtype().0);
        desk.cells.miss();
        match self.resolver.begin(&miss, waiter, desk.now, desk.rng, out) {
            Begun::Reply(rcode, reason) => {
                match reason {
                    Reason::Overload => desk.cells.reject(Rejection::Overload),
                    Reason::ClientOverload => desk.cells.reject(Rejection::ClientOverload),
                    Reason::Local | Reason::Cached => {}
                }
                reply(rcode, None)
            }
            Begun::Drop => {
                desk.cells.dropped(Dropped::Overlay);
                Taken::Dropped
            }
            Begun::Joined => {
                desk.cells.joined();
                Taken::Joined
            }
            Begun::Exchange(exchange, job) => Taken::Exchange(exchange, job),
            Begun::Wait(pending, job) => Taken::Wait(pending, job),
        }
    }

    /// What the reply to a query depends on.
    fn asker(&self, query: &Query<'_>, client: Client, peer: IpAddr, transport: Transport) -> Asker {
        let mut asker = query.asker(client.size);
        if query.options() != ClientOptions::default() {
            asker.options = self.reply_options(query.options(), peer, transport);
        }
        asker
    }

    /// What is said to the options of a query.
    fn reply_options(&self, asked: ClientOptions<'_>, peer: IpAddr, transport: Transport) -> ReplyOptions {
        let config = self.config.load();
        let secrets = match &config.cookie_secrets[..] {
            [] => std::slice::from_ref(&self.secret),
            secrets => secrets,
        };
        let cookie = asked.cookie.and_then(|shown| cookie::renew(secrets, shown, peer, unix_seconds() as u32));
        // It is ignored in a datagram (RFC 7828 §3.3.1), HTTP has its own ways, and QUIC forbids it (RFC 9250 §5.5.2).
        let has_keepalive = asked.keepalive && matches!(transport, Transport::Tcp | Transport::Tls);
        // Where everybody can read it, length hides nothing (RFC 7830 §6).
        let padded = asked.padding && matches!(transport, Transport::Tls | Transport::Https | Transport::Quic);
        ReplyOptions {
            cookie,
            keepalive: has_keepalive.then_some((config.tcp_idle_timeout.as_millis() / 100) as u16),
            padded,
        }
    }

    /// Takes in a message that came by a stream, and has driven what comes of it. A reply that can be had at once is written
    /// into `out`; a later one goes to `replies`.
    pub(super) fn take_stream(
        self: &Arc<Self>,
        incoming: Incoming<'_>,
        replies: &budget::Sender,
        out: &mut Vec<u8>,
    ) -> Fate {
        let waiter = |asker, question: &[u8]| {
            let way = Way::Stream { transport: incoming.transport, peer: incoming.peer, replies: replies.clone() };
            Waiter { asker, question: question.into(), way }
        };
        self.cells.received(incoming.transport, 1);
        let mut desk = Desk { now: Moment::now(), rng: &mut rand::rng(), cells: &self.cells };
        match self.take(incoming, waiter, &mut desk, out) {
            Taken::Reply(refresh) => {
                if let Some((exchange, job)) = refresh {
                    self.drive(Next::Exchange(exchange, job));
                }
                Fate::Settled
            }
            Taken::Joined => Fate::Open,
            Taken::Exchange(exchange, job) => {
                self.drive(Next::Exchange(exchange, job));
                Fate::Open
            }
            Taken::Wait(pending, job) => {
                self.drive(Next::Wait(pending, job));
                Fate::Open
            }
            Taken::Dropped => Fate::Silent,
            Taken::NoQuery => Fate::Hopeless,
        }
    }

    /// Somebody who is not served is told so, with the question, lest libc take it for the reply to another, and no more,
    /// which is no use to whoever forges addresses.
    fn turn_away<R: Rng>(&self, wire: &[u8], transport: Transport, desk: &mut Desk<'_, R>, out: &mut Vec<u8>) -> Taken {
        match Query::parse(wire) {
            Ok(query) => {
                let size = ReplySize::Datagram { ceiling_bytes: 512 };
                let view = View::bare(Rcode::REFUSED, &[]);
                wire::write_reply(view, &query.asker(size), query.question_bytes(), Ttls::Aged(0), desk.rng, out);
            }
            Err(Reject::Drop) => {
                desk.cells.dropped(Dropped::NotAQuery);
                return Taken::NoQuery;
            }
            Err(Reject::Reply(_)) => wire::write_error(wire, Rcode::REFUSED, out),
        }
        desk.cells.reject(Rejection::Acl);
        desk.cells.reply(transport, Rcode::REFUSED.0);
        Taken::Reply(None)
    }

    /// Drives what follows until all who wait are replied to, in a task of its own. With too many under way, it fails.
    pub fn drive(self: &Arc<Self>, next: Next) {
        let job = match &next {
            Next::Settled(_) => None,
            Next::Exchange(_, job) | Next::Wait(_, job) => Some(job.clone()),
        };
        if self.exchanges.fetch_add(1, Relaxed) >= self.config.load().max_queue {
            self.exchanges.fetch_sub(1, Relaxed);
            self.cells.reject(Rejection::Overload);
            return self.deliver(match next {
                Next::Settled(settled) => settled,
                Next::Wait(_, job) => self.resolver.abandon(&job, OVERLOAD, Moment::now()),
                Next::Exchange(exchange, job) => {
                    let outcome = exchange.give_up(OVERLOAD);
                    match self.resolver.finish(job, outcome, Moment::now(), &mut rand::rng()) {
                        Next::Settled(settled) => settled,
                        Next::Exchange(_, job) | Next::Wait(_, job) => {
                            self.resolver.abandon(&job, OVERLOAD, Moment::now())
                        }
                    }
                }
            });
        }
        let (mut driven, hurry) = (Driven { face: self.clone(), job }, self.hurry.clone());
        self.tasks.spawn_on(async move { hurry.run_until_cancelled(driven.see_to(next)).await }, &self.runtime);
    }

    /// Ends what tasks see to: those who wait are told that the server stops.
    pub fn cut_short(&self) {
        self.hurry.cancel();
    }

    /// Replies to all who wait, from a task.
    pub fn deliver(self: &Arc<Self>, settled: Outgoing) {
        for Settled { response, ttls, waiters } in settled {
            for Waiter { asker, question, way } in waiters {
                let mut message = Vec::new();
                wire::write_reply(response.view(), &asker, &question, ttls, &mut rand::rng(), &mut message);
                let rcode = response.rcode().0;
                match way {
                    Way::Stream { transport, replies, .. } => match replies.try_send(message) {
                        true => self.cells.reply(transport, rcode),
                        // A connection that is gone misses nothing.
                        false => self.cells.dropped(Dropped::Gone),
                    },
                    Way::Datagram { listener, peer, local } => {
                        let now = Moment::now();
                        let reply = Reply { message, rcode, listener, peer, local, expires: now + MOST_WAIT };
                        match self.may_depart(&asker, peer.ip(), now) {
                            true => self.send(&reply),
                            false => self.hold(reply),
                        }
                    }
                }
            }
        }
    }

    /// True if a reply by UDP that has waited may leave now. If not, it is to be [held](Self::hold).
    pub(super) fn may_depart(&self, asker: &Asker, peer: IpAddr, now: Moment) -> bool {
        let limit = &self.config.load().rate_limit;
        let departures = || self.departures.get_or_init(Departures::new);
        asker.is_proven() || limit.exempt.allows(peer) || departures().take(peer, limit, now)
    }

    /// Keeps a reply until its network may be sent more, or drops it.
    pub(super) fn hold(self: &Arc<Self>, reply: Reply) {
        let departures = self.departures.get_or_init(Departures::new);
        match departures.hold(reply, &self.config.load().rate_limit) {
            Kept::Waits => {}
            Kept::Dropped => self.cells.dropped(Dropped::RateLimit),
            Kept::WaitsFirst => {
                let face = self.clone();
                self.tasks.spawn_on(async move { while face.release_held().await {} }, &self.runtime);
            }
        }
    }

    /// Sends what may leave after a moment; false if nothing is held any more.
    async fn release_held(&self) -> bool {
        tokio::time::sleep(TURN).await;
        let departures = self.departures.get_or_init(Departures::new);
        let released = departures.release(&self.config.load().rate_limit, Moment::now());
        released.due.iter().for_each(|reply| self.send(reply));
        (0..released.dropped).for_each(|_| self.cells.dropped(Dropped::RateLimit));
        released.has_more
    }

    /// Sends a datagram from a task.
    fn send(&self, reply: &Reply) {
        let Some(socket) = self.sockets.read().get(&reply.listener).cloned() else {
            return self.cells.dropped(Dropped::Gone);
        };
        let mut outbox = Outbox::new(1, reply.message.len());
        outbox.buffer().extend_from_slice(&reply.message);
        outbox.queue(reply.peer, reply.local);
        if outbox.send(socket.as_fd()).dropped > 0 {
            self.cells.unsent();
        }
        self.cells.reply(Transport::Udp, reply.rcode);
    }
}

/// Why those who wait are told a failure.
pub(super) const STOPPING: &str = "the server is stopping";
const OVERLOAD: &str = "too many queries wait for streams";
