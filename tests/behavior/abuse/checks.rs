//! Servers that are checked and try to have the daemon ask something else.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::lives_and_ends;
use crate::harness::{catalog::CATALOG, *};

/// A server that answers each request with a redirect.
fn redirecting_to(location: String) -> SocketAddr {
    let listener = TcpListener::bind(free_address()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(format!("HTTP/1.1 307 Temporary\r\nLocation: {location}\r\n\r\n").as_bytes());
        }
    });
    address
}

#[test]
fn a_checked_server_cannot_steer_checks_to_this_host() {
    let control = free_address();
    let maintenance = format!("http://{control}/v1/agent/maintenance?enable=true&reason=hostile");
    let page = redirecting_to(format!("http://{control}/metrics"));
    let order = redirecting_to(maintenance.clone());
    let check = |id: &str, url: String, method: &str| {
        format!(
            "{{\"id\": \"{id}\", \"name\": \"{id}\", \"http\": \"{url}\", \"method\": \"{method}\", \"interval\": \"1s\"}}"
        )
    };
    let checks = [
        check("page", format!("http://{page}/"), "GET"),
        check("order", format!("http://{order}/"), "PUT"),
        // As one that is registered could be.
        check("own", maintenance.clone(), "PUT"),
        check("read", format!("http://{control}/v1/status/leader"), "GET"),
        // One that says it is another program.
        format!(
            "{{\"id\": \"disguised\", \"name\": \"d\", \"http\": \"{maintenance}\", \"method\": \"PUT\", \"interval\": \"1s\", \
             \"header\": {{\"User-Agent\": [\"curl/8\"], \"Watershed-Check\": [\"\"]}}}}"
        ),
        check("ready", format!("http://{control}/ready"), "GET"),
    ];
    let config = format!("[control]\nlisten = \"{control}\"\n{CATALOG}[catalog.api]\nenable_registration = true\n");
    let definitions = format!("{{\"checks\": [{}]}}", checks.join(", "));
    let daemon = Setup::new(&config).file("consul.d/checks.json", &definitions).start();
    let read = || serde_json::from_str::<serde_json::Value>(&daemon.get("/v1/agent/checks").1).unwrap();
    for (id, status, output) in [
        ("page", "critical", "it redirects to another server, which is not followed"),
        ("order", "critical", "it redirects to another server, which is not followed"),
        ("own", "critical", "the API does not answer health checks"),
        ("read", "critical", "the API does not answer health checks"),
        ("disguised", "critical", "the API does not answer health checks"),
        ("ready", "passing", "200 OK"),
    ] {
        let check = wait_until("a result", 2 * PATIENCE, || {
            let check = read()[id].clone();
            check["Output"].as_str().is_some_and(|said| said.contains(output)).then_some(check)
        });
        assert_eq!(check["Status"], status, "{id}: {check}");
        assert!(check["Output"].as_str().unwrap().contains(output), "{id}: {check}");
    }
    let checks = read();
    assert!(!checks.to_string().contains("watershed_"), "no page of ours is published: {checks}");
    assert!(checks.get("_node_maintenance").is_none(), "{checks}");
    // A Consul agent's checks could be steered here as well; all else goes on.
    let ask = |header: &str| {
        let mut stream = TcpStream::connect(control).unwrap();
        let request =
            format!("GET /v1/catalog/services HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    for (header, status) in [
        ("", "200"),
        ("User-Agent: curl/8\r\n", "200"),
        ("User-Agent: Consul Health Check\r\n", "403"),
        ("User-Agent: curl/8\r\nWATERSHED-CHECK: 1\r\n", "403"),
    ] {
        assert_eq!(ask(header), status, "{header}");
    }
    lives_and_ends(daemon, "with servers that redirect checks");
}

/// Servers on addresses of their own that send a header of so many bytes without an end and then wait, or a body without
/// an end; the address with number 1 answers as it should, and all do once they are not hostile any more.
fn serve_without_end(hosts: u8, header_bytes: usize, is_hostile: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let is_hostile = is_hostile.clone();
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let IpAddr::V4(address) = stream.local_addr().unwrap().ip() else { return };
                let number = if is_hostile.load(Ordering::Relaxed) { address.octets()[3] } else { 1 };
                match number {
                    1 => drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")),
                    number if number <= hosts + 1 => {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ");
                        let _ = stream.write_all(&vec![b'x'; header_bytes]);
                        let _ = stream.read(&mut [0; 1]);
                    }
                    _ => {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                        while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
                    }
                }
            });
        }
    });
    port
}

#[test]
fn checked_hosts_that_send_without_end_are_bounded_and_fail_alone() {
    const HOSTS: u8 = 12;
    let is_hostile = Arc::new(AtomicBool::new(true));
    let port = serve_without_end(HOSTS, 3 << 19, is_hostile.clone());
    let check = |host: u8, number: u8| {
        let seconds = if host == 1 { 1 } else { 10 };
        format!(
            "{{\"id\": \"{host}-{number}\", \"name\": \"c\", \"http\": \"http://127.0.9.{host}:{port}/\", \"timeout\": \"20s\", \
             \"interval\": \"{seconds}s\"}}"
        )
    };
    // Ten checks of each host with endless headers, 2 MiB or more with what buffers grow by; and three endless bodies.
    let mut checks: Vec<_> = (2..HOSTS + 2).flat_map(|host| (0..10).map(move |number| check(host, number))).collect();
    checks.extend((0..3).map(|number| check(HOSTS + 2, number)));
    checks.push(check(1, 0));
    let definitions = format!("{{\"checks\": [{}]}}", checks.join(", "));
    let config = format!("[control]\nlisten = \"{}\"\n{CATALOG}", free_address());
    let daemon = Setup::new(&config).file("consul.d/checks.json", &definitions).start();
    let held = |party| daemon.metric("watershed_budget_held_bytes", &[("party", party)]) as u64 >> 20;
    let exceeded = |limit| daemon.metric("watershed_budget_exceeded_total", &[("limit", limit)]);
    let before = daemon.resident_kib();
    let (mut most, mut most_held) = (0, 0);
    wait_until("headers to be refused", 6 * PATIENCE, || {
        most = most.max(daemon.resident_kib());
        most_held = most_held.max(held("checked_host"));
        (exceeded("client") + exceeded("total") >= 12.0).then_some(())
    });
    assert!((10..=120).contains(&most_held), "{most_held} MiB");
    assert!(most < before + (150 << 10), "{before} KiB, then {most}");
    assert_eq!(held("client"), 0, "what servers send is charged to no client");
    let checks: serde_json::Value = serde_json::from_str(&daemon.get("/v1/agent/checks").1).unwrap();
    assert_eq!(checks["1-0"]["Status"], "passing", "{checks}");
    wait_until("the endless bodies to be read over", 3 * PATIENCE, || {
        let checks: serde_json::Value = serde_json::from_str(&daemon.get("/v1/agent/checks").1).unwrap();
        let id = format!("{}-0", HOSTS + 2);
        (checks[&id]["Status"] == "passing").then_some(())
    });
    is_hostile.store(false, Ordering::Relaxed);
    wait_until("the room to be given back", 6 * PATIENCE, || (held("checked_host") == 0).then_some(()));
    is_hostile.store(true, Ordering::Relaxed);
    lives_and_ends(daemon, "with servers that send without an end");
}
