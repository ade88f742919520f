//! The one way out: readiness goes false, listeners close, holds are refused with `Retry-After`, what is
//! under way may finish within the grace, then the rest is closed and we leave.

use std::time::Duration;

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

use crate::edge::{Edge, respond::EdgeError};

/// How often we look whether everything has finished.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long closed connections may take to be let go of, and leases to be given back.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

/// The signals that ask us to end.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// # Errors
    /// If signals can't be caught.
    pub(crate) fn catch() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Ends everything in order. Returns when nothing is open any more, at the latest a little after the grace,
/// which another signal ends.
pub(crate) async fn run(edge: &Edge, draining: &watch::Sender<bool>, signals: &mut Signals) {
    let grace = edge.settings.timing.drain_grace;
    info!(connections = edge.ledger.len(), held = edge.leases.held(), ?grace, "Draining");
    draining.send_replace(true);
    edge.ledger.close_idle();
    edge.leases.fail_waiting(&EdgeError::Draining);
    let finished = tokio::select! {
        finished = within(grace, || edge.ledger.len() == 0) => finished,
        signal = signals.next() => {
            info!(signal, "Asked again: not waiting any longer");
            false
        }
    };
    if finished {
        info!("Everything has finished");
    } else {
        let closed = edge.ledger.close_all();
        warn!(closed, "What was still open is closed");
    }
    // What does not even end now is dropped with the process, and expires at the agent.
    within(LAST_MOMENTS, || edge.ledger.len() == 0 && edge.leases.count().0 == 0).await;
}

async fn within(limit: Duration, done: impl Fn() -> bool) -> bool {
    let waiting = async {
        while !done() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(limit, waiting).await.is_ok()
}
