use super::*;
use crate::catalog::{Check, Host, Node, NodeKey, Registration, Role, Weights};

/// An agent that says what a test has it say, and a plan that follows it.
struct Agent {
    plan: Plan,
    now: Moment,
    /// The index of everything.
    index: u64,
    services: Vec<(&'static str, Vec<Status>)>,
    has_leader: bool,
    /// Requests that wait for a change.
    waiting: Vec<Ask>,
    news: Vec<News>,
    notes: Vec<Note>,
    asked: Vec<What>,
}

impl Agent {
    fn new(services: &[(&'static str, Vec<Status>)]) -> Self {
        let now = Moment::from_millis(1_000_000);
        let mut agent = Self {
            plan: Plan::new(1, secs(60), secs(3600), Standing::Lost, 7, now),
            now,
            index: 10,
            services: services.to_vec(),
            has_leader: true,
            waiting: Vec::new(),
            news: Vec::new(),
            notes: Vec::new(),
            asked: Vec::new(),
        };
        agent.pass(SHORTEST_ROUND);
        agent
    }

    fn response(&self, what: &What) -> Response {
        let reply = match what {
            What::Agent => Reply::Agent(Introduction { datacenter: "dc1".into(), ..Introduction::default() }),
            What::Leader => Reply::Leader(self.has_leader),
            What::Datacenters => Reply::Datacenters(vec!["dc1".into(), "dc2".into()]),
            What::Services => Reply::Services(self.services.iter().map(|(name, _)| (*name).into()).collect()),
            What::Nodes => Reply::Nodes(vec![node()]),
            What::Members(key) => {
                let statuses = self.services.iter().find(|(name, _)| *name == key.name()).map(|(_, all)| &all[..]);
                Reply::Members(statuses.unwrap_or_default().iter().enumerate().map(entry).collect())
            }
        };
        Response { reply, index: self.index }
    }

    /// Answers until there is nothing to answer. What waits for a change stays.
    fn run(&mut self) {
        for _ in 0..1000 {
            let todo = self.plan.advance(self.now);
            self.waiting.retain(|ask| !todo.aborts.contains(&ask.id));
            self.news.extend(todo.news);
            self.notes.extend(todo.notes);
            for done in todo.told {
                let _ = done.send(());
            }
            let idle = todo.asks.is_empty();
            for ask in todo.asks {
                self.asked.push(ask.what.clone());
                match ask.after {
                    Some(after) if after >= self.index => self.waiting.push(ask),
                    _ => self.plan.take_in(ask.id, Ok(self.response(&ask.what)), self.now),
                }
            }
            if idle {
                return;
            }
        }
        panic!("it asks without end");
    }

    /// Something has changed: all that wait hear it.
    fn change(&mut self) {
        self.index += 1;
        for ask in take(&mut self.waiting) {
            self.plan.take_in(ask.id, Ok(self.response(&ask.what)), self.now);
        }
        self.pass(secs(0));
    }

    fn pass(&mut self, span: Duration) {
        let until = self.now + span;
        // As the loop does that drives it: at every moment that it wants to be woken.
        for _ in 0..10_000 {
            self.run();
            let wake = self.plan.wake();
            if wake > until {
                break;
            }
            self.now = self.now.max(wake);
        }
        self.now = until;
        self.run();
    }

    /// All connections break.
    fn fail(&mut self) {
        for ask in take(&mut self.waiting) {
            self.plan.take_in(ask.id, Err(Fault::Closed), self.now);
        }
        self.news.extend(take(&mut self.plan.todo.news));
    }

    fn wish(&mut self, what: ServiceKey) -> oneshot::Receiver<()> {
        let (done, told) = oneshot::channel();
        self.plan.wish(Wish { what, done: Some(done) }, self.now);
        self.pass(SHORTEST_ROUND);
        told
    }

    fn count(&self, what: &What) -> usize {
        self.asked.iter().filter(|asked| *asked == what).count()
    }

    fn standing(&self) -> Standing {
        self.plan.standing
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new(Kind::Service, "dc1", name)
}

fn node() -> Known {
    let node = Node {
        name: "n".into(),
        datacenter: "dc1".into(),
        address: Host::Ip([192, 0, 2, 1].into()),
        tagged: Default::default(),
        meta: Default::default(),
        checks: Vec::new(),
    };
    Known { node, modified: 1 }
}

fn entry((number, status): (usize, &Status)) -> Entry {
    let registration = Registration {
        node: NodeKey::new("dc1", "n"),
        id: format!("i{number}").into(),
        service: "s".into(),
        tags: Vec::new(),
        address: None,
        port: 1,
        tagged: Default::default(),
        meta: Default::default(),
        weights: Weights::default(),
        role: Role::Plain,
    };
    let check = Check {
        id: "c".into(),
        name: "".into(),
        notes: "".into(),
        status: *status,
        output: "".into(),
        kind: "".into(),
    };
    Entry { node: node(), node_checks: Vec::new(), registration, checks: vec![check] }
}

use Status::{Critical, Passing};

#[test]
fn an_agent_with_a_leader_is_believed_at_once_where_nothing_is_held() {
    let agent = Agent::new(&[("consul", vec![Passing]), ("web", vec![Passing; 2])]);
    assert_eq!(agent.standing(), Standing::Current);
    let Some(News::All { listed, held, .. }) = agent.news.iter().find(|news| matches!(news, News::All { .. })) else {
        panic!("{:?}", agent.news)
    };
    assert_eq!((listed.len(), held.len()), (2, 0));
    // The servers of Consul are followed without a wish.
    assert!(agent.news.iter().any(|news| matches!(news, News::Members { key, .. } if key.name() == "consul")));
    assert_eq!(agent.waiting.len(), 3);
}

#[test]
fn without_a_leader_it_is_not_believed() {
    let mut agent = Agent::new(&[]);
    agent.has_leader = false;
    agent.fail();
    agent.pass(secs(30));
    assert_eq!(agent.standing(), Standing::Away);
    agent.has_leader = true;
    agent.pass(secs(3));
    assert_eq!(agent.standing(), Standing::Current);
}

#[test]
fn what_is_asked_for_is_followed_from_then_on() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    let mut told = agent.wish(key("web"));
    assert_eq!(told.try_recv(), Ok(()));
    agent.news.clear();
    agent.services[0].1 = vec![Passing, Passing];
    agent.change();
    agent.pass(secs(1));
    let Some(News::Members { set, held: Held::Followed, .. }) = agent.news.first() else { panic!("{:?}", agent.news) };
    assert_eq!(set.instances.len(), 2);
    // Nothing more is asked while nothing changes, but for signs of life.
    let asked = agent.asked.len();
    agent.pass(secs(30));
    assert!(agent.asked.len() - asked <= 11, "{:?}", &agent.asked[asked..]);
}

#[test]
fn beyond_the_most_followed_a_service_is_fetched_once_for_all_who_ask() {
    let names: Vec<&'static str> = (0..200).map(|number| &*format!("s{number:03}").leak()).collect();
    let mut agent = Agent::new(&names.iter().map(|name| (*name, vec![Passing])).collect::<Vec<_>>());
    for name in &names[..MOST_FOLLOWED] {
        assert_eq!(agent.wish(key(name)).try_recv(), Ok(()));
    }
    assert_eq!((agent.plan.followed(), agent.waiting.len()), (MOST_FOLLOWED, MOST_FOLLOWED + 2));
    agent.news.clear();
    let what = What::Members(key("s150"));
    let told: Vec<_> = (0..5)
        .map(|_| {
            let (done, told) = oneshot::channel();
            agent.plan.wish(Wish { what: key("s150"), done: Some(done) }, agent.now);
            told
        })
        .collect();
    agent.run();
    told.into_iter().for_each(|mut told| assert_eq!(told.try_recv(), Ok(())));
    assert_eq!(agent.count(&what), 1);
    let Some(News::Members { held: Held::Until(until), .. }) = agent.news.first() else { panic!("{:?}", agent.news) };
    assert_eq!(*until, agent.now + FRESH);
    // Once one of the others has not been asked for in a while, this takes its place.
    agent.pass(secs(31));
    for name in &names[1..MOST_FOLLOWED] {
        agent.plan.wish(Wish { what: key(name), done: None }, agent.now);
    }
    agent.wish(key("s150"));
    assert!(agent.plan.followed.contains_key(&key("s150")) && !agent.plan.followed.contains_key(&key("s000")));
    assert_eq!((agent.plan.followed(), agent.waiting.len()), (MOST_FOLLOWED, MOST_FOLLOWED + 2));
}

#[test]
fn fetches_are_bounded_and_everybody_is_told_in_the_end() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    let query = |number: usize| ServiceKey::new(Kind::Query, "dc1", &format!("q{number}"));
    let mut told: Vec<_> = (0..MOST_QUEUED + 100)
        .map(|number| {
            let (done, told) = oneshot::channel();
            agent.plan.wish(Wish { what: query(number), done: Some(done) }, agent.now);
            told
        })
        .collect();
    assert_eq!(agent.plan.advance(agent.now).asks.len(), MOST_FETCHES);
    agent.fail();
    agent.run();
    let still_waits = Err(oneshot::error::TryRecvError::Empty);
    told.iter_mut().for_each(|told| assert_ne!(told.try_recv(), still_waits));
    // Nobody waits while it is away.
    assert!(agent.wish(query(0)).try_recv().is_ok());
}

#[test]
fn a_name_that_is_forgotten_leaves_nothing_behind() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    let connect = ServiceKey::new(Kind::Connect, "dc1", "nothing");
    agent.wish(connect.clone());
    agent.pass(secs(3));
    assert!(agent.news.iter().any(|news| matches!(news, News::Forget(keys) if *keys == [connect.clone()])));
    assert!(agent.plan.kept.is_empty() && agent.plan.fetches.is_empty() && !agent.plan.followed.contains_key(&connect));
}

#[test]
fn a_vanished_service_is_followed_no_more() {
    let mut agent = Agent::new(&[("web", vec![Passing]), ("db", vec![Passing])]);
    agent.wish(key("web"));
    agent.services.remove(0);
    agent.change();
    agent.pass(secs(1));
    assert!(agent.news.iter().any(|news| matches!(news, News::Listing { removed, .. } if *removed == ["web"])));
    assert!(!agent.plan.followed.contains_key(&key("web")));
    // A list and nodes.
    assert_eq!(agent.waiting.len(), 2);
}

#[test]
fn an_agent_that_comes_back_with_less_is_doubted_for_longer() {
    for (after, at_least, at_most) in [
        (vec![Passing, Passing], 1, 2),
        (vec![Passing, Critical], 5, 6), // one instance of two
        (vec![], 5, 6),                  // an agent that has lost its state
    ] {
        let mut agent = Agent::new(&[("web", vec![Passing, Passing])]);
        agent.wish(key("web"));
        agent.fail();
        assert_eq!(agent.standing(), Standing::Away);
        if after.is_empty() {
            agent.services.clear();
            agent.index = 3;
        } else {
            agent.services[0].1 = after.clone();
        }
        agent.pass(secs(at_least) - Duration::from_millis(100));
        assert_eq!(agent.standing(), Standing::Away, "{after:?}");
        agent.pass(secs(at_most - at_least));
        assert_eq!(agent.standing(), Standing::Current, "{after:?}");
    }
}

#[test]
fn a_catalog_that_never_stands_still_is_believed_in_the_end() {
    let mut agent = Agent::new(&[("web", vec![Passing, Passing]), ("db", vec![Passing])]);
    agent.wish(key("web"));
    agent.fail();
    agent.services.remove(1);
    let mut waited = 0;
    while agent.standing() != Standing::Current {
        agent.services[0].1 = if waited % 2 == 0 { vec![Passing] } else { vec![Passing, Passing] };
        agent.pass(Duration::from_millis(500));
        waited += 1;
        assert!(waited < 40, "it is never believed");
    }
    assert!((LONGEST_DOUBT.as_millis() as u64 / 500..36).contains(&waited), "{waited}");
}

#[test]
fn a_list_whose_index_goes_back_is_of_another_world() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    agent.index = 4;
    let list = agent.waiting.iter().position(|ask| ask.what == What::Services).unwrap();
    let ask = agent.waiting.remove(list);
    agent.services.clear();
    agent.plan.take_in(ask.id, Ok(agent.response(&What::Services)), agent.now);
    agent.run();
    assert_eq!(agent.standing(), Standing::Away);
    assert!(agent.notes.iter().any(|note| matches!(note, Note::Reset)));
    agent.pass(secs(6));
    assert_eq!(agent.standing(), Standing::Current);
}

