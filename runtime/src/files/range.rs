//! Byte ranges (RFC 9110 §14). Pure.

/// What of a file is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Range {
    /// All of it.
    Whole,
    /// One part.
    Part(Part),
    /// A part that the file does not have.
    Unsatisfiable,
}

/// Bytes `first..first + length` of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    pub(crate) first: u64,
    pub(crate) length: u64,
}

impl Range {
    /// Reads a `Range` header for a file of `size` bytes. What is no single byte range is ignored, as a
    /// server may (RFC 9110 §14.2).
    pub(crate) fn parse(header: Option<&str>, size: u64) -> Self {
        let Some(spec) = header.and_then(|header| header.trim().strip_prefix("bytes=")) else {
            return Self::Whole;
        };
        let Some((first, last)) = spec.trim().split_once('-') else { return Self::Whole };
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            // More than fits is beyond every file.
            digits.then(|| text.parse().unwrap_or(u64::MAX))
        };
        let (first, end) = match (number(first), number(last)) {
            (Some(first), Some(last)) if first > last => return Self::Whole,
            (Some(first), Some(last)) => (first, last.saturating_add(1).min(size)),
            (Some(first), None) if last.is_empty() => (first, size),
            (None, Some(0)) if first.is_empty() => return Self::Unsatisfiable,
            (None, Some(suffix)) if first.is_empty() => (size.saturating_sub(suffix), size),
            _ => return Self::Whole,
        };
        if first >= size {
            return Self::Unsatisfiable;
        }
        Self::Part(Part { first, length: end - first })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_ranges_are_read_and_others_ignored() {
        let part = |first, length| Range::Part(Part { first, length });
        for (header, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=2-5", part(2, 4)),
            ("bytes=2-", part(2, 8)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-99", part(0, 10)),
            ("bytes=9-99999999999999999999999", part(9, 1)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=99999999999999999999999-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-2", Range::Whole),
            ("bytes=0-1,4-5", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("bytes=-", Range::Whole),
            ("bytes=+1-2", Range::Whole),
            ("lines=1-2", Range::Whole),
        ] {
            assert_eq!(Range::parse(Some(header), 10), expected, "{header}");
        }
        assert_eq!(Range::parse(None, 10), Range::Whole);
        assert_eq!(Range::parse(Some("bytes=0-"), 0), Range::Unsatisfiable);
        assert_eq!(Range::parse(Some("bytes=-5"), 0), Range::Unsatisfiable);
    }
}
