//! Replays: the worker compares pushers with what the homeserver holds. For the admin endpoint and the status page.

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use matrix2acrobits_shared::{ids::UserId, process::settings, rules::pushers::Replay};
use matrix2acrobits_store::{Store, StoreError};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    admin::Admin,
    errors::{AdminError, BodyBytes, BodyError, invalid, json},
    lasting::Changes,
    views::Replayed,
};

/// Which pushers to compare with the homeserver's. Needs exactly one of these fields.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Replay)]
pub(super) struct ReplayRequest {
    /// true for pushers with a dead letter
    dead: Option<bool>,
    /// true for all pushers
    all: Option<bool>,
    /// The pushers of this user
    user: Option<String>,
    /// The pushers that changed since this time: 2h, 2026-01-31T12:00:00Z, or seconds since 1970
    #[schema(value_type = Option<String>)]
    since: Option<Since>,
}

/// Seconds since 1970, a time such as `2026-01-31T12:00:00Z`, or a duration such as `2h` ago.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Since {
    Seconds(i64),
    Text(String),
}

impl ReplayRequest {
    fn selection(self, now: i64) -> Result<Replay, AdminError> {
        let wanted = |flag: Option<bool>| flag.unwrap_or(false);
        match (wanted(self.dead), wanted(self.all), self.user, self.since) {
            (true, false, None, None) => Ok(Replay::Dead),
            (false, true, None, None) => Ok(Replay::All),
            (false, false, Some(user), None) => {
                let user = UserId::parse(user.trim())
                    .map_err(|error| invalid(format!("user {error}.")))?;
                Ok(Replay::User(user))
            }
            (false, false, None, Some(Since::Seconds(since))) => Ok(Replay::Since(since)),
            (false, false, None, Some(Since::Text(text))) => {
                let text = text.trim();
                let seconds = text.parse().or_else(|_| settings::time_or_ago(text, now));
                let seconds = seconds.map_err(|problem| invalid(format!("since {problem}.")))?;
                Ok(Replay::Since(seconds))
            }
            _ => Err(invalid(
                "Say what to replay, one of dead: true, all: true, user: a user ID, since: a time.",
            )),
        }
    }
}

/// Replays pushers. The body or the query says which.
#[utoipa::path(
    post,
    path = "/api/internal/replay",
    tag = "operator",
    security(("admin_token" = [])),
    summary = "Make the worker compare pushers with what the homeserver holds, and set or delete those that differ",
    description = "",
    request_body = ReplayRequest,
    responses((status = 200, body = Replayed), BodyError)
)]
pub(super) async fn replay(
    State(admin): State<Admin>,
    query: Result<Query<ReplayRequest>, QueryRejection>,
    body: BodyBytes,
) -> Result<Json<Replayed>, AdminError> {
    let request = if body.as_ref().is_ok_and(|body| body.trim_ascii().is_empty()) {
        query.map_err(|_| invalid("The query cannot be read."))?.0
    } else {
        json(body, r#"The body must be JSON such as {"dead": true}."#)?
    };
    let replay = request.selection(admin.store.clock().unix())?;
    let replayed = replay_all(&admin.changes, &admin.store, replay).await?;
    Ok(Json(Replayed { replayed }))
}

/// Replays chunk by chunk, also if the operator hangs up. Returns the number of pushers.
pub(super) async fn replay_all(
    changes: &Changes,
    store: &Store,
    replay: Replay,
) -> Result<usize, StoreError> {
    let store = store.clone();
    let replaying = async move {
        let (mut after, mut count) = (0, 0);
        while let Some((last, chunk)) = store.replay_chunk(&replay, after).await? {
            after = last;
            count += chunk;
        }
        tracing::info!(?replay, count, "admin: replay");
        Ok(count)
    };
    changes.to_the_end(replaying).await
}
