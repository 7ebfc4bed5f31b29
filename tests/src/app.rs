//! The whole bridge for one test: both processes, their database, and the stand-ins on either side.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures::future::join_all;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::database::Database;
use crate::fixtures::{self, ALICE, BOB, Phone};
use crate::homeserver::{Call, Homeserver, Profile};
use crate::http::{self, Reply};
use crate::pnm::Pnm;
use crate::process::{Env, Process, Program};
use crate::{SOON, eventually};

/// The application service token of all tests.
pub const AS_TOKEN: &str = "as-token-that-must-not-be-logged";
/// The admin token of all tests.
pub const ADMIN_TOKEN: &str = "admin-token-that-must-not-be-logged";
/// What the worker puts into pushers; nobody connects to it.
pub const PROXY_URL: &str = "https://matrix-proxy.example.com";

const REPORT: &str = "/api/client/push_token_report";
const REMOVAL: &str = "/api/client/account_removal_report";
const NOTIFY: &str = "/_matrix/push/v1/notify";

/// What differs from the usual set-up.
#[derive(Debug, Clone)]
pub struct Builder {
    api: Env,
    worker: Option<Env>,
    unset: Vec<String>,
    profile: Profile,
    database: Option<Database>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            api: Env::new(),
            worker: Some(Env::new()),
            unset: Vec::new(),
            profile: Profile::default(),
            database: None,
        }
    }
}

impl Builder {
    /// Sets a setting of the api.
    #[must_use]
    pub fn api(mut self, name: &str, value: &str) -> Self {
        self.api.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets a setting of the worker.
    #[must_use]
    pub fn worker(mut self, name: &str, value: &str) -> Self {
        let env = self.worker.get_or_insert_default();
        env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Sets a setting of both.
    #[must_use]
    pub fn both(self, name: &str, value: &str) -> Self {
        self.api(name, value).worker(name, value)
    }

    /// Leaves a setting out.
    #[must_use]
    pub fn unset(mut self, name: &str) -> Self {
        self.unset.push(name.to_owned());
        self
    }

    /// Has the homeserver behave like another.
    #[must_use]
    pub fn homeserver(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Uses a database of the test's own.
    #[must_use]
    pub fn database(mut self, database: Database) -> Self {
        self.database = Some(database);
        self
    }

    /// Does not start the worker.
    #[must_use]
    pub fn without_worker(mut self) -> Self {
        self.worker = None;
        self
    }

    /// Starts everything and waits until it listens.
    pub async fn start(self) -> App {
        let homeserver = Homeserver::start(AS_TOKEN).await;
        homeserver.register(&[BOB, ALICE]);
        homeserver.behave_as(self.profile);
        let pnm = Pnm::start().await;
        let folder = fixtures::folder();
        let file = folder.path().join("matrix2acrobits.db");
        let database = self.database.unwrap_or_else(|| Database::at(&file));
        let mut app = App {
            api_env: api_env(&database, &pnm),
            worker_env: worker_env(&database, &homeserver),
            database,
            api: None,
            worker: None,
            client: http::client(),
            homeserver,
            pnm,
            file,
            _folder: folder,
        };
        app.api_env.extend(self.api);
        app.worker_env
            .extend(self.worker.clone().unwrap_or_default());
        for name in &self.unset {
            app.api_env.remove(name);
            app.worker_env.remove(name);
        }
        // Both at once, as compose does it: they migrate the same new file.
        app.api = Some(Process::start(Program::Api, &[], &app.api_env));
        if self.worker.is_some() {
            app.worker = Some(Process::start(Program::Worker, &[], &app.worker_env));
        }
        for process in app.api.iter_mut().chain(&mut app.worker) {
            process.listening().await;
        }
        app
    }
}

/// A running bridge; everything ends when it is dropped.
#[derive(Debug)]
pub struct App {
    /// The homeserver's stand-in.
    pub homeserver: Homeserver,
    /// PNM's stand-in.
    pub pnm: Pnm,
    /// The shared database, seen from outside.
    pub database: Database,
    /// Its path, where it is a file.
    pub file: PathBuf,
    /// Settings with which the api starts the next time.
    pub api_env: Env,
    /// Settings with which the worker starts the next time.
    pub worker_env: Env,
    api: Option<Process>,
    worker: Option<Process>,
    client: Client,
    _folder: TempDir,
}

impl App {
    /// The usual set-up, running.
    pub async fn start() -> Self {
        Builder::default().start().await
    }

    /// The usual set-up, to be changed before it starts.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The api's process.
    pub fn api(&self) -> &Process {
        self.api.as_ref().expect("the api runs")
    }

    /// The worker's process.
    pub fn worker(&self) -> &Process {
        self.worker.as_ref().expect("the worker runs")
    }

    /// The api's process, to be stopped.
    pub fn api_mut(&mut self) -> &mut Process {
        self.api.as_mut().expect("the api runs")
    }

    /// The worker's process, to be stopped.
    pub fn worker_mut(&mut self) -> &mut Process {
        self.worker.as_mut().expect("the worker runs")
    }

    /// Starts the api with `api_env`; one that still runs is killed.
    pub async fn start_api(&mut self) {
        self.api = Some(Process::start(Program::Api, &[], &self.api_env));
        self.api_mut().listening().await;
    }

    /// Starts the worker with `worker_env`; one that still runs is killed.
    pub async fn start_worker(&mut self) {
        self.worker = Some(Process::start(Program::Worker, &[], &self.worker_env));
        self.worker_mut().listening().await;
    }

    /// A request to the public listener.
    pub fn public(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.api().public_url());
        self.client.request(method, url)
    }

    /// A request to the api's admin listener, without a token.
    pub fn admin_bare(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.api().admin_url());
        self.client.request(method, url)
    }

    /// A request to the worker's admin listener.
    pub fn worker_admin(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.worker().admin_url());
        self.client.request(method, url)
    }

