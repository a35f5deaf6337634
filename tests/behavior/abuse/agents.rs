//! Consul agents whose responses are huge.

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
}
