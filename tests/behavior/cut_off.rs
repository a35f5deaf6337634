//! While this host is cut off from all others, their instances stay in the answers; when they die, they do not.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::harness::{daemon::forward, netns::Netns, upstream::saying, *};

/// Two hosts behind the link, each with a database and a candidate for the one writer.
struct Site {
    netns: Netns,
    daemon: Daemon,
    hosts: [IpAddr; 2],
    _listeners: Vec<TcpListener>,
}

impl Site {
    fn start() -> Option<Self> {
        Self::in_front_of("127.0.0.1:9".parse().unwrap(), Netns::new("")?)
    }

    /// One whose recursor is this.
    fn in_front_of(upstream: SocketAddr, netns: Netns) -> Option<Self> {
        let IpAddr::V4(first) = netns.host() else { panic!("the harness speaks IPv4") };
        let second = Ipv4Addr::new(198, 51, 100, first.octets()[3]);
        ip(&format!("addr add {second}/32 dev {}", netns.interface()));
        ip(&format!("-n {} route add {second} via {first}", netns.name()));
        let hosts = [first, second].map(IpAddr::V4);
        let listeners: Vec<_> = hosts.iter().map(|&host| TcpListener::bind((host, 0)).unwrap()).collect();
        let services = ["db", "writer"].iter().flat_map(|name| {
            listeners.iter().enumerate().map(move |(number, listener)| {
                let address = listener.local_addr().unwrap();
                let (ip, port) = (address.ip(), address.port());
                format!(
                    r#"{{"name": "{name}", "id": "{name}{number}", "address": "{ip}", "port": {port},
                        "check": {{"tcp": "{address}", "interval": "1s", "timeout": "1s"}}}}"#
                )
            })
        });
        let text = format!("{{\"services\": [{}]}}", services.collect::<Vec<_>>().join(","));
        let catalog = "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n\
                       [catalog.files]\ndirectory = \"<DIR>/consul.d\"\n\
                       [catalog.service.writer]\npolicy = \"one\"\norder = [\"writer1\", \"writer0\"]\n";
        let config = format!("{catalog}{}", forward(".", &[upstream]));
        let daemon = Setup::new(&config).file("consul.d/all.json", &text).within(&netns).start();
        Some(Self { netns, daemon, hosts, _listeners: listeners })
    }

    /// The addresses that a name has, asked from inside.
    fn ask(&self, name: &str) -> Vec<String> {
        let address = self.daemon.address();
        let mut dig = self.netns.command("dig");
        dig.args([&format!("@{}", address.ip()), "-p", &address.port().to_string(), "+short", name, "A"]);
        // dig shares ports (SO_REUSEPORT), as the daemon does. Once in a while the kernel gives its socket the daemon's own port,
        // and dig then reads its own query.
        let is_its_own = |output: &String| output.contains("query response not set");
        let output = wait_until("dig to ask from another port", PATIENCE, || {
            Some(run(&mut dig)).filter(|output| !is_its_own(output))
        });
        let mut addresses: Vec<String> = output.lines().map(str::to_owned).collect();
        addresses.sort();
        addresses
    }

    fn both(&self) -> Vec<String> {
        let mut both = self.hosts.map(|host| host.to_string()).to_vec();
        both.sort();
        both
    }

    /// Both databases and the preferred writer are given.
    #[track_caller]
    fn assert_complete(&self, when: &str) {
        assert_eq!(self.ask("db.service.consul"), self.both(), "{when}");
        assert_eq!(self.ask("writer.service.consul"), [self.hosts[1].to_string()], "{when}");
    }

    /// Waits until every check has logged this state, and does this meanwhile.
    #[track_caller]
    fn until_all(&self, from: usize, state: &str, meanwhile: impl Fn()) {
        let log = || self.daemon.log_from(from);
        let said = |log: &[String], check: &str| {
            log.iter().any(|line| {
                line.contains("check changed state")
                    && line.contains(check)
                    && line.contains(&format!("status={state}"))
            })
        };
        wait_until(&format!("all checks to be {state}"), PATIENCE, || {
            meanwhile();
            let log = log();
            ["service:db0", "service:db1", "service:writer0", "service:writer1"]
                .iter()
                .all(|check| said(&log, check))
                .then_some(())
        });
    }

    fn metric(&self) -> String {
        let control = self.daemon.control.unwrap();
        let text = run(self.netns.command("curl").args(["-s", &format!("http://{control}/metrics")]));
        let line = text.lines().find(|line| line.starts_with("watershed_catalog_cut_off ")).expect("the metric");
        line.to_owned()
    }
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split(' ')));
}

