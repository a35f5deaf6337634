use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

fn check(name: &str, keys: Value) -> Check {
    let definition = Declaration::deserialize(keys).unwrap().define(Scripts::Allowed).unwrap();
    Check {
        id: Id { node: Arc::from("n1"), check: Arc::from(name) },
        service: Some(Arc::from(name)),
        begins: definition.initial.unwrap_or(Status::Unknown),
        definition: Arc::new(definition),
    }
}

/// A runner that runs until the token fires.
fn start(checks: Vec<Check>, limits: Limits) -> (Arc<Runner>, mpsc::Receiver<Event>, CancellationToken) {
    let (runner, news) = Runner::new(Dialer::new(Arc::default()), limits);
    let (runner, shutdown) = (Arc::new(runner), CancellationToken::new());
    runner.replace(checks);
    tokio::spawn({
        let (runner, shutdown) = (Arc::clone(&runner), shutdown.clone());
        async move { runner.run(shutdown).await }
    });
    (runner, news, shutdown)
}

#[tokio::test]
async fn a_server_that_comes_and_goes_is_news() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = check("web", json!({"tcp": listener.local_addr().unwrap().to_string(), "interval": "1s"}));
    let alias = check("proxy", json!({"alias_service": "web"}));
    let (runner, mut news, shutdown) = start(vec![tcp.clone(), alias.clone()], Limits::default());
    let mut listener = Some(listener);
    for expected in [Status::Passing, Status::Critical] {
        for id in [&tcp.id, &alias.id] {
            let event = loop {
                let event = news.recv().await.unwrap();
                if event.status == expected {
                    break event;
                }
            };
            assert_eq!(&event.id, id);
            assert_eq!(runner.state(id).unwrap().status, expected);
        }
        drop(listener.take());
    }
    shutdown.cancel();
}

#[tokio::test]
async fn a_check_that_panics_is_critical_and_goes_on() {
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let resolve = {
        let runs = runs.clone();
        move |_: &str| -> connect::Resolving {
            let run = runs.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert!(run > 0, "the first run panics");
            Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) })
        }
    };
    let dialer = Dialer::with(Arc::new(resolve), tokio_rustls::rustls::RootCertStore::empty);
    let (runner, mut news) = Runner::new(dialer, Limits::default());
    let shutdown = CancellationToken::new();
    runner.replace(vec![check("web", json!({"tcp": "host.example:80", "interval": "1s"}))]);
    let told = async {
        let first = news.recv().await.unwrap();
        let second = news.recv().await.unwrap();
        shutdown.cancel();
        [first, second]
    };
    let (_, events) = tokio::join!(runner.run(shutdown.clone()), told);
    assert!(events[0].output.contains("panicked") && events[0].status == Status::Critical, "{events:?}");
    assert!(!events[1].output.contains("panicked"), "{events:?}");
    assert!(runs.load(std::sync::atomic::Ordering::Relaxed) > 1);
}

#[tokio::test]
async fn a_ttl_check_is_told_by_anybody() {
    let ttl = check("web", json!({"ttl": "60s"}));
    let (runner, mut news, _) = start(vec![ttl.clone()], Limits::default());
    runner.tell(&ttl.id, Status::Warning, "so so").unwrap();
    let event = news.recv().await.unwrap();
    assert_eq!((event.id, event.status, &*event.output), (ttl.id.clone(), Status::Warning, "so so"));
    runner.stop(&ttl.id);
    assert_eq!(runner.tell(&ttl.id, Status::Passing, ""), Err(Error::Unknown));
}

#[tokio::test]
async fn a_runner_ends_when_its_news_is_not_wanted() {
    let (runner, news) = Runner::new(Dialer::new(Arc::default()), Limits::default());
    let ttl = check("web", json!({"ttl": "60s"}));
    runner.start(ttl.clone());
    runner.tell(&ttl.id, Status::Passing, "").unwrap();
    drop(news);
    runner.run(CancellationToken::new()).await;
}

#[test]
fn a_lane_runs_as_many_probes_as_it_may() {
    let mut table = Table::default();
    let checks = ["a", "b", "c"].map(|name| check(name, json!({"args": ["true"], "interval": "1s"})));
    table.replace(checks.into(), Moment::from_millis(0), &mut rand::rng());
    let mut lane = Lane::new(2);
    while let Some(job) = table.next_job(Moment::from_millis(9000)) {
        assert!(job.is_script());
        lane.waiting.push_back(job);
    }
    let (first, second) = (lane.next().unwrap(), lane.next().unwrap());
    assert!(lane.next().is_none());
    drop(second);
    assert!(lane.next().is_some());
    drop(first);
    assert!(lane.next().is_none(), "none is left");
}

/// Hosts that never answer take up all room; the one whose result is waited for is probed all the same.
#[tokio::test]
async fn an_urgent_check_need_not_wait_for_the_end_of_others() {
    let open = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Accepted by the kernel, and never answered.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = |name: &str, listener: &TcpListener| {
        let url = format!("http://{}/", listener.local_addr().unwrap());
        check(name, json!({"http": url, "interval": "1h", "timeout": "1h"}))
    };
    let limits = Limits { connections: 8, scripts: 1 };
    let checks: Vec<Check> = (0..20).map(|number| web(&format!("silent{number}"), &silent)).collect();
    let asked = check("asked", json!({"tcp": open.local_addr().unwrap().to_string(), "interval": "1h"}));
    let (runner, mut news, _shutdown) = start(checks, limits);
    // First runs begin within 100 ms.
    let handed_out = || tokio::time::sleep(std::time::Duration::from_millis(200));
    handed_out().await;
    runner.start(asked.clone());
    handed_out().await;
    assert!(news.try_recv().is_err(), "all room is taken");
    runner.hasten([asked.id.clone()]);
    let event = news.recv().await.unwrap();
    assert_eq!((event.id, event.status), (asked.id, Status::Passing));
}
