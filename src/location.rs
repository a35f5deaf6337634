//! File and line, for messages about files.

use std::{fmt, path::PathBuf};

/// Where in a file something was found. Prints as `file:line`, or as `file` when no line is to blame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file as the operator named it.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: Option<usize>,
}

impl Location {
    /// A line of a file, counted from 1.
    pub fn line(file: impl Into<PathBuf>, line: usize) -> Self {
        Self { file: file.into(), line: Some(line) }
    }

    /// A file as a whole.
    pub fn file(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into(), line: None }
    }

    /// The line in which the byte `offset` of `text` lies.
    pub fn at_offset(file: impl Into<PathBuf>, text: &str, offset: usize) -> Self {
        let before = &text.as_bytes()[..offset.min(text.len())];
        Self::line(file, 1 + before.iter().filter(|&&byte| byte == b'\n').count())
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match self.line {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}
