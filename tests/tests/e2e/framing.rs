//! What is framed loosely goes no further than the edge: a byte that two parsers read differently is
//! a way around one of them.

use std::time::Duration;

use anyhow::ensure;
use test_support::{Options, Raw, World};

const SOON: Duration = Duration::from_secs(10);

async fn status(world: &World, request: &str) -> anyhow::Result<String> {
    let mut client = Raw::connect(world.http).await?;
    client.send(request).await?;
    let line = client.until("\r\n", SOON).await?;
    Ok(line.split(' ').nth(1).unwrap_or_default().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_could_be_read_in_two_ways_are_refused() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let host = world.create_with_backend("strict", "public").await?.host;
    for (name, head) in [
        ("both length and chunked", "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"),
        ("chunked behind gzip", "Transfer-Encoding: gzip, chunked\r\n"),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n"),
        ("identity", "Transfer-Encoding: identity\r\n"),
        ("two lengths", "Content-Length: 3\r\nContent-Length: 4\r\n"),
        ("equal lengths twice", "Content-Length: 3\r\nContent-Length: 3\r\n"),
        ("a list of lengths", "Content-Length: 3, 3\r\n"),
        ("a signed length", "Content-Length: +3\r\n"),
        ("a negative length", "Content-Length: -3\r\n"),
        ("a hexadecimal length", "Content-Length: 0x3\r\n"),
        ("a length that overflows", "Content-Length: 99999999999999999999\r\n"),
        ("space before the colon", "Content-Length : 3\r\n"),
        ("a folded line", "X-A: b\r\n c\r\n"),
        ("a nul", "X-A: b\0c\r\n"),
        ("a bare carriage return", "X-A: b\rc\r\n"),
        ("a bare line feed", "X-A: b\nX-B: c\r\n"),
        ("a second host", "Host: other.sprites.localhost\r\n"),
    ] {
        let got = status(&world, &format!("POST /upload HTTP/1.1\r\nHost: {host}\r\n{head}\r\nabc")).await?;
        ensure!(got == "400", "{name}: {got}");
    }
    for (name, request) in [
        ("no host", "GET / HTTP/1.1\r\n\r\n".to_owned()),
        ("a host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n".to_owned()),
        ("HTTP/0.9", "GET /\r\n\r\n".to_owned()),
        ("HTTP/3", format!("GET / HTTP/3.0\r\nHost: {host}\r\n\r\n")),
        ("no method", format!(" / HTTP/1.1\r\nHost: {host}\r\n\r\n")),
        (
            "chunked in HTTP/1.0",
            format!("POST / HTTP/1.0\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ),
    ] {
        let got = status(&world, &request).await?;
        ensure!(got == "400" || got == "505", "{name}: {got}");
    }
    let got = status(&world, &format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
    ensure!(got.starts_with('4') || got == "501", "CONNECT: {got}");
    let got =
        status(&world, &format!("GET / HTTP/1.1\r\nHost: {host}\r\nX-A: {}\r\n\r\n", "a".repeat(100_000)))
            .await?;
    ensure!(got == "431", "a large head: {got}");
    let got =
        status(&world, &format!("GET /{} HTTP/1.1\r\nHost: {host}\r\n\r\n", "a".repeat(100_000))).await?;
    ensure!(got == "431" || got == "414", "a long path: {got}");
    // After all that it still serves.
    assert_eq!(status(&world, &format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?, "200");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_an_underscore_does_not_reach_the_app() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let sprite = world.create_with_backend("names", "public").await?;
    let request = world.request("GET", &sprite, "/echo").header("x_forwarded_for", "6.6.6.6");
    let echo = request.send().await?.text().await?;
    assert!(!echo.contains("6.6.6.6"), "{echo}");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_never_ends_is_cut_off() -> anyhow::Result<()> {
    let options = Options {
        gateway: "[timing]\nheader_timeout_ms = 1000\nkeepalive_idle_ms = 2000\n\
        upstream_idle_ms = 1000\n"
            .into(),
        ..Options::default()
    };
    let world = World::start(options).await?;
    let host = world.create_with_backend("drip", "public").await?.host;
    let mut fresh = Raw::connect(world.http).await?;
    fresh.send("GET / HTTP/1.1\r\nHost: ").await?;
    fresh.closed(Duration::from_secs(4)).await?;
    // A short first line on a port that also speaks HTTP/2 (B6), and the second request of a connection (B8).
    let mut short = Raw::connect(world.http).await?;
    short.send("P").await?;
    short.closed(Duration::from_secs(4)).await?;
    let mut reused = Raw::connect(world.http).await?;
    reused.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
    reused.answer(SOON).await?;
    for byte in b"GET / HTTP/1.1\r\nX: ".iter().cycle().take(12) {
        if reused.send([*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    reused.closed(Duration::from_secs(4)).await?;
    let mut idle = Raw::connect(world.http).await?;
    idle.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
    idle.answer(SOON).await?;
    idle.closed(Duration::from_secs(6)).await?;
    let mut old = Raw::connect(world.http).await?;
    old.send("GET / HTTP/1.0\r\n\r\n").await?;
    ensure!(old.until("\r\n", SOON).await?.starts_with("HTTP/1."), "a short request is answered");
    world.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() -> anyhow::Result<()> {
    let world = World::start(Options::default()).await?;
    let host = world.create_with_backend("pipe", "public").await?.host;
    let mut client = Raw::connect(world.http).await?;
    let both: String = [1, 2].map(|n| format!("GET /once?id={n} HTTP/1.1\r\nHost: {host}\r\n\r\n")).concat();
    client.send(both).await?;
    let mut answered = 0;
    // The second may be refused by closing, never answered wrongly.
    while let Ok((head, body)) = client.answer(Duration::from_secs(3)).await {
        ensure!(head.contains("200") && body == "1", "{head} {body}");
        answered += 1;
    }
    ensure!(answered >= 1);
    world.stop().await
}
