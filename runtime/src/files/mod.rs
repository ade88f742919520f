//! The sprite's files, for clients: what a path means, and everything that can be done to what is there.
//!
//! Whoever may call this owns the sprite and could run any command in it as root, so permissions are not the
//! question here. These are: nothing but regular files is opened (a FIFO would block for ever, `/dev/zero`
//! never end), links are not followed where a tree is changed, a file that is written is replaced whole or not
//! at all, and every answer is bounded. All of it blocks and runs on threads for that, whose number is
//! limited, while the runtime goes on.

mod accounts;
mod change;
mod content;
mod fault;
mod listing;
mod place;
mod range;
mod watch;

pub(crate) use accounts::{Account, Kind as AccountKind};
pub(crate) use change::{change_mode, change_owner, copy, delete, rename};
pub(crate) use content::{Contents, Upload, open};
pub(crate) use fault::{Code, Fault};
pub(crate) use listing::{Entry, Listing, list};
pub(crate) use place::place;
pub(crate) use range::{Part, Range};
pub(crate) use watch::{Happening, Watch, What};

/// A mode as clients write it: octal, with or without a leading 0.
pub(crate) fn parse_mode(text: &str) -> Result<u32, Fault> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
        Fault::invalid(format!("{text:?} is no file mode; write it in octal, such as 0644"), None)
    })
}

/// As clients read it.
pub(crate) fn show_mode(mode: u32) -> String {
    format!("{:04o}", mode & 0o7777)
}

/// Does what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Fault::internal(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal_with_or_without_a_zero() {
        for (text, mode) in [("644", 0o644), ("0755", 0o755), ("0o600", 0o600), ("4755", 0o4755)] {
            assert_eq!(parse_mode(text).ok(), Some(mode), "{text}");
        }
        for text in ["", "rw-r--r--", "888", "77777", "-1"] {
            assert!(parse_mode(text).is_err(), "{text}");
        }
        assert_eq!(show_mode(0o100_644), "0644");
    }
}
