//! `sprite org`

use clap::Subcommand;
use serde_json::json;

use super::auth;
use crate::{
    config::keyring,
    context::Context,
    error::Error,
    output::{self, table},
};

const AUTH_EXAMPLES: &str = "\
Examples:
  sprite org auth https://api.sprites.example
  sprite org auth -o acme --token - < token.txt";

const LIST_EXAMPLES: &str = "\
Examples:
  sprite org list
  sprite org list --json | jq -r '.[].org'";

const LOGOUT_EXAMPLES: &str = "\
Examples:
  sprite org logout -o acme";

const KEYRING_EXAMPLES: &str = "\
Examples:
  sprite org keyring enable     move stored tokens into the desktop's keyring
  sprite org keyring disable    move them into ~/.sprites/sprites.json";

/// What can be typed.
#[derive(Debug, Subcommand)]
pub(crate) enum Org {
    /// Store a token of an organization
    #[command(after_help = AUTH_EXAMPLES)]
    Auth(auth::Login),
    /// List the organizations that tokens are stored for
    #[command(visible_alias = "ls", after_help = LIST_EXAMPLES)]
    List,
    /// Forget the token of the organization named by -o, or of all
    #[command(after_help = LOGOUT_EXAMPLES)]
    Logout {
        /// Of all organizations, without asking for a name
        #[arg(long)]
        force: bool,
    },
    /// Where tokens are kept
    #[command(subcommand)]
    Keyring(Keyring),
}

/// Where tokens are kept.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum Keyring {
    /// In the desktop's keyring
    #[command(after_help = KEYRING_EXAMPLES)]
    Enable,
    /// In a file that only you can read
    #[command(after_help = KEYRING_EXAMPLES)]
    Disable,
}

pub(crate) async fn run(context: &Context, args: Org) -> Result<(), Error> {
    match args {
        Org::Auth(args) => auth::login(context, args).await,
        Org::List => list(context),
        Org::Logout { force } => logout(context, force),
        Org::Keyring(where_to) => move_tokens(context, where_to),
    }
}

fn list(context: &Context) -> Result<(), Error> {
    let store = context.store()?;
    let selected = store.state.current_selection.as_ref();
    let mut all = Vec::new();
    for (url, server) in &store.state.urls {
        for (org, entry) in &server.orgs {
            let is_selected = selected.is_some_and(|now| now.url == *url && now.org == *org);
            let kept = if entry.use_keyring { "keyring" } else { "file" };
            all.push(json!({ "org": org, "url": url, "selected": is_selected, "token_in": kept }));
        }
    }
    context.output.show(&json!(all), |_| {
        let cell = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let rows = all.iter().map(|org| {
            let mark = if org["selected"] == true { "*" } else { "" };
            vec![mark.to_owned(), cell(&org["org"]), cell(&org["url"]), cell(&org["token_in"])]
        });
        table(&["", "ORG", "API", "TOKEN IN"], &rows.collect::<Vec<_>>())
    })
}

fn logout(context: &Context, force: bool) -> Result<(), Error> {
    let org = context.global.org.as_deref();
    if org.is_none() && !force {
        return Err(Error::said("name the organization with -o ORG, or forget all with --force"));
    }
    for name in context.store()?.forget(None, org)? {
        output::note(&format!("Forgot the token of {name}"));
    }
    Ok(())
}

fn move_tokens(context: &Context, where_to: Keyring) -> Result<(), Error> {
    let to_keyring = matches!(where_to, Keyring::Enable);
    if to_keyring {
        keyring::available().map_err(|error| Error::said(format!("there is no keyring to use: {error}")))?;
    }
    let mut store = context.store()?;
    let selection = store.state.current_selection.clone();
    let known: Vec<(String, String)> = store
        .state
        .urls
        .iter()
        .flat_map(|(url, server)| server.orgs.keys().map(move |org| (url.clone(), org.clone())))
        .collect();
    let mut tokens = Vec::new();
    for (url, org) in known {
        if let Some(token) = store.token(&url, &org)? {
            tokens.push((url, org, token));
        }
    }
    store.state.keyring = Some(to_keyring);
    for (url, org, token) in &tokens {
        store.remember(url, org, token)?;
        if !to_keyring {
            // It is in the file now; that a keyring keeps a copy which it doesn't delete is not our failure.
            let _ = keyring::delete(&keyring::key(url, org));
        }
    }
    store.state.current_selection = selection;
    store.save()?;
    let place = if to_keyring { "the keyring".to_owned() } else { store.path().display().to_string() };
    output::note(&format!("{} tokens are in {place}; new ones go there too", tokens.len()));
    Ok(())
}
