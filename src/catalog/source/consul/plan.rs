//! What is asked of an agent, and when; and what becomes of its answers. Neither clock nor socket is here.
//!
//! **Following.** The lists of services and nodes are followed always, and so are the services asked for last. A request
//! names the index of the last response, and its own comes when that is exceeded. An index that goes back means that what
//! we know is of another world: a service is read anew in a moment, and if it is one of the lists, all is.
//!
//! **Fetching.** All else is fetched when it is asked for, once however many ask, and is good for a second.
//!
//! **Loss.** A connection that fails, a list that cannot be read, or a sign of life that stays away, and the agent is away:
//! what was held last is what there is. An agent that comes back first says less than there is, for some seconds. So it is
//! believed only when it has a leader and has said the same for a while: for longer, if something is missing.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque, hash_map::Entry as Place},
    hash::{DefaultHasher, Hash, Hasher},
    mem::take,
    time::Duration,
};

use tokio::sync::oneshot;

use super::{
    Fault,
    api::{Entry, Introduction, Known, Reply, Response, What},
    mirror::Mirror,
};
use crate::{
    catalog::{
        Wish,
        health::Status,
        model::{Kind, ServiceKey},
        registry::Set,
        remote::{Held, News, Resumed, Standing},
    },
    clock::Moment,
};

/// What is asked of an agent, and when.
pub(super) struct Plan {
    wait: Duration,
    max_stale: Duration,
    addresses: usize,
    /// The address in use.
    place: usize,
    phase: Phase,
    standing: Standing,
    last_contact: Moment,
    /// Since when it is away.
    away_since: Moment,
    /// What is held comes from an earlier process that has just ended, and the agent has not been asked since.
    is_resumed: bool,
    attempts: u32,
    next_id: u64,
    flights: HashMap<u64, Flight>,
    datacenter: String,
    listed: BTreeSet<String>,
    services: Poll,
    nodes: Poll,
    leader: Poll,
    datacenters: Poll,
    followed: HashMap<ServiceKey, Followed>,
    fetches: HashMap<ServiceKey, Vec<oneshot::Sender<()>>>,
    queue: VecDeque<ServiceKey>,
    /// What was fetched, until when it is good, and whether there is anything of it.
    kept: HashMap<ServiceKey, (Moment, bool)>,
    sweep: Moment,
    mirror: Mirror,
    random: u64,
    todo: Todo,
}

/// What is to be done: in this order.
#[derive(Default)]
pub(super) struct Todo {
    /// Requests that are wanted no more.
    pub aborts: Vec<u64>,
    /// Who the agent is that is followed from now on.
    pub agent: Option<Introduction>,
    /// What has become known.
    pub news: Vec<News>,
    /// Those who waited for it.
    pub told: Vec<oneshot::Sender<()>>,
    /// Requests to send.
    pub asks: Vec<Ask>,
    /// What operators want to know.
    pub notes: Vec<Note>,
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Ask {
    pub id: u64,
    /// The place of the agent's address among all.
    pub place: usize,
    pub what: What,
    /// The index that the response has to exceed.
    pub after: Option<u64>,
    /// How long it may take.
    pub limit: Duration,
}

/// What operators want to know.
#[derive(Debug)]
pub(super) enum Note {
    /// It is followed from now on.
    Followed,
    /// It is away.
    Away(Fault),
    /// It could not be reached, and has not been since the start.
    Unreached(Fault),
    /// It could not be reached again.
    StillAway(Fault),
    /// It says things that could not be followed by what it said before, and is read anew.
    Reset,
    /// What it has said is not given any longer.
    Lost,
}

enum Phase {
    Away { retry: Moment },
    Settling(Box<Settling>),
    Following,
}

/// An agent that is back, and not yet believed.
struct Settling {
    leader_since: Option<Moment>,
    /// What it has said last, and since when it says that.
    stood: Option<(u64, Moment)>,
    next_round: Moment,
    /// What is still awaited of this round.
    missing: HashSet<u64>,
    reading: Reading,
}

/// All that is read of an agent in one round.
#[derive(Default)]
struct Reading {
    agent: Introduction,
    has_leader: bool,
    datacenters: Vec<String>,
    services: (u64, Vec<String>),
    nodes: (u64, Vec<Known>),
    members: HashMap<ServiceKey, (u64, Vec<Entry>)>,
}

struct Flight {
    purpose: Purpose,
    started: Moment,
}

#[derive(Clone)]
enum Purpose {
    Round(What),
    Follow(What),
    Fetch(ServiceKey),
}

/// Something that is asked for again and again.
#[derive(Default)]
struct Poll {
    index: u64,
    flight: Option<u64>,
    due: Moment,
    failures: u32,
}

struct Followed {
    poll: Poll,
    asked: Moment,
    /// Whether anything is held.
    has: bool,
    /// How many of its instances can be given.
    healthy: usize,
    waiters: Vec<oneshot::Sender<()>>,
}

impl Plan {
    /// A plan for an agent at one of some addresses; `standing` is how the catalog stands to what it holds of another, and
    /// `seed` is random.
    pub fn new(
        addresses: usize,
        wait: Duration,
        max_stale: Duration,
        standing: Standing,
        seed: u64,
        now: Moment,
    ) -> Self {
        Self {
            wait,
            max_stale,
            addresses,
            place: 0,
            phase: Phase::Away { retry: now },
            standing,
            last_contact: now,
            away_since: now,
            is_resumed: false,
            attempts: 0,
            next_id: 0,
            flights: HashMap::new(),
            datacenter: String::new(),
            listed: BTreeSet::new(),
            services: Poll::default(),
            nodes: Poll::default(),
            leader: Poll::default(),
            datacenters: Poll::default(),
            followed: HashMap::new(),
            fetches: HashMap::new(),
            queue: VecDeque::new(),
            kept: HashMap::new(),
            sweep: now,
            mirror: Mirror::default(),
            random: seed | 1,
            todo: Todo::default(),
        }
    }

