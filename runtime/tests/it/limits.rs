//! Bounds: memory under stalled peers, nothing left behind by many, and hostile input.

use std::{
    fs,
    time::{Duration, Instant},
};

use futures_util::{SinkExt as _, StreamExt as _};
use runtime_api::{Dialed, Target};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::harness::{LIMIT, Sprite};

/// What must not grow, in KiB: far above noise, far below what an unbounded queue takes.
const SOME: u64 = 12 << 10;

/// What the runtime has allocated; pages of its program, which come as its parts are first used, are not meant.
fn resident_kib(sprite: &Sprite) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", sprite.process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(sprite: &Sprite) -> usize {
    fs::read_dir(format!("/proc/{}/fd", sprite.process.id())).unwrap().count()
}

/// Children of the runtime, living or dead.
fn children(sprite: &Sprite) -> usize {
    let parent = sprite.process.id().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|process| {
            let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(1)) == Some(&parent)
        })
        .count()
}

/// How much a process has written so far.
fn written(pid: &str) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap_or("0");
    line.parse().unwrap()
}

#[tokio::test]
async fn a_client_that_reads_nothing_stops_the_process_and_not_the_runtime() {
    for tty in ["", "&tty=true"] {
        let sprite = Sprite::start();
        let before = resident_kib(&sprite);
        let mut stalled = sprite.sh("echo $$; exec yes", &format!("detachable=false{tty}")).await;
        let first = stalled.until("\n").await;
        let pid = first.trim_start_matches('\u{1}').lines().next().unwrap().trim().to_owned();
        // It is blocked when it no longer gets on.
        let mut last = 0;
        loop {
            sleep(Duration::from_millis(300)).await;
            let now = written(&pid);
            if now == last && now > 0 {
                break;
            }
            last = now;
        }
        assert!(last < 4 << 20, "{last} bytes went somewhere");
        let grown = resident_kib(&sprite).saturating_sub(before);
        assert!(grown < SOME, "{grown} KiB");
        // Others do not notice.
        let begun = Instant::now();
        let said = sprite.sh("echo hi", "").await.all(false).await;
        assert_eq!(said.out(), "hi\n");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        // And it goes on when it is read.
        let mut more = 0;
        while more < 2 << 20 {
            more += stalled.next().await.len();
        }
    }
}

