//! Who may enter, and what never does.

use std::time::Duration;

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use test_support::{Answer, Options, Raw, SpriteUrl, World, eventually};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

const SOON: Duration = Duration::from_secs(10);
/// Promised for every open connection of a revoked token (T32).
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

fn token_id(token: &str) -> &str {
    token.split('/').nth(2).unwrap_or_default()
}

async fn revoke(world: &World, token: &str) -> anyhow::Result<()> {
    let output = tokio::process::Command::new(test_support::program(test_support::Program::Agent)?)
        .args(["token", "revoke", token_id(token), "--state-dir"])
        .arg(world.state_dir())
        .output()
        .await?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The answer without what differs between any two answers.
fn shape(answer: &Answer) -> anyhow::Result<(u16, Value, Vec<String>)> {
    let mut body = answer.json()?;
    body.as_object_mut().context("an object")?.remove("request_id");
    let mut names: Vec<String> = answer.headers.keys().map(ToString::to_string).collect();
    names.sort();
    Ok((answer.status, body, names))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_a_private_sprite_can_not_be_told_from_an_absent_one_and_stays_asleep()
-> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let private = world.create("secret", "default").await?;
    let absent = SpriteUrl { host: private.host.replacen("secret", "absent", 1), name: "absent".into() };
    let refused = world.get(&private, "/").await?;
    assert_eq!(refused.status, 401);
    assert!(refused.header("www-authenticate").starts_with("Bearer"));
    assert!(refused.header("content-type").starts_with("application/json"));
    assert_eq!(shape(&refused)?, shape(&world.get(&absent, "/").await?)?);
    // T33: whatever it is, it is a 401 and never a redirect.
    for method in ["POST", "PUT", "OPTIONS"] {
        let answer = Answer::read(world.request(method, &private, "/x").send().await?).await?;
        assert_eq!(answer.status, 401, "{method}");
    }
    let mut upgrade = Raw::connect(world.http).await?;
    let head =
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n";
    upgrade.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n{head}\r\n", private.host)).await?;
    assert!(upgrade.until("\r\n", SOON).await?.contains("401"));
    assert_eq!(world.status("secret").await?, "cold");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owners_token_opens_a_private_sprite_and_never_enters_it() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("mine", "default").await?;
    let request = world
        .request("GET", &sprite, "/echo")
        .bearer_auth(&world.token)
        .header("X-Forwarded-For", "6.6.6.6")
        .header("X-Forwarded-Host", "evil.example")
        .header("Forwarded", "for=6.6.6.6")
        .header("X-Sprite-Org", "forged")
        .header("fly-replay-src", "state=proxy::x");
    let echo = Answer::read(request.send().await?).await?;
    assert_eq!(echo.status, 200, "{}", echo.body);
    assert!(!echo.body.contains(&world.token) && !echo.body.contains("spr_"), "{}", echo.body);
    assert!(!echo.body.contains("6.6.6.6") && !echo.body.contains("evil"), "{}", echo.body);
    assert!(!echo.body.contains("forged") && !echo.body.contains("fly-replay"), "{}", echo.body);
    let seen = echo.json()?;
    let header = |name: &str| -> Option<String> {
        let all = seen["headers"].as_array()?;
        Some(all.iter().find(|pair| pair[0] == name)?[1].as_str()?.to_owned())
    };
    assert_eq!(header("host").as_deref(), Some(sprite.host.as_str()));
    assert_eq!(header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(header("x-forwarded-proto").as_deref(), Some("http"));
    assert_eq!(header("authorization"), None);
    assert!(header("x-request-id").is_some());
    // Another organization's token opens nothing, and learns nothing.
    let stranger = world.mint("other").await?;
    let answer =
        Answer::read(world.request("GET", &sprite, "/").bearer_auth(&stranger).send().await?).await?;
    assert!(matches!(answer.status, 401 | 404), "{}", answer.status);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorization_that_is_not_ours_belongs_to_the_app() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("app", "public").await?;
    for theirs in ["Bearer eyJhbGciOi.J9", "Basic dXNlcjpwYXNz", "Bearer a/b/c/d"] {
        let request = world.request("GET", &sprite, "/echo").header("Authorization", theirs);
        let echo = Answer::read(request.send().await?).await?;
        assert!(echo.body.contains(theirs), "{theirs}: {}", echo.body);
    }
    let ours = world.request("GET", &sprite, "/echo").bearer_auth(&world.token);
    let echo = Answer::read(ours.send().await?).await?;
    assert!(echo.status == 200 && !echo.body.contains("spr_"), "{}", echo.body);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_for_the_parent_domain_is_dropped() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("baker", "public").await?;
    let answer = world.get(&sprite, "/set-cookie").await?;
    let cookies: Vec<_> = answer.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["own=1; Path=/"]);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_refused_at_once_and_its_open_connections_end() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("door", "default").await?;
    let token = world.mint("acme").await?;

    let mut request = format!("ws://127.0.0.1:{}/ws", world.http).into_client_request()?;
    request.headers_mut().insert("Host", sprite.host.parse()?);
    request.headers_mut().insert("Authorization", format!("Bearer {token}").parse()?);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await?;
    socket.send(Message::text("hello")).await?;
    assert_eq!(socket.next().await.context("an echo")??, Message::text("hello"));
    let mut events = world.request("GET", &sprite, "/sse?ms=50").bearer_auth(&token).send().await?;
    assert!(events.chunk().await?.is_some());

    revoke(&world, &token).await?;
    let ended = timeout(REVOKED_WITHIN, async { while let Some(Ok(_)) = socket.next().await {} }).await;
    assert!(ended.is_ok(), "the WebSocket outlived its token");
    let ended = timeout(REVOKED_WITHIN, async { while let Ok(Some(_)) = events.chunk().await {} }).await;
    assert!(ended.is_ok(), "the stream outlived its token");
    let answer = Answer::read(world.request("GET", &sprite, "/").bearer_auth(&token).send().await?).await?;
    assert_eq!(answer.status, 401);
    // The other token of the same organization is not touched.
    let answer =
        Answer::read(world.request("GET", &sprite, "/").bearer_auth(&world.token).send().await?).await?;
    assert_eq!(answer.status, 200);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sprite_made_private_is_private_from_the_next_request_on() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("flip", "public").await?;
    let mut events = world.request("GET", &sprite, "/sse?ms=50").send().await?;
    assert!(events.chunk().await?.is_some());
    let body = json!({ "url_settings": { "auth": "default" } });
    let (status, changed) = world.call("PUT", "/v1/sprites/flip", Some(body)).await?;
    assert_eq!((status, &changed["url_settings"]["auth"]), (200, &json!("sprite")));
    assert_eq!(world.get(&sprite, "/").await?.status, 401);
    let ended = timeout(REVOKED_WITHIN, async { while let Ok(Some(_)) = events.chunk().await {} }).await;
    assert!(ended.is_ok(), "an anonymous stream outlived the change");
    eventually(SOON, || async { Ok(world.status("flip").await? == "warm") }).await?;
    world.stop().await
}
