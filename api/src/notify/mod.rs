//! `POST /_matrix/push/v1/notify` of the Matrix push gateway API.

pub(crate) mod cache;
pub(crate) mod dedupe;
pub(crate) mod delivery;
pub(crate) mod guard;
pub(crate) mod notification;
pub(crate) mod pnm;

use axum::{
    body::Body,
    extract::{State, rejection::BytesRejection},
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::Serialize;

use crate::notify::delivery::{Deliverer, DeliveryError, TokenBook};

/// Takes a notification; the body is read as JSON whatever its type says.
pub(crate) async fn notify<T: TokenBook>(
    State(deliverer): State<Deliverer<T>>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let body = match body {
        Ok(body) => body,
        Err(rejection) => return unread(&rejection),
    };
    match deliverer.deliver(body).await {
        Ok(rejected) if rejected.is_empty() => json(StatusCode::OK, r#"{"rejected":[]}"#),
        Ok(rejected) => written(StatusCode::OK, &Answer { rejected }),
        Err(error) => error.into_response(),
    }
}

#[derive(Serialize)]
struct Answer {
    rejected: Vec<String>,
}

#[derive(Serialize)]
struct Problem<'a> {
    errcode: &'a str,
    error: &'a str,
}

impl IntoResponse for DeliveryError {
    fn into_response(self) -> Response {
        match self {
            Self::Malformed(error) => {
                tracing::warn!(%error, "a notification was refused");
                problem(StatusCode::BAD_REQUEST, error.errcode(), &error.to_string())
            }
            Self::Retry(reason) => {
                tracing::debug!(reason, "a notification is put off");
                let words = "The push service did not take the notification; try again.";
                problem(StatusCode::BAD_GATEWAY, "M_UNKNOWN", words)
            }
            Self::Unavailable(reason) => {
                tracing::debug!(reason, "a notification is put off");
                let words = "This gateway cannot take notifications at the moment; try again.";
                problem(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", words)
            }
        }
    }
}

/// The body was too long, or broke off.
fn unread(rejection: &BytesRejection) -> Response {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let words = "The body is too large.";
        return problem(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", words);
    }
    problem(
        StatusCode::BAD_REQUEST,
        "M_NOT_JSON",
        "The body could not be read.",
    )
}

fn problem(status: StatusCode, errcode: &str, error: &str) -> Response {
    written(status, &Problem { errcode, error })
}

fn written(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => json(status, body),
        // Cannot happen: these are texts only.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::to_bytes, extract::DefaultBodyLimit, http::Request, routing::post};
    use serde_json::{Value, json};
    use tower::util::ServiceExt as _;

    use super::*;
    use crate::notify::delivery::tests::{fixture, request};

    #[tokio::test]
    async fn answers_in_json_whatever_happens() {
        let it = fixture().await;
        let router = Router::new()
            .route("/", post(notify))
            .layer(DefaultBodyLimit::max(4096))
            .with_state(it.deliverer.clone());
        let large = Bytes::from(vec![b' '; 5000]);
        let malformed =
            json!({"errcode": "M_BAD_JSON", "error": "The body has no object \"notification\"."});
        let not_json = json!({"errcode": "M_NOT_JSON", "error": "The body is not JSON."});
        let too_large = json!({"errcode": "M_TOO_LARGE", "error": "The body is too large."});
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
            (Bytes::from_static(b"{}"), 400, malformed),
            (Bytes::from_static(b"x"), 400, not_json),
            (large, 413, too_large),
        ];
        for (body, status, expected) in cases {
            let response = router
                .clone()
                .oneshot(Request::post("/").body(Body::from(body.clone())).unwrap())
                .await
                .unwrap();
            assert_eq!(response.status().as_u16(), status, "{body:?}");
            assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
            let answer = to_bytes(response.into_body(), 4096).await.unwrap();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            let compared = if expected.is_string() {
                &answer["errcode"]
            } else {
                &answer
            };
            assert_eq!(*compared, expected, "{body:?}");
        }
    }
}
