//! Command lines as people learned them, made into those that clap reads.
//!
//! The oldest documentation writes long options with one dash (`-dir`, `-tty`), the newest with two. And
//! whatever follows the first word of a remote command belongs to that command, whether or not it looks
//! like an option of ours.

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, Command};

/// Rewrites a command line, the program's name included.
pub(crate) fn modernize(root: &Command, line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut line = line.into_iter();
    let mut modern: Vec<OsString> = line.next().into_iter().collect();
    let mut verb = root;
    // How many more plain words are ours; `None` while any number may come.
    let mut ours = ours(verb);
    while let Some(word) = line.next() {
        let Some(text) = word.to_str() else {
            modern.push(word);
            continue;
        };
        if text == "--" {
            modern.push(word);
            break;
        }
        if let Some(option) = Option_::read(root, verb, text) {
            modern.push(option.modern);
            if option.wants_value {
                modern.extend(line.next());
            }
            continue;
        }
        if text.starts_with('-') && text != "-" {
            // Unknown: clap says so.
            modern.push(word);
            continue;
        }
        if let Some(next) = verb.find_subcommand(text) {
            verb = next;
            ours = self::ours(verb);
            modern.push(word);
            continue;
        }
        match &mut ours {
            Some(0) => {
                // Here the words begin that are not ours.
                modern.push("--".into());
                modern.push(word);
                break;
            }
            Some(left) => {
                *left -= 1;
                modern.push(word);
                if *left == 0 && verb.get_name() == "api" {
                    // curl's options may follow without a `--`.
                    modern.extend(line.next().map_or(Vec::new(), |next| {
                        if next == "--" { vec![next] } else { vec!["--".into(), next] }
                    }));
                    break;
                }
            }
            None => modern.push(word),
        }
    }
    modern.extend(line);
    modern
}

/// How many plain words come before the ones that are passed on; `None` if none are.
fn ours(verb: &Command) -> Option<usize> {
    let passed_on = |arg: &&Arg| arg.is_trailing_var_arg_set() || arg.is_last_set();
    verb.get_positionals().find(passed_on)?;
    Some(verb.get_positionals().filter(|arg| !passed_on(arg)).count())
}

/// An option as it was typed, and as clap wants it.
struct Option_ {
    modern: OsString,
    wants_value: bool,
}

impl Option_ {
    fn read(root: &Command, verb: &Command, text: &str) -> Option<Self> {
        let find = |is: &dyn Fn(&&Arg) -> bool| {
            verb.get_arguments().chain(root.get_arguments()).find(is).map(|arg| {
                let action = arg.get_action();
                matches!(action, ArgAction::Set | ArgAction::Append)
            })
        };
        let dashes = text.bytes().take_while(|byte| *byte == b'-').count();
        let body = &text[dashes..];
        let (name, value) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
        let long = |arg: &&Arg| {
            arg.get_long() == Some(name)
                || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        };
        let may_be_long = dashes == 2 || (dashes == 1 && name.chars().count() > 1);
        if let Some(takes_value) = may_be_long.then(|| find(&long)).flatten() {
            let modern = OsString::from(format!("--{body}"));
            return Some(Self { modern, wants_value: takes_value && value.is_none() });
        }
        if dashes == 1 {
            let mut letters = body.chars();
            let (letter, rest) = (letters.next()?, letters.as_str());
            let short = |arg: &&Arg| arg.get_short() == Some(letter);
            let takes_value = find(&short)?;
            return Some(Self {
                modern: OsStr::new(text).to_owned(),
                wants_value: takes_value && rest.is_empty(),
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modern(line: &str) -> String {
        let mut command = super::super::command();
        command.build();
        let words = modernize(&command, line.split(' ').map(OsString::from));
        words.iter().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        assert_eq!(modern("sprite exec -dir /tmp -tty ls"), "sprite exec --dir /tmp --tty -- ls");
        assert_eq!(modern("sprite exec -env=A=b -id 7"), "sprite exec --env=A=b --id 7");
        assert_eq!(modern("sprite -org acme -sprite web info"), "sprite --org acme --sprite web info");
        assert_eq!(modern("sprite exec --dir /tmp -- ls"), "sprite exec --dir /tmp -- ls");
        assert_eq!(modern("sprite proxy -W :22"), "sprite proxy -W :22");
    }

    #[test]
    fn a_remote_commands_options_are_its_own() {
        assert_eq!(modern("sprite x ls -dir -tty -s x"), "sprite x -- ls -dir -tty -s x");
        assert_eq!(modern("sprite exec -s web git log --json"), "sprite exec -s web -- git log --json");
        assert_eq!(modern("sprite exec -- sh -c x -- y"), "sprite exec -- sh -c x -- y");
        assert_eq!(modern("sprite exec list --help"), "sprite exec -- list --help");
    }

    #[test]
    fn curls_options_follow_the_path_with_or_without_dashes() {
        assert_eq!(modern("sprite api -s web /exec -X GET"), "sprite api -s web /exec -- -X GET");
        assert_eq!(modern("sprite api /v1/sprites -- -i"), "sprite api /v1/sprites -- -i");
        assert_eq!(modern("sprite api /v1/sprites"), "sprite api /v1/sprites");
    }

    #[test]
    fn what_is_unknown_is_left_for_clap_to_refuse() {
        assert_eq!(modern("sprite list -nonsense"), "sprite list -nonsense");
        assert_eq!(modern("sprite exec -q ls"), "sprite exec -q -- ls");
    }
}
