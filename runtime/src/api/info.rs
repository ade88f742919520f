//! `/v1/info` of the management socket: what a sprite knows of itself.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde_json::{Value, json};

use crate::{ports::to_wire, state::Runtime};

pub(super) async fn read(State(runtime): State<Arc<Runtime>>) -> Json<Value> {
    let ports: Vec<_> =
        runtime.ports.refresh().into_iter().map(|(listener, pid)| to_wire(listener, pid)).collect();
    let (name, url, epoch) = runtime.identity().unwrap_or_default();
    Json(json!({
        "name": name,
        "url": url,
        "epoch": epoch,
        "version": env!("CARGO_PKG_VERSION"),
        "ports": ports,
    }))
}
