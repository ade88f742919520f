//! `sprite checkpoint` and `sprite restore`. The server does not offer them yet and says so (501).

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    context::Context,
    error::{Error, FAILED},
    net::{Api, Body, segment},
    output::{self, ago, fields, table, text},
};

const LATER: &str = "\
Examples:
  sprite checkpoint create --comment \"before the upgrade\"
  sprite checkpoint list
  sprite restore v1

Checkpoints come with a later version of the server; until then it answers that it has none.";

/// What can be typed.
#[derive(Debug, Subcommand)]
pub(crate) enum Checkpoint {
    /// Save the sprite's disk
    #[command(after_help = LATER)]
    Create {
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        comment: String,
    },
    /// List checkpoints
    #[command(visible_alias = "ls", after_help = LATER)]
    List {
        /// Only those that this one descends from
        #[arg(long, value_name = "ID")]
        history: Option<String>,
        /// Also those that were made by themselves
        #[arg(long)]
        include_auto: bool,
    },
    /// Show one checkpoint
    #[command(after_help = LATER)]
    Info {
        /// Its id
        id: String,
    },
    /// Delete a checkpoint
    #[command(visible_alias = "rm", after_help = LATER)]
    Delete {
        /// Its id
        id: String,
    },
    /// Bring a checkpoint back
    #[command(after_help = LATER)]
    Restore(Restore),
}

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = LATER)]
pub(crate) struct Restore {
    /// The checkpoint's id
    id: String,
}

pub(crate) async fn run(context: &Context, args: Checkpoint) -> Result<(), Error> {
    let sprite = context.sprite(None)?;
    let api = context.api()?;
    let one = |id: &str| api.inside(&sprite, &format!("/checkpoints/{}", segment(id)));
    match args {
        Checkpoint::Create { comment } => {
            let url = api.inside(&sprite, "/checkpoint");
            stream(context, &api, &url, Body::Json(json!({ "comment": comment }))).await
        }
        Checkpoint::List { history, include_auto } => {
            let history = segment(&history.unwrap_or_default());
            let url =
                api.inside(&sprite, &format!("/checkpoints?history={history}&includeAuto={include_auto}"));
            let all = api.call(Method::GET, &url, None).await?;
            context.output.show(&all, |all| {
                let rows = all.as_array().into_iter().flatten().map(|checkpoint| {
                    let made = ago(text(checkpoint, "create_time"));
                    vec![text(checkpoint, "id").to_owned(), made, text(checkpoint, "comment").to_owned()]
                });
                table(&["ID", "MADE", "COMMENT"], &rows.collect::<Vec<_>>())
            })
        }
        Checkpoint::Info { id } => {
            context.output.show(&api.call(Method::GET, one(&id), None).await?, |checkpoint| {
                let shown = ["id", "create_time", "source_id", "comment"];
                fields(&shown.map(|key| (key, text(checkpoint, key).to_owned())))
            })
        }
        Checkpoint::Delete { id } => {
            api.call(Method::DELETE, one(&id), None).await?;
            output::note(&format!("Deleted the checkpoint {id}"));
            Ok(())
        }
        Checkpoint::Restore(args) => restore(context, args).await,
    }
}

pub(crate) async fn restore(context: &Context, args: Restore) -> Result<(), Error> {
    let sprite = context.sprite(None)?;
    let api = context.api()?;
    let url = api.inside(&sprite, &format!("/checkpoints/{}/restore", segment(&args.id)));
    stream(context, &api, &url, Body::Nothing).await
}

async fn stream(context: &Context, api: &Api, url: &str, body: Body) -> Result<(), Error> {
    let mut failed = false;
    api.events(Method::POST, url, body, None, |event: Value| {
        failed |= event["type"] == "error";
        context.output.event(&event, |event| {
            event["data"].as_str().or_else(|| event["error"].as_str()).unwrap_or_default().to_owned()
        })
    })
    .await?;
    if failed { Err(Error::Exit(FAILED)) } else { Ok(()) }
}
