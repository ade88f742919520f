//! The head of a sprite's answer: judged as strictly as a request's, and rewritten for the client.
//!
//! What is relayed as it stands must mean the same to the client as it meant here, or the bytes of one
//! answer become another's. So an answer that could be read in two ways is no answer (RFC 9112 §6.3, §11.1).
//! Pure: bytes in, bytes and a judgement out.

use http::Method;

use super::{
    answering::SPRITE_VERSION,
    chunks::{Chunks, Malformed, Sender},
    head::{has_token, tokens},
    headers::{bare_host, is_for_others},
};

/// The largest head of an answer.
pub(super) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// The most fields it may have.
const MAX_FIELDS: usize = 128;
/// Room for the lines that the edge adds.
const ADDED_BYTES: usize = 160;

/// An answer that can't be passed on; the text is for the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fault(pub(super) &'static str);

/// What is left of a body.
#[derive(Clone, Debug)]
pub(super) enum Body {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Body {
    /// How many of the bytes belong to the body: all, unless it ends in them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<usize, Malformed> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok(taken)
            }
            Self::Chunked(chunks) => chunks.take(bytes),
            Self::UntilClose => Ok(bytes.len()),
        }
    }

    /// Whether its last byte has been taken.
    pub(super) const fn is_done(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunks) => chunks.is_done(),
            Self::UntilClose => false,
        }
    }
}

/// What of the request decides how its answer is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) host: &'a str,
    /// It asked for another protocol.
    pub(super) upgrade: bool,
}

/// What the edge says in an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Added<'a> {
    pub(super) request_id: &'a str,
    /// The answer comes from the sprite's runtime, and is one of the API's.
    pub(super) sprite_version: bool,
    /// The value of `Server-Timing`, if the client asked for it.
    pub(super) timing: Option<&'a str>,
    /// The client's connection ends with this answer.
    pub(super) closes: bool,
}

/// What kind of head it was.
#[derive(Debug)]
pub(super) enum Kind {
    /// Another head follows (RFC 9110 §15.2).
    Interim,
    /// From here on the connection speaks another protocol.
    Switched,
    /// The answer, and how it goes on.
    Final {
        body: Body,
        /// Whether the sprite's server will take another request on this connection.
        reusable: bool,
    },
}

/// A head that was rewritten.
#[derive(Debug)]
pub(super) struct Answer {
    /// Bytes of the head as it came.
    pub(super) length: usize,
    pub(super) status: u16,
    pub(super) kind: Kind,
}

/// Reads the head at the beginning of `bytes` and appends it to `wire` as the client is to see it; `None` if
/// more bytes are needed.
///
/// # Errors
/// See [`Fault`]. Nothing was appended.
pub(super) fn answer(
    bytes: &[u8],
    asked: Asked<'_>,
    added: &Added<'_>,
    wire: &mut Vec<u8>,
) -> Result<Option<Answer>, Fault> {
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length > MAX_HEAD_BYTES => {
            return Err(Fault("the head of its answer is too large"));
        }
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD_BYTES => {
            return Err(Fault("the head of its answer is too large"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Fault("its answer is not HTTP")),
    };
    let status = parsed.code.unwrap_or_default();
    let fields = Fields::collect(parsed.headers)?;
    let kind = fields.kind(status, parsed.version == Some(1), asked)?;
    wire.reserve(length + ADDED_BYTES);
    wire.extend_from_slice(b"HTTP/1.1 ");
    wire.extend([status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + (digit % 10) as u8));
    wire.push(b' ');
    wire.extend_from_slice(parsed.reason.unwrap_or_default().as_bytes());
    wire.extend_from_slice(b"\r\n");
    fields.pass_on(parsed.headers, status, &kind, asked, added, wire);
    let mut line = |name: &str, value: &str| {
        for part in [name, ": ", value, "\r\n"] {
            wire.extend_from_slice(part.as_bytes());
        }
    };
    match kind {
        Kind::Interim => {}
        Kind::Switched => line("connection", "Upgrade"),
        Kind::Final { body: Body::UntilClose, .. } => line("connection", "close"),
        Kind::Final { .. } if added.closes => line("connection", "close"),
        Kind::Final { .. } => {}
    }
    if !matches!(kind, Kind::Interim) {
        line("x-request-id", added.request_id);
        if added.sprite_version {
            line("sprite-version", SPRITE_VERSION);
        }
        if let Some(timing) = added.timing {
            line("server-timing", timing);
        }
    }
    wire.extend_from_slice(b"\r\n");
    Ok(Some(Answer { length, status, kind }))
}

/// What a field is to the edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    ContentLength,
    TransferEncoding,
    Connection,
    Upgrade,
    SetCookie,
    RequestId,
    SpriteVersion,
    ServerTiming,
    HopByHop,
    Other,
}

