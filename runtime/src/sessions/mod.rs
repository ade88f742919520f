//! Sessions: commands that clients run, watch, leave and come back to.
//!
//! Every command is one, also those that end with their client. One task runs each, from spawn to last words;
//! what it decides is in [`machine`], what it has written is in [`output`].

mod gather;
mod machine;
mod output;
mod rate;
mod session;
mod stdin;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use frames::{SessionEntry, Signal};
use ids::Moment;
use runtime_api::{SessionActivity, SessionLimits};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use self::session::Work;
pub(crate) use self::session::{Attachment, Next, Session};
use crate::{
    activities::Activities,
    exec::{self, Command, Tap},
    reap::Reaper,
};

/// How long a command without a terminal may run without its client, unless the client says otherwise.
pub(crate) const DEFAULT_LIMIT: Duration = Duration::from_secs(10);
/// Sessions whose end is remembered, so that asking for it once more is no mistake.
const MAX_REMEMBERED: usize = 1024;
/// Ended commands whose pipes are read on because something that they left behind writes there. Beyond it
/// writers get a SIGPIPE.
const MAX_LINGERING: usize = 64;
/// What a killed session may need to be gone.
pub(crate) const KILL_MARGIN: Duration = Duration::from_secs(2);

/// Why a command is not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("{0} commands run in this sprite already; end some, or wait for them")]
    TooMany(usize),
    #[error("the sprite is shutting down")]
    ShuttingDown,
}

/// What an id stands for.
#[derive(Debug)]
pub(crate) enum Known {
    /// A session.
    Live(Arc<Session>),
    /// One that has ended with this code.
    Ended(u8),
    /// None that anybody remembers.
    Unknown,
}

/// What sessions need to know of the sprite.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// Of every process.
    pub(crate) environment: BTreeMap<String, String>,
    /// What a session without a client counts for.
    pub(crate) session_activity: SessionActivity,
    /// How many there may be, and how much each may keep.
    pub(crate) limits: SessionLimits,
}

/// All sessions of the sprite.
#[derive(Clone, Debug)]
pub(crate) struct Sessions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    reaper: Reaper,
    activities: Activities,
    settings: Mutex<Settings>,
    state: Mutex<State>,
    next: AtomicU64,
    origin: Instant,
    tasks: TaskTracker,
    lingering: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    live: BTreeMap<u64, Arc<Session>>,
    ended: VecDeque<(u64, u8)>,
    ending: bool,
}

impl Sessions {
    /// `first` is the number of the first session. Numbers should not come again after a boot, or an old id
    /// would lead to another session.
    pub(crate) fn new(
        reaper: Reaper,
        activities: Activities,
        environment: BTreeMap<String, String>,
        first: u32,
    ) -> Self {
        Self(Arc::new(Shared {
            reaper,
            activities,
            settings: Mutex::new(Settings { environment, ..Settings::default() }),
            state: Mutex::default(),
            next: AtomicU64::new(u64::from(first)),
            origin: Instant::now(),
            tasks: TaskTracker::new(),
            lingering: Semaphore::new(MAX_LINGERING),
        }))
    }

    /// Takes what has changed of the sprite.
    pub(crate) fn configure(&self, settings: Settings) {
        *self.0.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        let live: Vec<_> = self.state().live.values().cloned().collect();
        for session in live {
            session.reconsider();
        }
    }

    /// What a command finds in its environment before its own is added.
    pub(crate) fn environment(&self) -> BTreeMap<String, String> {
        self.0.settings.lock().unwrap_or_else(PoisonError::into_inner).environment.clone()
    }

