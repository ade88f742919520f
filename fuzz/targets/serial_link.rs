//! What the other end of a virtual machine's serial port sends: a guest may send anything, and a host that was killed
//! leaves anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use link::{Decoder, Heard, encode_ack};

const NONCE: link::Nonce = [7; 16];

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let piece = usize::from(*first) + 1;
    let mut host = Decoder::host(NONCE);
    host.push(&encode_ack(&NONCE));
    assert_eq!(host.hear(), Ok(Some(Heard::Acknowledged)));
    let mut guest = Decoder::guest();
    let mut broken = false;
    for part in bytes.chunks(piece) {
        if !broken {
            host.push(part);
        }
        while !broken {
            match host.hear() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(link::Broken) => broken = true,
            }
        }
        guest.push(part);
        while guest.hear().expect("a guest is never broken").is_some() {}
    }
});
