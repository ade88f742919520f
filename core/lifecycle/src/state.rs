//! The states of a [`Machine`](crate::Machine).

use ids::Moment;

use crate::{Public, Transition};

/// A sprite that is awake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Awake {
    /// Since when. Idleness never counts from before.
    pub(crate) since: Moment,
    /// It does not sink before: a sink has failed, or holders may still come back to it.
    pub(crate) not_before: Moment,
}

/// A sprite that sleeps with its memory kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Asleep {
    pub(crate) memory: Memory,
    /// Since when it is warm, however deep.
    pub(crate) since: Moment,
    /// It does not sink deeper before: that has failed.
    pub(crate) not_before: Moment,
    /// It is not woken before: that has failed, and it is as it was.
    pub(crate) wakes_from: Moment,
    /// Somebody ordered it: what goes on inside stays frozen until somebody waits. What puts itself to sleep for want
    /// of use is woken by anything that turns out to have begun before it slept.
    pub(crate) ordered: bool,
}

/// Where a warm sprite's memory is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    Ram,
    Disk,
}

/// A state that a sprite can be in for long, with no driver call out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rest {
    Cold,
    /// Cold, and a start has failed: not tried again before.
    Failed {
        retry_at: Moment,
    },
    Running(Awake),
    Warm(Asleep),
}

/// What the driver does now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Call {
    Starting,
    Pausing(Awake),
    Suspending(Asleep),
    /// With the state before.
    Resuming(Asleep),
    /// With the state before.
    Stopping(Rest),
    /// With the state before and after.
    Checkpointing(Rest),
    Restoring,
    Destroying,
}

/// A driver call is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Busy {
    pub(crate) transition: Transition,
    pub(crate) call: Call,
    pub(crate) resolve: Resolve,
    /// The sprite's first process ended meanwhile.
    pub(crate) died: bool,
}

/// How firm the decision for a driver call is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resolve {
    /// Not yet made, and taken back if its reason goes: a sink for idleness by demand, a wake by an order
    /// that ends the sprite.
    Open,
    /// Ordered, or already made.
    Firm,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Resting(Rest),
    /// Sleep was ordered, and requests in flight have until then to end.
    Draining {
        awake: Awake,
        until: Moment,
    },
    Busy(Busy),
    /// A stop or destroy has failed: not tried again before.
    Stuck {
        retry_at: Moment,
    },
    Destroyed,
}

impl Rest {
    pub(crate) fn public(self) -> Public {
        match self {
            Self::Running(_) => Public::Running,
            Self::Warm(_) => Public::Warm,
            Self::Cold | Self::Failed { .. } => Public::Cold,
        }
    }
}

impl State {
    /// A state is left in public when the driver call that ends it is done, not when it begins.
    pub(crate) fn public(self) -> Public {
        match self {
            Self::Resting(rest) => rest.public(),
            Self::Draining { .. } => Public::Running,
            Self::Stuck { .. } | Self::Destroyed => Public::Cold,
            Self::Busy(Busy { call, .. }) => match call {
                Call::Pausing(_) => Public::Running,
                Call::Suspending(_) | Call::Resuming(_) => Public::Warm,
                Call::Stopping(before) | Call::Checkpointing(before) => before.public(),
                Call::Starting | Call::Restoring | Call::Destroying => Public::Cold,
            },
        }
    }

    pub(crate) fn phase(self) -> &'static str {
        match self {
            Self::Resting(Rest::Cold) => "cold",
            Self::Resting(Rest::Failed { .. }) => "failed",
            Self::Resting(Rest::Running(_)) => "running",
            Self::Resting(Rest::Warm(Asleep { memory: Memory::Ram, .. })) => "paused",
            Self::Resting(Rest::Warm(Asleep { memory: Memory::Disk, .. })) => "suspended",
            Self::Draining { .. } => "draining",
            Self::Stuck { .. } => "stuck",
            Self::Destroyed => "destroyed",
            Self::Busy(Busy { call, .. }) => match call {
                Call::Starting => "starting",
                Call::Pausing(_) => "pausing",
                Call::Suspending(_) => "suspending",
                Call::Resuming(_) => "resuming",
                Call::Stopping(_) => "stopping",
                Call::Checkpointing(_) => "checkpointing",
                Call::Restoring => "restoring",
                Call::Destroying => "destroying",
            },
        }
    }
}
