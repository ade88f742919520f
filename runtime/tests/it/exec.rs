//! Commands over WebSockets. Tests named after a rule keep one that decides whether clients work.

use std::time::{Duration, Instant};

use runtime_api::{Dialed, Target};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_tungstenite::tungstenite::Message;

use crate::harness::Sprite;

#[tokio::test]
async fn rule_3_a_command_ends_with_text_then_a_frame_then_close_1000() {
    let sprite = Sprite::start();
    let said = sprite.sh("echo hi; echo oh >&2; exit 7", "").await.all(false).await;
    assert_eq!((said.out().as_str(), said.err().as_str()), ("hi\n", "oh\n"));
    assert_eq!((said.exit_text, said.exit_frame, said.close_code()), (Some(7), Some(7), Some(1000)));
    let order: Vec<&str> = said.order.iter().map(String::as_str).collect();
    assert_eq!(order[0], "text:session_info");
    assert_eq!(order[order.len() - 3..], ["text:exit", "exit", "close"]);
    let done = sprite.sh("true", "").await.all(false).await;
    assert_eq!((done.exit_text, done.exit_frame, done.close_code()), (Some(0), Some(0), Some(1000)));
}

#[tokio::test]
async fn rule_3_a_terminal_ends_with_text_then_a_close_that_tells_failure() {
    let sprite = Sprite::start();
    let said = sprite.sh("echo tty-test; exit 7", "tty=true").await.all(true).await;
    assert_eq!(said.shown(), "tty-test\n");
    assert_eq!((said.exit_text, said.exit_frame, said.close_code()), (Some(7), None, Some(4000)));
    assert_eq!(said.close.unwrap().reason, "exit 7");
    let said = sprite.sh("true", "tty=true").await.all(true).await;
    assert_eq!((said.exit_text, said.close_code()), (Some(0), Some(1000)));
}

#[tokio::test]
async fn rule_4_compression_is_never_negotiated() {
    let sprite = Sprite::start();
    let Dialed::Unix(mut stream) = sprite.dial(Target::Api, 0).await.unwrap() else { panic!() };
    let request = "GET /exec?cmd=true&dir=/ HTTP/1.1\r\nhost: sprite\r\nconnection: keep-alive, Upgrade\r\n\
                   upgrade: WebSocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                   sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = vec![0; 64 << 10];
    let length = stream.read(&mut bytes).await.unwrap();
    let text = String::from_utf8_lossy(&bytes[..length]).to_lowercase();
    let (head, first) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("http/1.1 101 ") && !head.contains("deflate"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    // And rule 5: what the client must know first comes with the answer itself.
    assert!(first.contains("session_info"), "{first}");
}

#[tokio::test]
async fn rule_5_session_info_comes_first_and_its_id_is_text() {
    let sprite = Sprite::start();
    let mut client = sprite.sh("stty size; exec cat", "tty=true&rows=30&cols=100").await;
    let capabilities = client.response.headers()["x-sprite-capabilities"].to_str().unwrap();
    assert_eq!(capabilities, "signal");
    let Message::Text(text) = client.next().await else { panic!("no text") };
    let info: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["type"], "session_info");
    assert!(info["session_id"].as_str().unwrap().parse::<u64>().is_ok());
    assert!(info["created"].as_i64().unwrap() > 1_700_000_000);
    assert_eq!((&info["rows"], &info["cols"]), (&30.into(), &100.into()));
    assert_eq!((&info["tty"], &info["is_owner"]), (&true.into(), &true.into()));
    assert!(info["command"].as_str().unwrap().ends_with("/sh -c stty size; exec cat"));
    client.until("30 100").await;
}

