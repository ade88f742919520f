//! One try after another to reach a sprite. As long as nothing of the request has been sent, any number of
//! tries is safe (promise 1).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use runtime_api::{DialError, DialRequest, RefusalCode, Target};
use tracing::debug;

use super::{Edge, ctx::RequestCtx, respond::EdgeError};
use crate::{dial::DialFailure, edge::admit::Forward};

/// Tries to reach a sprite that is awake but does not answer; with growing pauses some 5 s in all.
pub(super) const MAX_TRIES: u32 = 14;
/// The pause before the second try.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What is asked of the sprite's runtime.
pub(super) fn dial_request(edge: &Edge, forward: &Forward, request_id: &str) -> DialRequest {
    let wait_ms = match forward.target {
        Target::Web | Target::Port(_) => {
            u64::try_from(edge.settings.timing.port_wait.as_millis()).unwrap_or(u64::MAX)
        }
        Target::Api => 0,
    };
    DialRequest { target: forward.target, wait_ms, handoff: true, request_id: Some(request_id.to_owned()) }
}

/// What a failed dial means for the client, and whether another try may help.
pub(super) fn classify(failure: DialFailure) -> (EdgeError, bool) {
    match failure {
        DialFailure::Runtime(DialError::Refused(refusal)) => {
            let asleep = refusal.code == RefusalCode::ShuttingDown;
            (EdgeError::DialRefused(refusal), asleep)
        }
        DialFailure::Runtime(failure @ (DialError::Unreachable(_) | DialError::TimedOut(_))) => {
            (EdgeError::SpriteUnreachable(chain(&failure)), true)
        }
        DialFailure::Runtime(failure @ DialError::Protocol(_)) => {
            (EdgeError::SpriteUnreachable(chain(&failure)), false)
        }
        DialFailure::NoRuntime => (EdgeError::NoRuntime, false),
    }
}

/// Before another try: the same lease after a pause, or a new one if it has ended (T6, T24).
///
/// # Errors
/// The sprite can't be had again, or the client has left: then `ctx.abandoned` says so.
pub(super) async fn again(ctx: &mut RequestCtx) -> Result<(), EdgeError> {
    let Some((forward, conn)) = ctx.forward.as_mut().zip(ctx.conn.clone()) else {
        return Err(EdgeError::Internal("a request without a sprite".into()));
    };
    let slot = forward.lease.slot().clone();
    let current = slot.published().is_some_and(|now| Arc::ptr_eq(&now, forward.lease.upstream()));
    if current {
        let pause = FIRST_PAUSE.saturating_mul(1 << ctx.tries.min(10)).min(LONGEST_PAUSE);
        tokio::time::sleep(pause).await;
        return Ok(());
    }
    debug!(request_id = ctx.request_id, "The lease ended before the request was sent; acquiring again");
    let waited = Instant::now();
    let lease = tokio::select! {
        lease = slot.acquire(&forward.allowed, &ctx.request_id) => lease?,
        () = conn.left() => {
            ctx.abandoned = true;
            return Err(EdgeError::SpriteSlept);
        }
    };
    forward.lease = lease;
    ctx.hold_took += waited.elapsed();
    Ok(())
}

/// An error with its causes, for the log.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
