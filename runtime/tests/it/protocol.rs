//! What a host says to the runtime, and services.

use std::{
    fs,
    io::{Read as _, Write as _},
    time::{Duration, Instant},
};

use ids::{Epoch, Port};
use runtime_api::{
    Answer, Command as ControlCommand, DialError, Dialed, Event, RefusalCode, Target, open_control,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};

use crate::harness::{LIMIT, Sprite, free_port, next, raw};

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_harms_nobody() {
    let sprite = Sprite::start();
    for text in [
        "\n",
        "GET / HTTP/1.1\r\n",
        "{\"op\":\"fly\"}\n",
        "{\"op\":\"dial\"}\n",
        "{\"op\":\"dial\",\"target\":\"api\",\"wait_ms\":0,\"handoff\":true}\nmore",
    ] {
        let answer = raw(&sprite.socket(), text.as_bytes()).await;
        let Ok(Answer::Refused(refusal)) = serde_json::from_str(&answer) else {
            panic!("{text:?}: {answer}")
        };
        assert_eq!(refusal.code, RefusalCode::BadRequest, "{text:?}");
    }
    drop(UnixStream::connect(sprite.socket()).await.unwrap());
    sprite.configure().await;
    // A host need not wait for the Hello.
    let mut stream = UnixStream::connect(sprite.socket()).await.unwrap();
    stream.write_all(b"{\"op\":\"control\"}\n{\"command\":\"ping\"}\n").await.unwrap();
    let mut answer = String::new();
    while !answer.contains("pong") {
        answer.push(char::from(timeout(LIMIT, stream.read_u8()).await.unwrap().unwrap()));
    }
}

#[tokio::test]
async fn a_silent_caller_is_let_go() {
    let sprite = Sprite::start();
    let begun = Instant::now();
    assert_eq!(raw(&sprite.socket(), b"{\"op\":").await, "");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_newer_control_stream_takes_over() {
    let sprite = Sprite::start();
    let mut old = sprite.configure().await;
    let mut new = open_control(&sprite.address()).await.unwrap();
    assert!(matches!(next(&mut new).await, Some(Event::Hello { configured: Some(Epoch(7)), .. })));
    while next(&mut old).await.is_some() {}
    new.send(&ControlCommand::Ping).await.unwrap();
    while next(&mut new).await != Some(Event::Pong) {}
}

#[tokio::test]
async fn what_a_host_said_before_it_left_is_done() {
    let mut sprite = Sprite::start();
    sprite.configure().await;
    let mut stream = UnixStream::connect(sprite.socket()).await.unwrap();
    let said =
        b"{\"op\":\"control\"}\n{\"command\":\"ping\"}\n{\"command\":\"shutdown\",\"grace_ms\":1000}\n";
    stream.write_all(said).await.unwrap();
    drop(stream);
    let deadline = Instant::now() + LIMIT;
    while sprite.process.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it did not hear");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_dial_ends_the_moment_that_something_listens() {
    let sprite = Sprite::start();
    let port = free_port();
    let listener = tokio::spawn(async move {
        sleep(Duration::from_millis(300)).await;
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port.get())).await.unwrap();
        (listener, Instant::now())
    });
    let dialed = sprite.dial(Target::Port(port), 5000).await.unwrap();
    let late = Instant::now() - listener.await.unwrap().1;
    assert!(late < Duration::from_millis(100), "{late:?}");
    assert!(matches!(dialed, Dialed::Tcp(_)));

    let begun = Instant::now();
    let refused = sprite.dial(Target::Port(free_port()), 200).await;
    assert!(matches!(refused, Err(DialError::Refused(refusal)) if refusal.code == RefusalCode::NotListening));
    assert!(begun.elapsed() >= Duration::from_millis(150) && begun.elapsed() < Duration::from_secs(2));
}

/// The kernel would knock again only after a second.
#[tokio::test]
async fn a_program_whose_queue_was_full_is_reached_soon_after_it_takes_connections_again() {
    const CROWD: usize = 6;
    let sprite = Sprite::start();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let port: Port = listener.local_addr().unwrap().port().try_into().unwrap();
    let slow = tokio::spawn(async move {
        sleep(Duration::from_millis(150)).await;
        let mut taken = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            taken.push(stream);
        }
    });
    let begun = Instant::now();
    let crowd = (0..CROWD).map(|_| sprite.dial(Target::Port(port), 5000));
    for dialed in futures_util::future::join_all(crowd).await {
        assert!(matches!(dialed, Ok(Dialed::Tcp(_))), "{dialed:?}");
    }
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    slow.abort();
}