impl Name {
    fn of(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            7 if is("upgrade") => Self::Upgrade,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::HopByHop,
            10 if is("set-cookie") => Self::SetCookie,
            12 if is("x-request-id") => Self::RequestId,
            13 if is("server-timing") => Self::ServerTiming,
            14 if is("content-length") => Self::ContentLength,
            14 if is("sprite-version") => Self::SpriteVersion,
            16 if is("proxy-connection") => Self::HopByHop,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Default)]
struct Fields {
    length: Option<u64>,
    chunked: bool,
    closes: bool,
    /// `Connection` names fields of its own.
    nominates: bool,
}

impl Fields {
    fn collect(headers: &[httparse::Header<'_>]) -> Result<Self, Fault> {
        let mut fields = Self::default();
        for header in headers {
            match Name::of(header.name) {
                Name::ContentLength => {
                    let length = content_length(header.value)?;
                    if fields.length.replace(length).is_some_and(|before| before != length) {
                        return Err(Fault("its answer has two lengths"));
                    }
                }
                Name::TransferEncoding => {
                    if fields.chunked || !header.value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Fault("its answer has a transfer coding other than chunked"));
                    }
                    fields.chunked = true;
                }
                Name::Connection => {
                    for token in tokens(header.value) {
                        let is = |known: &[u8]| token.eq_ignore_ascii_case(known);
                        fields.closes |= is(b"close");
                        fields.nominates |= !is(b"close") && !is(b"keep-alive") && !is(b"upgrade");
                    }
                }
                Name::Upgrade
                | Name::SetCookie
                | Name::RequestId
                | Name::SpriteVersion
                | Name::ServerTiming
                | Name::HopByHop
                | Name::Other => {}
            }
        }
        if fields.chunked && fields.length.is_some() {
            return Err(Fault("its answer has both a length and chunks"));
        }
        Ok(fields)
    }

    /// How the answer goes on (RFC 9112 §6.3).
    fn kind(&self, status: u16, one_one: bool, asked: Asked<'_>) -> Result<Kind, Fault> {
        if status == 101 {
            return match asked.upgrade {
                true => Ok(Kind::Switched),
                false => Err(Fault("it switches to a protocol that nobody asked for")),
            };
        }
        if (100..200).contains(&status) {
            return Ok(Kind::Interim);
        }
        if self.chunked && !one_one {
            return Err(Fault("its answer has chunks, which its version of HTTP has not"));
        }
        let body = if *asked.method == Method::HEAD || matches!(status, 204 | 304) {
            Body::Length(0)
        } else if self.chunked {
            Body::Chunked(Chunks::new(Sender::Server))
        } else {
            self.length.map_or(Body::UntilClose, Body::Length)
        };
        let reusable = one_one && !self.closes && !matches!(body, Body::UntilClose);
        Ok(Kind::Final { body, reusable })
    }

    fn pass_on(
        &self,
        headers: &[httparse::Header<'_>],
        status: u16,
        kind: &Kind,
        asked: Asked<'_>,
        added: &Added<'_>,
        wire: &mut Vec<u8>,
    ) {
        // Neither has a body, whatever it says (RFC 9112 §6.3).
        let framed = matches!(kind, Kind::Final { .. }) && status != 204;
        let mut length_passed = false;
        for header in headers {
            let passes = match Name::of(header.name) {
                Name::ContentLength => framed && !std::mem::replace(&mut length_passed, true),
                Name::TransferEncoding => framed,
                Name::Connection | Name::HopByHop => false,
                Name::Upgrade => matches!(kind, Kind::Switched) || status == 426,
                Name::SetCookie => !is_for_others(header.value, bare_host(asked.host)),
                Name::RequestId => matches!(kind, Kind::Interim),
                Name::SpriteVersion => !added.sprite_version,
                Name::ServerTiming => added.timing.is_none(),
                Name::Other => !self.nominates || !is_nominated(headers, header.name),
            };
            if passes {
                wire.extend_from_slice(header.name.as_bytes());
                wire.extend_from_slice(b": ");
                wire.extend_from_slice(header.value);
                wire.extend_from_slice(b"\r\n");
            }
        }
    }
}

