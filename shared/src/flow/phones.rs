//! What is known of each phone: pages for the operator, and the batches of pushes and receipts behind them.

use super::{Result, Transaction};
use crate::{
    ids::{Device, Pushkey, Selector},
    rules::arrival::{Arrivals, Facts, Standing},
};

/// A phone, its pusher, and what is known of its pushes. Times are seconds since 1970.
#[derive(Debug, Clone)]
pub struct PhoneListing {
    /// The id of its row.
    pub id: i64,
    /// The account on the phone.
    pub selector: String,
    /// The phone, where it says so.
    pub device: String,
    /// The user whose it is, from the mapping or the login.
    pub user_id: Option<String>,
    /// App id for messages.
    pub app_id: Option<String>,
    /// Token for messages.
    pub token: Option<String>,
    /// Whether PNM called that token gone.
    pub dead: bool,
    /// Last report that was noted.
    pub reported_at: i64,
    /// State of its pusher, if there is one.
    pub pusher: Option<String>,
    /// The last push that PNM took.
    pub pushed_at: Option<i64>,
    /// The first push since the last receipt.
    pub waiting_since: Option<i64>,
    /// The last receipt.
    pub received_at: Option<i64>,
    /// How many receipts.
    pub receipts: i64,
}

impl PhoneListing {
    /// Where it stands at this time.
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

/// What a receipt says of its phone: a token, or else a selector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NamedPhone {
    /// The account on the phone.
    pub selector: Option<Selector>,
    /// The phone.
    pub device: Option<Device>,
    /// Its token for messages.
    pub token: Option<Pushkey>,
}

/// Where the next page of silent phones begins: after a phone that has waited since a time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SilentCursor {
    /// Seconds since 1970.
    pub since: i64,
    /// The id of its row.
    pub phone: i64,
}

/// Writes down what happened at these phones, by the ids of their rows. Rows that are gone are passed over.
pub async fn note_arrivals(tx: &mut dyn Transaction, arrivals: &[(i64, Arrivals)]) -> Result<()> {
    tx.note_arrivals(arrivals).await
}
