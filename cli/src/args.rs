//! What can be typed.

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Create sprites and see what they do.
///
/// A sprite is a named sandbox with a persistent disk and a URL. It sleeps when nothing uses it and
/// wakes when something does.
#[derive(Debug, Parser)]
#[command(name = "sprite", version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The API to talk to
    #[arg(
        long,
        global = true,
        env = "SPRITES_API_URL",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    pub(crate) api: String,
    /// The token that says who you are
    #[arg(
        long,
        global = true,
        env = "SPRITES_TOKEN",
        hide_env_values = true,
        default_value = "",
        value_name = "TOKEN"
    )]
    pub(crate) token: String,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "After `make run`:\n  . .run/env; export SPRITES_API_URL SPRITES_TOKEN\n  sprite list\n  sprite why hello";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a sprite
    Create {
        /// Its name: lowercase letters, digits and single hyphens
        name: String,
        /// Who may use its URL
        #[arg(long, value_enum, default_value_t = Auth::Default)]
        auth: Auth,
    },
    /// List sprites
    #[command(alias = "ls")]
    List {
        /// Only those whose names begin with this
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Show one sprite
    Info {
        /// Its name
        name: String,
    },
    /// Show a sprite's URL, or change who may use it
    Url {
        /// The sprite's name
        name: String,
        /// Who may use it from now on
        #[arg(long, value_enum)]
        auth: Option<Auth>,
    },
    /// Say why a sprite is awake and when it will sleep
    Why {
        /// Its name
        name: String,
    },
    /// Put a sprite to sleep now, whoever uses it
    Sleep {
        /// Its name
        name: String,
        /// Keep only its disk, not its memory
        #[arg(long)]
        cold: bool,
    },
    /// Wake a sprite
    Wake {
        /// Its name
        name: String,
    },
    /// Destroy a sprite with all its data
    Destroy {
        /// Its name
        name: String,
        /// Do not ask
        #[arg(long)]
        force: bool,
    },
    /// Print shell completions
    Completion {
        /// For which shell
        shell: Shell,
    },
}

/// Who may use a sprite's URL.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Auth {
    /// Anyone
    Public,
    /// Members of the organization, with a token
    #[value(alias = "sprite")]
    Default,
}

impl Auth {
    /// The word on the wire.
    pub(crate) const fn wire(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Default => "sprite",
        }
    }
}
