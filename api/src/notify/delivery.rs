//! Carries out one notify request: finds the tokens, pushes to all devices side by side, settles the answer.
//!
//! Everything here serves two rules. A push is lost if we answer 200 without having sent it, so whatever is
//! uncertain is answered so that the homeserver tries again. A phone falls silent for good if we reject its
//! token wrongly, so only what is certain is rejected.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesOrdered};
use matrix2acrobits_shared::{flow::PushTarget, ids, process::logs::Chain};
use matrix2acrobits_store::StoreError;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    metrics::{DeviceOutcome, Notify, Reason},
    notify::{
        cache::{Lookup, MarkedDead, Tokens},
        dedupe::{self, Dedupe, Turn},
        guard::MassGuard,
        notification::{Device, Notification, ParseError},
        pnm::{
            client::PnmClient,
            outcome::Outcome,
            translate::{cut, translate},
        },
    },
};

/// The homeserver waits 60 s for an answer, and holds back the user's other pushes meanwhile.
const TIME_FOR_A_REQUEST: Duration = Duration::from_secs(15);
/// Requests at a time. They cost about 10 KiB each, and more than these are a sign that PNM hangs.
const REQUESTS_AT_A_TIME: usize = 2048;
/// Devices of one request at a time. Synapse sends one per request.
const DEVICES_AT_A_TIME: usize = 32;
/// Longest part of an event ID that is logged; by the specification there is no longer one.
const MAX_LOGGED_BYTES: usize = 255;

/// Where the tokens are; a trait, so that tests can do without a database.
pub(crate) trait TokenBook: Send + Sync + 'static {
    /// Looks a pushkey up.
    fn find(
        &self,
        app_id: &str,
        pushkey: &str,
        selector: Option<&str>,
    ) -> impl Future<Output = Result<Lookup, StoreError>> + Send;

    /// Remembers that a token is gone until its phone reports again. `pushed_to` is the selector that the
    /// homeserver's pusher carries.
    fn mark_dead(
        &self,
        target: &PushTarget,
        pushed_to: Option<&str>,
    ) -> impl Future<Output = Result<MarkedDead, StoreError>> + Send;
}

impl TokenBook for Tokens {
    async fn find(
        &self,
        app_id: &str,
        pushkey: &str,
        selector: Option<&str>,
    ) -> Result<Lookup, StoreError> {
        Self::find(self, app_id, pushkey, selector).await
    }

    async fn mark_dead(
        &self,
        target: &PushTarget,
        pushed_to: Option<&str>,
    ) -> Result<MarkedDead, StoreError> {
        Self::mark_dead(self, target, pushed_to).await
    }
}

/// Why a request has no `rejected` list for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeliveryError {
    /// It cannot be read, and never will be.
    Malformed(ParseError),
    /// PNM did not say yes or no: 502.
    Retry(&'static str),
    /// We cannot: 503.
    Unavailable(&'static str),
}

/// Carries out notify requests; a cheap handle.
#[derive(Debug)]
pub(crate) struct Deliverer<T = Tokens> {
    shared: Arc<Shared<T>>,
    requests: Arc<Semaphore>,
}

impl<T> Clone for Deliverer<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            requests: Arc::clone(&self.requests),
        }
    }
}

#[derive(Debug)]
struct Shared<T> {
    tokens: T,
    pnm: PnmClient,
    /// The text for a notification that has none; empty for none.
    fallback: Box<str>,
    dedupe: Dedupe<Verdict>,
    guard: MassGuard,
    /// Counts the requests that are being carried out, also those whose client has gone.
    tracker: TaskTracker,
    stopping: CancellationToken,
    metrics: Notify,
}

/// What became of a device.
type Verdict = Result<Settled, Fault>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Delivered,
    Duplicate,
    BadMessage,
    Rejected(Reason),
}

/// Why nothing is certain; with the word for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Retry(&'static str),
    Unavailable(&'static str),
}

impl<T: TokenBook> Deliverer<T> {
    /// A deliverer that takes requests until `stopping` is cancelled. Who stops waits for `tracker` then.
    pub(crate) fn new(
        tokens: T,
        pnm: PnmClient,
        fallback: &str,
        tracker: TaskTracker,
        stopping: CancellationToken,
    ) -> Self {
        let now = Instant::now().into_std();
        Self {
            shared: Arc::new(Shared {
                tokens,
                pnm,
                fallback: fallback.into(),
                dedupe: Dedupe::new(dedupe::CAPACITY, now),
                guard: MassGuard::new(now),
                tracker,
                stopping,
                metrics: Notify::new(),
            }),
            requests: Arc::new(Semaphore::new(REQUESTS_AT_A_TIME)),
        }
    }

