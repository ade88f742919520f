//! The query of an exec, and what is in it: signals, durations, ways to kill.
#![no_main]

use frames::{ExecQuery, KillRequest, duration};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&str, &[u8])| {
    let (text, body) = input;
    if let Ok(query) = ExecQuery::decode(text) {
        assert_eq!(ExecQuery::decode(&query.encode()), Ok(query), "{text:?}");
    }
    if let Some(time) = duration::parse(text) {
        assert!(time <= duration::LONGEST);
        assert_eq!(duration::parse(&duration::format(time)), Some(time), "{text:?}");
    }
    let _possible = KillRequest::decode(text, body);
});
