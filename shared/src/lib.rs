//! What the api and the worker of matrix2acrobits share, without a database: values, rules, the
//! transactions that follow them, the bodies that a homeserver understands, and what every process needs. Knows no HTTP server.

pub mod clock;
pub mod flow;
pub mod ids;
pub mod matrix;
pub mod process;
pub mod rules;
pub mod secret;
