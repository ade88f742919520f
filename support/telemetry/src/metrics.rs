//! What logging tells of itself.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::{IntCounter, Registry};

/// Counts lines that were not written because too many waited for it.
#[derive(Debug)]
pub struct LostLines {
    counter: IntCounter,
    seen: AtomicU64,
}

impl LostLines {
    /// Registers the counter `name`.
    ///
    /// # Errors
    /// If there is one of that name.
    pub fn register(registry: &Registry, name: &str) -> prometheus::Result<Self> {
        let counter = IntCounter::new(name, "Log lines that were not written because too many waited.")?;
        registry.register(Box::new(counter.clone()))?;
        Ok(Self { counter, seen: AtomicU64::new(0) })
    }

    /// Before the counter is read.
    pub fn update(&self) {
        let lost = super::LOST.get().map_or(0, |lost| lost.dropped_lines() as u64);
        // Each line is added once, whoever asks at the same time.
        self.counter.inc_by(lost.saturating_sub(self.seen.fetch_max(lost, Ordering::Relaxed)));
    }
}