    /// Goes on from what an earlier process has saved, as with an agent that is away since it answered last.
    pub fn resume(&mut self, resumed: Resumed, now: Moment) {
        let Resumed { datacenter, listed, nodes, followed, contact } = resumed;
        (self.last_contact, self.away_since) = (contact, contact);
        self.is_resumed = now.since(contact) <= RECENT;
        self.datacenter = datacenter;
        self.listed = listed.into_iter().collect();
        self.mirror.resume(nodes);
        let followed = followed.into_iter().take(MOST_FOLLOWED).map(|(key, healthy)| {
            (key, Followed { poll: Poll::default(), asked: now, has: true, healthy, waiters: Vec::new() })
        });
        self.followed = followed.collect();
    }

    /// When the agent has answered last.
    pub fn last_contact(&self) -> Moment {
        self.last_contact
    }

    /// How many services are followed.
    pub fn followed(&self) -> usize {
        self.followed.len()
    }

    /// What is to be done by now.
    pub fn advance(&mut self, now: Moment) -> Todo {
        if self.standing == Standing::Away && now >= self.away_since + self.max_stale {
            self.standing = Standing::Lost;
            self.mirror = Mirror::default();
            self.listed.clear();
            self.kept.clear();
            self.followed.clear();
            self.todo.news.push(News::Standing(Standing::Lost));
            self.todo.notes.push(Note::Lost);
        }
        match &self.phase {
            Phase::Away { retry } if *retry <= now => self.settle(now),
            Phase::Settling(settling) if settling.missing.is_empty() && settling.next_round <= now => {
                self.start_round(now);
            }
            Phase::Following => self.poll(now),
            _ => {}
        }
        take(&mut self.todo)
    }

    /// When there is something to do next, if nothing comes before.
    pub fn wake(&self) -> Moment {
        let mut wake = Moment::from_millis(u64::MAX);
        let mut at = |moment: Moment| wake = wake.min(moment);
        if self.standing == Standing::Away {
            at(self.away_since + self.max_stale);
        }
        match &self.phase {
            Phase::Away { retry } => at(*retry),
            Phase::Settling(settling) if settling.missing.is_empty() => at(settling.next_round),
            Phase::Settling(_) => {}
            Phase::Following => {
                let always = [&self.services, &self.nodes, &self.leader, &self.datacenters];
                let polls = always.into_iter().chain(self.followed.values().map(|followed| &followed.poll));
                polls.filter(|poll| poll.flight.is_none()).for_each(|poll| at(poll.due));
                at(self.sweep);
            }
        }
        wake
    }

