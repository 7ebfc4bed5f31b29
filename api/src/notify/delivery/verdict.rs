//! What became of each device of a notification, and of all of them together: one answer and one line in the log.

use std::{
    cmp::Reverse,
    fmt,
    time::{Duration, Instant},
};

use matrix2acrobits_shared::ids;
use tracing::field::display;

use super::{DeliveryError, Event};
use crate::{
    http::seldom::Seldom,
    metrics::{DeviceOutcome, Reason},
    notify::notification::Device,
};

/// What became of a device.
pub(crate) type Verdict = Result<Settled, Fault>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settled {
    Delivered,
    Duplicate,
    BadMessage,
    /// A call that rings no more: the push would come too late. It began that long ago.
    CallOver(Duration),
    Rejected(Reason),
}

/// Why nothing is certain; with the word for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Retry(&'static str),
    Unavailable(&'static str),
    /// The budget is used up for that long.
    Limited(Duration),
}

/// The reason of a fault of our own database. [`super::Said`] tells of it at its level, however many requests meet it.
pub(super) const DATABASE: &str = "database";

/// Leaves one line for a request, whatever its devices: strangers can send many. The worst of them gives the line its
/// level and reason, and the others stand behind it.
pub(super) fn tell(event: &Event<'_>, verdicts: &[Verdict]) {
    let devices = &event.notification.devices[..];
    let worst = devices.iter().zip(verdicts).enumerate();
    let worst = worst.filter(|(_, (_, verdict))| severity(verdict) > Severity::Well);
    let Some((at, (device, verdict))) = worst.max_by_key(|(at, (_, verdict))| {
        // The first of equals.
        (severity(verdict), Reverse(*at))
    }) else {
        return;
    };
    let pushkey = ids::log_id(&device.pushkey);
    let (reason, event_id) = (outcome(verdict).1, event.logged_id());
    let others = Others {
        devices,
        verdicts,
        at,
    };
    let others = (devices.len() > 1).then(|| display(others));
    // How many such requests came since the last line.
    let times = match seldom(reason).map(|lines| lines.due(Instant::now())) {
        None => None,
        Some(Some(times)) => Some(times),
        Some(None) => {
            tracing::debug!(reason, %pushkey, event_id, others, "rejected or put off");
            return;
        }
    };
    match severity(verdict) {
        Severity::Well => {}
        Severity::TooLate => {
            let age = match verdict {
                Ok(Settled::CallOver(age)) => Some(age.as_secs()),
                _ => None,
            };
            tracing::info!(
                reason,
                %pushkey,
                event_id,
                age_s = age,
                others,
                "a call that rings no more: not pushed"
            );
        }
        Severity::Rejected => {
            tracing::info!(reason, %pushkey, event_id, others, times, "rejected");
        }
        Severity::Dropped => tracing::warn!(
            reason,
            %pushkey,
            event_id,
            others,
            "PNM does not understand the message: dropped"
        ),
        Severity::PutOff if reason == DATABASE => {
            tracing::debug!(reason, %pushkey, event_id, others, "{PUT_OFF}");
        }
        Severity::PutOff => {
            tracing::warn!(reason, %pushkey, event_id, others, times, "{PUT_OFF}");
        }
    }
}

const PUT_OFF: &str = "not delivered: the homeserver is to try again";

/// What keeps the lines few for a reason that strangers can bring about, with made-up pushkeys or without our mark.
fn seldom(reason: &str) -> Option<&'static Seldom> {
    static UNMARKED: Seldom = Seldom::new();
    static UNKNOWN: Seldom = Seldom::new();
    static OVER_BUDGET: Seldom = Seldom::new();
    static NO_TOKENS: Seldom = Seldom::new();
    match reason {
        "unknown_unmarked" => Some(&UNMARKED),
        "mass_unknown" => Some(&UNKNOWN),
        "over_budget" => Some(&OVER_BUDGET),
        "no_tokens_yet" => Some(&NO_TOKENS),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    Well,
    TooLate,
    Rejected,
    Dropped,
    PutOff,
}

fn severity(verdict: &Verdict) -> Severity {
    match verdict {
        Ok(Settled::Delivered | Settled::Duplicate) => Severity::Well,
        Ok(Settled::CallOver(_)) => Severity::TooLate,
        Ok(Settled::Rejected(_)) => Severity::Rejected,
        Ok(Settled::BadMessage) => Severity::Dropped,
        Err(_) => Severity::PutOff,
    }
}

/// What a verdict is counted as, and the word for it in the log.
pub(super) fn outcome(verdict: &Verdict) -> (DeviceOutcome, &'static str) {
    match verdict {
        Ok(Settled::Delivered) => (DeviceOutcome::Delivered, "delivered"),
        Ok(Settled::Duplicate) => (DeviceOutcome::Duplicate, "duplicate"),
        Ok(Settled::BadMessage) => (DeviceOutcome::Dropped, "bad_message"),
        Ok(Settled::CallOver(_)) => (DeviceOutcome::CallOver, "call_over"),
        Ok(Settled::Rejected(reason)) => (DeviceOutcome::Rejected, reason.as_str()),
        Err(Fault::Retry(reason)) => (DeviceOutcome::Retry, reason),
        Err(Fault::Unavailable(reason)) => (DeviceOutcome::Unavailable, reason),
        Err(Fault::Limited(_)) => (DeviceOutcome::Limited, "over_budget"),
    }
}

/// The devices of a request that something is the matter with, but for the one at `at`, each as `hash:reason`.
struct Others<'a> {
    devices: &'a [Device<'a>],
    verdicts: &'a [Verdict],
    at: usize,
}

impl fmt::Display for Others<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (at, (device, verdict)) in self.devices.iter().zip(self.verdicts).enumerate() {
            if at != self.at && severity(verdict) > Severity::Well {
                let hash = ids::log_id(&device.pushkey);
                write!(f, "{comma}{hash}:{}", outcome(verdict).1)?;
                comma = ",";
            }
        }
        Ok(())
    }
}

/// One device in trouble puts the whole request off: the retry skips those that were delivered.
///
/// A rejection names a pushkey and not a device, and the homeserver may drop every pusher with that pushkey. So a pushkey
/// that rang, or may ring yet, for another device of the request is not rejected. A later notification for the device that
/// PNM called gone rejects it alone.
pub(super) fn answer(
    devices: &[Device<'_>],
    verdicts: &[Verdict],
) -> Result<Vec<String>, DeliveryError> {
    let (mut retry, mut limited) = (None, None);
    let mut rejected = Vec::new();
    for (device, verdict) in devices.iter().zip(verdicts) {
        match verdict {
            Err(Fault::Unavailable(reason)) => return Err(DeliveryError::Unavailable(reason)),
            Err(Fault::Retry(reason)) => retry = Some(DeliveryError::Retry(reason)),
            Err(Fault::Limited(wait)) => limited = limited.max(Some(*wait)),
            Ok(Settled::Rejected(_)) if !rejected.iter().any(|key| *key == device.pushkey) => {
                rejected.push(device.pushkey.clone().into_owned());
            }
            Ok(_) => {}
        }
    }
    if !rejected.is_empty() && devices.len() > 1 {
        let kept = |(_, verdict): &(_, &Verdict)| !matches!(verdict, Ok(Settled::Rejected(_)));
        for (device, _) in devices.iter().zip(verdicts).filter(kept) {
            rejected.retain(|key| *key != device.pushkey);
        }
    }
    let limited = limited.map(DeliveryError::Limited);
    retry.or(limited).map_or(Ok(rejected), Err)
}
