//! The endpoint `push_received`, by which the app's push notification reporter confirms a push. The response is the
//! same for any phone. Receipts are matched to phones later, many at a time.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{FromRef, FromRequest, Request, State},
    routing::get,
};
use utoipa::OpenApi;

use super::{Empty, ReportError, description, fields::ReceiptFields, read_request};
use crate::{
    arrivals::{Journal, Receipt},
    http::{bodies::Bodies, errors::method_not_allowed},
    identity::{Auth, Caller},
};

/// The OpenAPI description of this endpoint.
#[derive(OpenApi)]
#[openapi(paths(receipt_by_post, receipt_by_get))]
pub(crate) struct Description;

/// What the endpoint needs.
#[derive(Debug, Clone)]
pub(crate) struct Receipts {
    pub(crate) auth: Auth,
    pub(crate) journal: Arc<Journal>,
    pub(crate) bodies: Bodies,
}

impl FromRef<Receipts> for Auth {
    fn from_ref(receipts: &Receipts) -> Self {
        receipts.auth.clone()
    }
}

impl FromRef<Receipts> for Bodies {
    fn from_ref(receipts: &Receipts) -> Self {
        receipts.bodies.clone()
    }
}

/// The endpoint.
pub(crate) fn router(receipts: Receipts) -> Router {
    // axum runs the handler of GET for HEAD, and this handler changes something.
    let receipt = get(receipt_by_get).head(method_not_allowed);
    Router::new()
        .route("/api/client/push_received", receipt.post(receipt_by_post))
        .with_state(receipts)
}

/// The parts of a request that this endpoint needs.
#[derive(Debug)]
struct Incoming {
    caller: Caller,
    fields: ReceiptFields,
}

impl FromRequest<Receipts> for Incoming {
    type Rejection = ReportError;

    async fn from_request(request: Request, state: &Receipts) -> Result<Self, ReportError> {
        let (caller, fields) = read_request(request, state, ReceiptFields::read).await?;
        Ok(Self { caller, fields })
    }
}

/// A phone confirms a push.
#[utoipa::path(
    post,
    path = "/api/client/push_received",
    tag = "phones",
    summary = "A phone confirms that a push arrived. 200 even if the push or the phone is unknown",
    description = "",
    request_body(content(
        (description::Receipt = "application/json"),
        (description::Receipt = "application/x-www-form-urlencoded")
    )),
    responses((status = 200, body = Empty), ReportError)
)]
async fn receipt_by_post(
    State(app): State<Receipts>,
    incoming: Incoming,
) -> Result<Json<Empty>, ReportError> {
    receipt(&app, incoming).await
}

/// A phone confirms a push.
#[utoipa::path(
    get,
    path = "/api/client/push_received",
    tag = "phones",
    summary = "The same by GET",
    description = "",
    params(description::Receipt),
    responses((status = 200, body = Empty), ReportError)
)]
async fn receipt_by_get(
    State(app): State<Receipts>,
    incoming: Incoming,
) -> Result<Json<Empty>, ReportError> {
    receipt(&app, incoming).await
}

async fn receipt(app: &Receipts, incoming: Incoming) -> Result<Json<Empty>, ReportError> {
    let Incoming { caller, fields } = incoming;
    let owner = app
        .auth
        .identify(fields.username.as_deref(), fields.password.as_ref(), caller)
        .await
        .map_err(ReportError::Auth)?;
    app.journal.received(Receipt {
        phone: fields.phone,
        id: fields.id,
        owner,
    });
    Ok(Json(Empty {}))
}
