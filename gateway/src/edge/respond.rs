//! The public answer to everything that goes wrong at the edge: one exhaustive match.
//!
//! What the client reads and what we log are two strings. An answer says what happened and what to do,
//! has a stable code for programs, and never tells more than the client may know.

use std::{borrow::Cow, time::Duration};

use agent_api::lease::{Refusal, RefusalCode as LeaseCode};
use hold::Full;
use route::HostError;
use runtime_api::{DialRefusal, RefusalCode as DialCode};

use super::head::HeadError;

/// What can go wrong between a client's request and its sprite.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum EdgeError {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("the TLS server name and the host differ")]
    Misdirected,
    #[error("not authorized")]
    Unauthorized,
    #[error("no such sprite")]
    NoSprite,
    #[error("the route table is not filled yet")]
    Starting,
    #[error("the gateway is draining")]
    Draining,
    #[error(transparent)]
    LineFull(#[from] Full),
    #[error("the sprite did not wake within {0:?}")]
    HoldExpired(Duration),
    #[error("no lease channel to the agent")]
    AgentUnreachable,
    #[error("the agent refused the lease: {}", .0.message)]
    LeaseRefused(Refusal),
    #[error("the runtime refused the connection: {0}")]
    DialRefused(DialRefusal),
    #[error("the sprite's runtime can't be reached: {0}")]
    SpriteUnreachable(String),
    #[error("the sprite has no runtime of ours")]
    NoRuntime,
    #[error("the connection to the sprite broke: {0}")]
    UpstreamBroken(String),
    #[error("the sprite fell asleep during the request")]
    SpriteSlept,
    #[error("the client's request was malformed: {0}")]
    BadRequest(String),
    #[error("internal error: {0}")]
    Internal(String),
}

/// An answer, ready to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Stable; for programs.
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    /// In whole seconds: clients ignore dates and fractions.
    pub(crate) retry_after_s: Option<u64>,
    pub(crate) challenge: bool,
    /// What a 405 says would be allowed.
    pub(crate) allow: Option<String>,
}

/// What an answer looks like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    Json,
    Page,
}

impl Answer {
    pub(crate) fn new(status: u16, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.into(),
            message: message.into(),
            retry_after_s: None,
            challenge: false,
            allow: None,
        }
    }

    pub(crate) fn allow(mut self, methods: &str) -> Self {
        self.allow = Some(methods.to_owned());
        self
    }

    pub(crate) const fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// The body and its type.
    pub(crate) fn body(&self, shape: Shape, request_id: &str) -> (&'static str, String) {
        match shape {
            Shape::Json => {
                let body = serde_json::json!({
                    "error": self.code,
                    "message": self.message,
                    "request_id": request_id,
                });
                let body = match self.retry_after_s {
                    None => body,
                    Some(seconds) => {
                        let mut body = body;
                        body["retry_after_seconds"] = seconds.into();
                        body
                    }
                };
                ("application/json", format!("{body}\n"))
            }
            Shape::Page => ("text/html; charset=utf-8", self.page(request_id)),
        }
    }

    fn page(&self, request_id: &str) -> String {
        let title = http::StatusCode::from_u16(self.status)
            .ok()
            .and_then(|status| status.canonical_reason())
            .unwrap_or("Error");
        let again = match self.retry_after_s {
            Some(seconds) => format!("<p>Try again in {seconds} s.</p>\n"),
            None => String::new(),
        };
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n<title>{status} {title}</title>\n\
             <style>body{{font:1rem/1.5 system-ui,sans-serif;max-width:36rem;margin:15vh auto;padding:0 1rem}}\
             small{{color:#666}}</style>\n<h1>{title}</h1>\n<p>{message}</p>\n{again}\
             <p><small>{code} · request {id}</small></p>\n</html>\n",
            status = self.status,
            message = escape(&self.message),
            code = self.code,
            id = escape(request_id),
        )
    }
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['<', '>', '&', '"', '\'']) {
        return text.into();
    }
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
        .into()
}

