//! `runtime hello`: the web server of the demo sprite. It shows what sleep keeps: a number that lives
//! in memory only survives a nap, one on disk survives everything.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use axum::{Router, extract::State, response::Html, routing::get};
use tokio::{net::TcpListener, sync::Mutex};

struct Visits {
    began: Instant,
    name: String,
    in_memory: u64,
    on_disk: PathBuf,
}

/// Serves until it is killed.
pub(crate) async fn serve(port: u16) -> std::io::Result<()> {
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/home/sprite"), PathBuf::from);
    let visits = Visits {
        began: Instant::now(),
        name: std::env::var("SPRITE_NAME").unwrap_or_else(|_| "sprite".into()),
        in_memory: 0,
        on_disk: home.join("visits"),
    };
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await?;
    let routes = Router::new().route("/", get(page)).with_state(Arc::new(Mutex::new(visits)));
    axum::serve(listener, routes).await
}

async fn page(State(visits): State<Arc<Mutex<Visits>>>) -> Html<String> {
    let mut visits = visits.lock().await;
    visits.in_memory += 1;
    let before: u64 = match tokio::fs::read_to_string(&visits.on_disk).await {
        Ok(text) => text.trim().parse().unwrap_or(0),
        // The first visit of all.
        Err(_) => 0,
    };
    let saved = match tokio::fs::write(&visits.on_disk, format!("{}\n", before + 1)).await {
        Ok(()) => format!("{}", before + 1),
        Err(error) => format!("{} (not saved: {error})", before + 1),
    };
    Html(format!(
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>\
         <title>{name}</title><style>body{{font:18px/1.6 system-ui;max-width:36em;margin:4em auto;padding:0 1em}}\
         dt{{color:#667}}dd{{margin:0 0 .8em;font-size:1.4em}}</style>\
         <h1>{name} is awake</h1>\
         <p>This page comes from a web server inside a sprite. Leave it alone and the sprite falls asleep; \
         load it again and it wakes.</p><dl>\
         <dt>Visits that its memory remembers (kept while it is warm)</dt><dd>{memory}</dd>\
         <dt>Visits that its disk remembers (kept for ever)</dt><dd>{saved}</dd>\
         <dt>Age of this server's process, on the clock of its host</dt><dd>{age:.1?}</dd></dl>\n",
        name = visits.name,
        memory = visits.in_memory,
        age = visits.began.elapsed(),
    ))
}
