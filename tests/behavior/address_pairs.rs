//! What libc asks in pairs, A and AAAA, fails or succeeds in pairs: an empty answer beside a failure would be taken for "no
//! such host", and a question without a reply costs a program five seconds.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    catalog::{services, with_definitions},
    daemon::forward,
    netns::Netns,
    programs::Consul,
    *,
};

/// A program that calls getaddrinfo(3) for names in turn, without a pause.
struct Libc {
    child: Child,
    seen: Arc<Mutex<Vec<Seen>>>,
}

/// What a call gave.
#[derive(Debug, Clone)]
struct Seen {
    name: String,
    /// An error of libc's, or 0.
    error: i32,
    addresses: Vec<String>,
    elapsed: Duration,
}

impl Libc {
    fn start(netns: &Netns, names: &[&str]) -> Self {
        let script = r#"
            use Socket qw(:all);
            $| = 1;
            while (1) {
                for my $name (@ARGV) {
                    my ($error, @found) = Socket::getaddrinfo($name, "", {socktype => SOCK_STREAM});
                    my @texts = map { (Socket::getnameinfo($_->{addr}, NI_NUMERICHOST | NI_NUMERICSERV))[1] } @found;
                    print join(" ", $name, $error + 0, @texts), "\n";
                    select(undef, undef, undef, 0.002);
                }
            }"#;
        let mut command = netns.command("perl");
        command.args(["-e", script]).args(names).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        thread::spawn({
            let seen = seen.clone();
            move || {
                let mut last = Instant::now();
                for line in lines.map_while(Result::ok) {
                    let mut words = line.split(' ').map(str::to_owned);
                    let (name, error) = (words.next().unwrap(), words.next().unwrap().parse().unwrap());
                    let (now, mut addresses) = (Instant::now(), words.collect::<Vec<_>>());
                    addresses.sort();
                    seen.lock().unwrap().push(Seen { name, error, addresses, elapsed: now - last });
                    last = now;
                }
            }
        });
        Self { child, seen }
    }

    /// All calls until now.
    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until each name has been asked for once more from its start to its end.
    #[track_caller]
    fn pass(&self, names: usize) {
        let before = self.seen().len();
        wait_until("further calls", 3 * PATIENCE, || (self.seen().len() > before + 2 * names).then_some(()));
    }

    /// Waits until a call for the name gives this.
    #[track_caller]
    fn wait_for(&self, name: &str, what: &str, wanted: impl Fn(&Seen) -> bool) {
        let before = self.seen().len();
        wait_until(&format!("{name}: {what}"), 2 * PATIENCE, || {
            self.seen().iter().skip(before).any(|seen| seen.name == name && wanted(seen)).then_some(())
        });
    }
}

impl Drop for Libc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a call has found all there is, or failed so that programs try again later.
#[track_caller]
fn demand_whole(seen: &[Seen], expected: &[(&str, &[&str])]) {
    assert!(!seen.is_empty());
    for call in seen {
        let (_, addresses) = expected.iter().find(|(name, _)| *name == call.name).expect("a name that was asked for");
        let is_whole = call.error == 0 && call.addresses == *addresses;
        assert!(is_whole || call.error == EAI_AGAIN && call.addresses.is_empty(), "{call:?}");
        assert!(call.elapsed < Duration::from_secs(5), "{call:?}");
    }
}

const EAI_AGAIN: i32 = -3;

