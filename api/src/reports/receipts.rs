//! The endpoint `push_received`, by which the app's push notification reporter confirms a push. The response is the
//! same for any phone. Receipts are matched to phones later, many at a time.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::{FromRef, Request, State},
    response::{IntoResponse, Response},
    routing::get,
};
use utoipa::{
    IntoResponses, OpenApi,
    openapi::{self, RefOr},
};

use super::{Empty, ReportError, description, fields::ReceiptFields, read_request};
use crate::{
    arrivals::{Journal, Receipt},
    http::{
        bodies::Bodies,
        errors::{Problem, method_not_allowed},
        seldom::Seldom,
    },
    identity::Auth,
    metrics::{self, ReceiptResult},
};

/// The OpenAPI description of this endpoint.
#[derive(OpenApi)]
#[openapi(paths(receipt_by_post, receipt_by_get))]
pub(crate) struct Description;

/// What the endpoint needs.
#[derive(Debug, Clone)]
pub(crate) struct Receipts {
    auth: Auth,
    journal: Arc<Journal>,
    bodies: Bodies,
    refusals: Arc<Refusals>,
}

/// Counts receipts that are not taken, and logs them.
#[derive(Debug)]
struct Refusals {
    metrics: metrics::Receipts,
    /// Strangers can send any number of wrong receipts.
    said: Seldom,
}

impl Receipts {
    pub(crate) fn new(auth: Auth, journal: Arc<Journal>, bodies: Bodies) -> Self {
        let refusals = Refusals {
            metrics: metrics::Receipts::new(),
            said: Seldom::default(),
        };
        Self {
            auth,
            journal,
            bodies,
            refusals: Arc::new(refusals),
        }
    }
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

/// A receipt that was not taken. It is counted and logged.
#[derive(Debug)]
struct Refused(Problem);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

impl IntoResponses for Refused {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        ReportError::responses()
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
    responses((status = 200, body = Empty), Refused)
)]
async fn receipt_by_post(
    State(app): State<Receipts>,
    request: Request,
) -> Result<Json<Empty>, Refused> {
    receipt(&app, request).await
}

/// A phone confirms a push.
#[utoipa::path(
    get,
    path = "/api/client/push_received",
    tag = "phones",
    summary = "The same by GET",
    description = "",
    params(description::Receipt),
    responses((status = 200, body = Empty), Refused)
)]
async fn receipt_by_get(
    State(app): State<Receipts>,
    request: Request,
) -> Result<Json<Empty>, Refused> {
    receipt(&app, request).await
}

async fn receipt(app: &Receipts, request: Request) -> Result<Json<Empty>, Refused> {
    let taken = take(app, request).await;
    taken.map_err(|error| app.refusals.refuse(&error))
}

async fn take(app: &Receipts, request: Request) -> Result<Json<Empty>, ReportError> {
    let (caller, fields) = read_request(request, app, ReceiptFields::read).await?;
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

impl Refusals {
    fn refuse(&self, error: &ReportError) -> Refused {
        let problem = Problem::from(error);
        let (status, errcode) = problem.matter.code();
        if status.is_server_error() {
            self.metrics.count(ReceiptResult::Unavailable, 1);
            tracing::debug!(?error, "a receipt could not be taken");
        } else {
            self.metrics.count(ReceiptResult::Refused, 1);
            if let Some(times) = self.said.due(Instant::now()) {
                let reason = &problem.words;
                tracing::info!(%status, errcode, %reason, times, "a receipt was refused");
            }
        }
        Refused(problem)
    }
}
