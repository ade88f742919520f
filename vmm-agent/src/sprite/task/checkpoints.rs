//! What is done with a sprite's checkpoints, one thing at a time.
//!
//! ```text
//!  take:    stage ──▶ cut (the lifecycle's) ──▶ complete ──▶ [fork] ──▶ tidy
//!  restore: stage ──▶ written down: from here on it is finished, whoever is killed
//!                 ──▶ stop, exchange the disks (the lifecycle's) ──▶ tidy
//!  delete:  tidy            fork: fork
//!  after each of these, and when the agent begins: compact, until something else is asked for
//! ```
//!
//! All but what is the lifecycle's goes on beside the sprite's life; the lifecycle decides when the cut and the exchange
//! are made. A client that leaves changes nothing.

use std::future::pending;

use agent_api::{Checkpoint, ErrorBody, MAX_COMMENT_BYTES, Progress, ProgressKind};
use futures_util::future::BoxFuture;
use ids::CheckpointId;
use jiff::Timestamp;
use lifecycle::Event;
use runtime_api::{Command, Question};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::Task;
use crate::{
    api::{Failure, chain},
    drivers::{DriverError, SpriteSpec},
    sprite::{
        ForkFrom, Reply, SpriteError,
        book::Restoring,
        link::Link,
        transition::{Call, Failed},
    },
};

/// Lines that may wait for a client that reads slowly; further ones are left out.
const MOST_LINES: usize = 32;

/// Something that is under way.
pub(super) struct Operation {
    step: Step,
    client: Client,
    /// What the driver does beside the sprite's life. Without it, the lifecycle has the next step.
    work: Option<Work>,
}

type Work = BoxFuture<'static, Result<(), DriverError>>;

enum Step {
    Checkpoint(CheckpointId),
    /// It was cut.
    Complete(CheckpointId),
    Restore(CheckpointId),
    Fork,
    /// Removes checkpoints; then it ends as it has turned out before.
    Tidy {
        ids: Vec<CheckpointId>,
        end: Result<(), SpriteError>,
    },
    /// Gives back what they have left. Whatever else is to be done takes its place.
    Compact,
}

/// Who is told.
pub(super) enum Client {
    /// Line by line, and this at the end.
    Lines {
        lines: mpsc::Sender<Progress>,
        done: String,
    },
    Forget(Reply<()>),
    /// A program in the sprite, which gets this text or nothing if all goes well.
    Inside {
        id: u64,
        commands: mpsc::Sender<Command>,
        done: Option<String>,
    },
    Fork {
        sprite: SpriteSpec,
        /// Whether it goes on from the source's memory.
        memory: bool,
        reply: Reply<()>,
    },
    /// An agent before us had begun it.
    Nobody,
}

impl Client {
    fn tell(&self, kind: ProgressKind, text: String) {
        let Self::Lines { lines, .. } = self else { return };
        let (data, error) = if kind == ProgressKind::Error { (None, Some(text)) } else { (Some(text), None) };
        // It may have left, or not read for long.
        let _ = lines.try_send(Progress { kind, data, error, time: Timestamp::now() });
    }

    fn info(&self, text: impl Into<String>) {
        self.tell(ProgressKind::Info, text.into());
    }

    fn end(self, outcome: Result<(), SpriteError>) {
        match (self, outcome) {
            (Self::Lines { lines, done }, Ok(())) => {
                Self::Lines { lines, done: String::new() }.tell(ProgressKind::Complete, done);
            }
            (client @ Self::Lines { .. }, Err(error)) => client.tell(ProgressKind::Error, chain(&error)),
            (Self::Forget(reply) | Self::Fork { reply, .. }, outcome) => {
                let _ = reply.send(outcome);
            }
            (Self::Inside { id, commands, done }, outcome) => {
                let reply = match (outcome, done) {
                    (Ok(()), Some(done)) => {
                        let (kind, time) = (ProgressKind::Complete, Timestamp::now());
                        reply(200, &Progress { kind, data: Some(done), error: None, time })
                    }
                    (Ok(()), None) => runtime_api::Reply { status: 204, body: Value::Null },
                    (Err(error), _) => refusal(error),
                };
                // It may have ended with the sprite.
                let _ = commands.try_send(Command::Answered { id, reply });
            }
            (Self::Nobody, _) => {}
        }
    }
}