#[tokio::test]
async fn rule_6_a_silent_command_is_kept_alive_by_text_and_pings() {
    let sprite = Sprite::start();
    let mut client = sprite.sh("sleep 17; exit 3", "").await;
    client.info().await;
    let begun = Instant::now();
    let (mut text, mut ping) = (None, None);
    while text.is_none() || ping.is_none() {
        match client.next_within(Duration::from_secs(16)).await {
            Message::Text(found) => text = Some(found),
            Message::Ping(_) => ping = Some(begun.elapsed()),
            _ => {}
        }
    }
    assert_eq!(text.unwrap(), r#"{"type":"keepalive"}"#);
    assert!(begun.elapsed() >= Duration::from_millis(14_500));
    // A client that never answers pings is not dropped for that.
    let said = client.all(false).await;
    assert_eq!((said.exit_text, said.close_code()), (Some(3), Some(1000)));
}

#[tokio::test]
async fn what_cannot_be_run_says_so_as_a_shell_does() {
    let sprite = Sprite::start();
    for (query, code, says) in [
        ("cmd=no-such-program&dir=/", 127, "no-such-program: command not found\n"),
        ("cmd=/etc/passwd&dir=/", 126, "/etc/passwd: permission denied\n"),
        ("cmd=true&dir=/no/such", 126, "/no/such: no such directory\n"),
    ] {
        let said = sprite.websocket(&format!("/exec?{query}")).await.unwrap().all(false).await;
        assert_eq!(
            (said.err().as_str(), said.exit_text, said.exit_frame),
            (says, Some(code), Some(code as u8))
        );
        assert_eq!(said.order[0], "text:session_info");
        let said = sprite.websocket(&format!("/exec?{query}&tty=true")).await.unwrap().all(true).await;
        assert_eq!((said.shown().as_str(), said.close_code()), (says, Some(4000)));
    }
    let killed = sprite.sh("kill -TERM $$", "").await.all(false).await;
    assert_eq!(killed.exit_text, Some(143));
}

#[tokio::test]
async fn the_environment_is_the_sprites_with_the_clients_over_it() {
    let sprite = Sprite::start();
    sprite.configure().await;
    let said = sprite
        .sh("echo $EXTRA $SPRITE_NAME $HOME $A $PATH; pwd", "env=A=1%202&env=HOME=/x&env=PATH=/usr/bin:/bin")
        .await
        .all(false)
        .await;
    assert_eq!(said.out(), "yes demo /x 1 2 /usr/bin:/bin\n/\n");
    let said = sprite.sh("echo $TERM", "tty=true").await.all(true).await;
    assert_eq!(said.shown(), "xterm-256color\n");
    // Without a session of its own a signal to its group would reach the runtime.
    let said = sprite.sh("ps -o pid=,pgid=,sid= -p $$", "").await.all(false).await;
    let ids: Vec<String> = said.out().split_whitespace().map(str::to_owned).collect();
    assert!(ids.len() == 3 && ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test]
async fn stdin_reaches_the_command_and_ends() {
    let sprite = Sprite::start();
    let mut client = sprite.sh("cat; echo over", "stdin=true").await;
    client.stdin(b"one ").await;
    client.stdin("zw\u{f6}lf".as_bytes()).await;
    client.stdin_eof().await;
    client.stdin(b"too late").await;
    assert_eq!(client.all(false).await.out(), "one zw\u{f6}lfover\n");
    // Without stdin it is empty, and what comes is dropped.
    let mut client = sprite.sh("cat; echo over", "").await;
    client.stdin(b"nobody reads this").await;
    assert_eq!(client.all(false).await.out(), "over\n");
    // A command may end before it has read all.
    let mut client = sprite.sh("head -c 3", "stdin=true").await;
    client.stdin(&vec![b'x'; 1 << 20]).await;
    let said = client.all(false).await;
    assert_eq!((said.out().as_str(), said.exit_text), ("xxx", Some(0)));
}

#[tokio::test]
async fn a_megabyte_goes_in_and_out_unharmed() {
    let sprite = Sprite::start();
    let client = sprite.sh("cat", "stdin=true").await;
    let sent: Vec<u8> =
        (0..3 << 20).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let (mut sink, mut source) = futures_util::StreamExt::split(client.socket);
    let bytes = sent.clone();
    let sending = tokio::spawn(async move {
        use futures_util::SinkExt as _;
        for piece in bytes.chunks(1 << 20) {
            let frame = frames::FromClient::Stdin(piece).encode();
            sink.send(Message::Binary(frame.into())).await.unwrap();
        }
        sink.send(Message::Binary(frames::FromClient::StdinEof.encode().into())).await.unwrap();
        sink
    });
    let mut received = Vec::new();
    loop {
        match futures_util::StreamExt::next(&mut source).await.unwrap().unwrap() {
            Message::Binary(bytes) if bytes[0] == 1 => received.extend_from_slice(&bytes[1..]),
            Message::Close(_) => break,
            _ => {}
        }
    }
    drop(sending.await.unwrap());
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
}

#[tokio::test]
async fn a_terminal_is_one() {
    let sprite = Sprite::start();
    let said = sprite.sh("tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo yes", "tty=true").await;
    let said = said.all(true).await;
    assert!(said.shown().starts_with("/dev/pts/"), "{}", said.shown());
    assert!(said.shown().ends_with("24 80\nyes\n"), "{}", said.shown());
    let without = sprite.sh("tty", "").await.all(false).await;
    assert_eq!((without.out().trim(), without.exit_text), ("not a tty", Some(1)));

    let mut client =
        sprite.sh("trap 'stty size' WINCH; echo ready; while true; do sleep 0.05; done", "tty=true").await;
    client.until("ready").await;
    client.text(r#"{"type":"resize","cols":"120","rows":50.0}"#).await;
    client.until("50 120").await;
    // Ctrl-C, as a terminal sends it.
    client.keys("\u{3}").await;
    let said = client.all(true).await;
    assert_eq!((said.exit_text, said.close_code()), (Some(130), Some(4000)));
    // Ctrl-D is the end only for the program.
    let mut client = sprite.sh("cat; echo over", "tty=true").await;
    client.keys("\u{4}").await;
    assert_eq!(client.all(true).await.shown(), "over\n");
}

#[tokio::test]
async fn signals_have_many_spellings() {
    let sprite = Sprite::start();
    for signal in ["\"INT\"", "\"SIGINT\"", "\"sigint\"", "2", "\"2\""] {
        for tty in ["", "tty=true"] {
            let mut client =
                sprite.sh("trap 'exit 5' INT; echo ready; while true; do sleep 0.02; done", tty).await;
            client.until("ready").await;
            client.text(&format!(r#"{{"type":"signal","signal":{signal}}}"#)).await;
            assert_eq!(client.all(!tty.is_empty()).await.exit_text, Some(5), "{signal} {tty}");
        }
    }
}

#[tokio::test]
async fn what_a_command_leaves_behind_does_not_hold_its_end_up() {
    let sprite = Sprite::start();
    let begun = Instant::now();
    let said = sprite.sh("sleep 100 & echo started $!", "").await.all(false).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(said.exit_text, Some(0));
    let pid: i32 = said.out().trim().strip_prefix("started ").unwrap().parse().unwrap();
    // It lives on, and one that writes can go on writing.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let said = sprite.sh("(sleep 1; echo x; echo y; exec sleep 100) & echo $!", "").await.all(false).await;
    let pid: i32 = said.out().trim().parse().unwrap();
    let deadline = Instant::now() + crate::harness::LIMIT;
    let name = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    while name() != "sleep\n" {
        assert!(Instant::now() < deadline, "it is gone: {:?}", name());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    // One that never falls silent is not waited for either.
    let begun = Instant::now();
    let said = sprite.sh("yes & echo $!", "").await.all(false).await;
    assert!(begun.elapsed() < Duration::from_secs(5) && said.exit_text == Some(0));
    let line = said.out().lines().find(|line| *line != "y").unwrap().to_owned();
    let yes = nix::unistd::Pid::from_raw(line.parse().unwrap());
    nix::sys::signal::kill(yes, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn wrong_requests_are_refused_before_the_upgrade() {
    let sprite = Sprite::start();
    for (path, status, says) in [
        ("/exec", 400, "No command specified"),
        ("/exec?cmd=&path=", 400, "No command specified"),
        ("/exec?cmd=a%00b", 400, "zero byte"),
        ("/exec?cmd=true&env=A%00=b", 400, "zero byte"),
        ("/exec?cmd=true&env=A", 400, "KEY=VALUE"),
        ("/exec?cmd=true&rows=65536&tty=true", 400, "rows"),
        ("/exec?cmd=true&cc=true&detachable=true", 400, "not offered"),
        ("/exec?cmd=true&max_run_after_disconnect=soon", 400, "duration"),
        ("/exec/123", 404, "session not found: 123"),
        ("/exec?id=x", 404, "session not found: x"),
        ("/exec?session_id=9&path=&cmd=", 404, "session not found: 9"),
        ("/nothing", 404, "nothing"),
    ] {
        let (answered, body) = sprite.refused(path).await;
        let error: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answered, status, "{path}: {body}");
        assert!(
            error["error"].is_string() && error["message"].as_str().unwrap().contains(says),
            "{path}: {body}"
        );
    }
}
