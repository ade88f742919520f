//! What is known of one request, from its head to its line in the access log.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    admit::{Admission, Forward, Prepared},
    respond::EdgeError,
};
use crate::{
    ledger::Conn,
    metrics::Class,
    upstream::{Busy, Dialer},
};

/// Dropped in every case, panics included: what it holds ends with the request.
#[derive(Debug)]
pub(crate) struct RequestCtx {
    pub(crate) conn: Option<Arc<Conn>>,
    pub(crate) request_id: String,
    pub(crate) wants_page: bool,
    pub(crate) wants_timing: bool,
    pub(crate) class: Class,
    pub(crate) started: Instant,
    pub(crate) auth_took: Duration,
    pub(crate) hold_took: Duration,
    pub(crate) connect_took: Option<Duration>,
    pub(crate) first_byte: Option<Duration>,
    pub(crate) forward: Option<Box<Forward>>,
    pub(crate) attempt: Option<UpstreamTry>,
    pub(crate) tries: u32,
    /// What the client was, or is to be, told.
    pub(crate) error: Option<EdgeError>,
    /// The client left before it could be told anything.
    pub(crate) abandoned: bool,
    pub(crate) status: u16,
}

/// One try to reach the sprite.
#[derive(Debug)]
pub(crate) struct UpstreamTry {
    pub(crate) dialer: Arc<Dialer>,
    pub(crate) began: Instant,
    pub(crate) pool_key: u64,
    /// The connection, once there is one.
    pub(crate) busy: Option<Busy>,
}

impl RequestCtx {
    pub(crate) fn new() -> Self {
        Self {
            conn: None,
            request_id: String::new(),
            wants_page: false,
            wants_timing: false,
            class: Class::Unknown,
            started: Instant::now(),
            auth_took: Duration::ZERO,
            hold_took: Duration::ZERO,
            connect_took: None,
            first_byte: None,
            forward: None,
            attempt: None,
            tries: 0,
            error: None,
            abandoned: false,
            status: 0,
        }
    }

    /// Of a request about which everything was decided.
    pub(super) fn of(conn: Arc<Conn>, mut prepared: Prepared) -> Self {
        let forward = prepared.take_forward();
        let Prepared { request_id, wants_page, started, admission } = prepared;
        let Admission { class, auth_took, hold_took, next: _ } = admission;
        Self {
            conn: Some(conn),
            request_id,
            wants_page,
            class,
            started,
            auth_took,
            hold_took,
            forward,
            ..Self::new()
        }
    }

    /// The phases as a `Server-Timing` header has them.
    pub(crate) fn server_timing(&self) -> String {
        let ms = |took: Duration| took.as_secs_f64() * 1e3;
        let mut text = format!("auth;dur={:.3}, hold;dur={:.3}", ms(self.auth_took), ms(self.hold_took));
        if let Some(took) = self.connect_took {
            text.push_str(&format!(", connect;dur={:.3}", ms(took)));
        }
        if let Some(took) = self.first_byte {
            text.push_str(&format!(", first_byte;dur={:.3}", ms(took)));
        }
        text
    }
}
