//! The domain under which sprites live, and what a host name in it means.

use std::borrow::Cow;

use ids::{NameError, Port, SpriteName, UrlSuffix};

use crate::authority::{self, Host, Why};

/// Why a request can't be sent on. Nothing has been woken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum HostError {
    /// Not a host name, or not one that a sprite can have: 400.
    #[error("the host name of this request is refused: {why}")]
    Malformed {
        /// What is wrong.
        why: Why,
    },
    /// A good host name, but not one of ours: 421 (RFC 9110 §15.5.20).
    #[error("this server does not answer for that host name")]
    NotOurs,
}

/// Why a text can't be the domain of a [`Zone`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a domain is lowercase labels separated by dots, at most 180 characters, such as `sprites.example`")]
pub struct ZoneError;

/// Where a request wants to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Destination<'a> {
    /// To the API.
    Api,
    /// To a sprite, which may or may not exist.
    Sprite(SpriteHost<'a>),
}

/// A sprite's part of a host name: `name-suffix`, and perhaps a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SpriteHost<'a> {
    key: Cow<'a, str>,
    divide: usize,
    port: Option<Port>,
}

impl SpriteHost<'_> {
    /// `name-suffix` in lowercase, without the port: what sprites are looked up by.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The sprite's name: satisfies [`SpriteName`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.key[..self.divide]
    }

    /// The owner's suffix: satisfies [`UrlSuffix`].
    #[must_use]
    pub fn suffix(&self) -> &str {
        &self.key[self.divide + 1..]
    }

    /// The port that the host name asks for.
    #[must_use]
    pub const fn port(&self) -> Option<Port> {
        self.port
    }

    /// The same, independent of the text it was parsed from.
    #[must_use]
    pub fn into_owned(self) -> SpriteHost<'static> {
        SpriteHost { key: Cow::Owned(self.key.into_owned()), divide: self.divide, port: self.port }
    }
}

/// The domain under which sprites live.
#[derive(Clone, Debug)]
pub struct Zone {
    domain: Box<str>,
    reserved: Vec<Port>,
}

impl Zone {
    /// A zone under `domain`, which is given in lowercase and without a trailing dot.
    ///
    /// # Errors
    /// If it is no such domain, or so long that no sprite's host name would fit.
    pub fn new(domain: &str) -> Result<Self, ZoneError> {
        let label =
            |label: &str| (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-');
        let letters =
            domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.');
        // 63 for the sprite's label and its dot must still fit into 253.
        if domain.len() > 180 || !letters || !domain.split('.').all(label) {
            return Err(ZoneError);
        }
        Ok(Self { domain: domain.into(), reserved: Vec::new() })
    }

    /// The same zone, in which no host name may ask for any of these ports.
    #[must_use]
    pub fn reserving(mut self, ports: impl IntoIterator<Item = Port>) -> Self {
        self.reserved.extend(ports);
        self
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The text by which a sprite is looked up: `name-suffix`.
    #[must_use]
    pub fn key(name: &SpriteName, suffix: &UrlSuffix) -> String {
        format!("{name}-{suffix}")
    }

    /// The host name of a sprite's URL.
    #[must_use]
    pub fn host(&self, name: &SpriteName, suffix: &UrlSuffix, port: Option<Port>) -> String {
        match port {
            None => format!("{name}-{suffix}.{}", self.domain),
            Some(port) => format!("{port}--{name}-{suffix}.{}", self.domain),
        }
    }

    /// Reads an authority: a host and perhaps a port of ours (which says nothing about the sprite's).
    ///
    /// Allocates only if a sprite's label has uppercase letters.
    ///
    /// # Errors
    /// See [`HostError`]. The same text always has the same answer, whatever sprites exist.
    pub fn parse<'a>(&self, authority: &'a str) -> Result<Destination<'a>, HostError> {
        let malformed = |why| HostError::Malformed { why };
        let host = match authority::split(authority).map_err(malformed)? {
            Host::Ip => return Ok(Destination::Api),
            Host::Name(host) => host,
        };
        if host.eq_ignore_ascii_case("localhost") {
            return Ok(Destination::Api);
        }
        let label = self.label(host).ok_or(HostError::NotOurs)?;
        if label.eq_ignore_ascii_case("api") {
            return Ok(Destination::Api);
        }
        self.sprite(label).map(Destination::Sprite).map_err(malformed)
    }

    /// What stands before `.{domain}`.
    fn label<'a>(&self, host: &'a str) -> Option<&'a str> {
        // Both are ASCII, so any index is a boundary.
        let dot = host.len().checked_sub(self.domain.len() + 1)?;
        let ours = host.as_bytes()[dot] == b'.' && host[dot + 1..].eq_ignore_ascii_case(&self.domain);
        ours.then(|| &host[..dot])
    }

    fn sprite<'a>(&self, label: &'a str) -> Result<SpriteHost<'a>, Why> {
        if label.contains('.') {
            return Err(Why::SecondLabel);
        }
        let (port, key) = match label.split_once("--") {
            None => (None, label),
            Some((left, _)) if left.eq_ignore_ascii_case("xn") => return Err(Why::Punycode),
            Some((left, key)) => (Some(left.parse::<Port>().map_err(|_| Why::LabelPort)?), key),
        };
        if port.is_some_and(|port| self.reserved.contains(&port)) {
            return Err(Why::ReservedPort);
        }
        let key = match key.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(key.to_ascii_lowercase()),
            false => Cow::Borrowed(key),
        };
        let divide = key.rfind('-').ok_or(Why::Label)?;
        let checked: Result<(), NameError> =
            SpriteName::check(&key[..divide]).and_then(|()| UrlSuffix::check(&key[divide + 1..]));
        checked.map_err(|_| Why::Label)?;
        Ok(SpriteHost { key, divide, port })
    }
}
