//! What `docs/cli.md` says is true.

use crate::{args, error};

const DOCS: &str = include_str!("../../docs/cli.md");

/// Every verb by its whole path, with its command.
fn verbs(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        let path = format!("{path} {}", verb.get_name());
        verbs(verb, &path, found);
        found.push((path, verb.clone()));
    }
}

#[test]
fn every_verb_and_every_option_is_documented() {
    let command = args::command();
    let mut all = Vec::new();
    verbs(&command, "sprite", &mut all);
    all.push(("sprite".to_owned(), command));
    for (path, verb) in all {
        if !verb.has_subcommands() || path == "sprite url" {
            assert!(DOCS.contains(&format!("`{path}")), "docs/cli.md does not speak of `{path}`");
        }
        for option in verb.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let Some(long) = option.get_long().filter(|long| !["help", "version"].contains(long)) else {
                continue;
            };
            assert!(DOCS.contains(&format!("--{long}")), "docs/cli.md does not speak of {path} --{long}");
        }
    }
}

#[test]
fn every_option_that_is_documented_exists() {
    let command = args::command();
    let mut all = Vec::new();
    verbs(&command, "sprite", &mut all);
    all.push(("sprite".to_owned(), command));
    let known: Vec<&str> =
        all.iter().flat_map(|(_, verb)| verb.get_arguments().filter_map(clap::Arg::get_long)).collect();
    let words = DOCS.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-');
    for option in words
        .filter_map(|word| word.strip_prefix("--"))
        .filter(|option| !option.starts_with('-') && !option.is_empty())
    {
        assert!(known.contains(&option), "docs/cli.md speaks of --{option}, which is none");
    }
}

#[test]
fn exit_codes_are_those_of_the_documentation() {
    let usage = args::command().try_get_matches_from(["sprite", "no-such-command"]).expect_err("unknown");
    assert_eq!(usage.exit_code(), 2);
    for (code, meaning) in [
        (0, "done"),
        (error::FAILED, "refused or failed"),
        (2, "no such command or option"),
        (126, "can't be run"),
        (127, "not there"),
    ] {
        let row = DOCS.lines().find(|line| line.starts_with(&format!("| {code} |")));
        assert!(
            row.is_some_and(|row| row.contains(meaning)),
            "exit code {code} is not documented as {meaning:?}"
        );
    }
    assert!(DOCS.contains(&format!("| {}+N |", error::SIGNALLED)));
}
