//! Driver calls: what each transition of a sprite does, from beginning to end.

use std::{sync::Arc, time::Duration};

use agent_api::Sprite;
use ids::{CheckpointId, Epoch, SpriteId};
use lifecycle::Transition;
use runtime_api::{Address, Command, Configuration, ControlStream, Event, Woken, open_control};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::book::Restoring;
use crate::{
    agent::Agent,
    api::chain,
    drivers::{Driver, DriverError, Resumed},
};

/// How long a runtime may take to answer after it was started.
const RUNTIME_DEADLINE: Duration = Duration::from_secs(20);

/// A driver call that is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Call {
    Start(Epoch),
    Pause,
    Suspend,
    Resume(Epoch),
    Stop,
    Checkpoint {
        id: CheckpointId,
        /// With a copy of its memory, for a fork.
        memory: bool,
    },
    Restore(Restoring),
    /// Whoever ordered it has taken it back.
    Unwanted,
    Destroy,
}

impl Call {
    const fn verb(self) -> &'static str {
        match self {
            Self::Start(_) => "start",
            Self::Pause => "pause",
            Self::Suspend => "suspend",
            Self::Resume(_) => "resume",
            Self::Stop => "stop",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Restore(_) => "restore",
            Self::Unwanted => "unwanted",
            Self::Destroy => "destroy",
        }
    }
}

/// How a driver call ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) transition: Transition,
    pub(super) call: Call,
    pub(super) outcome: Result<(), Failed>,
    /// Of a start, or a return from disk: the stream over which the runtime was configured.
    pub(super) control: Option<ControlStream>,
}

/// Why a driver call failed.
#[derive(Debug)]
pub(super) struct Failed {
    /// For people.
    pub(super) reason: String,
    /// Whether the sprite is certainly as it was.
    pub(super) changed_nothing: bool,
}

impl Failed {
    /// It may have changed something.
    pub(super) const fn midway(reason: String) -> Self {
        Self { reason, changed_nothing: false }
    }
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        let changed_nothing = matches!(&error, CallError::Driver(error) if error.changed_nothing());
        Self { reason: chain(&error), changed_nothing }
    }
}

#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("its runtime ended before it was ready; the console log of the sprite says why")]
    RuntimeEnded,
    #[error("its runtime could not be reached")]
    RuntimeBroken(#[source] std::io::Error),
    #[error("its runtime was not ready within {RUNTIME_DEADLINE:?}")]
    RuntimeSilent,
    #[error("nobody wants it any more")]
    Unwanted,
}

/// Makes the call. Never cancelled while the agent lives: the machine waits for its end.
pub(super) async fn perform(agent: Arc<Agent>, sprite: Sprite, transition: Transition, call: Call) -> Ended {
    let began = Instant::now();
    let driver = &*agent.driver;
    let mut control = None;
    let done: Result<(), CallError> = match call {
        Call::Start(epoch) => start(&agent, &sprite, epoch).await.map(|stream| control = stream),
        Call::Pause => driver.pause(sprite.id).await.map_err(Into::into),
        Call::Suspend => driver.suspend(sprite.id).await.map_err(Into::into),
        Call::Resume(epoch) => resume(&agent, &sprite, epoch).await.map(|stream| control = stream),
        Call::Stop => driver.stop(sprite.id, agent.config.stop_grace).await.map_err(Into::into),
        Call::Checkpoint { id, memory: false } => driver.checkpoint(sprite.id, id).await.map_err(Into::into),
        Call::Checkpoint { id, memory: true } => {
            driver.checkpoint_with_memory(sprite.id, id).await.map_err(Into::into)
        }
        Call::Restore(Restoring { checkpoint, replaced }) => {
            driver.restore(sprite.id, checkpoint, replaced).await.map_err(Into::into)
        }
        Call::Unwanted => Err(CallError::Unwanted),
        Call::Destroy => driver.destroy(sprite.id).await.map_err(Into::into),
    };
    let elapsed = began.elapsed();
    let (outcome, verb) = (if done.is_ok() { "ok" } else { "error" }, call.verb());
    agent.metrics.transitions.with_label_values(&[verb, outcome]).observe(elapsed.as_secs_f64());
    let outcome = done.map_err(Failed::from);
    match &outcome {
        Ok(()) => info!(sprite = %sprite.id, name = %sprite.name, verb, ?elapsed, "Transition done"),
        Err(Failed { reason, .. }) => {
            warn!(sprite = %sprite.id, name = %sprite.name, verb, error = reason, "Transition failed");
        }
    }
    Ended { transition, call, outcome, control }
}

