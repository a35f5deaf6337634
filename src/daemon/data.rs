//! Data files: zones, overlays, hosts files and definition files.
//!
//! A data file with faults costs itself alone, at a start as at any other time. Here its faults are reported, and the last good
//! versions of all data files are kept for the next start.

use std::{
    collections::{BTreeSet, HashSet},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::catalog;
use crate::{
    escape::shorten,
    files::{self, Copies, Version},
    wire::Name,
    zone::{self, Instead},
};

/// What is known of the data files in service.
#[derive(Default)]
pub(super) struct Data {
    /// Their faults, as they were logged last.
    faults: Vec<Fault>,
    /// The files and folders that have faults.
    faulty: BTreeSet<PathBuf>,
    /// What the host leaves in doubt, as it was logged last.
    doubts: Vec<String>,
}

/// A fault of a data file, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Fault {
    /// `file:line: what is wrong; what to do`.
    pub text: String,
    /// What is served instead.
    pub outcome: &'static str,
}

/// What was taken in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Files that came, went, or say something else than before.
    pub changed: BTreeSet<PathBuf>,
    /// Files that are refused, and were not before.
    pub refused: BTreeSet<PathBuf>,
    /// Files that were refused, and are not any more.
    pub mended: BTreeSet<PathBuf>,
}

impl Data {
    /// Notes and logs what loading came to.
    pub fn report(
        &mut self,
        before: &zone::Files,
        zones: &zone::Outcome,
        definitions: Option<&catalog::Loaded>,
    ) -> Changes {
        let mut faults: Vec<Fault> = zones.files.faulty().iter().flat_map(faults_of).collect();
        faults.extend(definitions.iter().flat_map(|loaded| loaded.faults.iter().cloned()));
        let known: HashSet<&Fault> = self.faults.iter().collect();
        log_some(faults.iter().filter(|fault| !known.contains(fault)), |fault| {
            tracing::error!(error = shorten(&fault.text, MOST_LETTERS), "{}", fault.outcome);
        });
        let doubts = definitions.map(|loaded| loaded.doubts.clone()).unwrap_or_default();
        for doubt in doubts.iter().filter(|doubt| !self.doubts.contains(doubt)) {
            tracing::warn!("{doubt}");
        }
        let warnings = definitions.iter().flat_map(|loaded| loaded.warnings.iter().cloned());
        log_some(zones.warnings.iter().map(ToString::to_string).chain(warnings), |warning| {
            tracing::warn!(warning = shorten(&warning, MOST_LETTERS), "configuration warning");
        });
        let is_served = |path: &Path| {
            let is_definition =
                || definitions.and_then(|loaded| loaded.plan.as_ref()).is_some_and(|plan| plan.files.is_served(path));
            zones.files.tables().any(|(_, source)| source.path == path) || is_definition()
        };
        let mut faulty: BTreeSet<PathBuf> = zones.files.faulty().iter().map(|faulty| faulty.path.clone()).collect();
        let mut changes = Changes { changed: changed_tables(before, &zones.files), ..Changes::default() };
        if let Some(loaded) = definitions {
            faulty.extend(loaded.plan.iter().flat_map(|plan| plan.files.faulty()).map(Path::to_owned));
            changes.changed.extend(loaded.changed_files.iter().cloned());
        }
        changes.refused.extend(faulty.difference(&self.faulty).cloned());
        changes.mended.extend(self.faulty.difference(&faulty).filter(|path| is_served(path)).cloned());
        for file in changes.mended.iter().take(MOST_NAMED) {
            tracing::info!(file = %file.display(), "file mended and taken in");
        }
        *self = Self { faults, faulty, doubts };
        changes
    }

    /// Each fault, as the operator reads it.
    pub fn faults(&self) -> impl Iterator<Item = &str> {
        self.faults.iter().map(|fault| fault.text.as_str())
    }
}

impl Changes {
    /// Returns true if no file says anything else than before.
    pub fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.refused.is_empty() && self.mended.is_empty()
    }

    /// Logs what was taken in, if anything was.
    pub fn log(&self, retired: usize, faults: usize) {
        if !self.changed.is_empty() {
            let (changed, refused) = (name_some(&self.changed), name_some(&self.refused));
            tracing::info!(changed, refused, retired, faults, "files taken in");
        }
    }
}

/// Keeps the last good versions of data files, beside serving.
pub(super) struct Keeper {
    jobs: Option<mpsc::UnboundedSender<Job>>,
}

struct Job {
    copies: Copies,
    versions: Vec<Version>,
    /// Looks at files.
    kept: Box<dyn Fn() -> HashSet<PathBuf> + Send + Sync>,
}

