//! A child process that can't outlive its test.

use std::{
    fs::File,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// See the module.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
}

impl Child {
    /// Starts a program with its output in `log`.
    ///
    /// # Errors
    /// The program is not there, or the log can't be written.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let process = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("could not start {name} ({:?})", command.get_program()))?;
        Ok(Self { name: name.to_owned(), process })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Whether it has ended by itself.
    ///
    /// # Errors
    /// The system can't tell.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.process.try_wait()?)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.process.id())?), signal)?)
    }

    /// Kills it like a power failure would: no warning, no cleaning up.
    ///
    /// # Errors
    /// It has ended.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Asks it to end and waits.
    ///
    /// # Errors
    /// It does not end within the limit (it is killed then), or not cleanly.
    pub fn stop(&mut self, limit: Duration) -> anyhow::Result<()> {
        if let Some(status) = self.process.try_wait()? {
            bail!("{} had ended already: {status}", self.name);
        }
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("{} ended badly: {status}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill()?;
        bail!("{} did not end within {limit:?}", self.name)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
