//! Requests that ask for another protocol, a WebSocket mostly: taken to the sprite by ourselves.
//!
//! Pingora can do this too, but keeps 64 KiB and more for each idle tunnel, ends it when one side closes
//! its half, and loses it when the sprite's 101 comes before the end of the (empty) request body has gone
//! through its pipes: one upgrade in sixty, on a busy machine. Here the request is sent, the answer's head
//! is awaited, and after a 101 bytes are relayed both ways. Any other answer is passed on, and the
//! connection closed behind it.

use std::{net::IpAddr, time::Instant};

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tracing::debug;

use super::{
    Edge,
    access::{self, Line},
    admit::{Admission, Forward, Prepared, identity},
    answering::{self, SPRITE_VERSION, TIMING_WANTED},
    attempt,
    chunks::Chunks,
    ctx::RequestCtx,
    gate::gone,
    head::{Framing, Head},
    headers::{self, Told},
    relay::{Moved, relay},
    request::port_of,
    respond::{EdgeError, Shape, answer},
    tracked::Tracked,
};
use crate::{
    metrics::{Class, Side},
    upstream::Direct,
};

/// The largest head of an answer.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// What of an answer is read at once.
const READ_BYTES: usize = 8 * 1024;
/// The most fields it may have.
const MAX_FIELDS: usize = 128;
/// Fields that concern one connection only (RFC 9110 §7.6.1). `Upgrade` is what this is about.
const HOP_BY_HOP: [&str; 6] =
    ["connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding"];

/// Why an upgrade was not brought to its end.
enum Failure {
    /// The client has left.
    Gone,
    Error(EdgeError),
}

impl From<EdgeError> for Failure {
    fn from(error: EdgeError) -> Self {
        Self::Error(error)
    }
}

/// Serves one admitted upgrade, and the connection to its end.
pub(super) async fn serve(
    edge: &Edge,
    client: Tracked,
    head: &Head,
    prepared: Prepared,
    forward: Box<Forward>,
) {
    let Prepared { request_id, wants_page: _, started, admission } = prepared;
    let Admission { class, auth_took, hold_took, next: _ } = admission;
    let mut ctx = RequestCtx::new();
    ctx.conn = Some(client.conn().clone());
    ctx.request_id = request_id;
    ctx.class = class;
    ctx.started = started;
    ctx.auth_took = auth_took;
    ctx.hold_took = hold_took;
    ctx.forward = Some(forward);
    let mut moved = Moved::default();
    let mut tunnel = Tunnel { edge, client, ctx: &mut ctx, moved: &mut moved };
    match tunnel.run(head).await {
        Ok(()) => {}
        Err(Failure::Gone) => {
            edge.metrics.error(Side::Downstream);
            tunnel.ctx.abandoned = true;
        }
        Err(Failure::Error(error)) => tunnel.refuse(error).await,
    }
    let path = head.target.split('?').next().unwrap_or_default();
    let line = Line {
        method: &head.method,
        host: &head.host,
        path,
        status: ctx.status,
        received: moved.to_sprite,
        sent: moved.to_client,
    };
    access::log(edge, &ctx, &line);
}

struct Tunnel<'a> {
    edge: &'a Edge,
    client: Tracked,
    ctx: &'a mut RequestCtx,
    moved: &'a mut Moved,
}

