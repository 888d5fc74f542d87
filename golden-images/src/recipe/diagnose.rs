//! Recipe errors that name the file, the line, the column and the key.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A recipe could not be read or is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {message}", .file.display(), Position(*.line, *.column))]
pub struct RecipeError {
    /// The recipe file.
    pub file: PathBuf,
    /// Line, from 1; 0 when the error concerns the whole file.
    pub line: usize,
    /// Column in characters, from 1; 0 when the error concerns the whole file.
    pub column: usize,
    /// Message that says what is wrong and what to do.
    pub message: String,
}

struct Position(usize, usize);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position(0, _) => Ok(()),
            Position(line, column) => write!(f, ":{line}:{column}"),
        }
    }
}

impl RecipeError {
    /// An error about the whole file.
    pub(crate) fn whole(file: &Path, message: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line: 0, column: 0, message: message.into() }
    }

    /// An error at the start of `span` in `text`.
    pub(crate) fn at(
        file: &Path,
        text: &str,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |n| n + 1);
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        }
    }

    /// Rewords a deserializer's error: unknown keys get their table and the nearest known key.
    pub(crate) fn from_toml(file: &Path, text: &str, error: &toml::de::Error) -> Self {
        let span = error.span().unwrap_or(0..0);
        let table = table_at(text, span.start);
        let message = if let Some((key, known)) = unknown_key(error.message()) {
            let nearest = known
                .iter()
                .map(|candidate| (strsim::damerau_levenshtein(&key, candidate), candidate))
                .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3).max(1))
                .min();
            let hint = match nearest {
                Some((_, candidate)) => format!("did you mean \"{candidate}\"?"),
                None if known.is_empty() => "no key is allowed here".into(),
                None => format!("known keys: {}", known.join(", ")),
            };
            format!("unknown key \"{key}\" {table} ({hint})")
        } else {
            let mut lines = error.message().lines().map(str::trim).filter(|l| !l.is_empty());
            let message = lines.by_ref().collect::<Vec<_>>().join("; ");
            format!("{message} {table}")
        };
        Self::at(file, text, span, message)
    }
}

/// `in [debian]` or "at the top level": the table that the byte offset lies in.
fn table_at(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    // A header that is itself the error belongs to the top level.
    let earlier = &before[..line_start];
    let in_header = text[line_start..].trim_start().starts_with('[');
    match earlier
        .lines()
        .rev()
        .map(str::trim)
        .find(|l| l.starts_with('[') && l.contains(']') && !l.ends_with(','))
    {
        Some(header) if !in_header => {
            let end = header.rfind(']').map_or(header.len(), |n| n + 1);
            format!("in {}", &header[..end])
        }
        _ => "at the top level".into(),
    }
}

/// Takes a serde message of the form "unknown field `x`, expected one of `a`, `b`" apart.
fn unknown_key(message: &str) -> Option<(String, Vec<String>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (key, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    Some((key.to_owned(), known))
}
