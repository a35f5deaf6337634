//! Consul agents whose responses are huge.

use std::{io::Write, net::TcpStream};

use super::lives_and_ends;
use crate::harness::{
    agent::{Agent, Manner},
    *,
};

#[test]
fn a_huge_response_of_an_agent_takes_little_memory_and_changes_nothing() {
    let agent = Agent::new(&[("web", &["192.0.2.10"])]);
    let config = format!("[catalog.consul]\naddress = \"http://{}\"\nmax_response_bytes = \"40MB\"\n", agent.address());
    let daemon = Setup::new(&config).start();
    wait_until("the agent's catalog", 3 * PATIENCE, || {
        (daemon.ask("web.service.consul A").data() == ["192.0.2.10"]).then_some(())
    });
    let before = daemon.resident_kib();
    // One that is as large as it may be is read as it comes, and not held: 12 MB.
    agent.behave(Manner::Huge { entries: 120, is_chunked: true });
    agent.set("web", &["192.0.2.12"]);
    let mut most = 0;
    wait_until("the large answer", 3 * PATIENCE, || {
        most = most.max(daemon.resident_kib());
        daemon.ask("web.service.consul A").data().contains(&"192.0.2.200".to_owned()).then_some(())
    });
    assert!(most < before + (9 << 10), "{before} KiB, then {most}");
    agent.behave(Manner::Well);
    agent.set("web", &["192.0.2.10"]);
    wait_until("the small answer", 3 * PATIENCE, || {
        (daemon.ask("web.service.consul A").data() == ["192.0.2.10"]).then_some(())
    });
    for is_chunked in [false, true] {
        let failed = || daemon.metric("watershed_catalog_source_requests_total", &[("result", "failed")]);
        let before_it = failed();
        // 160 MB.
        agent.behave(Manner::Huge { entries: 1600, is_chunked });
        agent.set("web", &["192.0.2.11"]);
        wait_until("a response to be refused", 3 * PATIENCE, || (failed() > before_it).then_some(()));
        daemon.wait_for_log(0, |line| line.contains("raise catalog.consul.max_response_bytes"));
        assert_eq!(daemon.ask("web.service.consul A").data(), ["192.0.2.10"], "what was said before stays");
        let most = daemon.resident_kib();
        assert!(most < before + (40 << 10), "chunked {is_chunked}: {before} KiB, then {most}");
        agent.behave(Manner::Well);
        agent.set("web", &["192.0.2.10"]);
        wait_until("the good answer", 3 * PATIENCE, || {
            (daemon.ask("web.service.consul A").data() == ["192.0.2.10"]).then_some(())
        });
    }
    agent.behave(Manner::Huge { entries: 1600, is_chunked: true });
    agent.set("web", &["192.0.2.11"]);
    lives_and_ends(daemon, "while a huge response comes");
}

#[test]
fn a_response_of_an_agent_counts_until_it_has_been_read_and_may_be_refused() {
    let agent = Agent::new(&[("web", &["192.0.2.10"])]);
    let config = format!(
        "[limits]\ntotal_bytes = \"1MiB\"\n[control]\nlisten = \"127.0.0.1:0\"\n[catalog]\nnode_name = \"n1\"\n\
         address = \"192.0.2.1\"\n[catalog.api]\nenable_registration = true\n[catalog.consul]\naddress = \"http://{}\"\n",
        agent.address()
    );
    let daemon = Setup::new(&config).start();
    let is_at = |address: &str| (daemon.ask("web.service.consul A").data() == [address]).then_some(());
    wait_until("the agent's catalog", 3 * PATIENCE, || is_at("192.0.2.10"));
    let held = |party| daemon.metric("watershed_budget_held_bytes", &[("party", party)]) as usize >> 10;

    // It may be larger than all that may wait, and counts as three quarters of that.
    agent.behave(Manner::Stalled { entries: 40 });
    agent.set("web", &["192.0.2.11"]);
    wait_until("a response that is not complete", 3 * PATIENCE, || (held("agent") == 768).then_some(()));
    agent.behave(Manner::Well);
    wait_until("the next response", 3 * PATIENCE, || is_at("192.0.2.11"));
    wait_until("the room to be given back", 3 * PATIENCE, || (held("agent") == 0).then_some(()));

    // A client that holds a third of it leaves too little room, and loses nothing, for it holds less.
    let mut client = TcpStream::connect(daemon.control.unwrap()).unwrap();
    let head = "PUT /v1/agent/service/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 310000\r\n\r\n";
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(&vec![b' '; 300_000]).unwrap();
    wait_until("the client to be charged", PATIENCE, || (held("client") >= 280).then_some(()));
    let exceeded = || daemon.metric("watershed_budget_exceeded_total", &[("limit", "total")]);
    let (exceeded_before, log) = (exceeded(), daemon.log_length());
    agent.behave(Manner::Huge { entries: 40, is_chunked: true });
    agent.set("web", &["192.0.2.12"]);
    daemon.wait_for_log(log, |line| line.contains("raise limits.total_bytes"));
    assert!(exceeded() > exceeded_before);
    assert!(held("client") >= 280, "the client loses nothing");
    assert_eq!(daemon.ask("web.service.consul A").data(), ["192.0.2.11"], "what was said before stays");
    drop(client);
    wait_until("the response to find room", 6 * PATIENCE, || {
        daemon.ask("web.service.consul A").data().contains(&"192.0.2.200".to_owned()).then_some(())
    });
}

#[test]
fn a_response_of_tiny_elements_is_refused_before_it_takes_memory() {
    let agent = Agent::new(&[("web", &["192.0.2.10"])]);
    let config = format!("[catalog.consul]\naddress = \"http://{}\"\n", agent.address());
    let daemon = Setup::new(&config).start();
    let is_at = |address: &str| (daemon.ask("web.service.consul A").data() == [address]).then_some(());
    wait_until("the agent's catalog", 3 * PATIENCE, || is_at("192.0.2.10"));
    let (before, log) = (daemon.resident_kib(), daemon.log_length());
    // 7 MB of text, which would take 200 MB as names of services.
    agent.behave(Manner::Names { count: 600_000 });
    agent.set("web", &["192.0.2.11"]);
    daemon.wait_for_log(log, |line| line.contains("lists more than fits into 64.0 MiB in memory"));
    let most = daemon.resident_kib();
    assert!(most < before + (40 << 10), "{before} KiB, then {most}");
    agent.behave(Manner::Well);
    agent.set("web", &["192.0.2.12"]);
    wait_until("the good answer", 3 * PATIENCE, || is_at("192.0.2.12"));
    agent.behave(Manner::Names { count: 600_000 });
    agent.set("web", &["192.0.2.11"]);
    lives_and_ends(daemon, "while a response of tiny elements comes");
}
