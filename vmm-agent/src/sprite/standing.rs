//! What a sprite has of its host's RAM, for others to read without asking its task.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use ids::Moment;
use lifecycle::Residence;

const NONE: u64 = 0;
const IN_USE: u64 = 1;
/// Beyond these two, a number is twice a moment in microseconds, and one more for one that stands still.
const FIRST_MOMENT: u64 = 2;

/// Written by a sprite's task, read by whoever looks after the host's memory.
#[derive(Debug, Default)]
pub(crate) struct Standing(AtomicU64);

impl Standing {
    pub(super) fn set(&self, residence: Residence) {
        let number = match residence {
            Residence::None => NONE,
            Residence::InUse => IN_USE,
            Residence::Idle(since) => moment(since),
            Residence::Asleep(since) => moment(since) + 1,
        };
        self.0.store(number, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Residence {
        match self.0.load(Ordering::Relaxed) {
            NONE => Residence::None,
            IN_USE => Residence::InUse,
            number => {
                let since = Moment::from_origin(Duration::from_micros((number - FIRST_MOMENT) / 2));
                if number % 2 == 0 { Residence::Idle(since) } else { Residence::Asleep(since) }
            }
        }
    }
}

/// An even number: that moment's, if it is within the next 290,000 years.
fn moment(since: Moment) -> u64 {
    let micros = u64::try_from(since.since_origin().as_micros()).unwrap_or(u64::MAX);
    micros.min(u64::MAX / 2 - FIRST_MOMENT) * 2 + FIRST_MOMENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let standing = Standing::default();
        assert_eq!(standing.get(), Residence::None);
        let moments = [0, 1, 2, 123_456_789].map(|micros| Moment::from_origin(Duration::from_micros(micros)));
        for residence in [Residence::InUse, Residence::None]
            .into_iter()
            .chain(moments.map(Residence::Idle))
            .chain(moments.map(Residence::Asleep))
        {
            standing.set(residence);
            assert_eq!(standing.get(), residence);
        }
    }
}
