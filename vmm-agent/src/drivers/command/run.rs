//! Runs one command to its end, or to its deadline.

use std::{io, process::Stdio, time::Duration};

use ids::SpriteId;
use tokio::{process::Command, time::timeout};

use super::super::{DriverError, Verb};

/// How much of what a failed command said is passed on, in bytes.
const LAST_WORDS: usize = 400;

/// Runs it and fails unless it ends with 0.
pub(super) async fn to_success(
    verb: Verb,
    id: SpriteId,
    command: &[String],
    deadline: Duration,
) -> Result<(), DriverError> {
    let output = run(verb, id, command, deadline).await?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    let from = (0..=said.len()).rev().find(|at| said.is_char_boundary(*at) && said.len() - at >= LAST_WORDS);
    let words = &said[from.unwrap_or(0)..];
    Err(DriverError::Host {
        verb,
        id,
        step: command.join(" "),
        source: io::Error::other(format!("{}: {words}", output.status)),
    })
}

/// Runs it and says whether it ended with 0.
pub(super) async fn is_success(
    verb: Verb,
    id: SpriteId,
    command: &[String],
    deadline: Duration,
) -> Result<bool, DriverError> {
    Ok(run(verb, id, command, deadline).await?.status.success())
}

async fn run(
    verb: Verb,
    id: SpriteId,
    command: &[String],
    limit: Duration,
) -> Result<std::process::Output, DriverError> {
    let failed = |source| DriverError::Host { verb, id, step: command.join(" "), source };
    let (program, arguments) = command.split_first().ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let child = Command::new(program)
        .args(arguments)
        .env("SPRITE_ID", id.to_string())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(limit, child).await {
        Ok(output) => output.map_err(failed),
        Err(_) => Err(DriverError::TimedOut { verb, id, step: "its command", limit }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(line: &str) -> Vec<String> {
        ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn a_failed_command_is_quoted() {
        let id = SpriteId::from_u128(1);
        let failed =
            to_success(Verb::Start, id, &shell("echo no power >&2; exit 3"), Duration::from_secs(5)).await;
        let error = crate::api::chain(&failed.unwrap_err());
        assert!(error.contains("no power") && error.contains('3'), "{error}");
    }

    #[tokio::test]
    async fn a_command_that_hangs_ends_at_its_deadline() {
        let id = SpriteId::from_u128(1);
        let hung = to_success(Verb::Stop, id, &shell("sleep 60"), Duration::from_millis(50)).await;
        assert!(matches!(hung, Err(DriverError::TimedOut { .. })), "{hung:?}");
    }
}
