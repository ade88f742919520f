//! Durations as clients write them: Go's syntax, such as `5s`, `5.0s`, `1m30s` or `500ms`.

use std::time::Duration;

/// The longest duration that is taken: nobody watches a service for longer in one request.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Reads a duration; `None` if it is none, is negative, or is absurdly long.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text.strip_prefix('+').unwrap_or(text), Duration::ZERO);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let amount: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(amount * seconds).ok()?)?;
        rest = tail;
    }
    (total <= LONGEST).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_understood() {
        let millis = |text: &str| parse(text).map(|found| found.as_millis());
        assert_eq!(millis("5s"), Some(5_000));
        assert_eq!(millis("5.0s"), Some(5_000));
        assert_eq!(millis("1m30s"), Some(90_000));
        assert_eq!(millis("500ms"), Some(500));
        assert_eq!(millis(".5s"), Some(500));
        assert_eq!(millis("1h0m0.25s"), Some(3_600_250));
        assert_eq!(millis("0"), Some(0));
        assert_eq!(millis("1500us"), Some(1));
        for bad in
            ["", "5", "s", "-5s", "5x", "5s5", "1..5s", "1e9s", "inf", "NaNs", "99999h", ".s", "5 s", "５s"]
        {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