fn reply(status: u16, body: &impl Serialize) -> runtime_api::Reply {
    runtime_api::Reply { status, body: serde_json::to_value(body).unwrap_or_default() }
}

fn refusal(error: SpriteError) -> runtime_api::Reply {
    let (status, body) = Failure::from(error).into_parts();
    reply(status.as_u16(), &body)
}

/// The end of what the driver does beside the sprite's life. Cancel safe.
pub(super) async fn worked(operation: Option<&mut Operation>) -> Result<(), DriverError> {
    match operation.and_then(|operation| operation.work.as_mut()) {
        Some(work) => work.await,
        None => pending().await,
    }
}

impl Task {
    /// Ends what an agent before us had begun, before the sprite's life goes on.
    pub(super) async fn mend_checkpoints(&mut self) {
        let unfinished = self.book.unfinished();
        for id in &unfinished {
            match self.agent.driver.forget_checkpoint(self.sprite.id, *id).await {
                Ok(()) => self.book.gone(*id),
                // The next agent tries again.
                Err(error) => self.could_not("remove what is left of a checkpoint", &error),
            }
        }
        if !unfinished.is_empty()
            && let Err(error) = self.save_book().await
        {
            self.could_not("write down its checkpoints", &error);
        }
        if let Some(Restoring { checkpoint, .. }) = self.book.restoring() {
            info!(sprite = %self.sprite.id, name = %self.sprite.name, %checkpoint, "Going on with a restore");
            let step = Step::Restore(checkpoint);
            self.operation = Some(Operation { step, client: Client::Nobody, work: None });
            self.tell(Event::Restore).await;
        }
        self.compact();
    }

    /// Gives back room, if nothing else is being done.
    fn compact(&mut self) {
        let (id, is_wanted) = (self.sprite.id, self.operation.is_none() && !self.withdrawn);
        if is_wanted && self.agent.driver.capabilities(id).checkpoint {
            let driver = self.agent.driver.clone();
            let work = async move { driver.compact(id).await };
            let (step, client) = (Step::Compact, Client::Nobody);
            self.operation = Some(Operation { step, client, work: Some(Box::pin(work)) });
        }
    }

    pub(super) fn checkpoints(&self) -> Vec<Checkpoint> {
        self.book.list()
    }

    /// Begins to take a checkpoint; the answer tells how it goes on.
    pub(super) async fn take_checkpoint(
        &mut self,
        comment: String,
        automatic: bool,
    ) -> Result<mpsc::Receiver<Progress>, SpriteError> {
        let id = self.note_checkpoint(comment, automatic).await?;
        let (lines, told) = mpsc::channel(MOST_LINES);
        self.stage_checkpoint(id, Client::Lines { lines, done: format!("Checkpoint created: {id}") });
        Ok(told)
    }

    /// Writes down that a checkpoint is about to be made.
    async fn note_checkpoint(
        &mut self,
        comment: String,
        automatic: bool,
    ) -> Result<CheckpointId, SpriteError> {
        self.is_free()?;
        let most = self.agent.config.checkpoints.max_per_sprite;
        if !automatic && self.book.numbered() >= most {
            return Err(SpriteError::TooManyCheckpoints(most));
        }
        let before = self.book.clone();
        let id = self.book.begin(automatic, comment, Timestamp::now());
        if let Err(error) = self.save_book().await {
            self.book = before;
            return Err(error);
        }
        Ok(id)
    }

    fn stage_checkpoint(&mut self, id: CheckpointId, client: Client) {
        client.info(format!("Checkpoint {id}: copying the disk while the sprite goes on"));
        let (agent, sprite) = (self.agent.clone(), self.sprite.id);
        let work = async move {
            // Few at once: more would only fight for the disk.
            let _turn = agent.copies.acquire().await;
            agent.driver.stage_checkpoint(sprite, id).await
        };
        self.operation = Some(Operation { step: Step::Checkpoint(id), client, work: Some(Box::pin(work)) });
    }

