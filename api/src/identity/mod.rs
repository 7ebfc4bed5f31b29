//! Who a report comes from (REPORT_AUTH): nobody logs in, or a login at NethCTI or the homeserver says.

mod caller;
mod gate;
mod limits;
mod logins;
mod matrix;
mod nethcti;
mod strangers;
mod upstream;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::http::StatusCode;
use matrix2acrobits_shared::{ids::UserId, secret::Secret};

pub(crate) use self::caller::{Caller, Proxies};
use self::{gate::Gate, strangers::Strangers};
use crate::settings::Settings;

/// Why we do not know who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AuthError {
    /// The report has no user name or no password.
    NoCredentials,
    /// The login service said no.
    Refused,
    /// The password is right, but this user has no chat.
    NoChat,
    /// Too many failed logins.
    Limited { retry_after: Duration },
    /// The login service takes no more logins for a while.
    Busy { retry_after: Duration },
    /// The login service does not answer.
    Down,
    /// It answers what we cannot understand.
    Unreadable,
}

impl AuthError {
    /// Status, errcode and our words.
    pub(crate) fn words(&self) -> (StatusCode, &'static str, String) {
        let (status, errcode, words) = match self {
            Self::NoCredentials => (
                StatusCode::UNAUTHORIZED,
                "M_FORBIDDEN",
                "username and password are needed.",
            ),
            Self::Refused => (
                StatusCode::UNAUTHORIZED,
                "M_FORBIDDEN",
                "The login was refused.",
            ),
            Self::NoChat => (
                StatusCode::UNAUTHORIZED,
                "M_FORBIDDEN",
                "The login was refused: this user has no chat.",
            ),
            Self::Limited { .. } => (
                StatusCode::TOO_MANY_REQUESTS,
                "M_LIMIT_EXCEEDED",
                "Too many failed logins; wait.",
            ),
            Self::Busy { .. } => (
                StatusCode::SERVICE_UNAVAILABLE,
                "M_UNKNOWN",
                "The login service takes no more logins for a while; try again later.",
            ),
            Self::Down => (
                StatusCode::SERVICE_UNAVAILABLE,
                "M_UNKNOWN",
                "The login service does not answer; try again.",
            ),
            Self::Unreadable => (
                StatusCode::BAD_GATEWAY,
                "M_UNKNOWN",
                "The login service answers what we cannot understand; try again.",
            ),
        };
        (status, errcode, words.to_owned())
    }

    /// When it may be tried again, where that is known.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited { retry_after } | Self::Busy { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}

/// Finds out whose a report is.
#[derive(Debug, Clone)]
pub(crate) struct Auth {
    proxies: Arc<Proxies>,
    /// None where nobody logs in.
    gate: Option<Arc<Gate>>,
    strangers: Arc<Strangers>,
}

impl Auth {
    /// As the settings say. The process must have a TLS provider by now.
    pub(crate) fn new(settings: &Settings) -> Result<Self, reqwest::Error> {
        Ok(Self {
            proxies: Arc::new(settings.trusted_proxies.clone()),
            gate: Gate::new(settings)?.map(Arc::new),
            strangers: Arc::new(Strangers::new(settings.strangers_per_hour)),
        })
    }

    /// The user that the login proves; none where nobody logs in.
    pub(crate) async fn identify(
        &self,
        username: Option<&str>,
        password: Option<&Secret>,
        Caller(address): Caller,
    ) -> Result<Option<UserId>, AuthError> {
        let Some(gate) = &self.gate else {
            return Ok(None);
        };
        gate.login(username, password, address).await.map(Some)
    }

    /// How long this caller has to wait before it may add another selector that nobody stands for.
    pub(crate) fn wait_of_strangers(&self, Caller(address): Caller) -> Option<Duration> {
        self.strangers.wait(address, Instant::now())
    }

    /// A report of this caller was refused for that.
    pub(crate) fn stranger_refused(&self, Caller(address): Caller) {
        self.strangers.refused(address);
    }

    /// This caller has added one.
    pub(crate) fn stranger_added(&self, Caller(address): Caller) {
        self.strangers.added(address, Instant::now());
    }

    /// Waits for logins under way, so that none leaves a device behind; not for ever.
    pub(crate) async fn finish(&self) {
        if let Some(gate) = &self.gate {
            gate.finish().await;
        }
    }
}