impl Tunnel<'_> {
    async fn run(&mut self, head: &Head) -> Result<(), Failure> {
        // What is needed for the exchange only is gone when the relay begins: tunnels live long.
        let mut sprite = Box::pin(self.exchange(head)).await?;
        if let Some(sprite) = &mut sprite
            && let Err(error) = relay(&mut self.client, sprite, self.moved).await
        {
            debug!(request_id = self.ctx.request_id, %error, "A tunnel broke");
        }
        // The peer may be gone already; either way it is over.
        let _closed = self.client.shutdown().await;
        Ok(())
    }

    /// Sends the request and passes the answer on; the connection into the sprite, if it was upgraded.
    async fn exchange(&mut self, head: &Head) -> Result<Option<Direct>, Failure> {
        let mut request = parse_request(&self.client.ahead()[..head.length], head)?;
        self.ctx.wants_timing = request.headers.contains_key(TIMING_WANTED);
        self.rewrite(&mut request, head).map_err(internal)?;
        // From here on everything the client sends is for the sprite.
        self.client.admit_tunnel(head.length);
        let mut sprite = self.connect().await?;
        let broken = |error: std::io::Error| Failure::Error(EdgeError::UpstreamBroken(error.to_string()));
        sprite.write_all(&wire_of(&request)).await.map_err(broken)?;
        let (response, rest) = self.response(&mut sprite).await?;
        self.ctx.first_byte = Some(self.ctx.started.elapsed());
        self.ctx.status = response.status.as_u16();
        if let Some(forward) = &mut self.ctx.forward {
            forward.lease.answered();
        }
        let upgraded = response.status == StatusCode::SWITCHING_PROTOCOLS;
        let framing = body_framing(&response, &head.method);
        let wire = self.rewrite_response(response, upgraded, head).map_err(internal)?;
        self.tell_client(&wire).await?;
        if !upgraded {
            self.pass_body(&mut sprite, rest, framing?).await?;
            return Ok(None);
        }
        self.tell_client(&rest).await?;
        self.moved.to_client += rest.len() as u64;
        Ok(Some(sprite))
    }

    fn rewrite(&self, request: &mut RequestHeader, head: &Head) -> pingora::Result<()> {
        let (Some(forward), Some(conn)) = (&self.ctx.forward, &self.ctx.conn) else { return Ok(()) };
        let (organization, entered_as) = identity(&forward.allowed);
        let client: IpAddr = conn.peer().ip();
        let told = Told {
            client,
            scheme: if conn.is_tls() { "https" } else { "http" },
            host: &head.host,
            port: port_of(&head.host).unwrap_or(conn.local().port()),
            request_id: &self.ctx.request_id,
            organization: organization.map(ids::OrgSlug::as_str),
            entered_as,
        };
        drop_hop_by_hop(&mut request.headers.clone(), |name| drop(request.remove_header(name)));
        headers::to_sprite(request, &told)?;
        request.insert_header(header::CONNECTION, "Upgrade")?;
        let path = forward.path.as_deref().unwrap_or(&head.target);
        request.set_raw_path(path.as_bytes())
    }

    /// Dials until the sprite takes the connection, the client leaves, or nothing helps.
    async fn connect(&mut self) -> Result<Direct, Failure> {
        loop {
            self.ctx.tries += 1;
            let Some(forward) = &self.ctx.forward else {
                return Err(EdgeError::Internal("a request without a sprite".into()).into());
            };
            let request = attempt::dial_request(self.edge, forward, &self.ctx.request_id);
            let upstream = forward.lease.upstream().clone();
            let began = Instant::now();
            let dialed = tokio::select! {
                dialed = Direct::dial(&upstream, &request) => dialed,
                () = gone(&mut self.client, 0) => return Err(Failure::Gone),
            };
            let (error, may_help) = match dialed {
                Ok(direct) => {
                    self.ctx.connect_took = Some(began.elapsed());
                    return Ok(direct);
                }
                Err(failure) => attempt::classify(failure),
            };
            if !may_help || self.ctx.tries >= attempt::MAX_TRIES {
                return Err(error.into());
            }
            if let Err(error) = attempt::again(self.ctx).await {
                return Err(if self.ctx.abandoned { Failure::Gone } else { error.into() });
            }
        }
    }

    /// Waits for the head of the answer. Heads before it (early hints, say) go to the client as they are.
    async fn response(&mut self, sprite: &mut Direct) -> Result<(ResponseHeader, BytesMut), Failure> {
        let mut bytes = BytesMut::new();
        loop {
            if let Some((response, length)) = parse_response(&bytes)? {
                let head = bytes.split_to(length);
                if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
                    self.tell_client(&head).await?;
                    continue;
                }
                return Ok((response, bytes));
            }
            bytes.reserve(READ_BYTES);
            let read = tokio::select! {
                read = sprite.read_buf(&mut bytes) => read,
                () = gone(&mut self.client, 0) => return Err(Failure::Gone),
            };
            match read {
                Ok(1..) => {}
                Ok(0) => return Err(self.broken("it was closed without an answer".into())),
                Err(error) => return Err(self.broken(error.to_string())),
            }
        }
    }

    /// The sprite may have seen the request: it is not sent again.
    fn broken(&self, why: String) -> Failure {
        let slept = self.ctx.forward.as_ref().is_some_and(|forward| forward.lease.upstream().has_ended());
        Failure::Error(if slept { EdgeError::SpriteSlept } else { EdgeError::UpstreamBroken(why) })
    }

    fn rewrite_response(
        &self,
        mut response: ResponseHeader,
        upgraded: bool,
        head: &Head,
    ) -> pingora::Result<Vec<u8>> {
        headers::drop_hop_by_hop(&mut response, false);
        headers::from_sprite(&mut response, &head.host)?;
        response.insert_header(header::CONNECTION, if upgraded { "Upgrade" } else { "close" })?;
        response.insert_header("x-request-id", &self.ctx.request_id)?;
        if self.ctx.class == Class::Inside {
            response.insert_header("sprite-version", SPRITE_VERSION)?;
        }
        if self.ctx.wants_timing {
            response.insert_header("server-timing", self.ctx.server_timing())?;
        }
        let reason = response.get_reason_phrase().unwrap_or_default();
        let mut wire = format!("HTTP/1.1 {} {reason}\r\n", response.status.as_u16()).into_bytes();
        response.header_to_h1_wire(&mut wire);
        wire.extend_from_slice(b"\r\n");
        Ok(wire)
    }

    async fn tell_client(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = async {
            self.client.write_all(bytes).await?;
            self.client.flush().await
        };
        written.await.map_err(|_| Failure::Gone)
    }

    /// Passes the body of an answer that is no upgrade on, as it is framed.
    async fn pass_body(
        &mut self,
        sprite: &mut Direct,
        mut part: BytesMut,
        framing: Body,
    ) -> Result<(), Failure> {
        let mut left = framing;
        loop {
            let (length, done) =
                left.take(&part).map_err(|()| self.broken("its chunks are malformed".into()))?;
            part.truncate(length);
            self.moved.to_client += length as u64;
            self.tell_client(&part).await?;
            if done {
                return Ok(());
            }
            part.clear();
            part.reserve(READ_BYTES);
            let read = tokio::select! {
                read = sprite.read_buf(&mut part) => read,
                () = gone(&mut self.client, 0) => return Err(Failure::Gone),
            };
            match read {
                Ok(1..) => {}
                // Whoever frames by closing is done; anyone else breaks off, and the client sees it.
                Ok(0) | Err(_) => return Ok(()),
            }
        }
    }

    async fn refuse(&mut self, error: EdgeError) {
        let answer = answer(&error);
        self.edge.metrics.refusal(&answer.code);
        if self.ctx.status == 0 {
            self.ctx.status = answer.status;
            let text = answering::raw(&answer, Shape::Json, &self.ctx.request_id, self.ctx.class);
            // Whether it was read or not, this connection ends here.
            let _ended = self.client.end_with(&text).await;
        }
        self.ctx.error = Some(error);
    }
}

