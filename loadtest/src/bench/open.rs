//! An open loop: requests that are due at fixed times, whether or not the ones before were answered.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::ensure;

use super::target::Target;

pub(crate) const PER_SECOND: u32 = 400;
const CONNECTIONS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends [`PER_SECOND`] requests a second for `window` and returns how long each took, sorted.
///
/// Threads that block, because an asynchronous timer is late by up to a millisecond, which is more than
/// what is measured. A request is timed from when it was sent, or, if the answer before came too late
/// to send it in time, from when it was due.
pub(crate) fn run(target: &Target, window: Duration) -> anyhow::Result<Vec<Duration>> {
    let period = Duration::from_secs(1) * CONNECTIONS / PER_SECOND;
    let began = Instant::now() + Duration::from_millis(20);
    let threads: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let target = target.clone();
            std::thread::spawn(move || {
                let first = began + period * number / CONNECTIONS;
                client(&target, first, period, began + window)
            })
        })
        .collect();
    let mut samples = Vec::new();
    for thread in threads {
        samples.extend(thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
    }
    samples.sort_unstable();
    Ok(samples)
}

fn client(
    target: &Target,
    first: Instant,
    period: Duration,
    until: Instant,
) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(target.http)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = target.head("GET", "/", "");
    exchange(&mut stream, &request)?;
    let mut samples = Vec::new();
    let mut due = first;
    while due < until {
        let wait = due.saturating_duration_since(Instant::now());
        let began = if wait.is_zero() {
            due
        } else {
            std::thread::sleep(wait);
            Instant::now()
        };
        exchange(&mut stream, &request)?;
        samples.push(began.elapsed());
        due += period;
    }
    Ok(samples)
}

/// The answer is small; it ends with the backend's line, in one chunk or not.
fn exchange(stream: &mut TcpStream, request: &[u8]) -> anyhow::Result<()> {
    stream.write_all(request)?;
    let mut buffer = [0; 4096];
    let mut filled = 0;
    loop {
        let length = stream.read(&mut buffer[filled..])?;
        ensure!(length > 0, "closed before an answer");
        filled += length;
        if buffer[..filled].ends_with(b"\r\n\r\nok\n") {
            ensure!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..filled]));
            return Ok(());
        }
    }
}
