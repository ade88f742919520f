//! The Host header: what is understood is written back as the same sprite and port.
#![no_main]

use libfuzzer_sys::fuzz_target;
use route::{Destination, Zone};

fuzz_target!(|text: &str| {
    let Ok(zone) = Zone::new("sprites.example") else { return };
    let Ok(Destination::Sprite(host)) = zone.parse(text) else { return };
    let (Ok(name), Ok(suffix)) = (host.name().parse(), host.suffix().parse()) else {
        panic!("{text:?} was understood as names that are none");
    };
    let canonical = zone.host(&name, &suffix, host.port());
    match zone.parse(&canonical) {
        Ok(Destination::Sprite(again)) => {
            assert_eq!((again.key(), again.port()), (host.key(), host.port()), "{text:?}");
        }
        other => panic!("{text:?} was written as {canonical:?}, which is {other:?}"),
    }
});
