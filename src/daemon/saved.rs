//! The cache as a file, for the next process.

use std::{fs, io, path::PathBuf, sync::Arc};

use super::disk::{self, Durability, Unusable};
use crate::{
    cache::SnapshotError,
    clock::{Moment, unix_seconds},
    resolve::Resolver,
};

/// Takes in what the last process has saved, beside serving. A file that cannot be used is renamed.
pub(super) fn restore_cache(resolver: Arc<Resolver>, file: PathBuf) {
    tokio::task::spawn_blocking(move || {
        let snapshot = match fs::read(&file) {
            Ok(snapshot) => snapshot,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                tracing::warn!(file = %file.display(), %error, "saved cache not read");
                return disk::set_aside(&file, Unusable::Damaged);
            }
        };
        let error = match resolver.cache().restore(&snapshot, Moment::now(), unix_seconds()) {
            Ok(entries) => return tracing::info!(entries, "saved cache taken in"),
            Err(error) => error,
        };
        tracing::warn!(file = %file.display(), %error, "saved cache ignored");
        match error {
            SnapshotError::Foreign | SnapshotError::Damaged => disk::set_aside(&file, Unusable::Damaged),
            SnapshotError::OtherVersion => disk::set_aside(&file, Unusable::UnknownVersion),
            // It is replaced in time.
            SnapshotError::Outdated => {}
        }
    });
}

/// Saves what upstreams have answered, for the next process. Names asked for are nobody else's business.
pub(super) fn save_cache(resolver: &Resolver, file: PathBuf) {
    let snapshot = resolver.cache().save(Moment::now(), unix_seconds());
    // A damaged one is noticed, so nobody has to wait for the disk.
    if let Err(error) = disk::replace(&file, &snapshot, Durability::Process) {
        tracing::warn!(file = %file.display(), %error, "cache not saved");
    }
}
