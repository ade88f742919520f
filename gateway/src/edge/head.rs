//! A request's head, judged before anything else sees it.
//!
//! The edge and the server in the sprite must agree on where each request ends, or one client's bytes
//! become another's request. So whatever two parsers have ever disagreed on is refused here (RFC 9112
//! §11.2): both framings at once, several lengths, codings other than `chunked`, bare line feeds, a
//! missing or doubled `Host`. Pure: bytes in, a judgement out.

use std::borrow::Cow;

/// More than any client sends; each costs a slot on the stack while parsing.
const MAX_HEADERS: usize = 128;
/// Browsers stop at about 32 KiB, most servers at 8 KiB.
const MAX_TARGET_BYTES: usize = 16 * 1024;

/// How the request goes on after its head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Framing {
    /// Exactly this many bytes of body.
    Length(u64),
    /// A chunked body.
    Chunked,
    /// Asks for another protocol: what follows may be anything.
    Upgrade,
}

/// What of a head decides its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Head {
    /// Bytes of the head, the empty line included.
    pub(crate) length: usize,
    pub(crate) framing: Framing,
    pub(crate) method: http::Method,
    /// The path and query (of an absolute target: without scheme and authority).
    pub(crate) target: String,
    /// The authority that the request is for.
    pub(crate) host: String,
    /// The lines of `Authorization`; there should be one at most.
    pub(crate) authorization: Vec<Vec<u8>>,
    /// What the client would like errors to look like.
    pub(crate) wants_page: bool,
    /// The client's own request id, unchecked.
    pub(crate) request_id: Option<Vec<u8>>,
}

/// Why a head is refused. The text is for the person who sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum HeadError {
    /// 400.
    #[error("{0}")]
    Malformed(&'static str),
    /// 431.
    #[error("the request's header is larger than this server accepts")]
    TooLarge,
    /// 414.
    #[error("the request's target is longer than this server accepts")]
    TargetTooLong,
    /// 405.
    #[error("CONNECT is not offered here")]
    Connect,
    /// 417.
    #[error("the only expectation this server meets is 100-continue")]
    Expectation,
    /// 505.
    #[error("this server speaks HTTP/1.0, HTTP/1.1 and HTTP/2")]
    Version,
}

/// Parses the head at the beginning of `bytes`; `None` if more bytes are needed.
///
/// # Errors
/// See [`HeadError`]. The connection can't be used any further.
pub(crate) fn parse(bytes: &[u8], max_bytes: usize) -> Result<Option<Head>, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let length = match request.parse(bytes) {
        Ok(httparse::Status::Complete(length)) if length > max_bytes => return Err(HeadError::TooLarge),
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= max_bytes => return Err(HeadError::TooLarge),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refusal(error)),
    };
    let head = &bytes[..length];
    if has_bare_line_feed(head) {
        return Err(HeadError::Malformed("a line of the request ends without a carriage return"));
    }
    judge(length, &request).map(Some)
}

fn refusal(error: httparse::Error) -> HeadError {
    match error {
        httparse::Error::HeaderName => HeadError::Malformed("a header's name is malformed"),
        httparse::Error::HeaderValue => HeadError::Malformed("a header's value is malformed"),
        httparse::Error::NewLine => HeadError::Malformed("a line of the request ends in the wrong way"),
        httparse::Error::Status => HeadError::Malformed("this is not a request"),
        httparse::Error::Token => HeadError::Malformed("the request line is malformed"),
        httparse::Error::TooManyHeaders => HeadError::TooLarge,
        httparse::Error::Version => HeadError::Version,
    }
}

fn has_bare_line_feed(head: &[u8]) -> bool {
    head.iter().enumerate().any(|(at, byte)| *byte == b'\n' && (at == 0 || head[at - 1] != b'\r'))
}

