use std::{sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::SmallRng};
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::catalog::check::{Declaration, Reach, Scripts};
use Status::{Critical, Passing, Warning};

fn at(second: u64) -> Moment {
    Moment::from_millis(second * 1000)
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

fn id(name: &str) -> Id {
    Id { node: Arc::from("n1"), check: Arc::from(name) }
}

/// A check `name` of the service `name`, or of the node if its name begins so.
fn check(name: &str, keys: serde_json::Value) -> Check {
    let definition = Declaration::deserialize(keys).unwrap().define(Scripts::Allowed).unwrap();
    let service = (!name.starts_with("node")).then(|| Arc::from(name));
    let begins = match definition.kind {
        Kind::Ttl(_) => Critical,
        _ => Status::Unknown,
    };
    Check { id: id(name), service, begins: definition.initial.unwrap_or(begins), definition: Arc::new(definition) }
}

fn outcome(status: Status, output: &str) -> Outcome {
    Outcome { status, output: output.to_owned(), reach: Reach::Answered }
}

/// The events that are due, as `check status`.
fn news(table: &mut Table, now: Moment) -> Vec<String> {
    std::iter::from_fn(|| table.next_news(now)).map(|event| format!("{} {}", event.id.check, event.status)).collect()
}

#[test]
fn a_probe_runs_at_its_interval_and_never_twice_at_once() {
    let (mut table, rng) = (Table::default(), &mut rng());
    table.start(check("web", json!({"tcp": "a:1", "interval": "10s"})), at(0), rng);
    let first = table.next_due().unwrap();
    assert!(first <= at(3));
    let job = table.next_job(first).unwrap();
    assert!(table.next_job(at(100)).is_none(), "it runs already");
    assert_eq!(table.next_due(), None);

    table.finish(job.ticket, outcome(Passing, "ok"), first + Duration::from_millis(5), rng);
    assert_eq!(news(&mut table, first), ["web passing"]);
    let second = table.next_due().unwrap();
    assert!(first + Duration::from_secs(1) <= second && second <= first + Duration::from_secs(10));

    let job = table.next_job(second).unwrap();
    table.finish(job.ticket, outcome(Passing, "ok"), second, rng);
    assert_eq!(news(&mut table, second), [""; 0], "the same again is no news");
    let third = table.next_due().unwrap().since(second).as_millis();
    assert!((9500..=10_500).contains(&third), "{third}");
}

#[test]
fn news_wait_in_line_once_and_are_of_the_present() {
    let (mut table, rng) = (Table::default(), &mut rng());
    table.start(check("a", json!({"ttl": "30s"})), at(0), rng);
    table.start(check("b", json!({"ttl": "30s"})), at(0), rng);
    for (name, status) in [("a", Passing), ("b", Passing), ("a", Warning), ("a", Critical)] {
        table.tell(&id(name), status, "told", at(1)).unwrap();
    }
    assert_eq!(news(&mut table, at(1)), ["a critical", "b passing"]);
    table.tell(&id("a"), Passing, "told", at(1)).unwrap();
    table.stop(&id("a"));
    assert_eq!(news(&mut table, at(1)), [""; 0], "what is gone has no news");
}

#[test]
fn a_ttl_check_lives_as_long_as_it_is_told() {
    let (mut table, rng) = (Table::default(), &mut rng());
    table.start(check("web", json!({"ttl": "30s", "status": "passing"})), at(0), rng);
    table.tell(&id("web"), Passing, &"x".repeat(5000), at(20)).unwrap();
    assert_eq!(
        table.event(&id("web"), at(20)).unwrap().output.len(),
        4096 + " ... (captured 4096 of 5000 bytes)".len()
    );
    assert_eq!(table.next_due(), Some(at(50)));
    assert!(table.next_job(at(50)).is_none());
    assert_eq!(news(&mut table, at(50)), ["web critical"]);
    table.tell(&id("web"), Warning, "", at(60)).unwrap();
    assert_eq!(news(&mut table, at(60)), ["web warning"]);

    table.start(check("db", json!({"tcp": "a:1", "interval": "10s"})), at(0), rng);
    assert_eq!(table.tell(&id("db"), Passing, "", at(1)), Err(Error::NotTtl));
    assert_eq!(table.tell(&id("none"), Passing, "", at(1)), Err(Error::Unknown));
}

#[test]
fn an_alias_follows_the_checks_of_service_and_node() {
    for (told, expected, text) in [
        (vec![("db", Passing), ("node", Passing)], Passing, "All checks passing."),
        (vec![("db", Warning), ("node", Passing)], Warning, "Aliased check \"db\" failing: told"),
        (vec![("db", Warning), ("node", Critical)], Critical, "Aliased check \"node\" failing: told"),
        (vec![("db", Passing), ("node", Passing), ("other", Critical)], Passing, "All checks passing."),
    ] {
        let (mut table, rng) = (Table::default(), &mut rng());
        for name in ["db", "node", "other"] {
            table.start(check(name, json!({"ttl": "30s"})), at(0), rng);
        }
        table.start(check("web", json!({"alias_service": "db", "alias_node": "N1"})), at(0), rng);
        for &(name, status) in &told {
            table.tell(&id(name), status, "told", at(1)).unwrap();
        }
        table.follow(at(1));
        let event = table.event(&id("web"), at(1)).unwrap();
        assert_eq!((event.status, &*event.output), (expected, text), "{told:?}");
    }
}

#[test]
fn an_alias_is_unknown_until_what_it_follows_has_a_result() {
    let (mut table, rng) = (Table::default(), &mut rng());
    table.start(check("db", json!({"tcp": "a:1", "interval": "10s"})), at(0), rng);
    table.start(check("web", json!({"alias_service": "db"})), at(0), rng);
    let was_passing = check("api", json!({"alias_service": "db", "status": "passing"}));
    table.start(was_passing, at(0), rng);
    table.follow(at(0));
    assert_eq!(news(&mut table, at(0)), [""; 0]);
    let status = |table: &Table, name| table.event(&id(name), at(0)).unwrap().status;
    assert_eq!((status(&table, "web"), status(&table, "api")), (Status::Unknown, Passing));
    let job = table.next_job(at(5)).unwrap();
    table.finish(job.ticket, outcome(Warning, "slow"), at(5), rng);
    table.follow(at(5));
    assert_eq!((status(&table, "web"), status(&table, "api")), (Warning, Warning));
}

#[test]
fn aliases_in_a_circle_recover() {
    let (mut table, rng) = (Table::default(), &mut rng());
    table.start(check("a", json!({"alias_service": "b"})), at(0), rng);
    table.start(check("b", json!({"alias_service": "a"})), at(0), rng);
    table.start(check("node", json!({"ttl": "30s"})), at(0), rng);
    for (status, second) in [(Critical, 1), (Passing, 2)] {
        table.tell(&id("node"), status, "", at(second)).unwrap();
        table.follow(at(second));
        for name in ["a", "b"] {
            assert_eq!(table.event(&id(name), at(second)).unwrap().status, status, "{name}");
        }
    }
    table.stop(&id("node"));
    table.follow(at(3));
    assert_eq!(&*table.event(&id("a"), at(3)).unwrap().output, "No checks found.");
}

#[test]
fn a_check_that_stays_critical_gives_its_service_up_once() {
    let (mut table, rng) = (Table::default(), &mut rng());
    table.start(check("web", json!({"ttl": "30s", "deregister_critical_service_after": "2m"})), at(0), rng);
    assert!(table.next_job(at(119)).is_none());
    table.next_news(at(119)).unwrap();
    assert_eq!(table.next_due(), Some(at(120)));
    assert!(table.next_job(at(120)).is_none());
    assert!(table.next_news(at(120)).unwrap().is_overdue);
    assert_eq!(table.next_due(), None, "said once");

    table.tell(&id("web"), Passing, "", at(200)).unwrap();
    assert!(!table.next_news(at(200)).unwrap().is_overdue);
    table.tell(&id("web"), Critical, "", at(210)).unwrap();
    assert!(!table.next_news(at(210)).unwrap().is_overdue, "the time starts anew");
    table.next_job(at(330));
    assert!(table.next_news(at(330)).unwrap().is_overdue);
}

#[test]
fn a_check_defined_anew_keeps_its_state_until_it_has_a_result() {
    let (mut table, rng) = (Table::default(), &mut rng());
    let tcp = |port: u16, more: &str| {
        check(
            "web",
            json!({"tcp": format!("a:{port}"), "interval": "10s", "failures_before_critical": 3, "notes": more}),
        )
    };
    table.start(tcp(1, ""), at(0), rng);
    let job = table.next_job(at(3)).unwrap();
    table.finish(job.ticket, outcome(Passing, "ok"), at(3), rng);
    let due = table.next_due();
    table.replace(vec![tcp(1, "")], at(4), rng);
    assert_eq!(table.next_due(), due, "nothing has changed");

    let mut old = table.next_job(at(20)).unwrap();
    table.replace(vec![tcp(2, "")], at(20), rng);
    assert!(matches!(old.canceled.try_recv(), Err(oneshot::error::TryRecvError::Closed)), "the old probe ends");
    assert_eq!(table.event(&id("web"), at(20)).unwrap().status, Passing);
    table.finish(old.ticket, outcome(Critical, "old"), at(21), rng);
    assert_eq!(table.event(&id("web"), at(21)).unwrap().status, Passing, "its result does not count");

    let new = table.next_job(at(23)).unwrap();
    table.finish(new.ticket, outcome(Critical, "new"), at(23), rng);
    assert_eq!(table.event(&id("web"), at(23)).unwrap().status, Critical, "the first result counts at once");

    table.replace(vec![check("db", json!({"ttl": "1s"}))], at(24), rng);
    assert_eq!(table.event(&id("web"), at(24)), None);
}

#[test]
fn thousands_of_checks_are_spread_over_their_interval() {
    let (mut table, rng) = (Table::default(), &mut rng());
    let checks = (0..2000).map(|n| check(&format!("s{n}"), json!({"tcp": "a:1", "interval": "10s"}))).collect();
    table.replace(checks, at(0), rng);
    let mut starts = vec![0; 120];
    while let Some(now) = table.next_due().filter(|&now| now < at(120)) {
        let job = table.next_job(now).unwrap();
        starts[now.as_secs() as usize] += 1;
        table.finish(job.ticket, outcome(Passing, ""), now, rng);
    }
    // 200 in every second on average, once all have got out of step.
    let late = &starts[60..];
    assert!(late.iter().all(|starts| (120..=280).contains(starts)), "{starts:?}");
    assert!((11_700..=12_300).contains(&late.iter().sum::<i32>()), "{starts:?}");
}

#[test]
fn two_thousand_checks_are_spread_and_each_keeps_its_interval() {
    let (mut table, rng) = (Table::default(), &mut rng());
    let names: Vec<String> = (0..2000).map(|number| format!("check{number}")).collect();
    for name in &names {
        table.start(check(name, json!({"tcp": "a:1", "interval": "10s", "timeout": "1s"})), at(0), rng);
    }
    // A world in which each probe takes 5 ms, and that looks at the table whenever it says so.
    let took = Duration::from_millis(5);
    let mut starts = HashMap::<Arc<str>, Vec<Moment>>::new();
    let mut running = VecDeque::new();
    let mut now = at(0);
    while now < at(120) {
        while let Some(&(ends, ticket)) = running.front().filter(|(ends, _)| *ends <= now) {
            running.pop_front();
            table.finish(ticket, outcome(Passing, "ok"), ends, rng);
        }
        while let Some(job) = table.next_job(now) {
            starts.entry(job.check.id.check).or_default().push(now);
            running.push_back((now + took, job.ticket));
        }
        let next = running.front().map(|(ends, _)| *ends).into_iter().chain(table.next_due()).min();
        now = next.expect("there is always a next probe");
    }
    assert_eq!(starts.len(), names.len(), "every check runs");
    let mut per_second = [0; 120];
    for (name, starts) in &starts {
        assert!(starts[0].as_millis() <= 100, "{name} begins at once: {starts:?}");
        let gap = |pair: &[Moment]| pair[1].since(pair[0]).as_millis();
        let gaps: Vec<_> = starts.windows(2).map(gap).collect();
        assert!((1000..=11_000).contains(&gaps[0]), "{name}: {gaps:?}: at any point of the interval");
        assert!(gaps[1..].iter().all(|gap| (9500..=10_500).contains(gap)), "{name}: {gaps:?}");
        assert!(gaps[1..].iter().any(|&gap| gap != gaps[1]), "{name}: {gaps:?}: with jitter");
        starts.iter().for_each(|start| per_second[start.as_secs() as usize] += 1);
    }
    // Once all have found their place, 200 a second are due.
    let (least, most) = (per_second[20..].iter().min().unwrap(), per_second[20..].iter().max().unwrap());
    assert!(*least > 100 && *most < 300, "{per_second:?}");
}

#[test]
fn what_is_hurried_is_fresh_once_it_was_started_since() {
    let (mut table, rng) = (Table::default(), &mut rng());
    let probe = json!({"tcp": "a:1", "interval": "10m", "timeout": "1s"});
    for name in ["idle", "running"] {
        table.start(check(name, probe.clone()), at(0), rng);
    }
    table.start(check("told", json!({"ttl": "1h"})), at(0), rng);
    let lost = || Outcome { reach: Reach::Silent, ..outcome(Critical, "no answer") };
    let mut now = at(3);
    let mut early = Vec::new();
    while let Some(job) = table.next_job(now) {
        early.push(job);
    }
    let place = early.iter().position(|job| job.check.id == id("idle")).unwrap();
    table.finish(early.remove(place).ticket, lost(), at(4), rng);
    let contact = at(5);
    let fresh = |table: &Table| ["idle", "running", "told", "none"].map(|name| table.is_fresh(&id(name), contact));
    assert_eq!(fresh(&table), [Some(false), Some(false), None, None]);
    for name in ["idle", "running", "told", "none"] {
        table.hurry(&id(name), contact, rng);
    }
    now = now + Duration::from_secs(5);
    let job = table.next_job(now).unwrap();
    assert_eq!(job.check.id, id("idle"), "in seconds, not minutes");
    table.finish(job.ticket, lost(), now, rng);
    // The other ends late: what it says is about the time before, and it is run once more.
    table.finish(early.remove(0).ticket, lost(), now, rng);
    assert_eq!(fresh(&table), [Some(true), Some(false), None, None]);
    now = now + Duration::from_secs(3);
    let job = table.next_job(now).unwrap();
    assert_eq!(job.check.id, id("running"));
    table.finish(job.ticket, outcome(Passing, "ok"), now, rng);
    assert_eq!(fresh(&table), [Some(true), Some(true), None, None]);
    assert_eq!(table.is_fresh(&id("running"), at(999)), Some(true), "a host that has answered is there");

    // A host that has answered settles the matter.
    let seen = table.sightings(|check| (&*check.id.check != "idle").then(|| check.id.check.clone()));
    assert_eq!(
        seen.iter().map(|(name, seen)| (&**name, seen.reach)).collect::<Vec<_>>(),
        [("running", Reach::Answered)]
    );
}

/// What one process saves at a moment, read by another whose clock stands elsewhere.
fn handed_on(table: &mut Table, saved_at: Moment, origin: Moment) -> Table {
    let text = serde_json::to_string(&table.save(saved_at)).unwrap();
    let mut next = Table::default();
    next.restore(serde_json::from_str(&text).unwrap(), origin);
    next
}

#[test]
fn a_check_goes_on_in_the_next_process() {
    let rng = &mut rng();
    let probe = |more: &[(&str, serde_json::Value)]| {
        let mut keys = json!({"tcp": "a:1", "interval": "10s", "failures_before_critical": 3});
        more.iter().for_each(|(key, value)| keys[*key] = value.clone());
        check("web", keys)
    };
    let mut table = Table::default();
    table.start(probe(&[]), at(0), rng);
    let job = table.next_job(at(3)).unwrap();
    table.finish(job.ticket, outcome(Passing, "ok"), at(3), rng);
    let job = table.next_job(at(20)).unwrap();
    table.finish(job.ticket, outcome(Critical, "down"), at(21), rng);
    let due = table.next_due().unwrap();
    for (case, started, again, counts) in [
        ("at once", at(1021), probe(&[]), true),
        ("three intervals later", at(1051), probe(&[]), true),
        ("more than three intervals later", at(1052), probe(&[]), false),
        ("more than three shorter intervals later", at(1028), probe(&[("interval", json!("2s"))]), false),
        ("with another name", at(1022), probe(&[("notes", json!("x"))]), true),
        ("with another target", at(1022), probe(&[("tcp", json!("a:2"))]), false),
        ("with another thing to do", at(1022), check("web", json!({"udp": "a:1", "interval": "10s"})), false),
    ] {
        let mut next = handed_on(&mut table, at(21), at(1021));
        next.start(again, started, rng);
        let event = next.event(&id("web"), started).unwrap();
        assert_eq!((event.status == Passing, &*event.output == "ok"), (counts, counts), "{case}");
        if case == "at once" {
            assert_eq!(
                (event.at, next.next_due()),
                (at(1003), Some(due + at(1000).since(at(0)))),
                "since when, and when next"
            );
            // It has failed once, and two more make three.
            for (second, expected) in [(1040, Passing), (1060, Critical)] {
                let job = next.next_job(at(second)).unwrap();
                next.finish(job.ticket, outcome(Critical, "down"), at(second), rng);
                assert_eq!(next.event(&id("web"), at(second)).unwrap().status, expected, "{second}");
            }
        }
    }
    // What has had no result is new, and so is what the next process does not know.
    let mut table = Table::default();
    table.start(probe(&[]), at(0), rng);
    assert!(table.save(at(1)).is_empty());
}

#[test]
fn a_ttl_and_an_alias_go_on_in_the_next_process() {
    let rng = &mut rng();
    let ttl = || check("db", json!({"ttl": "30s"}));
    let alias = || check("web", json!({"alias_service": "db"}));
    let mut table = Table::default();
    table.start(ttl(), at(0), rng);
    table.start(alias(), at(0), rng);
    table.tell(&id("db"), Passing, "fine", at(5)).unwrap();
    table.follow(at(5));
    for (second, counts) in [(10, true), (34, true), (35, false), (999, false)] {
        let mut next = handed_on(&mut table, at(10), at(1010));
        let now = at(1000 + second);
        next.start(alias(), now, rng);
        next.start(ttl(), now, rng);
        next.follow(now);
        for name in ["db", "web"] {
            let event = next.event(&id(name), now).unwrap();
            assert_eq!(event.status == Passing, counts, "{name} at {second}");
            assert!(!counts || event.at == at(1005), "{name} at {second}");
        }
        if counts {
            assert_eq!(next.next_due(), Some(at(1035)), "the TTL is no longer than it was");
        }
    }
}

#[test]
fn repeated_results_are_saved_less_often_than_news() {
    let rng = &mut rng();
    let mut table = Table::default();
    assert!(!table.is_unsaved(at(0)));
    table.start(check("web", json!({"tcp": "a:1", "interval": "60s"})), at(0), rng);
    for (second, status, at_once, later) in [
        (3, Passing, true, true), // the first result
        (90, Passing, false, true),
        (160, Passing, false, true),
        (240, Critical, true, true),
    ] {
        table.save(at(second));
        let job = table.next_job(at(second)).unwrap();
        table.finish(job.ticket, outcome(status, "same"), at(second), rng);
        let unsaved = [0, 6].map(|delay| table.is_unsaved(at(second + delay)));
        assert_eq!(unsaved, [at_once, later], "at {second}");
    }
}

#[test]
fn a_check_for_whose_result_questions_wait_runs_first() {
    let (mut table, rng) = (Table::default(), &mut rng());
    let tcp = json!({"tcp": "a:1", "interval": "10m"});
    for name in ["handed", "due", "done", "other"] {
        table.start(check(name, tcp.clone()), at(0), rng);
    }
    table.start(check("alias", json!({"alias_service": "due"})), at(0), rng);
    table.start(check("told", json!({"ttl": "1h"})), at(0), rng);
    let mut jobs: HashMap<Arc<str>, Job> =
        std::iter::from_fn(|| table.next_job(at(1))).map(|job| (job.check.id.check.clone(), job)).collect();
    assert!(jobs.len() == 4 && jobs.values().all(|job| !job.is_urgent));
    table.finish(jobs.remove("done").unwrap().ticket, outcome(Critical, "no"), at(1), rng);
    table.start(check("due", json!({"tcp": "a:2", "interval": "10m"})), at(1), rng);
    // One that is handed out is named; one that is not comes at once.
    for name in ["handed", "alias", "done", "told", "none"] {
        table.hasten(&id(name), at(1));
    }
    assert_eq!(table.take_urgent(), HashSet::from([jobs["handed"].ticket]));
    let job = table.next_job(at(1)).unwrap();
    assert_eq!((&*job.check.id.check, job.is_urgent), ("due", true), "by way of the alias");
    assert!(table.next_job(at(1)).is_none(), "what has a result keeps its time");
    table.finish(job.ticket, outcome(Passing, "yes"), at(1), rng);
    let job = table.next_job(at(700)).unwrap();
    assert!(!job.is_urgent, "only once");
    assert!(table.take_urgent().is_empty());
}

#[test]
fn the_outputs_of_all_checks_have_a_bound() {
    let mut table = Table::default();
    let output = "x".repeat(4096);
    let whole = MOST_OUTPUT_BYTES / output.len();
    let name = |number: usize| format!("c{number}");
    let tell = |table: &mut Table, number: usize, output: &str| {
        table.tell(&id(&name(number)), Passing, output, at(1)).unwrap();
        table.event(&id(&name(number)), at(1)).unwrap().output
    };
    for number in 0..whole + 2 {
        table.start(check(&name(number), json!({"ttl": "1h"})), at(0), &mut rng());
    }
    for number in 0..whole {
        assert_eq!(tell(&mut table, number, &output), output.as_str().into());
    }
    let noted = " ... (captured 0 of 4096 bytes)";
    assert_eq!(&*tell(&mut table, whole, &output), noted);
    assert_eq!(table.event(&id(&name(whole)), at(1)).unwrap().status, Passing, "the status counts all the same");
    // The outputs of probes have the same bound as the outputs of TTL checks.
    table.start(check("probe", json!({"tcp": "192.0.2.1:1", "interval": "1s"})), at(0), &mut rng());
    let job = table.next_job(at(5)).unwrap();
    table.finish(job.ticket, outcome(Passing, &output), at(5), &mut rng());
    assert_eq!(&*table.event(&id("probe"), at(5)).unwrap().output, noted);
    // What is told instead, or of a check that is gone, makes room.
    tell(&mut table, 0, "short");
    assert_eq!(tell(&mut table, whole, &output)[..3000], output[..3000]);
    (1..whole).for_each(|number| table.stop(&id(&name(number))));
    assert_eq!(tell(&mut table, whole + 1, &output), output.as_str().into());
    for name in [name(0), name(whole), name(whole + 1), "probe".to_owned()] {
        table.stop(&id(&name));
    }
    assert_eq!(table.output_bytes, 0);
}
