//! Notices of ports, to clients of sessions and to watchers.

use tokio_tungstenite::tungstenite::Message;

use crate::{
    client::Client,
    harness::{Sprite, free_port},
};

async fn text(client: &mut Client, kind: &str) -> serde_json::Value {
    loop {
        if let Message::Text(text) = client.next().await {
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            if value["type"] == kind {
                return value;
            }
        }
    }
}

const SERVER: &str = "import socket,sys,time\n\
    s=socket.socket(); s.bind((sys.argv[1], int(sys.argv[2]))); s.listen(); time.sleep(float(sys.argv[3])); s.close(); time.sleep(100)";

fn command(host: &str, port: ids::Port, seconds: &str) -> String {
    format!("sh -c 'exec python3 -c \"$0\" \"$@\"' '{SERVER}' {host} {port} {seconds}")
}

#[tokio::test]
async fn a_client_hears_of_the_ports_of_its_session_and_of_no_other() {
    let sprite = Sprite::start();
    let (port, foreign) = (free_port(), free_port());
    let mut watcher = sprite.websocket("/ports/watch").await.unwrap();
    let list = text(&mut watcher, "port_list").await;
    assert!(list["ports"].is_array());
    let mut other = sprite.sh(&command("127.0.0.1", foreign, "100"), "detachable=true").await;
    let other_id = other.info().await.session_id;
    let theirs = text(&mut other, "port_opened").await;
    assert_eq!(theirs["port"], foreign.get());

    let mut client = sprite.sh(&command("0.0.0.0", port, "0.5"), "").await;
    let opened = text(&mut client, "port_opened").await;
    assert_eq!((&opened["port"], &opened["address"]), (&port.get().into(), &"localhost".into()));
    let pid = opened["pid"].as_u64().unwrap();
    assert!(std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().starts_with("python3"));
    assert_eq!(text(&mut client, "port").await["port"], port.get());
    let closed = text(&mut client, "port_closed").await;
    assert_eq!((&closed["port"], &closed["pid"]), (&port.get().into(), &pid.into()));

    // One that attaches later hears of what is open.
    drop(other);
    let mut late = sprite.websocket(&format!("/exec/{other_id}")).await.unwrap();
    assert_eq!(text(&mut late, "port_opened").await["port"], foreign.get());

    for (kind, port) in [("port_opened", foreign), ("port_opened", port), ("port_closed", port)] {
        while text(&mut watcher, kind).await["port"] != port.get() {}
    }
    assert_eq!(sprite.api("GET /ports/watch", "").await.0, 426);
    sprite.api(&format!("DELETE /exec/{other_id}?signal=KILL"), "").await;
}
