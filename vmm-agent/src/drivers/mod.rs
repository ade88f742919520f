//! How an agent runs a sprite.
//!
//! A driver is small: it makes a disk, starts a runtime as PID 1 with that disk, stops its time, ends
//! it, and says where its socket is. What happens inside a sprite is the runtime's business, and when
//! a verb is called is the sprite's task's, which calls at most one verb for one sprite at a time
//! ([`Driver::exited`] and [`Driver::endpoint`] excepted: they may be called during any other). Beside
//! that one, at most one of those that only prepare, complete or tidy up goes on: [`Driver::stage_checkpoint`],
//! [`Driver::complete_checkpoint`], [`Driver::stage_restore`], [`Driver::forget_checkpoint`],
//! [`Driver::compact`], and a [`Driver::fork`] from it.

pub(crate) mod command;
mod files;
pub(crate) mod firecracker;
mod kvm;
mod pid;
pub(crate) mod process;
pub(crate) mod qemu;
mod set;
mod size;
mod user;

use std::{fmt, io, time::Duration};

use agent_api::{Capabilities, lease::Endpoint};
use async_trait::async_trait;
use ids::{CheckpointId, Epoch, SpriteId, SpriteName};

pub(crate) use set::DriverSet;

/// What a driver must know of a sprite.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SpriteSpec {
    /// Names its disk, its cgroups, its socket.
    pub(crate) id: SpriteId,
    /// Its host name inside.
    pub(crate) name: SpriteName,
    /// What it asked for of the host.
    pub(crate) resources: Resources,
}

/// What a sprite asked for of its host; where it asked for nothing the host's default holds. Drivers that can't
/// give it ignore it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(crate) struct Resources {
    /// Virtual CPUs.
    pub(crate) cpus: Option<u32>,
    /// Memory, in MiB.
    pub(crate) ram_mb: Option<u64>,
    /// Disk, in GiB.
    pub(crate) storage_gb: Option<u64>,
}

/// What [`Driver::adopt`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Adopted {
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// Its memory is on disk.
    Suspended,
}

/// Where [`Driver::resume`] found a sprite's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Resumed {
    /// In RAM: whoever was connected still is.
    FromRam,
    /// On disk: every connection into it has ended.
    FromDisk,
}

/// A verb of [`Driver`], for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verb {
    /// [`Driver::prepare`]
    Prepare,
    /// [`Driver::start`]
    Start,
    /// [`Driver::pause`]
    Pause,
    /// [`Driver::resume`]
    Resume,
    /// [`Driver::suspend`]
    Suspend,
    /// [`Driver::stop`]
    Stop,
    /// [`Driver::destroy`]
    Destroy,
    /// [`Driver::adopt`]
    Adopt,
    /// [`Driver::checkpoint`] and what goes before it
    Checkpoint,
    /// [`Driver::restore`] and what goes before it
    Restore,
    /// [`Driver::forget_checkpoint`]
    ForgetCheckpoint,
    /// [`Driver::fork`]
    Fork,
    /// [`Driver::compact`]
    Compact,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Start => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Suspend => "suspend",
            Self::Stop => "stop",
            Self::Destroy => "destroy",
            Self::Adopt => "adopt",
            Self::Checkpoint => "take a checkpoint of",
            Self::Restore => "restore a checkpoint of",
            Self::ForgetCheckpoint => "remove a checkpoint of",
            Self::Fork => "fork",
            Self::Compact => "tidy up the disk of",
        })
    }
}

