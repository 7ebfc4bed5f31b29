//! How we speak to a Matrix homeserver.

pub mod client;
pub mod device;
pub mod pushers;