fn judge(length: usize, request: &httparse::Request<'_, '_>) -> Result<Head, HeadError> {
    let one_zero = request.version == Some(0);
    let method = http::Method::from_bytes(request.method.unwrap_or_default().as_bytes())
        .map_err(|_| HeadError::Malformed("the method is malformed"))?;
    if method == http::Method::CONNECT {
        return Err(HeadError::Connect);
    }
    let fields = Fields::collect(request.headers)?;
    let (target, authority) = target(request.path.unwrap_or_default(), &method)?;
    let host = host(&fields, authority)?;
    let framing = framing(&fields, one_zero)?;
    if fields.expect.is_some_and(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
        return Err(HeadError::Expectation);
    }
    let wants_page = matches!(method, http::Method::GET | http::Method::HEAD)
        && !matches!(framing, Framing::Upgrade)
        && fields.navigation;
    Ok(Head {
        length,
        framing,
        wants_page,
        method,
        target: target.into_owned(),
        host,
        authorization: fields.authorization.into_iter().map(<[u8]>::to_vec).collect(),
        request_id: fields.request_id.map(<[u8]>::to_vec),
    })
}

/// The fields that matter, each seen at most as often as it may be.
#[derive(Default)]
struct Fields<'a> {
    host: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    authorization: Vec<&'a [u8]>,
    expect: Option<&'a [u8]>,
    request_id: Option<&'a [u8]>,
    upgrade: bool,
    connection_upgrade: bool,
    navigation: bool,
}

impl<'a> Fields<'a> {
    fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, HeadError> {
        let mut fields = Self::default();
        let mut accepts_html = false;
        let mut fetch_mode = None;
        for header in headers {
            let value = header.value;
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("host") {
                once(&mut fields.host, value, "there is more than one Host header")?;
            } else if is("content-length") {
                once(&mut fields.content_length, value, "there is more than one Content-Length header")?;
            } else if is("transfer-encoding") {
                once(
                    &mut fields.transfer_encoding,
                    value,
                    "there is more than one Transfer-Encoding header",
                )?;
            } else if is("expect") {
                once(&mut fields.expect, value, "there is more than one Expect header")?;
            } else if is("authorization") {
                fields.authorization.push(value);
            } else if is("x-request-id") {
                fields.request_id = Some(value);
            } else if is("upgrade") {
                // Nobody may tunnel HTTP/2 through here, past everything that is decided about a request.
                fields.upgrade |= !has_token(value, b"h2c");
            } else if is("connection") {
                fields.connection_upgrade |= has_token(value, b"upgrade");
            } else if is("accept") {
                accepts_html |= value.windows(9).any(|part| part.eq_ignore_ascii_case(b"text/html"));
            } else if is("sec-fetch-mode") {
                fetch_mode = Some(value);
            }
        }
        // `fetch()` may well accept HTML; where the browser says what it does, believe it (T33).
        fields.navigation = accepts_html && fetch_mode.is_none_or(|mode| mode == b"navigate");
        Ok(fields)
    }
}

fn once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8], complaint: &'static str) -> Result<(), HeadError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(HeadError::Malformed(complaint)),
    }
}

fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// Splits a request target into path and, for the absolute form, its authority.
fn target<'a>(text: &'a str, method: &http::Method) -> Result<(Cow<'a, str>, Option<&'a str>), HeadError> {
    if text.len() > MAX_TARGET_BYTES {
        return Err(HeadError::TargetTooLong);
    }
    if text.contains('#') {
        return Err(HeadError::Malformed("the request's target has a fragment"));
    }
    if text.starts_with('/') || (text == "*" && *method == http::Method::OPTIONS) {
        return Ok((text.into(), None));
    }
    let scheme_end = text.find("://").ok_or(HeadError::Malformed("the request's target is not a path"))?;
    let scheme = &text[..scheme_end];
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(HeadError::Malformed("the request's target has a scheme that is not offered here"));
    }
    let rest = &text[scheme_end + 3..];
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let path = match path.as_bytes().first() {
        Some(b'/') => path.into(),
        Some(_) | None => format!("/{path}").into(),
    };
    Ok((path, Some(authority)))
}

