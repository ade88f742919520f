//! Says where a request wants to go, from the authority it names (`Host`, `:authority`, SNI).
//!
//! A sprite is `{name}-{suffix}.{domain}` or `{port}--{name}-{suffix}.{domain}`; the API is
//! `api.{domain}`, `localhost` and every IP literal. Names have no `--` and suffixes no hyphen, so each
//! label has one reading. Letter case and one trailing dot mean nothing (RFC 9110 §4.2.3, RFC 1034 §3.1);
//! everything else that is not canonical is refused, before anything could be woken by it.
//!
//! The crate refuses to know which sprites exist: it parses, its caller looks up.

mod authority;
mod zone;

pub use authority::Why;
pub use zone::{Destination, HostError, SpriteHost, Zone, ZoneError};
