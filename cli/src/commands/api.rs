//! `sprite api`: curl, with the token where no list of processes shows it.

use std::{
    io::Write,
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::Command,
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    pipe::{PipeFlags, pipe_with},
};

use crate::{context::Context, error::Error};

/// What a shell ends with if a program is not there.
const NOT_FOUND: u8 = 127;

const EXAMPLES: &str = "\
Examples:
  sprite api /v1/sprites
  sprite api -s web /exec -X GET                   relative to the sprite, with -s
  sprite api /v1/sprites/web -- -X PUT -d '{\"labels\":[\"a\"]}'
  sprite api -s web '/fs/read?path=/etc/hostname' -- -o hostname

Everything after the path is for curl.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The path, from the API's base on, or from the sprite's with -s
    path: String,
    /// Options for curl
    #[arg(last = true, value_name = "CURL OPTIONS")]
    curl: Vec<String>,
}

pub(crate) fn run(context: &Context, args: Args) -> Result<(), Error> {
    let api = context.api()?;
    let path = if args.path.starts_with('/') { args.path } else { format!("/{}", args.path) };
    let url = match &context.global.sprite {
        Some(sprite) => api.inside(sprite, &path),
        None => api.url(&path),
    };
    // Fits into a pipe's buffer many times over, so that nobody has to read yet.
    let mut config = format!("header = \"Authorization: Bearer {}\"\n", quoted(api.token().expose()));
    if let Some(file) = api.cacert() {
        config.push_str(&format!("cacert = \"{}\"\n", quoted(&file.to_string_lossy())));
    }
    let (from, to) = pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
    std::fs::File::from(to).write_all(config.as_bytes())?;
    // curl is to inherit this end, and only this one.
    fcntl_setfd(&from, FdFlags::empty()).map_err(std::io::Error::from)?;
    let mut curl = Command::new("curl");
    curl.arg("--config").arg(format!("/dev/fd/{}", from.as_raw_fd())).args(["-sS", "--globoff"]);
    api.trace(|| format!("curl {url}"));
    // Returns only if it failed.
    let error = curl.args(args.curl).arg("--url").arg(url).exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        eprintln!("sprite: curl is not installed, and `sprite api` needs it");
        return Err(Error::Exit(NOT_FOUND));
    }
    Err(error.into())
}

/// As a curl configuration file wants text between quotes.
fn quoted(text: &str) -> String {
    text.chars().fold(String::new(), |mut quoted, letter| {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
        quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_can_not_leave_its_quotes() {
        assert_eq!(quoted("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
