//! What a [`Machine`](crate::Machine) is told and what it answers.

use std::time::Duration;

use ids::{Epoch, Moment};

use crate::Load;

/// Whether the sprite is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Demand {
    /// Somebody waits for it to be awake.
    Waiting,
    /// Nobody waits; a lease or something inside keeps it awake. Wakes only a sprite that went to sleep for want of
    /// use, for then it began too late to be heard of: a command that was frozen by an explicit sleep stays frozen
    /// until somebody waits.
    Held,
    /// Nothing has needed it since.
    IdleSince(Moment),
}

/// The states that the outside world knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Public {
    /// Its processes run.
    Running,
    /// Asleep with its memory kept.
    Warm,
    /// Asleep with only its disk kept.
    Cold,
}

/// What a sprite has of its host's RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Residence {
    /// Nothing: it is cold, or its memory is on disk.
    None,
    /// Its memory, which somebody uses, or something is being done with it that must come to its end.
    InUse,
    /// Its memory. It runs, and nobody has used it since.
    Idle(Moment),
    /// Its memory. It stands still, and nobody has used it since.
    Asleep(Moment),
}

/// How deep an ordered sleep goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Depth {
    /// Memory kept, if the driver can.
    Warm,
    /// Memory kept, on disk, if the driver can.
    Suspended,
    /// Only the disk kept.
    Cold,
}

/// One call of the driver. Its end is told with the same number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Transition(pub u64);

/// What a sprite was found to be by an agent that has just started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found {
    /// Its processes run.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its memory is on disk.
    Suspended,
    /// Only its disk is there.
    Stopped,
}

/// What the driver can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Stop a sprite's time, keeping its memory in RAM.
    pub pause: bool,
    /// Put its memory on disk.
    pub suspend: bool,
}

/// When an idle sprite sinks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// From the last activity to warm.
    pub idle_timeout: Duration,
    /// From warm to its memory on disk, if the driver can and this is less than `cold_after`.
    pub suspend_after: Duration,
    /// From warm to cold.
    pub cold_after: Duration,
}

/// All that a machine keeps to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What the driver can do.
    pub capabilities: Capabilities,
    /// When the sprite sinks.
    pub timing: Timing,
    /// How long an ordered sleep waits for requests in flight to end.
    pub drain_grace: Duration,
}

/// Something that went wrong and matters now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// What, for people.
    pub reason: String,
    /// When it is tried again, if it is by then needed.
    pub retry_at: Option<Moment>,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Time has passed, or the demand has changed.
    Tick,
    /// The host's scheduler says: now. Answers [`Effect::AskWake`].
    WakeAdmitted,
    /// The host's scheduler says: not now. Answers [`Effect::AskWake`].
    WakeRefused {
        /// Why.
        refusal: Refusal,
        /// When asking again may help.
        retry_after: Duration,
    },
    /// A driver call ended.
    DriverDone {
        /// Which.
        transition: Transition,
        /// How; the error is for people.
        outcome: Result<(), String>,
    },
    /// A driver call failed before it had changed anything.
    DriverDeclined {
        /// Which.
        transition: Transition,
        /// Why, for people.
        reason: String,
    },
    /// The sprite's first process ended. In an epoch that is over this changes nothing.
    Exited {
        /// The epoch it ran in.
        epoch: Epoch,
    },
    /// Nobody uses up a lease that [`Effect::Revoke`] ended. Matters only while an ordered sleep waits
    /// for it, and may be told at any time.
    Drained,
    /// Sleep now, whoever uses it.
    Sleep(Depth),
    /// The host is short of memory: give yours back, unless you are in use.
    Squeeze,
    /// Take a checkpoint as soon as no other driver call is out.
    Checkpoint,
    /// Restore a checkpoint; stops the sprite first.
    Restore,
    /// End it for ever, disk and all.
    Destroy,
    /// The agent leaves: stop the sprite, wake it no more.
    Shutdown,
}

/// Why those who wait are sent away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Too many wakes are under way on this host.
    HostFull,
    /// All memory of this host is in use.
    NoMemory,
    /// The sprite could not be started or stopped; for people.
    Failed(String),
    /// The sprite is being destroyed.
    Destroying,
    /// The agent leaves.
    ShuttingDown,
}

/// Why leases end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Revocation {
    /// Sleep was ordered.
    Sleep,
    /// It died.
    Exited,
    /// It is being restored.
    Restore,
    /// It is being destroyed.
    Destroy,
    /// The agent leaves.
    Shutdown,
}

/// What the shell is to do, in this order and before it calls the machine again.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a dropped effect is a sprite that hangs"]
pub enum Effect {
    /// Ask the host's scheduler; it answers with [`Event::WakeAdmitted`] or [`Event::WakeRefused`].
    AskWake(Load),
    /// The wake that was asked for is not needed: take it out of the scheduler, unanswered.
    CancelWake,
    /// The wake that was admitted is over: free its slot.
    WakeDone,
    /// The public state or the epoch has changed: write it down, then publish it.
    Changed,
    /// Have the driver boot the sprite.
    Start {
        /// This call.
        transition: Transition,
        /// The network identity of this boot.
        epoch: Epoch,
    },
    /// Have the driver freeze it.
    Pause(Transition),
    /// Have the driver put its memory on disk.
    Suspend(Transition),
    /// Have the driver continue it.
    Resume {
        /// This call.
        transition: Transition,
        /// Its network identity afterwards.
        epoch: Epoch,
    },
    /// Have the driver end its processes; the disk stays.
    Stop(Transition),
    /// Have the driver take a checkpoint.
    Checkpoint(Transition),
    /// Have the driver restore one.
    Restore(Transition),
    /// Have the driver remove all that there is of it. It does not run.
    Destroy(Transition),
    /// It is awake: grant a lease to everyone who waits.
    Grant {
        /// Its network identity.
        epoch: Epoch,
        /// The state from which it was woken last.
        woken_from: Public,
    },
    /// It can't be had: send away everyone who waits.
    Refuse {
        /// Why.
        refusal: Refusal,
        /// When asking again may help, if ever.
        retry_after: Option<Duration>,
    },
    /// End all granted leases and tell their holders.
    Revoke(Revocation),
    /// It is no more: forget it.
    Gone,
}

/// Whether a driver call goes ahead; see [`Machine::confirm`](crate::Machine::confirm).
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use]
pub enum Confirmation {
    /// Call the driver now, and tell how it ended.
    Go,
    /// Don't: the sprite is needed after all, or the call is an old one. No end is told.
    Abandoned(Vec<Effect>),
}
