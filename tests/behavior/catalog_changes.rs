//! While instances come and go, every answer is what the catalog held at one moment, moments do not run backwards, and after
//! the last change the answers are those of the source.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::harness::{
    catalog::{services, with_definitions},
    client::socket_for,
    daemon::forward,
    programs::Consul,
    *,
};

/// A bit for each instance that is given.
type Set = u32;

const INSTANCES: u32 = 30;
const ALL: Set = (1 << INSTANCES) - 1;
const QUESTION: &str = "web.service.consul A";

/// What a client was told.
struct Seen {
    at: Instant,
    set: Set,
}

/// Changes an instance at a time, so many times, while two clients ask; `apply` returns when the source has the change. Of
/// some changes it waits until they are seen; the others follow each other as fast as they can.
fn walk(daemon: &Daemon, changes: usize, apply: impl Fn(Set, u32)) {
    let is_over = AtomicBool::new(false);
    // Reproducible, and no set is met twice within any time that matters: what mixes two of them is another one.
    let mut random = StdRng::seed_from_u64(42);
    let mut states = vec![(Instant::now(), ALL)];
    let seen: Vec<Vec<Seen>> = thread::scope(|scope| {
        let clients: Vec<_> = (0..2).map(|_| scope.spawn(|| ask_on(daemon.address(), &is_over))).collect();
        let mut last = 0;
        for _ in 0..changes {
            let instance = loop {
                let instance = random.random_range(0..INSTANCES);
                // Back to the set before would be no new one.
                if instance != last {
                    break instance;
                }
            };
            last = instance;
            let set = states.last().unwrap().1 ^ (1 << instance);
            apply(set, instance);
            states.push((Instant::now(), set));
            if states.len() % 5 == 0 {
                wait_often("a change", || (ask(daemon) == set).then_some(()));
            }
        }
        let (_, end) = *states.last().unwrap();
        wait_until("the state after the last change", PATIENCE, || (ask(daemon) == end).then_some(()));
        is_over.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let mut places = HashMap::<Set, Vec<usize>>::new();
    for (place, (_, set)) in states.iter().enumerate() {
        places.entry(*set).or_default().push(place);
    }
    // When a change was first seen by either client.
    let mut first: Vec<Option<Instant>> = vec![None; states.len()];
    for client in &seen {
        let mut place = 0;
        for Seen { at, set } in client {
            let known = places.get(set).unwrap_or_else(|| panic!("a mixture: {set:030b}"));
            let next = known.iter().find(|known| **known >= place);
            place = *next.unwrap_or_else(|| panic!("back to {known:?} from {place}"));
            let earlier = first[place].is_some_and(|first| first <= *at);
            if !earlier {
                first[place] = Some(*at);
            }
        }
    }
    let mut delays: Vec<Duration> = Vec::new();
    let mut soonest = None::<Instant>;
    for (place, (made, _)) in states.iter().enumerate().skip(1).rev() {
        // Whoever saw a later state saw this one, too.
        soonest = [soonest, first[place]].into_iter().flatten().min();
        delays.push(soonest.expect("the last was seen").saturating_duration_since(*made));
    }
    delays.sort();
    let at = |share: f64| delays[((delays.len() - 1) as f64 * share) as usize];
    let answers: usize = seen.iter().map(Vec::len).sum();
    let sets = first.iter().flatten().count();
    println!(
        "{changes} changes, {answers} answers of {sets} states; delay {:.1?} at the median, {:.1?} at p99, {:.1?} at most",
        at(0.5),
        at(0.99),
        at(1.0)
    );
}

/// As `wait_until`, but for what is a matter of milliseconds.
#[track_caller]
fn wait_often(what: &str, mut attempt: impl FnMut() -> Option<()>) {
    let start = Instant::now();
    while attempt().is_none() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
    }
}

fn ask(daemon: &Daemon) -> Set {
    set_of(&daemon.ask(QUESTION))
}

fn set_of(reply: &Message) -> Set {
    reply.data().iter().fold(0, |set, address| set | 1 << number_of(address))
}

/// Asks on until told to end, and once more then, and notes every answer.
fn ask_on(server: SocketAddr, is_over: &AtomicBool) -> Vec<Seen> {
    let socket = socket_for(server);
    let mut buffer = [0; 2048];
    let mut seen = Vec::<Seen>::new();
    loop {
        let is_last = is_over.load(Ordering::Relaxed);
        let query = query(QUESTION).edns(1232);
        socket.send(&query.to_wire()).unwrap();
        let length = socket.recv(&mut buffer).expect("a reply");
        let reply = Message::from_wire(&buffer[..length]).unwrap();
        assert_eq!(reply.id, query.id);
        seen.push(Seen { at: Instant::now(), set: set_of(&reply) });
        if is_last {
            return seen;
        }
    }
}

fn address_of(instance: u32) -> String {
    format!("198.51.100.{}", instance + 1)
}

fn number_of(address: &str) -> u32 {
    address.rsplit('.').next().unwrap().parse::<u32>().unwrap() - 1
}

#[test]
fn thousands_of_checks_flip_at_an_agent_and_no_answer_is_a_mixture() {
    let Some(consul) = Consul::start(r#"{"log_level": "warn"}"#, None) else { return };
    let flip = |instance: u32, status: &str| {
        let address = address_of(instance);
        consul.register(&format!(
            r#"{{"Node": "node{instance}", "Address": "{address}",
                "Service": {{"ID": "web", "Service": "web", "Port": 80}},
                "Check": {{"CheckID": "c", "Name": "c", "Status": "{status}", "ServiceID": "web"}}}}"#
        ));
    };
    (0..INSTANCES).for_each(|instance| flip(instance, "passing"));
    let recursor = Upstream::holding(&[]);
    let config = format!("[catalog.consul]\naddress = \"http://{}\"\n", consul.http());
    let daemon = Setup::new(&(config + &forward(".", &[recursor.address()]))).start();
    wait_until("all instances", 2 * PATIENCE, || (ask(&daemon) == ALL).then_some(()));
    walk(&daemon, 3000, |set, instance| {
        flip(instance, if set & 1 << instance == 0 { "critical" } else { "passing" });
    });
    // Both agree, by Consul's own word.
    let mut theirs = tcp(consul.dns(), &query(QUESTION)).data();
    let mut ours = daemon.ask(QUESTION).data();
    theirs.sort();
    ours.sort();
    assert_eq!(ours, theirs);
}

#[test]
fn files_that_change_are_taken_in_whole() {
    let text = |set: Set| {
        let given = (0..INSTANCES).filter(|instance| set & 1 << instance != 0);
        let instance = |i| format!(r#"{{"name": "web", "id": "web{i}", "address": "{}", "port": 80}}"#, address_of(i));
        services(&given.map(instance).collect::<Vec<_>>())
    };
    let daemon = with_definitions("", &[("web.json", &text(ALL))]).start();
    assert_eq!(ask(&daemon), ALL);
    walk(&daemon, 100, |set, _| daemon.write("consul.d/web.json", &text(set)));
}
