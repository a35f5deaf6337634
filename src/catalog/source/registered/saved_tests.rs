use super::*;
use crate::catalog::source::registered::new::MOST_BYTES;

/// What is done to registrations, as requests do it.
type Step = fn(&mut Registered, &Files<crate::catalog::check::Definition>);

fn service(text: &str) -> NewService {
    NewService::read(text).unwrap()
}

fn external(registered: &mut Registered, text: &str) {
    registered.add_external(Addition::read(text).unwrap(), "dc1", |_| true).unwrap();
}

fn remove_external(registered: &mut Registered, text: &str) {
    registered.remove_external(&Removal::read(text).unwrap(), "dc1").unwrap();
}

const STEPS: &[Step] = &[
    |all, files| {
        let web = r#"{"Name": "web", "Checks": [{"CheckID": "a", "TTL": "1h"}, {"CheckID": "b", "TTL": "1h"}]}"#;
        all.put_service(service(web), OtherChecks::Keep, files).unwrap();
    },
    |all, files| drop(all.put_service(service(r#"{"Name": "db", "Port": 5}"#), OtherChecks::Keep, files).unwrap()),
    |all, files| {
        // A check moves from one service to another.
        let check = NewCheck::read(r#"{"CheckID": "b", "Name": "b", "TTL": "1h", "ServiceID": "db"}"#).unwrap();
        all.put_check(check, files).unwrap();
    },
    |all, files| drop(all.maintain(Some("web".into()), Some("repair"), files).unwrap()),
    |all, files| drop(all.maintain(None, Some(""), files).unwrap()),
    |all, files| {
        let with = r#"{"Name": "s", "Port": 80, "Connect": {"SidecarService": {}}}"#;
        all.put_service(service(with), OtherChecks::Keep, files).unwrap();
    },
    |all, _| {
        let far = r#"{"Node": "Ext", "Address": "192.0.2.5", "Service": {"Service": "far"},
                      "Checks": [{"CheckID": "n", "Status": "passing"}, {"CheckID": "f", "ServiceID": "far"}]}"#;
        external(all, far);
        external(all, r#"{"Node": "ext", "SkipNodeUpdate": true, "Service": {"Service": "more"}}"#);
    },
    |all, files| {
        all.put_service(service(r#"{"Name": "web", "Port": 8}"#), OtherChecks::Drop, files).unwrap();
    },
    |all, _| remove_external(all, r#"{"Node": "ext", "CheckID": "n"}"#),
    |all, _| remove_external(all, r#"{"Node": "ext", "ServiceID": "far"}"#),
    |all, files| drop(all.remove_check("b", files).unwrap()),
    |all, files| drop(all.maintain(Some("web".into()), None, files).unwrap()),
    |all, files| drop(all.remove_service("s", files).unwrap()),
    |all, files| drop(all.remove_service("web", files).unwrap()),
    |all, files| drop(all.maintain(None, None, files).unwrap()),
    |all, _| remove_external(all, r#"{"Node": "ext"}"#),
    |all, _| external(all, r#"{"Node": "ext", "SkipNodeUpdate": true, "Check": {"CheckID": "again"}}"#),
    |all, files| drop(all.put_service(service(r#"{"Name": "web"}"#), OtherChecks::Keep, files).unwrap()),
];

#[test]
fn records_repeat_what_was_done_whatever_each_comprises() {
    for at_once in [1, 2, 3, STEPS.len()] {
        let files = Files::default();
        let (mut registered, mut replayed) = (Registered::default(), Registered::default());
        for steps in STEPS.chunks(at_once) {
            steps.iter().for_each(|step| step(&mut registered, &files));
            assert!(registered.has_changes(), "{at_once}");
            let record = registered.take_changes();
            assert!(!registered.has_changes() && !record.contains('\n'), "{at_once}: {record}");
            assert_eq!(replayed.replay(&record), Vec::<String>::new(), "{at_once}: {record}");
            let [expected, found] = [&registered, &replayed].map(|all| String::from_utf8(all.save()).unwrap());
            assert_eq!(found, expected, "{at_once}: {record}");
            // Read again, a record says the same.
            assert_eq!(replayed.replay(&record), Vec::<String>::new(), "{at_once}: {record}");
            assert_eq!(String::from_utf8(replayed.save()).unwrap(), expected, "{at_once}: {record}");
            assert_eq!(replayed.bytes + replayed.external.bytes(), registered.bytes + registered.external.bytes());
            assert!(!replayed.has_changes());
        }
    }
}

#[test]
fn a_record_costs_what_has_changed() {
    let mut registered = Registered::default();
    let mut put = |number: usize| {
        let text = format!(r#"{{"Name": "s{number:05}", "Check": {{"TTL": "1h"}}}}"#);
        registered.put_service(service(&text), OtherChecks::Keep, &Files::default()).unwrap();
        registered.take_changes().len()
    };
    let first = put(0);
    assert_eq!((1..1000).map(&mut put).max(), Some(first));
}

#[test]
fn a_snapshot_names_its_journal_and_is_read_by_versions_that_know_none() {
    let mut registered = Registered::default();
    STEPS.iter().for_each(|step| step(&mut registered, &Files::default()));
    let snapshot = String::from_utf8(registered.take_snapshot("a name")).unwrap();
    assert!(!registered.has_changes());
    assert!(snapshot.starts_with("{\n\"Version\": 1,\n\"Journal\": \"a name\",\n\"Services\": [\n"), "{snapshot}");
    let (restored, faults) = Registered::restore(snapshot.as_bytes());
    assert_eq!((restored.journal(), faults), (Some("a name"), vec![]));
    assert_eq!(restored.save(), registered.save());
    assert_eq!(Registered::restore(&registered.save()).0.journal(), None);
}

#[test]
fn what_had_room_has_room_when_it_is_read_again() {
    let files = Files::default();
    let mut registered = Registered::default();
    registered.put_service(service(r#"{"Name": "a"}"#), OtherChecks::Keep, &files).unwrap();
    external(&mut registered, r#"{"Node": "ext", "Address": "192.0.2.5"}"#);
    // The record may list what has grown before what has become smaller.
    let mut full = Registered { bytes: MOST_BYTES, ..Registered::default() };
    assert_eq!(full.replay(&registered.take_changes()), Vec::<String>::new());
    assert!(full.bytes > MOST_BYTES && full.external.bytes() > 0);
    let refused = full.put_service(service(r#"{"Name": "b"}"#), OtherChecks::Keep, &files).unwrap_err();
    assert_eq!(refused, Refused::Full);
}

#[test]
fn of_a_record_the_good_is_done() {
    let mut registered = Registered::default();
    for (record, faults) in [
        (r#"{"Services": [{"Name": "a"}, {"Port": 1}, {"Name": "b"}]}"#, 1),
        (r#"{"Gone": {"Services": ["a", "none", 7], "Checks": ["none"], "External": [{}, {"Node": "none"}]}}"#, 1),
        (r#"{"Gone": 7, "Services": 7, "Maintenance": [7]}"#, 0),
        ("nonsense", 1),
        ("", 1),
    ] {
        assert_eq!(registered.replay(record).len(), faults, "{record}");
    }
    assert_eq!(registered.units.keys().flatten().map(|id| &**id).collect::<Vec<_>>(), ["b"]);
}
