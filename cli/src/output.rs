//! How answers look to people.

use serde_json::Value;

pub(crate) fn json(value: &Value) -> String {
    format!("{value:#}")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

pub(crate) fn sprite(sprite: &Value) -> String {
    let auth = text(&sprite["url_settings"], "auth");
    [
        ("name", text(sprite, "name")),
        ("status", text(sprite, "status")),
        ("url", text(sprite, "url")),
        ("auth", if auth == "sprite" { "default (members only)" } else { auth }),
        ("organization", text(sprite, "organization")),
        ("created", text(sprite, "created_at")),
    ]
    .map(|(key, value)| format!("{key:<14}{value}"))
    .join("\n")
}

pub(crate) fn url(sprite: &Value) -> String {
    format!("{}\t{}", text(sprite, "url"), text(&sprite["url_settings"], "auth"))
}

pub(crate) fn sprites(sprites: &Value) -> String {
    let mut lines = vec![format!("{:<32}{:<10}URL", "NAME", "STATUS")];
    for sprite in sprites.as_array().into_iter().flatten() {
        let (name, status, url) = (text(sprite, "name"), text(sprite, "status"), text(sprite, "url"));
        lines.push(format!("{name:<32}{status:<10}{url}"));
    }
    lines.join("\n")
}

/// Milliseconds as people say them.
fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1000.0),
        120_000.. => format!("{} min", ms / 60_000),
    }
}

pub(crate) fn why(why: &Value) -> String {
    let mut lines =
        vec![format!("{} (inside: {}, epoch {})", text(why, "state"), text(why, "phase"), why["epoch"])];
    for holder in why["holders"].as_array().into_iter().flatten() {
        let held_for = duration(holder["held_for_ms"].as_u64().unwrap_or_default());
        let mut line =
            format!("held for {held_for} by {} of {}", text(holder, "activity"), text(holder, "holder"));
        line.push_str(&format!(": {} connections, {} requests", holder["connections"], holder["requests"]));
        if let Some(ago) = holder["last_byte_ms_ago"].as_u64() {
            line.push_str(&format!(", last byte {} ago", duration(ago)));
        }
        if let Some(id) = holder["request_id"].as_str() {
            line.push_str(&format!(", woken by request {id}"));
        }
        lines.push(line);
    }
    if let (Some(ms), Some(state)) = (why["sleeps_in_ms"].as_u64(), why["sinks_to"].as_str()) {
        lines.push(format!("nobody holds it: {state} in {}", duration(ms)));
    }
    if let Some(trouble) = why["trouble"]["message"].as_str() {
        lines.push(format!("trouble: {trouble}"));
    }
    lines.join("\n")
}