    /// Begins to restore a checkpoint; the answer tells how it goes on.
    pub(super) fn restore_checkpoint(
        &mut self,
        checkpoint: CheckpointId,
    ) -> Result<mpsc::Receiver<Progress>, SpriteError> {
        self.is_free()?;
        self.is_there(checkpoint)?;
        let (lines, told) = mpsc::channel(MOST_LINES);
        let client = Client::Lines { lines, done: format!("Restored {checkpoint}") };
        client.info(format!("Restoring {checkpoint}: copying it while the sprite goes on"));
        let (agent, sprite) = (self.agent.clone(), self.sprite.id);
        let work = async move {
            let _turn = agent.copies.acquire().await;
            agent.driver.stage_restore(sprite, checkpoint).await
        };
        self.operation =
            Some(Operation { step: Step::Restore(checkpoint), client, work: Some(Box::pin(work)) });
        Ok(told)
    }

    /// A program in the sprite asks for something.
    pub(super) async fn asked_inside(&mut self, id: u64, question: Question) {
        let Some(commands) = self.link.as_ref().map(Link::commands) else { return };
        let answered = |reply| {
            // What can't be sent is lost, as with a broken stream.
            let _ = commands.try_send(Command::Answered { id, reply });
        };
        match question {
            Question::ListCheckpoints => {
                let list: Vec<Value> = self.book.list().iter().map(Checkpoint::in_public).collect();
                answered(reply(200, &list));
            }
            Question::TakeCheckpoint { comment } if comment.len() > MAX_COMMENT_BYTES => {
                let message = format!("a comment has at most {MAX_COMMENT_BYTES} bytes");
                answered(reply(400, &ErrorBody { error: "bad_comment".into(), message }));
            }
            Question::TakeCheckpoint { comment } => match self.note_checkpoint(comment, false).await {
                Ok(checkpoint) => {
                    let done = Some(format!("Checkpoint created: {checkpoint}"));
                    self.stage_checkpoint(checkpoint, Client::Inside { id, commands, done });
                }
                Err(error) => answered(refusal(error)),
            },
            Question::RestoreCheckpoint { checkpoint } => {
                let begun = self.restore_checkpoint(checkpoint);
                answered(match begun {
                    Ok(_nobody_reads_on) => {
                        reply(202, &json!({ "message": format!("Restoring {checkpoint}") }))
                    }
                    Err(error) => refusal(error),
                });
            }
            Question::RemoveCheckpoint { checkpoint } => {
                self.remove_checkpoint(checkpoint, Client::Inside { id, commands, done: None }).await;
            }
        }
    }

    /// Begins to remove a checkpoint, and answers when it is gone.
    pub(super) async fn forget_checkpoint(&mut self, id: CheckpointId, reply: Reply<()>) {
        self.remove_checkpoint(id, Client::Forget(reply)).await;
    }

    async fn remove_checkpoint(&mut self, id: CheckpointId, client: Client) {
        let refusal = self.is_free().and_then(|()| self.is_there(id));
        let refusal = refusal.and_then(|()| match self.book.current() == Some(id) {
            true => Err(SpriteError::ActiveCheckpoint(id)),
            false => Ok(()),
        });
        match refusal {
            Err(refusal) => client.end(Err(refusal)),
            Ok(()) => self.tidy(vec![id], client, Ok(())).await,
        }
    }

    /// Begins to make what another sprite begins with, and answers when it is there.
    pub(super) async fn fork(&mut self, from: ForkFrom, sprite: SpriteSpec, reply: Reply<()>) {
        let comment = format!("for the fork {}", sprite.name);
        let client = Client::Fork { sprite, memory: from == ForkFrom::DiskAndMemory, reply };
        let possible = match from {
            ForkFrom::Checkpoint(checkpoint) => self.is_free().and_then(|()| self.is_there(checkpoint)),
            ForkFrom::DiskAndMemory => self.has_memory_to_fork(),
            ForkFrom::Disk => Ok(()),
        };
        if let Err(refusal) = possible {
            return client.end(Err(refusal));
        }
        if let ForkFrom::Checkpoint(id) = from {
            return self.fork_from(id, client);
        }
        match self.note_checkpoint(comment, true).await {
            Ok(id) => self.stage_checkpoint(id, client),
            Err(refusal) => client.end(Err(refusal)),
        }
    }

