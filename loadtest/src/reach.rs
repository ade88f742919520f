//! What reaching into a sprite costs: commands, tunnels and files through the gateway, beside a plain TCP relay
//! of the very same bytes in the same run.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use test_support::{Options, Socket, World, eventually, exit_of, next_text};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
    task::JoinHandle,
};
use tokio_tungstenite::tungstenite::Message;

use crate::report::{Rate, Row};

const NAME: &str = "reach";
const PATIENCE: Duration = Duration::from_secs(60);
/// Moved for each rate.
const BYTES: u64 = 512 << 20;
/// Each rate is the median of so many, taken in turns.
const ROUNDS: usize = 5;

/// Sends and takes bytes, as asked by the first byte of each connection: `d` sends, `u` takes and answers.
const SERVER: &str = r#"
import socket, sys, threading
size, block = int(sys.argv[1]), bytes(1 << 20)
def serve(c):
    with c:
        if c.recv(1) == b'd':
            for _ in range(size >> 20): c.sendall(block)
        else:
            left = size
            while left > 0:
                n = len(c.recv(1 << 20))
                if n == 0: return
                left -= n
            c.sendall(b'k')
s = socket.create_server(('127.0.0.1', int(sys.argv[2])))
while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()
"#;

/// Everything that was measured.
pub(crate) struct Measured {
    pub(crate) times: Vec<Row>,
    pub(crate) rates: Vec<Rate>,
}

pub(crate) async fn measure(n: usize) -> anyhow::Result<Measured> {
    let world = World::start(Options { idle: Duration::from_millis(150), ..Options::default() }).await?;
    world.create(NAME, "public").await?;
    let times = round_trips(&world, n).await?;
    let slow = json!({ "idle_timeout_ms": 3_600_000 });
    ensure!(world.call("PUT", &format!("/v1/sprites/{NAME}"), Some(slow)).await?.0 == 200, "settings");
    // Before the runtime has buffers of its own that it could use again.
    world.sleep(NAME, "cold").await?;
    let stalled = stalled(&world).await?;
    let mut rates = throughput(&world).await?;
    rates.push(stalled);
    world.stop().await?;
    Ok(Measured { times, rates })
}

/// `true`, from before the connect to its exit code.
async fn round_trips(world: &World, n: usize) -> anyhow::Result<Vec<Row>> {
    let once = async || {
        let began = Instant::now();
        let socket = world.exec(NAME, "true", "").await?;
        let (code, _) = exit_of(socket).await?;
        ensure!(code == 0, "true ended with {code}");
        Ok::<_, anyhow::Error>(began.elapsed())
    };
    let (mut awake, mut paused) = (Vec::new(), Vec::new());
    for _ in 0..n {
        awake.push(once().await?);
    }
    for _ in 0..n {
        world.until(NAME, "warm", PATIENCE).await?;
        paused.push(once().await?);
    }
    Ok(vec![
        Row::new("exec `sh -c true`, awake", awake, "connect to exit code, a connection each"),
        Row::new("exec `sh -c true`, paused", paused, "fell asleep by itself"),
    ])
}

async fn throughput(world: &World) -> anyhow::Result<Vec<Rate>> {
    let host_port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    let mut server = Command::new("python3")
        .args(["-c", SERVER, &BYTES.to_string(), &host_port.to_string()])
        .kill_on_drop(true)
        .spawn()
        .context("python3")?;
    let serve = json!({ "cmd": "python3", "args": ["-c", SERVER, BYTES.to_string(), "9000"] });
    world.service(NAME, "bytes", serve).await?;
    let _files = files_of(world, "PUT", "write?path=/tmp/warm&mkdirParents=true", 1 << 20).await?;
    let (relay, relaying) = relay_to(host_port).await?;
    let (cat, catting) = cat_server().await?;
    let (cat_relay, cat_relaying) = relay_to(cat).await?;

    let mut cells: Vec<(&str, &str, Vec<f64>)> = Vec::new();
    let mut note = |what, beside, rate| match cells.iter_mut().find(|cell| cell.0 == what) {
        Some(cell) => cell.2.push(rate),
        None => cells.push((what, beside, vec![rate])),
    };
    eventually(PATIENCE, || async { Ok(TcpStream::connect(("127.0.0.1", host_port)).await.is_ok()) }).await?;
    for _ in 0..ROUNDS {
        note("`head -c` through a plain relay", "", plain_down(cat_relay).await?);
        note("exec output", "`head -c` through a plain relay", exec_output(world).await?);
        note("download through a plain relay", "", plain_down(relay).await?);
        note("tunnel, download", "download through a plain relay", tunnel(world, b'd').await?);
        note("upload through a plain relay", "", plain_up(relay).await?);
        note("tunnel, upload", "upload through a plain relay", tunnel(world, b'u').await?);
        note("file, write", "", files_of(world, "PUT", "write?path=/tmp/big", BYTES).await?);
        note("file, read", "", files_of(world, "GET", "read?path=/tmp/big", 0).await?);
    }
    [relaying, catting, cat_relaying].iter().for_each(JoinHandle::abort);
    server.kill().await?;
    let medians: Vec<(&str, f64)> = cells.iter().map(|cell| (cell.0, median(&cell.2))).collect();
    let of = |name: &str| medians.iter().find(|cell| cell.0 == name).map(|cell| cell.1);
    Ok(cells
        .iter()
        .map(|(what, beside, samples)| Rate {
            what: (*what).to_owned(),
            value: median(samples),
            unit: "MiB/s",
            share: of(beside).map(|beside| median(samples) / beside),
            note: format!("median of {ROUNDS} × {} MiB", BYTES >> 20),
        })
        .collect())
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn rate(bytes: u64, began: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64()
}

/// A relay that does nothing else, to a port of this machine.
async fn relay_to(port: u16) -> anyhow::Result<(u16, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.port();
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                    // How it ends is the client's to judge.
                    let _moved = copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    Ok((address, task))
}

/// Each connection gets what the command writes that exec runs.
async fn cat_server() -> anyhow::Result<(u16, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.port();
    let task = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            // What says which way, as in the other server.
            if client.read_u8().await.is_err() {
                continue;
            }
            let command = Command::new("head")
                .args(["-c", &BYTES.to_string(), "/dev/zero"])
                .stdout(Stdio::piped())
                .spawn();
            let Ok(mut command) = command else { return };
            if let Some(mut output) = command.stdout.take() {
                let _moved = tokio::io::copy(&mut output, &mut client).await;
            }
        }
    });
    Ok((address, task))
}

