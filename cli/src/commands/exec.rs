//! `sprite exec`

use std::{io::IsTerminal, path::PathBuf};

use frames::ExecQuery;

use super::sessions;
use crate::{
    context::Context,
    error::Error,
    net::Api,
    remote::{self, Target},
    term::raw,
};

mod upload;

/// What makes one argument a line for a shell. A plain word is a program's name.
const SHELL_MARKS: &[char] = &[
    ' ', '\t', '\n', ';', '|', '&', '<', '>', '(', ')', '$', '`', '"', '\'', '*', '?', '[', '{', '#', '~',
    '=',
];
/// Runs a line in bash where there is one, else in sh. Sessions' commands begin with it.
pub(crate) const IN_A_SHELL: &str = r#"exec "$(command -v bash || echo sh)" -c "$0""#;
/// A login shell: the user's, else bash, else sh.
const SHELL: &str = r#"exec "${SHELL:-$(command -v bash || echo sh)}" -l"#;

const EXAMPLES: &str = "\
Examples:
  sprite exec python -c \"print('hello')\"
  sprite exec \"for i in {1..10}; do date +%T; sleep 0.5; done\"    one argument is a line for a shell
  sprite exec -- ls -la
  sprite exec --dir /tmp --env KEY=value,OTHER=x env
  tar c . | sprite exec tar x -C /home/sprite/app                 stdin is passed on
  sprite exec --file ./app.py:/home/sprite/app.py python app.py
  sprite exec --tty bash                                          a terminal; Ctrl+\\ detaches
  sprite exec --detachable \"npm run dev\"                          goes on without us
  sprite exec                                                     lists what goes on
  sprite exec --id 42                                             comes back to it

It ends with the command's exit code: 126 if the program can't be run, 127 if it is not there, 128+N if
signal N ended it. Signals are passed on; a second Ctrl-C leaves. Ports that the command opens can be
reached at the same numbers here, unless --no-port-forward. Options come before the command; they may
be written with one dash or two.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Where to run it
    #[arg(long, value_name = "DIR")]
    dir: Option<String>,
    /// Variables for it, divided by commas; may be repeated
    #[arg(short, long, value_name = "K=V,K2=V2")]
    env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Let it go on when we leave
    #[arg(long)]
    detachable: bool,
    /// Attach to this session instead of running something
    #[arg(long, value_name = "SESSION", conflicts_with_all = ["dir", "env", "tty", "detachable", "file", "http_post", "command"])]
    id: Option<String>,
    /// Put a local file into the sprite first; may be repeated
    #[arg(long, value_name = "SRC:DEST")]
    file: Vec<String>,
    /// Use a plain POST instead of a WebSocket: without terminal, signals and ports
    #[arg(long, conflicts_with_all = ["tty", "detachable"])]
    http_post: bool,
    /// Do not forward the ports that it opens
    #[arg(long)]
    no_port_forward: bool,
    /// Give it no stdin
    #[arg(short = 'n', long)]
    no_stdin: bool,
    /// The command, or one line for a shell
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(context: &Context, args: Args) -> Result<(), Error> {
    if args.id.is_none() && args.command.is_empty() && args.file.is_empty() && !args.tty {
        return sessions::list(context).await;
    }
    let sprite = context.sprite(None)?;
    let api = context.api()?;
    if let Some(id) = args.id {
        return attach(&api, &sprite, id, !args.no_port_forward).await;
    }
    let mut query = query(context, &args)?;
    for file in &args.file {
        upload::run(&api, &sprite, file, args.dir.as_deref()).await?;
    }
    if query.argv.is_empty() {
        return Ok(());
    }
    if args.http_post {
        query.stdin = Some(!args.no_stdin && !std::io::stdin().is_terminal());
        return ended(remote::over_http(&api, &sprite, &query).await?);
    }
    start(&api, &sprite, query, !args.no_port_forward).await
}

/// Runs a command and ends as it does.
pub(crate) async fn start(api: &Api, sprite: &str, query: ExecQuery, forward: bool) -> Result<(), Error> {
    ended(Box::pin(remote::run(api, sprite, Target::Command(query), forward)).await?)
}

/// Attaches to a session and ends as it does.
pub(crate) async fn attach(api: &Api, sprite: &str, id: String, forward: bool) -> Result<(), Error> {
    ended(Box::pin(remote::run(api, sprite, Target::Session(id), forward)).await?)
}

fn ended(code: u8) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(Error::Exit(code)) }
}