fn is_nominated(headers: &[httparse::Header<'_>], field: &str) -> bool {
    headers
        .iter()
        .filter(|header| Name::of(header.name) == Name::Connection)
        .any(|header| has_token(header.value, field.as_bytes()))
}

fn content_length(value: &[u8]) -> Result<u64, Fault> {
    const FAULT: Fault = Fault("its Content-Length is no number");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(FAULT);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(FAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDED: Added<'_> = Added { request_id: "id", sprite_version: false, timing: None, closes: false };

    fn read(text: &str, method: Method, upgrade: bool) -> Result<Option<(String, Answer)>, Fault> {
        let mut wire = Vec::new();
        let asked = Asked { method: &method, host: "a-b.x:8080", upgrade };
        let answer = answer(text.as_bytes(), asked, &ADDED, &mut wire)?;
        Ok(answer.map(|answer| (String::from_utf8(wire).expect("text"), answer)))
    }

    fn get(text: &str) -> (String, Answer) {
        read(text, Method::GET, false).expect("well formed").expect("complete")
    }

    fn body(text: &str, method: Method) -> (Body, bool) {
        match read(text, method, false).expect("well formed").expect("complete").1.kind {
            Kind::Final { body, reusable } => (body, reusable),
            other @ (Kind::Interim | Kind::Switched) => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_answer_is_passed_on_without_what_concerns_the_sprites_connection() {
        let text = "HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\n\
                    Keep-Alive: timeout=5\r\nX-Request-Id: forged\r\nX-Kept:  a b \r\n\r\nabc";
        let (wire, answer) = get(text);
        assert_eq!(wire, "HTTP/1.1 200 Fine\r\nContent-Length: 3\r\nX-Kept: a b\r\nx-request-id: id\r\n\r\n");
        assert_eq!((answer.length, answer.status), (text.len() - 3, 200));
    }

    #[test]
    fn t37_a_cookie_for_the_parent_domain_is_dropped() {
        let cookies =
            ["own=1; Path=/", "same=1; domain=A-B.x", "parent=1; Domain=x", "other=1;Domain = c-b.x"];
        let lines: String = cookies.iter().map(|cookie| format!("Set-Cookie: {cookie}\r\n")).collect();
        let (wire, _) = get(&format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{lines}\r\n"));
        assert!(wire.contains("own=1") && wire.contains("same=1"), "{wire}");
        assert!(!wire.contains("parent") && !wire.contains("other"), "{wire}");
    }

    #[test]
    fn each_framing_is_told_apart() {
        let ends = |text: &str, method: Method, bytes: &[u8]| {
            let (mut body, reusable) = body(text, method);
            (body.take(bytes), body.is_done(), reusable)
        };
        let get = |text: &str, bytes: &[u8]| ends(text, Method::GET, bytes);
        assert_eq!(get("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", b"abcdef"), (Ok(3), true, true));
        assert_eq!(
            get("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", b"1\r\na\r\n0\r\n\r\nrest"),
            (Ok(11), true, true)
        );
        assert_eq!(get("HTTP/1.1 200 OK\r\n\r\n", b"abc"), (Ok(3), false, false));
        assert_eq!(get("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", b"abc"), (Ok(3), true, false));
        let close = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n";
        assert_eq!(get(close, b""), (Ok(0), true, false));
        for bodiless in ["204 No Content", "304 Not Modified"] {
            let text = format!("HTTP/1.1 {bodiless}\r\nContent-Length: 3\r\n\r\n");
            assert_eq!(get(&text, b"next"), (Ok(0), true, true), "{bodiless}");
        }
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(ends(length, Method::HEAD, b""), (Ok(0), true, true));
    }

    #[test]
    fn an_answer_without_a_body_does_not_say_that_it_has_one() {
        let with = |status: &str| get(&format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\n")).0;
        assert!(!with("204 No Content").contains("ength") && with("304 Not Modified").contains("ength: 3"));
        let (hints, answer) = get("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 3\r\n\r\n");
        assert_eq!(hints, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        assert!(matches!(answer.kind, Kind::Interim));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_no_answer() {
        for head in [
            "200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n",
            "200 OK\r\nContent-Length: 3, 3\r\n",
            "200 OK\r\nContent-Length: +3\r\n",
            "200 OK\r\nContent-Length: 0x3\r\n",
            "200 OK\r\nContent-Length: \r\n",
            "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n",
            "200 OK\r\nTransfer-Encoding: identity\r\n",
            "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "200 OK\r\nX: a\r\n folded\r\n",
            "200 OK\r\nX: a\0b\r\n",
            "200 OK\r\nX : a\r\n",
            "101 Switching Protocols\r\nUpgrade: websocket\r\n",
            "20 OK\r\n",
        ] {
            assert!(read(&format!("HTTP/1.1 {head}\r\n"), Method::GET, false).is_err(), "{head:?}");
        }
        assert!(read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Method::GET, false).is_err());
        assert!(read("SSH-2.0-OpenSSH_9\r\n", Method::GET, false).is_err());
        let twice = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(get(twice).0.matches("Length").count(), 1, "equal lengths are one");
        let large = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(MAX_HEAD_BYTES));
        assert!(read(&large, Method::GET, false).is_err());
    }

    #[test]
    fn a_head_may_arrive_byte_by_byte() {
        let text = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        for end in 0..text.len() {
            assert!(read(&text[..end], Method::GET, true).expect("well formed").is_none(), "{end}");
        }
        let (wire, answer) =
            read(&format!("{text}frames"), Method::GET, true).expect("well formed").expect("whole");
        assert!(matches!(answer.kind, Kind::Switched) && answer.length == text.len());
        assert!(
            wire.contains("Upgrade: websocket\r\n") && wire.contains("connection: Upgrade\r\n"),
            "{wire}"
        );
    }
}
