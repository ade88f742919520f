//! Decides whether a request may go on, from the credential it carries and who owns what it wants.
//!
//! Three steps, each a value that the next one asks for: a [`Credential`] is read from the request, a
//! [`Verified`] comes out of it only with the digest that is on record, and an [`Allowed`] comes out of
//! [`decide`] or [`decide_api`] only. Who takes a lease or calls the API shows the [`Allowed`].
//!
//! The crate refuses to keep tokens: looking one up by its [`TokenId`](ids::TokenId) is its caller's part.

mod credential;
mod decision;
mod digest;

pub use credential::{Credential, PresentedToken, Verified};
pub use decision::{Access, Allowed, Decision, decide, decide_api};
pub use digest::{DigestError, TokenDigest};
