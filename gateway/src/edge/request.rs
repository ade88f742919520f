//! What a request's head says, whichever protocol it came by.

use pingora::http::RequestHeader;

use super::respond::EdgeError;

pub(super) fn is_grpc(request: &RequestHeader) -> bool {
    let content_type = request.headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes);
    content_type.is_some_and(|value| value.starts_with(b"application/grpc"))
}

pub(super) fn wants_page(request: &RequestHeader) -> bool {
    let header = |name: &str| request.headers.get(name).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let mode = header("sec-fetch-mode");
    matches!(request.method, http::Method::GET | http::Method::HEAD)
        && header("accept").windows(9).any(|part| part.eq_ignore_ascii_case(b"text/html"))
        && (mode.is_empty() || mode == b"navigate")
}

/// The authority of an HTTP/2 request: `:authority`, or `Host`, or both if they agree (RFC 9113 §8.3.1).
pub(super) fn h2_host(request: &RequestHeader) -> Result<&str, EdgeError> {
    let malformed = |why: &str| EdgeError::BadRequest(why.to_owned());
    let mut hosts = request.headers.get_all(http::header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(host.to_str().map_err(|_| malformed("the Host header is malformed"))?),
        (Some(_), Some(_)) => return Err(malformed("there is more than one Host header")),
    };
    match (request.uri.authority().map(http::uri::Authority::as_str), host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            Err(malformed("its authority and its Host header differ"))
        }
        (Some(authority), _) => Ok(authority),
        (None, Some(host)) => Ok(host),
        (None, None) => Err(malformed("it names no host")),
    }
}

pub(super) fn host_of(request: &RequestHeader) -> &str {
    let host = request.headers.get(http::header::HOST).and_then(|value| value.to_str().ok());
    host.or_else(|| request.uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default()
}

pub(super) fn port_of(host: &str) -> Option<u16> {
    host.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
}