#[tokio::test]
async fn a_caller_that_hangs_up_leaves_nothing_behind() {
    let sprite = Sprite::start();
    sprite.configure().await;
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", sprite.process.id())).unwrap().count();
    let before = descriptors();
    let target = Target::Port(free_port());
    for _ in 0..50 {
        let _gone = timeout(Duration::from_millis(5), sprite.dial(target, 60_000)).await;
    }
    let deadline = Instant::now() + LIMIT;
    while descriptors() > before {
        assert!(Instant::now() < deadline, "{} > {before}", descriptors());
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn without_a_hand_over_the_stream_becomes_the_connection() {
    let sprite = Sprite::start();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        // Ends only when the other side has said that it will send no more.
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let mut stream = UnixStream::connect(sprite.socket()).await.unwrap();
    let request =
        format!("{{\"op\":\"dial\",\"target\":{{\"port\":{port}}},\"wait_ms\":0,\"handoff\":false}}\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(matches!(serde_json::from_slice(&answer), Ok(Answer::Ok { port: Some(_) })));
    let sent = vec![b'x'; 1 << 20];
    let (mut reader, mut writer) = stream.into_split();
    let sending = async {
        writer.write_all(&sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(sending, timeout(LIMIT, reader.read_to_end(&mut received)));
    read.unwrap().unwrap();
    assert!(received == sent);
    echo.join().unwrap();
}

#[tokio::test]
async fn services_are_shown_as_the_protocol_says() {
    let sprite = Sprite::start();
    sprite.configure().await;
    assert_eq!(sprite.api("GET /services", "").await, (200, "[]".into()));
    let (status, events) = sprite.service("web", "echo out $EXTRA; echo err >&2; exec sleep 100", "").await;
    assert_eq!(status, 200);
    let events: Vec<serde_json::Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().find(|event| event["type"] == kind);
    assert_eq!(events[0]["type"], "started");
    assert_eq!(of("stdout").unwrap()["data"], "out yes\n");
    assert_eq!(of("stderr").unwrap()["data"], "err\n");
    let last = events.last().unwrap();
    assert!(
        last["type"] == "complete" && last["log_files"]["combined"].as_str().unwrap().ends_with("web.log")
    );
    assert!(events.iter().all(|event| event["timestamp"].as_i64().unwrap() > 1_700_000_000_000));

    let (_, shown) = sprite.api("GET /services/web", "").await;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown["name"], &shown["cmd"], &shown["needs"]),
        (&"web".into(), &"/bin/sh".into(), &serde_json::json!([]))
    );
    assert!(shown.get("http_port").is_none() && shown["state"]["pid"].is_i64());
    assert_eq!((&shown["state"]["name"], &shown["state"]["status"]), (&"web".into(), &"running".into()));
    assert!(
        shown["state"]["started_at"].as_str().unwrap().contains('T') && shown["state"].get("error").is_none()
    );

    let (_, logs) = sprite.api("GET /services/web/logs?lines=1", "").await;
    assert_eq!(logs.lines().count(), 2, "{logs}");
    assert_eq!(sprite.api("POST /services/signal", r#"{"name":"web","signal":"SIGKILL"}"#).await.0, 204);
    let deadline = Instant::now() + LIMIT;
    loop {
        let (_, shown) = sprite.api("GET /services/web", "").await;
        if shown.contains("next_restart_at") {
            assert!(shown.contains("was ended by SIGKILL") && shown.contains("\"failed\""), "{shown}");
            break;
        }
        assert!(Instant::now() < deadline, "{shown}");
    }
    let (_, stopped) = sprite.api("POST /services/web/stop?timeout=10.0s", "").await;
    assert!(stopped.contains("\"stopped\""), "{stopped}");
    assert_eq!(sprite.api("DELETE /services/web", "").await.0, 204);
    assert_eq!(sprite.api("GET /services", "").await.1, "[]");
}

#[tokio::test]
async fn wrong_questions_about_services_get_clear_answers() {
    let sprite = Sprite::start();
    sprite.configure().await;
    sprite.service("db", "exec sleep 100", "").await;
    sprite.service("web", "exec sleep 100", r#","needs":["db"],"http_port":1"#).await;
    for (head, body, status, says) in [
        ("GET /services/no", "", 404, "no"),
        ("POST /services/no/start", "", 404, "no"),
        ("POST /services/no/stop", "", 404, "no"),
        ("GET /services/no/logs", "", 404, "no"),
        ("DELETE /services/no", "", 404, "no"),
        ("DELETE /services/db", "", 409, "web"),
        ("PUT /services/x", "", 400, "definition"),
        ("PUT /services/x", "{", 400, "definition"),
        ("GET /services/%ff", "", 400, "UTF-8"),
        ("PUT /services/x", r#"{"cmd":""}"#, 400, "cmd"),
        ("PUT /services/x", r#"{"cmd":"a","http_port":70000}"#, 400, "70000"),
        (
            "PUT /services/x",
            r#"{"cmd":"a","http_port":2}"#,
            409,
            "another service already has an HTTP port configured",
        ),
        ("PUT /services/x", r#"{"cmd":"a","needs":["y"]}"#, 400, "y"),
        ("PUT /services/db", r#"{"cmd":"a","needs":["web"]}"#, 400, "circle"),
        ("PUT /services/signal", r#"{"cmd":"a"}"#, 405, "PUT"),
        ("PUT /services/.x", r#"{"cmd":"a"}"#, 400, "dot"),
        ("PUT /services/x?duration=5", r#"{"cmd":"a"}"#, 400, "duration"),
        ("GET /services/db/logs?lines=x", "", 400, "lines"),
        ("POST /services/signal", r#"{"name":"db","signal":"NOPE"}"#, 400, "NOPE"),
        ("POST /services/signal", r#"{"name":"no","signal":"TERM"}"#, 404, "no"),
        ("POST /services", "", 405, "POST"),
        ("GET /nothing", "", 404, "/nothing"),
    ] {
        let (answered, text) = sprite.api(head, body).await;
        assert_eq!(answered, status, "{head} {body}: {text}");
        let error: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(
            error["error"].is_string() && error["message"].as_str().unwrap().contains(says),
            "{head}: {text}"
        );
    }
}

#[tokio::test]
async fn services_end_in_reverse_order_and_come_back_with_the_next_boot() {
    let sprite = Sprite::start();
    let mut control = sprite.configure().await;
    let script = |name: &str| {
        format!(
            "echo start {name} >> order; trap 'echo end {name} >> order; exit' TERM; while true; do sleep 0.02; done"
        )
    };
    sprite.service("db", &script("db"), "").await;
    sprite.service("web", &script("web"), r#","needs":["db"]"#).await;
    control.send(&ControlCommand::Shutdown { grace_ms: 5000 }).await.unwrap();
    while next(&mut control).await.is_some() {}
    let order = || fs::read_to_string(sprite.home.path().join("order")).unwrap_or_default();
    assert_eq!(order(), "start db\nstart web\nend web\nend db\n");

    fs::remove_file(sprite.home.path().join("order")).unwrap();
    let home = tempfile::tempdir().unwrap();
    fs::copy(sprite.home.path().join("services.json"), home.path().join("services.json")).unwrap();
    let again = Sprite::start_in(home);
    again.configure().await;
    let deadline = Instant::now() + LIMIT;
    // Their directory is still that of the first.
    while order() != "start db\nstart web\n" {
        assert!(Instant::now() < deadline, "{}", order());
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_service_that_writes_without_end_keeps_nobody_waiting() {
    let sprite = Sprite::start();
    sprite.configure().await;
    sprite.service("chatty", "exec yes", "").await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = Port::try_from(listener.local_addr().unwrap().port()).unwrap();
    let begun = Instant::now();
    for _ in 0..50 {
        sprite.dial(Target::Port(port), 1000).await.unwrap();
    }
    // Far above what it takes, far below what it took when each line was written by itself.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    println!("a dial took {:?}", begun.elapsed() / 50);
    let size = |name: &str| {
        let path = sprite.home.path().join("logs/services").join(name);
        path.metadata().map_or(0, |meta| meta.len())
    };
    assert!(size("chatty.log") > 0 && size("chatty.log") + size("chatty.log.1") <= 32 << 20);
}

#[tokio::test]
async fn a_broken_file_of_services_is_set_aside() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("services.json"), "{ not json").unwrap();
    let sprite = Sprite::start_in(home);
    sprite.configure().await;
    assert_eq!(sprite.api("GET /services", "").await, (200, "[]".into()));
    assert_eq!(fs::read_to_string(sprite.home.path().join("services.json.broken")).unwrap(), "{ not json");
    assert_eq!(sprite.service("web", "exec sleep 100", "").await.0, 200);
}
