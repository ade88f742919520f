//! Other programs, and what is said meanwhile.

use std::{
    collections::VecDeque,
    fmt::Display,
    io::{self, BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Instant,
};

use super::ImageError;

/// How much of what a failed program said is shown.
const TAIL_LINES: usize = 15;
/// Where an ordinary user's PATH does not look.
const SYSTEM_DIRECTORIES: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Tells, on stderr, which step is under way and when it began.
#[derive(Debug)]
pub(crate) struct Progress {
    began: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now() }
    }

    pub(super) fn say(&self, step: impl Display) {
        eprintln!("[{:5.1} s] {step}", self.began.elapsed().as_secs_f64());
    }
}

/// A program, the package that it is in, and what may help if it fails.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    pub(super) package: &'static str,
    pub(super) advice: &'static str,
}

impl Tool {
    pub(super) fn command(self) -> Command {
        let found =
            SYSTEM_DIRECTORIES.iter().map(|dir| Path::new(dir).join(self.name)).find(|it| it.is_file());
        let mut command = found.map_or_else(|| Command::new(self.name), Command::new);
        // What it says is read by us, and by people who search for it.
        command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
        command
    }

    /// Runs it to a good end and returns what it wrote to stdout.
    pub(super) fn run(self, command: &mut Command) -> Result<String, ImageError> {
        let output = self.output(command)?;
        if !output.status.success() {
            return Err(self.failed(command, output.status, &String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs it, however it ends.
    pub(super) fn output(self, command: &mut Command) -> Result<Output, ImageError> {
        command.output().map_err(|error| self.not_started(error))
    }

    pub(super) fn started(self, command: &mut Command) -> Result<Child, ImageError> {
        command.spawn().map_err(|error| self.not_started(error))
    }

    /// Runs it for minutes, telling what it says of itself on stderr.
    pub(super) fn run_aloud(self, command: &mut Command, progress: &Progress) -> Result<(), ImageError> {
        let mut child = self.started(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let mut tail = VecDeque::new();
        for line in child.stderr.take().map(BufReader::new).into_iter().flat_map(|lines| lines.split(b'\n')) {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            if let Some(step) = line.strip_prefix("I: ") {
                progress.say(format_args!("  {step}"));
            }
            tail.push_back(line);
            if tail.len() > TAIL_LINES {
                tail.pop_front();
            }
        }
        let status = child.wait().map_err(ImageError::io(format!("wait for {}", self.name)))?;
        if status.success() {
            return Ok(());
        }
        Err(self.failed(command, status, &Vec::from(tail).join("\n")))
    }

    pub(super) fn failed(self, command: &Command, status: ExitStatus, said: &str) -> ImageError {
        let lines: Vec<&str> = said.trim().lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        ImageError::Failed {
            command: shown(command),
            status: status.to_string(),
            output: tail.iter().map(|line| format!("\n    {line}")).collect(),
            advice: self.advice,
        }
    }

    fn not_started(self, error: io::Error) -> ImageError {
        if error.kind() == io::ErrorKind::NotFound {
            return ImageError::Missing { program: self.name.into(), package: self.package };
        }
        ImageError::io(format!("start {}", self.name))(error)
    }
}

fn shown(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SH: Tool = Tool { name: "sh", package: "dash", advice: "Try another shell." };

    #[test]
    fn a_failure_shows_the_command_the_end_of_its_output_and_advice() {
        let error = SH.run(SH.command().args(["-c", "seq 100 >&2; exit 3"])).unwrap_err().to_string();
        for part in ["sh -c seq 100", "exit status: 3", "    100", "Try another shell."] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
        assert!(!error.contains("    85\n"), "more than the end: {error}");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let tool = Tool { name: "no-such-program", package: "some-package", advice: "" };
        let error = tool.run(&mut tool.command()).unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("some-package"), "{error}");
    }
}
