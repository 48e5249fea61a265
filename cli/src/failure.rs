//! What a command ends with when it fails: one plain sentence, a reason, an exit code.

use clip_engine::{IndexError, OpenImageError};
use std::{fmt::Display, process::ExitCode};

/// Exit code of a failure that trying again cannot mend (image not found, credentials refused,
/// unsupported content). The indexing Job's pod failure policy relies on it.
pub const PERMANENT: u8 = 42;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// CamelCase name of the cause, as Kubernetes conditions show it.
    pub reason: &'static str,
    /// One plain sentence.
    pub message: String,
    /// Whether trying again cannot help.
    pub permanent: bool,
}

impl Failure {
    /// A failure that may go away.
    pub fn new(reason: &'static str, message: impl Display) -> Self {
        Self {
            reason,
            message: message.to_string(),
            permanent: false,
        }
    }

    /// Something that the user must change first.
    pub fn permanent(reason: &'static str, message: impl Display) -> Self {
        Self {
            permanent: true,
            ..Self::new(reason, message)
        }
    }

    /// Something about the local machine: files, directories, mounts.
    pub fn local(message: impl Display) -> Self {
        Self::new("LocalError", message)
    }

    /// What another process of ours has told the user already, before it ended with this code.
    pub fn said_already(code: Option<i32>) -> Self {
        Self {
            permanent: code == Some(PERMANENT.into()),
            ..Self::local("")
        }
    }

    /// Prints the failure and chooses the exit code.
    pub fn report(self) -> ExitCode {
        let code = if self.permanent { PERMANENT } else { 1 };
        self.report_as(code)
    }

    /// Prints the failure; the exit code is somebody else's choice.
    pub fn report_as(self, code: u8) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("clip: {}", self.message);
        }
        ExitCode::from(code)
    }
}

impl From<IndexError> for Failure {
    fn from(error: IndexError) -> Self {
        Self {
            reason: error.reason(),
            permanent: error.is_permanent(),
            message: error.to_string(),
        }
    }
}

impl From<OpenImageError> for Failure {
    fn from(error: OpenImageError) -> Self {
        Self::local(error)
    }
}
