//! One thing that was looked at.

use serde::Serialize;

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Usable, with a drawback.
    Warning,
    /// Not there, or not usable.
    Missing,
}

impl Status {
    /// The word in the first column.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Missing => "missing",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What it is.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found, or why nothing was.
    pub found: String,
    /// What to do, if something is to be done.
    pub advice: Option<String>,
}

impl Item {
    /// A thing as it should be.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            found: found.into(),
            advice: None,
        }
    }

    /// A thing with a drawback, and what helps.
    pub fn warning(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Warning,
            advice: Some(advice.into()),
            ..Self::ok(name, found)
        }
    }

    /// A thing that is not there, and how to get it.
    pub fn missing(
        name: &'static str,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            status: Status::Missing,
            ..Self::warning(name, found, advice)
        }
    }
}