#[test]
fn a_service_whose_index_goes_back_is_read_anew_in_a_moment() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    agent.wish(key("web"));
    let place = agent.waiting.iter().position(|ask| ask.what == What::Members(key("web"))).unwrap();
    let ask = agent.waiting.remove(place);
    let response = Response { index: 2, ..agent.response(&ask.what) };
    agent.plan.take_in(ask.id, Ok(response), agent.now);
    agent.news.clear();
    agent.pass(QUIET - Duration::from_millis(1));
    assert_eq!((agent.plan.followed[&key("web")].poll.index, agent.news.len()), (0, 0));
    agent.pass(secs(1));
    assert_eq!(agent.plan.followed[&key("web")].poll.index, agent.index);
    assert!(matches!(agent.news[..], [News::Members { held: Held::Followed, .. }]), "{:?}", agent.news);
}

#[test]
fn an_agent_without_indexes_is_not_asked_without_end() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    agent.index = 0;
    agent.plan.services.index = 0;
    agent.plan.nodes.index = 0;
    agent.change();
    agent.index = 0;
    agent.fail();
    let asked = agent.asked.len();
    agent.pass(secs(20));
    assert!(agent.asked.len() - asked < 150, "{}", agent.asked.len() - asked);
}

#[test]
fn a_flood_of_changes_is_taken_in_at_a_bounded_rate() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    agent.wish(key("web"));
    let asked = agent.asked.len();
    for _ in 0..1000 {
        agent.change();
        agent.pass(Duration::from_millis(1));
    }
    // Two lists and a service, a hundred times at most.
    assert!(agent.asked.len() - asked <= 320, "{}", agent.asked.len() - asked);
    assert_eq!(agent.standing(), Standing::Current);
}

