//! Carries out one notify request: finds the tokens, pushes to all devices side by side, settles the answer.
//!
//! Everything here serves two rules. A push is lost if we answer 200 without having sent it, so whatever is
//! uncertain is answered so that the homeserver tries again. A phone falls silent for good if we reject its
//! token wrongly, so only what is certain is rejected.

mod badge;
mod lines;
mod persistent;
mod verdict;

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesOrdered};
use matrix2acrobits_shared::{clock::Clock, flow::PushTarget, ids};
use matrix2acrobits_store::StoreError;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    lines::Lines,
    persistent::Persistent,
    verdict::{Fault, Settled, Verdict, answer, outcome},
};
use crate::{
    arrivals::Journal,
    identity::Extensions,
    metrics::{DeviceOutcome, Notify, Reason},
    notify::{
        badges::Badges,
        cache::{Lookup, MarkedDead, Tokens},
        dedupe::{Dedupe, EventKey, Turn},
        guard::{MassGuard, Seen},
        notification::{Device, Notification, ParseError},
        pnm::{
            client::PnmClient,
            outcome::Outcome,
            translate::{cut, translate},
            words,
        },
        texts::Texts,
        trust::{Marked, Trust},
    },
};

/// The homeserver waits 60 s for an answer, and holds back the user's other pushes meanwhile.
pub(crate) const TIME_FOR_A_REQUEST: Duration = Duration::from_secs(15);
/// Requests at a time. They take about 48 KiB each with their connections, and more are a sign that PNM hangs.
const REQUESTS_AT_A_TIME: usize = 2048;
/// Devices of one request at a time. Synapse sends one per request.
const DEVICES_AT_A_TIME: usize = 32;
/// Strangers' pushes at a time: to tokens that belong to nobody, without our mark.
const STRANGERS_AT_A_TIME: usize = 64;
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

    /// Remembers that a token is gone until its phone reports again, unless it has since PNM was `asked`. `pushed_to` is the
    /// selector that the homeserver's pusher carries.
    fn mark_dead(
        &self,
        target: &PushTarget,
        pushed_to: Option<&str>,
        asked: std::time::Instant,
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
        asked: std::time::Instant,
    ) -> Result<MarkedDead, StoreError> {
        Self::mark_dead(self, target, pushed_to, asked).await
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
    /// It has no mark of ours, and the budget of such notifications is used up for that long: 429.
    Limited(Duration),
    /// It has no mark of ours, and that is required: 403.
    Forbidden,
}

/// Carries out notify requests; a cheap handle.
#[derive(Debug)]
pub(crate) struct Deliverer<T = Tokens> {
    shared: Arc<Shared<T>>,
    requests: Arc<Semaphore>,
}

/// The settings that deliveries go by.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The words for what has none of its own.
    pub(crate) texts: Texts,
    /// How long a request takes at most: [`TIME_FOR_A_REQUEST`].
    pub(crate) time: Duration,
    /// Tells our pushers' notifications from others.
    pub(crate) trust: Arc<Trust>,
    /// Told of pushes that PNM took.
    pub(crate) journal: Arc<Journal>,
    /// Tells which calls ring no more.
    pub(crate) clock: Clock,
    /// Whether phones get counts without a message.
    pub(crate) badge_updates: bool,
    /// Names senders by their extensions.
    pub(crate) extensions: Option<Extensions>,
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
    pnm: Arc<PnmClient>,
    rules: Rules,
    dedupe: Arc<Dedupe<Verdict>>,
    badges: Badges<EventKey>,
    guard: Arc<MassGuard>,
    /// Places for strangers' pushes: they must not keep others waiting.
    strangers: Semaphore,
    /// Counts the requests that are being carried out, also those whose client has gone.
    tracker: TaskTracker,
    stopping: CancellationToken,
    metrics: Notify,
    lines: Lines,
}

impl<T: TokenBook> Deliverer<T> {
    /// A deliverer that takes requests until `stopping` is cancelled. To stop, wait for `tracker` after that.
    pub(crate) fn new(
        tokens: T,
        dedupe: Arc<Dedupe<Verdict>>,
        pnm: Arc<PnmClient>,
        rules: Rules,
        tracker: TaskTracker,
        stopping: CancellationToken,
    ) -> Self {
        let now = Instant::now().into_std();
        Self {
            shared: Arc::new(Shared {
                tokens,
                pnm,
                rules,
                dedupe,
                badges: Badges::default(),
                guard: Arc::new(MassGuard::new(now)),
                strangers: Semaphore::new(STRANGERS_AT_A_TIME),
                tracker,
                stopping,
                metrics: Notify::new(),
                lines: Lines::default(),
            }),
            requests: Arc::new(Semaphore::new(REQUESTS_AT_A_TIME)),
        }
    }

    /// Lets the guard forget what is old. Runs forever.
    pub(crate) fn run_guard(&self) -> impl Future<Output = ()> + Send + use<T> {
        Arc::clone(&self.shared.guard).run()
    }

