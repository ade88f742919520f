//! A service's process: how it is spawned, signalled and listened to.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use jiff::Timestamp;
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    net::unix::pipe,
    sync::oneshot,
};
use tracing::warn;

use super::{
    definitions::Definition,
    log::{Line, MAX_LINE_BYTES, Source},
};
use crate::{limits, reap::Reaper};

/// Where services run unless they say otherwise.
pub(crate) const HOME: &str = "/home/sprite";

/// A spawned service.
#[derive(Debug)]
pub(super) struct Spawned {
    pub(super) pid: i32,
    pub(super) ended: oneshot::Receiver<ExitStatus>,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
}

/// Spawns a service in a session of its own. The error is a sentence for people, naming what is missing.
pub(super) fn spawn(
    reaper: &Reaper,
    definition: &Definition,
    environment: &BTreeMap<String, String>,
) -> Result<Spawned, String> {
    let directory = definition.dir.as_deref().unwrap_or(HOME);
    // A missing directory and a missing program give the same error; tell them apart.
    if !Path::new(directory).is_dir() {
        return Err(format!("{directory}: no such directory"));
    }
    let (stdout, stdout_end) = output().map_err(|error| error.to_string())?;
    let (stderr, stderr_end) = output().map_err(|error| error.to_string())?;
    let mut command = Command::new(&definition.cmd);
    command
        .args(&definition.args)
        .env_clear()
        .envs(environment)
        .envs(&definition.env)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(stdout_end)
        .stderr(stderr_end);
    // SAFETY: setsid, setrlimit, open and write are async-signal-safe; nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            nix::unistd::setsid()?;
            limits::of_program()
        });
    }
    let (child, ended): (Child, _) =
        reaper.spawn(|| command.spawn()).map_err(|error| format!("{}: {}", definition.cmd, plain(&error)))?;
    Ok(Spawned { pid: child.id().cast_signed(), ended, stdout, stderr })
}

/// "No such file or directory" without the number that Rust appends.
fn plain(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_owned())
}

fn output() -> io::Result<(pipe::Receiver, Stdio)> {
    let (reader, writer) = io::pipe()?;
    let reader = std::os::fd::OwnedFd::from(reader);
    Ok((pipe::Receiver::from_owned_fd(reader)?, Stdio::from(writer)))
}

/// Sends a signal to a service's process group. That it is gone already is no error.
pub(super) fn signal_group(pid: i32, signal: Signal) {
    match killpg(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => warn!(pid, %signal, %error, "Could not signal a service"),
    }
}

/// Reads lines until the last writer has closed its end, and gives them to `take`, as many at once as have
/// come at once: a program that writes a million short lines must not keep the runtime busy with each.
pub(super) async fn read_lines(
    output: impl AsyncRead + Unpin,
    source: Source,
    mut take: impl FnMut(&[Line]),
) {
    let mut reader = BufReader::with_capacity(MAX_LINE_BYTES, output);
    let (mut partial, mut lines) = (Vec::new(), Vec::new());
    loop {
        let length = match reader.fill_buf().await {
            Ok([]) | Err(_) => break,
            Ok(buffer) => {
                let at = now();
                for piece in buffer.split_inclusive(|byte| *byte == b'\n') {
                    let (mut text, complete) = match piece.split_last() {
                        Some((b'\n', text)) => (text, true),
                        _ => (piece, false),
                    };
                    while !text.is_empty() {
                        // Split what is too long, so that it is never kept whole.
                        if partial.len() == MAX_LINE_BYTES {
                            lines.push(to_line(&mut partial, at, source));
                        }
                        let (now, later) = text.split_at(text.len().min(MAX_LINE_BYTES - partial.len()));
                        partial.extend_from_slice(now);
                        text = later;
                    }
                    if complete {
                        lines.push(to_line(&mut partial, at, source));
                    }
                }
                buffer.len()
            }
        };
        reader.consume(length);
        if !lines.is_empty() {
            take(&lines);
            lines.clear();
            // There may be more for ever, and others have their turn too.
            tokio::task::yield_now().await;
        }
    }
    if !partial.is_empty() {
        take(&[to_line(&mut partial, now(), source)]);
    }
}

/// As precise as the log keeps it, so that a line read back is the same line.
fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn to_line(bytes: &mut Vec<u8>, at: Timestamp, source: Source) -> Line {
    let text = String::from_utf8_lossy(bytes).into_owned();
    bytes.clear();
    Line { at, source, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_the_last_needs_no_newline() {
        let long = "x".repeat(MAX_LINE_BYTES + 5);
        let text = format!("one\n\n{long}\nlast");
        let mut lines = Vec::new();
        read_lines(text.as_bytes(), Source::Stdout, |some| {
            lines.extend(some.iter().map(|line| line.text.len()));
        })
        .await;
        assert_eq!(lines, [3, 0, MAX_LINE_BYTES, 5, 4]);
    }
}
