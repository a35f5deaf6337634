//! What `check` finds out about a configuration, without serving it.

use super::{
    catalog,
    reading::{load_zones, odd},
};
use crate::{
    catalog::source::file::Scope,
    config::Loaded,
    files::Copies,
    forward,
    metrics::Metrics,
    server,
    zone::{self, Problem},
};

/// What there is to say about a configuration and the files that it names.
#[derive(Debug, Default)]
pub struct Report {
    /// Every fault, as `file:line: what is wrong; what to do`.
    pub faults: Vec<String>,
    /// What `run` would warn of.
    pub warnings: Vec<String>,
    /// The files of local data.
    pub zones: Vec<zone::Summary>,
    /// The services of the definition files.
    pub services: Vec<ServiceSummary>,
}

/// What the definition files say of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSummary {
    /// Its name.
    pub name: String,
    /// How many instances it has.
    pub instances: usize,
    /// How many checks they have, without those of the node.
    pub checks: usize,
    /// The policy by which instances are given.
    pub policy: String,
}

/// Whether files that cannot be read are faults where `run` would only warn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// As `run` does.
    AsRun,
    /// They are faults: somebody wants to know which files a user can read.
    Fault,
}

/// Examines the files that a configuration names.
pub fn check(loaded: &Loaded, unreadable: Unreadable) -> Report {
    let mut report = Report::default();
    let outcome = load_zones(loaded, None, &Copies::default());
    report.faults.extend(outcome.faults.iter().map(ToString::to_string));
    let is_fault =
        |warning: &&zone::Error| unreadable == Unreadable::Fault && matches!(warning.problem, Problem::Unreadable(_));
    let (faults, warnings): (Vec<_>, Vec<_>) = outcome.warnings.iter().partition(is_fault);
    report.faults.extend(faults.iter().map(ToString::to_string));
    report.zones = outcome.files.summaries();
    report.faults.extend(server::load_certificate(&loaded.config.server).err().map(|error| error.to_string()));
    let found = catalog::load(&loaded.config.catalog, None, Scope::All, &Copies::default());
    let definition_warnings = found.as_ref().map(|found| found.warnings.clone()).unwrap_or_default();
    report.warnings.extend(warnings.into_iter().map(ToString::to_string));
    report.warnings.extend(definition_warnings);
    report.warnings.extend(odd(loaded));
    if let Some(found) = found {
        report.faults.extend(found.faults.into_iter().map(|fault| fault.text));
        report.faults.extend(found.refusals);
        if let Some(plan) = found.plan {
            let (services, unmatched) = plan.preview();
            report.services = services;
            report.warnings.extend(unmatched.iter().map(ToString::to_string));
        }
    }
    let groups = forward::Group::build_all(&loaded.rules, &[], &Metrics::new());
    report.faults.extend(groups.err().into_iter().flatten().map(|error| error.to_string()));
    report
}
