//! What `/ready` speaks of.

use std::sync::Arc;

use crate::{
    catalog::{Live, Standing},
    forward,
};

/// What `/ready` speaks of.
#[derive(Default)]
pub(super) struct Status {
    pub upstreams_unknown: bool,
    pub default_group: Option<Arc<forward::Group>>,
    pub catalog: Option<Arc<Live>>,
    /// Our own node has no address yet.
    pub is_address_unknown: bool,
    /// The zones that cannot be served, a line each.
    pub failed_zones: Vec<String>,
    /// Faults of data files.
    pub faults: Vec<String>,
    /// Why the last reload was refused.
    pub refused_reload: Vec<String>,
    /// Questions may wait for the first results of checks.
    pub lacks_first_results: bool,
    pub is_stopping: bool,
}

impl Status {
    /// What is missing, a line each.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if self.is_stopping {
            missing.push("stopping".into());
        }
        if self.lacks_first_results {
            missing.push("some checks have no result yet; questions for their services wait for it".into());
        }
        if self.upstreams_unknown {
            missing.push("no upstream is known; name some in [[forward]] or with --upstream".into());
        }
        if let Some(group) = &self.default_group
            && group.upstreams().iter().all(|upstream| !upstream.is_up())
        {
            let named: Vec<String> = group.upstreams().iter().map(|upstream| upstream.url().to_string()).collect();
            missing.push(format!("every upstream of \".\" is down: {}", named.join(", ")));
        }
        if self.catalog.as_ref().is_some_and(|catalog| catalog.load().standing() == Some(Standing::Lost)) {
            missing
                .push("nothing is known of the agent in [catalog.consul], or too old; its names are forwarded".into());
        }
        if self.is_address_unknown {
            missing.push("the address of this host's node is not known; services on it are SERVFAIL".into());
        }
        missing.extend(self.failed_zones.iter().cloned());
        missing
    }

    /// What is to be mended, a line each, though every answer is as it was.
    pub fn faults(&self) -> Vec<String> {
        let reload = self.refused_reload.iter().map(|line| format!("reload refused: {line}"));
        reload.chain(self.faults.iter().cloned()).collect()
    }
}
