//! The query of `/exec`: what to run, or which session to attach to.

use std::time::Duration;

use crate::{duration, query};

/// A terminal's size when the client does not say.
pub const DEFAULT_ROWS: u16 = 24;
/// See [`DEFAULT_ROWS`].
pub const DEFAULT_COLS: u16 = 80;

/// The query, decoded. Unknown parameters are ignored; empty ones are as good as none, except for arguments.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExecQuery {
    /// `cmd` or `cmd[]`, repeated: the arguments, the program's name first.
    pub argv: Vec<Vec<u8>>,
    /// `path`: the program, if it is not what `argv` begins with.
    pub path: Option<Vec<u8>>,
    /// `env`, repeated: `KEY=VALUE`, in order.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// `dir`: where to run it.
    pub dir: Option<Vec<u8>>,
    /// `tty`: with a terminal.
    pub tty: bool,
    /// `rows`: of the terminal.
    pub rows: Option<u16>,
    /// `cols`: of the terminal.
    pub cols: Option<u16>,
    /// `stdin`: whether the client will send any.
    pub stdin: Option<bool>,
    /// `id` or `session_id`: attach to this session instead of running something.
    pub session: Option<String>,
    /// `detachable`: it outlives the connection.
    pub detachable: bool,
    /// `cc`: tmux's control mode.
    pub control_mode: bool,
    /// `max_run_after_disconnect`: how long it may run without a client; zero is for ever.
    pub max_run_after_disconnect: Option<Duration>,
}

/// What is wrong with a query.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum QueryError {
    /// A value is not of its kind.
    #[error("{name} must be {expected}, not {found:?}")]
    Value {
        /// Of which parameter.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
        /// The start of what it is.
        found: String,
    },
    /// Programs can't be given zero bytes.
    #[error("{0} can't hold a zero byte")]
    Zero(&'static str),
}

impl ExecQuery {
    /// Reads a query.
    ///
    /// # Errors
    /// See [`QueryError`].
    pub fn decode(query: &str) -> Result<Self, QueryError> {
        let mut found = Self::default();
        for (name, value) in query::pairs(query) {
            match name.as_slice() {
                b"cmd" | b"cmd[]" => found.argv.push(without_zero("cmd", value)?),
                b"path" => set(&mut found.path, without_zero("path", value)?),
                b"dir" => set(&mut found.dir, without_zero("dir", value)?),
                b"env" | b"env[]" if !value.is_empty() => found.env.push(variable(value)?),
                b"tty" => found.tty = flag("tty", &value)?.unwrap_or(found.tty),
                b"rows" => found.rows = size("rows", &value)?.or(found.rows),
                b"cols" => found.cols = size("cols", &value)?.or(found.cols),
                b"stdin" => found.stdin = flag("stdin", &value)?.or(found.stdin),
                b"id" | b"session_id" if !value.is_empty() => {
                    found.session = Some(String::from_utf8_lossy(&value).into_owned());
                }
                b"detachable" => found.detachable = flag("detachable", &value)?.unwrap_or(found.detachable),
                b"cc" => found.control_mode = flag("cc", &value)?.unwrap_or(found.control_mode),
                b"max_run_after_disconnect" if !value.is_empty() => {
                    let text = String::from_utf8_lossy(&value);
                    let read = duration::parse(&text);
                    let limit = read
                        .ok_or_else(|| wrong("max_run_after_disconnect", "a duration such as 10s", &value))?;
                    found.max_run_after_disconnect = Some(limit);
                }
                _ => {}
            }
        }
        // A client that only attaches may write its parameters all the same, without values.
        if found.argv.iter().all(Vec::is_empty) {
            found.argv.clear();
        }
        Ok(found)
    }

    /// Writes a query, in the spelling that all servers know.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut query = String::new();
        for argument in &self.argv {
            query::push(&mut query, "cmd", argument);
        }
        for (name, value) in [("path", &self.path), ("dir", &self.dir)] {
            if let Some(value) = value {
                query::push(&mut query, name, value);
            }
        }
        for (name, value) in &self.env {
            query::push(&mut query, "env", [name.as_slice(), b"=", value].concat());
        }
        for (name, value) in [("rows", self.rows), ("cols", self.cols)] {
            if let Some(value) = value {
                query::push(&mut query, name, value.to_string());
            }
        }
        if let Some(stdin) = self.stdin {
            query::push(&mut query, "stdin", stdin.to_string());
        }
        for (name, set) in [("tty", self.tty), ("detachable", self.detachable), ("cc", self.control_mode)] {
            if set {
                query::push(&mut query, name, "true");
            }
        }
        if let Some(session) = &self.session {
            query::push(&mut query, "id", session);
        }
        if let Some(limit) = self.max_run_after_disconnect {
            query::push(&mut query, "max_run_after_disconnect", duration::format(limit));
        }
        query
    }
}

