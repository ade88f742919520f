//! The messages of tunnels and watches.
#![no_main]

use frames::{
    FileWatchMessage, FileWatchRequest, PortWatchMessage, TunnelMessage, TunnelReply, TunnelRequest,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = TunnelRequest::decode(bytes) {
        assert!(request.port > 0 && request.host.len() <= frames::tunnel::MAX_HOST_BYTES);
        assert_eq!(TunnelRequest::decode(request.encode().as_bytes()), Ok(request));
    }
    let _possible = (TunnelReply::decode(bytes), TunnelMessage::decode(bytes));
    let _possible = (FileWatchRequest::decode(bytes), FileWatchMessage::decode(bytes));
    let _possible = PortWatchMessage::decode(bytes);
});
