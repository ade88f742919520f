//! Identifiers that people read.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Why a text is not a name of the kind asked for. The message is meant for the person who typed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("a {what} must not be empty")]
    Empty {
        /// The kind of name.
        what: &'static str,
    },
    /// Longer than the kind allows.
    #[error("a {what} has at most {max} characters")]
    TooLong {
        /// The kind of name.
        what: &'static str,
        /// The most characters it may have.
        max: usize,
    },
    /// A character, or a character in a place, that the kind does not allow.
    #[error("a {what} has {rule}")]
    BadCharacter {
        /// The kind of name.
        what: &'static str,
        /// What is allowed.
        rule: &'static str,
    },
    /// A name that means something else.
    #[error("{name:?} is reserved and can't be a {what}")]
    Reserved {
        /// The kind of name.
        what: &'static str,
        /// The reserved word.
        name: &'static str,
    },
}

/// Lowercase letters, digits and single hyphens inside: what may stand in a DNS label, less the
/// double hyphen, which separates a port from a name (and begins punycode).
fn dns_word(what: &'static str, max: usize, text: &str) -> Result<(), NameError> {
    const RULE: &str =
        "lowercase letters, digits and single hyphens, and neither begins nor ends with a hyphen";
    if text.is_empty() {
        return Err(NameError::Empty { what });
    }
    if text.len() > max {
        return Err(NameError::TooLong { what, max });
    }
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !text.bytes().all(allowed) || text.starts_with('-') || text.ends_with('-') || text.contains("--") {
        return Err(NameError::BadCharacter { what, rule: RULE });
    }
    Ok(())
}

fn word(
    what: &'static str,
    max: usize,
    rule: &'static str,
    text: &str,
    ok: fn(u8) -> bool,
) -> Result<(), NameError> {
    match text {
        "" => Err(NameError::Empty { what }),
        _ if text.len() > max => Err(NameError::TooLong { what, max }),
        _ if !text.bytes().all(ok) => Err(NameError::BadCharacter { what, rule }),
        _ => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Whether a text would parse, without keeping it: for paths that must not allocate.
            ///
            /// # Errors
            /// What [`FromStr`] would say.
            pub fn check(text: &str) -> Result<(), NameError> {
                let check: fn(&str) -> Result<(), NameError> = $check;
                check(text)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name! {
    /// A sprite's name: unique within its organization, and the first part of its URL's label.
    ///
    /// At most 57 characters, so that `{name}-{suffix}` fits into one DNS label of 63 (RFC 1035 §2.3.4).
    SpriteName, |text| dns_word("sprite name", 57, text)
}
name! {
    /// An organization's name as people write it, such as `acme`.
    OrgSlug, |text| dns_word("organization name", 40, text)
}
name! {
    /// The short generated id of an organization that ends the label of each of its sprites' URLs.
    /// Without a hyphen, so that the last hyphen of a label always divides name from suffix.
    UrlSuffix, |text| word("url suffix", 5, "lowercase letters and digits", text,
        |b| b.is_ascii_lowercase() || b.is_ascii_digit())
}
name! {
    /// Names a token without revealing it.
    TokenId, |text| word("token id", 32, "letters and digits", text, |b| b.is_ascii_alphanumeric())
}
name! {
    /// Who holds leases: one run of one gateway, say. A restarted holder has a new id.
    HolderId, |text| word("holder id", 64, "letters, digits and hyphens", text,
        |b| b.is_ascii_alphanumeric() || b == b'-')
}
name! {
    /// The name of a service within one sprite; also the name of its log file.
    ServiceName, |text| {
        if text == "signal" {
            return Err(NameError::Reserved { what: "service name", name: "signal" });
        }
        if text.starts_with('.') {
            return Err(NameError::BadCharacter { what: "service name", rule: "no dot at its beginning" });
        }
        word("service name", 64, "letters, digits, dots, hyphens and underscores", text,
            |b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sprite_name_is_a_dns_label_without_double_hyphens() {
        for good in ["a", "demo", "test-sprite-1764000000000000000", "0", "a-b-c", &"x".repeat(57)] {
            assert!(good.parse::<SpriteName>().is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "a--b",
            "3000--web",
            "xn--a",
            "A",
            "a.b",
            "a_b",
            "ü",
            "a b",
            "../x",
            &"x".repeat(58),
        ] {
            assert!(bad.parse::<SpriteName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_service_name_is_safe_as_a_file_name() {
        assert!("web_1.main-x".parse::<ServiceName>().is_ok());
        for bad in ["", "..", ".hidden", "a/b", "signal", "a\0", "a\n"] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }
}
