//! What goes wrong with files, as clients want it: the name of an error number, which they turn into their
//! language's own errors.

use std::{io, path::Path};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use nix::errno::Errno;
use serde_json::json;

/// The names of errors that clients know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Code {
    NotFound,
    NotDirectory,
    IsDirectory,
    Exists,
    NotEmpty,
    Denied,
    ReadOnly,
    Invalid,
    NameTooLong,
    Loop,
    NoSpace,
    OtherFilesystem,
    TooMany,
    Io,
}

impl Code {
    const fn of(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT => Self::NotFound,
            Errno::ENOTDIR => Self::NotDirectory,
            Errno::EISDIR => Self::IsDirectory,
            Errno::EEXIST => Self::Exists,
            Errno::ENOTEMPTY => Self::NotEmpty,
            Errno::EACCES | Errno::EPERM => Self::Denied,
            Errno::EROFS => Self::ReadOnly,
            Errno::EINVAL => Self::Invalid,
            Errno::ENAMETOOLONG => Self::NameTooLong,
            Errno::ELOOP => Self::Loop,
            Errno::ENOSPC | Errno::EDQUOT => Self::NoSpace,
            Errno::EXDEV => Self::OtherFilesystem,
            Errno::EMFILE | Errno::ENFILE => Self::TooMany,
            _ => Self::Io,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::NotFound => "ENOENT",
            Self::NotDirectory => "ENOTDIR",
            Self::IsDirectory => "EISDIR",
            Self::Exists => "EEXIST",
            Self::NotEmpty => "ENOTEMPTY",
            Self::Denied => "EACCES",
            Self::ReadOnly => "EROFS",
            Self::Invalid => "EINVAL",
            Self::NameTooLong => "ENAMETOOLONG",
            Self::Loop => "ELOOP",
            Self::NoSpace => "ENOSPC",
            Self::OtherFilesystem => "EXDEV",
            Self::TooMany => "EMFILE",
            Self::Io => "EIO",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Denied | Self::ReadOnly => StatusCode::FORBIDDEN,
            Self::NotDirectory | Self::IsDirectory | Self::Exists | Self::NotEmpty => StatusCode::CONFLICT,
            Self::Invalid | Self::NameTooLong | Self::Loop | Self::OtherFilesystem => StatusCode::BAD_REQUEST,
            Self::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Self::TooMany => StatusCode::SERVICE_UNAVAILABLE,
            Self::Io => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Why nothing, or not all, was done.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Fault {
    pub(crate) code: Code,
    message: String,
    path: Option<String>,
}

impl Fault {
    pub(crate) fn new(code: Code, message: impl Into<String>, path: &Path) -> Self {
        Self { code, message: message.into(), path: Some(path.display().to_string()) }
    }

    /// The client's own mistake.
    pub(crate) fn invalid(message: impl Into<String>, path: Option<&str>) -> Self {
        Self { code: Code::Invalid, message: message.into(), path: path.map(str::to_owned) }
    }

    pub(crate) const fn internal(message: String) -> Self {
        Self { code: Code::Io, message, path: None }
    }

    /// What the system said about `path`.
    pub(crate) fn of(error: &io::Error, path: &Path) -> Self {
        let (code, reason) = match error.raw_os_error().map(Errno::from_raw) {
            Some(errno) => (Code::of(errno), errno.desc().to_owned()),
            None => (Code::Io, error.to_string()),
        };
        Self::new(code, format!("{}: {}", path.display(), reason.to_lowercase()), path)
    }
}

/// For `map_err`: what the system said about `path`.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> Fault + '_ {
    move |error| Fault::of(&error, path)
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut body = json!({ "error": self.message, "code": self.code.name() });
        if let Some(path) = self.path {
            body["path"] = path.into();
        }
        (self.code.status(), Json(body)).into_response()
    }
}
