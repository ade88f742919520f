//! `sprite completion`, and the candidates that it offers.

use std::time::Duration;

use clap_complete::{CompletionCandidate, Shell, env::Shells};

use super::list;
use crate::{
    args::Global,
    context::{Context, Environment},
    error::Error,
    output,
};

/// Who presses Tab does not wait for long.
const PATIENCE: Duration = Duration::from_millis(800);
/// The variable by which a shell asks for candidates.
const VARIABLE: &str = "COMPLETE";

const EXAMPLES: &str = "\
Examples:
  source <(sprite completion bash)                              this bash, now
  sprite completion bash > ~/.local/share/bash-completion/completions/sprite
  sprite completion zsh > \"${fpath[1]}/_sprite\"
  sprite completion fish > ~/.config/fish/completions/sprite.fish

Names of sprites are completed too, if the API answers at once.";

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// For which shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let shell = args.shell.to_string();
    let shells = Shells::builtins();
    let completer =
        shells.completer(&shell).ok_or_else(|| Error::said(format!("no completions for {shell}")))?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "sprite", "sprite", "sprite", &mut script)?;
    output::raw(&script)
}

/// The names of the sprites, for a shell that completes one. Nothing at all is better than a wait.
pub(crate) fn names() -> Vec<CompletionCandidate> {
    fetch().unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

fn fetch() -> Option<Vec<String>> {
    let context = Context::new(Global::default(), Environment::read()).ok()?;
    let api = context.api().ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let all =
        runtime.block_on(async { tokio::time::timeout(PATIENCE, list::all(&api, "")).await }).ok()?.ok()?;
    Some(all.iter().filter_map(|sprite| sprite["name"].as_str().map(str::to_owned)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_that_is_offered_has_a_script() {
        for shell in clap::ValueEnum::value_variants() {
            let shell: &Shell = shell;
            assert!(Shells::builtins().completer(&shell.to_string()).is_some(), "{shell}");
        }
    }
}