    /// Somebody asks for this.
    pub fn wish(&mut self, wish: Wish, now: Moment) {
        let Wish { what, done } = wish;
        if let Some(followed) = self.followed.get_mut(&what) {
            followed.asked = now;
        }
        // While the agent is away nobody has to wait to learn that.
        if !matches!(self.phase, Phase::Following) {
            return self.todo.told.extend(done);
        }
        match self.followed.get_mut(&what) {
            // What has failed is asked for again in its own time.
            Some(followed) if followed.has || followed.poll.failures > 0 => return self.todo.told.extend(done),
            Some(followed) => return followed.waiters.extend(done),
            None => {}
        }
        let Some(done) = done else { return };
        if self.is_worth_following(&what) && self.has_room(now) {
            self.kept.remove(&what);
            let poll = Poll { due: now, ..Poll::default() };
            let followed = Followed { poll, asked: now, has: false, healthy: 0, waiters: vec![done] };
            self.followed.insert(what, followed);
            return;
        }
        match self.fetches.entry(what) {
            Place::Occupied(mut waiters) => waiters.get_mut().push(done),
            Place::Vacant(_) if self.queue.len() >= MOST_QUEUED => self.todo.told.push(done),
            Place::Vacant(place) => {
                self.queue.push_back(place.key().clone());
                place.insert(vec![done]);
            }
        }
    }

    /// A response, or why there is none.
    pub fn take_in(&mut self, id: u64, outcome: Result<Response, Fault>, now: Moment) {
        // What was given up does not count any more.
        let Some(Flight { purpose, started }) = self.flights.remove(&id) else { return };
        if outcome.is_ok() {
            self.last_contact = now;
        }
        match (purpose, outcome) {
            (Purpose::Round(What::Members(key)), Err(Fault::Status { .. })) => self.read_nothing(id, &key, now),
            (Purpose::Round(_), Err(fault)) => self.lose(fault, now),
            (Purpose::Round(what), Ok(response)) => self.read(id, what, response, now),
            (Purpose::Follow(What::Members(key)), outcome) => self.take_in_followed(&key, outcome, started, now),
            (Purpose::Follow(what), outcome) => self.take_in_list(&what, outcome, started, now),
            (Purpose::Fetch(key), outcome) => self.take_in_fetched(key, outcome, started, now),
        }
    }

    // ---- Away and back

    /// The agent is away.
    fn lose(&mut self, fault: Fault, now: Moment) {
        self.give_up();
        let turn = self.attempts / self.addresses.max(1) as u32;
        let is_first = self.attempts == 0;
        self.attempts = self.attempts.saturating_add(1);
        self.is_resumed = false;
        self.place = (self.place + 1) % self.addresses.max(1);
        self.phase = Phase::Away { retry: now + self.pause(turn) };
        self.todo.notes.push(match self.standing {
            Standing::Current => Note::Away(fault),
            Standing::Lost if is_first => Note::Unreached(fault),
            Standing::Away if is_first => Note::Away(fault),
            _ => Note::StillAway(fault),
        });
        self.step_back(now);
    }

    fn step_back(&mut self, now: Moment) {
        if self.standing == Standing::Current {
            self.standing = Standing::Away;
            self.away_since = now;
            self.todo.news.push(News::Standing(Standing::Away));
        }
    }

    /// Ends all requests, and tells those who wait for them.
    fn give_up(&mut self) {
        self.todo.aborts.extend(self.flights.drain().map(|(id, _)| id));
        for poll in [&mut self.services, &mut self.nodes, &mut self.leader, &mut self.datacenters] {
            poll.flight = None;
        }
        for followed in self.followed.values_mut() {
            followed.poll.flight = None;
            self.todo.told.append(&mut followed.waiters);
        }
        // What nothing is held of is not worth reading before it is asked for again.
        self.followed.retain(|_, followed| followed.has);
        self.queue.clear();
        self.todo.told.extend(self.fetches.drain().flat_map(|(_, waiters)| waiters));
    }

