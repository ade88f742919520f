//! A request's head, judged before anything else sees it, and cut to what its sprite may see.
//!
//! The edge and the server in the sprite must agree on where each request ends, or one client's bytes
//! become another's request. So whatever two parsers have ever disagreed on is refused here (RFC 9112
//! §11.2): both framings at once, several lengths, codings other than `chunked`, bare line feeds, a
//! missing or doubled `Host`. Pure: bytes in, a judgement out.

use std::borrow::Cow;

use super::headers::is_spoken_for;

/// More than any client sends; each costs a slot on the stack while parsing.
const MAX_HEADERS: usize = 128;
/// Browsers stop at about 32 KiB, most servers at 8 KiB.
const MAX_TARGET_BYTES: usize = 16 * 1024;
/// Lines of `Authorization`: there should be one, and a second if an application has tokens of its own.
pub(super) const MAX_AUTHORIZATIONS: usize = 4;
/// Room for the lines that the edge adds.
const ADDED_BYTES: usize = 320;

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

/// A part of the head, by its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Span {
    from: u32,
    to: u32,
}

impl Span {
    /// Where `part` lies in `whole`, of which it is a slice.
    fn of(part: &[u8], whole: &[u8]) -> Self {
        let from = part.as_ptr().addr() - whole.as_ptr().addr();
        // A head is never longer than the cap on its bytes, which is far below 4 GiB.
        let at = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        Self { from: at(from), to: at(from + part.len()) }
    }

    fn slice(self, whole: &[u8]) -> &[u8] {
        whole.get(self.from as usize..self.to as usize).unwrap_or_default()
    }

    fn text(self, whole: &[u8]) -> &str {
        std::str::from_utf8(self.slice(whole)).unwrap_or_default()
    }
}

/// A judged head with the bytes it was read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    raw: Vec<u8>,
    pub(crate) framing: Framing,
    pub(crate) method: http::Method,
    target: Span,
    /// An absolute target without a path: what is sent begins with a slash.
    bare: bool,
    host: Span,
    authorization: [Span; MAX_AUTHORIZATIONS],
    authorizations: usize,
    request_id: Option<Span>,
    /// What the client would like errors to look like.
    pub(crate) wants_page: bool,
    /// It asks how long each phase took.
    pub(crate) wants_timing: bool,
    /// The client closes after the answer.
    pub(crate) closes: bool,
    /// The client waits for a `100 Continue` before it sends the body.
    pub(crate) expects_continue: bool,
    /// It has to be translated: from HTTP/1.0, or to HTTP/2 for gRPC.
    pub(crate) needs_translation: bool,
    /// The request line and the lines of the head that its sprite may see, without the empty line.
    wire: Vec<u8>,
    /// Where the first of those lines begins.
    lines_at: usize,
}

impl Request {
    /// The head as it came, the empty line included.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.raw
    }

    pub(crate) fn into_raw(self) -> Vec<u8> {
        self.raw
    }

    /// The path and query (of an absolute target: without scheme and authority).
    pub(crate) fn target(&self) -> Cow<'_, str> {
        match (self.bare, self.target.text(&self.raw)) {
            (false, target) => target.into(),
            (true, query) => format!("/{query}").into(),
        }
    }

    /// The path alone: a query may hold secrets.
    pub(crate) fn path(&self) -> &str {
        match (self.bare, self.target.text(&self.raw)) {
            (false, target) => target.split('?').next().unwrap_or_default(),
            (true, _) => "/",
        }
    }

    /// The authority that the request is for.
    pub(crate) fn host(&self) -> &str {
        self.host.text(&self.raw)
    }

    /// The lines of `Authorization`.
    pub(crate) fn authorization(&self) -> impl Iterator<Item = &[u8]> {
        self.authorization[..self.authorizations].iter().map(|span| span.slice(&self.raw))
    }

    /// The client's own request id, unchecked.
    pub(crate) fn request_id(&self) -> Option<&[u8]> {
        self.request_id.map(|span| span.slice(&self.raw))
    }

    /// Request line and lines for the sprite, without the empty line; `path` replaces the client's own.
    pub(crate) fn take_wire(&mut self, path: Option<&str>) -> Vec<u8> {
        let mut wire = std::mem::take(&mut self.wire);
        let Some(path) = path else {
            wire.reserve(ADDED_BYTES);
            return wire;
        };
        let mut changed = Vec::with_capacity(wire.len() + path.len() + ADDED_BYTES);
        request_line(&mut changed, &self.method, path.as_bytes(), b"");
        changed.extend_from_slice(&wire[self.lines_at..]);
        changed
    }
}

