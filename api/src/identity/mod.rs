//! Finds out which user a report comes from (REPORT_AUTH), by a login at NethCTI or at the homeserver, or without a
//! login.

mod caller;
mod extensions;
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

use matrix2acrobits_shared::{ids::UserId, secret::Secret};

pub(crate) use self::{caller::Caller, extensions::Extensions};
use self::{gate::Gate, strangers::Strangers};
use crate::{
    http::{
        errors::{Matter, Problem},
        peers::Proxies,
    },
    settings::Settings,
};

/// Why we do not know the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AuthError {
    /// The report has no user name or no password.
    NoCredentials,
    /// The login service said no.
    Refused,
    /// The password is right, but this user has no chat, or no longer.
    NoChat {
        /// The users that this login may have stood for. Their pushers have to go.
        users: Vec<UserId>,
    },
    /// Too many failed logins.
    Limited { retry_after: Duration },
    /// The login service accepts no more logins for a while.
    Busy { retry_after: Duration },
    /// The login service does not respond.
    Down,
    /// We cannot understand the login service's response.
    Unreadable,
    /// The homeserver accepts no passwords.
    NoPasswordLogin,
}

impl From<&AuthError> for Problem {
    fn from(error: &AuthError) -> Self {
        let (matter, words) = match error {
            AuthError::NoCredentials => (Matter::LoginRefused, "username and password are needed."),
            AuthError::Refused => (Matter::LoginRefused, "The login was refused."),
            AuthError::NoChat { .. } => (
                Matter::LoginRefused,
                "The login was refused: this user has no chat.",
            ),
            AuthError::Limited { .. } => (Matter::TooMany, "Too many failed logins; wait."),
            AuthError::Busy { .. } => (
                Matter::Unavailable,
                "The login service takes no more logins for a while; try again later.",
            ),
            AuthError::Down => (
                Matter::Unavailable,
                "The login service does not answer; try again.",
            ),
            AuthError::Unreadable => (
                Matter::Upstream,
                "The login service answers what we cannot understand; try again.",
            ),
            AuthError::NoPasswordLogin => (
                Matter::Upstream,
                "The homeserver takes no password logins here; the operator has to change REPORT_AUTH.",
            ),
        };
        let problem = Self::new(matter, words);
        match error {
            AuthError::Limited { retry_after } | AuthError::Busy { retry_after } => {
                problem.after(*retry_after)
            }
            _ => problem,
        }
    }
}

/// Finds out which user a report belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Auth {
    proxies: Arc<Proxies>,
    /// None if reports need no login.
    gate: Option<Arc<Gate>>,
    strangers: Arc<Strangers>,
    extensions: Option<Extensions>,
}

impl Auth {
    /// Made from the settings. The process must have a TLS provider before this.
    pub(crate) fn new(settings: &Settings) -> Result<Self, reqwest::Error> {
        let extensions = settings.by_extension.then(Extensions::default);
        Ok(Self {
            proxies: Arc::new(settings.trusted_proxies.clone()),
            gate: Gate::new(settings, extensions.clone())?.map(Arc::new),
            strangers: Arc::new(Strangers::new(settings.strangers_per_hour)),
            extensions,
        })
    }

    /// The list that names senders by their extensions, with PUSH_IDENTITY=extension.
    pub(crate) fn extensions(&self) -> Option<Extensions> {
        self.extensions.clone()
    }

    /// Keeps that list fresh. Runs forever if there is one.
    pub(crate) async fn refresh_extensions(self) {
        if let (Some(gate), Some(_)) = (&self.gate, &self.extensions) {
            gate.refresh_extensions().await;
        }
    }

    /// The user that the login proves. None if reports need no login.
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

    /// Notes that a report of this caller was refused because of that limit.
    pub(crate) fn stranger_refused(&self, Caller(address): Caller) {
        self.strangers.refused(address);
    }

    /// Notes that this caller has added such a selector.
    pub(crate) fn stranger_added(&self, Caller(address): Caller) {
        self.strangers.added(address, Instant::now());
    }

    /// Waits for logins under way for a limited time, so that none leaves a device behind.
    pub(crate) async fn finish(&self) {
        if let Some(gate) = &self.gate {
            gate.finish().await;
        }
    }
}