/// Why a verb failed. The sprite's disk is intact after any of these.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// This driver has no such verb; [`Capabilities`] said so.
    #[error("the {driver} driver can't {verb}")]
    Unsupported {
        /// Which driver.
        driver: &'static str,
        /// What it was asked.
        verb: Verb,
    },
    /// The sprite does not run, and the verb needs it to.
    #[error("could not {verb} sprite {id}: it is not running")]
    NotRunning {
        /// What was asked.
        verb: Verb,
        /// Of which sprite.
        id: SpriteId,
    },
    /// The sprite runs already, and the verb needs it not to.
    #[error("could not {verb} sprite {id}: it is running")]
    AlreadyRunning {
        /// What was asked.
        verb: Verb,
        /// Of which sprite.
        id: SpriteId,
    },
    /// The sprite has no such checkpoint.
    #[error("could not {verb} sprite {id}: it has no checkpoint {checkpoint}")]
    NoCheckpoint {
        /// What was asked.
        verb: Verb,
        /// Of which sprite.
        id: SpriteId,
        /// What is not there.
        checkpoint: CheckpointId,
    },
    /// The host's disk would become too full. Nothing was changed.
    #[error(
        "could not {verb} sprite {id}: it needs {needed_mib} MiB, and the host's disk has {left_mib} MiB to spare; \
         delete checkpoints or sprites, or give the state directory more room"
    )]
    NoRoom {
        /// What was asked.
        verb: Verb,
        /// Of which sprite.
        id: SpriteId,
        /// About how much it takes.
        needed_mib: u64,
        /// How much there is, less what is to stay free.
        left_mib: u64,
    },
    /// The disk would have more layers on each other than it may. Nothing was changed.
    #[error(
        "could not {verb} sprite {id}: there are {depth} layers below the new one, and qemu.max_layers is {most}; \
         delete checkpoints, so that layers can be merged"
    )]
    TooManyLayers {
        /// What was asked.
        verb: Verb,
        /// Of which sprite.
        id: SpriteId,
        /// How many there are.
        depth: usize,
        /// How many a disk may have, the new one included.
        most: usize,
    },
    /// The host refused something before anything of the sprite had changed.
    #[error("could not {verb} sprite {id}, which is as it was: {step}")]
    AsItWas {
        /// What was asked.
        verb: Verb,
        /// Of which sprite.
        id: SpriteId,
        /// The step that failed, and on what.
        step: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host refused something.
    #[error("could not {verb} sprite {id}: {step}")]
    Host {
        /// What was asked.
        verb: Verb,
        /// Of which sprite.
        id: SpriteId,
        /// The step that failed, and on what.
        step: String,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The host did not finish in time.
    #[error("could not {verb} sprite {id}: {step} took longer than {limit:?}")]
    TimedOut {
        /// What was asked.
        verb: Verb,
        /// Of which sprite.
        id: SpriteId,
        /// The step that did not end.
        step: &'static str,
        /// What it was given.
        limit: Duration,
    },
}

impl DriverError {
    /// Whether the sprite is certainly as it was before the call: a memory on disk, say, can still be loaded.
    pub(crate) const fn changed_nothing(&self) -> bool {
        match self {
            Self::Unsupported { .. }
            | Self::NoRoom { .. }
            | Self::TooManyLayers { .. }
            | Self::AsItWas { .. } => true,
            Self::NotRunning { .. }
            | Self::AlreadyRunning { .. }
            | Self::NoCheckpoint { .. }
            | Self::Host { .. }
            | Self::TimedOut { .. } => false,
        }
    }
}

/// Runs sprites.
///
/// Every verb is idempotent in the sense told at it, so that a caller that does not know how its last
/// call ended (the agent was killed, say) can call again.
#[async_trait]
pub(crate) trait Driver: Send + Sync + fmt::Debug {
    /// Its name in settings and in a sprite's record.
    fn name(&self) -> &'static str;

    /// What it can do with this sprite on this host.
    fn capabilities(&self, id: SpriteId) -> Capabilities;

    /// How a gateway reaches the sprite's runtime while it runs. Stable for the sprite's whole life.
    fn endpoint(&self, id: SpriteId) -> Endpoint;

    /// How much of the host's memory the sprite has now, in bytes; 0 if that can't be known. About right and quick: it
    /// reads some lines of `/proc`, and blocks for that.
    fn footprint(&self, _id: SpriteId) -> u64 {
        0
    }

    /// Makes the sprite's disk. Does nothing to a disk that is there, so it can be repeated; a disk
    /// that an interrupted call left half made is made anew.
    ///
    /// # Cancel safety
    /// Cancel safe: call again, or [`destroy`](Self::destroy).
    async fn prepare(&self, sprite: &SpriteSpec) -> Result<(), DriverError>;

    /// Starts the runtime with the sprite's disk.
    ///
    /// Order: after `prepare`, and not while it runs ([`DriverError::AlreadyRunning`]). When this
    /// returns, the runtime has been executed and its socket takes connections: a control stream that
    /// is opened now gets its Hello as soon as the runtime is up, and ends if it never comes up.
    /// After an error nothing runs.
    ///
    /// # Cancel safety
    /// A dropped future may leave the sprite running; [`stop`](Self::stop) it before the next start.
    async fn start(&self, sprite: &SpriteSpec, epoch: Epoch) -> Result<(), DriverError>;

    /// Stops the sprite's time: when this returns, not one of its processes runs until a resume.
    /// Repeating it on a paused sprite does nothing. After an error the sprite runs.
    ///
    /// # Cancel safety
    /// A dropped future leaves it paused, running or in between: call again, resume or stop.
    async fn pause(&self, id: SpriteId) -> Result<(), DriverError>;

    /// Starts the sprite's time again, wherever its memory is. Repeating it on a running sprite does nothing.
    ///
    /// After an error a paused sprite is paused, or was; one whose memory was on disk may have lost it, and is to be
    /// [stopped](Self::stop), unless the error says that it [changed nothing](DriverError::changed_nothing). A memory
    /// is never used twice.
    ///
    /// # Cancel safety
    /// As with [`pause`](Self::pause); one whose memory was on disk is to be stopped.
    async fn resume(&self, id: SpriteId) -> Result<Resumed, DriverError>;

    /// Puts the memory of a paused sprite on disk and gives the RAM back. Repeating it does nothing. After an error
    /// the sprite is paused.
    ///
    /// # Cancel safety
    /// A dropped future leaves it paused, suspended or in between: call again, resume or stop.
    async fn suspend(&self, id: SpriteId) -> Result<(), DriverError>;

    /// Ends the sprite in whatever state it is: thaws it, asks its runtime to end everything (TERM),
    /// and kills what is left after `grace`. When this returns, no process, mount, namespace or
    /// cgroup of the sprite is left; its disk is. Does nothing to a sprite that does not run.
    ///
    /// # Cancel safety
    /// A dropped future leaves it running or ending: call again.
    async fn stop(&self, id: SpriteId, grace: Duration) -> Result<(), DriverError>;

    /// Removes the sprite's disk and all else of it, killing it first if it runs; never starts
    /// anything. Does nothing to a sprite that is not there. When this returns the sprite can't be had
    /// again; its space may be given back a little later, by the next agent if need be.
    ///
    /// # Cancel safety
    /// A dropped future leaves a sprite that can only be destroyed again.
    async fn destroy(&self, id: SpriteId) -> Result<(), DriverError>;

    /// Takes charge of a sprite that an earlier agent started: `None` if nothing of it but its disk is there (any
    /// more). An unfinished pause is finished, an unfinished suspend or resume is finished or undone. Removes what a sprite that died unseen left behind.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn adopt(&self, id: SpriteId) -> Result<Option<Adopted>, DriverError>;

    /// Resolves when the sprite's PID 1 is gone, for whatever reason; at once if it does not run.
    /// May be awaited by several at once and during any other verb; a [`suspend`](Self::suspend) resolves it, too.
    /// [`stop`](Self::stop) must still
    /// be called to remove what an exit leaves behind.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn exited(&self, id: SpriteId);

    /// Does ahead, while the sprite goes on living, what would make [`checkpoint`](Self::checkpoint)
    /// long. The sprite may start, pause, resume and stop meanwhile; nothing can be seen of this yet.
    /// A driver whose cut is short anyway does nothing.
    ///
    /// # Cancel safety
    /// A dropped future soon ends the work. What it leaves is used or removed by the next call, or by
    /// the next agent's [`adopt`](Self::adopt).
    async fn stage_checkpoint(&self, _id: SpriteId, _checkpoint: CheckpointId) -> Result<(), DriverError> {
        Ok(())
    }

    /// Keeps the sprite's disk as it is at one instant (the cut), under a name.
    ///
    /// Order: after `prepare`; the sprite may run, be paused or suspended, or be stopped, and is so
    /// afterwards. Its time stands still for the cut and no longer. The disk is what a power cut at
    /// that instant would leave, everything written included. [`stage_checkpoint`](Self::stage_checkpoint)
    /// may have gone before, or not; [`complete_checkpoint`](Self::complete_checkpoint) comes after.
    /// Does nothing if the sprite has the checkpoint already. After an error there is none.
    ///
    /// # Cancel safety
    /// A dropped future may leave the cut or not; the sprite goes on either way. Call again, or
    /// [`forget_checkpoint`](Self::forget_checkpoint) it.
    async fn checkpoint(&self, _id: SpriteId, _checkpoint: CheckpointId) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { driver: self.name(), verb: Verb::Checkpoint })
    }

    /// Cuts a checkpoint of a suspended sprite as [`checkpoint`](Self::checkpoint) does, and keeps a copy of its memory
    /// beside it: the first [`fork`](Self::fork) from this checkpoint goes on from that. The sprite and its own memory
    /// stay as they are. After an error there is neither.
    ///
    /// # Cancel safety
    /// As with [`checkpoint`](Self::checkpoint).
    async fn checkpoint_with_memory(
        &self,
        _id: SpriteId,
        _checkpoint: CheckpointId,
    ) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { driver: self.name(), verb: Verb::Fork })
    }

    /// Completes a checkpoint that was cut, while the sprite goes on living. When this returns the
    /// checkpoint is on the host's disk, whole; before, it can't be seen. From then on it never changes.
    /// Does nothing to one that is complete. After an error there is none.
    ///
    /// # Cancel safety
    /// A dropped future leaves it complete or not: [`forget_checkpoint`](Self::forget_checkpoint) it.
    async fn complete_checkpoint(&self, _id: SpriteId, _checkpoint: CheckpointId) -> Result<(), DriverError> {
        Ok(())
    }

    /// Does ahead, while the sprite goes on living, what would make [`restore`](Self::restore) long.
    ///
    /// # Cancel safety
    /// As with [`stage_checkpoint`](Self::stage_checkpoint).
    async fn stage_restore(&self, _id: SpriteId, _checkpoint: CheckpointId) -> Result<(), DriverError> {
        Ok(())
    }

    /// Makes the sprite's disk what it was at a checkpoint, which stays. The disk as it was until now
    /// becomes the checkpoint `replaced`.
    ///
    /// Order: the sprite does not run ([`DriverError::AlreadyRunning`]); memory that a suspend has put
    /// on disk is gone afterwards. [`stage_restore`](Self::stage_restore) may have gone before, or not.
    /// Whatever kills the agent or the host, the disk is the old one or the new one. Does nothing if
    /// the sprite has `replaced` already: an interrupted call that is repeated ends well. After an error
    /// the disk is the old one, and there is no `replaced`.
    ///
    /// # Cancel safety
    /// A dropped future leaves the old disk or the new one: call again.
    async fn restore(
        &self,
        _id: SpriteId,
        _checkpoint: CheckpointId,
        _replaced: CheckpointId,
    ) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { driver: self.name(), verb: Verb::Restore })
    }

    /// Removes a checkpoint, or what an interrupted call left of one. Does nothing if there is none.
    /// Its space may be given back a little later.
    ///
    /// # Cancel safety
    /// A dropped future leaves it there or removed: call again.
    async fn forget_checkpoint(&self, _id: SpriteId, _checkpoint: CheckpointId) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { driver: self.name(), verb: Verb::ForgetCheckpoint })
    }

    /// Makes the disk of a new sprite, as [`prepare`](Self::prepare) does, from a checkpoint of another
    /// one, which is not disturbed. If a [copy of the memory](Self::checkpoint_with_memory) is kept beside it, the new
    /// sprite is suspended, and that is its memory. From then on the two have nothing in common.
    ///
    /// # Cancel safety
    /// A dropped future soon ends the work: call again, or [`destroy`](Self::destroy) the new one.
    async fn fork(
        &self,
        _source: SpriteId,
        _checkpoint: CheckpointId,
        _sprite: &SpriteSpec,
    ) -> Result<(), DriverError> {
        Err(DriverError::Unsupported { driver: self.name(), verb: Verb::Fork })
    }

    /// Gives back what checkpoints that were removed have left, if that takes long; the sprite and its checkpoints
    /// don't change. It is called when nothing else is to be done, and dropped as soon as something is.
    ///
    /// # Cancel safety
    /// A dropped future soon ends the work, of which what was done in part is lost: call again.
    async fn compact(&self, _id: SpriteId) -> Result<(), DriverError> {
        Ok(())
    }
}
