//! The operator's side of the api: the admin endpoints, the status page, and the commands.

mod access;
mod admin;
pub(crate) mod canary;
pub(crate) mod copy_database;
mod errors;
pub(crate) mod import;
mod input;
mod lasting;
mod mapping_file;
pub(crate) mod mappings;
mod paging;
pub(crate) mod phones;
mod proof;
pub(crate) mod push_test;
pub(crate) mod push_test_command;
pub(crate) mod registration;
mod replay;
pub(crate) mod servers;
mod status;
mod tally;
mod views;

use std::sync::Arc;

use axum::Router;
use matrix2acrobits_shared::secret::Secret;
use matrix2acrobits_store::Store;

use self::{admin::Admin, push_test::Tester, servers::Servers};
pub(crate) use self::{
    admin::Description, lasting::Changes, proof::Description as ProofDescription,
};
use crate::{notify::pnm::answers::Answers, reports::tokenless::Tokenless};

/// What the endpoints and the page need.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) store: Store,
    pub(crate) servers: Servers,
    /// PNM's recent responses.
    pub(crate) answers: Arc<Answers>,
    /// Reports without a token.
    pub(crate) tokenless: Arc<Tokenless>,
    pub(crate) tester: Arc<Tester>,
    /// What the operator has asked for and is under way.
    pub(crate) changes: Changes,
}

/// The endpoints and the page, which require `token`.
pub(crate) fn router(operator: Operator, token: Option<Secret>) -> Router {
    let page = status::router(&operator, token.clone());
    let Operator {
        store,
        servers,
        tester,
        changes,
        ..
    } = operator;
    let admin = Admin {
        store: store.clone(),
        servers,
        changes,
    };
    Router::new()
        .merge(page)
        .merge(proof::router(store, tester, token.clone()))
        .merge(admin::router(admin, token))
}
