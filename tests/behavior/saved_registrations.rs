//! What is registered over the API is on the disk when it is answered, whatever ends the daemon.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    net::SocketAddr,
    path::Path,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::Value;

use crate::harness::*;

/// A catalog with registrations that lie in this folder.
fn registering(state: &Path) -> Setup {
    Setup::new(&format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\nstate_directory = \"{}\"\n[catalog]\nnode_name = \"monitor1\"\n\
         address = \"192.0.2.1\"\n[catalog.api]\nenable_registration = true\n",
        state.display()
    ))
}

fn state_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("watershed-").tempdir().unwrap()
}

fn api(daemon: &Daemon) -> SocketAddr {
    daemon.control.expect("a control address")
}

/// True if it was answered that it is done.
fn put(server: SocketAddr, path: &str, body: &str) -> bool {
    http::request(server, "PUT", &format!("/v1/agent/service/{path}"), body).is_ok_and(|(status, _)| status == 200)
}

fn register(server: SocketAddr, name: &str) -> bool {
    put(server, "register", &format!(r#"{{"Name": "{name}", "Check": {{"CheckID": "of {name}", "TTL": "1h"}}}}"#))
}

fn services(daemon: &Daemon) -> BTreeSet<String> {
    let (status, body) = http::get(api(daemon), "/v1/agent/services");
    assert_eq!(status, 200, "{body}");
    let services: Value = serde_json::from_str(&body).unwrap();
    services.as_object().unwrap().keys().cloned().collect()
}

fn files(state: &Path) -> Vec<String> {
    let names = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("registrations")).collect();
    names.sort();
    names
}

/// What a client was answered, in the order in which it asked.
#[derive(Default)]
struct Answered {
    registered: BTreeSet<String>,
    deregistered: BTreeSet<String>,
    /// The last request, if it was not answered: it may have been carried out or not.
    doubtful: Option<String>,
}

/// Registers services one after another, and takes out each third, until there is no answer.
fn register_until_the_end(server: SocketAddr, client: usize, answers: &AtomicUsize) -> Answered {
    let mut answered = Answered::default();
    for number in 0.. {
        let name = format!("s{client}-{number}");
        let mut is_there = register(server, &name);
        let is_taken_out = is_there && number % 3 == 0;
        if is_taken_out {
            answers.fetch_add(1, Ordering::Relaxed);
            is_there = !put(server, &format!("deregister/{name}"), "");
        }
        match (is_taken_out, is_there) {
            (false, true) => answered.registered.insert(name),
            (true, false) => answered.deregistered.insert(name),
            _ => {
                answered.doubtful = Some(name);
                break;
            }
        };
        answers.fetch_add(1, Ordering::Relaxed);
    }
    answered
}

#[test]
fn what_was_answered_survives_a_kill() {
    let state = state_folder();
    let mut daemon = registering(state.path()).start();
    let (server, answers, begin) = (api(&daemon), AtomicUsize::new(0), Barrier::new(CLIENTS));
    let answered: Vec<Answered> = thread::scope(|scope| {
        let client = |client| {
            let (answers, begin) = (&answers, &begin);
            scope.spawn(move || {
                begin.wait();
                register_until_the_end(server, client, answers)
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        wait_until("some hundred answers", 6 * PATIENCE, || (answers.load(Ordering::Relaxed) >= 400).then_some(()));
        signal(daemon.pid(), "KILL");
        daemon.wait();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert_eq!(files(state.path()), ["registrations.journal", "registrations.json"]);
    // As if a line had just begun to be appended.
    let journal = state.path().join("registrations.journal");
    fs::OpenOptions::new()
        .append(true)
        .open(journal)
        .unwrap()
        .write_all(b"0123456789abcdef {\"Gone\": {\"Ser")
        .unwrap();

    let daemon = registering(state.path()).start();
    daemon.wait_for_log(0, |line| line.contains("incomplete last line of the journal dropped"));
    let found = services(&daemon);
    for Answered { registered, deregistered, doubtful } in &answered {
        let lost: Vec<_> = registered.difference(&found).collect();
        assert!(lost.is_empty(), "answered, and not there: {lost:?}");
        let kept: Vec<_> = deregistered.intersection(&found).collect();
        assert!(kept.is_empty(), "taken out, and there: {kept:?}");
        assert!(doubtful.is_some(), "each client was cut off");
    }
    let expected: usize = answered.iter().map(|answered| answered.registered.len()).sum();
    assert!((expected..=expected + CLIENTS).contains(&found.len()), "{expected} {}", found.len());
    // An orderly stop leaves one file, which versions read that know no journal.
    assert!(register(api(&daemon), "last"));
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(files(state.path()), ["registrations.json"]);
    let daemon = registering(state.path()).start();
    assert_eq!(services(&daemon).len(), found.len() + 1);
}

#[test]
fn a_successor_begins_a_journal_of_its_own() {
    let state = state_folder();
    // A port that the system chooses would be another one for the successor.
    let (listen, control) = (free_address(), free_address());
    let fixed = |config: String| {
        let listening = config.replacen("127.0.0.1:0", &listen.to_string(), 1);
        listening.replacen("127.0.0.1:0", &control.to_string(), 1)
    };
    let mut daemon = registering(state.path()).configured(fixed).start();
    for name in ["a", "b", "c"] {
        assert!(register(api(&daemon), name));
    }
    assert_eq!(files(state.path()), ["registrations.journal", "registrations.json"]);
    daemon.hand_over();
    for name in ["d", "e"] {
        assert!(register(api(&daemon), name));
    }
    assert!(put(api(&daemon), "deregister/b", ""));
    let daemon = daemon.kill_and_start();
    assert_eq!(services(&daemon).into_iter().collect::<Vec<_>>(), ["a", "c", "d", "e"]);
}

#[test]
fn files_that_are_lost_while_it_runs_are_written_again() {
    let state = state_folder();
    let daemon = registering(state.path()).start();
    for name in ["a", "b", "c"] {
        assert!(register(api(&daemon), name));
    }
    for file in ["registrations.journal", "registrations.json"] {
        fs::remove_file(state.path().join(file)).unwrap();
        assert!(register(api(&daemon), file));
    }
    let daemon = daemon.kill_and_start();
    let expected = ["a", "b", "c", "registrations.journal", "registrations.json"];
    assert_eq!(services(&daemon).into_iter().collect::<Vec<_>>(), expected);
}

const CLIENTS: usize = 4;
