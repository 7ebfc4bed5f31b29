//! The store of matrix2acrobits in an SQLite file: opening it, its one writer, its readers and its queue.

mod batch;
pub mod queue;
pub mod store;
mod url;
pub mod writer;

pub use url::DatabaseUrl;
