//! What operators and their monitoring read over HTTP: health and metrics.

use std::{fs, net::SocketAddr, path::Path};

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
        families.iter().all(|family| family.starts_with("watershed_") || family.starts_with("process_")),
        "{families:?}"
    );
}

/// A route, and whether it changes anything: all that there are, as the source lists them, each with a name where one goes.
fn routes() -> Vec<(String, bool)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/control");
    let mut routes = Vec::new();
    for file in ["mod.rs", "consul/mod.rs"] {
        let text = fs::read_to_string(source.join(file)).unwrap();
        let own = text.split("#[cfg(test)]").next().unwrap();
        for line in own.lines().map(str::trim) {
            let (rest, name) = match (line.strip_prefix(".route(\""), line.strip_prefix(".merge(named(\"")) {
                (Some(rest), _) => (rest, ""),
                (None, Some(rest)) => (rest, "anything"),
                (None, None) => continue,
            };
            let (path, handler) = rest.split_once("\", ").expect("a path and its handler");
            // What is not served has no handler of its own.
            if handler.starts_with("any(not_served)") {
                continue;
            }
            let path = path.split("{*").next().unwrap_or(path);
            let name = if rest.contains("{*") { "anything" } else { name };
            assert!(handler.starts_with("get(") || handler.starts_with("put("), "another method: {line}");
            routes.push((format!("{path}{name}"), handler.starts_with("put(")));
        }
    }
    assert!(routes.iter().filter(|route| route.1).count() >= 10 && routes.len() >= 25, "{routes:?}");
    routes
}

/// A catalog to which services may be registered.
fn registering() -> Setup {
    Setup::new(
        "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n[catalog.api]\nenable_registration = true\n",
    )
}

const SERVICE: &str = "{\"Name\": \"web\", \"Port\": 80}";

#[test]
fn no_page_of_another_site_reaches_any_route() {
    let daemon = registering().start();
    let control = daemon.control.unwrap();
    let (own, origin) = (control.to_string(), format!("http://{control}"));
    type Fields<'a> = &'a [(&'a str, &'a str)];
    for (path, changes) in routes() {
        let method = if changes { "PUT" } else { "GET" };
        let status = |method: &str, fields: Fields| {
            http::send(control, &format!("{method} {path}"), fields, SERVICE, PATIENCE).unwrap().status
        };
        // Under a name that somebody else may have led here.
        for host in ["attacker.example", "localhost.attacker.example", "127.0.0.1.attacker.example"] {
            assert_eq!(status(method, &[("Host", host)]), 421, "{path} as {host}");
        }
        for (fields, is_foreign) in [
            (&[("Origin", "https://attacker.example")][..], true),
            (&[("Origin", "null")], true),
            (&[("Sec-Fetch-Site", "cross-site")], true),
            (&[("Sec-Fetch-Site", "same-site")], true),
            (&[("Origin", &*origin), ("Host", &*own)], false),
            (&[], false),
        ] {
            // What only shows can be read by a browser, whose own rules keep it from pages of other sites.
            assert_eq!(status(method, fields) == 403, is_foreign && changes, "{path} {fields:?}");
        }
        if changes {
            // By no other method, which a page could use without asking.
            for other in ["GET", "POST", "HEAD", "DELETE", "OPTIONS"] {
                assert_eq!(status(other, &[]), 405, "{other} {path}");
            }
        }
    }
}

#[test]
fn nothing_is_changed_from_another_host_without_the_token() {
    let Some(netns) = Netns::new("") else { return };
    for (token, right, expected) in
        [("", "none", "403"), ("token = \"secret\"\n", "wrong", "403"), ("token = \"secret\"\n", "secret", "")]
    {
        let config = format!(
            "[control]\nlisten = \"0.0.0.0:0\"\n[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n\
                              [catalog.api]\nenable_registration = true\n{token}"
        );
        let daemon = Setup::new(&config).start();
        let port = daemon.control.unwrap().port();
        let changing: Vec<String> = routes().into_iter().filter(|route| route.1).map(|route| route.0).collect();
        let urls = changing.iter().map(|path| format!("http://{}:{port}{path}", netns.host()));
        let header = format!("X-Consul-Token: {right}");
        let mut curl = netns.command("curl");
        curl.args(["-s", "-X", "PUT", "-H", &header, "-d", SERVICE, "-w", "\n=%{http_code}\n"]).args(urls);
        let text = run(&mut curl);
        let statuses: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix('=')).collect();
        assert_eq!(statuses.len(), changing.len(), "{text}");
        let registered = daemon.get("/v1/catalog/services").1.contains("web");
        if expected.is_empty() {
            assert!(registered && statuses.iter().all(|status| *status != "403"), "{text}");
        } else {
            assert!(!registered && statuses.iter().all(|status| *status == expected), "{right}: {text}");
        }
    }
}

