//! What is decided, without I/O: each module is pure and has its own tables of cases.

pub mod gate;
pub mod outcome;
pub mod retry;
