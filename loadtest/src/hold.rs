//! POSTs with bodies that all arrive while the sprite sleeps.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use test_support::{Options, Raw, World};

use crate::report::Row;

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn measure(n: usize) -> anyhow::Result<Vec<Row>> {
    let world = World::start(Options { idle: Duration::from_secs(2), ..Options::default() }).await?;
    let sprite = world.create_with_backend("hold", "public").await?;
    let mut rows = Vec::new();
    for depth in ["warm", "cold"] {
        world.sleep("hold", depth).await?;
        let body = "x".repeat(200);
        let mut posts = Vec::with_capacity(n);
        let began = Instant::now();
        for id in 0..n {
            let request = format!(
                "POST /once?id={id} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                sprite.host,
                body.len()
            );
            let port = world.http;
            posts.push(tokio::spawn(async move {
                let mut client = Raw::connect(port).await?;
                client.send(request).await?;
                let (head, count) = client.answer(PATIENCE).await?;
                ensure!(head.starts_with("HTTP/1.1 200") && (count == "1" || count == "2"), "{head} {count}");
                anyhow::Ok((Instant::now(), count))
            }));
        }
        let mut answered = Vec::with_capacity(n);
        for post in posts {
            let (at, count) = post.await??;
            ensure!(count == "1", "a POST was delivered twice");
            answered.push(at - began);
        }
        let seen = world.get(&sprite, "/seen").await?.json()?;
        ensure!(seen == json!({ "ids": n, "repeated": 0 }), "{seen}");
        let what = format!(
            "{n} POSTs to a {} sprite: first connect to each answer",
            if depth == "warm" { "paused" } else { depth }
        );
        rows.push(Row::new(&what, answered, "all answered exactly once"));
        // The next round counts ids anew.
        world.sleep("hold", "cold").await?;
    }
    world.stop().await?;
    Ok(rows)
}
