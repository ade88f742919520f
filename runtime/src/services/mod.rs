//! Services: programs that run for as long as the sprite is awake.
//!
//! One task, the [`Actor`], owns all of them. Others send it [`Ask`]s through a [`Services`] handle,
//! read what it publishes, and listen to the [`Notice`]s of one service.

mod actor;
mod definitions;
mod log;
mod order;
mod process;
mod supervisor;
mod view;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ids::ServiceName;
use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub(crate) use self::{
    actor::{Actor, sentence},
    definitions::{ChangeError, Definition},
    log::{Line, tail},
    process::HOME,
    supervisor::{Ended, Failure, State},
    view::{View, Views, web},
};

/// How long a service has between TERM and KILL unless somebody says otherwise.
pub(crate) const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// Questions that wait for the actor. It answers in microseconds.
const MAX_WAITING: usize = 64;

/// Something that happened to a service, for those who listen.
#[derive(Clone, Debug)]
pub(crate) enum Notice {
    /// Its process was spawned.
    Started,
    /// It wrote a line.
    Output(Line),
    /// It ended, and nobody had asked it to.
    Exited(Ended),
    /// It could not be spawned.
    NotSpawned(String),
    /// It was told to end.
    Stopping,
    /// It ended, as it was told; it may have had no process, only a restart ahead.
    Stopped(Option<Ended>),
}

/// Why a question was not answered with yes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("service {0:?} is not running")]
    NotRunning(ServiceName),
    #[error("the sprite is shutting down")]
    ShuttingDown,
}

/// A question to the actor. Each is answered as soon as it has been begun; [`Notice`]s tell the rest.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Start all that are not stopped by hand: the sprite has booted and been configured.
    Boot { environment: BTreeMap<String, String> },
    /// Later processes get this environment.
    Environment { environment: BTreeMap<String, String> },
    /// Create or replace, and start.
    Put { name: ServiceName, definition: Box<Definition>, reply: Reply },
    /// Stop and forget.
    Delete { name: ServiceName, reply: Reply },
    /// Start, with all that it needs.
    Start { name: ServiceName, reply: Reply },
    /// Only listen.
    Listen { name: ServiceName, reply: Reply },
    /// A request wants it: start it unless it runs, is about to, or was stopped by hand.
    Want { name: ServiceName },
    /// Stop, and stay so.
    Stop { name: ServiceName, grace: Duration, reply: Reply },
    /// Stop if it runs, then start.
    Restart { name: ServiceName, reply: Reply },
    /// Send its process group a signal.
    Signal { name: ServiceName, signal: Signal, reply: Reply },
    /// Stop everything, those first that others don't need; answered when all have ended.
    Shutdown { grace: Duration, reply: oneshot::Sender<()> },
}

/// Where an answer goes: what the service has to say from now on, or why not.
pub(crate) type Reply = oneshot::Sender<Result<broadcast::Receiver<Notice>, AskError>>;

/// A handle to the actor.
#[derive(Clone, Debug)]
pub(crate) struct Services {
    asks: mpsc::Sender<Ask>,
    views: watch::Receiver<Views>,
    logs: Arc<Path>,
}

impl Services {
    /// Asks and waits for the answer.
    pub(crate) async fn ask(
        &self,
        ask: impl FnOnce(Reply) -> Ask,
    ) -> Result<broadcast::Receiver<Notice>, AskError> {
        let (reply, answer) = oneshot::channel();
        // The actor only leaves with the sprite.
        self.asks.send(ask(reply)).await.map_err(|_| AskError::ShuttingDown)?;
        answer.await.map_err(|_| AskError::ShuttingDown)?
    }

    /// Tells something that has no answer.
    pub(crate) async fn tell(&self, ask: Ask) {
        // As above; then it does not matter any more.
        let _leaving = self.asks.send(ask).await;
    }

    /// Stops everything within `grace`.
    pub(crate) async fn shut_down(&self, grace: Duration) {
        let (reply, done) = oneshot::channel();
        self.tell(Ask::Shutdown { grace, reply }).await;
        let _gone = done.await;
    }

    /// All services as they are now.
    pub(crate) fn views(&self) -> Views {
        Arc::clone(&self.views.borrow())
    }

    /// Changes of [`views`](Self::views) from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<Views> {
        let mut views = self.views.clone();
        views.mark_unchanged();
        views
    }

    /// The log file of a service.
    pub(crate) fn log_path(&self, name: &ServiceName) -> PathBuf {
        log::path_of(&self.logs, name)
    }
}

/// The time of a moment that lies `after` from now.
fn in_future(after: Duration) -> Timestamp {
    Timestamp::now().saturating_add(after).unwrap_or(Timestamp::MAX)
}
