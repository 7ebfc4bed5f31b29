//! What all endpoints share: the listener, the form of errors, request ids and logs, health.

pub(crate) mod bearer;
pub(crate) mod bodies;
mod connection;
pub(crate) mod errors;
pub(crate) mod health;
pub(crate) mod listener;
pub(crate) mod observe;
pub(crate) mod peers;
mod progress;
mod refusal;
pub(crate) mod seldom;
pub(crate) mod shares;
