//! `POST /_matrix/push/v1/notify` of the Matrix push gateway API.

mod badges;
pub(crate) mod cache;
pub(crate) mod dedupe;
pub(crate) mod delivery;
mod description;
mod guard;
pub(crate) mod notification;
pub(crate) mod pnm;
pub(crate) mod texts;
pub(crate) mod trust;

use std::{collections::BTreeMap, time::Instant};

use axum::{
    Json, Router,
    body::Body,
    extract::{FromRequest, Request},
    http::{
        HeaderValue,
        header::{CONTENT_TYPE, USER_AGENT},
    },
    response::{IntoResponse as _, Response},
    routing::post,
};
use matrix2acrobits_shared::process::health::DOCTOR;
use serde::Serialize;
use utoipa::{
    IntoResponses, OpenApi, ToSchema,
    openapi::{self, RefOr},
};

use crate::{
    http::{
        bodies::{Bodies, Whole},
        errors::{self, Matter, Problem},
        seldom::Seldom,
    },
    notify::{
        cache::Tokens,
        delivery::{Deliverer, DeliveryError, TokenBook},
        notification::ParseError,
    },
};

/// Largest body of a notification, in bytes.
const MAX_BODY: usize = 256 * 1024;

/// Strangers can send any number of wrong notifications.
static REFUSED: Seldom = Seldom::new();

/// The description of this endpoint.
#[derive(OpenApi)]
#[openapi(paths(notify))]
pub(crate) struct Description;

/// The endpoint.
pub(crate) fn router<T: TokenBook>(gateway: Gateway<T>) -> Router {
    Router::new()
        .route("/_matrix/push/v1/notify", post(notify))
        .with_state(gateway)
}

/// What the endpoint works on.
#[derive(Debug)]
pub(crate) struct Gateway<T = Tokens> {
    pub(crate) deliverer: Deliverer<T>,
    pub(crate) bodies: Bodies,
}

impl<T> Clone for Gateway<T> {
    fn clone(&self) -> Self {
        Self {
            deliverer: self.deliverer.clone(),
            bodies: self.bodies.clone(),
        }
    }
}

/// A notification that is still to be read, and who delivers it.
struct Incoming<T> {
    body: Whole,
    deliverer: Deliverer<T>,
    /// Whether `doctor` says that it asks. Anybody can say so.
    from_doctor: bool,
}

impl<T: TokenBook> FromRequest<Gateway<T>> for Incoming<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, gateway: &Gateway<T>) -> Result<Self, Problem> {
        let agent = request.headers().get(USER_AGENT);
        Ok(Self {
            from_doctor: agent.is_some_and(|agent| agent == DOCTOR),
            body: gateway.bodies.read(request, MAX_BODY).await?,
            deliverer: gateway.deliverer.clone(),
        })
    }
}

