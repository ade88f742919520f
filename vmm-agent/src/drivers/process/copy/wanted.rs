//! Whether somebody still wants what is being done.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Ends the work of whoever has the other half when it is dropped.
#[derive(Debug, Default)]
pub(in super::super) struct Wanted(Arc<AtomicBool>);

impl Wanted {
    pub(in super::super) fn other_half(&self) -> Unwanted {
        Unwanted(Arc::clone(&self.0))
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// See [`Wanted`].
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Unwanted(Arc<AtomicBool>);

impl Unwanted {
    pub(super) fn check(&self) -> io::Result<()> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "nobody wants it any more")),
            false => Ok(()),
        }
    }
}