    fn has_memory_to_fork(&self) -> Result<(), SpriteError> {
        if !self.agent.driver.capabilities(self.sprite.id).fork_memory {
            return Err(SpriteError::NoForkedMemory(self.sprite.driver.clone()));
        }
        if self.machine.is_suspended() { Ok(()) } else { Err(SpriteError::NotSuspended) }
    }

    fn fork_from(&mut self, checkpoint: CheckpointId, client: Client) {
        let Client::Fork { sprite, .. } = &client else { return };
        let (agent, source, spec) = (self.agent.clone(), self.sprite.id, sprite.clone());
        let work = async move {
            let _turn = agent.copies.acquire().await;
            agent.driver.fork(source, checkpoint, &spec).await
        };
        self.operation = Some(Operation { step: Step::Fork, client, work: Some(Box::pin(work)) });
    }

    /// What the driver did beside the sprite's life has ended.
    pub(super) async fn worked(&mut self, outcome: Result<(), DriverError>) {
        let Some(Operation { step, client, .. }) = self.operation.take() else { return };
        let leaves_something = !matches!(step, Step::Compact);
        self.go_on(step, client, outcome.map_err(SpriteError::from)).await;
        if leaves_something {
            self.compact();
        }
    }

    /// Begins what comes after a step.
    async fn go_on(&mut self, step: Step, client: Client, outcome: Result<(), SpriteError>) {
        match (step, outcome) {
            (Step::Checkpoint(id), Ok(())) => {
                client.info("Copying what has changed meanwhile; the sprite stands still for that");
                self.operation = Some(Operation { step: Step::Checkpoint(id), client, work: None });
                self.tell(Event::Checkpoint).await;
            }
            (Step::Checkpoint(id) | Step::Complete(id), Err(error)) => {
                self.tidy(vec![id], client, Err(error)).await;
            }
            (Step::Complete(id), Ok(())) => {
                self.book.made(id);
                match (self.save_book().await, &client) {
                    (Err(error), _) => self.tidy(vec![id], client, Err(error)).await,
                    (Ok(()), Client::Fork { .. }) => self.fork_from(id, client),
                    (Ok(()), _) => self.tidy_surplus(client).await,
                }
            }
            (Step::Restore(checkpoint), Ok(())) => {
                let before = self.book.clone();
                let Restoring { replaced, .. } = self.book.begin_restore(checkpoint, Timestamp::now());
                if let Err(error) = self.save_book().await {
                    self.book = before;
                    return client.end(Err(error));
                }
                client.info(format!("Stopping the sprite; its disk as it is now becomes {replaced}"));
                self.operation = Some(Operation { step: Step::Restore(checkpoint), client, work: None });
                self.tell(Event::Restore).await;
            }
            (Step::Fork, Ok(())) => self.tidy_surplus(client).await,
            (Step::Restore(_) | Step::Fork, Err(error)) => client.end(Err(error)),
            (Step::Tidy { ids, end }, Ok(())) => {
                for id in ids {
                    self.book.gone(id);
                }
                let saved = self.save_book().await;
                client.end(end.and(saved));
            }
            // They are marked: the next agent tries again.
            (Step::Tidy { end, .. }, Err(error)) => client.end(end.and(Err(error))),
            (Step::Compact, Ok(())) => {}
            // It is tried again after the next operation.
            (Step::Compact, Err(error)) => self.could_not("give back what its checkpoints have left", &error),
        }
    }

    /// The cut, or the exchange of the disks, has ended.
    pub(super) async fn made_by_the_lifecycle(&mut self, outcome: &Result<(), Failed>) {
        let Some(Operation { step, client, work }) = self.operation.take() else { return };
        let outcome = match outcome {
            Ok(()) => Ok(()),
            Err(failed) => Err(SpriteError::Failed(failed.reason.clone())),
        };
        match (step, outcome) {
            (Step::Checkpoint(id), Ok(())) => {
                client.info("The sprite goes on; writing the checkpoint to the disk");
                let (driver, sprite) = (self.agent.driver.clone(), self.sprite.id);
                let work = async move { driver.complete_checkpoint(sprite, id).await };
                self.operation =
                    Some(Operation { step: Step::Complete(id), client, work: Some(Box::pin(work)) });
            }
            (Step::Checkpoint(id), Err(error)) => self.tidy(vec![id], client, Err(error)).await,
            (Step::Restore(_), Ok(())) => {
                self.book.restored();
                if let Err(error) = self.save_book().await {
                    // The driver does nothing when the next agent asks for the same again.
                    self.could_not("write down that it is restored", &error);
                }
                self.tidy_surplus(client).await;
            }
            (Step::Restore(_), Err(error)) => {
                self.book.not_restored();
                let saved = self.save_book().await;
                client.end(saved.and(Err(error)));
            }
            (step @ (Step::Complete(_) | Step::Fork | Step::Tidy { .. } | Step::Compact), _) => {
                self.operation = Some(Operation { step, client, work });
            }
        }
        self.compact();
    }

