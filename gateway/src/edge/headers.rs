//! What of a request's and an answer's headers passes the edge.
//!
//! A sprite may believe what the edge says about a client, because nothing a client says in the same
//! words gets through; and it never sees the credential that opened it (promise 4).

use std::{io::Write, net::IpAddr};

use auth::Credential;
use pingora::http::{RequestHeader, ResponseHeader};

use super::{
    admit::{Forward, identity},
    request::port_of,
};
use crate::ledger::Conn;

/// What the sprite is told about a request.
#[derive(Clone, Debug)]
pub(crate) struct Told<'a> {
    pub(crate) client: IpAddr,
    pub(crate) scheme: &'static str,
    /// Host and perhaps port, as the client wrote them.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) request_id: &'a str,
    pub(crate) organization: Option<&'a str>,
    pub(crate) entered_as: &'static str,
}

impl<'a> Told<'a> {
    /// Of a request that goes on as `forward` says.
    pub(super) fn of(conn: &Conn, forward: &'a Forward, host: &'a str, request_id: &'a str) -> Self {
        let (organization, entered_as) = identity(&forward.allowed);
        Self {
            client: conn.peer().ip(),
            scheme: if conn.is_tls() { "https" } else { "http" },
            port: port_of(host).unwrap_or(conn.local().port()),
            host,
            request_id,
            organization: organization.map(ids::OrgSlug::as_str),
            entered_as,
        }
    }

    /// Ends a head for the sprite with these lines.
    pub(super) fn write(&self, wire: &mut Vec<u8>) {
        let mut line = |name: &str, value: &[u8]| {
            wire.extend_from_slice(name.as_bytes());
            wire.extend_from_slice(value);
            wire.extend_from_slice(b"\r\n");
        };
        let mut digits = Digits([0; 48]);
        line("x-forwarded-for: ", digits.show(self.client));
        line("x-forwarded-proto: ", self.scheme.as_bytes());
        line("x-forwarded-host: ", self.host.as_bytes());
        line("x-forwarded-port: ", digits.show(self.port));
        line("x-request-id: ", self.request_id.as_bytes());
        line("x-sprite-auth: ", self.entered_as.as_bytes());
        if let Some(organization) = self.organization {
            line("x-sprite-org: ", organization.as_bytes());
        }
        wire.extend_from_slice(b"\r\n");
    }
}

/// Room for an address or a number, on the stack: every request has both. The longest IPv6 address has 45
/// characters.
struct Digits([u8; 48]);

impl Digits {
    fn show(&mut self, what: impl std::fmt::Display) -> &[u8] {
        let mut rest = &mut self.0[..];
        let fits = write!(rest, "{what}").is_ok();
        debug_assert!(fits, "{what} is longer than any address");
        let length = 48 - rest.len();
        &self.0[..length]
    }
}

/// Names that only the edge may say, in any case, and names of other edges that an application might believe.
pub(super) fn is_spoken_for(name: &str) -> bool {
    const EXACT: [&str; 7] =
        ["forwarded", "x-real-ip", "x-request-id", "x-client-ip", "true-client-ip", "via", "x-original-host"];
    const PREFIXES: [&str; 4] = ["x-forwarded", "x-sprite-", "sprite-", "fly-"];
    let begins_with = |prefix: &str| {
        name.as_bytes().get(..prefix.len()).is_some_and(|part| part.eq_ignore_ascii_case(prefix.as_bytes()))
    };
    // `_` and `-` are one to CGI and its heirs: X_Forwarded_For must not pass for X-Forwarded-For.
    name.contains('_')
        || EXACT.iter().any(|exact| name.eq_ignore_ascii_case(exact))
        || PREFIXES.into_iter().any(begins_with)
}

