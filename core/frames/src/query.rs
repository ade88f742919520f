//! Query strings as forms write them: `name=value&name=value`, `+` for a space, `%XX` for any byte.
//!
//! Values are bytes: arguments and environment of a Unix program need not be UTF-8.

/// Decodes the pairs of a query, in order. What is no valid escape stands for itself.
pub fn pairs(query: &str) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(name), decode(value))
    })
}

/// The last value of `name` that is neither empty nor something other than UTF-8.
#[must_use]
pub fn text(query: &str, name: &str) -> Option<String> {
    let values = pairs(query).filter(|(key, value)| key == name.as_bytes() && !value.is_empty());
    values.filter_map(|(_, value)| String::from_utf8(value).ok()).last()
}

fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        match first {
            b'+' => bytes.push(b' '),
            b'%' => match tail {
                [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    bytes.push(digit(*high) << 4 | digit(*low));
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            other => bytes.push(*other),
        }
    }
    bytes
}

fn digit(hex: u8) -> u8 {
    match hex {
        b'0'..=b'9' => hex - b'0',
        b'a'..=b'f' => hex - b'a' + 10,
        _ => hex.wrapping_sub(b'A').wrapping_add(10),
    }
}

/// Adds a pair to a query.
pub fn push(query: &mut String, name: &str, value: impl AsRef<[u8]>) {
    if !query.is_empty() {
        query.push('&');
    }
    encode(query, name.as_bytes());
    query.push('=');
    encode(query, value.as_ref());
}

/// Escapes everything but what RFC 3986 §2.3 calls unreserved.
fn encode(query: &mut String, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            query.push(char::from(*byte));
        } else {
            query.push('%');
            query.push(char::from(HEX[usize::from(byte >> 4)]));
            query.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms_are_understood() {
        let found: Vec<_> = pairs("a=1&b=x+y%20z&&c&d=%zz%4&a=%ff").collect();
        let expected: [(&[u8], &[u8]); 5] =
            [(b"a", b"1"), (b"b", b"x y z"), (b"c", b""), (b"d", b"%zz%4"), (b"a", b"\xff")];
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!((found.0.as_slice(), found.1.as_slice()), expected);
        }
        assert_eq!(text("a=&a=1&a=%ff", "a").as_deref(), Some("1"));
        assert_eq!(text("", "a"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(values: Vec<Vec<u8>>) {
            let mut query = String::new();
            for value in &values {
                push(&mut query, "na me", value);
            }
            let read: Vec<_> = pairs(&query).collect();
            prop_assert!(read.iter().all(|(name, _)| name == b"na me"));
            prop_assert_eq!(read.into_iter().map(|(_, value)| value).collect::<Vec<_>>(), values);
        }

        #[test]
        fn any_text_is_survived(query in "\\PC*") {
            prop_assert!(pairs(&query).map(|(name, value)| name.len() + value.len()).sum::<usize>() <= query.len());
        }
    }
}
