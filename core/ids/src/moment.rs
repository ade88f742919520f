//! A point on a monotonic clock that the caller owns.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

/// A point in time on the caller's monotonic clock, in microseconds since an origin of its choice.
///
/// Core crates take it as an argument instead of reading a clock, so that a test can drive them
/// through hours in a millisecond. Two moments may only be compared when they come from one clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(u64);

impl Moment {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);

    /// The moment `since_origin` after the origin; saturates after some 584,000 years.
    #[must_use]
    pub fn from_origin(since_origin: Duration) -> Self {
        Self(u64::try_from(since_origin.as_micros()).unwrap_or(u64::MAX))
    }

    /// How long after the origin this moment is.
    #[must_use]
    pub const fn since_origin(self) -> Duration {
        Duration::from_micros(self.0)
    }

    /// How long after `earlier` this moment is; zero if it is not after it.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The moment `ago` before this one, or the origin if that would lie before it.
    #[must_use]
    pub fn saturating_before(self, ago: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Moment {
    type Output = Duration;
    /// The same as [`Moment::saturating_since`].
    fn sub(self, earlier: Self) -> Duration {
        self.saturating_since(earlier)
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t+{:?}", self.since_origin())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        let late = Moment::from_origin(Duration::MAX);
        assert_eq!(late + Duration::from_secs(1), late);
        assert_eq!(Moment::ZERO - late, Duration::ZERO);
        assert_eq!(Moment::ZERO.saturating_before(Duration::from_secs(1)), Moment::ZERO);
    }
}
