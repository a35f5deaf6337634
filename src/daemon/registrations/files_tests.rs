use super::*;
use crate::catalog::source::{
    file::Files,
    registered::{NewService, OtherChecks},
};

/// Registrations and their files, as a daemon has them.
struct Running {
    folder: tempfile::TempDir,
    registered: Registered,
    writer: Writer,
}

impl Running {
    /// With a snapshot that has the service "first", and a journal that has the other services.
    fn with_journal(others: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("watershed-").tempdir().unwrap();
        let mut running = Self { folder, registered: Registered::default(), writer: Writer::default() };
        running.put("first");
        running.write_snapshot("journal").unwrap();
        for (place, name) in others.iter().enumerate() {
            running.put(name);
            running.append(place == 0).unwrap();
        }
        running
    }

    fn put(&mut self, name: &str) {
        let new = NewService::read(&format!(r#"{{"Name": "{name}"}}"#)).unwrap();
        self.registered.put_service(new, OtherChecks::Keep, &Files::default()).unwrap();
    }

    fn write_snapshot(&mut self, journal: &str) -> io::Result<()> {
        let contents = self.registered.take_snapshot(journal);
        self.writer.write_now(ToSave::Snapshot(self.folder.path().to_owned(), contents))
    }

    fn append(&mut self, is_first: bool) -> io::Result<()> {
        let (folder, record) = (self.folder.path().to_owned(), self.registered.take_changes());
        self.writer.write_now(match is_first {
            true => ToSave::First(folder, "journal".to_owned(), record),
            false => ToSave::Further(folder, record),
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn journal(&self) -> PathBuf {
        journal_file(self.folder.path())
    }

    /// The services that the next process finds, and whether the snapshot alone says as much.
    fn found(&self) -> (Vec<String>, bool) {
        let Kept { registered, is_snapshot_enough } = load(self.folder.path());
        (names(&registered.save()), is_snapshot_enough)
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn names(saved: &[u8]) -> Vec<String> {
    let saved: serde_json::Value = serde_json::from_slice(saved).unwrap();
    let services = saved["Services"].as_array().unwrap().iter();
    services.map(|service| service["Name"].as_str().unwrap().to_owned()).collect()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_was_written_is_found() {
    let mut running = Running::with_journal(&["a", "b"]);
    assert_eq!(running.found(), (owned(&["a", "b", "first"]), false));
    running.put("c");
    running.registered.drop_service("a");
    running.append(false).unwrap();
    assert_eq!(running.found(), (owned(&["b", "c", "first"]), false));
    running.write_snapshot("next").unwrap();
    assert_eq!(running.found(), (owned(&["b", "c", "first"]), true));
    assert_eq!(running.files(), ["registrations.json"]);
    let empty = Running::with_journal(&[]);
    fs::remove_file(empty.at("registrations.json")).unwrap();
    assert_eq!(empty.found(), (vec![], true));
}

#[test]
fn a_crash_at_any_byte_of_a_record_costs_that_record_alone() {
    let running = Running::with_journal(&["a", "b"]);
    let whole = fs::read(running.journal()).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for end in last..whole.len() {
        fs::write(running.journal(), &whole[..end]).unwrap();
        assert_eq!(running.found(), (owned(&["a", "first"]), false), "{end}");
        assert_eq!(running.files(), ["registrations.journal", "registrations.json"], "nothing is set aside");
    }
    fs::write(running.journal(), &whole).unwrap();
    assert_eq!(running.found().0, ["a", "b", "first"]);
}

#[test]
fn a_damaged_record_is_kept_for_a_person_and_costs_itself_alone() {
    let running = Running::with_journal(&["a", "b", "c"]);
    let damaged = fs::read_to_string(running.journal()).unwrap().replace("\"b\"", "\"x\"");
    fs::write(running.journal(), &damaged).unwrap();
    assert_eq!(running.found(), (owned(&["a", "c", "first"]), false));
    assert_eq!(fs::read_to_string(running.at("registrations.journal.damaged")).unwrap(), damaged);
    assert!(!running.journal().exists());
}

#[test]
fn a_journal_of_another_snapshot_is_ignored() {
    // The process ends between the new snapshot and the removal of the old journal.
    let mut running = Running::with_journal(&["a", "b"]);
    let journal = fs::read(running.journal()).unwrap();
    running.registered.drop_service("a");
    running.write_snapshot("next").unwrap();
    fs::write(running.journal(), &journal).unwrap();
    assert_eq!(running.found(), (owned(&["b", "first"]), false), "and is to be removed");
    // A version that knows no journals writes what it has.
    fs::write(running.at("registrations.json"), running.registered.save()).unwrap();
    assert_eq!(running.found(), (owned(&["b", "first"]), false));
    running.writer = Writer::default();
    running.write_snapshot("after that").unwrap();
    assert_eq!(running.files(), ["registrations.json"]);
    // A person removes the snapshot.
    fs::write(running.journal(), &journal).unwrap();
    fs::remove_file(running.at("registrations.json")).unwrap();
    assert_eq!(running.found(), (vec![], true));
    assert_eq!(running.files(), ["registrations.journal.damaged"]);
}

#[test]
fn files_of_an_unknown_version_are_kept_for_it() {
    for (file, from, to, found) in [
        ("registrations.journal", "\"Version\":1", "\"Version\":2", &["first"][..]),
        ("registrations.json", "\"Version\": 1", "\"Version\": 2", &["a", "first"]),
    ] {
        let running = Running::with_journal(&["a"]);
        let other = fs::read_to_string(running.at(file)).unwrap();
        let other = match file {
            "registrations.json" => other.replace(from, to),
            _ => {
                // Its lines have checksums.
                let head = r#"{"Version":2,"Journal":"journal","More":7}"#;
                drop(Journal::begin(running.journal(), head, "what that version knows").unwrap());
                fs::read_to_string(running.journal()).unwrap()
            }
        };
        fs::write(running.at(file), &other).unwrap();
        assert_eq!(running.found(), (owned(found), false), "{file}");
        let aside = running.at(&format!("{file}.unknown-version"));
        assert_eq!(fs::read_to_string(aside).unwrap(), other, "{file}");
        assert!(!running.journal().exists(), "{file}: the journal of a file that is kept is kept with it");
        assert!(running.files().contains(&"registrations.journal.unknown-version".to_owned()), "{file}");
    }
}

#[test]
fn nothing_follows_an_append_that_has_failed() {
    for case in ["full disk", "snapshot removed", "snapshot replaced", "journal removed", "folder removed"] {
        let mut running = Running::with_journal(&["a"]);
        let (snapshot, journal) = (running.at("registrations.json"), running.journal());
        match case {
            "full disk" => running.writer.journal = Some(Journal::on_full_disk()),
            "snapshot removed" => fs::remove_file(snapshot).unwrap(),
            "snapshot replaced" => fs::write(snapshot, running.registered.save()).unwrap(),
            "journal removed" => fs::remove_file(journal).unwrap(),
            _ => {
                fs::remove_dir_all(running.folder.path()).unwrap();
                fs::create_dir(running.folder.path()).unwrap();
            }
        }
        running.put("b");
        assert!(running.append(false).is_err(), "{case}");
        running.put("c");
        assert!(running.append(false).is_err(), "{case}: only a snapshot may follow");
        assert!(running.append(true).is_err(), "{case}: only a snapshot may follow");
        running.write_snapshot("journal").unwrap();
        assert_eq!(running.found().0, ["a", "b", "c", "first"], "{case}");
        running.put("d");
        running.append(true).unwrap();
        assert_eq!(running.found().0, ["a", "b", "c", "d", "first"], "{case}");
    }
}
