//! What the operator does: the admin endpoints, the status page, and the commands that take mappings and tokens in.

mod admin;
pub(crate) mod import;
mod mapping_file;
pub(crate) mod mappings;
pub(crate) mod registration;
mod status;
mod tally;
mod views;

use std::sync::Arc;

use axum::Router;
use matrix2acrobits_shared::secret::Secret;
use matrix2acrobits_store::Store;

use self::admin::Admin;
pub(crate) use self::admin::Description;
use crate::{notify::pnm::answers::Answers, reports::tokenless::Tokenless};

/// The endpoints and the page, behind `token`.
pub(crate) fn router(
    store: Store,
    answers: Arc<Answers>,
    tokenless: Arc<Tokenless>,
    token: Option<Secret>,
) -> Router {
    Router::new()
        .merge(status::router(
            store.clone(),
            answers,
            tokenless,
            token.clone(),
        ))
        .merge(admin::router(Admin { store }, token))
}