fn whole_seconds(ms: u64) -> u64 {
    ms.div_ceil(1000).max(1)
}

/// The public answer to an error.
pub(crate) fn answer(error: &EdgeError) -> Answer {
    match error {
        EdgeError::Head(head) => match head {
            HeadError::Malformed(why) => Answer::new(400, "bad_request", format!("This is not a well-formed HTTP request: {why}.")),
            HeadError::TooLarge => Answer::new(431, "header_too_large", "The request's header is larger than this server accepts. Send fewer or smaller headers (large cookies are the usual cause)."),
            HeadError::TargetTooLong => Answer::new(414, "uri_too_long", "The request's URL is longer than this server accepts."),
            HeadError::Connect => Answer::new(405, "method_not_allowed", "This server is not a proxy: CONNECT is not offered."),
            HeadError::Expectation => Answer::new(417, "expectation_failed", "The only expectation this server meets is 100-continue."),
            HeadError::Version => Answer::new(505, "http_version_not_supported", "This server speaks HTTP/1.0, HTTP/1.1 and HTTP/2."),
        },
        EdgeError::Host(HostError::Malformed { why }) => Answer::new(400, "bad_host", format!("The host name of this request is refused: {why}.")),
        EdgeError::Host(HostError::NotOurs) => Answer::new(421, "misdirected_request", "This server does not answer for that host name. Check the address."),
        EdgeError::Misdirected => Answer::new(421, "misdirected_request", "The connection was made for another host name. Open a new connection for this one."),
        EdgeError::Unauthorized => Answer {
            challenge: true,
            ..Answer::new(401, "unauthorized", "This needs a token of the organization that owns it, as \"Authorization: Bearer …\".")
        },
        EdgeError::NoSprite => Answer::new(404, "not_found", "There is no sprite with this name. It may have been destroyed, or the name is misspelled."),
        EdgeError::Starting => Answer::new(503, "starting", "The gateway has just started and does not know its sprites yet. Try again in a moment.").retry_after(1),
        EdgeError::Draining => Answer::new(503, "draining", "This gateway is shutting down. Try again: another one, or the next, will answer.").retry_after(1),
        EdgeError::LineFull(Full::Sprite) => Answer::new(503, "too_many_waiting", "Too many requests already wait for this sprite to wake. Try again in a moment.").retry_after(2),
        EdgeError::LineFull(Full::Gateway) => Answer::new(503, "too_many_waiting", "Too many requests already wait for sprites to wake. Try again in a moment.").retry_after(5),
        EdgeError::HoldExpired(budget) => Answer::new(503, "wake_timed_out", format!("The sprite did not wake within {} s. It may still be waking: try again.", budget.as_secs())).retry_after(5),
        EdgeError::AgentUnreachable => Answer::new(503, "agent_unreachable", "The host of this sprite can't be reached at the moment. The sprite is safe; try again.").retry_after(2),
        EdgeError::LeaseRefused(refusal) => lease_refused(refusal),
        EdgeError::DialRefused(refusal) => dial_refused(refusal),
        EdgeError::SpriteUnreachable(_) => Answer::new(503, "sprite_unreachable", "The sprite is awake but does not take connections. Nothing of the request has reached it; try again.").retry_after(1),
        EdgeError::NoRuntime => Answer::new(
            501,
            "no_runtime",
            "This sprite is run by commands of its own and has no runtime inside: it has a URL, and nothing else that can be asked of it.",
        ),
        EdgeError::UpstreamBroken(_) => Answer::new(502, "upstream_broken", "The server in the sprite broke the connection before it answered. The request may have reached it."),
        EdgeError::SpriteSlept => Answer::new(503, "sprite_slept", "The sprite was put to sleep during this request. The request may have reached it; repeat it if that does no harm.").retry_after(1),
        EdgeError::BadRequest(why) => Answer::new(400, "bad_request", format!("This is not a well-formed HTTP request: {why}.")),
        EdgeError::Internal(_) => Answer::new(500, "internal", "Something went wrong in the gateway. If it happens again, report the request id."),
    }
}