#[tokio::test]
async fn a_process_that_reads_nothing_stops_its_client_and_not_the_runtime() {
    let sprite = Sprite::start();
    let before = resident_kib(&sprite);
    let mut client = sprite.sh("echo ready; exec sleep 100", "stdin=true&max_run_after_disconnect=1ms").await;
    client.until("ready").await;
    let frame = frames::FromClient::Stdin(&vec![b'x'; 256 << 10]).encode();
    let mut sent = 0;
    // It is blocked when a message does not leave for a while.
    while timeout(Duration::from_millis(500), client.socket.send(Message::Binary(frame.clone().into())))
        .await
        .is_ok()
    {
        sent += frame.len();
        assert!(sent < 32 << 20, "{sent} bytes went somewhere");
    }
    let grown = resident_kib(&sprite).saturating_sub(before);
    assert!(grown < SOME, "{grown} KiB");
    let said = sprite.sh("echo hi", "").await.all(false).await;
    assert_eq!(said.out(), "hi\n");
    // That the client leaves is noticed although nothing is read from it.
    drop(client);
    let deadline = Instant::now() + LIMIT;
    while children(&sprite) > 0 {
        assert!(Instant::now() < deadline, "nobody noticed");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn thousands_of_short_commands_leave_nothing_behind() {
    const WORKERS: usize = 8;
    const EACH: usize = 250;
    let sprite = std::sync::Arc::new(Sprite::start());
    let round = async |each: usize| {
        let mut workers = tokio::task::JoinSet::new();
        for worker in 0..WORKERS {
            let sprite = std::sync::Arc::clone(&sprite);
            workers.spawn(async move {
                for number in 0..each {
                    let tty = (worker + number) % 5 == 0;
                    let more = if tty { "tty=true" } else { "" };
                    let client = sprite.websocket(&format!("/exec?cmd=true&dir=/&{more}")).await.unwrap();
                    if number % 10 == 9 {
                        // Some leave at once.
                        continue;
                    }
                    assert_eq!(client.all(tty).await.exit_text, Some(0));
                }
            });
        }
        while let Some(done) = workers.join_next().await {
            done.unwrap();
        }
    };
    round(5).await;
    let settled = async || {
        let deadline = Instant::now() + LIMIT;
        loop {
            let (_, list) = sprite.api("GET /exec", "").await;
            if list == r#"{"sessions":[],"count":0}"# && children(&sprite) == 0 {
                sleep(Duration::from_millis(100)).await;
                return (descriptors(&sprite), resident_kib(&sprite));
            }
            assert!(Instant::now() < deadline, "{list}, {} children", children(&sprite));
            sleep(Duration::from_millis(20)).await;
        }
    };
    let (descriptors_before, resident_before) = settled().await;
    let begun = Instant::now();
    round(EACH).await;
    println!("{:?} a command", begun.elapsed() / (WORKERS * EACH) as u32);
    let (descriptors_after, resident_after) = settled().await;
    assert!(
        descriptors_after <= descriptors_before,
        "{descriptors_before} -> {descriptors_after} descriptors"
    );
    let grown = resident_after.saturating_sub(resident_before);
    assert!(grown < SOME / 2, "{grown} KiB");
}

#[tokio::test]
async fn too_many_commands_are_refused_and_the_rest_go_on() {
    let sprite = Sprite::start();
    let mut kept = Vec::new();
    let refused = loop {
        match sprite.websocket("/exec?cmd=sleep&cmd=100&dir=/").await {
            Ok(client) => kept.push(client),
            Err(Error::Http(response)) => break response,
            Err(other) => panic!("{other}"),
        }
        assert!(kept.len() <= 600, "there is no limit");
    };
    assert_eq!(refused.status().as_u16(), 429);
    let body = String::from_utf8(refused.into_body().unwrap()).unwrap();
    assert!(body.contains("too_many_sessions") && body.contains("512"), "{body}");
    assert_eq!(kept.len(), 512);
    let id = kept[0].info().await.session_id;
    assert_eq!(sprite.api(&format!("DELETE /exec/{id}?signal=KILL"), "").await.0, 200);
    assert_eq!(sprite.sh("echo hi", "").await.all(false).await.out(), "hi\n");
}

#[tokio::test]
async fn messages_of_every_wrong_kind_harm_nobody() {
    let sprite = Sprite::start();
    for tty in [false, true] {
        let more = if tty { "tty=true&stdin=true" } else { "stdin=true" };
        let mut client =
            sprite.sh("stty -echo 2>/dev/null; echo ready; head -c 5; echo; echo over", more).await;
        client.until("ready").await;
        for text in [
            "",
            "x",
            "[]",
            "{}",
            "null",
            r#"{"type":"resize"}"#,
            r#"{"type":"resize","cols":0,"rows":0}"#,
            r#"{"type":"resize","cols":65535,"rows":65535}"#,
            r#"{"type":"resize","cols":-1,"rows":99999999999999999999}"#,
            r#"{"type":"signal","signal":"NOPE"}"#,
            r#"{"type":"signal","signal":0}"#,
            r#"{"type":"signal","signal":-9}"#,
            r#"{"type":"signal","signal":{"a":[]}}"#,
            r#"{"type":"exit","exit_code":1}"#,
            r#"control:{"type":"op.start"}"#,
        ] {
            client.text(text).await;
        }
        client.text(&"[".repeat(200_000)).await;
        client.send(Message::Binary(Vec::new().into())).await;
        client.send(Message::Ping(vec![7; 125].into())).await;
        if tty {
            client.keys("hello\r").await;
        } else {
            for frame in [&[1u8, 2][..], &[2], &[3, 0], &[5], &[255, 255, 255]] {
                client.send(Message::Binary(frame.to_vec().into())).await;
            }
            client.stdin(b"hel").await;
            client.stdin(b"").await;
            client.stdin(b"lo").await;
        }
        let said = client.all(tty).await;
        let shown = if tty { said.shown() } else { said.out() };
        assert!(shown.contains("hello") && shown.ends_with("over\n"), "{shown:?}");
        assert_eq!(said.exit_text, Some(0));
    }
}

#[tokio::test]
async fn a_message_that_is_too_long_ends_the_connection_with_1009() {
    let sprite = Sprite::start();
    let client = sprite.sh("cat > /dev/null", "stdin=true").await;
    let (mut sink, mut source) = client.socket.split();
    let sending = tokio::spawn(async move {
        let _cut_off = sink.send(Message::Binary(vec![0; 5 << 20].into())).await;
        sink
    });
    let close = loop {
        match timeout(LIMIT, source.next()).await.unwrap() {
            Some(Ok(Message::Close(close))) => break close.unwrap(),
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(u16::from(close.code), 1009);
    assert!(close.reason.contains("4194304"), "{}", close.reason);
    drop(sending.await);
}

/// Frames that no library would send, byte by byte.
#[tokio::test]
async fn broken_frames_end_their_connection_and_no_other() {
    let sprite = Sprite::start();
    let handshake = "GET /exec?cmd=cat&dir=/&stdin=true HTTP/1.1\r\nhost: sprite\r\nconnection: upgrade\r\n\
                     upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    for (frame, code) in [
        (&b"\x82\x03\x00ab"[..], 1002),              // not masked
        (b"\xf2\x80\x00\x00\x00\x00", 1002),         // reserved bits
        (b"\x83\x80\x00\x00\x00\x00", 1002),         // an unknown kind
        (b"\x80\x80\x00\x00\x00\x00", 1002),         // goes on with nothing
        (b"\x09\x80\x00\x00\x00\x00", 1002),         // a ping in pieces
        (b"\x81\x82\x00\x00\x00\x00\xff\xff", 1007), // text that is none
        (b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", 1009), // longer than everything
    ] {
        let Dialed::Unix(mut stream) = sprite.dial(Target::Api, 0).await.unwrap() else { panic!() };
        stream.write_all(handshake.as_bytes()).await.unwrap();
        stream.write_all(frame).await.unwrap();
        let mut answer = Vec::new();
        timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let close = answer.windows(2).rposition(|pair| pair[0] == 0x88).expect("a Close");
        let told = u16::from_be_bytes([answer[close + 2], answer[close + 3]]);
        assert_eq!(told, code, "{frame:?}");
    }
    for bad in ["sec-websocket-version: 8\r\nsec-websocket-key: x\r\n", "sec-websocket-version: 13\r\n"] {
        let Dialed::Unix(mut stream) = sprite.dial(Target::Api, 0).await.unwrap() else { panic!() };
        let head = format!(
            "GET /exec?cmd=true HTTP/1.1\r\nhost: sprite\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n{bad}\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(LIMIT, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    assert_eq!(sprite.sh("echo hi", "").await.all(false).await.out(), "hi\n");
}

#[tokio::test]
async fn arguments_beyond_what_the_kernel_takes_are_told() {
    let sprite = Sprite::start();
    // The longest single string that exec(2) takes is 128 KiB; a request's head ends before that.
    let long = "x".repeat(200_000);
    let answer = crate::harness::raw_api(&sprite, &format!("GET /exec?cmd=echo&cmd={long}")).await;
    assert!(answer.starts_with("HTTP/1.1 414 ") || answer.starts_with("HTTP/1.1 431 "), "{}", &answer[..60]);
    let many = "&cmd=x".repeat(9_000);
    let said = sprite.websocket(&format!("/exec?cmd=echo{many}&dir=/")).await.unwrap().all(false).await;
    assert_eq!((said.stdout.len(), said.exit_text), (18_000, Some(0)));
}

/// How often the process has gone to sleep of its own accord.
fn rests(sprite: &Sprite) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", sprite.process.id())).unwrap().flatten();
    tasks
        .map(|task| {
            let status = fs::read_to_string(task.path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        })
        .sum()
}

#[tokio::test]
async fn a_sprite_in_which_nothing_happens_leaves_the_processor_alone() {
    let sprite = Sprite::start();
    let _control = sprite.configure().await;
    // The host attends to its ports: ever more seldom.
    sleep(Duration::from_secs(3)).await;
    let before = rests(&sprite);
    sleep(Duration::from_secs(4)).await;
    let woken = rests(&sprite) - before;
    assert!(woken <= 4, "it was woken {woken} times in four seconds");
}
