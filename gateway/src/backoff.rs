//! Pauses between tries that grow, with jitter so that many gateways don't return as one.

use std::time::Duration;

use rand::Rng;

#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The last try did well.
    pub(crate) const fn reset(&mut self) {
        self.next = self.first;
    }

    /// Whether nothing has failed since the last success: the moment to log.
    pub(crate) fn is_first(&self) -> bool {
        self.next == self.first
    }

    pub(crate) async fn pause(&mut self) {
        let jittered = self.next.mul_f64(rand::rng().random_range(0.5..1.0));
        self.next = (self.next * 2).min(self.longest);
        tokio::time::sleep(jittered).await;
    }
}
