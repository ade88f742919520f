//! Sessions: leaving, coming back, several clients, and the end.

use std::{
    fs,
    time::{Duration, Instant},
};

use tokio::time::sleep;
use tokio_tungstenite::tungstenite::Message;

use crate::{
    client::Client,
    harness::{LIMIT, Sprite},
};

fn is_alive(pid: i32) -> bool {
    // A zombie is dead.
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z')))
}

async fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn pid_of(client: &mut Client) -> i32 {
    let text = client.until("\n").await;
    text.trim_start_matches('\u{1}').trim().parse().unwrap()
}

async fn sessions(sprite: &Sprite) -> Vec<serde_json::Value> {
    let (status, body) = sprite.api("GET /exec", "").await;
    assert_eq!(status, 200);
    let list: serde_json::Value = serde_json::from_str(&body).unwrap();
    let sessions = list["sessions"].as_array().unwrap().clone();
    assert_eq!(list["count"], sessions.len());
    sessions
}

#[tokio::test]
async fn rule_10_the_list_is_never_null_and_shows_what_runs() {
    let sprite = Sprite::start();
    assert_eq!(sprite.api("GET /exec", "").await, (200, r#"{"sessions":[],"count":0}"#.into()));
    let mut client = sprite.sh("echo ready; exec sleep 50", "tty=true&dir=/tmp").await;
    let id = client.info().await.session_id;
    client.until("ready").await;
    let shown = &sessions(&sprite).await[0];
    assert_eq!((&shown["id"], &shown["tty"]), (&id.as_str().into(), &true.into()));
    assert!(shown["command"].as_str().unwrap().starts_with('/'));
    assert_eq!((&shown["workdir"], &shown["is_active"]), (&"/tmp".into(), &true.into()));
    for time in ["created", "last_activity"] {
        assert!(shown[time].as_str().unwrap().ends_with('Z'), "{shown}");
    }
    assert!(shown["bytes_per_second"].as_f64().unwrap() > 0.0, "{shown}");
    let (status, one) = sprite.api(&format!("GET /exec/{id}"), "").await;
    assert!(status == 200 && one.contains(&id));
    // The version probe of one client.
    let answer = crate::harness::raw_api(&sprite, "HEAD /exec").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_command_ends_when_its_client_stays_away_and_a_session_does_not() {
    let sprite = Sprite::start();
    let mut client = sprite.sh("echo $$; exec sleep 100", "max_run_after_disconnect=200ms").await;
    client.info().await;
    let pid = pid_of(&mut client).await;
    let left = Instant::now();
    drop(client);
    wait_until("its end", || !is_alive(pid)).await;
    assert!(left.elapsed() >= Duration::from_millis(150), "{:?}", left.elapsed());
    // One that does not obey is killed, with all that it started.
    let script = "trap '' TERM; (trap '' TERM; sleep 100 & echo $$; wait) ; sleep 100";
    let mut client = sprite.sh(script, "max_run_after_disconnect=1ms").await;
    client.info().await;
    let pid = pid_of(&mut client).await;
    drop(client);
    wait_until("its death", || !is_alive(pid)).await;
    // These stay.
    for more in ["tty=true", "detachable=true", "max_run_after_disconnect=0"] {
        let mut client = sprite.sh("echo $$; exec sleep 100", more).await;
        let id = client.info().await.session_id;
        let pid = pid_of(&mut client).await;
        drop(client);
        sleep(Duration::from_millis(300)).await;
        assert!(is_alive(pid), "{more}");
        assert_eq!(sprite.api(&format!("POST /exec/{id}/kill?signal=KILL"), "").await.0, 200);
    }
}

#[tokio::test]
async fn rule_12_a_session_is_found_by_path_and_by_both_forms_of_query() {
    let sprite = Sprite::start();
    let mut first = sprite.sh("echo early; cat", "tty=true&rows=11&cols=22").await;
    let id = first.info().await.session_id;
    first.until("early").await;
    drop(first);
    for path in [format!("/exec/{id}"), format!("/exec?id={id}"), format!("/exec?session_id={id}&path=&cmd=")]
    {
        let mut client = sprite.websocket(&path).await.unwrap();
        let info = client.info().await;
        assert_eq!((info.session_id.as_str(), info.is_owner, info.tty), (id.as_str(), false, true));
        assert_eq!((info.rows, info.cols), (11, 22));
        client.until("early").await;
        // It types into the same program.
        client.keys(&format!("{}\r", path.len())).await;
        client.until(&format!("\n{}", path.len())).await;
    }
}

#[tokio::test]
async fn rule_13_a_dead_id_is_404_before_the_upgrade() {
    let sprite = Sprite::start();
    let mut client = sprite.sh("true", "").await;
    let id = client.info().await.session_id;
    client.all(false).await;
    let (status, body) = sprite.refused(&format!("/exec/{id}")).await;
    assert!(status == 404 && body.contains(&format!("session not found: {id}")), "{body}");
    assert_eq!(sprite.refused(&format!("/exec/0{id}")).await.0, 404);
}

#[tokio::test]
async fn an_end_of_input_that_comes_at_once_on_attach_does_not_reach_a_terminal() {
    let sprite = Sprite::start();
    let mut owner = sprite.sh("cat; echo over", "tty=true").await;
    let id = owner.info().await.session_id;
    let mut client = sprite.websocket(&format!("/exec/{id}?stdin=true")).await.unwrap();
    client.keys("\u{4}").await;
    client.keys("still here\r").await;
    client.until("still here\r\nstill here").await;
    // Later it is what somebody typed.
    client.keys("\u{4}").await;
    assert!(client.all(true).await.shown().ends_with("over\n"));
    assert_eq!(owner.all(true).await.exit_text, Some(0));
}

/// A counter that never stops; clients that come and go, and each sees every number from where it begins.
#[tokio::test]
async fn replay_goes_over_into_live_output_without_a_gap() {
    let sprite = Sprite::start();
    for tty in ["&tty=true", ""] {
        let script = "i=0; while true; do i=$((i+1)); echo $i; [ $((i % 500)) = 0 ] && sleep 0.01; done";
        let mut owner = sprite.sh(script, &format!("detachable=true{tty}")).await;
        let id = owner.info().await.session_id;
        owner.until("100").await;
        drop(owner);
        for round in 0..20 {
            let mut client = sprite.websocket(&format!("/exec/{id}")).await.unwrap();
            client.info().await;
            let mut seen = Vec::new();
            while seen.len() < 30_000 + round * 777 {
                if let Message::Binary(bytes) = client.next().await {
                    seen.extend_from_slice(if tty.is_empty() { &bytes[1..] } else { &bytes });
                }
            }
            let text = String::from_utf8(seen).unwrap();
            // The first and the last may be cut.
            let lines: Vec<&str> = text.lines().collect();
            let numbers: Vec<u64> =
                lines[1..lines.len() - 1].iter().map(|line| line.trim().parse().unwrap()).collect();
            for pair in numbers.windows(2) {
                assert_eq!(pair[0] + 1, pair[1], "round {round}");
            }
        }
        sprite.api(&format!("DELETE /exec/{id}?signal=KILL"), "").await;
    }
}

#[tokio::test]
async fn several_clients_see_the_same_and_one_that_reads_nothing_stalls_no_other() {
    let sprite = Sprite::start();
    let mut owner = sprite.sh("read x; yes | head -c 6000000; echo; echo the end; read y", "tty=true").await;
    let id = owner.info().await.session_id;
    let mut stalled = sprite.websocket(&format!("/exec/{id}")).await.unwrap();
    stalled.info().await;
    let mut other = sprite.websocket(&format!("/exec/{id}")).await.unwrap();
    other.info().await;
    let begun = Instant::now();
    owner.keys("\r").await;
    let (one, two) = tokio::join!(owner.until("the end"), other.until("the end"));
    assert_eq!(one.len(), two.len());
    assert!(one.len() > 6_000_000);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // The one that read nothing is told.
    let said = stalled.all(true).await;
    assert_eq!(said.close_code(), Some(4001), "{:?}", said.order.last());
    assert!(said.order.contains(&"text:error".to_owned()));
    owner.keys("\r").await;
    assert_eq!(owner.all(true).await.exit_text, Some(0));
}

#[tokio::test]
async fn an_end_is_asked_for_then_enforced_and_told() {
    let sprite = Sprite::start();
    let lines = |body: &str| -> Vec<serde_json::Value> {
        body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // It obeys.
    let mut client = sprite.sh("exec sleep 100", "").await;
    let id = client.info().await.session_id;
    let (status, body) = sprite.api(&format!("POST /exec/{id}/kill"), "").await;
    let told = lines(&body);
    assert_eq!(status, 200);
    assert_eq!((&told[0]["type"], &told[0]["signal"]), (&"signal".into(), &"SIGTERM".into()));
    let pid = told[0]["pid"].as_i64().unwrap();
    assert_eq!(told[0]["message"], format!("Signaling SIGTERM to process group {pid}"));
    assert_eq!(told[0]["data"], told[0]["message"]);
    assert_eq!(told[1]["type"], "exited");
    assert_eq!((&told[2]["type"], &told[2]["exit_code"]), (&"complete".into(), &143.into()));
    assert_eq!(client.all(false).await.exit_text, Some(143));
    // It is gone.
    let (status, body) = sprite.api(&format!("POST /exec/{id}/kill"), "").await;
    assert!(status == 410 && body.contains("143"), "{body}");
    assert_eq!(sprite.api("POST /exec/77/kill", "").await.0, 404);
    // It does not obey; the body wins over the query.
    let mut client = sprite.sh("trap '' TERM; echo ready; while true; do sleep 0.1; done", "").await;
    let id = client.info().await.session_id;
    client.until("ready").await;
    let path = format!("POST /exec/{id}/kill?signal=INT&timeout=60s");
    let (_, body) = sprite.api(&path, r#"{"signal":"SIGTERM","timeout":0.3}"#).await;
    let kinds: Vec<_> = lines(&body).iter().map(|line| line["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["signal", "timeout", "killed", "complete"]);
    assert_eq!(lines(&body)[3]["exit_code"], 137);
    assert_eq!(client.all(false).await.exit_text, Some(137));
    // Nobody waits.
    let mut client =
        sprite.sh("trap 'echo got it' USR1; echo ready; while true; do sleep 0.02; done", "").await;
    let id = client.info().await.session_id;
    client.until("ready").await;
    let (_, body) = sprite.api(&format!("POST /exec/{id}/kill?signal=USR1&timeout=0s"), "").await;
    let kinds: Vec<_> = lines(&body).iter().map(|line| line["type"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds, ["signal", "complete"]);
    client.until("got it").await;
    for (query, body) in [("signal=NOPE", ""), ("timeout=x", ""), ("", "[]")] {
        assert_eq!(sprite.api(&format!("POST /exec/{id}/kill?{query}"), body).await.0, 400, "{query}{body}");
    }
}

#[tokio::test]
async fn sessions_end_with_the_sprite() {
    let mut sprite = Sprite::start();
    let mut client = sprite.sh("echo $$; exec sleep 100", "tty=true").await;
    client.info().await;
    let pid = pid_of(&mut client).await;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(sprite.process.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    wait_until("the sprite's end", || sprite.process.try_wait().unwrap().is_some()).await;
    assert!(!is_alive(pid));
}
