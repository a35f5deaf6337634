//! How well a check, and so an instance or a node, is doing.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a check. Ordered from good to bad: the greatest of several is the worst, which is the one that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All is well.
    Passing,
    /// In the answers, unless only passing instances are wanted.
    Warning,
    /// There is no result yet, and no status was declared. Not in the answers, but nothing is denied because of it.
    Unknown,
    /// Not in the answers.
    Critical,
}

impl Status {
    /// The word for it in logs and metrics, which is Consul's unless it is unknown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Critical => "critical",
        }
    }

    /// The status that Consul's API shows: a check without a result is critical there.
    pub const fn in_api(self) -> Self {
        match self {
            Self::Unknown => Self::Critical,
            known => known,
        }
    }

    /// Reads Consul's word, in lower case as Consul demands it.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Passing, Self::Warning, Self::Critical].into_iter().find(|status| status.as_str() == word)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Status::{self, *};

    #[test]
    fn the_worst_is_the_greatest() {
        assert_eq!([Warning, Critical, Passing].into_iter().max(), Some(Critical));
        assert_eq!([Passing, Warning].into_iter().max(), Some(Warning));
        assert_eq!([Unknown, Warning].into_iter().max(), Some(Unknown));
        assert_eq!([Unknown, Critical].into_iter().max(), Some(Critical), "one critical check settles the matter");
    }

    #[test]
    fn words_are_read_back() {
        for status in [Passing, Warning, Critical] {
            assert_eq!(Status::from_word(status.as_str()), Some(status));
            assert_eq!(status.in_api(), status);
        }
        assert_eq!((Status::from_word("unknown"), Unknown.in_api()), (None, Critical), "Consul does not know the word");
        assert_eq!(Status::from_word("Passing"), None);
    }
}
