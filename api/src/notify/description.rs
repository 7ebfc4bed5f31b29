//! What the OpenAPI description says of a notification, which [`super::notification`] reads by hand.
#![expect(
    dead_code,
    reason = "these types carry descriptions; nobody makes them"
)]

use serde::Deserialize;
use utoipa::ToSchema;

/// A notification as the Matrix push gateway API has it; what is not listed, null or of another type is ignored.
#[derive(Deserialize, ToSchema)]
pub(super) struct NotifyRequest {
    notification: Notification,
}

#[derive(Deserialize, ToSchema)]
struct Notification {
    /// Absent or empty: a badge update, which rings nobody
    event_id: Option<String>,
    room_id: Option<String>,
    sender: Option<String>,
    sender_display_name: Option<String>,
    /// Its body is the text
    #[schema(value_type = Option<Object>)]
    content: Option<serde_json::Value>,
    /// Its unread is the badge
    #[schema(value_type = Option<Object>)]
    counts: Option<serde_json::Value>,
    #[schema(min_items = 1, max_items = 100)]
    devices: Vec<Device>,
}

#[derive(Deserialize, ToSchema)]
struct Device {
    #[schema(min_length = 1)]
    app_id: String,
    #[schema(min_length = 1)]
    pushkey: String,
    /// Its selector tells two accounts on one phone apart; its mark shows that the pusher is ours
    #[schema(value_type = Option<Object>)]
    data: Option<serde_json::Value>,
    /// Its sound is the push's
    #[schema(value_type = Option<Object>)]
    tweaks: Option<serde_json::Value>,
}