fn host(fields: &Fields<'_>, authority: Option<&str>) -> Result<String, HeadError> {
    let host = fields.host.ok_or(HeadError::Malformed("there is no Host header"))?;
    let host = std::str::from_utf8(host).map_err(|_| HeadError::Malformed("the Host header is malformed"))?;
    if authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(host)) {
        return Err(HeadError::Malformed("the request's target and its Host header name different hosts"));
    }
    Ok(host.to_owned())
}

fn framing(fields: &Fields<'_>, one_zero: bool) -> Result<Framing, HeadError> {
    let upgrade = fields.upgrade && fields.connection_upgrade && !one_zero;
    match (fields.content_length, fields.transfer_encoding) {
        (Some(_), Some(_)) => {
            Err(HeadError::Malformed("there are both a Content-Length and a Transfer-Encoding header"))
        }
        (None, Some(_)) if one_zero => Err(HeadError::Malformed("HTTP/1.0 has no Transfer-Encoding")),
        (None, Some(coding)) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (None, Some(_)) => Err(HeadError::Malformed("the only transfer coding offered here is chunked")),
        (Some(length), None) => {
            let length = content_length(length)?;
            Ok(if upgrade && length == 0 { Framing::Upgrade } else { Framing::Length(length) })
        }
        (None, None) if upgrade => Ok(Framing::Upgrade),
        (None, None) => Ok(Framing::Length(0)),
    }
}