    /// Runs a command, and attaches its client. `limit` is how long it may be without one. A command that
    /// can't be run says so as its output.
    ///
    /// # Errors
    /// See [`StartError`].
    pub(crate) fn start(&self, command: &Command, limit: Option<Duration>) -> Result<Attachment, StartError> {
        {
            let state = self.state();
            if state.ending {
                return Err(StartError::ShuttingDown);
            }
            if state.live.len() >= self.limits().max {
                return Err(StartError::TooMany(state.live.len()));
            }
        }
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let spawned = match exec::spawn(&self.0.reaper, command) {
            Ok(spawned) => spawned,
            Err(unfit) => {
                debug!(
                    session = number,
                    command = command.line(),
                    reason = unfit.message,
                    "Command can't be run"
                );
                return Ok(Arc::new(Session::stillborn(self, number, command, &unfit)).attach());
            }
        };
        debug!(session = number, pid = spawned.pid, command = command.line(), "Command is started");
        let (stdin, queue) = stdin::channel();
        let stdin = spawned.feed.as_ref().map(|_| stdin);
        let session = Arc::new(Session::new(self, number, command, &spawned, stdin, limit));
        let attachment = session.attach();
        self.state().live.insert(number, Arc::clone(&session));
        self.0.tasks.spawn(session.run(Work { spawned, queue }));
        Ok(attachment)
    }

    /// What an id stands for.
    pub(crate) fn find(&self, id: &str) -> Known {
        // Another spelling of the same number would be another id.
        let Some(number) = id.parse::<u64>().ok().filter(|number| number.to_string() == id) else {
            return Known::Unknown;
        };
        let state = self.state();
        match state.live.get(&number) {
            Some(session) => Known::Live(Arc::clone(session)),
            None => state
                .ended
                .iter()
                .find(|(ended, _)| *ended == number)
                .map_or(Known::Unknown, |(_, code)| Known::Ended(*code)),
        }
    }

    /// All that run, the oldest first.
    pub(crate) fn list(&self) -> Vec<SessionEntry> {
        let live: Vec<_> = self.state().live.values().cloned().collect();
        live.iter().map(|session| session.entry()).collect()
    }

    /// Ends all within `grace`, and begins no more.
    pub(crate) async fn shut_down(&self, grace: Duration) {
        let live: Vec<_> = {
            let mut state = self.state();
            state.ending = true;
            state.live.values().cloned().collect()
        };
        if !live.is_empty() {
            info!(count = live.len(), "Commands are told to end");
        }
        for session in &live {
            session.ask_to_end(Signal::TERM, Some(grace));
            // A shell with a terminal ignores TERM; that its terminal is gone it believes.
            if session.has_terminal() {
                session.ask_to_end(Signal::HUP, None);
            }
        }
        let ended = async {
            for session in &live {
                session.exited().await;
            }
        };
        let _killed_with_the_sprite = timeout(grace + KILL_MARGIN, ended).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn activities(&self) -> &Activities {
        &self.0.activities
    }

    fn session_activity(&self) -> SessionActivity {
        self.0.settings.lock().unwrap_or_else(PoisonError::into_inner).session_activity
    }

    fn limits(&self) -> SessionLimits {
        self.0.settings.lock().unwrap_or_else(PoisonError::into_inner).limits
    }

    fn scrollback(&self) -> usize {
        self.limits().scrollback_bytes.max(SessionLimits::LEAST_SCROLLBACK_BYTES)
    }

    fn now(&self) -> Moment {
        Moment::from_origin(self.0.origin.elapsed())
    }

    async fn sleep_until(&self, moment: Option<Moment>) {
        session::sleep_until_moment(self.0.origin, moment).await;
    }

    fn forget(&self, session: &Session, code: u8) {
        debug!(session = session.number(), code, "Command has ended");
        let mut state = self.state();
        state.live.remove(&session.number());
        if state.ended.len() == MAX_REMEMBERED {
            state.ended.pop_front();
        }
        state.ended.push_back((session.number(), code));
    }

    /// Reads on what is left of ended commands, and drops it, so that a server that one of them started in the
    /// background can go on writing.
    async fn linger(&self, pipes: Vec<Tap>) {
        let Ok(_place) = self.0.lingering.try_acquire() else { return };
        let drop_all = pipes.iter().map(|pipe| async move {
            let mut dropped = [0; 2048];
            while pipe.readable().await.is_ok() {
                match pipe.try_read(&mut dropped) {
                    Ok(0) => return,
                    Ok(_) => tokio::task::yield_now().await,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        });
        futures_util::future::join_all(drop_all).await;
    }
}
