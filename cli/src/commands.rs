//! What each command does.

use std::io::{BufRead, IsTerminal, Write};

use clap::CommandFactory;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    args::{Arguments, Command},
    client::{Api, Error},
    output,
};

/// A name as one path segment. What is no name at all is for the API to refuse.
fn segment(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
        text
    })
}

fn path(name: &str) -> String {
    format!("/v1/sprites/{}", segment(name))
}

/// Runs a command.
pub(crate) async fn run(arguments: Arguments) -> Result<(), Error> {
    let Arguments { api, token, json, command } = arguments;
    let api = Api::new(&api, &token)?;
    let show = |value: &Value, human: fn(&Value) -> String| {
        println!("{}", if json { output::json(value) } else { human(value) });
    };
    match command {
        Command::Create { name, auth } => {
            let body = json!({ "name": name, "url_settings": { "auth": auth.wire() } });
            show(&api.call(Method::POST, "/v1/sprites", Some(body)).await?, output::sprite);
        }
        Command::List { prefix } => show(&list(&api, &prefix).await?, output::sprites),
        Command::Info { name } => show(&api.call(Method::GET, &path(&name), None).await?, output::sprite),
        Command::Url { name, auth: None } => {
            show(&api.call(Method::GET, &path(&name), None).await?, output::url);
        }
        Command::Url { name, auth: Some(auth) } => {
            let body = json!({ "url_settings": { "auth": auth.wire() } });
            show(&api.call(Method::PUT, &path(&name), Some(body)).await?, output::url);
        }
        Command::Why { name } => {
            show(&api.call(Method::GET, &format!("{}/why", path(&name)), None).await?, output::why);
        }
        Command::Sleep { name, cold } => {
            let body = json!({ "depth": if cold { "cold" } else { "warm" } });
            show(&api.call(Method::POST, &format!("{}/sleep", path(&name)), Some(body)).await?, output::why);
        }
        Command::Wake { name } => {
            show(&api.call(Method::POST, &format!("{}/wake", path(&name)), None).await?, output::why);
        }
        Command::Destroy { name, force } => {
            if !force && !confirmed(&name)? {
                return Err(Error::Usage("nothing was destroyed".into()));
            }
            api.call(Method::DELETE, &path(&name), None).await?;
            eprintln!("Destroyed {name}");
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "sprite", &mut std::io::stdout());
        }
    }
    Ok(())
}

/// All pages of the list, as one array.
async fn list(api: &Api, prefix: &str) -> Result<Value, Error> {
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = format!("/v1/sprites?prefix={}&continuation_token={}", segment(prefix), segment(&token));
        let answer = api.call(Method::GET, &page, None).await?;
        all.extend(answer["sprites"].as_array().cloned().unwrap_or_default());
        match answer["next_continuation_token"].as_str() {
            Some(next) if answer["has_more"] == true && !next.is_empty() => token = next.to_owned(),
            Some(_) | None => return Ok(Value::Array(all)),
        }
    }
}

fn confirmed(name: &str) -> Result<bool, Error> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::Usage("destroying needs --force where nobody can be asked".into()));
    }
    eprint!("This destroys {name} with all its data. Type its name to go on: ");
    // A prompt that can't be shown is followed by an answer that can't be right.
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(|error| Error::Usage(error.to_string()))?;
    Ok(answer.trim() == name)
}
