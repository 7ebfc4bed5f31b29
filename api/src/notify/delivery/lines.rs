//! The lines that notifications leave in the log: one for each request, and one a minute for what may be wrong with all of
//! them, or what strangers can bring about.

use std::{cmp::Reverse, fmt, time::Instant};

use matrix2acrobits_shared::{ids, process::logs::Chain};
use matrix2acrobits_store::StoreError;
use tracing::field::display;

use super::{
    Event, REQUESTS_AT_A_TIME,
    verdict::{Fault, Settled, Verdict, outcome},
};
use crate::{http::seldom::Seldom, notify::notification::Device};

/// The reason of a fault of our own database.
const DATABASE: &str = "database";
const PUT_OFF: &str = "not delivered: the homeserver is to try again";

/// Keeps the lines few.
#[derive(Debug, Default)]
pub(super) struct Lines {
    overloaded: Seldom,
    database: Seldom,
    unmarked: Seldom,
    unknown: Seldom,
    over_budget: Seldom,
    no_tokens: Seldom,
}

impl Lines {
    pub(super) fn overloaded(&self) {
        if let Some(times) = self.overloaded.due(Instant::now()) {
            tracing::warn!(
                limit = REQUESTS_AT_A_TIME,
                times,
                "overloaded: a request was refused"
            );
        }
    }

    pub(super) fn database_failed(&self, error: &StoreError) -> Fault {
        if let Some(times) = self.database.due(Instant::now()) {
            let error = Chain(error);
            tracing::error!(reason = DATABASE, %error, times, "the database failed a notification");
        }
        Fault::Unavailable(DATABASE)
    }

    /// Leaves one line for a request, whatever its devices: strangers can send many. The worst of them gives the line its
    /// level and reason, and the others stand behind it.
    pub(super) fn tell(&self, event: &Event<'_>, verdicts: &[Verdict]) {
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
        let times = match self.seldom(reason).map(|lines| lines.due(Instant::now())) {
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

    /// For a reason that strangers can bring about, with made-up pushkeys or without our mark.
    fn seldom(&self, reason: &str) -> Option<&Seldom> {
        match reason {
            "unknown_unmarked" => Some(&self.unmarked),
            "mass_unknown" => Some(&self.unknown),
            "over_budget" => Some(&self.over_budget),
            "no_tokens_yet" => Some(&self.no_tokens),
            _ => None,
        }
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
