//! What the host is told of what keeps the sprite awake.

use runtime_api::{
    ActivityKind, Command as ControlCommand, Configuration, ControlStream, Event, SessionActivity,
    open_control,
};
use std::time::Duration;
use tokio::time::timeout;

use crate::harness::{Sprite, next};

/// The next event that is about activities.
async fn activity(control: &mut ControlStream) -> Event {
    loop {
        let event = next(control).await.expect("the stream is open");
        if matches!(event, Event::ActivityBegun(_) | Event::ActivityEnded { .. } | Event::Touched) {
            return event;
        }
    }
}

async fn begun(control: &mut ControlStream) -> (u64, ActivityKind, String) {
    loop {
        match activity(control).await {
            Event::ActivityBegun(one) => return (one.id, one.kind, one.name),
            Event::Touched => {}
            other => panic!("{other:?}"),
        }
    }
}

async fn ended(control: &mut ControlStream) -> u64 {
    loop {
        match activity(control).await {
            Event::ActivityEnded { id } => return id,
            Event::Touched => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn an_exec_becomes_a_session_without_a_gap_and_a_new_stream_hears_all() {
    let sprite = Sprite::start();
    let mut control = sprite.configure().await;
    let mut client = sprite.sh("echo ready; exec sleep 100", "tty=true").await;
    let session = client.info().await.session_id;
    let (exec, kind, name) = begun(&mut control).await;
    assert!(kind == ActivityKind::Exec && name.ends_with("/sh -c echo ready; exec sleep 100"), "{name}");
    drop(client);
    // The session begins before the exec ends.
    let (alone, kind, _) = begun(&mut control).await;
    assert_eq!(kind, ActivityKind::Session);
    assert_eq!(ended(&mut control).await, exec);
    // A stream that breaks loses nothing.
    drop(control);
    let mut control = open_control(&sprite.address()).await.unwrap();
    assert!(matches!(next(&mut control).await, Some(Event::Hello { .. })));
    assert_eq!(begun(&mut control).await.0, alone);
    let client = sprite.websocket(&format!("/exec/{session}")).await.unwrap();
    let (again, kind, _) = begun(&mut control).await;
    assert_eq!((kind, ended(&mut control).await), (ActivityKind::Exec, alone));
    assert_eq!(sprite.api(&format!("POST /exec/{session}/kill?signal=KILL"), "").await.0, 200);
    assert_eq!(ended(&mut control).await, again);
    drop(client);
}

#[tokio::test]
async fn stdin_is_use_and_so_is_output_where_that_is_asked_for() {
    let sprite = Sprite::start();
    let mut control = sprite.configure().await;
    let mut client = sprite.sh("cat > /dev/null", "stdin=true").await;
    begun(&mut control).await;
    client.stdin(b"x").await;
    assert_eq!(activity(&mut control).await, Event::Touched);
    client.stdin_eof().await;
    client.all(false).await;
    ended(&mut control).await;

    let configuration = Configuration {
        name: "demo".parse().unwrap(),
        url: String::new(),
        epoch: ids::Epoch(7),
        environment: std::collections::BTreeMap::new(),
        session_activity: SessionActivity::Output,
        session_limits: runtime_api::SessionLimits::default(),
        woken: None,
    };
    control.send(&ControlCommand::Configure(configuration)).await.unwrap();
    while next(&mut control).await != Some(Event::Ready) {}
    let script = "echo ready; sleep 1.2; echo once; exec sleep 100";
    let mut client = sprite.sh(script, "tty=true").await;
    let id = client.info().await.session_id;
    let (exec, _, _) = begun(&mut control).await;
    client.until("ready").await;
    drop(client);
    // Nothing holds the sprite any more; what the session writes is use.
    assert_eq!(ended(&mut control).await, exec);
    assert_eq!(activity(&mut control).await, Event::Touched);
    let quiet = timeout(Duration::from_millis(500), activity(&mut control)).await;
    assert!(quiet.is_err(), "{quiet:?}");
    sprite.api(&format!("DELETE /exec/{id}?signal=KILL"), "").await;
}

/// Watching is no use.
#[tokio::test]
async fn a_watch_of_ports_keeps_nobody_awake() {
    let sprite = Sprite::start();
    let mut control = sprite.configure().await;
    let mut watch = sprite.websocket("/ports/watch").await.unwrap();
    watch.next().await;
    let quiet = timeout(Duration::from_millis(300), activity(&mut control)).await;
    assert!(quiet.is_err(), "{quiet:?}");
}
