//! Reaching the API: plain calls, raw streams, WebSockets.

mod api;
pub(crate) mod chunks;
mod stream;
pub(crate) mod ws;

pub(crate) use api::{Api, Body, segment};
pub(crate) use stream::Stream;
