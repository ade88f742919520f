//! Frames and messages of an exec: what is understood survives being written again.
#![no_main]

use frames::{ClientMessage, FromClient, FromServer, KillEvent, ServerMessage, SessionList};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = FromClient::decode(bytes) {
        assert_eq!(FromClient::decode(&frame.encode()), Ok(frame));
    }
    if let Ok(frame) = FromServer::decode(bytes) {
        assert_eq!(FromServer::decode(&frame.encode()), Ok(frame));
    }
    if let Ok(message) = ClientMessage::decode(bytes) {
        let _possible = message.asked_signal();
        assert_eq!(ClientMessage::decode(message.encode().as_bytes()), Ok(message));
    }
    if let Ok(message) = ServerMessage::decode(bytes) {
        // Lenient reading may make it longer than what is read.
        if message.encode().len() <= frames::MAX_TEXT_BYTES {
            assert_eq!(ServerMessage::decode(message.encode().as_bytes()), Ok(message));
        }
    }
    let _possible = (SessionList::decode(bytes), KillEvent::decode(bytes));
});
