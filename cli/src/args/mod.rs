//! What can be typed: the raw arguments, as clap reads them. What they mean is decided in `commands`.

pub(crate) mod legacy;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::ArgValueCandidates;

use crate::commands::{
    api, auth, checkpoint, completion, config, console, create, destroy, exec, fork, info, list, org, proxy,
    restart, services, sessions, sleep, upgrade, url, use_sprite, wake, why,
};

/// Create sprites, run things in them, and see what they do.
///
/// A sprite is a named sandbox with a persistent disk and a URL. It sleeps when nothing uses it and
/// wakes when something does.
#[derive(Debug, Parser)]
#[command(name = "sprite", version, arg_required_else_help = true, subcommand_required = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The organization to act for
    #[arg(short, long, global = true, value_name = "ORG")]
    pub(crate) org: Option<String>,
    /// The sprite to act on
    #[arg(short, long, global = true, value_name = "NAME", add = ArgValueCandidates::new(completion::names))]
    pub(crate) sprite: Option<String>,
    /// Print JSON, for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say on stderr what is asked of the API and what it answers
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// The API to talk to, instead of SPRITES_API_URL or the one logged in to
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) api: Option<String>,
    /// A token, instead of SPRITES_TOKEN or the stored one; `-` reads it from stdin
    #[arg(long, global = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,
    /// Trust the certificates in this PEM file too, such as a private CA
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cacert: Option<std::path::PathBuf>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a sprite, then open a console in it
    Create(create::Args),
    /// Choose the sprite for this directory and those below
    Use(use_sprite::Args),
    /// List sprites
    #[command(visible_alias = "ls")]
    List(list::Args),
    /// Show one sprite
    Info(info::Args),
    /// Destroy a sprite with all its data
    Destroy(destroy::Args),
    /// Show a sprite's URL, or change who may use it
    Url(url::Args),
    /// Change a sprite's settings
    #[command(subcommand)]
    Config(config::Config),
    /// Run a command in a sprite
    #[command(visible_alias = "x")]
    Exec(exec::Args),
    /// Open a terminal in a sprite
    #[command(visible_alias = "c")]
    Console(console::Args),
    /// List, attach to and kill sessions
    #[command(subcommand, visible_alias = "s")]
    Sessions(sessions::Sessions),
    /// Attach to a session
    Attach(sessions::Attach),
    /// Forward local ports into a sprite
    Proxy(proxy::Args),
    /// Define and control services
    #[command(subcommand, visible_alias = "service")]
    Services(services::Services),
    /// Say why a sprite is awake and when it will sleep
    Why(why::Args),
    /// Put a sprite to sleep now, whoever uses it
    Sleep(sleep::Args),
    /// Wake a sprite
    Wake(wake::Args),
    /// Restart a sprite from its disk
    Restart(restart::Args),
    /// Save and bring back a sprite's disk
    #[command(subcommand, visible_alias = "checkpoints")]
    Checkpoint(checkpoint::Checkpoint),
    /// Bring back a checkpoint
    Restore(checkpoint::Restore),
    /// Make a sprite with the disk of another one
    Fork(fork::Args),
    /// Store a token for an API
    Login(auth::Login),
    /// Forget stored tokens
    Logout(auth::Logout),
    /// Store a token without being asked
    #[command(subcommand)]
    Auth(auth::Auth),
    /// Organizations and their tokens
    #[command(subcommand, visible_aliases = ["orgs", "organizations", "o"])]
    Org(org::Org),
    /// Call the API with curl, authenticated
    Api(api::Args),
    /// Print shell completions
    Completion(completion::Args),
    /// Say how to get a newer `sprite`
    Upgrade(upgrade::Args),
    /// Print the version
    Version,
}

/// The commands by what they are for, in the order in which people meet them.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Sprites", &["create", "use", "list", "info", "url", "config", "destroy"]),
    ("Inside a sprite", &["exec", "console", "sessions", "attach", "proxy", "services"]),
    ("Sleep and state", &["why", "sleep", "wake", "restart", "checkpoint", "restore", "fork"]),
    ("Account", &["login", "logout", "auth", "org"]),
    ("More", &["api", "completion", "upgrade", "version", "help"]),
];

const EXAMPLES: &str = "\
Examples:
  sprite create web                       make a sprite and open a console in it
  sprite use web                          act on it from now on, in this directory
  sprite exec npm test                    run a command
  sprite exec \"for i in 1 2 3; do echo $i; done\"
  sprite console                          a terminal; Ctrl+\\ detaches, `sprite attach` comes back
  sprite proxy 3000 5432                  its ports, as if they were local
  sprite why                              who keeps it awake, and when it will sleep

`sprite help COMMAND` explains a command. Exit codes: 0 done, 1 failed, 2 no such command or option;
`exec` ends with the code of what it ran.";

/// The command line, with the verbs in groups.
pub(crate) fn command() -> clap::Command {
    let command = Arguments::command();
    let mut verbs = String::new();
    for (title, names) in GROUPS {
        verbs.push_str(&format!("\n\u{1b}[1m{title}:\u{1b}[0m\n"));
        for name in names {
            let about = match command.find_subcommand(name) {
                Some(verb) => verb.get_about().map(ToString::to_string).unwrap_or_default(),
                None => "Explain a command".to_owned(),
            };
            verbs.push_str(&format!("  {name:<12}{about}\n"));
        }
    }
    let template =
        format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{verbs}\n{{options}}{{after-help}}");
    command.help_template(clap::builder::StyledStr::from(template)).after_help(EXAMPLES)
}

/// Reads a command line, or explains it and ends the program.
pub(crate) fn parse(line: impl IntoIterator<Item = std::ffi::OsString>) -> Arguments {
    let mut command = command();
    command.build();
    let line = legacy::modernize(&command, line);
    match command.try_get_matches_from_mut(line).and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn help_names_every_verb_once() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        grouped.sort_unstable();
        let command = command();
        let mut verbs: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        verbs.push("help");
        verbs.sort_unstable();
        assert_eq!(grouped, verbs);
    }

    /// Everything that a person could ask for help about.
    fn every<'a>(command: &'a clap::Command, path: &str, found: &mut Vec<(String, &'a clap::Command)>) {
        for verb in command.get_subcommands() {
            let path = format!("{path} {}", verb.get_name());
            found.push((path.clone(), verb));
            every(verb, &path, found);
        }
    }

    #[test]
    fn every_verb_teaches_by_example() {
        let command = command();
        let mut verbs = Vec::new();
        every(&command, "sprite", &mut verbs);
        for (path, verb) in verbs {
            if verb.has_subcommands() && !path.ends_with("url") || path == "sprite version" {
                continue;
            }
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{path} has no example");
            assert!(help.contains("sprite "), "{path} has no example");
        }
    }
}
