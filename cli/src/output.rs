//! How answers look: text for people, JSON for scripts, on stdout and nowhere else.

use std::io::{IsTerminal, Write};

use serde_json::Value;

use crate::error::Error;

/// What people or scripts get to see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Shows an answer.
    pub(crate) fn show(self, value: &Value, human: impl FnOnce(&Value) -> String) -> Result<(), Error> {
        if self.json { line(&format!("{value:#}")) } else { line(&human(value)) }
    }

    /// Shows one of many: a line of JSON each.
    pub(crate) fn event(self, value: &Value, human: impl FnOnce(&Value) -> String) -> Result<(), Error> {
        if self.json { line(&value.to_string()) } else { line(&human(value)) }
    }
}

/// Writes a line to stdout; a reader that has left is no panic.
pub(crate) fn line(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    Ok(stdout.flush()?)
}

/// Writes bytes as they are.
pub(crate) fn raw(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes)?;
    Ok(stdout.flush()?)
}

/// A note for a person on stderr.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

/// Whether a person reads stderr.
pub(crate) fn person_reads_stderr() -> bool {
    std::io::stderr().is_terminal()
}

/// A text member, or a dash.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().filter(|text| !text.is_empty()).unwrap_or("-")
}

/// Lines of names and values.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    fields.iter().map(|(name, value)| format!("{name:<width$}{value}")).collect::<Vec<_>>().join("\n")
}

/// A table whose columns are as wide as they must be.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let row = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![row(&mut head.iter().copied())];
    lines.extend(rows.iter().map(|cells| row(&mut cells.iter().map(String::as_str))));
    lines.join("\n")
}

/// Milliseconds as people say them.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1000.0),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        172_800_000.. => format!("{} days", ms / 86_400_000),
    }
}

/// How long ago an RFC 3339 instant was.
pub(crate) fn ago(timestamp: &str) -> String {
    let Ok(then) = timestamp.parse::<jiff::Timestamp>() else { return "-".to_owned() };
    let ms = jiff::Timestamp::now().as_millisecond() - then.as_millisecond();
    format!("{} ago", duration(u64::try_from(ms).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long-name".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "X"], &rows), "NAME       X\na          b\nlong-name");
    }

    #[test]
    fn durations_are_said_as_people_do() {
        assert_eq!(duration(900), "900 ms");
        assert_eq!(duration(1_500), "1.5 s");
        assert_eq!(duration(150_000), "2 min");
        assert_eq!(duration(3 * 3_600_000), "3 h");
        assert_eq!(ago("nonsense"), "-");
    }
}
