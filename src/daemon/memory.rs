//! What the catalog has found out, for the next process: results of checks, choices of policies, the catalog of an agent.
//!
//! It is saved in the state directory a moment after it has changed, so that a crash loses little, and passed on to a
//! successor as it is at the hand-over, with a state directory or without. Each file names the version of its format; one
//! that cannot be used is renamed and never fatal.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    disk::{self, Unusable},
    guard,
};
use crate::{
    catalog::{SavedPolicy, SavedRemote, check, health::Status, source::consul},
    clock::{Moment, Offset, Stamp},
};

/// What a catalog begins with.
#[derive(Default)]
pub(super) struct Memory {
    pub findings: Option<Past<Findings>>,
    pub agent: Option<Past<AgentCatalog>>,
    /// The registrations, if a predecessor has passed them on.
    pub registrations: Option<Vec<u8>>,
    /// Services of definition files that were deregistered, if a predecessor has passed them on.
    pub deregistered: Vec<Arc<str>>,
}

/// Something saved, and when that was.
pub(super) struct Past<T> {
    pub saved: T,
    /// The moment of saving; nothing if the clock does not tell.
    pub origin: Option<Moment>,
}

/// What checks and policies have found.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub(super) struct Findings {
    pub checks: Vec<check::Saved>,
    pub policies: Vec<SavedPolicy>,
    pub guard: guard::Saved,
    pub remotes: Vec<RemoteCheck>,
    /// When the agent has answered last.
    pub agent_contact: Option<Offset>,
}

/// A check of an instance on another host, as far as the guard knows it.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct RemoteCheck {
    pub check: Arc<str>,
    pub past: guard::SavedPast,
    /// What is believed of it while the guard holds it.
    pub held: Option<(Status, Arc<str>)>,
}

/// The catalog of an agent.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub(super) struct AgentCatalog {
    pub source: consul::Source,
    pub introduction: consul::Introduction,
    pub catalog: SavedRemote,
    /// When the agent had answered last.
    pub contact: Offset,
}

/// What is passed to a successor.
#[derive(Deserialize, Serialize)]
pub(super) struct Estate {
    pub findings: Findings,
    pub agent: Option<AgentCatalog>,
    pub registrations: Option<String>,
    pub deregistered: Vec<Arc<str>>,
}

/// A file, or what is passed on: what it holds, in which format, and when it was saved.
#[derive(Deserialize, Serialize)]
struct Document<T> {
    #[serde(rename = "Version")]
    version: u32,
    #[serde(rename = "Saved")]
    stamp: Stamp,
    #[serde(rename = "Content")]
    content: T,
}

impl Memory {
    /// What a predecessor has passed on or, without that, what is kept in the state directory.
    pub fn load(passed_on: Option<&[u8]>, folder: Option<&Path>) -> Self {
        if let Some(Past { saved: Estate { findings, agent, registrations, deregistered }, origin }) =
            passed_on.and_then(receive)
        {
            return Self {
                findings: Some(Past { saved: findings, origin }),
                agent: agent.map(|saved| Past { saved, origin }),
                registrations: registrations.map(String::into_bytes),
                deregistered,
            };
        }
        let Some(folder) = folder else { return Self::default() };
        Self {
            findings: load(&findings_file(folder)),
            agent: load(&agent_file(folder)),
            registrations: None,
            deregistered: Vec::new(),
        }
    }
}

/// The file of [`Findings`].
pub(super) fn findings_file(folder: &Path) -> PathBuf {
    folder.join("catalog_state.json")
}

/// The file of an [`AgentCatalog`].
pub(super) fn agent_file(folder: &Path) -> PathBuf {
    folder.join("agent_catalog.json")
}

/// The text of something whose times are relative to `stamp`.
pub(super) fn write(content: &impl Serialize, stamp: Stamp) -> Result<Vec<u8>, String> {
    let document = Document { version: VERSION, stamp, content };
    serde_json::to_vec(&document).map_err(|error| error.to_string())
}

/// The version that a JSON file of ours names; nothing if it is damaged.
pub(super) fn version_of(contents: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(rename = "Version")]
        version: u32,
    }
    serde_json::from_slice::<Head>(contents).ok().map(|head| head.version)
}