    /// Begins to read an agent that may be back.
    fn settle(&mut self, now: Moment) {
        self.phase = Phase::Settling(Box::new(Settling {
            leader_since: None,
            stood: None,
            next_round: now,
            missing: HashSet::new(),
            reading: Reading::default(),
        }));
        self.start_round(now);
    }

    fn start_round(&mut self, now: Moment) {
        let always = [What::Agent, What::Leader, What::Datacenters, What::Services, What::Nodes];
        let members = self.followed.keys().cloned().map(What::Members);
        let asked: Vec<What> = always.into_iter().chain(members).collect();
        let mut missing = HashSet::new();
        for what in asked {
            let limit = if matches!(what, What::Agent | What::Leader) { SIGN_LIMIT } else { READ_LIMIT };
            missing.insert(self.ask(Purpose::Round(what.clone()), what, None, limit, now));
        }
        if let Phase::Settling(settling) = &mut self.phase {
            settling.missing = missing;
            settling.reading = Reading::default();
        }
    }

    /// A part of a round.
    fn read(&mut self, id: u64, what: What, response: Response, now: Moment) {
        let Phase::Settling(settling) = &mut self.phase else { return };
        settling.missing.remove(&id);
        let reading = &mut settling.reading;
        match (what, response.reply) {
            (_, Reply::Agent(agent)) => reading.agent = agent,
            (_, Reply::Leader(has_leader)) => reading.has_leader = has_leader,
            (_, Reply::Datacenters(datacenters)) => reading.datacenters = datacenters,
            (_, Reply::Services(names)) => reading.services = (response.index, names),
            (_, Reply::Nodes(nodes)) => reading.nodes = (response.index, nodes),
            (What::Members(key), Reply::Members(entries)) => {
                reading.members.insert(key, (response.index, entries));
            }
            _ => {}
        }
        self.end_round(now);
    }

    /// A service that the agent cannot tell of does not keep it from being believed in all else.
    fn read_nothing(&mut self, id: u64, key: &ServiceKey, now: Moment) {
        let Phase::Settling(settling) = &mut self.phase else { return };
        settling.missing.remove(&id);
        self.followed.remove(key);
        self.end_round(now);
    }

    fn end_round(&mut self, now: Moment) {
        let Phase::Settling(settling) = &mut self.phase else { return };
        if settling.missing.is_empty() {
            let reading = take(&mut settling.reading);
            self.judge(reading, now);
        }
    }

    /// All of a round is read: is it to be believed?
    fn judge(&mut self, reading: Reading, now: Moment) {
        let takes_away = self.takes_away(&reading);
        let Phase::Settling(settling) = &mut self.phase else { return };
        if !reading.has_leader {
            (settling.leader_since, settling.stood) = (None, None);
            settling.next_round = now + LEADERLESS_PAUSE;
            return;
        }
        let leader_since = *settling.leader_since.get_or_insert(now);
        let print = reading.print();
        let since = match settling.stood {
            Some((last, since)) if last == print => since,
            _ => now,
        };
        settling.stood = Some((print, since));
        let quiet = if takes_away { QUIET_LOSS } else { QUIET };
        let is_credible = now >= since + quiet || now >= leader_since + LONGEST_DOUBT;
        // An agent that was followed a moment ago, by an earlier process, has not come back from anywhere.
        let is_as_before = self.is_resumed && !takes_away;
        // Where nothing is held there is nothing to lose.
        if self.standing == Standing::Lost || is_credible || is_as_before {
            self.believe(reading, now);
        } else {
            settling.next_round = now + ROUND_PAUSE;
        }
    }

    /// Whether something that is held is not there any more.
    fn takes_away(&self, reading: &Reading) -> bool {
        let names: HashSet<String> = reading.services.1.iter().map(|name| name.to_lowercase()).collect();
        let nodes: HashSet<_> = reading.nodes.1.iter().map(|known| known.node.key()).collect();
        self.listed.iter().any(|name| !names.contains(name))
            || self.mirror.nodes_of(&self.datacenter).any(|key| !nodes.contains(key))
            || self.followed.iter().any(|(key, followed)| {
                let now = reading.members.get(key).map_or(0, |(_, entries)| healthy(entries));
                now < followed.healthy
            })
    }

