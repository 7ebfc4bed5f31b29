//! What the api and the worker of matrix2acrobits share: settings, the SQLite store, the job queue,
//! and the words that both use. Knows no HTTP server.

pub mod backoff;
mod batch;
pub mod clock;
pub mod config;
pub mod failure;
pub mod go_proxy;
pub mod health;
pub mod homeserver;
pub mod ids;
pub mod metrics;
pub mod net;
pub mod queue;
pub mod secret;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod writer;
