//! Other programs, and what is said meanwhile.

use std::{
    collections::VecDeque,
    fmt::Display,
    io::{self, BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
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

    /// Runs it for minutes: tells what it says of itself on stderr, and lets `read` have what it writes to stdout.
    pub(super) fn run_aloud<T>(
        self,
        command: &mut Command,
        progress: &Progress,
        read: impl FnOnce(&mut dyn Read) -> Result<T, ImageError>,
    ) -> Result<T, ImageError> {
        let mut child = self.started(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (outcome, tail) = thread::scope(|scope| {
            let saying = scope.spawn(|| stderr.map(|lines| told(lines, progress)).unwrap_or_default());
            let outcome = stdout.map(|mut output| {
                let outcome = read(&mut output);
                // It may have more to write, such as the padding of an archive.
                io::copy(&mut output, &mut io::sink()).map(|_| outcome)
            });
            (outcome, saying.join().unwrap_or_default())
        });
        let status = child.wait().map_err(ImageError::io(format!("wait for {}", self.name)))?;
        // What could not be read of a program that failed is not the reason.
        if !status.success() {
            return Err(self.failed(command, status, &tail));
        }
        outcome.transpose().map_err(ImageError::io(format!("read from {}", self.name)))?.ok_or_else(|| {
            ImageError::io(format!("read from {}", self.name))(io::ErrorKind::BrokenPipe.into())
        })?
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
        // Denied is what one is told who may not look into some directory of PATH, if it is in none.
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) {
            return ImageError::Missing { program: self.name.into(), package: self.package };
        }
        ImageError::io(format!("start {}", self.name))(error)
    }
}

/// Tells the steps, and returns the last lines.
fn told(lines: impl Read, progress: &Progress) -> String {
    let mut tail = VecDeque::new();
    for line in BufReader::new(lines).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).into_owned();
        if let Some(step) = line.strip_prefix("I: ") {
            progress.say(format_args!("  {step}"));
        }
        tail.push_back(line);
        if tail.len() > TAIL_LINES {
            tail.pop_front();
        }
    }
    Vec::from(tail).join("\n")
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
    fn what_a_program_writes_is_read_while_it_runs_and_its_failure_is_the_reason() {
        let read = |from: &mut dyn Read| {
            let mut text = String::new();
            from.take(3).read_to_string(&mut text).map_err(ImageError::io("read"))?;
            Ok(text)
        };
        let run = |script: &str| SH.run_aloud(SH.command().args(["-c", script]), &Progress::new(), read);
        assert_eq!(run("echo 'I: a step' >&2; yes | head -c 1000000").unwrap(), "y\ny");
        let error = run("echo ab; echo why >&2; exit 3").unwrap_err().to_string();
        assert!(error.contains("why"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let tool = Tool { name: "no-such-program", package: "some-package", advice: "" };
        let error = tool.run(&mut tool.command()).unwrap_err().to_string();
        assert!(error.contains("no-such-program") && error.contains("some-package"), "{error}");
    }
}
