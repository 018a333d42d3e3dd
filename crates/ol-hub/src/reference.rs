//! What a model is called: `org/name`, `org/name@revision`,
//! `org/name:file.gguf`, `org/name@revision:file.gguf`.

use std::fmt;
use std::str::FromStr;

use crate::HubError;

/// Longest name of an organisation, a model or a revision.
const MAX_NAME: usize = 96;

/// A model of a hub, checked: no part of it can lead out of a folder or a URL's
/// path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `org/name`, or `name` for models of old.
    pub(crate) id: String,
    /// Branch, tag or commit.
    pub(crate) revision: String,
    /// The file wanted, of several that would do.
    pub(crate) file: Option<String>,
}

impl Reference {
    /// `id` is `org/name`; `revision` a branch, a tag or a commit; `file` the
    /// GGUF file wanted, if the model has several.
    ///
    /// # Errors
    /// [`HubError::Reference`] when one of them has characters that the hub does
    /// not allow.
    pub fn new(id: &str, revision: &str, file: Option<&str>) -> Result<Self, HubError> {
        let bad = |given: &str, reason| HubError::Reference {
            given: given.to_owned(),
            reason,
        };
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_name(part)) {
            return Err(bad(
                id,
                "a model is called org/name, of letters, digits, `-`, `_` and `.`",
            ));
        }
        if revision.len() > MAX_NAME || !revision.split('/').all(is_name) {
            return Err(bad(revision, "a revision is a branch, a tag or a commit"));
        }
        let is_gguf = |f: &str| is_safe_path(f) && f.to_ascii_lowercase().ends_with(".gguf");
        if let Some(file) = file.filter(|f| !is_gguf(f)) {
            return Err(bad(file, "the file after the colon is a .gguf file"));
        }
        Ok(Self {
            id: id.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }

    /// `org/name`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Branch, tag or commit.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl FromStr for Reference {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let (text, file) = match text.split_once(':') {
            Some((text, file)) => (text, Some(file)),
            None => (text, None),
        };
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        Self::new(id, revision, file)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.id, self.revision)?;
        match &self.file {
            Some(file) => write!(f, ":{file}"),
            None => Ok(()),
        }
    }
}

/// What the hub allows in names.
fn is_name(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_NAME).contains(&part.len())
        && part.chars().all(allowed)
        && !part.starts_with(['.', '-'])
        && !part.contains("..")
}

/// A path that stays within its folder, on every system.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let is_safe = |part: &str| {
        (1..=255).contains(&part.len())
            && part != "."
            && part != ".."
            && !part.contains(|c: char| c.is_control() || matches!(c, '\\' | ':'))
    };
    path.len() <= 1024 && path.split('/').all(is_safe)
}

/// A commit of git.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
