//! What became of each device of a notification, and the one answer that follows for all of them together.

use std::time::Duration;

use super::DeliveryError;
use crate::{
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