    fn believe(&mut self, reading: Reading, now: Moment) {
        self.datacenter = reading.agent.datacenter.to_lowercase();
        let others = reading.datacenters.iter().filter(|name| name.to_lowercase() != self.datacenter);
        let datacenters =
            News::Datacenters { own: reading.agent.datacenter.clone(), others: others.cloned().collect() };
        self.mirror = Mirror::default();
        self.kept.clear();
        self.listed = reading.services.1.iter().map(|name| name.to_lowercase()).collect();
        self.services = Poll { index: reading.services.0, due: now, ..Poll::default() };
        self.nodes = Poll { index: reading.nodes.0, due: now, ..Poll::default() };
        self.leader = Poll { due: now + SIGN_INTERVAL, ..Poll::default() };
        self.datacenters = Poll { due: now + DATACENTERS_INTERVAL, ..Poll::default() };
        let mut set = Set::default();
        self.mirror.nodes(&self.datacenter, reading.nodes.0, reading.nodes.1);
        let consul = ServiceKey::new(Kind::Service, &self.datacenter, CONSUL);
        let listed = &self.listed;
        self.followed.retain(|key, _| key.kind() != Kind::Service || listed.contains(key.name()));
        let mut members = reading.members;
        for (key, followed) in &mut self.followed {
            let Some((index, entries)) = members.remove(key) else { continue };
            followed.healthy = healthy(&entries);
            followed.poll = Poll { index, due: now, ..Poll::default() };
            set.instances.append(&mut self.mirror.members(key, index, entries).instances);
        }
        set.nodes = self.mirror.all_nodes();
        if self.listed.contains(CONSUL) {
            self.followed.entry(consul).or_insert_with(|| Followed {
                poll: Poll { due: now, ..Poll::default() },
                asked: now,
                has: false,
                healthy: 0,
                waiters: Vec::new(),
            });
        }
        let held = self.followed.iter().filter(|(_, followed)| followed.has).map(|(key, _)| key.clone()).collect();
        let listed = self.listed.iter().cloned().collect();
        self.todo.news.extend([datacenters, News::All { set, listed, held }, News::Standing(Standing::Current)]);
        self.todo.agent = Some(reading.agent);
        self.todo.notes.push(Note::Followed);
        self.standing = Standing::Current;
        self.phase = Phase::Following;
        self.is_resumed = false;
        self.attempts = 0;
        self.poll(now);
    }

    /// What the agent says cannot follow what it said: it may have lost its state.
    fn reset(&mut self, now: Moment) {
        self.give_up();
        self.todo.notes.push(Note::Reset);
        self.step_back(now);
        self.settle(now);
    }

    /// The time before another attempt.
    fn pause(&mut self, turn: u32) -> Duration {
        // xorshift: it must differ between daemons that lose the same agent, and no more
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let jitter = Duration::from_millis(50 + self.random % 50);
        match turn {
            0 => jitter,
            turn => (Duration::from_secs(1) * (1 << (turn - 1).min(4))).min(LONGEST_PAUSE) + jitter,
        }
    }

    // ---- Following

    /// Asks for all that is due.
    fn poll(&mut self, now: Moment) {
        for what in [What::Leader, What::Services, What::Nodes, What::Datacenters] {
            let (limit, wait) = (READ_LIMIT, self.wait + self.wait / 16 + WAIT_MARGIN);
            let Some(poll) = self.poll_of(&what) else { continue };
            if poll.flight.is_some() || poll.due > now {
                continue;
            }
            let after = Some(poll.index).filter(|index| *index > 0);
            let limit = match what {
                What::Leader => SIGN_LIMIT,
                _ if after.is_some() => wait,
                _ => limit,
            };
            let id = self.ask(Purpose::Follow(what.clone()), what.clone(), after, limit, now);
            if let Some(poll) = self.poll_of(&what) {
                poll.flight = Some(id);
            }
        }
        let is_due = |followed: &Followed| followed.poll.flight.is_none() && followed.poll.due <= now;
        let due = self.followed.iter().filter(|(_, followed)| is_due(followed)).map(|(key, _)| key.clone());
        for key in due.collect::<Vec<_>>() {
            let index = self.followed.get(&key).map_or(0, |followed| followed.poll.index);
            let after = Some(index).filter(|index| *index > 0);
            let limit = if after.is_some() { self.wait + self.wait / 16 + WAIT_MARGIN } else { FETCH_LIMIT };
            let what = What::Members(key.clone());
            let id = self.ask(Purpose::Follow(what.clone()), what, after, limit, now);
            if let Some(followed) = self.followed.get_mut(&key) {
                followed.poll.flight = Some(id);
            }
        }
        let running = self.fetches.len() - self.queue.len();
        for _ in running..MOST_FETCHES {
            let Some(key) = self.queue.pop_front() else { break };
            self.ask(Purpose::Fetch(key.clone()), What::Members(key), None, FETCH_LIMIT, now);
        }
        if self.sweep <= now {
            self.sweep = now + SWEEP_INTERVAL;
            self.sweep(now);
        }
    }

