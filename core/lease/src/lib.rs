//! Both ends of a lease: the promise that a sprite stays awake while somebody needs it.
//!
//! [`holder`] is the gateway's end, one for each sprite in use: it acquires once for everyone, lets a
//! grant linger after its last use, and survives a broken channel. [`grantor`] is the agent's end, one for
//! each sprite: it knows who holds, since when and why, and forgets holders that died.
//!
//! Neither sends anything. They take what happened and the time, and say what is to be done.
//!
//! What the two ends rely on of the channel between them: messages arrive in order or not at all, and
//! after a break nothing sent before it arrives any more. Attempts of one holder for one sprite only grow.

pub mod grantor;
pub mod holder;
