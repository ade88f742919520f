//! Errors as clients read them.

use axum::{
    Json,
    extract::rejection::{BytesRejection, PathRejection},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    host::HostError,
    services::{AskError, ChangeError},
    sessions::StartError,
};

/// A status, a stable code for programs, and a sentence for people.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code: "bad_request", message: message.into() }
    }

    pub(crate) fn not_found(method: &Method, path: &str) -> Self {
        let message = format!("this sprite's runtime has no {method} {path}");
        Self { status: StatusCode::NOT_FOUND, code: "not_found", message }
    }

    /// A session that has ended, or never was.
    pub(crate) fn no_session(id: &str) -> Self {
        let message = format!("session not found: {id}");
        Self { status: StatusCode::NOT_FOUND, code: "session_not_found", message }
    }

    /// A session that has ended, for those who want its end.
    pub(crate) fn session_gone(id: &str, exit_code: u8) -> Self {
        let message = format!("session {id} has ended already, with code {exit_code}");
        Self { status: StatusCode::GONE, code: "session_ended", message }
    }

    /// A checkpoint that was deleted, or never was.
    pub(crate) fn no_checkpoint(id: &str) -> Self {
        let message = format!("the sprite has no checkpoint {id}; list them to see which it has");
        Self { status: StatusCode::NOT_FOUND, code: "not_found", message }
    }

    pub(crate) fn method_not_allowed(method: &Method, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self { status: StatusCode::METHOD_NOT_ALLOWED, code: "method_not_allowed", message }
    }

    pub(crate) fn upgrade_required() -> Self {
        let message = "this path is for WebSockets; ask for an upgrade (RFC 6455)".into();
        Self { status: StatusCode::UPGRADE_REQUIRED, code: "upgrade_required", message }
    }

    pub(crate) async fn not_yet() -> Self {
        let message = "this version has no tasks yet".into();
        Self { status: StatusCode::NOT_IMPLEMENTED, code: "not_implemented", message }
    }

    pub(crate) fn internal(message: String) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, code: "internal", message }
    }
}

impl From<StartError> for ApiError {
    fn from(error: StartError) -> Self {
        let (status, code) = match &error {
            StartError::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "too_many_sessions"),
            StartError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        Self { status, code, message: error.to_string() }
    }
}

impl From<HostError> for ApiError {
    fn from(error: HostError) -> Self {
        let (status, code) = match error {
            HostError::TooMany => (StatusCode::TOO_MANY_REQUESTS, "too_many_questions"),
            HostError::Silent => (StatusCode::SERVICE_UNAVAILABLE, "host_silent"),
        };
        Self { status, code, message: error.to_string() }
    }
}

impl From<BytesRejection> for ApiError {
    fn from(rejection: BytesRejection) -> Self {
        Self { status: rejection.status(), code: "bad_body", message: rejection.body_text() }
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self { status: rejection.status(), code: "bad_request", message: rejection.body_text() }
    }
}

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        let (status, code) = match &error {
            AskError::Change(ChangeError::Unknown(_)) => (StatusCode::NOT_FOUND, "service_not_found"),
            AskError::Change(ChangeError::UnknownNeed(..)) => (StatusCode::BAD_REQUEST, "unknown_need"),
            AskError::Change(ChangeError::Circle(_)) => (StatusCode::BAD_REQUEST, "circular_needs"),
            AskError::Change(ChangeError::SecondHttpPort(_)) => (StatusCode::CONFLICT, "http_port_taken"),
            AskError::Change(ChangeError::TooMany) => (StatusCode::CONFLICT, "too_many_services"),
            AskError::Change(ChangeError::Needed(..)) => (StatusCode::CONFLICT, "service_needed"),
            AskError::Change(ChangeError::Disk(cause)) => {
                let message = format!("{error}: {cause}; free some space in the sprite and try again");
                return Self { status: StatusCode::INSUFFICIENT_STORAGE, code: "disk", message };
            }
            AskError::NotRunning(_) => (StatusCode::CONFLICT, "service_not_running"),
            AskError::ShuttingDown => (StatusCode::SERVICE_UNAVAILABLE, "shutting_down"),
        };
        Self { status, code, message: error.to_string() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.code, "message": self.message }))).into_response()
    }
}