/// Rewrites a request's headers for its sprite.
pub(crate) fn to_sprite(request: &mut RequestHeader, told: &Told<'_>) -> pingora::Result<()> {
    let unwanted: Vec<http::HeaderName> =
        request.headers.keys().filter(|name| is_spoken_for(name.as_str())).cloned().collect();
    for name in &unwanted {
        request.remove_header(name);
    }
    strip_credentials(request)?;
    join_cookies(request)?;
    request.insert_header("x-forwarded-for", told.client.to_string())?;
    request.insert_header("x-forwarded-proto", told.scheme)?;
    request.insert_header("x-forwarded-host", told.host)?;
    request.insert_header("x-forwarded-port", told.port.to_string())?;
    request.insert_header("x-request-id", told.request_id)?;
    request.insert_header("x-sprite-auth", told.entered_as)?;
    if let Some(organization) = told.organization {
        request.insert_header("x-sprite-org", organization)?;
    }
    Ok(())
}

/// HTTP/2 clients split cookies for compression; HTTP/1 servers expect one line (RFC 9113 §8.2.3).
fn join_cookies(request: &mut RequestHeader) -> pingora::Result<()> {
    let lines: Vec<&[u8]> =
        request.headers.get_all(http::header::COOKIE).iter().map(http::HeaderValue::as_bytes).collect();
    if lines.len() < 2 {
        return Ok(());
    }
    let joined = lines.join(&b"; "[..]);
    request.insert_header(http::header::COOKIE, joined)
}

/// Whatever has the shape of one of our tokens stays here, valid or not; the application's own
/// `Authorization` passes untouched (T37).
fn strip_credentials(request: &mut RequestHeader) -> pingora::Result<()> {
    let lines: Vec<http::HeaderValue> =
        request.headers.get_all(http::header::AUTHORIZATION).iter().cloned().collect();
    if !lines.iter().any(|line| Credential::is_ours(line.as_bytes())) {
        return Ok(());
    }
    request.remove_header(&http::header::AUTHORIZATION);
    for line in lines.into_iter().filter(|line| !Credential::is_ours(line.as_bytes())) {
        request.append_header(http::header::AUTHORIZATION, line)?;
    }
    Ok(())
}

/// What a server says about its own connection is not true of the client's.
pub(crate) fn drop_hop_by_hop(response: &mut ResponseHeader, client_speaks_h2: bool) {
    for name in ["keep-alive", "proxy-connection"] {
        response.remove_header(name);
    }
    if client_speaks_h2 {
        // HTTP/2 has none of these, and clients fail on them (RFC 9113 §8.2.2).
        for name in ["connection", "upgrade", "transfer-encoding"] {
            response.remove_header(name);
        }
    }
}

/// Drops cookies that a sprite would set for its neighbours: those whose domain is above its own (T37).
pub(crate) fn from_sprite(response: &mut ResponseHeader, host: &str) -> pingora::Result<()> {
    let own = bare_host(host);
    let cookies: Vec<http::HeaderValue> =
        response.headers.get_all(http::header::SET_COOKIE).iter().cloned().collect();
    if !cookies.iter().any(|cookie| is_for_others(cookie.as_bytes(), own)) {
        return Ok(());
    }
    response.remove_header(&http::header::SET_COOKIE);
    for cookie in cookies.into_iter().filter(|cookie| !is_for_others(cookie.as_bytes(), own)) {
        response.append_header(http::header::SET_COOKIE, cookie)?;
    }
    Ok(())
}

/// A host without its port and trailing dot.
pub(super) fn bare_host(authority: &str) -> &str {
    authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_end_matches('.')
}