    fn ask(&mut self, purpose: Purpose, what: What, after: Option<u64>, limit: Duration, now: Moment) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.flights.insert(id, Flight { purpose, started: now });
        self.todo.asks.push(Ask { id, place: self.place, what, after, limit });
        id
    }

    fn poll_of(&mut self, what: &What) -> Option<&mut Poll> {
        match what {
            What::Leader => Some(&mut self.leader),
            What::Services => Some(&mut self.services),
            What::Nodes => Some(&mut self.nodes),
            What::Datacenters => Some(&mut self.datacenters),
            What::Members(key) => self.followed.get_mut(key).map(|followed| &mut followed.poll),
            What::Agent => None,
        }
    }

    fn take_in_list(&mut self, what: &What, outcome: Result<Response, Fault>, started: Moment, now: Moment) {
        let Some(poll) = self.poll_of(what) else { return };
        poll.flight = None;
        poll.due = match what {
            What::Leader => now + SIGN_INTERVAL,
            What::Datacenters => now + DATACENTERS_INTERVAL,
            _ => now.max(started + SHORTEST_ROUND),
        };
        let response = match outcome {
            Ok(response) => response,
            Err(_) if *what == What::Datacenters => return,
            Err(fault) => return self.lose(fault, now),
        };
        let (before, index) = (poll.index, response.index);
        if matches!(what, What::Services | What::Nodes) {
            if index < before {
                return self.reset(now);
            }
            poll.index = index;
            if index == 0 {
                poll.due = now + UNINDEXED_PAUSE;
            } else if index == before {
                return;
            }
        }
        match response.reply {
            Reply::Services(names) => self.list(names, now),
            Reply::Nodes(nodes) => {
                let (put, gone) = self.mirror.nodes(&self.datacenter, index, nodes);
                if !put.is_empty() || !gone.is_empty() {
                    self.todo.news.push(News::Nodes { put, gone });
                }
            }
            Reply::Datacenters(names) => {
                let others = names.into_iter().filter(|name| name.to_lowercase() != self.datacenter).collect();
                self.todo.news.push(News::Datacenters { own: self.datacenter.clone(), others });
            }
            _ => {}
        }
    }

    /// These are all services that there are.
    fn list(&mut self, names: Vec<String>, now: Moment) {
        let names: BTreeSet<String> = names.iter().map(|name| name.to_lowercase()).collect();
        let added: Vec<String> = names.difference(&self.listed).cloned().collect();
        let removed: Vec<String> = self.listed.difference(&names).cloned().collect();
        for name in &removed {
            let key = ServiceKey::new(Kind::Service, &self.datacenter, name);
            self.unfollow(&key, now);
            self.kept.remove(&key);
        }
        self.listed = names;
        if !added.is_empty() || !removed.is_empty() {
            self.todo.news.push(News::Listing { added, removed });
        }
    }

