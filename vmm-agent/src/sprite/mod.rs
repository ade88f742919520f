//! One task owns one sprite.
//!
//! Everything that concerns a sprite reaches its task as a [`Message`]. The task feeds two pure
//! machines, `lease::grantor::Grantor` (who needs it) and `lifecycle::Machine` (what it does), and
//! performs the effects that they return: driver calls ([`transition`]), answers to holders, writes to
//! the store. It never waits for another sprite's task, and while a driver call is under way it goes
//! on listening.

mod book;
mod link;
mod standing;
mod task;
mod transition;

use std::{sync::Arc, time::Duration};

use agent_api::{
    ChangeSprite, Changed, Checkpoint, CreateCheckpoint, Progress, SleepDepth, Sprite, WhyAwake,
    lease::{Refusal, Usage},
};
use ids::{Attempt, CheckpointId, Epoch, HolderId};
use lifecycle::Residence;
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::book::Book;
use self::standing::Standing;
use crate::{
    agent::Agent,
    drivers::{Adopted, DriverError, SpriteSpec},
    store::StoreError,
};

/// Messages that may wait for a sprite's task. Who sends more waits.
const MAILBOX: usize = 1024;

/// How a sprite's task begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Begin {
    /// Nothing of it runs.
    Cold,
    /// It went on living while there was no agent.
    Adopted(Adopted),
}

/// What a fork begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ForkFrom {
    /// The disk as it is now.
    Disk,
    /// The same, and the memory that belongs to it.
    DiskAndMemory,
    /// The disk as it was.
    Checkpoint(CheckpointId),
}

/// What a sprite's task is told.
#[derive(Debug)]
pub(crate) enum Message {
    Acquire {
        holder: HolderId,
        attempt: Attempt,
        request_id: String,
    },
    Reassert {
        holder: HolderId,
        attempt: Attempt,
        epoch: Epoch,
    },
    Release {
        holder: HolderId,
        attempt: Attempt,
        idle_for: Duration,
    },
    Report {
        holder: HolderId,
        usage: Usage,
    },
    HolderLost {
        holder: HolderId,
    },
    Change {
        change: ChangeSprite,
        reply: Reply<Changed<Sprite>>,
    },
    Sleep {
        depth: SleepDepth,
        reply: Reply<WhyAwake>,
    },
    /// The host is short of memory.
    Squeeze,
    Wake {
        reply: Reply<WhyAwake>,
    },
    Why {
        reply: Reply<WhyAwake>,
    },
    Checkpoints {
        reply: Reply<Vec<Checkpoint>>,
    },
    TakeCheckpoint {
        ask: CreateCheckpoint,
        reply: Reply<mpsc::Receiver<Progress>>,
    },
    RestoreCheckpoint {
        checkpoint: CheckpointId,
        reply: Reply<mpsc::Receiver<Progress>>,
    },
    ForgetCheckpoint {
        checkpoint: CheckpointId,
        reply: Reply<()>,
    },
    Fork {
        from: ForkFrom,
        sprite: SpriteSpec,
        reply: Reply<()>,
    },
    Destroy {
        reply: Reply<()>,
    },
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, SpriteError>>;

/// Why a sprite's task did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpriteError {
    #[error("the sprite is gone")]
    Gone,
    #[error("the agent is shutting down")]
    ShuttingDown,
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("the setting is not possible: {0}")]
    BadTiming(String),
    #[error("the {0} driver, which runs this sprite, has no checkpoints")]
    NoCheckpoints(String),
    #[error("the sprite has no checkpoint {0}; list them to see which it has")]
    NoCheckpoint(CheckpointId),
    #[error(
        "the {0} driver, which runs this sprite, can't fork its memory; fork its disk instead, without \"memory\""
    )]
    NoForkedMemory(String),
    #[error(
        "the sprite's memory is not on disk, where a fork takes it from; put it to sleep with the depth \"suspended\", then fork it"
    )]
    NotSuspended,
    #[error("{0}; try again when that is done")]
    CheckpointsBusy(&'static str),
    #[error("the sprite's disk descends from {0}; take or restore another checkpoint, then delete it")]
    ActiveCheckpoint(CheckpointId),
    #[error("the sprite has {0} checkpoints, which is the most on this host; delete one first")]
    TooManyCheckpoints(usize),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reaches a sprite's task.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    mailbox: mpsc::Sender<Message>,
    standing: Arc<Standing>,
    agent_stops: tokio_util::sync::CancellationToken,
}

