//! What a client wants to run, as it will be run: program found, environment merged, directory chosen.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use frames::{
    ExecQuery,
    exec::{DEFAULT_COLS, DEFAULT_ROWS},
};

use crate::services::HOME;

/// What a terminal is called when the client does not say.
const DEFAULT_TERM: &str = "xterm-256color";
/// As shells say it: there is no such program.
const NOT_FOUND: u8 = 127;
/// As shells say it: there is one, but it can't be run.
const NOT_RUN: u8 = 126;

/// The size of a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) cols: u16,
}

/// A command that is ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// An absolute path, if it was found.
    pub(crate) program: Result<PathBuf, Unfit>,
    /// The program's own name first.
    pub(crate) argv: Vec<OsString>,
    pub(crate) environment: BTreeMap<OsString, OsString>,
    pub(crate) directory: PathBuf,
    /// With a terminal of this size, or with pipes.
    pub(crate) terminal: Option<Size>,
    /// Without, its stdin is empty.
    pub(crate) stdin: bool,
}

/// Why a command can't be run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Unfit {
    /// What a shell would exit with.
    pub(crate) code: u8,
    /// What a shell would write.
    pub(crate) message: String,
}

impl Unfit {
    pub(crate) fn not_run(program: &OsStr, why: &str) -> Self {
        Self { code: NOT_RUN, message: format!("{}: {why}", program.to_string_lossy()) }
    }

    fn not_found(program: &OsStr, why: &str) -> Self {
        Self { code: NOT_FOUND, message: format!("{}: {why}", program.to_string_lossy()) }
    }
}

impl Command {
    /// What `query` asks for, over the sprite's `environment`; `None` if it names no program.
    pub(crate) fn new(query: ExecQuery, environment: &BTreeMap<String, String>) -> Option<Self> {
        let mut argv: Vec<OsString> = query.argv.into_iter().map(OsString::from_vec).collect();
        let path = query.path.map(OsString::from_vec);
        let named = match (path, argv.first()) {
            (Some(path), _) => path,
            (None, Some(first)) => first.clone(),
            (None, None) => return None,
        };
        if argv.is_empty() {
            argv.push(named.clone());
        }
        let terminal = query.tty.then(|| Size {
            rows: query.rows.unwrap_or(DEFAULT_ROWS),
            cols: query.cols.unwrap_or(DEFAULT_COLS),
        });
        let mut merged: BTreeMap<OsString, OsString> =
            environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
        if terminal.is_some() {
            merged.entry("TERM".into()).or_insert_with(|| DEFAULT_TERM.into());
        }
        let given = query.env.into_iter();
        merged.extend(given.map(|(name, value)| (OsString::from_vec(name), OsString::from_vec(value))));
        // An absolute path replaces the home, a relative one is in it.
        let directory = Path::new(HOME).join(OsStr::from_bytes(&query.dir.unwrap_or_default()));
        let program = find(&named, merged.get(OsStr::new("PATH")), &directory);
        let stdin = query.stdin.unwrap_or(query.tty);
        Some(Self { program, argv, environment: merged, directory, terminal, stdin })
    }

    /// For people: the program's absolute path and its arguments.
    pub(crate) fn line(&self) -> String {
        let program = self.program.as_ref().map(|path| path.to_string_lossy().into_owned());
        let mut line = program.unwrap_or_else(|_| self.argv[0].to_string_lossy().into_owned());
        for argument in &self.argv[1..] {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        line
    }
}

/// Finds a program as a shell in `directory` would, with `path` as its search path.
///
/// # Errors
/// There is none, or it can't be run.
pub(crate) fn find(named: &OsStr, path: Option<&OsString>, directory: &Path) -> Result<PathBuf, Unfit> {
    if !directory.is_dir() {
        return Err(Unfit::not_run(directory.as_os_str(), "no such directory"));
    }
    if named.as_bytes().contains(&b'/') {
        let program = directory.join(named);
        return match program.metadata() {
            Ok(found) if found.is_dir() => Err(Unfit::not_run(named, "is a directory")),
            Ok(found) if found.permissions().mode() & 0o111 == 0 => {
                Err(Unfit::not_run(named, "permission denied"))
            }
            Ok(_) => Ok(program),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(Unfit::not_run(named, "permission denied"))
            }
            Err(_) => Err(Unfit::not_found(named, "no such file or directory")),
        };
    }
    let mut there_is_one = false;
    for place in std::env::split_paths(path.map_or(OsStr::new(""), OsString::as_os_str)) {
        let candidate = directory.join(place).join(named);
        if let Ok(found) = candidate.metadata()
            && found.is_file()
        {
            if found.permissions().mode() & 0o111 != 0 {
                return Ok(candidate);
            }
            there_is_one = true;
        }
    }
    Err(if there_is_one {
        Unfit::not_run(named, "permission denied")
    } else {
        Unfit::not_found(named, "command not found")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(query: &str) -> Command {
        let environment = [("PATH", "/nowhere:/usr/bin:/bin"), ("HOME", "/home/sprite"), ("A", "1")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Command::new(ExecQuery::decode(query).unwrap(), &environment).unwrap()
    }

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let sh = command("cmd=sh&cmd=-c&cmd=exit&dir=/");
        assert!(sh.program.clone().unwrap().ends_with("bin/sh"));
        assert!(sh.line().starts_with('/') && sh.line().ends_with("/sh -c exit"));
        assert_eq!(command("path=/bin/sh&cmd=-sh&dir=/").argv, ["-sh"]);
        assert_eq!(command("path=sh&dir=/").argv, ["sh"]);
        assert_eq!(command("cmd=./sh&dir=/bin").program, Ok("/bin/./sh".into()));
        for (query, code, says) in [
            ("cmd=no-such-thing&dir=/", 127, "command not found"),
            ("cmd=/no/such&dir=/", 127, "no such file"),
            ("cmd=/etc/passwd&dir=/", 126, "permission denied"),
            ("cmd=/etc&dir=/", 126, "is a directory"),
            ("cmd=sh&dir=/no/such", 126, "no such directory"),
            ("cmd=sh&dir=/&env=PATH=", 127, "command not found"),
        ] {
            let unfit = command(query).program.unwrap_err();
            assert!(unfit.code == code && unfit.message.contains(says), "{query}: {unfit:?}");
        }
    }

    #[test]
    fn what_is_given_comes_over_what_is_usual() {
        let one = command("cmd=sh&env=A=2&env=B=3&tty=true");
        let of = |name: &str| one.environment.get(OsStr::new(name)).cloned().unwrap();
        assert_eq!((of("A"), of("B"), of("HOME")), ("2".into(), "3".into(), "/home/sprite".into()));
        assert_eq!(of("TERM"), "xterm-256color");
        assert_eq!(one.terminal, Some(Size { rows: 24, cols: 80 }));
        assert!(one.stdin && !command("cmd=sh").stdin && !command("cmd=sh&tty=true&stdin=false").stdin);
        assert_eq!(
            command("cmd=sh&env=TERM=dumb&tty=true").environment.get(OsStr::new("TERM")),
            Some(&"dumb".into())
        );
        assert_eq!(command("cmd=sh").directory, Path::new("/home/sprite/"));
        assert_eq!(command("cmd=sh&dir=src").directory, Path::new("/home/sprite/src"));
        assert!(Command::new(ExecQuery::default(), &BTreeMap::new()).is_none());
    }
}
