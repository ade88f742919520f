//! The edge: from an accepted connection to a request at a sprite, or to an error that helps.
//!
//! ```text
//!  listen ─▶ gate ─▶ [head: judged, cut] ─▶ admit ─▶ exchange (as it stands) ─▶ sprite, tunnel
//!               │                             │ route, authorize, hold
//!               │                             └─────▶ Pingora ─▶ proxy (phases) ─▶ sprite, api, refusal
//!               └─ h2 ─▶ admit ─▶ Pingora ─▶ proxy ─▶ sprite, api, refusal
//! ```
//!
//! Requests are held before anything else is entered: a held one costs a small task and a small buffer. An HTTP/1.1 request is relayed as it stands; Pingora serves what has to be translated (HTTP/2,
//! HTTP/1.0, gRPC) and what is answered here. All go through one `admit`.

mod access;
pub(crate) mod admit;
pub(crate) mod answering;
mod attempt;
mod chunks;
pub(crate) mod ctx;
mod exchange;
mod gate;
mod h2;
mod head;
pub(crate) mod headers;
pub(crate) mod listen;
mod proxied;
pub(crate) mod proxy;
mod relay;
mod request;
pub(crate) mod request_id;
pub(crate) mod respond;
mod tracked;
mod transport;
mod tunnel;
mod wire;

use std::sync::Arc;

use agent_api::client::AgentClient;
use tokio::sync::watch;

use crate::{config::Settings, leases::Leases, ledger::Ledger, metrics::Metrics, routes::RouteTable};

/// What every request may look at.
#[derive(Debug)]
pub(crate) struct Edge {
    pub(crate) settings: Settings,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) agent: AgentClient,
    pub(crate) metrics: Arc<Metrics>,
    /// True from the moment we are asked to end.
    pub(crate) draining: watch::Receiver<bool>,
}

impl Edge {
    pub(crate) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// The public URL of a sprite.
    pub(crate) fn url(&self, sprite: &agent_api::Sprite) -> String {
        let public = &self.settings.public;
        let host = public.zone.host(&sprite.name, &sprite.url_suffix, None);
        match public.port {
            None => format!("{}://{host}", public.scheme.as_str()),
            Some(port) => format!("{}://{host}:{port}", public.scheme.as_str()),
        }
    }
}
