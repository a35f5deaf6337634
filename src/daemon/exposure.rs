//! Files that other users may change or read, though it matters.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::process::geteuid;

use super::places::state_folder;
use crate::{config::Loaded, files::access};

/// What there is to say to the operator about the state directory, and about files with secrets.
pub(super) fn warnings(loaded: &Loaded) -> Vec<String> {
    let mut warnings: Vec<String> = state_folder(loaded).and_then(|folder| of_folder(&folder)).into_iter().collect();
    let config = &loaded.config;
    let agent = config.catalog.consul.iter().flat_map(|agent| [&agent.token_file, &agent.key_file]);
    let secrets = [&config.server.private_key].into_iter().chain(agent).flatten();
    let secrets: std::collections::BTreeSet<&PathBuf> = secrets.chain(&loaded.files_with_secrets).collect();
    warnings.extend(secrets.into_iter().filter_map(|file| of_secret(file)));
    warnings
}

fn of_folder(folder: &Path) -> Option<String> {
    let metadata = look(folder)?;
    let name = folder.display();
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Some(format!("any user may write to the state directory {name}; run `chmod o-w` on it"));
    }
    // Root may do anything anyhow, and sees the folders of all services.
    let own = geteuid().as_raw();
    let is_foreign = own != 0 && metadata.uid() != own && metadata.uid() != 0;
    is_foreign.then(|| {
        let owner = metadata.uid();
        format!(
            "the state directory {name} belongs to user {owner}, who may change what is kept in it; run `chown` on it"
        )
    })
}

fn of_secret(file: &Path) -> Option<String> {
    let is_open = look(file)?.mode() & OTHERS_READ != 0;
    is_open.then(|| format!("any user may read the secret in {}; run `chmod o-r` on it", file.display()))
}

/// What cannot be looked at is for those to report who use it.
fn look(path: &Path) -> Option<Metadata> {
    access(path, || path.metadata()).ok()
}

const OTHERS_WRITE: u32 = 0o002;
const OTHERS_READ: u32 = 0o004;

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    use super::*;

    #[test]
    fn what_others_may_change_or_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, "").unwrap();
        for (mode, is_told) in [(0o700, false), (0o775, false), (0o777, true), (0o1777, true)] {
            fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(of_folder(folder.path()).is_some(), is_told, "{mode:o}");
        }
        for (mode, is_told) in [(0o600, false), (0o640, false), (0o644, true)] {
            fs::set_permissions(&secret, Permissions::from_mode(mode)).unwrap();
            assert_eq!(of_secret(&secret).is_some(), is_told, "{mode:o}");
        }
        assert_eq!(of_folder(&folder.path().join("missing")), None);
        assert_eq!(of_secret(&folder.path().join("missing")), None);
    }
}