fn lease_refused(refusal: &Refusal) -> Answer {
    let (status, code) = match refusal.code {
        LeaseCode::NotFound => (404, "not_found"),
        LeaseCode::Destroying => (410, "destroying"),
        LeaseCode::StartFailed => (503, "start_failed"),
        LeaseCode::HostFull => (503, "host_full"),
        LeaseCode::ShuttingDown => (503, "host_shutting_down"),
    };
    let answer = Answer::new(status, code, refusal.message.clone());
    match (refusal.retry_after_ms, status) {
        (Some(ms), _) => answer.retry_after(whole_seconds(ms)),
        (None, 503) => answer.retry_after(1),
        (None, _) => answer,
    }
}

fn dial_refused(refusal: &DialRefusal) -> Answer {
    let listening: Vec<String> = refusal.listening.iter().map(ToString::to_string).collect();
    let instead = match (refusal.port, listening.is_empty()) {
        (None, true) => "Nothing listens in the sprite.".to_owned(),
        (Some(port), true) => format!("Port {port} was tried; nothing listens in the sprite."),
        (None, false) => format!("These ports listen in the sprite: {}.", listening.join(", ")),
        (Some(port), false) => {
            format!("Port {port} was tried; these listen instead: {}.", listening.join(", "))
        }
    };
    match refusal.code {
        DialCode::NotListening => Answer::new(
            504,
            "port_not_listening",
            format!(
                "The sprite is awake, but its web server did not open its port in time. {instead} Start a server there, or define a service with an http_port."
            ),
        ),
        DialCode::ServiceDown => {
            Answer::new(503, "service_down", format!("{} {instead}", refusal.message)).retry_after(5)
        }
        DialCode::ShuttingDown => Answer::new(
            503,
            "sprite_slept",
            "The sprite is just going to sleep. Nothing of the request has reached it; try again.",
        )
        .retry_after(1),
        DialCode::BadRequest => {
            Answer::new(502, "upstream_broken", "The sprite's runtime did not understand the gateway.")
        }
        DialCode::Exhausted => Answer::new(
            503,
            "sprite_exhausted",
            format!("The sprite is out of something: {}", refusal.message),
        )
        .retry_after(5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_is_suggested_only_where_it_helps() {
        assert_eq!(answer(&EdgeError::Draining).retry_after_s, Some(1));
        assert_eq!(answer(&EdgeError::Unauthorized).retry_after_s, None);
        let refused = |code, retry_after_ms| {
            answer(&EdgeError::LeaseRefused(Refusal { code, message: "m".into(), retry_after_ms }))
        };
        assert_eq!(refused(LeaseCode::HostFull, Some(1500)).retry_after_s, Some(2));
        assert_eq!(refused(LeaseCode::StartFailed, None).retry_after_s, Some(1));
        assert_eq!(refused(LeaseCode::NotFound, None).retry_after_s, None);
    }

    #[test]
    fn a_port_that_nobody_opened_is_named_with_what_listens_instead() {
        let port = |number: u16| number.try_into().expect("not zero");
        let refusal = DialRefusal {
            code: DialCode::NotListening,
            message: "nothing listens".into(),
            port: Some(port(8080)),
            listening: vec![port(3000), port(5173)],
        };
        let answer = answer(&EdgeError::DialRefused(refusal));
        assert_eq!(answer.status, 504);
        assert!(
            answer.message.contains("8080") && answer.message.contains("3000, 5173"),
            "{}",
            answer.message
        );
    }

    #[test]
    fn what_a_stranger_wrote_is_not_markup() {
        let answer = answer(&EdgeError::BadRequest("<script>".into()));
        let (_, page) = answer.body(Shape::Page, "id");
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        let (_, json) = answer.body(Shape::Json, "id");
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((json["error"].as_str(), json["request_id"].as_str()), (Some("bad_request"), Some("id")));
    }
}
