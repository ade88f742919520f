//! Collects the dead.
//!
//! PID 1 inherits every orphan of the sprite and must wait for it. It also starts processes of its own
//! and wants to know how they ended. Two that wait would steal from each other, so there is one: this
//! module waits for everybody and tells those who asked.

use std::{
    collections::HashMap,
    io,
    os::unix::process::ExitStatusExt as _,
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
};

use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, WaitStatus, waitpid},
    unistd::Pid,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, oneshot},
};
use tracing::warn;

/// Tells how processes ended that this program started.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reaper {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    watched: Mutex<HashMap<i32, oneshot::Sender<ExitStatus>>>,
    /// No child is left, at the time of the notification.
    childless: Notify,
}

impl Reaper {
    /// Starts a process with `spawn` and resolves the receiver when it has ended.
    ///
    /// The two are one step, with the table locked, so that a process that ends at once is not
    /// collected before anybody asked for it.
    ///
    /// # Errors
    /// Those of `spawn`.
    pub(crate) fn spawn(
        &self,
        spawn: impl FnOnce() -> io::Result<std::process::Child>,
    ) -> io::Result<(std::process::Child, oneshot::Receiver<ExitStatus>)> {
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let child = spawn()?;
        let (sender, receiver) = oneshot::channel();
        watched.insert(child.id().cast_signed(), sender);
        Ok((child, receiver))
    }

    /// Collects for ever.
    ///
    /// # Errors
    /// Signals can't be listened for.
    pub(crate) async fn run(self) -> io::Result<()> {
        let mut died = signal(SignalKind::child())?;
        loop {
            self.collect();
            // Signals are not counted: one may stand for many.
            died.recv().await;
        }
    }

    /// Resolves when the last child has been collected. Cancel safe.
    pub(crate) async fn childless(&self) {
        let notified = self.shared.childless.notified();
        // The last one may have gone before we began to listen.
        if self.collect() {
            return;
        }
        notified.await;
    }

    /// Collects all who are dead now; `true` if no child is left.
    fn collect(&self) -> bool {
        let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::from_raw((code & 0xff) << 8)),
                Ok(WaitStatus::Signaled(pid, signal, core)) => {
                    (pid, ExitStatus::from_raw(signal as i32 | if core { 0x80 } else { 0 }))
                }
                Ok(WaitStatus::StillAlive) => return false,
                Err(Errno::ECHILD) => {
                    self.shared.childless.notify_waiters();
                    return true;
                }
                // Reports of processes that stopped or go on are not asked for.
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    warn!(%error, "Could not collect an ended process");
                    return false;
                }
            };
            if let Some(watcher) = watched.remove(&Pid::as_raw(pid)) {
                // Whoever asked may have lost interest.
                let _uninterested = watcher.send(status);
            }
        }
    }
}
