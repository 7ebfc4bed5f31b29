//! The least that a push gateway can cost: axum reads the body, reqwest posts a fixed message, axum answers.
//! No lookup, no translation, no de-duplication, no promise.

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::serve::ListenerExt;
use bytes::Bytes;
use serde::Deserialize;
use tokio::net::TcpListener;
use url::Url;

use crate::notify::PATH;

const MESSAGE: &[u8] = br#"{"verb":"NotifyTextMessage","AppId":"com.acrobits.softphone","DeviceToken":"0000000000000000000000000000000000000000000000000000000000000000","Selector":"12869E0E6E553673C54F29105A0647204C416A2A:7C3A0D14","Badge":1,"Sound":"default","Message":"New message","ContentType":"text/plain","Id":"$000000000000000000000000000000000000000000000","ThreadId":"!IaZKy7HV3BbBltwUTv6PaFNAhT-QNqNF5Rj0SHhOEoc"}"#;

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    notification: Notification<'a>,
}

#[derive(Deserialize)]
struct Notification<'a> {
    event_id: &'a str,
    #[serde(borrow)]
    devices: Vec<Device<'a>>,
}

#[derive(Deserialize)]
struct Device<'a> {
    app_id: &'a str,
    pushkey: &'a str,
}

/// Says where it listens, and serves until it is killed.
#[expect(clippy::print_stdout, reason = "the parent process reads the address")]
pub(crate) async fn serve(
    upstream: Url,
    authority: Option<&Path>,
) -> Result<(), Box<dyn std::error::Error>> {
    let authority = authority.map(std::fs::read).transpose()?;
    let authority = authority.map(|pem| reqwest::Certificate::from_pem(&pem));
    let client = reqwest::Client::builder()
        .tls_certs_merge(authority.transpose()?)
        .no_proxy()
        .tcp_nodelay(true)
        .timeout(Duration::from_secs(10))
        .pool_max_idle_per_host(512)
        .build()?;
    let router = Router::new()
        .route(PATH, post(pass))
        .with_state((client, upstream));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await?;
    Ok(())
}

async fn pass(State((client, upstream)): State<(reqwest::Client, Url)>, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Body<'_>>(&body) else {
        return axum::http::StatusCode::BAD_REQUEST.into_response();
    };
    let it = body.notification;
    let named = it
        .devices
        .iter()
        .all(|device| !device.app_id.is_empty() && !device.pushkey.is_empty());
    if !named || it.event_id.is_empty() {
        return axum::http::StatusCode::BAD_REQUEST.into_response();
    }
    let sent = client
        .post(upstream)
        .header(CONTENT_TYPE, "application/json")
        .body(MESSAGE)
        .send()
        .await;
    let Ok(Ok(_)) = futures::future::OptionFuture::from(sent.ok().map(reqwest::Response::bytes))
        .await
        .ok_or(())
    else {
        return axum::http::StatusCode::BAD_GATEWAY.into_response();
    };
    ([(CONTENT_TYPE, "application/json")], r#"{"rejected":[]}"#).into_response()
}
