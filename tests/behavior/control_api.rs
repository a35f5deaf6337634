//! What operators and their monitoring read over HTTP: health and metrics.

use std::net::SocketAddr;

use crate::harness::{daemon::forward, message::TC, netns::Netns, *};

#[test]
fn live_and_ready_say_so() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for (path, expected) in [("/live", 200), ("/ready", 200), ("/metrics", 200), ("/nowhere", 404)] {
        assert_eq!(daemon.get(path).0, expected, "{path}");
    }
    let posted = http::request(daemon.control.unwrap(), "POST", "/metrics", "").unwrap();
    assert_eq!(posted.0, 405);
}

#[test]
fn without_any_upstream_it_serves_and_ready_says_what_is_missing() {
    let Some(netns) = Netns::new("# no nameserver at all\n") else { return };
    let daemon = Setup::new("").within(&netns).start();
    let ready = || {
        let url = format!("http://{}/ready", daemon.control.unwrap());
        run(netns.command("curl").args(["-s", "-w", "\n%{http_code}", &url]))
    };
    let text = ready();
    assert!(text.ends_with("503"), "{text}");
    assert!(text.contains("upstream") || text.contains("nameserver"), "{text}");
    let ask = |name: &str| {
        let port = daemon.address().port().to_string();
        run(netns.command("dig").args(["@127.0.0.1", "-p", &port, name, "A"]))
    };
    assert!(ask("localhost").contains("127.0.0.1"));
    assert!(ask("www.example").contains("SERVFAIL"));
}

#[test]
fn metrics_count_what_happened() {
    let upstream = Upstream::new(|asked| {
        let qname = asked.message.qname().to_lowercase();
        vec![Act::Reply(match qname.split('.').next().unwrap() {
            "no" => asked.message.respond().rcode("NXDOMAIN").authority(upstream::SOA),
            "big" if !asked.over_tcp => asked.message.respond().set(TC),
            _ => asked.message.respond().answer(&format!("{qname} 60 A 192.0.2.1")),
        })]
    });
    let dead = free_address();
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + &forward("dead.example", &[dead]))).start();
    daemon.ask("www.example A");
    daemon.ask("www.example A");
    daemon.tcp(&query("www.example A"));
    daemon.ask("www.example AAAA");
    daemon.ask("no.example A");
    daemon.ask("big.example A");
    (0..5).for_each(|number| drop(daemon.ask(&format!("name{number}.dead.example A"))));
    daemon.reload();
    let address = upstream.address().to_string();
    type AtLeast<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);
    let at_least: &[AtLeast] = &[
        ("watershed_server_queries_total", &[("transport", "udp")], 6.0),
        ("watershed_server_queries_total", &[("transport", "tcp")], 1.0),
        ("watershed_server_queries_total", &[("qtype", "A")], 6.0),
        ("watershed_server_queries_total", &[("qtype", "AAAA")], 1.0),
        ("watershed_server_replies_total", &[("rcode", "NOERROR")], 5.0),
        ("watershed_server_replies_total", &[("rcode", "NXDOMAIN")], 1.0),
        ("watershed_server_replies_total", &[("rcode", "SERVFAIL")], 1.0),
        ("watershed_cache_hits_total", &[], 2.0),
        ("watershed_cache_misses_total", &[], 5.0),
        ("watershed_cache_bytes", &[], 100.0),
        ("watershed_cache_entries", &[], 3.0),
        ("watershed_forward_seconds_count", &[], 4.0),
        ("watershed_forward_failures_total", &[("upstream", &dead.to_string())], 1.0),
        ("watershed_forward_up", &[("upstream", &address)], 1.0),
        ("watershed_daemon_reloads_total", &[("result", "ok")], 1.0),
        ("watershed_build_info", &[], 1.0),
    ];
    for (name, labels, expected) in at_least {
        wait_until(&format!("{name} {labels:?} >= {expected}"), PATIENCE, || {
            (daemon.metric(name, labels) >= *expected).then_some(())
        });
    }
    wait_until("the dead upstream to be down", PATIENCE, || {
        (daemon.metric("watershed_forward_up", &[("upstream", &dead.to_string())]) == 0.0).then_some(())
    });
    for name in ["watershed_cache_stale_total", "watershed_cache_evictions_total", "watershed_resolve_queue_depth"] {
        assert!(daemon.get("/metrics").1.contains(&format!("# TYPE {name} ")), "{name}");
    }
}

#[test]
fn the_exposition_is_what_prometheus_reads() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    daemon.ask("www.example A");
    let (_, text) = daemon.get("/metrics");
    let mut families = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# TYPE ") {
            families.push(comment.split(' ').next().unwrap().to_owned());
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = series.split('{').next().unwrap();
            let family = families.last().expect("a TYPE line first");
            assert!(name.starts_with(family.as_str()), "{line} below {family}");
            assert!(!line.contains("www.example"), "no label comes from a query: {line}");
        }
    }
    families.sort();
    let before = families.len();
    families.dedup();
    assert_eq!(families.len(), before, "each family once");
    assert!(
        families.iter().all(|family| family.starts_with("watershed_") || family == "process_start_time_seconds"),
        "{families:?}"
    );
}

/// Nothing on the control port changes state without loopback; and a network that is not loopback sees no port at all
/// unless the operator says so.
#[test]
fn the_control_port_lies_on_loopback_by_default() {
    let Some(netns) = Netns::new("nameserver 192.0.2.1\n") else { return };
    let daemon = Setup::bare().within(&netns).start();
    assert_eq!(daemon.control, Some("127.0.0.1:8653".parse::<SocketAddr>().unwrap()));
}
