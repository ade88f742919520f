//! Authorization headers: whatever is taken for our token is also known to be ours, and so kept from sprites.
#![no_main]

use auth::Credential;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|lines: Vec<&[u8]>| {
    if let Credential::Ours(_) = Credential::of(lines.iter().copied()) {
        assert!(lines.iter().any(|line| Credential::is_ours(line)));
    }
});