    fn take_in_followed(&mut self, key: &ServiceKey, outcome: Result<Response, Fault>, started: Moment, now: Moment) {
        let turn = self.followed.get(key).map_or(0, |followed| followed.poll.failures) + 1;
        let pause = self.pause(turn);
        let Some(followed) = self.followed.get_mut(key) else { return };
        self.todo.told.append(&mut followed.waiters);
        let poll = &mut followed.poll;
        poll.flight = None;
        let (index, entries) = match outcome {
            Ok(Response { index, reply: Reply::Members(entries) }) => (index, entries),
            _ => {
                poll.failures = turn;
                poll.due = now + pause;
                // What it is by then is wanted at once, whether it has changed or not.
                poll.index = 0;
                // Whether the agent itself is at fault is found out at once.
                self.leader.due = now;
                let held = Held::Failed { until: poll.due, has_last: followed.has };
                return self.todo.news.push(News::Held(key.clone(), held));
            }
        };
        poll.failures = 0;
        poll.due = now.max(started + SHORTEST_ROUND);
        if index == 0 {
            poll.due = now + UNINDEXED_PAUSE;
        }
        let before = poll.index;
        if index < before {
            // It begins anew, as Consul's documents demand; but not at once. If the whole agent is of another world, the
            // lists are about to say so, and it is not to be believed yet.
            (poll.index, poll.due) = (0, now + QUIET);
            return self.mirror.reset_indexes();
        }
        poll.index = index;
        if index == before && index > 0 && followed.has {
            return;
        }
        followed.has = true;
        followed.healthy = healthy(&entries);
        let set = self.mirror.members(key, index, entries);
        self.todo.news.push(News::Members { key: key.clone(), set, held: Held::Followed });
    }

    /// Whether changes to this can be followed, and are there to be followed.
    fn is_worth_following(&self, key: &ServiceKey) -> bool {
        *key.datacenter() == *self.datacenter
            && match key.kind() {
                Kind::Service => self.listed.contains(key.name()),
                // Any name may be asked for; a place is for those that there are.
                Kind::Connect | Kind::Ingress => self.kept.get(key).is_some_and(|(_, is_any)| *is_any),
                Kind::Query | Kind::Node => false,
            }
    }

    /// Whether one more can be followed; one that nobody has asked for in a while makes room.
    fn has_room(&mut self, now: Moment) -> bool {
        if self.followed.len() < MOST_FOLLOWED {
            return true;
        }
        let others = self.followed.iter().filter(|(key, _)| key.name() != CONSUL);
        let Some((oldest, asked)) = others.map(|(key, followed)| (key, followed.asked)).min_by_key(|(_, asked)| *asked)
        else {
            return false;
        };
        if now < asked + IDLE {
            return false;
        }
        let oldest = oldest.clone();
        self.unfollow(&oldest, now);
        true
    }

    fn unfollow(&mut self, key: &ServiceKey, now: Moment) {
        let Some(mut followed) = self.followed.remove(key) else { return };
        if let Some(id) = followed.poll.flight.take() {
            self.flights.remove(&id);
            self.todo.aborts.push(id);
        }
        self.todo.told.append(&mut followed.waiters);
        if followed.has {
            self.kept.insert(key.clone(), (now + FRESH, true));
            self.todo.news.push(News::Held(key.clone(), Held::Until(now + FRESH)));
        }
    }

    // ---- Fetching

    fn take_in_fetched(&mut self, key: ServiceKey, outcome: Result<Response, Fault>, started: Moment, now: Moment) {
        self.todo.told.extend(self.fetches.remove(&key).into_iter().flatten());
        // As good as at the moment it was asked for.
        let until = started + FRESH;
        let held = Held::Until(until);
        let news = match outcome.map(|response| (response.index, response.reply)) {
            Ok((index, Reply::Members(entries))) => {
                self.kept.insert(key.clone(), (until, !entries.is_empty()));
                // One that has vanished meanwhile is not to come back.
                if *key.datacenter() == *self.datacenter
                    && key.kind() == Kind::Service
                    && !self.listed.contains(key.name())
                {
                    return;
                }
                let set = self.mirror.members(&key, index, entries);
                News::Members { key, set, held }
            }
            Ok((_, Reply::Node(node))) => {
                self.kept.insert(key.clone(), (until, node.is_some()));
                let nodes = node.map(|known| self.mirror.node(known, None)).into_iter().collect();
                News::Members { key, set: Set { nodes, instances: Vec::new() }, held }
            }
            Ok((_, Reply::Query(found))) => {
                self.kept.insert(key.clone(), (until, found.is_some()));
                News::Found { key, found: found.map(Mirror::found), held }
            }
            _ => {
                self.leader.due = now;
                let has_last = self.kept.contains_key(&key);
                News::Held(key, Held::Failed { until: now + FRESH, has_last })
            }
        };
        self.todo.news.push(news);
    }