impl Handle {
    /// Tells the task something. False if the sprite is gone.
    pub(crate) async fn tell(&self, message: Message) -> bool {
        self.mailbox.send(message).await.is_ok()
    }

    /// The same, if it can hear it at once.
    pub(crate) fn tell_now(&self, message: Message) -> bool {
        self.mailbox.try_send(message).is_ok()
    }

    /// What the sprite has of the host's RAM.
    pub(crate) fn residence(&self) -> Residence {
        self.standing.get()
    }

    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, SpriteError> {
        let (reply, answer) = oneshot::channel();
        let gone =
            || if self.agent_stops.is_cancelled() { SpriteError::ShuttingDown } else { SpriteError::Gone };
        if !self.tell(message(reply)).await {
            return Err(gone());
        }
        answer.await.map_err(|_| gone())?
    }

    pub(crate) async fn change(&self, change: ChangeSprite) -> Result<Changed<Sprite>, SpriteError> {
        self.ask(|reply| Message::Change { change, reply }).await
    }

    /// Begins to put the sprite to sleep, whoever uses it, and says where it stands.
    pub(crate) async fn sleep(&self, depth: SleepDepth) -> Result<WhyAwake, SpriteError> {
        self.ask(|reply| Message::Sleep { depth, reply }).await
    }

    /// Wakes the sprite and returns when it is awake; its idle time begins then.
    pub(crate) async fn wake(&self) -> Result<WhyAwake, SpriteError> {
        self.ask(|reply| Message::Wake { reply }).await
    }

    pub(crate) async fn why(&self) -> Result<WhyAwake, SpriteError> {
        self.ask(|reply| Message::Why { reply }).await
    }

    pub(crate) async fn checkpoints(&self) -> Result<Vec<Checkpoint>, SpriteError> {
        self.ask(|reply| Message::Checkpoints { reply }).await
    }

    /// Begins to take a checkpoint. It is finished whether or not anybody reads on.
    pub(crate) async fn take_checkpoint(
        &self,
        ask: CreateCheckpoint,
    ) -> Result<mpsc::Receiver<Progress>, SpriteError> {
        self.ask(|reply| Message::TakeCheckpoint { ask, reply }).await
    }

    /// Begins to restore a checkpoint. It is finished whether or not anybody reads on.
    pub(crate) async fn restore_checkpoint(
        &self,
        checkpoint: CheckpointId,
    ) -> Result<mpsc::Receiver<Progress>, SpriteError> {
        self.ask(|reply| Message::RestoreCheckpoint { checkpoint, reply }).await
    }

    /// Returns when the checkpoint is gone.
    pub(crate) async fn forget_checkpoint(&self, checkpoint: CheckpointId) -> Result<(), SpriteError> {
        self.ask(|reply| Message::ForgetCheckpoint { checkpoint, reply }).await
    }

    /// Returns when what the other sprite begins with is there.
    pub(crate) async fn fork(&self, from: ForkFrom, sprite: SpriteSpec) -> Result<(), SpriteError> {
        self.ask(|reply| Message::Fork { from, sprite, reply }).await
    }

    /// Returns when the sprite is gone for everybody; its processes and disk follow.
    pub(crate) async fn destroy(&self) -> Result<(), SpriteError> {
        self.ask(|reply| Message::Destroy { reply }).await
    }
}

/// Starts the task of a sprite.
pub(crate) fn spawn(agent: Arc<Agent>, sprite: Sprite, book: Book, begin: Begin) -> Handle {
    let (mailbox, messages) = mpsc::channel(MAILBOX);
    let standing = Arc::<Standing>::default();
    let handle = Handle { mailbox, standing: Arc::clone(&standing), agent_stops: agent.shutdown.clone() };
    let tasks = agent.tasks.clone();
    tasks.spawn(task::run(agent, sprite, book, begin, messages, standing));
    handle
}
