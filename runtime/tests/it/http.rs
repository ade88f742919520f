//! Commands over plain HTTP.

use std::time::{Duration, Instant};

use runtime_api::{Dialed, Target};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};

use crate::harness::{LIMIT, Sprite};

/// An answer: its head, and each chunk with the time at which it came.
struct Answer {
    head: String,
    chunks: Vec<(Instant, Vec<u8>)>,
}

async fn post(sprite: &Sprite, query: &str, body: &[u8]) -> Answer {
    let Dialed::Unix(mut stream) = sprite.dial(Target::Api, 0).await.unwrap() else {
        panic!("not the runtime")
    };
    let head = format!(
        "POST /exec?{query} HTTP/1.1\r\nhost: sprite\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    timeout(LIMIT, read(stream)).await.unwrap()
}

async fn read(stream: UnixStream) -> Answer {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).await.unwrap() > 0, "{head}");
    }
    let mut chunks = Vec::new();
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).await.unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).await.unwrap();
            chunk.truncate(size);
            if size == 0 {
                break;
            }
            chunks.push((Instant::now(), chunk));
        }
    } else {
        let mut body = Vec::new();
        reader.read_to_end(&mut body).await.unwrap();
        chunks.push((Instant::now(), body));
    }
    Answer { head, chunks }
}

fn script(script: &str) -> String {
    let mut query = String::from("dir=/");
    for argument in ["sh", "-c", script] {
        frames::query::push(&mut query, "cmd", argument);
    }
    query
}

#[tokio::test]
async fn rule_11_one_frame_a_chunk_with_quiet_between_streams_and_before_the_end() {
    let sprite = Sprite::start();
    let answer = post(&sprite, &script("echo one; echo two >&2; echo three; exit 9"), b"").await;
    let head = answer.head.to_lowercase();
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    assert!(head.contains("content-type: application/octet-stream") && head.contains("nosniff"), "{head}");
    let mut streams: Vec<u8> = answer.chunks.iter().map(|(_, chunk)| chunk[0]).collect();
    assert_eq!(answer.chunks.last().unwrap().1, [3, 9]);
    for pair in answer.chunks.windows(2) {
        if pair[0].1[0] != pair[1].1[0] {
            let quiet = pair[1].0 - pair[0].0;
            assert!(quiet >= Duration::from_millis(9), "{quiet:?}");
        }
    }
    streams.dedup();
    assert_eq!(streams.last(), Some(&3));
    let of = |stream: u8| -> Vec<u8> {
        let frames = answer.chunks.iter().filter(|(_, chunk)| chunk[0] == stream);
        frames.flat_map(|(_, chunk)| chunk[1..].to_vec()).collect()
    };
    assert_eq!((of(1), of(2)), (b"one\nthree\n".to_vec(), b"two\n".to_vec()));
}

#[tokio::test]
async fn the_body_is_stdin_when_that_is_asked_for() {
    let sprite = Sprite::start();
    let body = vec![b'x'; 200_000];
    let answer = post(&sprite, &(script("wc -c") + "&stdin=true"), &body).await;
    assert_eq!(String::from_utf8_lossy(&answer.chunks[0].1[1..]).trim(), "200000");
    let answer = post(&sprite, &script("wc -c"), b"").await;
    assert_eq!(String::from_utf8_lossy(&answer.chunks[0].1[1..]).trim(), "0");
    let answer = post(&sprite, "cmd=no-such&dir=/", b"").await;
    assert_eq!((answer.chunks[0].1[0], answer.chunks.last().unwrap().1.as_slice()), (2, [3, 127].as_slice()));
}

#[tokio::test]
async fn what_needs_a_socket_is_refused() {
    let sprite = Sprite::start();
    for more in ["tty=true", "id=5", "session_id=5", "detachable=true", "cc=true", "env=x"] {
        let answer = post(&sprite, &format!("cmd=true&dir=/&{more}"), b"").await;
        assert!(answer.head.starts_with("HTTP/1.1 400 "), "{more}: {}", answer.head);
        let error: serde_json::Value = serde_json::from_slice(&answer.chunks[0].1).unwrap();
        assert!(error["message"].as_str().unwrap().len() > 10);
    }
    assert!(post(&sprite, "", b"").await.head.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn a_command_ends_with_the_request_that_started_it() {
    let sprite = Sprite::start();
    let Dialed::Unix(mut stream) = sprite.dial(Target::Api, 0).await.unwrap() else {
        panic!("not the runtime")
    };
    let head = format!("POST /exec?{} HTTP/1.1\r\nhost: sprite\r\n\r\n", script("echo $$; exec sleep 100"));
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut reader = BufReader::new(stream);
    let pid: i32 = loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        if let Some(pid) = line.strip_prefix('\u{1}') {
            break pid.trim().parse().unwrap();
        }
    };
    drop(reader);
    let deadline = Instant::now() + LIMIT;
    while std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n") {
        assert!(Instant::now() < deadline, "it goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