fn request_line(wire: &mut Vec<u8>, method: &http::Method, path: &[u8], query: &[u8]) {
    wire.extend_from_slice(method.as_str().as_bytes());
    wire.push(b' ');
    wire.extend_from_slice(path);
    wire.extend_from_slice(query);
    wire.extend_from_slice(b" HTTP/1.1\r\n");
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

/// A judged head whose bytes are still where they were read.
#[derive(Debug)]
pub(crate) struct Judged {
    /// Bytes of the head, the empty line included.
    pub(crate) length: usize,
    request: Request,
}

impl Judged {
    /// The same with its bytes, which are those that were judged.
    pub(crate) fn own(mut self, raw: Vec<u8>) -> Request {
        debug_assert_eq!(raw.len(), self.length, "the head and nothing else");
        self.request.raw = raw;
        self.request
    }
}

/// Parses the head at the beginning of `bytes`; `None` if more bytes are needed.
///
/// # Errors
/// See [`HeadError`]. The connection can't be used any further.
pub(crate) fn parse(bytes: &[u8], max_bytes: usize) -> Result<Option<Judged>, HeadError> {
    let mut headers = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut headers) {
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
    Ok(Some(Judged { length, request: judge(head, &request)? }))
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
    memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

fn judge(head: &[u8], request: &httparse::Request<'_, '_>) -> Result<Request, HeadError> {
    let one_zero = request.version == Some(0);
    let method = http::Method::from_bytes(request.method.unwrap_or_default().as_bytes())
        .map_err(|_| HeadError::Malformed("the method is malformed"))?;
    if method == http::Method::CONNECT {
        return Err(HeadError::Connect);
    }
    let fields = Fields::collect(request.headers)?;
    let Target { path, bare, authority } = target(request.path.unwrap_or_default(), &method)?;
    let host = host(&fields, authority)?;
    let framing = framing(&fields, one_zero)?;
    if fields.expect.is_some_and(|value| !value.eq_ignore_ascii_case(b"100-continue")) {
        return Err(HeadError::Expectation);
    }
    let wants_page = matches!(method, http::Method::GET | http::Method::HEAD)
        && !matches!(framing, Framing::Upgrade)
        && fields.navigation;
    // Without room for the lines to come: many requests wait, and only those that go on need it.
    let mut wire = Vec::with_capacity(head.len());
    request_line(&mut wire, &method, if bare { b"/" } else { b"" }, path.as_bytes());
    let lines_at = wire.len();
    fields.pass_on(request.headers, framing, &mut wire);
    Ok(Request {
        raw: Vec::new(),
        framing,
        wants_page,
        wants_timing: fields.wants_timing,
        closes: fields.closes,
        expects_continue: fields.expect.is_some(),
        needs_translation: one_zero || fields.grpc,
        method,
        target: Span::of(path.as_bytes(), head),
        bare,
        host: Span::of(host, head),
        authorization: fields
            .authorization
            .map(|line| line.map_or(Span::default(), |line| Span::of(line, head))),
        authorizations: fields.authorizations,
        request_id: fields.request_id.map(|id| Span::of(id, head)),
        wire,
        lines_at,
    })
}

/// What a field is to the edge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    Host,
    ContentLength,
    TransferEncoding,
    Authorization,
    Expect,
    RequestId,
    Upgrade,
    Connection,
    Accept,
    FetchMode,
    ContentType,
    Timing,
    /// Concerns this connection only (RFC 9110 §7.6.1).
    HopByHop,
    /// Only the edge may say it.
    SpokenFor,
    Other,
}

impl Name {
    /// Called for each field of each request: the length tells most names apart.
    fn of(name: &str) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            2 if is("te") => Self::HopByHop,
            4 if is("host") => Self::Host,
            6 if is("accept") => Self::Accept,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            7 if is("trailer") => Self::HopByHop,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::HopByHop,
            12 if is("x-request-id") => Self::RequestId,
            12 if is("content-type") => Self::ContentType,
            13 if is("authorization") => Self::Authorization,
            13 if is(super::answering::TIMING_WANTED) => Self::Timing,
            14 if is("content-length") => Self::ContentLength,
            14 if is("sec-fetch-mode") => Self::FetchMode,
            16 if is("proxy-connection") => Self::HopByHop,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            _ if is_spoken_for(name) => Self::SpokenFor,
            _ => Self::Other,
        }
    }
}