#[test]
fn who_is_cut_off_keeps_the_others_and_whose_link_is_sound_loses_them() {
    let (Some(_), Some(_)) = (require::program("dig"), require::program("curl")) else { return };
    let Some(site) = Site::start() else { return };
    site.until_all(0, "passing", || {});
    site.assert_complete("all is well");

    let (name, outside) = (site.netns.name().to_owned(), site.netns.interface());
    let route = format!("-n {name} route add {} via {}", site.hosts[1], site.hosts[0]);
    for (cut, mend) in [
        // The carrier is lost, and the routes are there.
        (format!("link set {outside} down"), vec![format!("link set {outside} up")]),
        // The routes are lost.
        (format!("-n {name} link set inside down"), vec![format!("-n {name} link set inside up"), route]),
    ] {
        let from = site.daemon.log_length();
        ip(&cut);
        site.daemon.wait_for_log(from, |line| line.contains("cut off from all other hosts"));
        wait_until("the others to be back", PATIENCE, || (site.ask("db.service.consul") == site.both()).then_some(()));
        site.until_all(from, "critical", || site.assert_complete(&cut));
        assert_eq!(site.metric(), "watershed_catalog_cut_off 1", "{cut}");

        let from = site.daemon.log_length();
        mend.iter().for_each(|command| ip(command));
        site.until_all(from, "passing", || site.assert_complete(&mend[0]));
        site.daemon.wait_for_log(from, |line| line.contains("no longer cut off"));
        assert_eq!(site.metric(), "watershed_catalog_cut_off 0", "{}", mend[0]);
    }

    // They die, and nothing is wrong with the link.
    let from = site.daemon.log_length();
    ip(&format!("addr flush dev {outside}"));
    for name in ["db.service.consul", "writer.service.consul"] {
        wait_until("the hosts to leave", PATIENCE, || site.ask(name).is_empty().then_some(()));
    }
    let log = site.daemon.log_from(from).join("\n");
    assert!(!log.contains("cut off"), "{log}");
}

/// A client asks for names that the recursor leaves unanswered, while the only other hosts die.
#[test]
fn no_client_has_the_dead_kept_by_asking_for_what_is_never_answered() {
    let Some(_) = require::program("dig") else { return };
    let Some(netns) = Netns::new("") else { return };
    let (name, outside, guest) = (netns.name().to_owned(), netns.interface(), netns.guest());
    // The recursor has an address of its own, and answers all else.
    let IpAddr::V4(host) = netns.host() else { panic!("the harness speaks IPv4") };
    let recursor = Ipv4Addr::new(198, 51, 101, host.octets()[3]);
    ip(&format!("addr add {recursor}/32 dev {outside}"));
    ip(&format!("route add {guest}/32 dev {outside} src {recursor}"));
    ip(&format!("-n {name} route add {recursor} dev inside"));
    let upstream = Upstream::at(SocketAddr::new(recursor.into(), 5303), |asked| {
        if asked.message.asked().starts_with("dead") { vec![] } else { saying("192.0.2.1")(asked) }
    });
    let Some(site) = Site::in_front_of(upstream.address(), netns) else { return };
    site.until_all(0, "passing", || {});
    let server = site.daemon.address();
    let ask_in_vain = |name: String| {
        let mut dig = site.netns.command("dig");
        dig.args([&format!("@{}", server.ip()), "-p", &server.port().to_string(), "+tries=1", "+timeout=1", &name]);
        dig.output().unwrap();
    };
    let in_vain = || upstream.asked().iter().filter(|asked| asked.starts_with("dead")).count();
    let from = site.daemon.log_length();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Each waits for a second: they are four a second.
        for client in 0..4 {
            let (is_over, ask_in_vain) = (&is_over, &ask_in_vain);
            scope.spawn(move || {
                for number in (0..90).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                    ask_in_vain(format!("dead{number}.client{client}.example"));
                }
            });
        }
        wait_until("enough of them for a suspicion", PATIENCE, || (in_vain() >= 16).then_some(()));
        let [first, second] = site.hosts;
        ip(&format!("addr del {second}/32 dev {outside}"));
        ip(&format!("addr del {first}/30 dev {outside}"));
        wait_until("the dead to leave", PATIENCE, || site.ask("db.service.consul").is_empty().then_some(()));
        is_over.store(true, Ordering::Relaxed);
    });
    let log = site.daemon.log_from(from).join("\n");
    assert!(!log.contains("cut off") && !log.contains("upstream down"), "{log}");
    assert!(upstream.asked().contains(&". NS".to_owned()), "it was probed");
    // Its address goes with the namespace, and then its threads cannot be woken.
    drop(upstream);
}