    /// Ends well, when of those that were made by themselves only the last ones are left.
    async fn tidy_surplus(&mut self, client: Client) {
        let surplus = self.book.surplus(self.agent.config.checkpoints.max_automatic);
        match surplus.is_empty() {
            true => client.end(Ok(())),
            false => self.tidy(surplus, client, Ok(())).await,
        }
    }

    /// Removes checkpoints, then tells the client how it ended.
    async fn tidy(&mut self, ids: Vec<CheckpointId>, client: Client, end: Result<(), SpriteError>) {
        for id in &ids {
            self.book.forget(*id);
        }
        if let Err(error) = self.save_book().await {
            return client.end(end.and(Err(error)));
        }
        let (driver, sprite, doomed) = (self.agent.driver.clone(), self.sprite.id, ids.clone());
        let work = async move {
            for id in doomed {
                driver.forget_checkpoint(sprite, id).await?;
            }
            Ok(())
        };
        self.operation =
            Some(Operation { step: Step::Tidy { ids, end }, client, work: Some(Box::pin(work)) });
    }

    /// The driver call for the next step, which the lifecycle has decided to make now.
    pub(super) fn checkpoint_call(&self) -> Call {
        let memory = self
            .operation
            .as_ref()
            .is_some_and(|operation| matches!(operation.client, Client::Fork { memory: true, .. }));
        match (self.operation.as_ref().map(|operation| &operation.step), self.book.restoring()) {
            (Some(Step::Checkpoint(id)), _) => Call::Checkpoint { id: *id, memory },
            (Some(Step::Restore(_)), Some(restoring)) => Call::Restore(restoring),
            (
                None
                | Some(Step::Complete(_) | Step::Restore(_) | Step::Fork | Step::Tidy { .. } | Step::Compact),
                _,
            ) => Call::Unwanted,
        }
    }

    /// The sprite is destroyed, and what was under way ends with it.
    pub(super) fn end_operation(&mut self) {
        if let Some(operation) = self.operation.take() {
            operation.client.end(Err(SpriteError::Gone));
        }
    }

    fn is_free(&self) -> Result<(), SpriteError> {
        if self.withdrawn {
            return Err(SpriteError::Gone);
        }
        if !self.agent.driver.capabilities(self.sprite.id).checkpoint {
            return Err(SpriteError::NoCheckpoints(self.sprite.driver.clone()));
        }
        let busy = match self.operation.as_ref().map(|operation| &operation.step) {
            None | Some(Step::Compact) => return Ok(()),
            Some(Step::Checkpoint(_) | Step::Complete(_)) => "a checkpoint is being taken",
            Some(Step::Restore(_)) => "a checkpoint is being restored",
            Some(Step::Fork) => "the sprite is being forked",
            Some(Step::Tidy { .. }) => "a checkpoint is being removed",
        };
        Err(SpriteError::CheckpointsBusy(busy))
    }

    fn is_there(&self, id: CheckpointId) -> Result<(), SpriteError> {
        if self.book.has(id) { Ok(()) } else { Err(SpriteError::NoCheckpoint(id)) }
    }

    async fn save_book(&mut self) -> Result<(), SpriteError> {
        Ok(self.agent.store.save_book(self.sprite.id, self.book.clone()).await?)
    }

    fn could_not(&self, what: &str, error: &dyn std::error::Error) {
        warn!(sprite = %self.sprite.id, name = %self.sprite.name, error = chain(error), "Could not {what}");
    }
}
