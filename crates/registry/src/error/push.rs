//! Why something could not be pushed.

use super::{RequestError, ResolveError};

/// Why something could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry gave no useful answer, or refused.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The registry's answer breaks the protocol.
    #[error("{repository}: the push failed: {cause}")]
    Protocol {
        /// Where it was pushed to.
        repository: String,
        /// What is wrong with the answer.
        cause: String,
    },
    /// The list of referrers could not be read before it is extended.
    #[error(transparent)]
    Referrers(#[from] ResolveError),
}

impl PushError {
    /// Whether trying again is of no use until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            PushError::Request(error) => error.is_permanent(),
            PushError::Protocol { .. } => false,
            PushError::Referrers(error) => error.is_permanent(),
        }
    }

    /// The word for a condition or event.
    pub fn reason(&self) -> &'static str {
        match self {
            PushError::Request(error) => error.reason(),
            PushError::Protocol { .. } => "RegistryRefused",
            PushError::Referrers(error) => error.reason(),
        }
    }
}
