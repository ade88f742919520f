//! One task owns one sprite.
//!
//! Everything that concerns a sprite reaches its task as a [`Message`]. The task feeds two pure
//! machines, `lease::grantor::Grantor` (who needs it) and `lifecycle::Machine` (what it does), and
//! performs the effects that they return: driver calls ([`transition`]), answers to holders, writes to
//! the store. It never waits for another sprite's task, and while a driver call is under way it goes
//! on listening.

mod link;
mod task;
mod transition;

use std::{sync::Arc, time::Duration};

use agent_api::{
    ChangeSprite, Changed, SleepDepth, Sprite, WhyAwake,
    lease::{Refusal, Usage},
};
use ids::{Attempt, Epoch, HolderId};
use tokio::sync::{mpsc, oneshot};

use crate::{agent::Agent, drivers::Adopted, store::StoreError};

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

/// What a sprite's task is told.
#[derive(Debug)]
pub(crate) enum Message {
    Acquire { holder: HolderId, attempt: Attempt, request_id: String },
    Reassert { holder: HolderId, attempt: Attempt, epoch: Epoch },
    Release { holder: HolderId, attempt: Attempt, idle_for: Duration },
    Report { holder: HolderId, usage: Usage },
    HolderLost { holder: HolderId },
    Change { change: ChangeSprite, reply: Reply<Changed<Sprite>> },
    Sleep { depth: SleepDepth, reply: Reply<WhyAwake> },
    Wake { reply: Reply<WhyAwake> },
    Why { reply: Reply<WhyAwake> },
    Destroy { reply: Reply<()> },
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
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reaches a sprite's task.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    mailbox: mpsc::Sender<Message>,
    agent_stops: tokio_util::sync::CancellationToken,
}

impl Handle {
    /// Tells the task something. False if the sprite is gone.
    pub(crate) async fn tell(&self, message: Message) -> bool {
        self.mailbox.send(message).await.is_ok()
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

    /// Returns when the sprite is gone for everybody; its processes and disk follow.
    pub(crate) async fn destroy(&self) -> Result<(), SpriteError> {
        self.ask(|reply| Message::Destroy { reply }).await
    }
}

/// Starts the task of a sprite.
pub(crate) fn spawn(agent: Arc<Agent>, sprite: Sprite, begin: Begin) -> Handle {
    let (mailbox, messages) = mpsc::channel(MAILBOX);
    let handle = Handle { mailbox, agent_stops: agent.shutdown.clone() };
    let tasks = agent.tasks.clone();
    tasks.spawn(task::run(agent, sprite, begin, messages));
    handle
}
