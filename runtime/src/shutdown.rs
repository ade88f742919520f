//! The end of a sprite: services in reverse order and commands, then everybody else, then the runtime itself.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};

use crate::{reap::Reaper, state::Runtime};

/// Everybody but PID 1, who says it.
const EVERYBODY: Pid = Pid::from_raw(-1);
/// How long the killed may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// Where the end is asked for.
#[derive(Debug, Default)]
pub(crate) struct Shutdown {
    grace: Mutex<Option<Duration>>,
    asked: Notify,
}

impl Shutdown {
    /// Asks for the end; processes have `grace` between TERM and KILL. A second call changes nothing.
    pub(crate) fn begin(&self, grace: Duration) {
        self.grace.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(grace);
        self.asked.notify_one();
    }

    /// Resolves with the grace when the end has been asked for.
    pub(crate) async fn asked(&self) -> Duration {
        loop {
            let grace = *self.grace.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(grace) = grace {
                return grace;
            }
            self.asked.notified().await;
        }
    }
}

/// Ends everything within `grace`.
///
/// `is_first` says whether we are PID 1: only then is "everybody" the sprite and not the host.
pub(crate) async fn end(runtime: &Arc<Runtime>, reaper: &Reaper, grace: Duration, is_first: bool) {
    if !runtime.begin_to_end() {
        return;
    }
    info!(?grace, "Shutting down");
    let deadline = Instant::now() + grace;
    tokio::join!(runtime.services.shut_down(grace), runtime.sessions.shut_down(grace));
    if !is_first {
        return;
    }
    signal_everybody(Signal::SIGTERM);
    signal_everybody(Signal::SIGCONT);
    // Every orphan is our child, so when no child is left nobody is.
    if timeout_at(deadline, reaper.childless()).await.is_ok() {
        return;
    }
    warn!("Some processes did not end in time and are killed");
    signal_everybody(Signal::SIGKILL);
    // Whoever is still there then goes with us: the kernel ends a pid namespace with its PID 1.
    let _they_go_with_us = timeout_at(Instant::now() + KILL_LIMIT, reaper.childless()).await;
}

fn signal_everybody(signal: Signal) {
    match kill(EVERYBODY, signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => warn!(%error, %signal, "Could not signal the sprite's processes"),
    }
}
