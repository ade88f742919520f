//! Chunked bodies: where one ends does not depend on how its bytes arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../gateway/src/edge/chunks.rs"]
mod chunks;

use chunks::{Chunks, Sender};

fuzz_target!(|input: (bool, u8, &[u8])| {
    let (client, step, bytes) = input;
    let new = || Chunks::new(if client { Sender::Client } else { Sender::Server });
    let mut whole = new();
    let at_once = whole.take(bytes);
    if let Ok(taken) = at_once {
        assert!(taken == bytes.len() || whole.is_done());
    }
    let mut parts = new();
    let mut taken = Ok(0);
    for part in bytes.chunks(usize::from(step).max(1)) {
        taken = match (taken, parts.take(part)) {
            (Ok(before), Ok(here)) => Ok(before + here),
            (_, Err(malformed)) => Err(malformed),
            (Err(malformed), _) => Err(malformed),
        };
        if taken.is_err() || parts.is_done() {
            break;
        }
    }
    assert_eq!(taken, at_once);
});
