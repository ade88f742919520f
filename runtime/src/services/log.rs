//! What a service writes: to its log file, bounded, and to whoever listens.
//!
//! A line of the file is `2026-11-23T17:00:00.123456Z [stdout] text`.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use ids::ServiceName;
use jiff::Timestamp;

/// A log that has grown to this is set aside (one is kept) and begun anew.
const MAX_LOG_BYTES: u64 = 8 << 20;
/// A longer line is written as several.
pub(crate) const MAX_LINE_BYTES: usize = 16 << 10;
/// The most that is read from the end of a log to find its last lines.
const MAX_TAIL_BYTES: u64 = 4 << 20;

/// Where a line came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

impl Source {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A line that a service wrote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line {
    pub(crate) at: Timestamp,
    pub(crate) source: Source,
    /// Without its newline.
    pub(crate) text: String,
}

/// The log file of one service.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    length: u64,
    /// Reused for every write.
    text: String,
}

/// The path of a service's log.
pub(crate) fn path_of(directory: &Path, name: &ServiceName) -> PathBuf {
    directory.join(format!("{name}.log"))
}

impl Log {
    /// Opened when the first line comes.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, file: None, length: 0, text: String::new() }
    }

    /// Appends lines, with one write for all of them.
    ///
    /// # Errors
    /// The disk's; the next lines are tried anew.
    pub(crate) fn write(&mut self, lines: &[Line]) -> io::Result<()> {
        self.text.clear();
        for line in lines {
            // Writing into a String can't fail.
            let _never = writeln!(self.text, "{:.6} [{}] {}", line.at, line.source.as_str(), line.text);
        }
        let length = self.text.len() as u64;
        if self.length + length > MAX_LOG_BYTES && self.length > 0 {
            self.file = None;
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                if let Some(directory) = self.path.parent() {
                    fs::create_dir_all(directory)?;
                }
                let file = File::options().create(true).append(true).open(&self.path)?;
                self.length = file.metadata()?.len();
                none.insert(file)
            }
        };
        file.write_all(self.text.as_bytes()).inspect_err(|_| self.file = None)?;
        self.length += length;
        Ok(())
    }
}

/// The last `count` lines of a log; none if there is no log.
///
/// # Errors
/// The disk's.
pub(crate) fn tail(path: &Path, count: usize) -> io::Result<Vec<Line>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(MAX_TAIL_BYTES);
    file.seek(SeekFrom::Start(skipped))?;
    let mut lines = std::collections::VecDeque::new();
    let reader = BufReader::new(file.take(MAX_TAIL_BYTES));
    // Beginning in the middle, the first line is only a part of one.
    for line in reader.split(b'\n').skip(usize::from(skipped > 0)) {
        if let Some(line) = parse(&String::from_utf8_lossy(&line?)) {
            lines.push_back(line);
            if lines.len() > count {
                lines.pop_front();
            }
        }
    }
    Ok(lines.into())
}

fn parse(line: &str) -> Option<Line> {
    let (at, rest) = line.split_once(' ')?;
    let (source, text) = rest.split_once(' ')?;
    let source = match source {
        "[stdout]" => Source::Stdout,
        "[stderr]" => Source::Stderr,
        _ => return None,
    };
    Some(Line { at: at.parse().ok()?, source, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line { at: "2026-11-23T17:00:00.123456Z".parse().unwrap(), source: Source::Stderr, text: text.into() }
    }

    #[test]
    fn what_was_written_can_be_read_and_the_log_stays_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/web.log");
        assert_eq!(tail(&path, 10).unwrap(), []);
        let mut log = Log::new(path.clone());
        log.write(&["one", "", "three with spaces"].map(line)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("2026-11-23T17:00:00.123456Z [stderr] one\n"), "{text}");
        assert_eq!(tail(&path, 2).unwrap(), [line(""), line("three with spaces")]);

        let long = "x".repeat(MAX_LINE_BYTES);
        for _ in 0..(3 * MAX_LOG_BYTES / MAX_LINE_BYTES as u64) {
            log.write(&[line(&long)]).unwrap();
        }
        let on_disk: u64 = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|one| one.unwrap().metadata().unwrap().len())
            .sum();
        assert!(on_disk <= 2 * MAX_LOG_BYTES, "{on_disk}");
        assert!(!tail(&path, 5).unwrap().is_empty());
    }
}