#[test]
fn getaddrinfo_sees_no_half_of_a_pair_while_sources_come_and_go() {
    let Some(netns) = Netns::new("nameserver 127.0.0.1\n") else { return };
    let holding = || upstream::holding(&["db.example. 0 A 192.0.2.7"]);
    let recursor = Upstream::at(SocketAddr::new(netns.host(), 5353), holding());
    let text = services(&[
        r#"{"name": "v4", "address": "192.0.2.4", "port": 1}"#.to_owned(),
        r#"{"name": "dual", "id": "dual4", "address": "192.0.2.5", "port": 1}"#.to_owned(),
        r#"{"name": "dual", "id": "dual6", "address": "2001:db8::5", "port": 1}"#.to_owned(),
        r#"{"name": "far", "address": "db.example", "port": 1}"#.to_owned(),
    ]);
    let config = forward(".", &[recursor.address()]) + "[server]\nlisten = [\"127.0.0.1:53\"]\n";
    let daemon = with_definitions(&config, &[("pairs.json", &text)]).within(&netns).start();
    let names: [(&str, &[&str]); 3] = [
        ("v4.service.consul", &["192.0.2.4"]),
        ("dual.service.consul", &["192.0.2.5", "2001:db8::5"]),
        ("far.service.consul", &["192.0.2.7"]),
    ];
    let libc = Libc::start(&netns, &names.map(|(name, _)| name));
    let far = names[2].0;
    libc.wait_for(far, "an address", |seen| seen.error == 0);
    for _ in 0..2 {
        // The file is refused, and what it said stays.
        daemon.write("consul.d/pairs.json", &text.replace("\"port\": 1", "\"port\": \"one\""));
        libc.pass(names.len());
        daemon.write("consul.d/pairs.json", &text);
        libc.pass(names.len());
        // The recursor fails, is silent, and comes back.
        for script in ["SERVFAIL", "REFUSED", "silence"] {
            recursor.change(move |asked| match script {
                "silence" => vec![],
                rcode => vec![Act::Reply(asked.message.respond().rcode(rcode))],
            });
            libc.wait_for(far, script, |seen| seen.error == EAI_AGAIN);
            recursor.change(holding());
            libc.wait_for(far, "an address again", |seen| seen.error == 0);
        }
    }
    let seen = libc.seen();
    demand_whole(&seen, &names);
    let local = seen.iter().filter(|call| call.name != far);
    assert!(local.clone().all(|call| call.error == 0), "what is said here depends on no one");
    println!("{} calls, {} of them failed", seen.len(), seen.iter().filter(|call| call.error != 0).count());
}

#[test]
fn getaddrinfo_is_told_at_once_that_the_agent_is_lost() {
    let Some(netns) = Netns::new("nameserver 127.0.0.1\n") else { return };
    let service = r#"{"service": {"name": "galeradb", "address": "10.0.0.5", "port": 3306}}"#;
    let Some(consul) = Consul::start(service, Some(&netns)) else { return };
    let _daemon = Setup::new("[server]\nlisten = [\"127.0.0.1:53\"]\n").within(&netns).start();
    let names: [(&str, &[&str]); 1] = [("galeradb.service.consul", &["10.0.0.5"])];
    wait_until("the service", 2 * PATIENCE, || {
        netns.command("getent").args(["ahosts", names[0].0]).output().unwrap().status.success().then_some(())
    });
    let libc = Libc::start(&netns, &[names[0].0]);
    libc.wait_for(names[0].0, "an address", |seen| seen.error == 0);
    drop(consul);
    libc.wait_for(names[0].0, "a failure", |seen| seen.error == EAI_AGAIN);
    libc.pass(1);
    demand_whole(&libc.seen(), &names);
}

#[test]
fn getaddrinfo_lives_through_the_loss_of_an_agent_that_is_followed() {
    let Some(netns) = Netns::new("nameserver 127.0.0.1\n") else { return };
    let service = r#"{"service": {"name": "galeradb", "address": "10.0.0.5", "port": 3306}}"#;
    let names: [(&str, &[&str]); 1] = [("galeradb.service.consul", &["10.0.0.5"])];
    let galeradb = names[0].0;
    for (max_stale, outlives) in [("1h", true), ("1s", false)] {
        let Some(consul) = Consul::start(service, Some(&netns)) else { return };
        let config = format!(
            "[server]\nlisten = [\"127.0.0.1:53\"]\n[catalog]\nmax_stale = \"{max_stale}\"\n[catalog.consul]\n"
        );
        let daemon = Setup::new(&config).within(&netns).start();
        // An agent that has just started does not know its own service yet, and is believed in that.
        wait_until("the service", 2 * PATIENCE, || {
            netns.command("getent").args(["ahosts", galeradb]).output().unwrap().status.success().then_some(())
        });
        let libc = Libc::start(&netns, &[galeradb]);
        libc.wait_for(galeradb, "an address", |seen| seen.error == 0);
        drop(consul);
        daemon.wait_for_log(0, |line| line.contains("source away"));
        libc.pass(20);
        if !outlives {
            libc.wait_for(galeradb, "a failure", |seen| seen.error == EAI_AGAIN);
            libc.pass(1);
            demand_whole(&libc.seen(), &names);
            continue;
        }
        // It comes back with nothing of its past, and reads its definitions again.
        let from = daemon.log_length();
        let Some(_consul) = Consul::start(service, Some(&netns)) else { return };
        daemon.wait_for_log(from, |line| line.contains("source followed"));
        libc.pass(20);
        let seen = libc.seen();
        demand_whole(&seen, &names);
        assert!(seen.iter().all(|call| call.error == 0), "what was held last is what there is");
    }
}