    /// Carries out the request in `body` and returns the pushkeys to reject.
    pub(crate) async fn deliver(&self, body: Bytes) -> Result<Vec<String>, DeliveryError> {
        if self.shared.stopping.is_cancelled() {
            self.shared.metrics.devices(DeviceOutcome::Unavailable, 1);
            return Err(DeliveryError::Unavailable("stopping"));
        }
        let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
            self.shared.metrics.devices(DeviceOutcome::Unavailable, 1);
            tracing::warn!(
                limit = REQUESTS_AT_A_TIME,
                "overloaded: a request was refused"
            );
            return Err(DeliveryError::Unavailable("overloaded"));
        };
        let deadline = Instant::now() + TIME_FOR_A_REQUEST;
        let shared = Arc::clone(&self.shared);
        // In a task of its own: what we have begun to send must be remembered as sent, or the retry rings
        // again, even if the homeserver hangs up or the time is over.
        let work = async move {
            let result = shared.carry_out(&body, deadline).await;
            drop(permit);
            result
        };
        let work = self.shared.tracker.spawn(work.in_current_span());
        match timeout_at(deadline, work).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => {
                tracing::error!(%error, "a request ended in a panic");
                Err(DeliveryError::Retry("panic"))
            }
            Err(_) => {
                tracing::warn!("a request took too long: the homeserver is to try again");
                Err(DeliveryError::Retry("deadline"))
            }
        }
    }
}

impl<T: TokenBook> Shared<T> {
    async fn carry_out(
        &self,
        body: &[u8],
        deadline: Instant,
    ) -> Result<Vec<String>, DeliveryError> {
        let notification = Notification::parse(body).map_err(DeliveryError::Malformed)?;
        let devices = &notification.devices[..];
        let Some(event_id) = notification.event_id.as_deref() else {
            let outcome = if notification.odd_event_id {
                tracing::warn!(
                    devices = devices.len(),
                    "a notification is lost: its event id is no text"
                );
                DeviceOutcome::OddEventId
            } else {
                DeviceOutcome::Badge
            };
            self.metrics.devices(outcome, devices.len() as u64);
            return Ok(Vec::new());
        };
        let event = Event {
            id: event_id,
            notification: &notification,
            deadline,
        };
        if let [device] = devices {
            let verdict = self.device(&event, device).await;
            return self.settle(&event, &[verdict]);
        }
        let mut waiting = devices.iter();
        let mut under_way = FuturesOrdered::new();
        let mut verdicts = Vec::with_capacity(devices.len());
        loop {
            for device in waiting.by_ref().take(DEVICES_AT_A_TIME - under_way.len()) {
                under_way.push_back(self.device(&event, device));
            }
            let Some(verdict) = under_way.next().await else {
                return self.settle(&event, &verdicts);
            };
            verdicts.push(verdict);
        }
    }

    async fn device(&self, event: &Event<'_>, device: &Device<'_>) -> Verdict {
        if Instant::now() >= event.deadline {
            return Err(Fault::Retry("deadline"));
        }
        let (app_id, pushkey) = (&*device.app_id, &*device.pushkey);
        let found = self
            .tokens
            .find(app_id, pushkey, device.selector.as_deref())
            .await;
        let target = match found {
            Ok(Lookup::Live(target)) => target,
            Ok(Lookup::Dead) => return Ok(Settled::Rejected(Reason::DeadToken)),
            Ok(Lookup::Unknown) => return Ok(Settled::Rejected(Reason::UnknownPushkey)),
            Ok(Lookup::NeverHeldAny) => return Err(Fault::Unavailable("no_tokens_yet")),
            Err(error) => return Err(database_failed(&error)),
        };
        // By the row and not by what the request says: an old and a new pusher of one token ring it once.
        let key = self.dedupe.key([
            event.id,
            target.app_id.as_str(),
            target.pushkey.as_str(),
            target.selector.as_str(),
        ]);
        match self.dedupe.turn(key, Instant::now().into_std()) {
            Turn::Sent => Ok(Settled::Duplicate),
            Turn::Shared(result) => match result.await {
                Ok(Ok(Settled::Delivered)) => Ok(Settled::Duplicate),
                Ok(verdict) => verdict,
                Err(_) => Err(Fault::Retry("panic")),
            },
            Turn::First(lead) => {
                let verdict = self.push(event, device, &target).await;
                let success = verdict == Ok(Settled::Delivered);
                lead.finish(&verdict, success, Instant::now().into_std());
                verdict
            }
        }
    }

