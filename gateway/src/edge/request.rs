//! What a request's head says, whichever protocol it came by.

use pingora::http::RequestHeader;

use super::respond::EdgeError;

/// Whether it needs HTTP/2 all the way. (`application/grpc-web` is made for HTTP/1.)
pub(super) fn is_grpc(request: &RequestHeader) -> bool {
    let content_type = request.headers.get(http::header::CONTENT_TYPE);
    content_type.is_some_and(|value| is_grpc_type(value.as_bytes()))
}

pub(super) fn is_grpc_type(content_type: &[u8]) -> bool {
    let rest = content_type.strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, lines: &[(&'static str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build(method, b"/", None).expect("a request");
        for (name, value) in lines {
            request.append_header(*name, *value).expect("a header");
        }
        request
    }

    #[test]
    fn grpc_is_told_from_what_only_sounds_like_it() {
        let is = |value| is_grpc(&request("POST", &[("content-type", value)]));
        assert!(is("application/grpc") && is("application/grpc+proto") && is("application/grpc; charset=x"));
        assert!(
            !is("application/grpc-web+proto") && !is("application/json") && !is_grpc(&request("POST", &[]))
        );
    }

    #[test]
    fn a_request_names_one_host() {
        let with = |uri: &str, hosts: &[&str]| {
            let hosts: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let mut request = request("GET", &hosts);
            request.set_uri(uri.parse().expect("a URI"));
            h2_host(&request).map(str::to_owned).map_err(|error| error.to_string())
        };
        assert_eq!(with("https://a.x/", &[]), Ok("a.x".into()));
        assert_eq!(with("https://a.x/", &["A.x"]), Ok("a.x".into()));
        assert_eq!(with("/", &["a.x"]), Ok("a.x".into()));
        assert!(with("https://a.x/", &["b.x"]).is_err());
        assert!(with("/", &["a.x", "a.x"]).is_err());
        assert!(with("/", &[]).is_err());
    }
}
