//! `sprite checkpoint` and `sprite restore`.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    context::Context,
    error::{Error, FAILED},
    net::{Api, Body, segment},
    output::{self, ago, fields, table, text},
};

const EXAMPLES: &str = "\
Examples:
  sprite checkpoint create --comment \"before the upgrade\"
  sprite checkpoint list
  sprite restore v1
  sprite fork copy --checkpoint v1       a new sprite from it

A checkpoint keeps the sprite's disk as it is, without stopping it. Inside, the last five can be read below
/.sprite/checkpoints. Restoring one ends what runs in the sprite; the disk as it was until then becomes an
automatic checkpoint (`--include-auto`).";

/// What can be typed.
#[derive(Debug, Subcommand)]
pub(crate) enum Checkpoint {
    /// Save the sprite's disk
    #[command(after_help = EXAMPLES)]
    Create {
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        comment: String,
    },
    /// List checkpoints
    #[command(visible_alias = "ls", after_help = EXAMPLES)]
    List {
        /// Only this one and those that descend from it
        #[arg(long, value_name = "ID")]
        history: Option<String>,
        /// Also those that were made by themselves
        #[arg(long)]
        include_auto: bool,
    },
    /// Show one checkpoint
    #[command(after_help = EXAMPLES)]
    Info {
        /// Its id
        id: String,
    },
    /// Delete a checkpoint
    #[command(visible_alias = "rm", after_help = EXAMPLES)]
    Delete {
        /// Its id
        id: String,
    },
    /// Bring a checkpoint back
    #[command(after_help = EXAMPLES)]
    Restore(Restore),
}

/// What can be typed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
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
                let mut shown: Vec<_> = shown.map(|key| (key, text(checkpoint, key).to_owned())).into();
                let history = checkpoint["history"].as_array().into_iter().flatten();
                let history: Vec<&str> = history.filter_map(Value::as_str).collect();
                shown.push(("history", history.join(" ")));
                fields(&shown)
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