/// Any `Domain` that is not the host itself: a parent reaches the neighbours, anything else is useless.
pub(super) fn is_for_others(cookie: &[u8], own: &str) -> bool {
    let attributes = cookie.split(|byte| *byte == b';').skip(1);
    attributes
        .filter_map(|attribute| {
            let (name, value) = attribute.split_at(attribute.iter().position(|byte| *byte == b'=')?);
            name.trim_ascii().eq_ignore_ascii_case(b"domain").then(|| value[1..].trim_ascii())
        })
        .any(|domain| {
            let domain = domain.strip_prefix(b".").unwrap_or(domain);
            !domain.is_empty() && !domain.eq_ignore_ascii_case(own.as_bytes())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(lines: &[(&str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
        for (name, value) in lines {
            request.append_header((*name).to_owned(), *value).expect("a header");
        }
        request
    }

    fn told() -> Told<'static> {
        Told {
            client: [192, 0, 2, 1].into(),
            scheme: "https",
            host: "a-b.x:8443",
            port: 8443,
            request_id: "id",
            organization: Some("acme"),
            entered_as: "member",
        }
    }

    #[test]
    fn t36_what_a_client_forges_never_reaches_the_sprite() {
        let mut request = request(&[
            ("X-Forwarded-For", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("X-Forwarded-Client-Cert", "forged"),
            ("Forwarded", "for=1.2.3.4"),
            ("X-Real-IP", "1.2.3.4"),
            ("X-Sprite-Org", "victim"),
            ("X-Sprite-Auth", "member"),
            ("Fly-Client-IP", "1.2.3.4"),
            ("fly-replay-src", "state=api:forged"),
            ("X-Request-Id", "forged"),
            ("Accept", "*/*"),
            ("Cookie", "a=b"),
        ]);
        to_sprite(&mut request, &told()).expect("rewritten");
        let mut seen: Vec<(String, String)> = request
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().expect("ASCII").to_owned()))
            .collect();
        seen.sort();
        let expected = [
            ("accept", "*/*"),
            ("cookie", "a=b"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-host", "a-b.x:8443"),
            ("x-forwarded-port", "8443"),
            ("x-forwarded-proto", "https"),
            ("x-request-id", "id"),
            ("x-sprite-auth", "member"),
            ("x-sprite-org", "acme"),
        ];
        assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn cookies_that_http_2_split_are_one_line_again() {
        let mut request = request(&[("cookie", "a=1"), ("cookie", "b=2; c=3")]);
        to_sprite(&mut request, &told()).expect("rewritten");
        let cookies: Vec<_> = request.headers.get_all("cookie").iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3"]);
    }

    #[test]
    fn t37_our_credential_stays_here_and_the_applications_passes() {
        let ours = format!("Bearer acme/ab12c/id/spr_{}", "x".repeat(43));
        let lines = |authorizations: &[&str]| {
            let pairs: Vec<_> = authorizations.iter().map(|value| ("Authorization", *value)).collect();
            let mut request = request(&pairs);
            to_sprite(&mut request, &told()).expect("rewritten");
            let kept = request.headers.get_all("authorization").iter();
            kept.map(|value| value.to_str().expect("ASCII").to_owned()).collect::<Vec<_>>()
        };
        assert!(lines(&[&ours]).is_empty());
        assert_eq!(lines(&["Basic eA=="]), ["Basic eA=="]);
        assert_eq!(lines(&["Bearer eyJ.app.token", &ours]), ["Bearer eyJ.app.token"]);
    }

    #[test]
    fn t37_a_cookie_for_the_parent_domain_is_dropped() {
        let mut response = ResponseHeader::build(200, None).expect("a response");
        for cookie in [
            "own=1; Path=/",
            "same=1; domain=A-B.x",
            "parent=1; Domain=x",
            "dotted=1; Domain=.x; Secure",
            "neighbour=1;Domain = c-b.x",
            "text=domain=x",
        ] {
            response.append_header("set-cookie", cookie).expect("a header");
        }
        from_sprite(&mut response, "a-b.x:8080").expect("rewritten");
        let names: Vec<_> = response
            .headers
            .get_all("set-cookie")
            .iter()
            .map(|cookie| cookie.to_str().expect("ASCII").split('=').next().expect("a name").to_owned())
            .collect();
        assert_eq!(names, ["own", "same", "text"]);
    }
}
