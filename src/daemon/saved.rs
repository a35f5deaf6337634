//! The cache as a file, for the next process.

use std::{io, path::PathBuf, sync::Arc};

use super::disk::{self, Unusable};
use crate::{
    cache::SnapshotError,
    clock::{Moment, unix_seconds},
    files::{self, Durability},
    resolve::Resolver,
};

/// Takes in what the last process has saved, beside serving. A file that cannot be used is renamed.
/// `cache_bytes` is the size of the cache.
pub(super) fn restore_cache(resolver: Arc<Resolver>, file: PathBuf, cache_bytes: u64) {
    tokio::task::spawn_blocking(move || {
        // No snapshot is larger than the cache, but the cache may have been larger.
        let most_bytes = SNAPSHOT_BYTES.max(2 * cache_bytes);
        let snapshot = match files::read(&file, most_bytes) {
            Ok((snapshot, _)) => snapshot,
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
    if let Err(error) = files::replace(&file, &snapshot, Durability::Process) {
        tracing::warn!(file = %file.display(), %error, "cache not saved");
    }
}

/// So large a snapshot is read in any case.
const SNAPSHOT_BYTES: u64 = 64 << 20;