    /// Forgets what nobody asks for; but the last of a service that there is remains, for times when the agent is away.
    fn sweep(&mut self, now: Moment) {
        let mut gone = Vec::new();
        self.kept.retain(|key, (until, is_any)| {
            let is_listed = key.kind() == Kind::Service && *key.datacenter() == *self.datacenter;
            let is_kept = is_listed || now < *until + if *is_any { IDLE } else { Duration::ZERO };
            if !is_kept {
                gone.push(key.clone());
            }
            is_kept
        });
        if !gone.is_empty() {
            self.todo.news.push(News::Forget(gone));
        }
    }
}

impl Reading {
    /// Two readings that say the same have the same.
    fn print(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut services: Vec<&String> = self.services.1.iter().collect();
        services.sort();
        services.hash(&mut hasher);
        let nodes: BTreeSet<_> =
            self.nodes.1.iter().map(|known| (&known.node.name, format!("{:?}", known.node.address))).collect();
        nodes.hash(&mut hasher);
        let mut members: Vec<_> = self.members.iter().collect();
        members.sort_by_key(|(key, _)| *key);
        for (key, (_, entries)) in members {
            key.hash(&mut hasher);
            let instances: BTreeSet<_> = entries.iter().map(|entry| (entry.key_of_order(), status(entry))).collect();
            instances.hash(&mut hasher);
        }
        hasher.finish()
    }
}

impl Entry {
    fn key_of_order(&self) -> (&str, &str, u16, String) {
        let registration = &self.registration;
        (registration.node.name(), &registration.id, registration.port, format!("{:?}", registration.address))
    }
}

fn status(entry: &Entry) -> Status {
    let checks = entry.node_checks.iter().chain(&entry.checks);
    checks.map(|check| check.status).max().unwrap_or(Status::Passing)
}

fn healthy(entries: &[Entry]) -> usize {
    entries.iter().filter(|entry| status(entry) != Status::Critical).count()
}

/// So many services are followed, each on a connection of its own, of the 200 that an agent allows a client.
pub(super) const MOST_FOLLOWED: usize = 128;
/// So many are fetched at once.
pub(super) const MOST_FETCHES: usize = 8;
/// So many wait to be fetched; beyond that it is as if the agent could not say.
const MOST_QUEUED: usize = 1024;
/// Servers of Consul, which name servers are made of; always followed.
const CONSUL: &str = "consul";
/// How long what was fetched is good.
const FRESH: Duration = Duration::from_secs(1);
/// How long nobody must have asked for something that makes room for another. Those who keep answers ask again within
/// ten seconds.
const IDLE: Duration = Duration::from_secs(30);
/// A flood of changes is taken in at this rate.
const SHORTEST_ROUND: Duration = Duration::from_millis(10);
/// Between requests to an agent that gives no index to wait for.
const UNINDEXED_PAUSE: Duration = Duration::from_secs(1);
/// Between signs of life; one that is frozen accepts connections and says nothing.
const SIGN_INTERVAL: Duration = Duration::from_secs(3);
/// How long a sign of life may take.
const SIGN_LIMIT: Duration = Duration::from_secs(2);
/// How long a list may take.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How long a fetch may take. It leaves time to answer from what was held last.
const FETCH_LIMIT: Duration = Duration::from_millis(1500);
/// The agent itself waits up to a sixteenth longer than it is told; this is for the way.
const WAIT_MARGIN: Duration = Duration::from_secs(5);
const DATACENTERS_INTERVAL: Duration = Duration::from_secs(60);
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// An agent that has answered this long ago has had a sign of life to give since.
const RECENT: Duration = Duration::from_secs(10);
/// For how long an agent that is back must have said the same; and if something is missing that was there.
const QUIET: Duration = Duration::from_secs(1);
const QUIET_LOSS: Duration = Duration::from_secs(5);
/// After this time with a leader it is believed whatever it says.
const LONGEST_DOUBT: Duration = Duration::from_secs(15);
const ROUND_PAUSE: Duration = Duration::from_millis(250);
const LEADERLESS_PAUSE: Duration = Duration::from_millis(500);
/// Between attempts to reach an agent that is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
