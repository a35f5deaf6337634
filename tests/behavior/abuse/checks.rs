//! Servers that are checked and try to have the daemon ask something else.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

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
}
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
}