/// The fields that matter, each seen at most as often as it may be.
#[derive(Default)]
struct Fields<'a> {
    names: Names,
    host: Option<&'a [u8]>,
    content_length: Option<&'a [u8]>,
    transfer_encoding: Option<&'a [u8]>,
    authorization: [Option<&'a [u8]>; MAX_AUTHORIZATIONS],
    authorizations: usize,
    expect: Option<&'a [u8]>,
    request_id: Option<&'a [u8]>,
    upgrade: bool,
    connection_upgrade: bool,
    closes: bool,
    /// `Connection` names more than what is understood here.
    nominates: bool,
    navigation: bool,
    wants_timing: bool,
    grpc: bool,
}

/// What each field of a head is, in its order.
struct Names([Name; MAX_HEADERS]);

impl Default for Names {
    fn default() -> Self {
        Self([Name::Other; MAX_HEADERS])
    }
}

impl<'a> Fields<'a> {
    fn collect(headers: &[httparse::Header<'a>]) -> Result<Self, HeadError> {
        let mut fields = Self::default();
        let mut accepts_html = false;
        let mut fetch_mode = None;
        for (header, name) in headers.iter().zip(&mut fields.names.0) {
            let value = header.value;
            *name = Name::of(header.name);
            match name {
                Name::Host => once(&mut fields.host, value, "there is more than one Host header")?,
                Name::ContentLength => {
                    once(&mut fields.content_length, value, "there is more than one Content-Length header")?;
                }
                Name::TransferEncoding => once(
                    &mut fields.transfer_encoding,
                    value,
                    "there is more than one Transfer-Encoding header",
                )?,
                Name::Expect => once(&mut fields.expect, value, "there is more than one Expect header")?,
                Name::Authorization => {
                    let place = fields
                        .authorization
                        .get_mut(fields.authorizations)
                        .ok_or(HeadError::Malformed("there are too many Authorization headers"))?;
                    *place = Some(value);
                    fields.authorizations += 1;
                }
                Name::RequestId => fields.request_id = Some(value),
                // Nobody may tunnel HTTP/2 through here, past everything that is decided about a request.
                Name::Upgrade => fields.upgrade |= !has_token(value, b"h2c"),
                Name::Connection => {
                    for token in tokens(value) {
                        match token {
                            _ if token.eq_ignore_ascii_case(b"upgrade") => fields.connection_upgrade = true,
                            _ if token.eq_ignore_ascii_case(b"close") => fields.closes = true,
                            _ if token.is_empty() || token.eq_ignore_ascii_case(b"keep-alive") => {}
                            _ => fields.nominates = true,
                        }
                    }
                }
                Name::Accept => {
                    accepts_html |= value.windows(9).any(|part| part.eq_ignore_ascii_case(b"text/html"));
                }
                Name::FetchMode => fetch_mode = Some(value),
                Name::ContentType => fields.grpc |= super::request::is_grpc_type(value),
                Name::Timing => fields.wants_timing = true,
                Name::HopByHop | Name::SpokenFor | Name::Other => {}
            }
        }
        // `fetch()` may well accept HTML; where the browser says what it does, believe it (T33).
        fields.navigation = accepts_html && fetch_mode.is_none_or(|mode| mode == b"navigate");
        Ok(fields)
    }

    /// Writes the lines that a sprite may see: neither what concerns this connection only, nor what the edge
    /// says itself, nor a credential of ours (promise 4, T36, T37).
    fn pass_on(&self, headers: &[httparse::Header<'_>], framing: Framing, wire: &mut Vec<u8>) {
        for (header, name) in headers.iter().zip(&self.names.0) {
            let passes = match name {
                // Without these the sprite would read another request than we did.
                Name::Host | Name::ContentLength | Name::TransferEncoding => true,
                Name::Authorization => !auth::Credential::is_ours(header.value),
                Name::Upgrade => framing == Framing::Upgrade,
                Name::RequestId | Name::Connection | Name::Timing | Name::HopByHop | Name::SpokenFor => false,
                Name::Accept | Name::Expect | Name::FetchMode | Name::ContentType | Name::Other => {
                    !self.nominates || !is_nominated(headers, &self.names, header.name)
                }
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

/// Whether a `Connection` line says that this field is for this connection only.
fn is_nominated(headers: &[httparse::Header<'_>], names: &Names, field: &str) -> bool {
    headers
        .iter()
        .zip(&names.0)
        .filter(|(_, name)| **name == Name::Connection)
        .any(|(header, _)| has_token(header.value, field.as_bytes()))
}

fn once<'a>(slot: &mut Option<&'a [u8]>, value: &'a [u8], complaint: &'static str) -> Result<(), HeadError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(HeadError::Malformed(complaint)),
    }
}

/// The items of a comma separated list.
pub(super) fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

pub(super) fn has_token(list: &[u8], token: &[u8]) -> bool {
    tokens(list).any(|item| item.eq_ignore_ascii_case(token))
}

/// A request target, taken apart.
struct Target<'a> {
    path: &'a str,
    bare: bool,
    /// Of the absolute form.
    authority: Option<&'a str>,
}

/// Splits a request target into path and, for the absolute form, its authority.
fn target<'a>(text: &'a str, method: &http::Method) -> Result<Target<'a>, HeadError> {
    if text.len() > MAX_TARGET_BYTES {
        return Err(HeadError::TargetTooLong);
    }
    if text.contains('#') {
        return Err(HeadError::Malformed("the request's target has a fragment"));
    }
    if text.starts_with('/') || (text == "*" && *method == http::Method::OPTIONS) {
        return Ok(Target { path: text, bare: false, authority: None });
    }
    let scheme_end = text.find("://").ok_or(HeadError::Malformed("the request's target is not a path"))?;
    let scheme = &text[..scheme_end];
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(HeadError::Malformed("the request's target has a scheme that is not offered here"));
    }
    let rest = &text[scheme_end + 3..];
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    Ok(Target { path, bare: !path.starts_with('/'), authority: Some(authority) })
}

