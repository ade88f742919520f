//! Signals, which clients name in every way there is.

use std::{fmt, str::FromStr};

/// Names and numbers on Linux, for every architecture that sprites run on (x86, ARM, RISC-V).
const NAMES: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// The highest number, that of the last real-time signal.
const HIGHEST: u8 = 64;

/// A signal by its number, 1 to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Signal(u8);

impl Signal {
    /// The terminal is gone.
    pub const HUP: Self = Self(1);
    /// Lets a stopped process go on.
    pub const CONT: Self = Self(18);
    /// Ends a process at once.
    pub const KILL: Self = Self(9);
    /// Asks a process to end.
    pub const TERM: Self = Self(15);

    /// The signal with this number, if there is one.
    #[must_use]
    pub fn from_number(number: i64) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| (1..=HIGHEST).contains(number)).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0.into()
    }
}

/// Text that names no signal.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no signal; try TERM, INT, HUP, KILL or USR1")]
pub struct UnknownSignal(pub String);

impl FromStr for Signal {
    type Err = UnknownSignal;

    /// `TERM`, `SIGTERM`, `term` or `15`.
    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let unknown = || UnknownSignal(text.chars().take(40).collect());
        if let Ok(number) = text.parse::<i64>() {
            return Self::from_number(number).ok_or_else(unknown);
        }
        let bare =
            text.get(..3).filter(|start| start.eq_ignore_ascii_case("SIG")).map_or(text, |_| &text[3..]);
        let named = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(bare));
        named.map(|(_, number)| Self(*number)).ok_or_else(unknown)
    }
}

impl fmt::Display for Signal {
    /// `SIGTERM`, or the number of a signal that has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_signal_has_many_spellings() {
        for text in ["TERM", "SIGTERM", "sigterm", "term", "15", "Sigterm"] {
            assert_eq!(text.parse(), Ok(Signal::TERM), "{text:?}");
        }
        for text in ["", "SIG", "FOO", "0", "-1", "65", "999", "SIGSIGTERM", "ΣIGTERM", "TERM "] {
            assert!(text.parse::<Signal>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(number in 1i64..=64) {
            let signal = Signal::from_number(number).unwrap();
            prop_assert_eq!(signal.to_string().parse(), Ok(signal));
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,40}") {
            let _ = text.parse::<Signal>();
        }
    }
}
