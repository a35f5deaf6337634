//! Which files a configuration is made of, and what stands for the folder of credentials in paths.

use std::{
    env, io,
    path::{Path, PathBuf},
};

use super::document::Text;
use crate::files;

/// Why an entry of `include` is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A wildcard in the name of a folder.
    #[error("only the last part of an include may have * or ?; name its folder")]
    WildFolder,
    /// A folder or a file that is named, or found.
    #[error("include {file:?} cannot be read: {cause}; mend the path or its permissions")]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why not.
        cause: String,
    },
    /// A file in another encoding.
    #[error("include {0:?} is not UTF-8 text; save it as that")]
    NotUtf8(PathBuf),
}

/// A variable in a path that has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Variable {
    /// Not the one that is understood.
    #[error("{0:?} has a variable that is not known; only ${{CREDENTIALS_DIRECTORY}} is")]
    Unknown(String),
    /// Not started with credentials.
    #[error(
        "{0:?} needs CREDENTIALS_DIRECTORY, which is not set; systemd sets it for a unit with LoadCredential=, and by hand it \
         can be set in the environment"
    )]
    Unset(String),
}

/// The files that an entry names, in the order of their names: those that exist for a pattern, else the one.
pub fn find(folder: &Path, entry: &str) -> Result<Vec<PathBuf>, Error> {
    let path = folder.join(entry);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let parent = path.parent().unwrap_or(Path::new("/"));
    // The folder of the configuration is what it is; only what is written may not be a pattern.
    if Path::new(entry).parent().is_some_and(|parent| is_pattern(&parent.to_string_lossy())) {
        return Err(Error::WildFolder);
    }
    if !is_pattern(&name) {
        return Ok(vec![path]);
    }
    let unreadable = |cause: io::Error| Error::Unreadable { file: parent.to_owned(), cause: cause.to_string() };
    let entries = match files::list(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(unreadable)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let text = entry.path.file_name().unwrap_or_default().to_string_lossy();
        // As a shell has it, a hidden file is not meant.
        if matches(&name, &text) && (name.starts_with('.') || !text.starts_with('.')) {
            found.push(entry.path);
        }
    }
    found.sort();
    Ok(found)
}

/// What stands in a file.
pub fn read(file: PathBuf) -> Result<Text, Error> {
    match files::read_text(&file) {
        Ok(text) => Ok(Text { file, text }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Error::NotUtf8(file)),
        Err(error) => Err(Error::Unreadable { file, cause: error.to_string() }),
    }
}

/// A path with the folder of credentials in the place of its variable.
pub fn expand(path: &str) -> Result<String, Variable> {
    expand_with(path, env::var("CREDENTIALS_DIRECTORY").ok().filter(|folder| !folder.is_empty()).as_deref())
}

fn expand_with(path: &str, credentials: Option<&str>) -> Result<String, Variable> {
    let rest = path.replace(CREDENTIALS, "");
    if rest.contains("${") {
        return Err(Variable::Unknown(path.to_owned()));
    }
    match credentials {
        _ if rest.len() == path.len() => Ok(path.to_owned()),
        Some(folder) => Ok(path.replace(CREDENTIALS, folder)),
        None => Err(Variable::Unset(path.to_owned())),
    }
}

fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?'])
}

/// True if a name fits a pattern: `*` is any letters, `?` any one.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut at, mut seen, mut star) = (0, 0, None);
    while seen < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(&letter) if letter == '?' || letter == name[seen] => (at, seen) = (at + 1, seen + 1),
            // The last star takes one more.
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    (at, seen) = (star_at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == '*')
}

const CREDENTIALS: &str = "${CREDENTIALS_DIRECTORY}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_names_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml~", false),
            ("*.toml", "a.tom", false),
            ("10-*-?.toml", "10-a-b-c.toml", true),
            ("10-*-?.toml", "10-a-bc.toml", false),
            ("*a*b", "xaybab", true),
            ("*", "", true),
            ("?", "ö", true),
            ("a", "a", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn only_the_folder_of_credentials_has_a_variable() {
        let key = "${CREDENTIALS_DIRECTORY}/key.pem";
        assert_eq!(expand_with(key, Some("/run/c")), Ok("/run/c/key.pem".to_owned()));
        assert_eq!(expand_with(key, None), Err(Variable::Unset(key.to_owned())));
        for plain in ["/etc/key.pem", "$HOME/x", "a}b"] {
            assert_eq!(expand_with(plain, None), Ok(plain.to_owned()));
        }
        for other in ["${HOME}/x", "${CREDENTIALS_DIRECTORY}/${X}", "${CREDENTIALS_DIRECTORY"] {
            assert_eq!(expand_with(other, Some("/run/c")), Err(Variable::Unknown(other.to_owned())));
        }
    }
}
