//! How registrations are kept while no process runs: a snapshot of all of them, and records of what has changed since.
//!
//! A snapshot lists everything. A record lists what was changed as it is now, and under `Gone` what is there no longer. So a
//! record costs what has changed, however much is registered.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use serde_json::json;

use super::{
    Addition, Limit, NewCheck, NewService, OtherChecks, Owner, Registered, Removal, Unsaved,
    new::{Refused, to_json},
};
use crate::catalog::source::{
    external::Change,
    file::Files,
    json,
    value::{Kind, Value},
};

/// What a snapshot or a record lists, each item as JSON on one line.
#[derive(Default)]
struct Lists<'r> {
    services: Vec<Cow<'r, str>>,
    checks: Vec<Cow<'r, str>>,
    maintenance: Vec<Cow<'r, str>>,
    sidecars: Vec<Cow<'r, str>>,
    external: Vec<Cow<'r, str>>,
}

impl Registered {
    /// All registrations, a line for each.
    pub fn save(&self) -> Vec<u8> {
        self.to_text(None)
    }

    /// The same, for a file that is continued by the journal of this name: what changes from now on is a change since.
    pub fn take_snapshot(&mut self, journal: &str) -> Vec<u8> {
        self.forget_changes();
        self.to_text(Some(journal))
    }

    /// Whether anything has changed since it was last saved.
    pub fn has_changes(&self) -> bool {
        !self.unsaved.is_empty() || self.external.has_changes()
    }

    /// Takes everything for saved.
    pub fn forget_changes(&mut self) {
        self.unsaved = Unsaved::default();
        self.external.take_changes();
    }

    /// A record of what has changed since it was last saved, on one line.
    pub fn take_changes(&mut self) -> String {
        let Unsaved { services, checks, maintenance, sidecars } = std::mem::take(&mut self.unsaved);
        let external = self.external.take_changes();
        let (mut put, mut gone) = (Lists::default(), Lists::default());
        for id in services {
            let service = self.units.get(&Some(id.clone())).and_then(|unit| unit.service.as_ref());
            match service {
                Some(service) => put.services.push(Cow::Borrowed(&service.written)),
                None => gone.services.push(quoted(&id)),
            }
        }
        for id in checks {
            match self.check(&id) {
                Some(check) => put.checks.push(Cow::Borrowed(&check.written)),
                None => gone.checks.push(quoted(&id)),
            }
        }
        for owner in maintenance {
            match self.units.get(&owner).and_then(|unit| unit.maintenance.as_deref()) {
                Some(reason) => put.maintenance.push(maintained(&owner, reason)),
                None => gone.maintenance.push(json!(owner.as_deref()).to_string().into()),
            }
        }
        for id in sidecars {
            let list = if self.sidecars.contains(&id) { &mut put.sidecars } else { &mut gone.sidecars };
            list.push(quoted(&id));
        }
        for change in external {
            match change {
                Change::Put(request) => put.external.push(request.into()),
                Change::Gone(request) => gone.external.push(request.into()),
            }
        }
        let mut text = String::from("{\"Gone\": {");
        gone.write("", &mut text);
        text.push_str("}, ");
        put.write("", &mut text);
        text.push('}');
        text
    }

    /// Reads a snapshot, as much as is good; and says what is not.
    pub fn restore(saved: &[u8]) -> (Self, Vec<String>) {
        let mut registered = Self::default();
        let text = String::from_utf8_lossy(saved);
        let root = match json::read(&text) {
            Ok(root) => root,
            Err(fault) => return (registered, vec![fault.message]),
        };
        if ["Services", "Checks", "Maintenance"].iter().any(|name| field(&root, name).is_none()) {
            return (registered, vec!["it holds no registrations".to_owned()]);
        }
        let mut faults = Vec::new();
        if field(&root, "Version").map(to_json) != Some(json!(VERSION)) {
            faults.push("it is of another version".to_owned());
        }
        registered.put_all(&root, &mut faults);
        registered.forget_changes();
        registered.journal = field(&root, "Journal").and_then(text_of).map(str::to_owned);
        (registered, faults)
    }

    /// The journal that continues the snapshot from which these were restored. A version that knows no journals names none.
    pub fn journal(&self) -> Option<&str> {
        self.journal.as_deref()
    }

    /// Does what a record says, as much as is good; and says what is not.
    pub fn replay(&mut self, record: &str) -> Vec<String> {
        let root = match json::read(record) {
            Ok(root) => root,
            Err(fault) => return vec![fault.message],
        };
        let mut faults = Vec::new();
        if let Some(gone) = field(&root, "Gone") {
            self.remove_all(gone, &mut faults);
        }
        self.put_all(&root, &mut faults);
        self.forget_changes();
        faults
    }