    /// An admin call with the right token.
    pub async fn admin(&self, method: Method, path: &str, body: Option<Value>) -> Reply {
        let mut request = self.admin_bare(method, path).bearer_auth(ADMIN_TOKEN);
        if let Some(body) = body {
            request = request.json(&body);
        }
        http::send(request).await
    }

    /// Says whose a selector is.
    pub async fn map(&self, selector: &str, user_id: &str) {
        let path = format!("/api/internal/mappings/{}", http::segment(selector));
        let reply = self
            .admin(Method::PUT, &path, Some(json!({"user_id": user_id})))
            .await;
        assert!(matches!(reply.status, 200 | 201 | 204), "{reply:?}");
    }

    /// A token report in JSON.
    pub async fn report(&self, body: &Value) -> Reply {
        http::send(self.public(Method::POST, REPORT).json(body)).await
    }

    /// A token report as a form.
    pub async fn report_form(&self, fields: &[(&str, &str)]) -> Reply {
        let request = self
            .public(Method::POST, REPORT)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(http::encoded(fields));
        http::send(request).await
    }

    /// A token report in the query of a GET.
    pub async fn report_query(&self, fields: &[(&str, &str)]) -> Reply {
        let path = format!("{REPORT}?{}", http::encoded(fields));
        http::send(self.public(Method::GET, &path)).await
    }

    /// An account removal report in JSON.
    pub async fn removal(&self, body: &Value) -> Reply {
        http::send(self.public(Method::POST, REMOVAL).json(body)).await
    }

    /// An account removal report in the query of a GET.
    pub async fn removal_query(&self, fields: &[(&str, &str)]) -> Reply {
        let path = format!("{REMOVAL}?{}", http::encoded(fields));
        http::send(self.public(Method::GET, &path)).await
    }

    /// How the homeserver names a phone whose pusher carries our mark.
    pub async fn marked(&self, phone: &Phone) -> Value {
        let mut device = phone.device();
        device["data"]["mark"] = json!(self.database.mark_key().await.mark(&phone.token));
        device
    }

    /// A notification, as the homeserver sends it.
    pub async fn notify(&self, body: &Value) -> Reply {
        http::send(self.notification(body)).await
    }

    /// The same, not yet sent.
    pub fn notification(&self, body: &Value) -> RequestBuilder {
        self.public(Method::POST, NOTIFY).json(body)
    }

