//! Acrobits' push service (PNM): what to send, how to send it, what its answers mean.

pub(crate) mod answers;
pub(crate) mod client;
pub(crate) mod outcome;
pub(crate) mod translate;
pub(crate) mod words;