    /// Carries out the request in `body` and returns the pushkeys to reject.
    pub(crate) async fn deliver(&self, body: Bytes) -> Result<Vec<String>, DeliveryError> {
        if self.shared.stopping.is_cancelled() {
            self.shared.metrics.devices(DeviceOutcome::Unavailable, 1);
            return Err(DeliveryError::Unavailable("stopping"));
        }
        let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
            self.shared.metrics.devices(DeviceOutcome::Unavailable, 1);
            self.shared.lines.overloaded();
            return Err(DeliveryError::Unavailable("overloaded"));
        };
        let deadline = Instant::now() + self.shared.rules.time;
        let shared = Arc::clone(&self.shared);
        // What we have begun to send must be remembered as sent, or the retry rings again, even if the homeserver
        // hangs up or the time is over.
        let work = async move {
            let result = shared.carry_out(&body, deadline).await;
            drop(permit);
            result
        };
        match timeout_at(deadline, Persistent::new(work, &self.shared.tracker)).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => {
                // The panic's own message is on standard error.
                tracing::error!("a request ended in a panic");
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
        self: &Arc<Self>,
        body: &[u8],
        deadline: Instant,
    ) -> Result<Vec<String>, DeliveryError> {
        let notification = Notification::parse(body).map_err(DeliveryError::Malformed)?;
        let devices = &notification.devices[..];
        let event = Event {
            id: notification.event_id.as_deref(),
            notification: &notification,
            deadline,
        };
        // Synapse names one device a request.
        if let [device] = devices {
            let marked = self.look(&event, device)?;
            if event.id.is_none() {
                return Ok(self.without_event(&notification, &[marked]).await);
            }
            let verdict = self.device(&event, device, marked).await;
            return self.settle(&event, &[verdict]);
        }
        let looks = devices.iter().map(|device| self.look(&event, device));
        let marks = looks.collect::<Result<Vec<_>, _>>()?;
        if event.id.is_none() {
            return Ok(self.without_event(&notification, &marks).await);
        }
        let mut waiting = devices.iter().zip(marks);
        let mut under_way = FuturesOrdered::new();
        let mut verdicts = Vec::with_capacity(devices.len());
        loop {
            for (device, marked) in waiting.by_ref().take(DEVICES_AT_A_TIME - under_way.len()) {
                under_way.push_back(self.device(&event, device, marked));
            }
            let Some(verdict) = under_way.next().await else {
                return self.settle(&event, &verdicts);
            };
            verdicts.push(verdict);
        }
    }

    /// A badge update rings nobody; neither does an event whose id cannot be told.
    async fn without_event(
        self: &Arc<Self>,
        notification: &Notification<'_>,
        marks: &[Marked],
    ) -> Vec<String> {
        let devices = notification.devices.len();
        let outcome = if notification.odd_event_id {
            tracing::warn!(devices, "a notification is lost: its event id is no text");
            DeviceOutcome::OddEventId
        } else {
            if let (true, Some(unread)) = (self.rules.badge_updates, notification.unread) {
                for (device, marked) in notification.devices.iter().zip(marks) {
                    self.update_badge(device, *marked, unread).await;
                }
            }
            DeviceOutcome::Badge
        };
        self.metrics.devices(outcome, devices as u64);
        Vec::new()
    }

    /// Looks at the mark of a device; one without may be a reason to refuse the request.
    fn look(&self, event: &Event<'_>, device: &Device<'_>) -> Result<Marked, DeliveryError> {
        let trust = &self.rules.trust;
        let marked = trust.look(&device.pushkey, device.mark.as_deref());
        self.metrics.mark(marked);
        if !trust.refuses(marked) {
            return Ok(marked);
        }
        let devices = event.notification.devices.len();
        self.metrics
            .devices(DeviceOutcome::Forbidden, devices as u64);
        tracing::warn!(
            reason = "no_mark",
            devices,
            pushkey = %ids::log_id(&device.pushkey),
            event_id = event.logged_id(),
            "refused: no mark of ours (NOTIFY_AUTH=require)"
        );
        Err(DeliveryError::Forbidden)
    }

    async fn device(&self, event: &Event<'_>, device: &Device<'_>, marked: Marked) -> Verdict {
        if Instant::now() >= event.deadline {
            return Err(Fault::Retry("deadline"));
        }
        let (app_id, pushkey) = (&*device.app_id, &*device.pushkey);
        let found = self
            .tokens
            .find(app_id, pushkey, device.selector.as_deref())
            .await;
        let now = Instant::now().into_std();
        let target = match found {
            Ok(Lookup::Live(target)) => target,
            Ok(Lookup::Dead) => {
                self.guard.note(app_id, pushkey, Seen::Known, now);
                return Ok(Settled::Rejected(Reason::DeadToken));
            }
            Ok(Lookup::Unknown) if self.guard.note(app_id, pushkey, Seen::Unknown, now) => {
                return Ok(Settled::Rejected(self.unknown(marked)));
            }
            Ok(Lookup::Unknown) => return Err(Fault::Unavailable("mass_unknown")),
            Ok(Lookup::NeverHeldAny) => return Err(Fault::Unavailable("no_tokens_yet")),
            Err(error) => return Err(self.lines.database_failed(&error)),
        };
        // By the row and not by what the request says: an old and a new pusher of one token ring it once.
        let key = self.dedupe.key([
            event.id.unwrap_or_default(),
            target.app_id.as_str(),
            target.pushkey.as_str(),
            target.selector.as_str(),
        ]);
        match self.dedupe.turn(key, now) {
            Turn::Sent => Ok(Settled::Duplicate),
            Turn::Shared(result) => match result.await {
                Ok(Ok(Settled::Delivered)) => Ok(Settled::Duplicate),
                Ok(verdict) => verdict,
                Err(_) => Err(Fault::Retry("panic")),
            },
            Turn::First(lead) => {
                let verdict = self.push(event, device, marked, &target).await;
                let success = verdict == Ok(Settled::Delivered);
                lead.finish(&verdict, success, Instant::now().into_std());
                verdict
            }
        }
    }

