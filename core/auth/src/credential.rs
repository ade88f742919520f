//! What a request shows, and whether it is ours.

use std::fmt;

use ids::{OrgSlug, TokenId, UrlSuffix};

use crate::TokenDigest;

/// What stands at the beginning of a token's value.
const VALUE_PREFIX: &str = "spr_";
/// How many letters and digits follow it: 43 of base 62 hold 256 bits.
const VALUE_LENGTH: usize = 43;

/// What the `Authorization` header of a request is.
#[derive(Clone, Debug)]
pub enum Credential {
    /// There is none.
    None,
    /// It has exactly the shape of a token of ours. It is never sent to a sprite, valid or not.
    Ours(PresentedToken),
    /// It is for the application in the sprite, and passes through untouched.
    Foreign,
}

impl Credential {
    /// Reads the lines of a request's `Authorization` header (there should be one at most).
    ///
    /// If several lines are there, one of ours counts, wherever it stands; each line has to be looked at
    /// with [`Credential::is_ours`] before it goes on to a sprite.
    pub fn of<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut credential = Self::None;
        for line in lines {
            match PresentedToken::read(line) {
                Some(token) => return Self::Ours(token),
                None => credential = Self::Foreign,
            }
        }
        credential
    }

    /// Whether one line of an `Authorization` header must not reach a sprite.
    #[must_use]
    pub fn is_ours(line: &[u8]) -> bool {
        shape(line).is_some()
    }
}

/// A text with the shape of a token. Nothing is proven about it yet.
#[derive(Clone)]
pub struct PresentedToken {
    slug: OrgSlug,
    suffix: UrlSuffix,
    id: TokenId,
    digest: TokenDigest,
}

impl PresentedToken {
    /// Reads `Bearer {slug}/{suffix}/{id}/spr_{43 letters and digits}`.
    fn read(line: &[u8]) -> Option<Self> {
        let (text, [slug, suffix, id]) = shape(line)?;
        Some(Self {
            slug: slug.parse().ok()?,
            suffix: suffix.parse().ok()?,
            id: id.parse().ok()?,
            digest: TokenDigest::of(text),
        })
    }

    /// The organization that the token says it is for.
    #[must_use]
    pub const fn slug(&self) -> &OrgSlug {
        &self.slug
    }

    /// The suffix of that organization's URLs, as the token says.
    #[must_use]
    pub const fn suffix(&self) -> &UrlSuffix {
        &self.suffix
    }

    /// By which it is looked up.
    #[must_use]
    pub const fn id(&self) -> &TokenId {
        &self.id
    }

    /// Proves the token to be the one on record: `recorded` is the digest kept under its id, and
    /// `organization` is whom that record speaks for. Takes the same time whether it matches or not.
    #[must_use]
    pub fn verify(&self, recorded: &TokenDigest, organization: &OrgSlug) -> Option<Verified> {
        self.digest.matches(recorded).then(|| Verified { organization: organization.clone() })
    }
}

impl fmt::Debug for PresentedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PresentedToken({}/{}/{})", self.slug, self.suffix, self.id)
    }
}

/// The bearer of a token that is on record. Made by [`PresentedToken::verify`] only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    organization: OrgSlug,
}

impl Verified {
    /// Whom the token speaks for.
    #[must_use]
    pub const fn organization(&self) -> &OrgSlug {
        &self.organization
    }
}

/// The token's whole text and its first three parts, if the line has the shape of ours. Without
/// allocation, as it sees every request.
fn shape(line: &[u8]) -> Option<(&str, [&str; 3])> {
    let line = std::str::from_utf8(line).ok()?.trim_matches([' ', '\t']);
    let (scheme, rest) = line.split_once(' ')?;
    // RFC 9110 §11.1: schemes have no case.
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let text = rest.trim_start_matches(' ');
    let mut parts = text.split('/');
    let [slug, suffix, id, value] = [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let secret = value.strip_prefix(VALUE_PREFIX)?;
    let ours = parts.next().is_none()
        && secret.len() == VALUE_LENGTH
        && secret.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && OrgSlug::check(slug).is_ok()
        && UrlSuffix::check(suffix).is_ok()
        && TokenId::check(id).is_ok();
    ours.then_some((text, [slug, suffix, id]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ";

    fn token(text: &str) -> Credential {
        Credential::of([format!("Bearer {text}").as_bytes()])
    }

    fn good() -> String {
        format!("acme/ab12c/t0k3n/spr_{SECRET}")
    }

    #[test]
    fn a_token_of_ours_is_recognised_and_proves_its_organization() {
        for scheme in ["Bearer ", "bearer ", "BEARER   ", " \tBearer "] {
            let Credential::Ours(shown) = Credential::of([format!("{scheme}{} ", good()).as_bytes()]) else {
                panic!("{scheme:?} was not recognised");
            };
            assert_eq!(
                (shown.slug().as_str(), shown.suffix().as_str(), shown.id().as_str()),
                ("acme", "ab12c", "t0k3n")
            );
            let acme = "acme".parse().unwrap();
            let verified = shown.verify(&TokenDigest::of(&good()), &acme);
            assert_eq!(verified.as_ref().map(Verified::organization), Some(&acme));
            assert_eq!(shown.verify(&TokenDigest::of("another"), &acme), None);
        }
    }

    #[test]
    fn t37_an_authorization_header_for_the_app_is_not_eaten() {
        let foreign = [
            String::new(),
            "Bearer".into(),
            "Bearer ".into(),
            "Basic YWxhZGRpbjpvcGVuc2VzYW1l".into(),
            "Bearer eyJhbGciOiJIUzI1NiJ9.e30.abc".into(),
            format!("Basic {}", good()),
            format!("Bearer {}x", good()),
            format!("Bearer {}/x", good()),
            format!("Bearer x/{}", good()),
            format!("Bearer {},", good()),
            format!("Bearer acme/ab12c/t0k3n/{SECRET}spr_"),
            format!("Bearer acme//t0k3n/spr_{SECRET}"),
            format!("Bearer Acme/ab12c/t0k3n/spr_{SECRET}"),
            format!("Bearer acme/ab-2c/t0k3n/spr_{SECRET}"),
            format!("Bearer acme/ab12c/t0-k3n/spr_{SECRET}"),
            format!("Bearer acme/ab12c/t0k3n/spr_{}", &SECRET[1..]),
            format!("Bearer acme/ab12c/t0k3n/spr_{}_", &SECRET[1..]),
            format!("Bearer acme/ab12c/t0k3n/spr_{}", "é".repeat(43)),
        ];
        for line in foreign {
            assert!(matches!(Credential::of([line.as_bytes()]), Credential::Foreign), "{line:?}");
            assert!(!Credential::is_ours(line.as_bytes()), "{line:?}");
        }
        assert!(matches!(Credential::of([&[0xff, 0xfe][..]]), Credential::Foreign));
    }

    #[test]
    fn our_token_counts_wherever_it_stands() {
        let ours = format!("Bearer {}", good());
        assert!(matches!(Credential::of([]), Credential::None));
        assert!(matches!(Credential::of([&b"Basic eA=="[..], ours.as_bytes()]), Credential::Ours(_)));
        assert!(Credential::is_ours(ours.as_bytes()));
    }

    #[test]
    fn a_presented_token_does_not_show_its_secret() {
        assert!(!format!("{:?}", token(&good())).contains(SECRET));
    }
}
