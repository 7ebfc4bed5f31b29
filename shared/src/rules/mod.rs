//! All decisions, without I/O. Each module is pure and has its own tables of cases.

pub mod arrival;
pub mod gate;
pub mod import;
pub mod jobs;
pub mod outcome;
pub mod pushers;
pub mod report;
pub mod retry;
