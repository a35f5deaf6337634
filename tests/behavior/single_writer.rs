//! Of a service with the policy `one` there is never more than one instance in an answer, whatever happens meanwhile.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use crate::harness::{programs::Consul, *};

const WRITER: &str = "[catalog.service.db]\npolicy = \"one\"\norder = [\"db-1\", \"db-2\"]\nhold_down = \"0s\"\n";

/// A node of the cluster in the words of a registration in the catalog.
fn node(number: usize, status: &str) -> String {
    format!(
        r#"{{"Node": "db-{number}", "Address": "10.0.0.{number}", "Service": {{"ID": "db", "Service": "db", "Port": 3306}},
            "Check": {{"CheckID": "c", "Name": "c", "Status": "{status}", "ServiceID": "db"}}}}"#
    )
}

/// Asks without a pause, by UDP and TCP and for either type, and keeps what was given.
fn ask_all_the_time(daemon: &Daemon, stop: &AtomicBool, given: &Mutex<BTreeSet<String>>) {
    let questions = ["db.service.consul A", "db.service.consul SRV", "db.service.consul ANY"];
    for turn in 0.. {
        if stop.load(Relaxed) {
            return;
        }
        let query = query(questions[turn % 3]);
        let reply = if turn % 2 == 0 { daemon.udp(&query) } else { daemon.tcp(&query) };
        assert!(reply.answer.len() <= 1, "{}: {:?}", questions[turn % 3], reply.data());
        given.lock().unwrap().extend(reply.data().into_iter().filter(|_| turn % 3 == 0));
    }
}

#[test]
fn there_is_never_a_second_writer_while_all_around_it_changes() {
    let Some(mut consul) = Consul::with_memory("{}") else { return };
    (1..=3).for_each(|number| consul.register(&node(number, "passing")));
    let recursor = Upstream::saying("198.51.100.1");
    let config = daemon::forward(".", &[recursor.address()])
        + &format!("[catalog.consul]\naddress = \"http://{}\"\nwait = \"1s\"\n", consul.http())
        + WRITER;
    let daemon = Arc::new(Setup::new(&config).start());
    let becomes = |address: &str| {
        wait_until(&format!("the writer {address}"), 3 * PATIENCE, || {
            (daemon.ask("db.service.consul A").data() == [address]).then_some(())
        });
    };
    becomes("10.0.0.1");
    let (stop, given) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeSet::new())));
    let askers: Vec<_> = (0..2)
        .map(|_| {
            let (daemon, stop, given) = (daemon.clone(), stop.clone(), given.clone());
            thread::spawn(move || ask_all_the_time(&daemon, &stop, &given))
        })
        .collect();
    // Checks flip.
    for _ in 0..10 {
        consul.register(&node(1, "critical"));
        becomes("10.0.0.2");
        consul.register(&node(1, "passing"));
        becomes("10.0.0.1");
    }
    // The order is another after a reload, and nodes come and go.
    for order in [["db-3", "db-1"], ["db-2", "db-3"], ["db-1", "db-2"]] {
        daemon.edit_config(|config| {
            let at = config.find("order = ").unwrap();
            let end = at + config[at..].find('\n').unwrap();
            config[..at].to_owned() + &format!("order = {order:?}") + &config[end..]
        });
        let log = daemon.reload();
        assert!(log.contains("reloaded"), "{log}");
        becomes(&order[0].replace("db-", "10.0.0."));
        consul.register(&node(4, "passing"));
        consul.put("/v1/catalog/deregister", r#"{"Node": "db-4"}"#);
    }
    // The source is lost, reloads or not, and comes back.
    consul.kill();
    wait_until("the loss of the source", 3 * PATIENCE, || {
        (daemon.metric("watershed_catalog_source_up", &[]) == 0.0).then_some(())
    });
    for _ in 0..3 {
        let log = daemon.reload();
        assert!(log.contains("reloaded"), "{log}");
        becomes("10.0.0.1");
    }
    consul.restart();
    wait_until("the source again", 4 * PATIENCE, || {
        (daemon.metric("watershed_catalog_source_up", &[]) == 1.0).then_some(())
    });
    consul.register(&node(1, "critical"));
    becomes("10.0.0.2");
    stop.store(true, Relaxed);
    for asker in askers {
        asker.join().expect("never two at a time");
    }
    let given = given.lock().unwrap();
    let writers = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(str::to_owned);
    assert!(given.iter().eq(&writers), "each was the writer once: {given:?}");
    assert!(recursor.asked().iter().all(|asked| !asked.contains("consul")));
}
