//! The one place where this program reads a clock for its pure parts.

use std::time::Instant;

use ids::Moment;

/// A monotonic clock whose origin is the start of the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(&self) -> Moment {
        Moment::from_origin(self.origin.elapsed())
    }

    /// The moment as the runtime's timers understand it.
    pub(crate) fn instant(&self, moment: Moment) -> tokio::time::Instant {
        (self.origin + moment.since_origin()).into()
    }
}
