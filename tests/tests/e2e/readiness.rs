//! Half-ready, resetting, silent and vanishing servers; clients that leave at the worst moment.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::json;
use test_support::{Answer, Options, Raw, SpriteUrl, World, eventually};

const SOON: Duration = Duration::from_secs(10);

/// A sprite whose service is a shell line.
async fn with_service(world: &World, name: &str, line: &str) -> anyhow::Result<SpriteUrl> {
    let sprite = world.create(name, "public").await?;
    world.install_backend(name).await?;
    let definition = json!({ "cmd": "/bin/sh", "args": ["-c", line], "http_port": 8080 });
    world.service(name, "web", definition).await?;
    Ok(sprite)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_opens_late_is_reached_the_moment_it_does() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = with_service(&world, "late", "sleep 1.5; exec /opt/backend 8080").await?;
    world.sleep("late", "cold").await?;
    let began = Instant::now();
    assert_eq!(world.get(&sprite, "/").await?.status, 200);
    let elapsed = began.elapsed();
    let most = Duration::from_millis(2500) + world.driver().boot_limit();
    ensure!(elapsed > Duration::from_millis(1400) && elapsed < most, "{elapsed:?}");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_flaps_gets_requests_only_while_it_listens() -> anyhow::Result<()> {
    let world = World::start(Options { idle: Duration::from_secs(60), ..Options::default() }).await?;
    let line = "while :; do timeout 0.4 /opt/backend 8080; sleep 0.3; done";
    let sprite = with_service(&world, "flap", line).await?;
    for n in 0..60 {
        let answer = world.get(&sprite, "/").await?;
        // A server that is killed in the middle of an answer is the app's doing; all else is served.
        ensure!(answer.status == 200 || answer.status == 502, "{n}: {} {}", answer.status, answer.body);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_holds_its_own_client_only() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("mute", "public").await?;
    let mut waiting = Raw::connect(world.http).await?;
    waiting.send(format!("GET /slow?ms=60000 HTTP/1.1\r\nHost: {}\r\n\r\n", sprite.host)).await?;
    for _ in 0..20 {
        assert_eq!(world.get(&sprite, "/").await?.status, 200);
    }
    drop(waiting);
    world.until("mute", "warm", SOON).await?;
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_request_left_unread_does_not_spoil_the_next() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("reuse", "public").await?;
    let mut client = Raw::connect(world.http).await?;
    // The app answers 404 without reading the body (T25).
    let body = "GET /poison HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    client
        .send(format!(
            "POST /nowhere HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n",
            sprite.host,
            body.len()
        ))
        .await?;
    let _ = client.send(&body).await;
    let (head, _) = client.answer(SOON).await?;
    ensure!(head.contains("404"), "{head}");
    // The connection is either closed or in order.
    let sent = client.send(format!("GET /once?id=7 HTTP/1.1\r\nHost: {}\r\n\r\n", sprite.host)).await;
    if sent.is_ok()
        && let Ok((head, body)) = client.answer(Duration::from_secs(3)).await
    {
        ensure!(head.contains("200") && body == "1", "{head} {body}");
    }
    assert_eq!(world.get(&sprite, "/").await?.status, 200);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_for_one_sprite_reaches_another_over_a_pooled_connection() -> anyhow::Result<()> {
    let world = World::start(Options { idle: Duration::from_millis(300), ..Options::default() }).await?;
    let mut sprites = Vec::new();
    for n in 0..3 {
        let sprite = world.create_with_backend(&format!("twin{n}"), "public").await?;
        let nonce = world.get(&sprite, "/nonce").await?.json()?["nonce"].clone();
        sprites.push((sprite, nonce));
    }
    for round in 0..30 {
        let (sprite, nonce) = &mut sprites[round % 3];
        if round % 7 == 6 {
            world.sleep(&sprite.name, "cold").await?;
            *nonce = world.get(sprite, "/nonce").await?.json()?["nonce"].clone();
        }
        let answer = world.get(sprite, "/nonce").await?;
        ensure!(
            answer.status == 200 && answer.json()?["nonce"] == *nonce,
            "{} {}",
            answer.status,
            answer.body
        );
    }
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_resets_while_its_upgrade_waits_leaves_no_trace() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = with_service(&world, "gone", "sleep 1; exec /opt/backend 8080").await?;
    world.sleep("gone", "cold").await?;
    for n in 0..50 {
        let mut client = Raw::connect(world.http).await?;
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        client.send(format!("GET /ws HTTP/1.1\r\nHost: {}\r\n{upgrade}\r\n", sprite.host)).await?;
        tokio::time::sleep(Duration::from_millis(n * 30)).await;
        // A reset, not a FIN: unread data or a zero linger.
        nix::sys::socket::setsockopt(
            &client.stream,
            nix::sys::socket::sockopt::Linger,
            &nix::libc::linger { l_onoff: 1, l_linger: 0 },
        )?;
        drop(client);
    }
    eventually(SOON, || async {
        let held = world.metric("gateway_held_requests", "").await?;
        let open = world.metric("gateway_connections", "").await?;
        // The one that asks for the metrics is not counted: it is the operator's.
        Ok(held == 0.0 && open <= 1.0)
    })
    .await
    .context("counters did not return to zero")?;
    world.until("gone", "warm", SOON).await?;
    assert_eq!(world.get(&sprite, "/").await?.status, 200);
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gigabyte_that_waits_for_a_wake_waits_outside_the_edge() -> anyhow::Result<()> {
    const SIZE: u64 = 1 << 30;
    let mut world = World::start(Options::default()).await?;
    let sprite = with_service(&world, "vast", "sleep 2; exec /opt/backend 8080").await?;
    world.sleep("vast", "cold").await?;
    let rss = |pid: u32| -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse()?)
    };
    let pid = world.gateway()?.id();
    let before = rss(pid)?;
    let chunk = vec![1u8; 1 << 20];
    let chunks =
        futures_util::stream::iter((0..SIZE >> 20).map(move |_| Ok::<_, std::io::Error>(chunk.clone())));
    let request = world.request("POST", &sprite, "/upload").body(reqwest::Body::wrap_stream(chunks));
    let uploaded = tokio::spawn(async move { Answer::read(request.send().await?).await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let during = rss(pid)?;
    ensure!(during < before + 16 * 1024, "the edge grew from {before} to {during} KiB while it held a body");
    let answer = uploaded.await??;
    ensure!(answer.json()?["length"] == SIZE, "{}", answer.body);
    world.stop().await
}