/// This host has a short name; its `hosts` file knows the full one.
#[test]
fn requests_by_the_names_of_this_host_are_served() {
    let Some(netns) = Netns::new("search attacker.example\nnameserver 127.0.0.1\n") else { return };
    let host = run(std::process::Command::new("uname").arg("-n")).trim().split('.').next().unwrap().to_owned();
    netns.set_hosts(&format!("127.0.0.1 localhost\n127.0.0.1 {host}.corp.example {host} # old.example\n"));
    let config = "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n\
                  [catalog.api]\nenable_registration = true\nlisten = \"127.0.0.1:8500\"\n\
                  [control]\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:8654\"\nhosts = [\"scrape.example\"]\n";
    let daemon = Setup::new(config).within(&netns).start();
    let status = |address: &str, name: &str, path: &str| {
        let url = format!("http://{address}{path}");
        let field = format!("Host: {name}");
        run(netns.command("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", &field, &url]))
    };
    let control = daemon.control.unwrap().to_string();
    let full = format!("{host}.corp.example");
    for (name, expected) in [
        (&*full, "200"),
        (&format!("{}.:8653", full.to_uppercase()), "200"),
        (&host, "200"),
        ("scrape.example:8653", "200"),
        ("monitor1", "200"), // our node in the catalog
        ("monitor1.node.consul:8653", "200"),
        ("watershed.service.consul", "200"),
        ("consul.attacker.example", "421"),
        ("notconsul", "421"),
        ("monitor1.attacker.example", "421"),
        (&format!("{host}.attacker.example"), "421"), // by the search list, which DHCP may fill
        ("old.example", "421"),
        ("corp.example", "421"),
    ] {
        for (address, path) in
            [(&*control, "/metrics"), ("127.0.0.1:8654", "/metrics"), ("127.0.0.1:8500", "/v1/catalog/nodes")]
        {
            assert_eq!(status(address, name, path), expected, "{name} at {address}");
        }
    }
    // As Prometheus does it, by a name that is looked up.
    let url = format!("http://{full}:{}/metrics", daemon.control.unwrap().port());
    assert!(run(netns.command("curl").args(["-sf", &url])).contains("watershed_build_info"));
    daemon.edit_config(|config| config.replace("scrape.example", "other.example"));
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(status(&control, "scrape.example", "/live"), "421");
    assert_eq!(status(&control, "other.example", "/live"), "200");
}

#[test]
fn prometheus_scrapes_by_the_full_name_of_the_host() {
    let Some(netns) = Netns::new("nameserver 127.0.0.1\n") else { return };
    let Some(program) = require::program("prometheus") else { return };
    let host = run(std::process::Command::new("uname").arg("-n")).trim().split('.').next().unwrap().to_owned();
    let full = format!("{host}.corp.example");
    netns.set_hosts(&format!("127.0.0.1 localhost\n127.0.0.1 {full} {host}\n"));
    let daemon = Setup::new("[control]\nlisten = \"\"\nmetrics_listen = \"127.0.0.1:8654\"\n").within(&netns).start();
    let folder = tempfile::tempdir().unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: dns, static_configs: [{{targets: ['{full}:8654']}}]}}]\n"
    );
    fs::write(folder.path().join("prometheus.yml"), config).unwrap();
    let mut prometheus = netns
        .command(&program.display().to_string())
        .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--web.listen-address=127.0.0.1:9090"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let found = wait_until("a scrape", 4 * PATIENCE, || {
        let url = "http://127.0.0.1:9090/api/v1/query?query=watershed_build_info";
        let text = netns.command("curl").args(["-s", url]).output().ok()?.stdout;
        let text = String::from_utf8(text).ok()?;
        text.contains(&full).then_some(text)
    });
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
    assert!(found.contains("watershed_build_info"), "{found}");
    drop(daemon);
}

#[test]
fn metrics_have_an_address_of_their_own_which_shows_no_more() {
    let config = "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n\
                  [catalog.api]\nenable_registration = true\n\
                  [control]\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n";
    let daemon = Setup::new(config).start();
    let line = daemon.wait_for_log(0, |line| line.contains("serving metrics"));
    let own: SocketAddr = line.split("address=").nth(1).unwrap().trim().parse().unwrap();
    for (path, status) in [("/metrics", 200), ("/live", 200), ("/v1/catalog/nodes", 404), ("/v1/agent/metrics", 404)] {
        assert_eq!(http::get(own, path).0, status, "{path}");
    }
    assert!([200, 503].contains(&http::get(own, "/ready").0));
    let put = http::request(own, "PUT", "/v1/agent/service/register", SERVICE).unwrap();
    assert_eq!(put.0, 404);
    // Another address, and then none.
    let other = free_address();
    daemon.edit_config(|config| {
        config.replace("metrics_listen = \"127.0.0.1:0\"", &format!("metrics_listen = \"{other}\""))
    });
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(http::get(other, "/live").0, 200);
    assert!(http::request(own, "GET", "/live", "").is_err(), "closed");
    daemon.edit_config(|config| config.replace(&other.to_string(), ""));
    assert!(daemon.reload().contains("reloaded"));
    assert!(http::request(other, "GET", "/live", "").is_err(), "closed");
    assert_eq!(daemon.get("/live").0, 200);
}

/// Nothing on the control port changes state without loopback; and a network that is not loopback sees no port at all
/// unless the operator says so.
#[test]
fn the_control_port_lies_on_loopback_by_default() {
    let Some(netns) = Netns::new("nameserver 192.0.2.1\n") else { return };
    let daemon = Setup::bare().within(&netns).start();
    assert_eq!(daemon.control, Some("127.0.0.1:8653".parse::<SocketAddr>().unwrap()));
}
