//! How the API says no: one place that turns what went wrong into status, code and message.

use std::io;

use agent_api::ErrorBody;
use axum::{
    Json,
    extract::{FromRequest, Request},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde::de::DeserializeOwned;
use tracing::error;

use crate::{drivers::DriverError, sprite::SpriteError, store::StoreError};

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    body: ErrorBody,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, body: ErrorBody { error: code.to_owned(), message: message.into() } }
    }

    /// Status and body, for those who are not answered over HTTP.
    pub(crate) fn into_parts(self) -> (StatusCode, ErrorBody) {
        (self.status, self.body)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such {what} on this host"))
    }

    /// For faults of ours: the cause goes into the log, not to the caller.
    pub(crate) fn internal(cause: &dyn std::error::Error) -> Self {
        error!(error = chain(cause), "A request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the agent failed; its log says why")
    }
}

/// An error with all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NameTaken => {
                Self::new(StatusCode::CONFLICT, "name_taken", "the name is taken; choose another one")
            }
            StoreError::DiskFull => disk_full(),
            StoreError::Stopped => shutting_down(),
            StoreError::Sqlite(_) | StoreError::Corrupt { .. } => Self::internal(&error),
        }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        let full = |source: &io::Error| {
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        };
        match &error {
            DriverError::TooManyLayers { .. } => {
                Self::new(StatusCode::CONFLICT, "too_many_layers", error.to_string())
            }
            DriverError::Host { source, .. } | DriverError::AsItWas { source, .. } if full(source) => {
                disk_full()
            }
            DriverError::NoRoom { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk_full", error.to_string())
            }
            DriverError::Host { .. }
            | DriverError::AsItWas { .. }
            | DriverError::TimedOut { .. }
            | DriverError::Unsupported { .. }
            | DriverError::NotRunning { .. }
            | DriverError::AlreadyRunning { .. }
            | DriverError::NoCheckpoint { .. } => Self::internal(&error),
        }
    }
}

impl From<SpriteError> for Failure {
    fn from(error: SpriteError) -> Self {
        match error {
            SpriteError::Gone => Self::not_found("sprite"),
            SpriteError::ShuttingDown => shutting_down(),
            SpriteError::Refused(refusal) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "start_failed", refusal.message)
            }
            SpriteError::BadTiming(message) => Self::new(StatusCode::BAD_REQUEST, "bad_timing", message),
            SpriteError::NoCheckpoints(_) => {
                Self::new(StatusCode::NOT_IMPLEMENTED, "no_checkpoints", error.to_string())
            }
            SpriteError::NoCheckpoint(_) => Self::new(StatusCode::NOT_FOUND, "not_found", error.to_string()),
            SpriteError::NoForkedMemory(_) => {
                Self::new(StatusCode::NOT_IMPLEMENTED, "no_forked_memory", error.to_string())
            }
            SpriteError::NotSuspended => Self::new(StatusCode::CONFLICT, "not_suspended", error.to_string()),
            SpriteError::CheckpointsBusy(_) => {
                Self::new(StatusCode::CONFLICT, "checkpoint_busy", error.to_string())
            }
            SpriteError::ActiveCheckpoint(_) => {
                Self::new(StatusCode::CONFLICT, "checkpoint_active", error.to_string())
            }
            SpriteError::TooManyCheckpoints(_) => {
                Self::new(StatusCode::CONFLICT, "too_many_checkpoints", error.to_string())
            }
            SpriteError::Failed(message) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "checkpoint_failed", message)
            }
            SpriteError::Driver(error) => error.into(),
            SpriteError::Store(error) => error.into(),
        }
    }
}

fn disk_full() -> Failure {
    Failure::new(
        StatusCode::INSUFFICIENT_STORAGE,
        "disk_full",
        "the host's disk is full; destroy what is not needed or give the state directory more room",
    )
}

fn shutting_down() -> Failure {
    Failure::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "shutting_down",
        "the agent is shutting down; try again soon",
    )
}

pub(crate) async fn unknown_path(uri: Uri) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, "unknown_path", format!("the agent has no {}", uri.path()))
}

/// A JSON body whose refusal has our shape. An absent body is an empty object, where that parses.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;
    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = axum::body::Bytes::from_request(request, state)
            .await
            .map_err(|rejection| Failure::new(rejection.status(), "bad_body", rejection.body_text()))?;
        let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(json).map(Self).map_err(|error| {
            Failure::new(
                StatusCode::BAD_REQUEST,
                "bad_json",
                format!("the body is not what this call takes: {error}"),
            )
        })
    }
}
