use std::{fs, path::Path, time::Instant as Clock};

use tokio::sync::oneshot;

use super::*;
use crate::{
    catalog::source::registered::{NewService, OtherChecks},
    control::consul::Command,
};

struct Running {
    catalog: Catalog,
    folder: tempfile::TempDir,
    stopping: CancellationToken,
}

impl Running {
    /// A catalog where services may be registered, and are kept.
    fn start() -> Self {
        let mut config = Config { address: Some("192.0.2.1".parse().unwrap()), ..Config::default() };
        config.node_name = Some("own".to_owned());
        config.api.enable_registration = true;
        let loaded = load(&config, None, Scope::All, &Copies::default()).unwrap();
        assert_eq!(loaded.faults, []);
        let stopping = CancellationToken::new();
        let folder = tempfile::Builder::new().prefix("watershed-").tempdir().unwrap();
        let place = Place { is_enabled: true, folder: Some(folder.path().to_owned()) };
        let (plan, metrics) = (loaded.plan.unwrap(), Arc::new(Metrics::new()));
        let catalog = Catalog::start(plan, place, None, (metrics, Arc::default()), &TaskTracker::new(), &stopping);
        Self { catalog, folder, stopping }
    }

    fn keep(&self, is_enabled: bool) {
        self.catalog.keep_registrations(Place { is_enabled, folder: Some(self.folder.path().to_owned()) });
    }

    async fn order(&self, command: Command) {
        let (done, told) = oneshot::channel();
        self.catalog.orders.send(Order { command, client: None, done }).await.unwrap();
        told.await.unwrap().unwrap();
    }

    async fn register(&self, text: &str) {
        self.order(Command::RegisterService(NewService::read(text).unwrap(), OtherChecks::Keep)).await;
    }

    async fn tell(&self, check: &str, status: Status) {
        self.order(Command::Tell { check: check.to_owned(), status, output: String::new() }).await;
    }

    fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.catalog.shared.state.lock()
    }

    fn services(&self) -> Vec<String> {
        let snapshot = self.catalog.live().load();
        let mut names: Vec<_> = snapshot.services().map(|(_, service)| service.name().to_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

/// Waits until a file holds what is wanted.
async fn wait_for(file: &Path, wanted: impl Fn(&str) -> bool) {
    let begun = Clock::now();
    while !wanted(&fs::read_to_string(file).unwrap_or_default()) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", fs::read_to_string(file).unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_registered_service_goes_for_good_when_it_is_critical_for_too_long() {
    let running = Running::start();
    let web = r#"{"Name": "web", "Check": {"CheckID": "c", "TTL": "1h", "DeregisterCriticalServiceAfter": "1m"}}"#;
    running.register(web).await;
    running.register(r#"{"Name": "other", "Check": {"CheckID": "d", "TTL": "1h"}}"#).await;
    assert_eq!(running.services(), ["other", "web"]);
    let id = id_of(&running.state().checks["c"].key);
    let mut event = running.catalog.shared.runner.state(&id).unwrap();
    assert!(!event.is_overdue);
    // As the runner says it after that minute.
    event.is_overdue = true;
    running.catalog.shared.publish(|state| state.take_in(event.clone(), &running.catalog.shared));
    assert_eq!(running.services(), ["other"]);
    assert!(!running.state().checks.contains_key("c") && running.catalog.shared.runner.state(&id).is_none());
    let journal = running.folder.path().join("registrations.journal");
    wait_for(&journal, |journal| journal.contains(r#"{"Gone": {"Services": ["web"],"#)).await;
    // What comes late is of nobody.
    running.catalog.shared.publish(|state| state.take_in(event, &running.catalog.shared));
    running.register(web).await;
    assert_eq!(running.services(), ["other", "web"]);
}

#[tokio::test]
async fn registered_services_on_other_hosts_are_guarded_as_those_of_files() {
    let running = Running::start();
    for (id, address, probed, expected) in [
        ("far", "198.51.100.7", "198.51.100.7", true),
        ("near", "192.0.2.1", "192.0.2.1", false),
        ("moved", "192.0.2.1", "192.0.2.1", false),
        ("moved", "198.51.100.8", "198.51.100.8", true),
    ] {
        let check = format!(r#"{{"CheckID": "{id}", "TCP": "{probed}:9", "Interval": "1h"}}"#);
        running.register(&format!(r#"{{"Name": "{id}", "Address": "{address}", "Check": {check}}}"#)).await;
        let state = running.state();
        let way = state.checks[id].remote.as_ref().and_then(Remote::way);
        assert_eq!(way, expected.then(|| Some(probed.parse().unwrap())), "{id}");
    }
}

#[tokio::test]
async fn what_was_told_last_counts_when_registrations_are_kept_otherwise() {
    let running = Running::start();
    running.register(r#"{"Name": "web", "Check": {"CheckID": "c", "TTL": "1h"}}"#).await;
    running.tell("c", Status::Passing).await;
    let states = running.folder.path().join("catalog_state.json");
    wait_for(&states, |states| states.contains("passing")).await;
    let other = tempfile::Builder::new().prefix("watershed-").tempdir().unwrap();
    for file in ["registrations.json", "catalog_state.json"] {
        fs::copy(running.folder.path().join(file), other.path().join(file)).unwrap();
    }
    running.tell("c", Status::Critical).await;
    running.catalog.keep_registrations(Place { is_enabled: true, folder: Some(other.path().to_owned()) });
    assert_eq!(running.state().checks["c"].status, Status::Critical, "it has run all the time");
    running.keep(false);
    assert_eq!(running.services(), Vec::<String>::new());
    running.catalog.keep_registrations(Place { is_enabled: true, folder: Some(other.path().to_owned()) });
    assert_eq!(running.services(), ["web"]);
    assert_eq!(running.state().checks["c"].status, Status::Passing, "it begins with what is on the disk");
}

#[tokio::test]
async fn ids_that_are_gone_are_not_remembered() {
    let running = Running::start();
    let states = running.folder.path().join("catalog_state.json");
    for number in 0..3 {
        let check = format!("c{number}");
        running.register(&format!(r#"{{"Name": "web", "Check": {{"CheckID": "{check}", "TTL": "1h"}}}}"#)).await;
        running.tell(&check, Status::Passing).await;
        wait_for(&states, |states| states.contains(&check)).await;
        running.order(Command::DeregisterService("web".to_owned())).await;
    }
    running.register(r#"{"Name": "web", "Check": {"CheckID": "last", "TTL": "1h"}}"#).await;
    running.tell("last", Status::Passing).await;
    wait_for(&states, |states| states.contains("last")).await;
    wait_for(&states, |states| !states.contains("c2")).await;
}
