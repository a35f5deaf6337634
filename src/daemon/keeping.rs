//! Saves what the catalog has found out, a moment after it has changed.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    catalog::Shared,
    memory::{self, Estate},
    registrations::Extent,
};
use crate::{
    clock::{Moment, Stamp},
    files::{self, Durability},
};

/// What of it is saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// What has changed.
    Changed,
    /// Everything, to the second.
    All,
}

/// What saving has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// There was nothing to save, or nowhere.
    Nothing,
    Saved,
    /// It is logged, and tried again.
    Failed,
}

impl Shared {
    /// Saves what has changed until the catalog closes, and then once more.
    pub(super) async fn keep(&self, closing: CancellationToken) {
        let mut next = Instant::now();
        while closing.run_until_cancelled(sleep(LOOK_INTERVAL)).await.is_some() {
            let begun = Instant::now();
            if begun < next {
                continue;
            }
            match self.save_findings(Scope::Changed).await {
                Outcome::Nothing => {}
                outcome => next = begun + next_pause(begun.elapsed(), outcome),
            }
        }
        self.save_findings(Scope::All).await;
    }

    /// Saves all that is not saved yet.
    pub(super) async fn save_all(&self) {
        // What fails is logged, and tried again with the next change.
        let _ = self.save(Extent::Whole).await;
        self.save_findings(Scope::All).await;
    }

    /// What a successor has to know.
    pub(super) fn estate(&self) -> Estate {
        let agent = self.agent.lock().clone();
        let mut state = self.state.lock();
        let now = Moment::now();
        let findings = state.findings(&self.runner, agent.as_deref(), now);
        let agent = state.agent_catalog(agent.as_deref(), now);
        let (registrations, deregistered) = state.registered();
        // The files are the successor's; if it does not come up, all is saved here.
        Estate { findings, agent, registrations, deregistered }
    }

    async fn save_findings(&self, scope: Scope) -> Outcome {
        let writing = self.writing.lock().await;
        if writing.files_left {
            return Outcome::Nothing;
        }
        let agent = self.agent.lock().clone();
        let now = Moment::now();
        let stamp = Stamp::now();
        let (findings, catalog, folder) = {
            let mut state = self.state.lock();
            let Some(folder) = state.registrations.folder().cloned() else { return Outcome::Nothing };
            let (is_unsaved, is_agent_unsaved) = state.is_unsaved(&self.runner, agent.as_deref(), now);
            let findings =
                (is_unsaved || scope == Scope::All).then(|| state.findings(&self.runner, agent.as_deref(), now));
            let catalog = is_agent_unsaved.then(|| state.agent_catalog(agent.as_deref(), now)).flatten();
            (findings, catalog, folder)
        };
        if findings.is_none() && catalog.is_none() {
            return Outcome::Nothing;
        }
        let is_saved = [
            put(memory::findings_file(&folder), findings, &stamp).await,
            put(memory::agent_file(&folder), catalog, &stamp).await,
        ];
        let outcome: Result<(), String> = is_saved.into_iter().collect();
        let mut is_failing = self.is_failing.lock();
        match &outcome {
            Err(error) if !*is_failing => {
                tracing::error!(error, "state of the catalog not saved; a restart now would forget it");
            }
            Ok(()) if *is_failing => tracing::info!("state of the catalog saved again"),
            _ => {}
        }
        *is_failing = outcome.is_err();
        if outcome.is_err() {
            self.state.lock().forget_saved();
            return Outcome::Failed;
        }
        Outcome::Saved
    }
}

/// Writes a file, if there is anything to write, beside those who serve.
async fn put<T>(file: PathBuf, content: Option<T>, stamp: &Stamp) -> Result<(), String>
where
    T: Serialize + Send + 'static,
{
    let Some(content) = content else { return Ok(()) };
    let name = file.display().to_string();
    let stamp = stamp.clone();
    let write =
        move || files::replace(&file, &memory::write(&content, stamp)?, Durability::Disk).map_err(|e| e.to_string());
    let written = tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string());
    written.and_then(|written| written).map_err(|error| format!("{name}: {error}"))
}

/// The pause after a save that took this long: a slow disk or a large catalog must not keep a core busy.
fn next_pause(took: Duration, outcome: Outcome) -> Duration {
    match outcome {
        Outcome::Failed => LONGEST_PAUSE,
        _ => (took * PAUSE_FACTOR).clamp(SHORTEST_PAUSE, LONGEST_PAUSE),
    }
}

/// How often it is looked whether there is anything to save.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// From one save to the next. With the interval above, this is what a crash may lose, on a disk that is quick.
const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const PAUSE_FACTOR: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_is_written_to_more_rarely() {
        let millis = Duration::from_millis;
        for (took, outcome, expected) in [
            (millis(1), Outcome::Saved, millis(500)),
            (millis(200), Outcome::Saved, millis(2000)),
            (millis(9000), Outcome::Saved, millis(10_000)),
            (millis(1), Outcome::Failed, millis(10_000)),
        ] {
            assert_eq!(next_pause(took, outcome), expected, "{took:?} {outcome:?}");
        }
    }
}
