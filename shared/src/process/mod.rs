//! What every process needs besides its own work: settings, logs, metrics, outgoing HTTP, shutdown, health.

pub mod failure;
pub mod go_proxy;
pub mod health;
pub mod logs;
pub mod metrics;
pub mod net;
pub mod output;
pub mod progress;
mod secrets;
pub mod settings;
pub mod shutdown;
pub mod words;