    /// Maps phones to their users and reports their tokens.
    pub async fn enroll(&self, phones: &[&Phone]) {
        let each = phones.iter().map(async |phone| {
            self.map(&phone.selector, &phone.user).await;
            self.report(&phone.report()).await.expect_status(200);
        });
        join_all(each).await;
    }

    /// Waits until a phone's pusher is at the homeserver.
    pub async fn pusher_set(&self, phone: &Phone) {
        let what = format!("pusher of {} for {}", phone.token, phone.user);
        eventually(SOON, &what, async || {
            self.homeserver
                .pushkeys_of(&phone.user)
                .contains(&phone.token)
        })
        .await;
    }

    /// Waits until the homeserver holds exactly these pushers of a user.
    pub async fn pushers_are(&self, user_id: &str, phones: &[&Phone]) {
        let mut wanted: Vec<_> = phones.iter().map(|phone| phone.token.clone()).collect();
        wanted.sort();
        let what = format!("exactly the pushers {wanted:?} for {user_id}");
        eventually(SOON, &what, async || {
            self.homeserver.pushkeys_of(user_id) == wanted
        })
        .await;
    }

    /// Waits until no job is left but dead letters: what was reported so far has been dealt with.
    pub async fn settled(&self) {
        eventually(SOON, "no live job left", async || {
            self.database.live_jobs().await == 0
        })
        .await;
    }

    /// Waits until that many jobs are dead letters.
    pub async fn dead_letters(&self, count: usize) {
        eventually(SOON, &format!("{count} dead letters"), async || {
            self.database.dead_jobs().await == count
        })
        .await;
    }
}

/// Whatever a test was about: none of its secrets is in the logs, at the loudest level.
impl Drop for App {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let calls = self.homeserver.calls();
        let pushes = self.pnm.pushes();
        let texts = pushes
            .iter()
            .flat_map(|push| [&push.body["DeviceToken"], &push.body["Message"]]);
        let secrets = calls.iter().map(Call::pushkey);
        let secrets = secrets.chain(texts.filter_map(Value::as_str));
        // Short ones are part of other words.
        let secrets = secrets.filter(|secret| secret.len() >= 8 && *secret != "New message");
        let secrets: BTreeSet<_> = secrets.chain([AS_TOKEN, ADMIN_TOKEN]).collect();
        for process in self.api.iter().chain(&self.worker) {
            let log = process.log();
            for secret in &secrets {
                assert!(!log.contains(*secret), "{secret:?} is in the log:\n{log}");
            }
        }
    }
}

fn common_env(database: &Database) -> Env {
    let settings = [
        ("DATABASE_URL", database.url()),
        ("ADMIN_LISTEN_ADDR", "127.0.0.1:0".to_owned()),
        ("ADMIN_TOKEN", ADMIN_TOKEN.to_owned()),
        ("MATRIX_SERVER_NAME", "example.org".to_owned()),
        ("LOGLEVEL", "TRACE".to_owned()),
    ];
    settings
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// The api's usual settings: on loopback, with PNM's stand-in, so that nothing can leave.
fn api_env(database: &Database, pnm: &Pnm) -> Env {
    let mut env = common_env(database);
    env.insert("LISTEN_ADDR".into(), "127.0.0.1:0".into());
    env.insert("PNM_URL".into(), pnm.url());
    env
}

/// The worker's usual settings, with retries as quick as whole seconds allow.
fn worker_env(database: &Database, homeserver: &Homeserver) -> Env {
    let mut env = common_env(database);
    let settings = [
        ("MATRIX_HOMESERVER_URL", homeserver.url()),
        ("MATRIX_AS_TOKEN", AS_TOKEN.to_owned()),
        ("PROXY_URL", PROXY_URL.to_owned()),
        ("HOMESERVER_TIMEOUT", "2s".to_owned()),
        ("RETRY_INITIAL_INTERVAL", "1s".to_owned()),
        ("RETRY_MAX_INTERVAL", "2s".to_owned()),
    ];
    env.extend(settings.map(|(name, value)| (name.to_owned(), value)));
    env
}
