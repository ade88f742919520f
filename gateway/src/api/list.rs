//! `GET /v1/sprites`: a page of an organization's sprites, in the order of their names.

use auth::Verified;
use serde_json::{Value, json};

use super::object;
use crate::edge::{Edge, respond::Answer};

/// The most entries of a page; clients that ask for more get this many and go on.
const MAX_RESULTS: usize = 50;

/// What a list may be asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Query {
    pub(super) prefix: String,
    max_results: usize,
    /// The name after which the page begins.
    after: Option<String>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, Answer> {
        let mut query = Self { prefix: String::new(), max_results: MAX_RESULTS, after: None };
        for (key, value) in pairs(text) {
            match key.as_str() {
                "prefix" => query.prefix = value,
                "max_results" if value.is_empty() => {}
                "max_results" => {
                    let wanted: i64 = value.parse().map_err(|_| {
                        Answer::new(
                            400,
                            "bad_request",
                            format!("max_results is not a whole number: {value:?}."),
                        )
                    })?;
                    query.max_results =
                        usize::try_from(wanted.clamp(1, MAX_RESULTS as i64)).unwrap_or(MAX_RESULTS);
                }
                "continuation_token" if value.is_empty() => {}
                "continuation_token" => {
                    let name = value.strip_prefix(TOKEN_PREFIX).ok_or_else(|| {
                        Answer::new(
                            400,
                            "bad_request",
                            "The continuation_token is not one that this server gave out.",
                        )
                    })?;
                    query.after = Some(name.to_owned());
                }
                // `bulk_load` asks for less than we send; unknown keys come from newer clients.
                _ => {}
            }
        }
        Ok(query)
    }
}

/// Tells our tokens from other text, so that a mix-up is an error and not a wrong page.
const TOKEN_PREFIX: &str = "after.";

pub(super) fn pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}

/// Form decoding (`+` is a space); what is malformed stands for itself.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    Some(decoded) => {
                        bytes.push(decoded);
                        rest = &rest[2..];
                    }
                    None => bytes.push(b'%'),
                }
            }
            other => bytes.push(*other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn page(edge: &Edge, caller: &Verified, query: &str) -> Result<Value, Answer> {
    let query = Query::parse(query)?;
    let all = edge.routes.of(caller.organization());
    let counters = object::counters(caller.organization().as_str(), all.iter().map(|route| &**route));
    let mut matching = all
        .iter()
        .filter(|route| route.sprite.name.as_str().starts_with(&query.prefix))
        .filter(|route| query.after.as_deref().is_none_or(|after| route.sprite.name.as_str() > after))
        .peekable();
    let page: Vec<_> = matching.by_ref().take(query.max_results).collect();
    let has_more = matching.peek().is_some();
    let next = page.last().filter(|_| has_more).map(|last| format!("{TOKEN_PREFIX}{}", last.sprite.name));
    let sprites: Vec<Value> = page.iter().map(|route| object::sprite(edge, &route.sprite)).collect();
    let mut answer = counters.clone();
    answer["sprites"] = json!(sprites);
    answer["has_more"] = json!(has_more);
    answer["next_continuation_token"] = json!(next);
    answer["org"] = counters;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_clamped_and_never_refused() {
        let size = |text: &str| Query::parse(text).expect(text).max_results;
        assert_eq!(size(""), 50);
        assert_eq!(size("max_results=100"), 50);
        assert_eq!(size("max_results=0"), 1);
        assert_eq!(size("max_results=-5"), 1);
        assert_eq!(size("max_results=7&bulk_load=true"), 7);
        assert_eq!(Query::parse("max_results=many").expect_err("not a number").status, 400);
    }

    #[test]
    fn a_token_that_is_not_ours_is_an_error() {
        let query = Query::parse("continuation_token=after.web&prefix=a%2Db").expect("ours");
        assert_eq!((query.after.as_deref(), query.prefix.as_str()), (Some("web"), "a-b"));
        assert_eq!(Query::parse("continuation_token=").expect("none").after, None);
        assert_eq!(Query::parse("continuation_token=web").expect_err("not ours").status, 400);
    }

    #[test]
    fn queries_are_decoded_as_forms() {
        assert_eq!(decode("a+b%20c%zz%"), "a b c%zz%");
    }
}
