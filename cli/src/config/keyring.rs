//! The desktop's keyring, by the Secret Service protocol. Servers and containers have none; then tokens
//! are kept in a file that only their owner reads.

use std::collections::HashMap;

use dbus_secret_service::{EncryptionType, SecretService};

use super::Secret;

/// Longer than a person needs to type the keyring's password.
const PROMPT_SECONDS: u64 = 120;
/// What all our items have.
const SERVICE: (&str, &str) = ("service", "sprites-cli");

/// Under which name a token is kept.
pub(crate) fn key(url: &str, org: &str) -> String {
    format!("sprites:{url}:{org}")
}

fn attributes(key: &str) -> HashMap<&str, &str> {
    HashMap::from([SERVICE, ("username", key)])
}

fn open() -> Result<SecretService, String> {
    // libdbus would start a bus of its own where there is none.
    if std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_none() {
        return Err("there is no session bus".to_owned());
    }
    SecretService::connect_with_max_prompt_timeout(EncryptionType::Dh, PROMPT_SECONDS)
        .map_err(|error| error.to_string())
}

/// Whether there is one.
pub(crate) fn available() -> Result<(), String> {
    let service = open()?;
    service.get_default_collection().map(drop).map_err(|error| error.to_string())
}

/// Keeps a token.
pub(crate) fn put(key: &str, token: &Secret) -> Result<(), String> {
    let service = open()?;
    let put = || {
        let collection = service.get_default_collection()?;
        collection.ensure_unlocked()?;
        let label = format!("Sprites token ({key})");
        collection
            .create_item(&label, attributes(key), token.expose().as_bytes(), true, "text/plain")
            .map(drop)
    };
    put().map_err(|error: dbus_secret_service::Error| error.to_string())
}

/// Gives a token back; `None` if there is none under this name.
pub(crate) fn get(key: &str) -> Result<Option<Secret>, String> {
    let service = open()?;
    let get = || {
        let collection = service.get_default_collection()?;
        collection.ensure_unlocked()?;
        let items = collection.search_items(attributes(key))?;
        items.first().map(dbus_secret_service::Item::get_secret).transpose()
    };
    let found: Option<Vec<u8>> = get().map_err(|error: dbus_secret_service::Error| error.to_string())?;
    found
        .map(|bytes| String::from_utf8(bytes).map(Secret::new).map_err(|_| "it is no text".to_owned()))
        .transpose()
}

/// Removes a token.
pub(crate) fn delete(key: &str) -> Result<(), String> {
    let service = open()?;
    let delete = || {
        let collection = service.get_default_collection()?;
        collection.search_items(attributes(key))?.iter().try_for_each(dbus_secret_service::Item::delete)
    };
    delete().map_err(|error: dbus_secret_service::Error| error.to_string())
}
