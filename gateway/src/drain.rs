//! The one way out: readiness goes false, listeners close, holds are refused with `Retry-After`, what is
//! under way may finish within the grace, then the rest is closed and we leave.

use std::time::Duration;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tracing::{info, warn};

use crate::edge::{Edge, respond::EdgeError};

/// How often we look whether everything has finished.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long closed connections may take to be let go of, and leases to be given back.
const LAST_MOMENTS: Duration = Duration::from_secs(2);

/// Waits until we are asked to end.
///
/// # Errors
/// If signals can't be caught.
pub(crate) async fn asked() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

/// Ends everything in order. Returns when nothing is open any more, at the latest a little after the grace.
pub(crate) async fn run(edge: &Edge, draining: &watch::Sender<bool>) {
    let grace = edge.settings.timing.drain_grace;
    info!(connections = edge.ledger.len(), held = edge.leases.held(), ?grace, "Draining");
    draining.send_replace(true);
    edge.leases.fail_waiting(&EdgeError::Draining);
    if within(grace, || edge.ledger.len() == 0).await {
        info!("Everything has finished");
    } else {
        let closed = edge.ledger.close_all();
        warn!(closed, "The grace is over; what was still open is closed");
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