    fn put_all(&mut self, root: &Value, faults: &mut Vec<String>) {
        self.limit = Limit::Lifted;
        let files = Files::default();
        let mut note = |outcome: Result<BTreeSet<Owner>, Refused>| faults.extend(outcome.err().map(|e| e.to_string()));
        for value in listed(root, "Services") {
            let new = NewService::from_value(value);
            note(new.and_then(|new| self.put_service(new, OtherChecks::Keep, &files)));
        }
        for value in listed(root, "Checks") {
            // A service that a file defined may be defined again.
            note(NewCheck::from_value(value).map(|new| self.add_check(new.0).into_iter().collect()));
        }
        self.sidecars.extend(listed(root, "Sidecars").iter().filter_map(text_of).map(Arc::from));
        for value in listed(root, "External") {
            // The source that knew a node then may know it again.
            let added = Addition::from_value(value).and_then(|new| self.add_external(new, "", |_| true));
            note(added.map(|_| BTreeSet::new()));
        }
        for value in listed(root, "Maintenance") {
            let reason = field(value, "Reason").and_then(text_of).unwrap_or_default();
            let owner = field(value, "ServiceID").and_then(text_of).map(Arc::from);
            self.set_maintenance(&owner, Some(reason.into()));
        }
        self.limit = Limit::Enforced;
    }

    /// Takes out each thing alone: what goes with it is listed, too.
    fn remove_all(&mut self, gone: &Value, faults: &mut Vec<String>) {
        for value in listed(gone, "Maintenance") {
            self.set_maintenance(&text_of(value).map(Arc::from), None);
        }
        for id in listed(gone, "Checks").iter().filter_map(text_of) {
            self.take_check(id);
        }
        for id in listed(gone, "Services").iter().filter_map(text_of) {
            self.take_service(id);
        }
        for id in listed(gone, "Sidecars").iter().filter_map(text_of) {
            self.sidecars.remove(id);
        }
        for value in listed(gone, "External") {
            let removed = Removal::from_value(value).and_then(|removal| self.remove_external(&removal, ""));
            faults.extend(removed.err().map(|error| error.to_string()));
        }
    }

    fn to_text(&self, journal: Option<&str>) -> Vec<u8> {
        let mut lists = Lists::default();
        for (owner, unit) in &self.units {
            lists.services.extend(unit.service.iter().map(|service| Cow::Borrowed(&*service.written)));
            lists.checks.extend(unit.checks.values().map(|check| Cow::Borrowed(&*check.written)));
            lists.maintenance.extend(unit.maintenance.iter().map(|reason| maintained(owner, reason)));
        }
        lists.sidecars.extend(self.sidecars.iter().map(|id| quoted(id)));
        lists.external.extend(self.external.requests().map(Cow::Borrowed));
        let mut text = format!("{{\n\"Version\": {VERSION},\n");
        if let Some(journal) = journal {
            text.push_str(&format!("\"Journal\": {},\n", json!(journal)));
        }
        text.reserve(lists.bytes());
        lists.write("\n", &mut text);
        text.push_str("\n}\n");
        text.into_bytes()
    }
}

impl<'r> Lists<'r> {
    fn named(&self) -> [(&'static str, &[Cow<'r, str>]); 5] {
        let Self { services, checks, maintenance, sidecars, external } = self;
        [
            ("Services", services),
            ("Checks", checks),
            ("Maintenance", maintenance),
            ("Sidecars", sidecars),
            ("External", external),
        ]
    }

    /// About what they come to as text.
    fn bytes(&self) -> usize {
        self.named().iter().flat_map(|(_, items)| *items).map(|item| item.len() + 2).sum()
    }

    /// Appends the lists, with this before each item.
    fn write(&self, end: &str, text: &mut String) {
        for (place, (name, items)) in self.named().into_iter().enumerate() {
            if place > 0 {
                text.push(',');
                text.push_str(end);
            }
            text.push('"');
            text.push_str(name);
            text.push_str("\": [");
            for (place, item) in items.iter().enumerate() {
                text.push_str(if place == 0 { "" } else { "," });
                text.push_str(end);
                text.push_str(item);
            }
            text.push(']');
        }
    }
}

fn quoted(id: &str) -> Cow<'static, str> {
    json!(id).to_string().into()
}

fn maintained(owner: &Owner, reason: &str) -> Cow<'static, str> {
    json!({ "ServiceID": owner.as_deref(), "Reason": reason }).to_string().into()
}

fn field<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    value.table()?.iter().find(|(key, _)| key == name).map(|(_, value)| value)
}

fn listed<'v>(value: &'v Value, name: &str) -> &'v [Value] {
    match field(value, name).map(|list| &list.kind) {
        Some(Kind::List(items)) => items,
        _ => &[],
    }
}

fn text_of(value: &Value) -> Option<&str> {
    if let Kind::Text(text) = &value.kind { Some(text) } else { None }
}

/// Of what is saved. Versions that know no journals read the same snapshots, without the changes since.
pub const VERSION: u32 = 1;

#[cfg(test)]
#[path = "saved_tests.rs"]
mod tests;
