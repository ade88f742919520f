//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Manage this sprite from inside: its services, its checkpoints, and what it knows of itself.
///
/// Everything goes through the management socket, which is only there in a sprite. `sprite-env curl` makes
/// any call to it; `sprite-env curl /v1/services` lists the services.
#[derive(Debug, Parser)]
#[command(name = super::NAME, version, arg_required_else_help = true)]
pub(super) struct Arguments {
    /// The management socket
    #[arg(long, default_value = "/.sprite/api.sock", value_name = "PATH", global = true)]
    pub(super) socket: PathBuf,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the sprite's name, URL, and open ports
    Info,
    /// Programs that run for as long as the sprite does, and start with it
    #[command(alias = "service")]
    Services {
        #[command(subcommand)]
        command: Services,
    },
    /// Checkpoints of the sprite's disk
    #[command(alias = "checkpoint")]
    Checkpoints {
        #[command(subcommand)]
        command: Checkpoints,
    },
    /// Make a call to the management socket and print the answer
    Curl {
        /// The method; POST if there is a body, else GET
        #[arg(short = 'X', long = "request", value_name = "METHOD")]
        method: Option<String>,
        /// The body, as JSON
        #[arg(short, long, value_name = "BODY")]
        data: Option<String>,
        /// The path, such as /v1/services
        path: String,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Services {
    /// List them
    #[command(alias = "ls")]
    List,
    /// Show one
    Get { name: String },
    /// Define one, or define it anew, and start it
    Create(Create),
    /// Start one
    Start {
        name: String,
        /// How long to show what it writes
        #[arg(long, default_value = "5s")]
        duration: String,
    },
    /// Stop one, until it is started by hand
    Stop {
        name: String,
        /// How long it has before it is killed
        #[arg(long, default_value = "10s")]
        timeout: String,
    },
    /// Stop and start one
    Restart {
        name: String,
        /// How long to show what it writes
        #[arg(long, default_value = "5s")]
        duration: String,
    },
    /// Show the end of what one has written
    Logs {
        name: String,
        /// How many lines
        #[arg(long, short = 'n', default_value_t = 100)]
        lines: u32,
    },
    /// Send one a signal
    Signal { name: String, signal: String },
    /// Stop one and forget it; its log stays
    #[command(alias = "rm")]
    Delete { name: String },
}

#[derive(Debug, Subcommand)]
pub(super) enum Checkpoints {
    /// Keep the disk as it is now
    Create {
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        comment: String,
    },
    /// List them; the last five can be read below /.sprite/checkpoints
    #[command(alias = "ls")]
    List {
        /// Also those that were made by themselves
        #[arg(long)]
        include_auto: bool,
    },
    /// Show one
    Get { id: String },
    /// Bring one back. Everything that runs in the sprite ends
    Restore { id: String },
    /// Remove one
    #[command(alias = "rm")]
    Delete { id: String },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name
    pub(super) name: String,
    /// The program
    #[arg(long)]
    pub(super) cmd: String,
    /// Its arguments, separated by commas; may be repeated
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true)]
    pub(super) args: Vec<String>,
    /// Its environment: NAME=VALUE, separated by commas; may be repeated
    #[arg(long, value_delimiter = ',', value_parser = pair)]
    pub(super) env: Vec<(String, String)>,
    /// Where it runs
    #[arg(long)]
    pub(super) dir: Option<String>,
    /// Services that must run before it
    #[arg(long, value_delimiter = ',')]
    pub(super) needs: Vec<String>,
    /// The port that the sprite's URL leads to
    #[arg(long)]
    pub(super) http_port: Option<u16>,
    /// How long to show what it writes
    #[arg(long, default_value = "5s")]
    pub(super) duration: String,
    /// Do not show what it writes
    #[arg(long)]
    pub(super) no_stream: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
