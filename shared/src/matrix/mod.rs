//! How we speak to a Matrix homeserver.

pub mod pushers;