#[test]
fn a_lost_agent_is_tried_soon_and_then_less_often() {
    let mut plan = Plan::new(2, secs(60), secs(3600), Standing::Lost, 7, Moment::default());
    let mut now = Moment::from_millis(0);
    let mut tries = Vec::new();
    while now < Moment::from_millis(60_000) {
        let todo = plan.advance(now);
        if let Some(first) = todo.asks.first() {
            tries.push((now.as_millis(), first.place));
            plan.take_in(first.id, Err(Fault::Closed), now);
        }
        now = now.max(plan.wake());
    }
    // Each address in turn, both at once, then both after a second, and so on.
    assert_eq!(tries.iter().map(|(_, place)| *place).take(5).collect::<Vec<_>>(), [0, 1, 0, 1, 0]);
    assert!(tries[2].0 < 300 && (1000..1500).contains(&(tries[3].0 - tries[2].0)), "{tries:?}");
    assert!(tries.len() < 20 && tries.windows(2).all(|pair| pair[1].0 - pair[0].0 < 10_200), "{tries:?}");
}

#[test]
fn beyond_max_stale_the_agent_is_lost_and_then_believed_at_once() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    agent.wish(key("web"));
    agent.plan.max_stale = secs(20);
    agent.has_leader = false; // it answers, but that is no contact to its catalog
    agent.fail();
    agent.pass(secs(19));
    assert_eq!(agent.standing(), Standing::Away);
    agent.pass(secs(2));
    assert_eq!(agent.standing(), Standing::Lost);
    agent.has_leader = true;
    agent.services.clear();
    agent.pass(secs(1));
    assert_eq!(agent.standing(), Standing::Current);
}

