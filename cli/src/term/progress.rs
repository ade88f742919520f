//! A sign of life for whoever waits.

use std::{future::Future, io::Write, time::Duration};

use tokio::time::{Instant, interval_at};

use crate::output::person_reads_stderr;

/// What takes less time needs no sign.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(120);
const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// Waits for work; if it takes long, says what for on stderr. On a terminal the note moves and is taken
/// away afterwards, elsewhere it is one line.
pub(crate) async fn while_working<T>(what: &str, work: impl Future<Output = T>) -> T {
    show(what, person_reads_stderr(), true, work).await
}

/// The same for work whose stderr belongs to somebody else: only on a terminal.
pub(crate) async fn for_a_person<T>(what: &str, work: impl Future<Output = T>) -> T {
    show(what, person_reads_stderr(), false, work).await
}

async fn show<T>(what: &str, terminal: bool, elsewhere: bool, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    let began = Instant::now();
    let mut steps = interval_at(began + PATIENCE, STEP);
    let mut shown = 0usize;
    let result = loop {
        tokio::select! {
            biased;
            result = &mut work => break result,
            _ = steps.tick(), if terminal || (elsewhere && shown == 0) => {
                if terminal {
                    let frame = FRAMES[shown % FRAMES.len()];
                    eprint!("\r{frame} {what} ({} s)\u{1b}[K", began.elapsed().as_secs());
                    // A sign of life that can't be shown is no reason to stop.
                    let _ = std::io::stderr().flush();
                } else {
                    eprintln!("sprite: still {what}");
                }
                shown += 1;
            }
        }
    };
    if terminal && shown > 0 {
        eprint!("\r\u{1b}[K");
        let _ = std::io::stderr().flush();
    }
    result
}