    /// Why an unknown pushkey is rejected. Strangers' made-up ones are counted apart: they are no sign that phones fall
    /// silent.
    fn unknown(&self, marked: Marked) -> Reason {
        if self.rules.trust.doubts(marked) {
            Reason::UnknownUnmarked
        } else {
            Reason::UnknownPushkey
        }
    }

    async fn push(
        &self,
        event: &Event<'_>,
        device: &Device<'_>,
        marked: Marked,
        target: &PushTarget,
    ) -> Verdict {
        let now = Instant::now().into_std();
        let trust = &self.rules.trust;
        if let Err(wait) = trust.take(marked, target, now) {
            return Err(Fault::Limited(wait));
        }
        let stranger = trust.is_strangers(marked, target);
        let _place = match stranger.then(|| self.strangers.try_acquire()) {
            Some(Err(_)) => return Err(Fault::Unavailable("overloaded")),
            Some(Ok(place)) => Some(place),
            None => None,
        };
        if let Some(age) = words::over(event.notification, self.rules.clock.unix_millis()) {
            return Ok(Settled::CallOver(age));
        }
        self.forget_badge(target);
        let extensions = self.rules.extensions.as_ref().map(Extensions::list);
        let sender = event.notification.sender.as_deref();
        let extension = extensions
            .as_ref()
            .and_then(|list| list.get(sender?))
            .map(String::as_str);
        let texts = &self.rules.texts;
        let message = translate(target, event.notification, device, texts, extension);
        let outcome = self.pnm.send(&message).await;
        // What PNM says of strangers' tokens must not speak for the others.
        let believed = stranger || self.note(target, outcome);
        match outcome {
            Outcome::Sent => {
                self.rules.journal.pushed(target, event.id);
                Ok(Settled::Delivered)
            }
            Outcome::BadMessage => Ok(Settled::BadMessage),
            Outcome::Trouble(trouble) => Err(Fault::Retry(trouble.as_str())),
            Outcome::TokenGone if !believed => Err(Fault::Retry("mass_rejection")),
            // First the memory, then the answer: the homeserver forgets the pusher for good.
            Outcome::TokenGone => {
                let pushed_to = device.selector.as_deref();
                match self.tokens.mark_dead(target, pushed_to, now).await {
                    Ok(MarkedDead::Marked) => Ok(Settled::Rejected(Reason::TokenGone)),
                    Ok(MarkedDead::ReportedSince) => Err(Fault::Retry("reported_since")),
                    Err(error) => Err(self.lines.database_failed(&error)),
                }
            }
        }
    }

    /// Notes what PNM says of a token. False if it says that it is gone, and must not be believed.
    fn note(&self, target: &PushTarget, outcome: Outcome) -> bool {
        let seen = match outcome {
            Outcome::Sent => Seen::Sent,
            Outcome::TokenGone => Seen::Gone,
            Outcome::BadMessage | Outcome::Trouble(_) => Seen::Known,
        };
        let (app_id, pushkey) = (target.app_id.as_str(), target.pushkey.as_str());
        let now = Instant::now().into_std();
        self.guard.note(app_id, pushkey, seen, now)
    }

    /// Counts and logs what became of the devices, and makes one answer of it.
    fn settle(
        &self,
        event: &Event<'_>,
        verdicts: &[Verdict],
    ) -> Result<Vec<String>, DeliveryError> {
        let answer = answer(&event.notification.devices, verdicts);
        for (device, verdict) in event.notification.devices.iter().zip(verdicts) {
            self.metrics.devices(outcome(verdict).0, 1);
            // With another device in trouble the answer rejects nobody yet, and it may spare a pushkey.
            if let (Ok(Settled::Rejected(reason)), Ok(rejected)) = (verdict, &answer)
                && rejected.iter().any(|key| *key == device.pushkey)
            {
                self.metrics.rejection(*reason);
            }
        }
        self.lines.tell(event, verdicts);
        answer
    }
}

/// The event that a request is about.
struct Event<'a> {
    /// Absent for a badge update.
    id: Option<&'a str>,
    notification: &'a Notification<'a>,
    deadline: Instant,
}

impl<'a> Event<'a> {
    fn logged_id(&self) -> Option<&'a str> {
        self.id.map(|id| cut(id, MAX_LOGGED_BYTES))
    }
}

#[cfg(test)]
pub(crate) mod tests;
