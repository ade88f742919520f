//! How fast a session writes of late.

use std::time::Duration;

use ids::Moment;

/// What happened this long ago counts a third of what happens now.
const MEMORY: Duration = Duration::from_secs(5);

/// A rate that fades.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    per_second: f64,
    at: Option<Moment>,
}

impl Rate {
    /// So many bytes were written now.
    pub(super) fn add(&mut self, bytes: usize, now: Moment) {
        self.per_second = self.at(now) + bytes as f64 / MEMORY.as_secs_f64();
        self.at = Some(now);
    }

    /// Bytes per second as seen from `now`.
    pub(super) fn at(&self, now: Moment) -> f64 {
        let Some(at) = self.at else { return 0.0 };
        let faded = self.per_second * (-(now - at).as_secs_f64() / MEMORY.as_secs_f64()).exp();
        // What is left of a whisper is silence.
        if faded < 0.5 { 0.0 } else { (faded * 10.0).round() / 10.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_to_what_is_written_and_fades_to_nothing() {
        let at = |millis| Moment::from_origin(Duration::from_millis(millis));
        let mut rate = Rate::default();
        assert_eq!(rate.at(at(0)), 0.0);
        for step in 0..600 {
            rate.add(100, at(step * 100));
        }
        let steady = rate.at(at(60_000));
        assert!((900.0..1100.0).contains(&steady), "{steady}");
        assert_eq!(rate.at(at(200_000)), 0.0);
    }
}
