//! The one shape of an error on the wire.

use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success: a stable code for programs, a sentence for people.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A stable `snake_case` code.
    pub error: String,
    /// What happened and what to do.
    pub message: String,
}

/// Why a call to an agent failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The agent answered with an error.
    #[error("{}", body.message)]
    Answered {
        /// The HTTP status.
        status: u16,
        /// What it said.
        body: ErrorBody,
    },
    /// The agent could not be reached, or the connection broke.
    #[error("could not reach the agent")]
    Unreachable(#[source] std::io::Error),
    /// The agent did not answer in time.
    #[error("the agent did not answer within {0:?}")]
    TimedOut(std::time::Duration),
    /// The agent spoke something else.
    #[error("the agent broke its protocol: {0}")]
    Protocol(String),
}
