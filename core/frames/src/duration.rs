//! Durations as clients write them: Go's syntax, such as `5s`, `5.0s`, `1m30s` or `500ms`.

use std::time::Duration;

/// The longest duration that is understood: a hundred years. Longer ones are mistakes, and would overflow
/// clocks.
pub const LONGEST: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Reads a duration; `None` if it is none, is negative, or is longer than [`LONGEST`].
#[must_use]
pub fn parse(text: &str) -> Option<Duration> {
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
        let nanos: u64 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" | "µs" | "μs" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        total = total.checked_add(amount(number, nanos)?)?;
        rest = tail;
    }
    (total <= LONGEST).then_some(total)
}

/// So many units of so many nanoseconds, exactly; what is finer than a nanosecond is dropped.
fn amount(number: &str, nanos: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(whole) || !digits(fraction) {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let (mut part, mut unit) = (0, nanos);
    for digit in fraction.bytes() {
        // Dividing first loses less than a nanosecond a digit, and units are powers of ten from the second on.
        part += unit * u64::from(digit - b'0') / 10;
        unit /= 10;
    }
    let all = u128::from(whole) * u128::from(nanos) + u128::from(part);
    let seconds = u64::try_from(all / 1_000_000_000).ok()?;
    Some(Duration::new(seconds, (all % 1_000_000_000) as u32))
}

/// Writes a duration: whole seconds as `90s`, finer ones in the largest unit that keeps them whole.
#[must_use]
pub fn format(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_nanos()) {
        (seconds, 0) => format!("{seconds}s"),
        (_, nanos) if nanos % 1_000_000 == 0 => format!("{}ms", duration.as_millis()),
        (_, nanos) if nanos % 1_000 == 0 => format!("{}us", duration.as_micros()),
        _ => format!("{}ns", duration.as_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            ["", "5", "s", "-5s", "5x", "5s5", "1..5s", "1e9s", "inf", "NaNs", "9999999h", ".s", "5 s", "５s"]
        {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(millis in 0u64..1 << 40) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Some(duration));
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
