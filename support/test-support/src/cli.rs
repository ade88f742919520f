//! The `sprite` command as a person has it: a home directory, a working directory, an environment.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::{World, program};

/// No command of a test takes as long.
const LIMIT: Duration = Duration::from_secs(120);

/// Somebody's command line.
#[derive(Debug)]
pub struct Cli {
    program: PathBuf,
    home: TempDir,
    environment: Vec<(String, String)>,
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Run {
    /// Its stdout, if it ended well.
    ///
    /// # Errors
    /// It did not.
    pub fn good(self) -> anyhow::Result<String> {
        ensure!(self.code == 0, "ended with {}\n{}\n{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }

    /// Its stdout as JSON, if it ended well.
    ///
    /// # Errors
    /// It did not, or wrote something else.
    pub fn json(self) -> anyhow::Result<serde_json::Value> {
        let stdout = self.good()?;
        serde_json::from_str(&stdout).with_context(|| format!("not JSON: {stdout:?}"))
    }

    /// Its stderr, if it ended with this code and wrote nothing to stdout.
    ///
    /// # Errors
    /// It did not.
    pub fn bad(self, code: i32) -> anyhow::Result<String> {
        ensure!(
            self.code == code,
            "ended with {} and not {code}\n{}\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
        ensure!(self.stdout.is_empty(), "wrote to stdout: {:?}", self.stdout);
        Ok(self.stderr)
    }
}

impl Cli {
    /// Somebody who has set the world's API and token in the environment.
    ///
    /// # Errors
    /// The program was not built.
    pub fn new(world: &World) -> anyhow::Result<Self> {
        let mut cli = Self::stranger()?;
        cli.set("SPRITES_API_URL", &world.api());
        cli.set("SPRITES_TOKEN", &world.token);
        Ok(cli)
    }

    /// Somebody who has nothing but a home.
    ///
    /// # Errors
    /// The program was not built.
    pub fn stranger() -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("spr-home").tempdir()?;
        let mut cli = Self { program: program(crate::Program::Sprite)?, home, environment: Vec::new() };
        for name in ["PATH", "LANG", "TMPDIR"] {
            if let Ok(value) = std::env::var(name) {
                cli.set(name, &value);
            }
        }
        let home = cli.home.path().to_string_lossy().into_owned();
        cli.set("HOME", &home);
        Ok(cli)
    }

    /// Sets a variable.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The home, in which commands run.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The environment, for what runs the program by itself.
    #[must_use]
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    /// A command that was not started yet.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).env_clear().envs(self.environment.iter().cloned());
        command.current_dir(self.home.path()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs a command without stdin.
    ///
    /// # Errors
    /// It does not end.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<Run> {
        let output = timeout(LIMIT, self.command(arguments).output()).await;
        Ok(output.with_context(|| format!("sprite {arguments:?} does not end"))??.into())
    }

    /// Runs a command with this stdin.
    ///
    /// # Errors
    /// It does not end.
    pub async fn run_with(&self, stdin: &[u8], arguments: &[&str]) -> anyhow::Result<Run> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut to = child.stdin.take().context("stdin was piped")?;
        let work = async {
            let (_, output) = tokio::join!(
                async move {
                    // A command that reads no further ends by itself.
                    let _ = to.write_all(stdin).await;
                },
                child.wait_with_output()
            );
            Ok::<_, anyhow::Error>(output?)
        };
        Ok(timeout(LIMIT, work).await.with_context(|| format!("sprite {arguments:?} does not end"))??.into())
    }
}