impl Keeper {
    /// Its task is among `tasks`, and ends once it is [closed](Self::close) and all is written.
    pub fn new(tasks: &TaskTracker) -> Self {
        let (jobs, mut waiting) = mpsc::unbounded_channel::<Job>();
        tasks.spawn(async move {
            let mut last_error = String::new();
            while let Some(Job { copies, versions, kept }) = waiting.recv().await {
                let save = tokio::task::spawn_blocking(move || copies.save(&versions, &files::patiently(PATIENCE, kept)));
                let error = match save.await {
                    Ok(Ok(_)) => String::new(),
                    Ok(Err(error)) => error.to_string(),
                    Err(panic) => panic.to_string(),
                };
                if !error.is_empty() && error != last_error {
                    tracing::warn!(
                        error,
                        "cannot keep the last good versions of data files; a faulty file may cost its names at the next start"
                    );
                }
                last_error = error;
            }
        });
        Self { jobs: Some(jobs) }
    }

    /// Has these versions kept, and no others than those of files that are `kept`.
    pub fn keep(
        &self,
        copies: &Copies,
        versions: Vec<Version>,
        kept: impl Fn() -> HashSet<PathBuf> + Send + Sync + 'static,
    ) {
        if let Some(jobs) = self.jobs.as_ref().filter(|_| copies.are_kept()) {
            // The task ends only after the last job.
            let _ = jobs.send(Job { copies: copies.clone(), versions, kept: Box::new(kept) });
        }
    }

    /// Takes no more jobs.
    pub fn close(&mut self) {
        self.jobs = None;
    }
}

/// Logs the first of many things, and how many there are besides.
pub(super) fn log_some<T>(mut things: impl Iterator<Item = T>, mut log: impl FnMut(T)) {
    things.by_ref().take(MOST_LINES).for_each(&mut log);
    let more = things.count();
    if more > 0 {
        tracing::warn!(more, "further lines of the kind are left out; `watershed check` shows all");
    }
}

/// The zones that cannot be served, a line each.
pub(super) fn failed_zones<'a>(apexes: impl Iterator<Item = &'a Name>) -> Vec<String> {
    let line =
        |apex| format!("the file of zone {apex} has faults and there is no earlier version; its names are SERVFAIL");
    apexes.map(line).collect()
}

fn faults_of(faulty: &zone::Faulty) -> impl Iterator<Item = Fault> {
    let outcome = match faulty.instead {
        _ if !faulty.is_file() => FOLDER_REFUSED,
        Instead::LastGood => LAST_GOOD,
        Instead::Failure(_) => ZONE_FAILS,
        Instead::Nothing => NOT_SERVED,
    };
    faulty.faults.iter().map(move |fault| Fault { text: fault.to_string(), outcome })
}

/// The files whose tables came, went or are others now.
fn changed_tables(before: &zone::Files, now: &zone::Files) -> BTreeSet<PathBuf> {
    let tables = |files: &zone::Files| -> BTreeSet<(PathBuf, u64)> {
        files.tables().map(|(generation, source)| (source.path.clone(), generation)).collect()
    };
    tables(before).symmetric_difference(&tables(now)).map(|(path, _)| path.clone()).collect()
}

/// The first of these files, and how many there are besides.
fn name_some(files: &BTreeSet<PathBuf>) -> String {
    let named: Vec<_> = files.iter().take(MOST_NAMED).map(|file| file.display().to_string()).collect();
    match files.len().saturating_sub(MOST_NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// What follows from the fault of a file that has a good version.
pub(super) const LAST_GOOD: &str = "file refused; its last good version stays in service";
/// What follows from the fault of a file that has none.
pub(super) const NOT_SERVED: &str = "file refused; nothing in it is served until it is mended";
/// What follows from the fault of a folder.
pub(super) const FOLDER_REFUSED: &str = "folder refused; its files stay as they were";
/// What follows where definition files contradict each other.
pub(super) const PASSED_OVER: &str = "definition refused; all others are served";
const ZONE_FAILS: &str = "file refused; its zone is answered with SERVFAIL until it is mended";
/// How long one look at a file may take; an end of the daemon waits for it.
const PATIENCE: Duration = Duration::from_millis(400);
/// So many lines are logged at a time.
const MOST_LINES: usize = 100;
/// So many letters of a fault are logged: a file may have words of any length.
const MOST_LETTERS: usize = 1000;
/// A line names no more files than this.
const MOST_NAMED: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_ten_files_and_counts_the_others() {
        let files = |count: u32| (0..count).map(|number| PathBuf::from(format!("/{number:02}"))).collect();
        assert_eq!(name_some(&files(2)), "/00, /01");
        assert!(name_some(&files(10)).ends_with("/09"));
        assert!(name_some(&files(12)).ends_with("/09 and 2 more"));
    }
}
