//! What the OpenAPI description says of the fields of reports, which [`super::fields`] reads by hand.
#![expect(
    dead_code,
    reason = "these types carry descriptions; nobody makes them"
)]

use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

/// What a phone reports. Absent, or a placeholder that the app did not fill: what is stored stays. Empty: it goes,
/// and with token_msgs the pusher. Other spellings that Acrobits uses are accepted as well.
#[derive(Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Report {
    /// The account on the phone; at most 256 bytes
    #[schema(min_length = 1)]
    #[param(min_length = 1)]
    selector: String,
    /// Token for messages, the Matrix pushkey; at most 512 bytes; needs app_id_msgs. Also pushTokenOther, pushToken
    token_msgs: Option<String>,
    /// App id for messages; at most 64 characters. Also appid_msgs, appId_msgs, pushappid_other, pushappid
    app_id_msgs: Option<String>,
    /// Token for calls; stored only. Also pushTokenIncomingCall
    token_calls: Option<String>,
    /// App id for calls. Also appid_calls, appId_calls, pushappid_incoming_call
    app_id_calls: Option<String>,
    /// The phone, where an account is on several. Also installid, install_id
    device: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    username: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    password: Option<String>,
}

/// Which push arrived, and where: the selector or the token has to be there.
#[derive(Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Receipt {
    /// The account on the phone; at most 256 bytes
    selector: Option<String>,
    /// Token for messages; at most 512 bytes. Also pushTokenOther, pushToken, token
    token_msgs: Option<String>,
    /// The phone, where an account is on several. Also installid, install_id
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
    /// The account on the phone; at most 256 bytes
    #[schema(min_length = 1)]
    #[param(min_length = 1)]
    selector: String,
    /// The phone; absent: all phones with this account
    device: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    username: Option<String>,
    /// For REPORT_AUTH=nethcti and matrix
    password: Option<String>,
}