fn content_length(value: &[u8]) -> Result<u64, HeadError> {
    const COMPLAINT: HeadError = HeadError::Malformed("the Content-Length header is not one whole number");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(COMPLAINT);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(COMPLAINT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 32 * 1024;

    fn head(text: &str) -> Head {
        parse(text.as_bytes(), MAX).expect(text).expect("complete")
    }

    fn refused(text: &str) -> HeadError {
        match parse(text.as_bytes(), MAX) {
            Err(error) => error,
            Ok(head) => panic!("{text:?} was accepted as {head:?}"),
        }
    }

    #[test]
    fn a_plain_request_is_understood() {
        let text = "GET /a?b HTTP/1.1\r\nHost: x.test\r\nAuthorization: Bearer t\r\n\r\nrest";
        let head = head(text);
        assert_eq!(head.length, text.len() - 4);
        assert_eq!(head.framing, Framing::Length(0));
        assert_eq!(head.target, "/a?b");
        assert_eq!(head.host, "x.test");
        assert_eq!(head.authorization, [b"Bearer t"]);
    }

    #[test]
    fn each_framing_is_told_apart() {
        let with = |lines: &str| head(&format!("POST / HTTP/1.1\r\nHost: x\r\n{lines}\r\n")).framing;
        assert_eq!(with("Content-Length: 5\r\n"), Framing::Length(5));
        assert_eq!(with("Transfer-Encoding: Chunked\r\n"), Framing::Chunked);
        assert_eq!(with("Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"), Framing::Upgrade);
        assert_eq!(with("Upgrade: websocket\r\n"), Framing::Length(0));
        assert_eq!(with("Connection: Upgrade\r\nUpgrade: h2c\r\n"), Framing::Length(0));
        assert_eq!(with("Connection: upgrade\r\nUpgrade: x\r\nContent-Length: 3\r\n"), Framing::Length(3));
        assert_eq!(with("Content-Length: 18446744073709551615\r\n"), Framing::Length(u64::MAX));
    }

    /// Each of these was read in two ways by two servers at some time (RFC 9112 §11.2).
    #[test]
    fn ambiguous_framing_is_refused() {
        for lines in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -5\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: 5 5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, gzip\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
            "Transfer-Encoding:\r\n",
            "Transfer-Encoding : chunked\r\n",
            "Content-Length : 5\r\n",
            "X: a\r\n folded\r\n",
            "X: a\nY: b\r\n",
            "X: nul\0\r\n",
            "X: bare\rreturn\r\n",
            "X\r\n",
            ": empty\r\n",
            "X Y: z\r\n",
        ] {
            let error = refused(&format!("POST / HTTP/1.1\r\nHost: x\r\n{lines}\r\n"));
            assert!(matches!(error, HeadError::Malformed(_)), "{lines:?}: {error:?}");
        }
        assert!(matches!(
            refused("POST / HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
            HeadError::Malformed(_)
        ));
        assert!(matches!(refused("GET / HTTP/1.1\nHost: x\n\n"), HeadError::Malformed(_)));
        assert!(matches!(refused("GET / HTTP/1.1\r\nHost: x\r\n\n"), HeadError::Malformed(_)));
    }

    #[test]
    fn there_is_exactly_one_host() {
        assert!(matches!(refused("GET / HTTP/1.1\r\n\r\n"), HeadError::Malformed(_)));
        assert!(matches!(refused("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), HeadError::Malformed(_)));
        assert!(matches!(refused("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"), HeadError::Malformed(_)));
        let absolute = head("GET http://A.test:80?q HTTP/1.1\r\nHost: a.test:80\r\n\r\n");
        assert_eq!((absolute.target.as_str(), absolute.host.as_str()), ("/?q", "a.test:80"));
        assert_eq!(head("GET / HTTP/1.0\r\nHost: a\r\n\r\n").host, "a");
    }

    #[test]
    fn request_lines_that_are_none_are_refused() {
        for line in [
            "GET",
            "GET /",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 x",
            "G\u{1}T / HTTP/1.1",
            "/ GET HTTP/1.1",
            " GET / HTTP/1.1",
        ] {
            let text = format!("{line}\r\nHost: x\r\n\r\n");
            assert!(parse(text.as_bytes(), MAX).is_err(), "{line:?}");
        }
        for target in ["foo", "ftp://x/", "*", "/#a"] {
            assert!(matches!(
                refused(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n")),
                HeadError::Malformed(_)
            ));
        }
        assert_eq!(head("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").target, "*");
        // As such, before its odd target is looked at.
        assert_eq!(refused("CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"), HeadError::Connect);
        assert_eq!(refused("GET / HTTP/2.0\r\nHost: x\r\n\r\n"), HeadError::Version);
        assert_eq!(refused("POST / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n"), HeadError::Expectation);
    }

    #[test]
    fn size_is_bounded_whether_the_head_is_complete_or_not() {
        let long = "a".repeat(MAX);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n")), HeadError::TooLarge);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}")), HeadError::TooLarge);
        let many = "A: b\r\n".repeat(MAX_HEADERS + 1);
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{many}\r\n")), HeadError::TooLarge);
        let target = "a".repeat(MAX_TARGET_BYTES);
        assert_eq!(refused(&format!("GET /{target} HTTP/1.1\r\nHost: x\r\n\r\n")), HeadError::TargetTooLong);
    }

    #[test]
    fn a_head_may_arrive_byte_by_byte() {
        let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end], MAX), Ok(None), "{end}");
        }
        assert!(parse(text, MAX).expect("well formed").is_some());
    }

    #[test]
    fn only_a_navigation_gets_a_page() {
        let page = |lines: &str| head(&format!("GET / HTTP/1.1\r\nHost: x\r\n{lines}\r\n")).wants_page;
        assert!(page("Accept: text/html,*/*\r\n"));
        assert!(page("Accept: text/html\r\nSec-Fetch-Mode: navigate\r\n"));
        assert!(!page("Accept: text/html\r\nSec-Fetch-Mode: cors\r\n"));
        assert!(!page("Accept: */*\r\n"));
        assert!(!page("Accept: text/html\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"));
        assert!(!head("POST / HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n").wants_page);
    }
}
