//! Test pushes: a real push to each phone of a user or selector, through the running api's client for PNM. The caller
//! gets PNM's responses, and they have no effect: no token is marked, no event is remembered as sent, and no guard
//! counts them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use matrix2acrobits_shared::{
    flow::{PhoneListing, PushTarget},
    ids::{AppId, Pushkey, Selector, UserId, log_id},
};
use matrix2acrobits_store::{Store, StoreError};
use serde::{Deserialize, Serialize};
use tokio::time::timeout_at;
use utoipa::ToSchema;

use crate::{
    arrivals::Journal,
    limiter::{Limit, Limiter, Rate},
    notify::pnm::{
        client::PnmClient,
        outcome::{Outcome, Trouble},
        translate::{MAX_MESSAGE_BYTES, cut},
    },
};

/// The limit for each token.
const RATE: Rate = Rate {
    at_once: 1,
    one_per: Duration::from_secs(10),
};
/// The most phones of one test. No person has more phones.
const MOST_PHONES: u32 = 100;
/// The most pushes at the same time.
const AT_A_TIME: usize = 8;
/// How long a test push may take: less than the 50 s of a request, so that the caller learns what became of each phone.
const TIME: Duration = Duration::from_secs(40);
const TEXT: &str = "Test push from matrix2acrobits";

/// Whose phones to push to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum To {
    User(UserId),
    Selector(Selector),
}

/// What to push.
#[derive(Debug, Clone)]
pub(crate) struct TestPush {
    pub(crate) to: To,
    /// The text to show. Empty means the default text.
    pub(crate) text: String,
    /// Whether to send a message, which wakes the app, instead of a text that is only shown.
    pub(crate) message: bool,
}

/// The result of a test push at one phone.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tested {
    /// The hash of the phone's token, or of its selector if it has no token, as in the logs
    pub(crate) phone: String,
    #[schema(required)]
    pub(crate) user_id: Option<String>,
    #[schema(required)]
    pub(crate) app_id: Option<String>,
    /// sent, token_gone, bad_message, or the kind of trouble with PNM. With no_token, limited and not_tried nothing was sent
    pub(crate) outcome: String,
    /// The outcome in a sentence for people
    pub(crate) words: String,
    /// Not part of the response. The canary needs it.
    #[serde(skip)]
    pub(crate) row: i64,
}

impl Tested {
    /// Whether PNM accepted the push.
    pub(crate) fn sent(&self) -> bool {
        self.outcome == Outcome::Sent.as_str()
    }
}

/// Why nothing was pushed.
#[derive(Debug)]
pub(crate) enum TestError {
    /// No phone has reported for this user or selector.
    Unknown,
    /// All tokens had a test push too recently. Wait this long.
    TooSoon(Duration),
    Store(StoreError),
}

/// Sends test pushes.
#[derive(Debug)]
pub(crate) struct Tester {
    store: Store,
    pnm: Arc<PnmClient>,
    journal: Arc<Journal>,
    limiter: Limiter,
}

impl Tester {
    pub(crate) fn new(store: Store, pnm: Arc<PnmClient>, journal: Arc<Journal>) -> Self {
        Self {
            store,
            pnm,
            journal,
            limiter: Limiter::new(),
        }
    }

    /// Pushes to the phones, and returns a result for each.
    pub(crate) async fn send(&self, push: &TestPush) -> Result<Vec<Tested>, TestError> {
        let phones = self.phones(&push.to).await.map_err(TestError::Store)?;
        if phones.is_empty() {
            return Err(TestError::Unknown);
        }
        let text = match push.text.trim() {
            "" => TEXT,
            text => cut(text, MAX_MESSAGE_BYTES),
        };
        let id = push
            .message
            .then(|| format!("push-test-{:016x}", rand::random::<u64>()));
        let deadline = tokio::time::Instant::now() + TIME;
        let mut results = Vec::with_capacity(phones.len());
        for some in phones.chunks(AT_A_TIME) {
            let mut each = Vec::with_capacity(some.len());
            for phone in some {
                each.push(self.one(phone, text, id.as_deref(), deadline));
            }
            results.extend(join_all(each).await);
        }
        let waits: Vec<_> = results.iter().filter_map(|(_, wait)| *wait).collect();
        if waits.len() == results.len()
            && let Some(wait) = waits.into_iter().min()
        {
            return Err(TestError::TooSoon(wait));
        }
        Ok(results.into_iter().map(|(tested, _)| tested).collect())
    }

    async fn phones(&self, to: &To) -> Result<Vec<PhoneListing>, StoreError> {
        match to {
            To::User(user) => self.store.phones_of_user(user, 0, MOST_PHONES).await,
            To::Selector(selector) => self.store.phones_of_selector(selector, MOST_PHONES).await,
        }
    }

