//! What the operator does: the admin endpoints, the status page, and the commands that take mappings and tokens in.

pub(crate) mod admin;
pub(crate) mod import;
mod mapping_file;
pub(crate) mod mappings;
pub(crate) mod registration;
pub(crate) mod status;
mod tally;
