//! What a sprite's runtime says to its host, and the host to it: a runtime may lie.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runtime_api::{Answer, Command, Event, Request};

fuzz_target!(|bytes: &[u8]| {
    let _possible = (serde_json::from_slice::<Answer>(bytes), serde_json::from_slice::<Event>(bytes));
    let _possible = (serde_json::from_slice::<Request>(bytes), serde_json::from_slice::<Command>(bytes));
});