    async fn one(
        &self,
        phone: &PhoneListing,
        text: &str,
        id: Option<&str>,
        deadline: tokio::time::Instant,
    ) -> (Tested, Option<Duration>) {
        let tested = |outcome: &str, words: String| Tested {
            phone: log_id(phone.token.as_ref().unwrap_or(&phone.selector)).to_string(),
            user_id: phone.user_id.clone(),
            app_id: phone.app_id.clone(),
            outcome: outcome.to_owned(),
            words,
            row: phone.id,
        };
        let Some(target) = target(phone) else {
            let words = "Nothing was sent: this phone has reported no token for messages.";
            return (tested("no_token", words.into()), None);
        };
        if tokio::time::Instant::now() >= deadline {
            let words = "Nothing was sent: PNM took too long for the phones before this one.";
            return (tested("not_tried", words.into()), None);
        }
        let limit = Limit {
            key: self.limiter.key([
                target.app_id.as_str().as_bytes(),
                target.pushkey.as_str().as_bytes(),
            ]),
            rate: RATE,
        };
        if let Err(wait) = self.limiter.take(&[limit], Instant::now()) {
            let words = format!(
                "Nothing was sent: this token had a test push less than {} s ago.",
                RATE.one_per.as_secs()
            );
            return (tested("limited", words), Some(wait));
        }
        let message = TestMessage::new(&target, text, id);
        let outcome = timeout_at(deadline, self.pnm.send(&message)).await;
        let outcome = outcome.unwrap_or(Outcome::Trouble(Trouble::Timeout));
        if let (Outcome::Sent, Some(id)) = (outcome, id) {
            self.journal.tested(&target, id);
        }
        let pushkey = target.pushkey.log_id();
        tracing::info!(%pushkey, outcome = outcome.as_str(), "admin: test push");
        (tested(outcome.as_str(), words(outcome).into()), None)
    }
}

/// Where to push. None without a token.
fn target(phone: &PhoneListing) -> Option<PushTarget> {
    Some(PushTarget {
        row_id: phone.id,
        report: 0,
        selector: Selector::parse(&phone.selector).ok()?,
        app_id: AppId::parse(phone.app_id.as_deref()?).ok()?,
        pushkey: Pushkey::parse(phone.token.as_deref()?).ok()?,
        owned: phone.user_id.is_some(),
        dead: phone.dead,
    })
}

/// The message to PNM. A text that is only shown needs no selector, and makes the app fetch nothing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct TestMessage<'a> {
    #[serde(rename = "verb")]
    verb: &'static str,
    app_id: &'a str,
    device_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<&'a str>,
    sound: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

impl<'a> TestMessage<'a> {
    /// Makes a message if there is an id, and otherwise a text that is only shown.
    fn new(target: &'a PushTarget, message: &'a str, id: Option<&'a str>) -> Self {
        let verb = match id {
            Some(_) => "NotifyTextMessage",
            None => "NotifyGenericTextMessage",
        };
        Self {
            verb,
            app_id: target.app_id.as_str(),
            device_token: target.pushkey.as_str(),
            selector: id.map(|_| target.selector.as_str()),
            sound: "default",
            message,
            content_type: id.map(|_| "text/plain"),
            id,
        }
    }
}

/// PNM's response in a sentence for people.
fn words(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Sent => "PNM took the push: look at the phone.",
        Outcome::TokenGone => {
            "PNM says that the token is gone: start the app, so that it reports a new one."
        }
        Outcome::BadMessage => "PNM does not understand the push: is the app id right?",
        Outcome::Trouble(trouble) => match trouble {
            Trouble::RateLimited => "PNM says that there are too many pushes (429).",
            Trouble::ServerError => "PNM has an error of its own (5xx).",
            Trouble::Redirect => "PNM_URL leads to a redirect: it is not PNM's address.",
            Trouble::UnexpectedCode => "PNM answered with a code that nobody knows.",
            Trouble::Contradiction => "PNM's HTTP status and its code say different things.",
            Trouble::Unreadable => "The answer is not PNM's: is PNM_URL right, is there a proxy?",
            Trouble::Timeout => {
                "PNM did not answer in time (PNM_TIMEOUT, and 40 s for all phones)."
            }
            Trouble::Connection => "There is no connection to PNM, or it broke.",
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_needs_no_selector_and_a_message_does() {
        let target = PushTarget {
            row_id: 1,
            report: 0,
            selector: Selector::parse("sel").unwrap(),
            app_id: AppId::parse("app").unwrap(),
            pushkey: Pushkey::parse("key").unwrap(),
            owned: true,
            dead: false,
        };
        let json_of = |id| serde_json::to_value(TestMessage::new(&target, "Hi", id)).unwrap();
        let text = json!({"verb": "NotifyGenericTextMessage", "AppId": "app", "DeviceToken": "key",
            "Sound": "default", "Message": "Hi"});
        assert_eq!(json_of(None), text);
        let message = json!({"verb": "NotifyTextMessage", "AppId": "app", "DeviceToken": "key", "Selector": "sel",
            "Sound": "default", "Message": "Hi", "ContentType": "text/plain", "Id": "i"});
        assert_eq!(json_of(Some("i")), message);
    }
}
