//! What each verb does: its raw arguments, and its work.

pub(crate) mod api;
pub(crate) mod auth;
pub(crate) mod checkpoint;
pub(crate) mod completion;
pub(crate) mod config;
pub(crate) mod console;
pub(crate) mod create;
pub(crate) mod destroy;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod info;
pub(crate) mod list;
pub(crate) mod org;
pub(crate) mod proxy;
pub(crate) mod restart;
pub(crate) mod services;
pub(crate) mod sessions;
pub(crate) mod sleep;
pub(crate) mod upgrade;
pub(crate) mod url;
pub(crate) mod use_sprite;
pub(crate) mod wake;
pub(crate) mod why;

use clap::ValueEnum;

use crate::{args::Command, context::Context, error::Error, output};

/// Runs a verb.
pub(crate) async fn run(context: &Context, command: Command) -> Result<(), Error> {
    match command {
        Command::Create(args) => create::run(context, args).await,
        Command::Use(args) => use_sprite::run(context, args).await,
        Command::List(args) => list::run(context, args).await,
        Command::Info(args) => info::run(context, args).await,
        Command::Destroy(args) => destroy::run(context, args).await,
        Command::Url(args) => url::run(context, args).await,
        Command::Config(args) => config::run(context, args).await,
        Command::Exec(args) => exec::run(context, args).await,
        Command::Console(args) => console::run(context, args).await,
        Command::Sessions(args) => sessions::run(context, args).await,
        Command::Attach(args) => sessions::attach(context, args).await,
        Command::Proxy(args) => proxy::run(context, args).await,
        Command::Services(args) => services::run(context, args).await,
        Command::Why(args) => why::run(context, args).await,
        Command::Sleep(args) => sleep::run(context, args).await,
        Command::Wake(args) => wake::run(context, args).await,
        Command::Restart(args) => restart::run(context, args).await,
        Command::Checkpoint(args) => checkpoint::run(context, args).await,
        Command::Fork(args) => fork::run(context, args).await,
        Command::Restore(args) => checkpoint::restore(context, args).await,
        Command::Login(args) => auth::login(context, args).await,
        Command::Logout(args) => auth::logout(context, &args),
        Command::Auth(args) => auth::run(context, args).await,
        Command::Org(args) => org::run(context, args).await,
        Command::Api(args) => api::run(context, args),
        Command::Completion(args) => completion::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Version => output::line(&upgrade::version()),
    }
}

/// Who may use a sprite's URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum UrlAuth {
    /// Anyone
    Public,
    /// Members of the organization, with a token
    #[value(alias = "sprite")]
    Default,
}

impl UrlAuth {
    /// The word on the wire.
    pub(crate) const fn wire(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Default => "sprite",
        }
    }
}
