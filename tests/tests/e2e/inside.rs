//! What a program in a sprite can ask of it: `sprite-env` and the management socket.

use anyhow::ensure;
use serde_json::{Value, json};
use test_support::{Options, World};

/// Runs a command as a service and returns what it wrote and its exit code.
async fn run(world: &World, sprite: &str, cmd: &str, args: &[&str]) -> anyhow::Result<(String, i64)> {
    let url = format!("{}/v1/sprites/{sprite}/services/once?duration=20s", world.api());
    let body = json!({ "cmd": cmd, "args": args });
    let answer = world.client().put(url).bearer_auth(&world.token).json(&body).send().await?.text().await?;
    let events: Vec<Value> = answer.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let output = events.iter().filter(|event| event["type"] == "stdout" || event["type"] == "stderr");
    let text = output.filter_map(|event| event["data"].as_str()).collect();
    let code = events.iter().find(|event| event["type"] == "exit").map(|event| event["exit_code"].clone());
    Ok((text, code.and_then(|code| code.as_i64()).unwrap_or(-1)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sprite_knows_itself_and_manages_its_services() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create("mine", "public").await?;
    let (text, code) = run(&world, "mine", "/.sprite/bin/sprite-env", &["info"]).await?;
    let info: Value = serde_json::from_str(&text)?;
    ensure!(code == 0 && info["name"] == "mine", "{code} {text}");
    ensure!(info["url"].as_str().is_some_and(|url| url.contains(&sprite.host)), "{text}");

    let script = "set -e; export PATH=$PATH:/.sprite/bin
        sprite-env services create web --cmd /bin/sleep --args 1000 --env A=b --no-stream
        sprite-env services list
        sprite-env curl /v1/services/web
        sprite-env services stop web
        sprite-env services delete web";
    let (text, code) = run(&world, "mine", "/bin/sh", &["-c", script]).await?;
    ensure!(code == 0 && text.contains("\"web\"") && text.contains("\"stopped\""), "{code} {text}");
    let (status, _) = world.call("GET", "/v1/sprites/mine/services/web", None).await?;
    assert_eq!(status, 404, "it was deleted from inside");

    for (arguments, expected) in [
        (&["services", "get", "none"][..], "none"),
        (&["checkpoints", "get", "v7"], "v7"),
        (&["curl", "/v1/tasks"], "tasks"),
        (&["curl", "/nothing/here"], "/nothing/here"),
    ] {
        let (text, code) = run(&world, "mine", "/.sprite/bin/sprite-env", arguments).await?;
        ensure!(code == 1 && text.contains(expected), "{arguments:?}: {code} {text}");
    }
    world.stop().await
}
