//! What the api and the worker of matrix2acrobits share: values, rules, the transactions that follow the rules, the
//! client for a homeserver, and what every process needs. This crate contains no database driver and no HTTP server.

pub mod clock;
pub mod flow;
pub mod ids;
pub mod mark;
pub mod matrix;
pub mod process;
pub mod rules;
pub mod secret;
