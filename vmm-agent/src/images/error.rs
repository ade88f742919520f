//! Why an image can't be made or used.

use std::{io, path::PathBuf};

use super::Name;

/// Printed to the operator with its sources; says what to do where that is not plain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error("could not {step}")]
    Io { step: String, source: io::Error },
    #[error("`{program}` is missing; install the package {package} (scripts/deps.sh vm does)")]
    Missing { program: String, package: &'static str },
    #[error("`{command}` failed ({status}){output}\n{advice}")]
    Failed { command: String, status: String, output: String, advice: &'static str },
    #[error("apt knows no package {package}; are Debian's sources in /etc/apt, and is its mirror reachable?")]
    UnknownPackage { package: String },
    #[error("{package} is not as expected: {reason}")]
    Package { package: String, reason: String },
    #[error("{} can't be a guest's init: {reason}", path.display())]
    Runtime { path: PathBuf, reason: &'static str },
    #[error("{path:?} can't be written into an image: {reason}")]
    Entry { path: String, reason: &'static str },
    #[error("another `vmm-agent image build` is at work in {}; wait for it", dir.display())]
    Busy { dir: PathBuf },
    #[error("there is no image `{name}` in {}; `vmm-agent image build --image {name}` makes it", dir.display())]
    Absent { name: Name, dir: PathBuf },
    #[error("{} can't be an image: {reason}", path.display())]
    Import { path: PathBuf, reason: &'static str },
    #[error("{} is no manifest of this version: {reason}; build the image again", path.display())]
    Manifest { path: PathBuf, reason: String },
    #[error("{} has changed since it was built; build the image again with --rebuild", path.display())]
    Changed { path: PathBuf },
}

impl ImageError {
    /// For `map_err`: what could not be done to what.
    pub(super) fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { step: step.into(), source }
    }
}