#[test]
fn a_sign_of_life_that_stays_away_is_the_end() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    agent.now = agent.now + SIGN_INTERVAL;
    let todo = agent.plan.advance(agent.now);
    let [ask] = &todo.asks[..] else { panic!("{:?}", todo.asks) };
    assert_eq!((&ask.what, ask.limit), (&What::Leader, SIGN_LIMIT));
    agent.plan.take_in(ask.id, Err(Fault::Timeout(ask.limit)), agent.now);
    assert_eq!(agent.standing(), Standing::Away);
}

#[test]
fn a_service_that_cannot_be_read_does_not_end_the_rest() {
    let mut agent = Agent::new(&[("web", vec![Passing])]);
    agent.wish(key("web"));
    let place = agent.waiting.iter().position(|ask| ask.what == What::Members(key("web"))).unwrap();
    let ask = agent.waiting.remove(place);
    agent.news.clear();
    agent.plan.take_in(ask.id, Err(Fault::Status { status: 500, text: String::new() }), agent.now);
    agent.run();
    assert!(matches!(agent.news[..], [News::Held(_, Held::Failed { has_last: true, .. })]), "{:?}", agent.news);
    assert_eq!(agent.standing(), Standing::Current);
    // Whoever asks for it meanwhile is told at once, and it is followed again in its time.
    let (done, mut told) = oneshot::channel();
    agent.plan.wish(Wish { what: key("web"), done: Some(done) }, agent.now);
    agent.run();
    assert!(told.try_recv().is_ok());
    agent.news.clear();
    agent.pass(secs(2));
    assert!(matches!(agent.news[..], [News::Members { held: Held::Followed, .. }]), "{:?}", agent.news);
}
