//! A reload takes effect whole or not at all, and loses nothing that it did not change.

use std::{
    net::{TcpStream, UdpSocket},
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use crate::harness::{daemon::forward, *};

#[test]
fn a_changed_rule_answers_anew_and_the_others_keep_their_entries() {
    let (old, new, other) =
        (Upstream::saying("192.0.2.1"), Upstream::saying("192.0.2.2"), Upstream::saying("192.0.2.3"));
    let config = forward("corp.example", &[old.address()]) + &forward(".", &[other.address()]);
    let daemon = Setup::new(&config).start();
    assert_eq!(daemon.ask("www.corp.example A").one(), "192.0.2.1");
    assert_eq!(daemon.ask("www.example A").one(), "192.0.2.3");
    daemon.edit_config(|config| config.replace(&old.address().to_string(), &new.address().to_string()));
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(daemon.ask("www.corp.example A").one(), "192.0.2.2", "void with its rule");
    assert_eq!(daemon.ask("www.example A").one(), "192.0.2.3");
    assert_eq!(other.count("www.example A"), 1, "still in the cache");
    assert_eq!(old.asked().len(), 1);
}

#[test]
fn new_rules_and_lost_rules_take_effect() {
    let (public, corp) = (Upstream::saying("192.0.2.1"), Upstream::saying("192.0.2.2"));
    let rule = forward("corp.example", &[corp.address()]);
    let daemon = Setup::new(&forward(".", &[public.address()])).start();
    assert_eq!(daemon.ask("www.corp.example A").one(), "192.0.2.1");
    daemon.edit_config(|config| format!("{rule}{config}"));
    daemon.reload();
    assert_eq!(daemon.ask("www.corp.example A").one(), "192.0.2.2");
    daemon.edit_config(|config| config.replace(&rule, "\n[[refuse]]\nsuffixes = [\"corp.example\"]\n"));
    daemon.reload();
    assert_eq!(daemon.ask("www.corp.example A").rcode_name(), "REFUSED");
    daemon.edit_config(|config| config.replace("\n[[refuse]]\nsuffixes = [\"corp.example\"]\n", ""));
    daemon.reload();
    assert_eq!(daemon.ask("www.corp.example A").one(), "192.0.2.1");
    assert_eq!(daemon.metric("watershed_daemon_reloads_total", &[]), 3.0);
}

#[test]
fn a_faulty_configuration_changes_nothing_and_names_every_fault() {
    let upstream = Upstream::saying("192.0.2.1");
    let elsewhere = Upstream::saying("192.0.2.2");
    let mut daemon = Setup::forwarding_to(upstream.address()).start();
    daemon.ask("www.example A");
    daemon.edit_config(|config| {
        let config = config.replace(&upstream.address().to_string(), &elsewhere.address().to_string());
        config + "\n[cache]\nsize = \"many\"\n[[zone]]\napex = \"x.example\"\nfile = \"<DIR>/missing.zone\"\n"
    });
    let log = daemon.reload();
    assert!(log.contains("reload failed"), "{log}");
    assert!(log.contains("ERROR") && log.contains("watershed.toml:"), "file and line: {log}");
    assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1");
    assert_eq!(daemon.ask("new.example A").one(), "192.0.2.1", "the old tables stay whole");
    assert!(elsewhere.asked().is_empty());
    assert!(daemon.is_running());
    assert_eq!(daemon.get("/live").0, 200);
    daemon.edit_config(|config| config.split("\n[cache]").next().unwrap().to_owned());
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(daemon.ask("later.example A").one(), "192.0.2.2");
}

#[test]
fn no_query_is_lost_while_the_configuration_is_reloaded() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..4 {
            let (daemon, done) = (&daemon, &done);
            scope.spawn(move || {
                let mut number = 0;
                while !done.load(Ordering::Relaxed) {
                    number += 1;
                    let question = query(&format!("name{}.client{client}.example A", number / 2)).edns(1232);
                    let reply = if client == 0 { daemon.tcp(&question) } else { daemon.udp(&question) };
                    assert_eq!(reply.data(), ["192.0.2.1"]);
                }
            });
        }
        for round in 0..10 {
            daemon.edit_config(|config| config + &format!("\n[[refuse]]\nsuffixes = [\"round{round}.test\"]\n"));
            assert!(daemon.reload().contains("reloaded"));
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Two configurations in turn: their zones, their upstreams, and a chain from one zone into the other.
#[test]
fn under_full_load_each_reply_is_wholly_of_one_configuration_and_none_is_lost() {
    const OPEN: usize = 24;
    const ROUNDS: usize = 6;
    let zone = |records: &str| format!("$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n{records}");
    let upstreams = [Upstream::saying("192.0.2.110"), Upstream::saying("192.0.2.120")];
    let rule = |of: usize| {
        let zone = |name: &str| format!("[[zone]]\napex = \"{name}\"\nfile = \"<DIR>/{of}/{name}\"\n");
        zone("site.example") + &zone("corp.example") + &forward(".", &[upstreams[of].address()])
    };
    let mut setup = Setup::new(&rule(0));
    for of in 0..2 {
        let (first, second) = (of * 10 + 1, of * 10 + 2);
        let site = format!("www A 192.0.2.{first}\nwww A 192.0.2.{second}\nalias CNAME host{of}.corp.example.\n");
        setup = setup.file(&format!("{of}/site.example"), &zone(&site));
        setup = setup.file(&format!("{of}/corp.example"), &zone(&format!("host{of} A 192.0.2.{first}\n")));
    }
    let daemon = setup.start();
    let expected = |question: &str, of: usize| -> Vec<String> {
        let (first, second) = (format!("192.0.2.{}", of * 10 + 1), format!("192.0.2.{}", of * 10 + 2));
        match question {
            "www.site.example A" => vec![first, second],
            "alias.site.example A" => vec![first, format!("host{of}.corp.example.")],
            _ => vec![format!("192.0.2.1{}0", of + 1)],
        }
    };
    // Even while a configuration stands, whose number is the half of it; odd while it changes.
    let phase = AtomicUsize::new(0);
    let answered = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let client = |number: usize| {
        let socket = client::socket_for(daemon.address());
        let questions = ["www.site.example A", "alias.site.example A", "www.forwarded.example A"];
        let mut open = std::collections::HashMap::new();
        for turn in number.. {
            let goes_on = !done.load(Ordering::Relaxed);
            if goes_on {
                let (asked, question) = (phase.load(Ordering::SeqCst), questions[turn % questions.len()]);
                let message = query(question).edns(1232);
                socket.send(&message.to_wire()).unwrap();
                open.insert(message.id, (asked, question));
            }
            while open.len() > if goes_on { OPEN } else { 0 } {
                let mut buffer = [0; 2048];
                let length = socket.recv(&mut buffer).expect("an answer to every query");
                let reply = Message::from_wire(&buffer[..length]).unwrap();
                let (asked, question) = open.remove(&reply.id).expect("one answer to a query");
                let mut data = reply.data();
                data.sort();
                let now = phase.load(Ordering::SeqCst);
                let fits = |phase: usize| data == expected(question, phase / 2 % 2);
                let is_right = if asked == now && now.is_multiple_of(2) { fits(now) } else { fits(0) || fits(2) };
                assert!(is_right, "{question}, asked in phase {asked}, answered in {now}: {data:?}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
            if !goes_on {
                return;
            }
        }
    };
    thread::scope(|scope| {
        for number in 0..3 {
            let client = &client;
            scope.spawn(move || client(number));
        }
        for round in 1..=ROUNDS {
            let before = answered.load(Ordering::Relaxed);
            wait_until("the load", PATIENCE, || (answered.load(Ordering::Relaxed) > before + 300).then_some(()));
            phase.fetch_add(1, Ordering::SeqCst);
            daemon.edit_config(|config| {
                let folder = daemon.folder().display().to_string();
                let rule = |of: usize| rule(of).replace("<DIR>", &folder);
                config.replace(&rule((round + 1) % 2), &rule(round % 2))
            });
            assert!(daemon.reload().contains("reloaded"));
            phase.fetch_add(1, Ordering::SeqCst);
        }
        let before = answered.load(Ordering::Relaxed);
        wait_until("the load", PATIENCE, || (answered.load(Ordering::Relaxed) > before + 300).then_some(()));
        done.store(true, Ordering::Relaxed);
    });
}

/// What an upstream still answers for the old tables does not enter the cache of the new ones.
#[test]
fn an_answer_that_was_under_way_is_not_kept_under_new_rules() {
    let (old, gate) = Upstream::saying_behind_gate("192.0.2.1");
    let new = Upstream::saying("192.0.2.2");
    let daemon = Setup::forwarding_to(old.address()).start();
    thread::scope(|scope| {
        let early = scope.spawn(|| daemon.ask("www.example A"));
        old.wait_for("www.example A", 1);
        daemon.edit_config(|config| config.replace(&old.address().to_string(), &new.address().to_string()));
        assert!(daemon.reload().contains("reloaded"));
        gate.open();
        assert_eq!(early.join().unwrap().one(), "192.0.2.1", "it is not lost");
    });
    assert_eq!(daemon.ask("www.example A").one(), "192.0.2.2");
}

#[test]
fn zones_and_hosts_are_reloaded_too() {
    let upstream = Upstream::saying("192.0.2.1");
    let zone =
        |address: &str| format!("$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A {address}\n");
    let section = "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/elsewhere/site.txt\"\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + section))
        .file("elsewhere/site.txt", &zone("192.0.2.10"))
        .start();
    assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.10");
    daemon.write("elsewhere/site.txt", &zone("192.0.2.11"));
    daemon.reload();
    assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.11");
}

#[test]
fn addresses_are_opened_and_closed_by_a_reload() {
    let upstream = Upstream::saying("192.0.2.1");
    let (first, second) = (free_address(), free_address());
    let listen = |addresses: &str| format!("listen = [{addresses}]");
    let (both, one, other) = (format!("\"{first}\", \"{second}\""), format!("\"{first}\""), format!("\"{second}\""));
    let config = forward(".", &[upstream.address()]) + "[server]\n" + &listen(&one) + "\n";
    let daemon = Setup::new(&config).start();
    let question = query("www.example A");
    assert_eq!(udp(first, &question).one(), "192.0.2.1");
    for (from, to, open, closed) in
        [(&one, &both, vec![first, second], vec![]), (&both, &other, vec![second], vec![first])]
    {
        daemon.edit_config(|config| config.replace(&listen(from), &listen(to)));
        assert!(daemon.reload().contains("reloaded"));
        for address in open {
            assert_eq!(udp(address, &question).one(), "192.0.2.1", "{address}");
            assert_eq!(tcp(address, &question).one(), "192.0.2.1", "{address}");
        }
        for address in closed {
            wait_until("the closed port", PATIENCE, || UdpSocket::bind(address).ok());
            assert!(TcpStream::connect(address).is_err(), "{address}");
        }
    }
}

#[test]
fn files_of_a_folder_join_the_configuration_and_a_reload_sees_them_come_and_go() {
    let (main, dropped) = (Upstream::saying("192.0.2.1"), Upstream::saying("192.0.2.2"));
    let config = "include = [\"conf.d/*.toml\", \"${CREDENTIALS_DIRECTORY}/secrets.toml\"]\n".to_owned()
        + &forward(".", &[main.address()])
        + "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.9\"\n";
    let daemon = Setup::new(&config)
        .file("conf.d/10-corp.toml", &forward("corp.example", &[dropped.address()]))
        .file("credentials/secrets.toml", "[catalog.api]\nenable_registration = true\ntoken = \"the secret\"\n")
        .env("CREDENTIALS_DIRECTORY", "<DIR>/credentials")
        .start();
    let says = |name: &str| daemon.ask(&format!("{name} A")).data();
    assert_eq!((says("www.example"), says("www.corp.example")), (vec!["192.0.2.1".into()], vec!["192.0.2.2".into()]));
    let register = |fields: &[(&str, &str)]| {
        let request = "PUT /v1/agent/service/register";
        http::send(daemon.control.unwrap(), request, fields, "{\"Name\": \"web\"}", PATIENCE).unwrap().status
    };
    assert_eq!((register(&[]), register(&[("X-Consul-Token", "the secret")])), (403, 200));
    // A second module of the configuration management.
    daemon.write("conf.d/20-lab.toml", &forward("lab.example", &[dropped.address()]));
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(says("www.lab.example"), ["192.0.2.2"]);
    // One with a fault is named, and changes nothing.
    daemon.write("conf.d/30-bad.toml", &("\n".to_owned() + &forward("lab.example", &[main.address()])));
    let log = daemon.reload();
    assert!(log.contains("reload failed"), "{log}");
    daemon.wait_for_log(0, |line| {
        line.contains("conf.d/30-bad.toml:4: ") && line.contains("conf.d/20-lab.toml:3 already")
    });
    assert_eq!(says("new.lab.example"), ["192.0.2.2"]);
    std::fs::remove_file(daemon.folder().join("conf.d/30-bad.toml")).unwrap();
    std::fs::remove_file(daemon.folder().join("conf.d/20-lab.toml")).unwrap();
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(says("other.lab.example"), ["192.0.2.1"]);
}

#[test]
fn a_reload_for_which_descriptors_run_out_changes_nothing() {
    let Some(prlimit) = require::program("prlimit") else { return };
    let (old, new) = (Upstream::saying("192.0.2.1"), Upstream::saying("192.0.2.2"));
    let daemon = Setup::forwarding_to(old.address()).start();
    let limit = |most: usize| {
        let pid = daemon.pid().to_string();
        run(Command::new(&prlimit).args(["--pid", &pid, &format!("--nofile={most}:1024")]));
    };
    let [further, metrics, api] = [free_address(), free_address(), free_address()];
    daemon.edit_config(|config| {
        let listen = "listen = [\"127.0.0.1:0\"";
        let config = config.replace(listen, &format!("{listen}, \"{further}\""));
        let config = config.replace("[control]", &format!("[control]\nmetrics_listen = \"{metrics}\""));
        let config = config.replace(&old.address().to_string(), &new.address().to_string());
        format!("{config}\n[catalog]\naddress = \"192.0.2.9\"\n[catalog.api]\nlisten = \"{api}\"\n")
    });
    let at_start = daemon.metric("process_open_fds", &[]) as usize;
    let mut refused = 0;
    let taken = (0..60).find(|spare| {
        limit(at_start + spare);
        let log = daemon.reload();
        limit(1024);
        let is_taken = log.contains("reloaded");
        let expected = if is_taken { "192.0.2.2" } else { "192.0.2.1" };
        assert_eq!(daemon.ask(&format!("name{spare}.example A")).one(), expected, "{spare} to spare: {log}");
        for address in [further, metrics, api] {
            assert_eq!(TcpStream::connect(address).is_ok(), is_taken, "{address} with {spare} to spare: {log}");
        }
        if !is_taken {
            refused += 1;
            let open = daemon.metric("process_open_fds", &[]) as usize;
            assert!(open <= at_start + 5, "{spare} to spare: {at_start} open, then {open}");
            assert!(log.contains("Too many open files"), "{log}");
        }
        is_taken
    });
    assert!(taken.is_some() && refused > 5, "{taken:?} after {refused} that were refused");
    let reply = client::udp(further, &query("last.example A"));
    assert_eq!(reply.one(), "192.0.2.2");
}
