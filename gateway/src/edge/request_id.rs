//! The id by which one request is known in the answer, the log and inside the sprite.

use rand::Rng;

/// Longer ones are somebody's idea of a joke.
const MAX_BYTES: usize = 64;

/// The client's own id if it is a sane one (so that its traces and ours meet), else a new one.
///
/// An id proves nothing and grants nothing; it only must not break a log line or a header.
pub(crate) fn of(presented: Option<&[u8]>) -> String {
    let sane = |id: &&[u8]| {
        (1..=MAX_BYTES).contains(&id.len())
            && id.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    match presented.filter(sane).and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) => id.to_owned(),
        None => format!("{:032x}", rand::rng().random::<u128>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sane_id_is_taken_over() {
        assert_eq!(of(Some(b"0af7651916cd43dd8448eb211c80319c")), "0af7651916cd43dd8448eb211c80319c");
        for bad in [&b""[..], b"a b", b"a\"b", b"a\r\nb", "é".as_bytes(), &[b'a'; 65]] {
            let id = of(Some(bad));
            assert_eq!(id.len(), 32, "{bad:?}");
        }
        assert_ne!(of(None), of(None));
    }
}
