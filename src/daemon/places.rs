//! Where things are kept while no process runs.

use std::{env, path::PathBuf};

use super::registrations;
use crate::{config::Loaded, files::Copies};

/// The state directory: the configured folder, or the service manager's.
pub(super) fn state_folder(loaded: &Loaded) -> Option<PathBuf> {
    let from_manager = || env::var_os("STATE_DIRECTORY").filter(|folder| !folder.is_empty()).map(PathBuf::from);
    loaded.config.server.state_directory.clone().or_else(from_manager)
}

/// Where the last good versions of data files are kept.
pub(super) struct Kept {
    pub zones: Copies,
    pub definitions: Copies,
}

impl Kept {
    pub fn of(loaded: &Loaded) -> Self {
        let folder = state_folder(loaded).map(|folder| folder.join("last-good"));
        let copies = |kind| Copies::new(folder.as_ref().map(|folder| folder.join(kind)));
        Self { zones: copies("zones"), definitions: copies("definitions") }
    }
}

pub(super) fn snapshot_file(loaded: &Loaded) -> Option<PathBuf> {
    Some(state_folder(loaded)?.join("cache.snapshot"))
}

pub(super) fn registrations_place(loaded: &Loaded) -> registrations::Place {
    let is_enabled = loaded.config.catalog.api.enable_registration;
    registrations::Place { is_enabled, folder: state_folder(loaded) }
}
