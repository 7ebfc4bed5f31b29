//! The OpenAPI description of the fields of reports, which [`super::fields`] reads by hand.
#![expect(
    dead_code,
    reason = "these types only carry descriptions and are never created"
)]

use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

/// What a phone reports. An absent field, or a placeholder that the app did not fill, leaves the stored value as it is.
/// An empty field deletes the stored value, and an empty token_msgs also the pusher. Other spellings that Acrobits uses
/// are accepted as well.
#[derive(Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Report {
    /// The account on the phone, at most 256 bytes
    #[schema(min_length = 1)]
    #[param(min_length = 1)]
    selector: String,
    /// Token for messages, the Matrix pushkey. At most 512 bytes, needs app_id_msgs. Also pushTokenOther, pushToken, token
    token_msgs: Option<String>,
    /// App id for messages, at most 64 characters. Also appid_msgs, appId_msgs, pushappid_other, pushappid, appid
    app_id_msgs: Option<String>,
    /// Token for calls, which is only stored. Also pushTokenIncomingCall
    token_calls: Option<String>,
    /// App id for calls. Also appid_calls, appId_calls, pushappid_incoming_call
    app_id_calls: Option<String>,
    /// The phone's name, for an account on several phones. Also installid, install_id
    device: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    username: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    password: Option<String>,
}

/// Which push arrived, and on which phone. Needs the selector or the token.
#[derive(Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Receipt {
    /// The account on the phone, at most 256 bytes
    selector: Option<String>,
    /// Token for messages, at most 512 bytes. Also pushTokenOther, pushToken, token
    token_msgs: Option<String>,
    /// The phone's name, for an account on several phones. Also installid, install_id
    device: Option<String>,
    /// The id of the push. Also pushId, push_id, messageId, event_id
    id: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    username: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    password: Option<String>,
}

/// The account that was removed from the phone.
#[derive(Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Removal {
    /// The account on the phone, at most 256 bytes
    #[schema(min_length = 1)]
    #[param(min_length = 1)]
    selector: String,
    /// The phone's name. If absent, all phones with this account
    device: Option<String>,
    /// Token for messages. If present, a phone with this account that has another token by now stays
    token_msgs: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    username: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    password: Option<String>,
}
