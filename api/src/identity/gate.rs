//! The login gate: answers a login from memory, shares the verdict of an equal login, or asks the login service within
//! the limits.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use matrix2acrobits_shared::{
    ids::{UserId, log_id},
    secret::Secret,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{
    AuthError,
    extensions::Extensions,
    limits::{Admission, Attempt, Limits},
    logins::{LoginKey, Logins, Pending, Verdict},
    matrix::Matrix,
    nethcti::{self, NethCti},
};
use crate::{
    metrics::{self, LoginResult},
    settings::{ReportAuth, Settings},
};

/// The most logins that we send to a service at the same time, because each may cost it a slow password hash.
const MAX_AT_ONCE: usize = 64;
/// Extra time for the service's own timeout to come first, so that a login that timed out is over before the next one
/// comes.
const GRACE: Duration = Duration::from_millis(50);
/// How long a shutdown waits for logouts.
const MAX_FINISH: Duration = Duration::from_secs(5);

/// Lets only good logins through.
#[derive(Debug)]
pub(super) struct Gate {
    service: Arc<Service>,
    logins: Arc<Logins>,
    limits: Arc<Limits>,
    permits: Arc<Semaphore>,
    patience: Duration,
    tasks: TaskTracker,
}

/// The service that knows the passwords.
#[derive(Debug)]
enum Service {
    NethCti(NethCti),
    Matrix(Matrix),
}

impl Service {
    /// The name by which the service knows the user.
    fn name<'a>(&self, username: &'a str) -> &'a str {
        match self {
            Self::NethCti(_) => nethcti::without_domain(username),
            Self::Matrix(_) => username,
        }
    }

    async fn login(&self, name: &str, password: &Secret, deadline: Instant) -> Verdict {
        match self {
            Self::NethCti(service) => timeout_at(deadline.into(), service.login(name, password))
                .await
                .unwrap_or(Err(AuthError::Down)),
            // This goes on after we have given up, because a login that succeeds late must be logged out.
            Self::Matrix(service) => service.login(name, password, deadline).await,
        }
    }
}

impl Gate {
    /// None if reports need no login.
    pub(super) fn new(
        settings: &Settings,
        extensions: Option<Extensions>,
    ) -> Result<Option<Self>, reqwest::Error> {
        let patience = settings.auth_timeout;
        let tasks = TaskTracker::new();
        let outgoing = &settings.outgoing;
        let service = match &settings.report_auth {
            ReportAuth::Selector => return Ok(None),
            ReportAuth::NethCti { url, server_name } => {
                let name = server_name.clone();
                Service::NethCti(NethCti::new(url, name, patience, outgoing, extensions)?)
            }
            ReportAuth::Matrix { homeserver } => {
                Service::Matrix(Matrix::new(homeserver, patience, tasks.clone(), outgoing)?)
            }
        };
        Ok(Some(Self {
            service: Arc::new(service),
            logins: Arc::new(Logins::new(settings.login_ttl)),
            limits: Arc::new(Limits::new()),
            permits: Arc::new(Semaphore::new(MAX_AT_ONCE)),
            patience,
            tasks,
        }))
    }

    /// Keeps the list of extensions fresh. Runs forever, or ends at once if there is no list.
    pub(super) async fn refresh_extensions(&self) {
        if let Service::NethCti(service) = self.service.as_ref() {
            service.refresh_extensions().await;
        }
    }

    /// The user with this name and password.
    pub(super) async fn login(
        &self,
        username: Option<&str>,
        password: Option<&Secret>,
        address: Option<IpAddr>,
    ) -> Verdict {
        let verdict = match (username, password) {
            (Some(username), Some(password)) => {
                let name = self.service.name(username);
                let deadline = Instant::now() + self.patience;
                let end = deadline + GRACE;
                timeout_at(end.into(), self.ask(name, password, address, deadline))
                    .await
                    .unwrap_or(Err(AuthError::Down))
            }
            _ => Err(AuthError::NoCredentials),
        };
        metrics::login(result(&verdict));
        verdict
    }

    async fn ask(
        &self,
        name: &str,
        password: &Secret,
        address: Option<IpAddr>,
        deadline: Instant,
    ) -> Verdict {
        let key = self.logins.key(name, password);
        let attempt = loop {
            // Memory comes first, so that failures of others cannot block a remembered login.
            if let Some(user) = self.logins.good(key) {
                return Ok(user);
            }
            if let Some(pending) = self.logins.under_way(key) {
                return pending.verdict().await;
            }
            let change = self.limits.change();
            tokio::pin!(change);
            change.as_mut().enable();
            match self.limits.admit(name, address, Instant::now()) {
                Admission::Go(attempt) => break attempt,
                Admission::Wait => change.await,
                Admission::Limited(retry_after) => {
                    tracing::debug!(user = %log_id(name), "too many failed logins");
                    return Err(AuthError::Limited { retry_after });
                }
            }
        };
        let Ok(permit) = self.permits.clone().acquire_owned().await else {
            return Err(AuthError::Down);
        };
        let login = Login {
            name: name.to_owned(),
            password: password.clone(),
            deadline,
        };
        self.begin(key, login, attempt, permit).verdict().await
    }

    /// Asks in a separate task, which continues if the phone hangs up.
    fn begin(
        &self,
        key: LoginKey,
        login: Login,
        attempt: Attempt,
        permit: OwnedSemaphorePermit,
    ) -> Pending {
        let (lead, pending) = match self.logins.begin(key) {
            Ok(begun) => begun,
            Err(pending) => return pending,
        };
        let service = self.service.clone();
        self.tasks.spawn(async move {
            let _permit = permit;
            let Login {
                name,
                password,
                deadline,
            } = login;
            let verdict = service.login(&name, &password, deadline).await;
            let result = result(&verdict).as_str();
            tracing::debug!(user = %log_id(&name), result, "asked the login service");
            match &verdict {
                Ok(_) => attempt.succeeded(),
                Err(AuthError::Refused) => attempt.failed(Instant::now()),
                // Other errors do not come from a guessed password.
                Err(_) => drop(attempt),
            }
            lead.finish(verdict);
        });
        pending
    }

    /// Waits for logins and logouts under way.
    pub(super) async fn finish(&self) {
        self.tasks.close();
        if timeout(MAX_FINISH, self.tasks.wait()).await.is_err() {
            tracing::warn!("stopped in the middle of a login");
        }
    }
}

/// The data of the task that asks the service.
struct Login {
    name: String,
    password: Secret,
    deadline: Instant,
}

fn result(verdict: &Result<UserId, AuthError>) -> LoginResult {
    match verdict {
        Ok(_) => LoginResult::Good,
        Err(AuthError::NoCredentials) => LoginResult::NoCredentials,
        Err(AuthError::Refused) => LoginResult::Refused,
        Err(AuthError::NoChat { .. }) => LoginResult::NoChat,
        Err(AuthError::Limited { .. }) => LoginResult::Limited,
        Err(AuthError::Busy { .. }) => LoginResult::Busy,
        Err(AuthError::Down) => LoginResult::Down,
        Err(AuthError::Unreadable | AuthError::NoPasswordLogin) => LoginResult::Unreadable,
    }
}
