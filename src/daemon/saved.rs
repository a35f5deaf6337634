//! The cache as a file, for the next process.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::Arc,
};

use crate::{
    clock::{Moment, unix_seconds},
    resolve::Resolver,
};

/// Takes in what the last process has saved, beside serving.
pub(super) fn restore_cache(resolver: Arc<Resolver>, file: PathBuf) {
    tokio::task::spawn_blocking(move || {
        let snapshot = match fs::read(&file) {
            Ok(snapshot) => snapshot,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return tracing::warn!(file = %file.display(), %error, "saved cache not read"),
        };
        match resolver.cache().restore(&snapshot, Moment::now(), unix_seconds()) {
            Ok(entries) => tracing::info!(entries, "saved cache taken in"),
            Err(error) => tracing::warn!(file = %file.display(), %error, "saved cache ignored"),
        }
    });
}

/// Saves what upstreams have answered, for the next process. Names asked for are nobody else's business.
pub(super) fn save_cache(resolver: &Resolver, file: PathBuf) {
    let snapshot = resolver.cache().save(Moment::now(), unix_seconds());
    let part = file.with_extension("part");
    let save = || {
        let mut options = fs::OpenOptions::new();
        let mut written = options.write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        written.write_all(&snapshot)?;
        fs::rename(&part, &file)
    };
    if let Err(error) = save() {
        tracing::warn!(file = %file.display(), %error, "cache not saved");
        // Half a file is of no use to anybody.
        let _ = fs::remove_file(&part);
    }
}