fn internal(error: Box<pingora::Error>) -> Failure {
    Failure::Error(EdgeError::Internal(error.to_string()))
}

/// Reads the head again, this time with all its fields. It has been judged before.
fn parse_request(bytes: &[u8], head: &Head) -> Result<RequestHeader, EdgeError> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let unusable = |_| EdgeError::BadRequest("its header can't be read".into());
    parsed.parse(bytes).map_err(|_| EdgeError::BadRequest("its header can't be read".into()))?;
    let mut request =
        RequestHeader::build(head.method.clone(), head.target.as_bytes(), Some(parsed.headers.len() + 8))
            .map_err(unusable)?;
    for field in parsed.headers.iter() {
        request.append_header(field.name.to_owned(), field.value).map_err(unusable)?;
    }
    Ok(request)
}

fn wire_of(request: &RequestHeader) -> Vec<u8> {
    let mut wire = Vec::with_capacity(1024);
    wire.extend_from_slice(request.method.as_str().as_bytes());
    wire.push(b' ');
    wire.extend_from_slice(request.raw_path());
    wire.extend_from_slice(b" HTTP/1.1\r\n");
    request.header_to_h1_wire(&mut wire);
    wire.extend_from_slice(b"\r\n");
    wire
}

/// Names every field that concerns this connection only, but `Upgrade`.
fn drop_hop_by_hop(fields: &mut HeaderMap<HeaderValue>, mut remove: impl FnMut(&str)) {
    for line in fields.get_all(header::CONNECTION) {
        let names = line.to_str().unwrap_or_default().split(',').map(str::trim);
        names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("upgrade")).for_each(&mut remove);
    }
    HOP_BY_HOP.into_iter().for_each(remove);
}