/// Takes a notification; the body is read as JSON whatever its type says.
#[utoipa::path(
    post,
    path = "/_matrix/push/v1/notify",
    tag = "homeserver",
    summary = "The homeserver delivers a notification",
    description = "",
    request_body = description::NotifyRequest,
    responses((status = 200, body = Rejected), DeliveryError)
)]
async fn notify<T: TokenBook>(
    Incoming {
        body,
        deliverer,
        from_doctor,
    }: Incoming<T>,
) -> Result<Response, Problem> {
    if from_doctor && body.bytes.is_empty() {
        // The response is the same as to anybody, and a stranger gains nothing but a quieter refusal.
        tracing::debug!("doctor asks whether the api answers here");
        return Err(ParseError::NotJson.into());
    }
    let rejected = deliverer.deliver(body.bytes.clone()).await?;
    if rejected.is_empty() {
        // Nearly always; this one needs no serializer.
        return Ok(json(r#"{"rejected":[]}"#));
    }
    Ok(Json(Rejected { rejected }).into_response())
}

/// Pushkeys whose pushers the homeserver should delete.
#[derive(Serialize, ToSchema)]
struct Rejected {
    rejected: Vec<String>,
}

impl From<DeliveryError> for Problem {
    fn from(error: DeliveryError) -> Self {
        match error {
            DeliveryError::Malformed(error) => {
                if let Some(times) = REFUSED.due(Instant::now()) {
                    tracing::warn!(%error, times, "a notification was refused");
                } else {
                    tracing::debug!(%error, "a notification was refused");
                }
                error.into()
            }
            DeliveryError::Retry(reason) => {
                tracing::debug!(reason, "a notification is put off");
                let words = "The push service did not take the notification; try again.";
                Self::new(Matter::Upstream, words)
            }
            DeliveryError::Unavailable(reason) => {
                tracing::debug!(reason, "a notification is put off");
                let words = "This gateway cannot take notifications at the moment; try again.";
                Self::new(Matter::Unavailable, words)
            }
            DeliveryError::Limited(wait) => Self::new(
                Matter::TooMany,
                "Too many notifications without our pusher's mark; try again later.",
            )
            .after(wait),
            DeliveryError::Forbidden => Self::new(
                Matter::Forbidden,
                "The notification does not come from a pusher of this gateway.",
            ),
        }
    }
}

impl IntoResponses for DeliveryError {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        errors::described(&[
            (
                Matter::BadJson,
                "Not JSON, no notification, no devices, or more than 100",
            ),
            (
                Matter::Forbidden,
                "It does not come from a pusher of ours, and NOTIFY_AUTH=require",
            ),
            (Matter::TooSlow, "The request took too long to arrive"),
            (Matter::TooLarge, "The body is longer than 256 KiB"),
            (
                Matter::TooMany,
                "Too many that do not come from a pusher of ours: try again, see Retry-After",
            ),
            (Matter::Upstream, "PNM did not take it: try again"),
            (
                Matter::Unavailable,
                "The database does not answer, has never held a token, or too much is under way: try again",
            ),
        ])
    }
}

impl From<ParseError> for Problem {
    fn from(error: ParseError) -> Self {
        let matter = match error {
            ParseError::NotJson => Matter::NotJson,
            ParseError::NoNotification
            | ParseError::NoDevices
            | ParseError::TooManyDevices
            | ParseError::BadPart
            | ParseError::BadDevice => Matter::BadJson,
        };
        Self::new(matter, error.to_string())
    }
}

fn json(body: &'static str) -> Response {
    let mut response = Response::new(Body::from(body));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use axum::{body::to_bytes, http::Request};
    use serde_json::{Value, json};
    use tower::util::ServiceExt as _;

    use super::*;
    use crate::{
        http::peers::Proxies,
        notify::delivery::tests::fixture::{fixture, request},
    };

    #[tokio::test]
    async fn answers_in_json_whatever_happens() {
        let it = fixture().await;
        let router = router(Gateway {
            deliverer: it.deliverer.clone(),
            bodies: Bodies::new(Proxies::default()),
        });
        let large = bytes::Bytes::from(vec![b' '; MAX_BODY + 1]);
        let malformed =
            json!({"errcode": "M_BAD_JSON", "error": "The body has no object \"notification\"."});
        let not_json = json!({"errcode": "M_NOT_JSON", "error": "The body is not JSON."});
        let too_large =
            json!({"errcode": "M_TOO_LARGE", "error": "The body is longer than 256 KiB."});
        let cases = [
            (request("$e", &["k1"]), 200, json!({"rejected": []})),
            (
                request("$e", &["unknown-\"1\""]),
                200,
                json!({"rejected": ["unknown-\"1\""]}),
            ),
            (
                request("$e", &["gone-1", "k2"]),
                200,
                json!({"rejected": ["gone-1"]}),
            ),
            (request("$e", &["busy-1"]), 502, json!("M_UNKNOWN")),
            (request("$e", &["broken-1"]), 503, json!("M_UNKNOWN")),
            (bytes::Bytes::from_static(b"{}"), 400, malformed),
            (bytes::Bytes::from_static(b"x"), 400, not_json),
            (large, 413, too_large),
        ];
        for (body, status, expected) in cases {
            let response = router
                .clone()
                .oneshot(
                    Request::post("/_matrix/push/v1/notify")
                        .body(Body::from(body.clone()))
                        .unwrap(),
                )
                .await
                .unwrap();
            assert_eq!(response.status().as_u16(), status, "{expected}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            let answer = to_bytes(response.into_body(), 4096).await.unwrap();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            let compared = if expected.is_string() {
                &answer["errcode"]
            } else {
                &answer
            };
            assert_eq!(*compared, expected);
        }
    }
}