/// A cold start: clears what an earlier life may have left, boots, and tells the runtime who it is. Returns
/// the stream to the runtime, if there is one.
async fn start(agent: &Agent, sprite: &Sprite, epoch: Epoch) -> Result<Option<ControlStream>, CallError> {
    let driver = &*agent.driver;
    let spec = Agent::spec(sprite);
    driver.stop(sprite.id, Duration::ZERO).await?;
    driver.prepare(&spec).await?;
    driver.start(&spec, epoch).await?;
    let ready = introduce(agent, sprite, epoch, None).await;
    if ready.is_err() {
        abandon(driver, sprite.id).await;
    }
    ready
}

/// Lets a sprite go on. One whose memory was on disk hears its new epoch, which also proves that it goes on; the
/// stream over which it does is returned. If it does not, it is stopped next, and started cold.
async fn resume(agent: &Agent, sprite: &Sprite, epoch: Epoch) -> Result<Option<ControlStream>, CallError> {
    match agent.driver.resume(sprite.id).await? {
        Resumed::FromRam => Ok(None),
        Resumed::FromDisk => introduce(agent, sprite, epoch, Some(Woken::now())).await,
    }
}

/// Tells the runtime who it is, and what it can't know if its memory comes from disk.
async fn introduce(
    agent: &Agent,
    sprite: &Sprite,
    epoch: Epoch,
    woken: Option<Woken>,
) -> Result<Option<ControlStream>, CallError> {
    // Without a runtime of ours there is nobody to tell.
    let Some(runtime) = agent.driver.endpoint(sprite.id).runtime() else { return Ok(None) };
    let configuration = Configuration {
        name: sprite.name.clone(),
        url: agent.url(sprite),
        epoch,
        environment: sprite.environment.clone(),
        session_activity: agent.config.session_activity,
        session_limits: agent.config.session_limits,
        woken,
    };
    let ready = timeout(RUNTIME_DEADLINE, configure(&runtime, configuration));
    ready.await.unwrap_or(Err(CallError::RuntimeSilent)).map(Some)
}

/// After a failed start nothing may run.
async fn abandon(driver: &dyn Driver, id: SpriteId) {
    if let Err(error) = driver.stop(id, Duration::ZERO).await {
        // The next start begins with a stop, too.
        warn!(sprite = %id, error = chain(&error), "Could not stop what failed to start");
    }
}

async fn configure(runtime: &Address, configuration: Configuration) -> Result<ControlStream, CallError> {
    let mut control = open_control(runtime).await.map_err(CallError::RuntimeBroken)?;
    let wakes = configuration.woken.is_some();
    // It need not be asked first whether it listens.
    control.send(&Command::Configure(configuration)).await.map_err(CallError::RuntimeBroken)?;
    let mut next = async || match control.next().await {
        Ok(Some(event)) => Ok(event),
        Ok(None) => Err(CallError::RuntimeEnded),
        Err(error) => Err(CallError::RuntimeBroken(error)),
    };
    while !matches!(next().await?, Event::Hello { .. }) {}
    if wakes {
        // It is alive, and hears who it is before it hears anybody else; its programs were ready long ago.
        return Ok(control);
    }
    loop {
        match control.next().await {
            Ok(Some(Event::Ready)) => return Ok(control),
            Ok(Some(
                Event::Hello { .. }
                | Event::PortOpened(_)
                | Event::PortClosed(_)
                | Event::ActivityBegun(_)
                | Event::ActivityEnded { .. }
                | Event::Touched
                | Event::Asked { .. }
                | Event::Pong,
            )) => {}
            Ok(None) => return Err(CallError::RuntimeEnded),
            Err(error) => return Err(CallError::RuntimeBroken(error)),
        }
    }
}