async fn plain_down(port: u16) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut client = TcpStream::connect(("127.0.0.1", port)).await?;
    client.write_all(b"d").await?;
    let (mut block, mut bytes) = (vec![0; 256 << 10], 0);
    while bytes < BYTES {
        let read = client.read(&mut block).await?;
        ensure!(read > 0, "it ended after {bytes} bytes");
        bytes += read as u64;
    }
    Ok(rate(bytes, began))
}

async fn plain_up(port: u16) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut client = TcpStream::connect(("127.0.0.1", port)).await?;
    client.write_all(b"u").await?;
    let block = vec![0; 256 << 10];
    for _ in 0..BYTES / block.len() as u64 {
        client.write_all(&block).await?;
    }
    ensure!(client.read_u8().await? == b'k', "it was all taken");
    Ok(rate(BYTES, began))
}

async fn exec_output(world: &World) -> anyhow::Result<f64> {
    let began = Instant::now();
    let socket = world.exec(NAME, &format!("exec head -c {BYTES} /dev/zero"), "").await?;
    let (code, frames) = exit_of(socket).await?;
    ensure!(code == 0 && frames >= BYTES, "{code} after {frames} bytes");
    Ok(rate(BYTES, began))
}

async fn tunnel(world: &World, direction: u8) -> anyhow::Result<f64> {
    let began = Instant::now();
    let mut socket = world.websocket(&format!("/v1/sprites/{NAME}/proxy")).await?;
    socket.send(Message::text(r#"{"host":"localhost","port":9000}"#)).await?;
    let reply = next_text(&mut socket).await?;
    ensure!(reply["status"] == "connected", "{reply}");
    socket.send(Message::binary(vec![direction])).await?;
    if direction == b'u' {
        let block = bytes::Bytes::from(vec![0; 64 << 10]);
        for _ in 0..BYTES / block.len() as u64 {
            socket.send(Message::Binary(block.clone())).await?;
        }
        ensure!(received(&mut socket, 1).await? == 1, "it was all taken");
    } else {
        received(&mut socket, BYTES).await?;
    }
    let rate = rate(BYTES, began);
    socket.close(None).await?;
    Ok(rate)
}

async fn received(socket: &mut Socket, wanted: u64) -> anyhow::Result<u64> {
    let mut bytes = 0;
    while bytes < wanted {
        if let Message::Binary(part) = socket.next().await.context("the tunnel ended")?? {
            bytes += part.len() as u64;
        }
    }
    Ok(bytes)
}

async fn files_of(world: &World, method: &str, what: &str, size: u64) -> anyhow::Result<f64> {
    let began = Instant::now();
    let block = bytes::Bytes::from(vec![0; 256 << 10]);
    let blocks = (0..size / block.len() as u64).map(move |_| Ok::<_, std::io::Error>(block.clone()));
    let url = format!("{}/v1/sprites/{NAME}/fs/{what}", world.api());
    let request = world.client().request(method.parse()?, url).bearer_auth(&world.token);
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(blocks));
    let mut answer = request.body(body).send().await?.error_for_status()?;
    let mut bytes = size;
    while let Some(part) = answer.chunk().await? {
        if size == 0 {
            bytes += part.len() as u64;
        }
    }
    ensure!(size > 0 || bytes == BYTES, "{bytes} bytes came");
    Ok(rate(bytes, began))
}

/// What the runtime's memory grows by while a client takes nothing of what `yes` writes.
async fn stalled(world: &World) -> anyhow::Result<Rate> {
    let (_, sprite) = world.call("GET", &format!("/v1/sprites/{NAME}"), None).await?;
    let id = sprite["id"].as_str().context("an id")?;
    let (code, _) = exit_of(world.exec(NAME, "true", "").await?).await?;
    ensure!(code == 0, "true ended with {code}");
    let record = world.state_dir().join("sprites").join(id).join("run/process.json");
    let record: Value = serde_json::from_slice(&std::fs::read(record)?)?;
    let pid = record["pid"].as_i64().context("a pid")?;
    let before = resident_kib(pid)?;
    let client = world.exec(NAME, "exec yes", "").await?;
    // It is full when it no longer grows.
    let (mut last, mut same) = (before, 0);
    while same < 10 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = resident_kib(pid)?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    drop(client);
    Ok(Rate {
        what: "a client that takes nothing of `yes`".into(),
        value: last.saturating_sub(before) as f64 / 1024.0,
        unit: "MiB of the runtime",
        share: None,
        note: "resident memory when it no longer grows".into(),
    })
}

fn resident_kib(pid: i64) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}