    async fn push(&self, event: &Event<'_>, device: &Device<'_>, target: &PushTarget) -> Verdict {
        let message = translate(target, event.notification, device, &self.fallback);
        let outcome = self.pnm.send(&message).await;
        let now = Instant::now().into_std();
        let (app_id, pushkey) = (target.app_id.as_str(), target.pushkey.as_str());
        match outcome {
            Outcome::Sent => {
                self.guard.sent(app_id, pushkey, now);
                Ok(Settled::Delivered)
            }
            Outcome::BadMessage => Ok(Settled::BadMessage),
            Outcome::Trouble(trouble) => Err(Fault::Retry(trouble.as_str())),
            Outcome::TokenGone if !self.guard.may_reject(app_id, pushkey, now) => {
                Err(Fault::Retry("mass_rejection"))
            }
            // First the memory, then the answer: the homeserver forgets the pusher for good.
            Outcome::TokenGone => {
                let pushed_to = device.selector.as_deref();
                match self.tokens.mark_dead(target, pushed_to).await {
                    Ok(MarkedDead::Marked) => Ok(Settled::Rejected(Reason::TokenGone)),
                    Ok(MarkedDead::ReportedSince) => Err(Fault::Retry("reported_since")),
                    Err(error) => Err(database_failed(&error)),
                }
            }
        }
    }

    /// Counts and logs what became of the devices, and makes one answer of it.
    fn settle(
        &self,
        event: &Event<'_>,
        verdicts: &[Verdict],
    ) -> Result<Vec<String>, DeliveryError> {
        let answer = answer(&event.notification.devices, verdicts);
        for (device, verdict) in event.notification.devices.iter().zip(verdicts) {
            let metrics = &self.metrics;
            match verdict {
                Ok(Settled::Delivered) => metrics.devices(DeviceOutcome::Delivered, 1),
                Ok(Settled::Duplicate) => metrics.devices(DeviceOutcome::Duplicate, 1),
                Ok(Settled::BadMessage) => {
                    metrics.devices(DeviceOutcome::Dropped, 1);
                    tracing::warn!(
                        reason = "bad_message",
                        pushkey = %ids::log_id(&device.pushkey),
                        event_id = event.logged_id(),
                        "PNM does not understand the message: dropped"
                    );
                }
                Ok(Settled::Rejected(reason)) => {
                    metrics.devices(DeviceOutcome::Rejected, 1);
                    // With another device in trouble the answer rejects nobody yet.
                    if answer.is_ok() {
                        metrics.rejection(*reason);
                        tracing::info!(
                            reason = reason.as_str(),
                            pushkey = %ids::log_id(&device.pushkey),
                            event_id = event.logged_id(),
                            "rejected"
                        );
                    }
                }
                Err(fault) => {
                    let (outcome, reason) = match fault {
                        Fault::Retry(reason) => (DeviceOutcome::Retry, reason),
                        Fault::Unavailable(reason) => (DeviceOutcome::Unavailable, reason),
                    };
                    metrics.devices(outcome, 1);
                    tracing::warn!(
                        reason,
                        pushkey = %ids::log_id(&device.pushkey),
                        event_id = event.logged_id(),
                        "not delivered: the homeserver is to try again"
                    );
                }
            }
        }
        answer
    }
}

/// The event that a request is about.
struct Event<'a> {
    id: &'a str,
    notification: &'a Notification<'a>,
    deadline: Instant,
}

impl<'a> Event<'a> {
    fn logged_id(&self) -> &'a str {
        cut(self.id, MAX_LOGGED_BYTES)
    }
}

/// One device in trouble puts the whole request off: the retry skips those that were delivered.
fn answer(devices: &[Device<'_>], verdicts: &[Verdict]) -> Result<Vec<String>, DeliveryError> {
    let mut retry = None;
    let mut rejected = Vec::new();
    for (device, verdict) in devices.iter().zip(verdicts) {
        match verdict {
            Err(Fault::Unavailable(reason)) => return Err(DeliveryError::Unavailable(reason)),
            Err(Fault::Retry(reason)) => retry = Some(DeliveryError::Retry(reason)),
            Ok(Settled::Rejected(_)) if !rejected.iter().any(|key| *key == device.pushkey) => {
                rejected.push(device.pushkey.clone().into_owned());
            }
            Ok(_) => {}
        }
    }
    retry.map_or(Ok(rejected), Err)
}

fn database_failed(error: &StoreError) -> Fault {
    tracing::error!(error = %Chain(error), "the database failed a notification");
    Fault::Unavailable("database")
}

#[cfg(test)]
pub(crate) mod tests;