fn load<T: DeserializeOwned>(file: &Path) -> Option<Past<T>> {
    let contents = disk::read(file)?;
    match read(&contents) {
        Ok(past) => {
            if past.origin.is_none() {
                tracing::warn!(file = %file.display(), "saved in the future, by the clock; what it says of time is not believed");
            }
            Some(past)
        }
        Err((why, error)) => {
            tracing::warn!(file = %file.display(), error, "saved file not used");
            disk::set_aside(file, why);
            None
        }
    }
}

fn receive(passed_on: &[u8]) -> Option<Past<Estate>> {
    let received = read(passed_on);
    if let Err((_, error)) = &received {
        tracing::warn!(error, "what the predecessor passed on is not used; its files are read");
    }
    received.ok()
}

fn read<T: DeserializeOwned>(contents: &[u8]) -> Result<Past<T>, (Unusable, String)> {
    match version_of(contents) {
        None => return Err((Unusable::Damaged, "it is no JSON with a version".to_owned())),
        Some(VERSION) => {}
        Some(other) => {
            return Err((Unusable::UnknownVersion, format!("its format has version {other}, and not {VERSION}")));
        }
    }
    let document: Document<T> =
        serde_json::from_slice(contents).map_err(|error| (Unusable::Damaged, error.to_string()))?;
    let age = document.stamp.age(&Stamp::now());
    Ok(Past { saved: document.content, origin: age.map(|age| Moment::now() - age) })
}

/// Of the format of all of these.
const VERSION: u32 = 1;

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use super::*;

    #[test]
    fn what_was_saved_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let findings = Findings {
            agent_contact: Some(Moment::from_millis(5).offset(Moment::from_millis(9))),
            ..Findings::default()
        };
        fs::write(findings_file(folder.path()), write(&findings, Stamp::now()).unwrap()).unwrap();
        let memory = Memory::load(None, Some(folder.path()));
        let past = memory.findings.unwrap();
        assert_eq!(past.saved, findings);
        assert!(Moment::now().since(past.origin.unwrap()) < Duration::from_secs(60));
        assert!(memory.agent.is_none() && memory.registrations.is_none());

        // A predecessor knows better than the files.
        let estate = Estate {
            findings: Findings::default(),
            agent: None,
            registrations: Some("x".to_owned()),
            deregistered: Vec::new(),
        };
        let memory = Memory::load(Some(&write(&estate, Stamp::now()).unwrap()), Some(folder.path()));
        assert_eq!(memory.findings.unwrap().saved, Findings::default());
        assert_eq!(memory.registrations.unwrap(), b"x");
        // But not one of another version.
        let memory = Memory::load(Some(br#"{"Version": 7}"#), Some(folder.path()));
        assert_eq!(memory.findings.unwrap().saved, findings);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_renamed() {
        let saved = String::from_utf8(write(&Findings::default(), Stamp::now()).unwrap()).unwrap();
        for (case, contents, renamed) in [
            ("empty", String::new(), ".damaged"),
            ("cut", saved[..saved.len() / 2].to_owned(), ".damaged"),
            ("one byte short", saved[..saved.len() - 1].to_owned(), ".damaged"),
            ("no JSON", "nonsense".to_owned(), ".damaged"),
            ("no version", "{}".to_owned(), ".damaged"),
            ("not what the version holds", r#"{"Version": 1, "Saved": 3}"#.to_owned(), ".damaged"),
            ("a later version", saved.replacen("\"Version\":1", "\"Version\":2", 1), ".unknown-version"),
            ("a later version, otherwise made", r#"{"Version": 9, "Checks": 3}"#.to_owned(), ".unknown-version"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let file = findings_file(folder.path());
            fs::write(&file, &contents).unwrap();
            assert!(Memory::load(None, Some(folder.path())).findings.is_none(), "{case}");
            let renamed = folder.path().join(format!("catalog_state.json{renamed}"));
            assert_eq!(fs::read_to_string(renamed).ok(), Some(contents), "{case}");
            assert!(!file.exists(), "{case}");
        }
    }
}