fn query(context: &Context, args: &Args) -> Result<ExecQuery, Error> {
    let bytes = |text: &String| text.clone().into_bytes();
    let argv = match args.command.as_slice() {
        [] if args.tty => shell(),
        [line] if line.contains(SHELL_MARKS) => {
            ["/bin/sh", "-c", IN_A_SHELL, line].map(|word| word.as_bytes().to_vec()).to_vec()
        }
        words => words.iter().map(bytes).collect(),
    };
    let mut query = ExecQuery {
        path: argv.first().cloned(),
        argv,
        dir: args.dir.as_ref().map(bytes),
        stdin: Some(!args.no_stdin),
        detachable: args.detachable,
        ..ExecQuery::default()
    };
    if args.tty {
        with_terminal(context, &mut query);
    }
    query
        .env
        .extend(pairs(&args.env)?.into_iter().map(|(key, value)| (key.into_bytes(), value.into_bytes())));
    Ok(query)
}

/// The command of a shell for a person.
fn shell() -> Vec<Vec<u8>> {
    ["/bin/sh", "-c", SHELL].map(|word| word.as_bytes().to_vec()).to_vec()
}

/// A query for a shell in a terminal.
pub(crate) fn shell_query(context: &Context) -> ExecQuery {
    let argv = shell();
    let mut query =
        ExecQuery { path: argv.first().cloned(), argv, stdin: Some(true), ..ExecQuery::default() };
    with_terminal(context, &mut query);
    query
}

fn with_terminal(context: &Context, query: &mut ExecQuery) {
    query.tty = true;
    if let Some((cols, rows)) = raw::size() {
        (query.cols, query.rows) = (Some(cols), Some(rows));
    }
    let terminal = context.environment.terminal.iter();
    query.env.extend(terminal.map(|(name, value)| (name.as_bytes().to_vec(), value.clone().into_bytes())));
}

/// `K=V,K2=V2`, several times. A comma divides only where a name and `=` follow, so `A=1,2` is one value.
pub(crate) fn pairs(lists: &[String]) -> Result<Vec<(String, String)>, Error> {
    let is_name = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
    };
    let mut pairs: Vec<(String, String)> = Vec::new();
    for list in lists {
        let mut first = true;
        for part in list.split(',') {
            match part.split_once('=').filter(|(name, _)| is_name(name)) {
                Some((name, value)) => pairs.push((name.to_owned(), value.to_owned())),
                None if first => {
                    return Err(Error::said(format!("--env wants KEY=VALUE, not {list:?}")));
                }
                None => {
                    if let Some((_, value)) = pairs.last_mut() {
                        value.push(',');
                        value.push_str(part);
                    }
                }
            }
            first = false;
        }
    }
    Ok(pairs)
}

/// A local file and where it goes.
fn source_and_destination(text: &str) -> Result<(PathBuf, &str), Error> {
    match text.split_once(':') {
        Some((source, destination)) if !source.is_empty() && !destination.is_empty() => {
            Ok((PathBuf::from(source), destination))
        }
        Some(_) | None => Err(Error::said(format!("--file wants SRC:DEST, not {text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(list: &str) -> Result<Vec<(String, String)>, Error> {
        pairs(&[list.to_owned()])
    }

    #[test]
    fn commas_divide_variables_and_not_values() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(read("A=1,B=2").expect("reads"), [pair("A", "1"), pair("B", "2")]);
        assert_eq!(read("A=1,2,B=x=y").expect("reads"), [pair("A", "1,2"), pair("B", "x=y")]);
        assert_eq!(read("A=").expect("reads"), [pair("A", "")]);
        assert!(read("A").is_err() && read("=x").is_err() && read("").is_err());
    }

    #[test]
    fn a_plain_word_is_no_line_for_a_shell() {
        let is_line = |text: &str| text.contains(SHELL_MARKS);
        for word in ["ls", "./run.sh", "/usr/bin/env", "a-b_c.d", "python3.11", "npm:start", "@x,y+z%"] {
            assert!(!is_line(word), "{word}");
        }
        for line in ["npm run dev", "a|b", "echo $HOME", "x;y", "A=b", "ls *.c", "(x)", "cd ~"] {
            assert!(is_line(line), "{line}");
        }
    }

    #[test]
    fn files_have_a_source_and_a_destination() {
        let (source, destination) = source_and_destination("./a:/b/c:d").expect("both");
        assert_eq!((source, destination), (PathBuf::from("./a"), "/b/c:d"));
        assert!(["a", ":b", "a:", ""].iter().all(|text| source_and_destination(text).is_err()));
    }
}
