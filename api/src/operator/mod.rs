//! What the operator does: the admin endpoints, the status page, and the commands that take mappings and tokens in.

mod admin;
pub(crate) mod import;
mod mapping_file;
pub(crate) mod mappings;
pub(crate) mod registration;
pub(crate) mod servers;
mod status;
mod tally;
mod views;

use std::sync::Arc;

use axum::Router;
use matrix2acrobits_shared::secret::Secret;
use matrix2acrobits_store::Store;

pub(crate) use self::admin::Description;
use self::{admin::Admin, servers::Servers};
use crate::{notify::pnm::answers::Answers, reports::tokenless::Tokenless};

/// The endpoints and the page, behind `token`.
pub(crate) fn router(
    store: Store,
    answers: Arc<Answers>,
    tokenless: Arc<Tokenless>,
    token: Option<Secret>,
    servers: Servers,
) -> Router {
    Router::new()
        .merge(status::router(
            store.clone(),
            answers,
            tokenless,
            token.clone(),
        ))
        .merge(admin::router(Admin { store, servers }, token))
}