/// The head of an answer and its length; `None` if more bytes are needed.
fn parse_response(bytes: &[u8]) -> Result<Option<(ResponseHeader, usize)>, EdgeError> {
    let broken = |why: &str| EdgeError::UpstreamBroken(why.to_owned());
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut fields);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD_BYTES => {
            return Err(broken("the head of its answer is too large"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(broken("its answer is not HTTP")),
    };
    let unusable = |_| broken("its answer is not HTTP");
    let mut response = ResponseHeader::build(parsed.code.unwrap_or_default(), Some(parsed.headers.len() + 4))
        .map_err(unusable)?;
    response.set_reason_phrase(parsed.reason).map_err(unusable)?;
    for field in parsed.headers.iter() {
        response.append_header(field.name.to_owned(), field.value).map_err(unusable)?;
    }
    Ok(Some((response, length)))
}

/// What is left of the body of an answer.
enum Body {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Body {
    /// How many of the bytes belong to the body, and whether it ends with them.
    fn take(&mut self, bytes: &[u8]) -> Result<(usize, bool), ()> {
        match self {
            Self::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                Ok((taken, *left == 0))
            }
            Self::Chunked(chunks) => {
                let taken = chunks.take(bytes).map_err(|_| ())?;
                Ok((taken, chunks.is_done()))
            }
            Self::UntilClose => Ok((bytes.len(), false)),
        }
    }
}

/// How an answer that is no upgrade is framed (RFC 9112 §6.3).
fn body_framing(response: &ResponseHeader, method: &Method) -> Result<Body, EdgeError> {
    if *method == Method::HEAD || matches!(response.status.as_u16(), 100..200 | 204 | 304) {
        return Ok(Body::Length(0));
    }
    if let Some(coding) = response.headers.get(header::TRANSFER_ENCODING) {
        let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        return Ok(if chunked { Body::Chunked(Chunks::default()) } else { Body::UntilClose });
    }
    let Some(length) = response.headers.get(header::CONTENT_LENGTH) else { return Ok(Body::UntilClose) };
    let length = length.to_str().ok().and_then(|text| text.trim().parse().ok());
    length
        .map(Body::Length)
        .ok_or_else(|| EdgeError::UpstreamBroken("its Content-Length is no number".into()))
}

/// Whether a request goes this way.
pub(super) const fn is_wanted(head: &Head) -> bool {
    matches!(head.framing, Framing::Upgrade)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_the_clients_connection_does_not_reach_the_sprite() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
        for (name, value) in [
            ("Connection", "Upgrade, X-Private"),
            ("X-Private", "1"),
            ("Upgrade", "websocket"),
            ("Keep-Alive", "timeout=5"),
            ("Sec-WebSocket-Key", "k"),
        ] {
            request.append_header(name, value).expect("a field");
        }
        drop_hop_by_hop(&mut request.headers.clone(), |name| drop(request.remove_header(name)));
        let mut left: Vec<_> = request.headers.keys().map(ToString::to_string).collect();
        left.sort();
        assert_eq!(left, ["sec-websocket-key", "upgrade"]);
    }

    #[test]
    fn an_answers_head_may_arrive_in_parts_and_must_be_one() {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nframes";
        assert!(parse_response(&head[..30]).expect("a beginning").is_none());
        let (response, length) = parse_response(head).expect("a head").expect("whole");
        assert_eq!((response.status.as_u16(), &head[length..]), (101, &b"frames"[..]));
        assert!(parse_response(b"SSH-2.0-OpenSSH_9\r\n").is_err());
        assert!(parse_response(&[&b"HTTP/1.1 200 OK\r\nX: "[..], &[b'a'; MAX_HEAD_BYTES]].concat()).is_err());
    }

    #[test]
    fn the_body_of_a_refused_upgrade_ends_where_it_says() {
        let framing = |lines: &[(&'static str, &str)], method| {
            let mut response = ResponseHeader::build(400, None).expect("an answer");
            for (name, value) in lines {
                response.append_header(*name, *value).expect("a field");
            }
            body_framing(&response, &method)
        };
        let taken = |lines: &[(&'static str, &str)], bytes: &[u8]| {
            framing(lines, Method::GET).expect("framed").take(bytes)
        };
        assert_eq!(taken(&[("content-length", "3")], b"abcdef"), Ok((3, true)));
        assert_eq!(taken(&[("transfer-encoding", "chunked")], b"1\r\na\r\n0\r\n\r\nrest"), Ok((11, true)));
        assert_eq!(taken(&[], b"abc"), Ok((3, false)));
        assert!(framing(&[("content-length", "x")], Method::GET).is_err());
        assert!(matches!(framing(&[("content-length", "3")], Method::HEAD), Ok(Body::Length(0))));
    }
}