fn set(place: &mut Option<Vec<u8>>, value: Vec<u8>) {
    if !value.is_empty() {
        *place = Some(value);
    }
}

fn without_zero(name: &'static str, value: Vec<u8>) -> Result<Vec<u8>, QueryError> {
    if value.contains(&0) { Err(QueryError::Zero(name)) } else { Ok(value) }
}

fn variable(value: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>), QueryError> {
    let value = without_zero("env", value)?;
    match value.iter().position(|byte| *byte == b'=') {
        Some(end) if end > 0 => Ok((value[..end].to_vec(), value[end + 1..].to_vec())),
        _ => Err(wrong("env", "KEY=VALUE", &value)),
    }
}

fn flag(name: &'static str, value: &[u8]) -> Result<Option<bool>, QueryError> {
    match value.to_ascii_lowercase().as_slice() {
        b"" => Ok(None),
        b"true" | b"1" | b"t" | b"yes" => Ok(Some(true)),
        b"false" | b"0" | b"f" | b"no" => Ok(Some(false)),
        _ => Err(wrong(name, "true or false", value)),
    }
}

/// Zero means that the client doesn't know.
fn size(name: &'static str, value: &[u8]) -> Result<Option<u16>, QueryError> {
    if value.is_empty() {
        return Ok(None);
    }
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u16>().ok());
    let number = number.ok_or_else(|| wrong(name, "a number from 0 to 65535", value))?;
    Ok((number > 0).then_some(number))
}

fn wrong(name: &'static str, expected: &'static str, value: &[u8]) -> QueryError {
    let found = String::from_utf8_lossy(value).chars().take(80).collect();
    QueryError::Value { name, expected, found }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_client_is_understood() {
        let one = ExecQuery::decode(
            "cmd[]=sh&cmd[]=-c&cmd[]=&path=sh&env=A=b=c&env=D=&tty=true&rows=0&cols=100&stdin=false",
        )
        .unwrap();
        assert_eq!(one.argv, [b"sh".as_slice(), b"-c", b""]);
        assert_eq!(one.path.as_deref(), Some(b"sh".as_slice()));
        assert_eq!(one.env, [(b"A".to_vec(), b"b=c".to_vec()), (b"D".to_vec(), Vec::new())]);
        assert_eq!((one.tty, one.rows, one.cols, one.stdin), (true, None, Some(100), Some(false)));
        let attach = ExecQuery::decode("session_id=5&path=&cmd=&stdin=").unwrap();
        assert_eq!(attach, ExecQuery { session: Some("5".into()), ..ExecQuery::default() });
        let late = ExecQuery::decode("max_run_after_disconnect=5m&detachable=1&cc=true&later=x").unwrap();
        assert_eq!(late.max_run_after_disconnect, Some(Duration::from_secs(300)));
        assert!(late.detachable && late.control_mode);
    }

    #[test]
    fn mistakes_are_told() {
        for (query, says) in [
            ("cmd=a%00b", "zero"),
            ("dir=%00", "zero"),
            ("env=A=%00", "zero"),
            ("env=A", "KEY=VALUE"),
            ("env==b", "KEY=VALUE"),
            ("rows=65536", "rows"),
            ("cols=-1", "cols"),
            ("tty=maybe", "tty"),
            ("max_run_after_disconnect=soon", "duration"),
        ] {
            let error = ExecQuery::decode(query).unwrap_err().to_string();
            assert!(error.contains(says), "{query}: {error}");
        }
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1u8.., 1..20)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            argv in prop::collection::vec(bytes(), 0..5),
            path in prop::option::of(bytes()),
            values in prop::collection::vec(bytes(), 0..5),
            size in prop::option::of(1u16..),
            stdin: Option<bool>,
            session in prop::option::of("\\PC{1,10}"),
            flags: [bool; 3],
            seconds in prop::option::of(0u64..1 << 30),
        ) {
            let query = ExecQuery {
                argv, path: path.clone(), dir: path,
                env: values.into_iter().map(|value| (b"NAME".to_vec(), value)).collect(),
                tty: flags[0], rows: size, cols: size, stdin, session,
                detachable: flags[1], control_mode: flags[2],
                max_run_after_disconnect: seconds.map(Duration::from_secs),
            };
            prop_assert_eq!(ExecQuery::decode(&query.encode()), Ok(query));
        }

        #[test]
        fn any_text_is_survived(query in "(cmd|env|rows|tty|id|max_run_after_disconnect|\\PC{0,5}|=|&|%|[0-9a-f]{2}){0,20}") {
            let _ = ExecQuery::decode(&query);
        }
    }
}
