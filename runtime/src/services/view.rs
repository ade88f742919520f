//! A service as others see it.

use std::{collections::BTreeMap, sync::Arc};

use ids::{Port, ServiceName};
use jiff::Timestamp;

use super::{definitions::Definition, supervisor::State};

/// A service and its state at one moment.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) definition: Definition,
    pub(crate) state: State,
    /// When its process was spawned, if it has one.
    pub(crate) started_at: Option<Timestamp>,
    /// When it is tried again, if it is.
    pub(crate) next_restart_at: Option<Timestamp>,
    pub(crate) restarts: u32,
}

/// All services at one moment.
pub(crate) type Views = Arc<BTreeMap<ServiceName, View>>;

/// The service that owns the sprite's URL, if one does.
pub(crate) fn web(views: &Views) -> Option<(&ServiceName, Port, &View)> {
    views.iter().find_map(|(name, view)| view.definition.http_port.map(|port| (name, port, view)))
}

impl View {
    /// Its process, if it has one.
    pub(crate) fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } | State::Stopping { pid, .. } => Some(pid),
            State::Stopped { .. } | State::Starting | State::Failed { .. } => None,
        }
    }

    /// The protocol's word for its state.
    pub(crate) fn status(&self) -> &'static str {
        match self.state {
            State::Stopped { .. } => "stopped",
            State::Starting => "starting",
            State::Running { .. } => "running",
            State::Stopping { .. } => "stopping",
            State::Failed { .. } => "failed",
        }
    }

    /// Why it does not run although it should.
    pub(crate) fn error(&self) -> Option<String> {
        match &self.state {
            State::Failed { failure, .. } => Some(failure.to_string()),
            State::Stopped { .. } | State::Starting | State::Running { .. } | State::Stopping { .. } => None,
        }
    }
}