fn host<'a>(fields: &Fields<'a>, authority: Option<&str>) -> Result<&'a [u8], HeadError> {
    let bytes = fields.host.ok_or(HeadError::Malformed("there is no Host header"))?;
    let host =
        std::str::from_utf8(bytes).map_err(|_| HeadError::Malformed("the Host header is malformed"))?;
    if authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(host)) {
        return Err(HeadError::Malformed("the request's target and its Host header name different hosts"));
    }
    Ok(bytes)
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

    fn head(text: &str) -> Request {
        let judged = parse(text.as_bytes(), MAX).expect(text).expect("complete");
        let raw = text.as_bytes()[..judged.length].to_vec();
        judged.own(raw)
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
        assert_eq!(head.raw().len(), text.len() - 4);
        assert_eq!(head.framing, Framing::Length(0));
        assert_eq!((head.target().as_ref(), head.path()), ("/a?b", "/a"));
        assert_eq!(head.host(), "x.test");
        assert_eq!(head.authorization().collect::<Vec<_>>(), [b"Bearer t"]);
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
        assert_eq!((absolute.target().as_ref(), absolute.host()), ("/?q", "a.test:80"));
        assert_eq!(head("GET / HTTP/1.0\r\nHost: a\r\n\r\n").host(), "a");
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
        assert_eq!(head("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n").target(), "*");
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
            assert!(matches!(parse(&text[..end], MAX), Ok(None)), "{end}");
        }
        assert!(parse(text, MAX).expect("well formed").is_some());
    }

    fn wire(text: &str) -> String {
        String::from_utf8(head(text).take_wire(None)).expect("text")
    }

    #[test]
    fn t36_the_sprite_sees_what_is_for_it_and_nothing_that_a_client_forges() {
        let ours = format!("Bearer acme/ab12c/id/spr_{}", "x".repeat(43));
        let text = format!(
            "POST /a?b HTTP/1.1\r\nhost: x.test\r\nX-Forwarded-For: 1.2.3.4\r\nx_forwarded_for: 1.2.3.4\r\n\
             X-Forwarded-Client-Cert: f\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nX-Sprite-Org: v\r\n\
             Fly-Client-IP: 1.2.3.4\r\nX-Request-Id: f\r\nSprite-Timing: 1\r\nVia: 1.1 f\r\n\
             Authorization: {ours}\r\nAuthorization: Basic eA==\r\nAccept: */*\r\nCookie: a=b\r\n\
             Content-Length: 3\r\nTE: trailers\r\nTrailer: x\r\nKeep-Alive: 1\r\nProxy-Connection: x\r\n\
             Upgrade: websocket\r\nX-Empty:\r\nExpect: 100-continue\r\n\r\n"
        );
        assert_eq!(
            wire(&text),
            "POST /a?b HTTP/1.1\r\nhost: x.test\r\nAuthorization: Basic eA==\r\nAccept: */*\r\nCookie: a=b\r\n\
             Content-Length: 3\r\nX-Empty: \r\nExpect: 100-continue\r\n"
        );
        assert!(head(&text).wants_timing && head(&text).expects_continue);
    }

    #[test]
    fn a_client_names_what_is_for_its_own_connection_but_not_what_frames_the_request() {
        let text = "POST / HTTP/1.1\r\nX-Private: 1\r\nHost: x\r\nContent-Length: 3\r\nX-Kept: 1\r\n\
                    Connection: close, x-private , host, content-length\r\n\r\n";
        assert_eq!(wire(text), "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nX-Kept: 1\r\n");
        assert!(head(text).closes);
    }

    #[test]
    fn the_sprite_gets_a_path_whatever_the_target_was() {
        assert!(wire("GET http://x HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("GET / HTTP/1.1\r\n"));
        assert!(wire("GET http://x?q HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("GET /?q HTTP/1.1\r\n"));
        let changed = head("GET /v1/sprites/a/exec?x HTTP/1.1\r\nHost: x\r\n\r\n").take_wire(Some("/exec?x"));
        assert_eq!(changed, b"GET /exec?x HTTP/1.1\r\nHost: x\r\n");
        let upgrade = wire("GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        assert_eq!(upgrade, "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n");
    }

    #[test]
    fn what_has_to_be_translated_is_told() {
        let needs = |version: &str, lines: &str| {
            head(&format!("POST / HTTP/{version}\r\nHost: x\r\n{lines}\r\n")).needs_translation
        };
        assert!(needs("1.0", "") && needs("1.1", "Content-Type: application/grpc+proto\r\n"));
        assert!(!needs("1.1", "Content-Type: application/json\r\n"));
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
