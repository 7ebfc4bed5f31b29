//! What we know about each phone: the listings for the operator, and the notes of pushes and receipts behind them.

use crate::{
    ids::{Device, Pushkey, Selector},
    rules::arrival::{Facts, Standing},
};

/// A phone, its pusher, and what we know about its pushes. Times are seconds since 1970.
#[derive(Debug, Clone)]
pub struct PhoneListing {
    /// The id of the phone's row.
    pub id: i64,
    /// The account on the phone.
    pub selector: String,
    /// The phone's name, empty if it reports none.
    pub device: String,
    /// The user who owns the row, by the mapping or a login.
    pub user_id: Option<String>,
    /// App id for messages.
    pub app_id: Option<String>,
    /// Token for messages.
    pub token: Option<String>,
    /// Whether PNM called that token gone.
    pub dead: bool,
    /// The last report that was noted.
    pub reported_at: i64,
    /// The state of the phone's pusher, if there is one.
    pub pusher: Option<String>,
    /// The last push that PNM accepted.
    pub pushed_at: Option<i64>,
    /// The first push since the last receipt.
    pub waiting_since: Option<i64>,
    /// The last receipt.
    pub received_at: Option<i64>,
    /// The number of receipts.
    pub receipts: i64,
}

impl PhoneListing {
    /// Where the phone stands at this time.
    pub fn standing(&self, now: i64) -> Standing {
        let facts = Facts {
            token: self.token.is_some() && self.app_id.is_some(),
            dead: self.dead,
            user: self.user_id.is_some(),
            pusher: self.pusher.as_deref(),
            pushed: self.pushed_at,
            waiting: self.waiting_since,
            received: self.received_at,
        };
        Standing::of(&facts, now)
    }
}

/// What a receipt says about its phone: a token, or otherwise a selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamedPhone {
    /// The account on the phone.
    pub selector: Option<Selector>,
    /// The phone.
    pub device: Option<Device>,
    /// The phone's token for messages.
    pub token: Option<Pushkey>,
}

/// Where the next page of silent phones begins: after this phone, which has been waiting since this time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SilentCursor {
    /// Seconds since 1970.
    pub since: i64,
    /// The id of the phone's row.
    pub phone: i64,
}
