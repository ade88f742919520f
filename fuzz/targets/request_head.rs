//! Heads of requests: what is sent on is judged again as the same request.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../gateway/src/edge/head.rs"]
#[expect(dead_code, reason = "a part of the gateway")]
mod head;

// The few words of its neighbours that it asks for; any answer will do.
mod headers {
    pub(crate) fn is_spoken_for(name: &str) -> bool {
        name.starts_with("x-forwarded") || name.contains('_')
    }
}
mod answering {
    pub(crate) const TIMING_WANTED: &str = "sprite-timing";
}
mod request {
    pub(crate) fn is_grpc_type(content_type: &[u8]) -> bool {
        content_type.starts_with(b"application/grpc")
    }
}

use head::{Framing, parse};

const MAX_BYTES: usize = 32 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(judged)) = parse(bytes, MAX_BYTES) else { return };
    // What follows the head is the body's, or the next request's.
    let head = bytes[..judged.length].to_vec();
    let mut request = judged.own(head);
    let (framing, method, host) = (request.framing, request.method.clone(), request.host().to_owned());
    let target = request.target().into_owned();
    let translated = request.needs_translation;
    let mut sent = request.take_wire(None);
    // An upgrade and what is translated are written by other hands.
    if framing == Framing::Upgrade || translated {
        return;
    }
    sent.extend_from_slice(b"\r\n");
    let again = match parse(&sent, 2 * MAX_BYTES) {
        Ok(Some(again)) => again.own(sent.clone()),
        other => panic!("{:?} is sent on as {:?}: {other:?}", bytes.escape_ascii(), sent.escape_ascii()),
    };
    assert_eq!(again.framing, framing);
    assert_eq!(again.method, method);
    assert_eq!(again.host(), host);
    assert_eq!(again.target(), target.as_str());
});
