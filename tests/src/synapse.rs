//! A real Synapse on loopback, with a configuration of our own, and its users.

use std::fmt::Write;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use reqwest::{Client, Method, RequestBuilder};
use ring::hmac;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::app::Builder;
use crate::http::{self, Reply, segment};
use crate::process::{Env, Log, Program};
use crate::python::python;
use crate::{fixtures, server, within};

/// The server's name, as in the fixtures.
pub const SERVER_NAME: &str = "example.org";
/// The first start makes the database: 2 to 4 s on an idle machine.
const READY: Duration = Duration::from_secs(90);
const SHARED_SECRET: &str = "only-for-users-of-this-test";
/// Not a secret: nobody else ever sees a signature of this server.
const SIGNING_KEY: &str = "ed25519 a_test MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY\n";

/// Every user's password.
pub const PASSWORD: &str = "correct-horse-that-must-not-be-logged";

/// The server; killed, with all its data, when dropped.
#[derive(Debug)]
pub struct Synapse {
    folder: TempDir,
    port: u16,
    as_token: String,
    child: Option<Child>,
    log: Log,
    client: Client,
}

impl Synapse {
    /// Starts it with an application service's registration, and nobody registered.
    pub async fn start(registration: &str) -> Self {
        Self::start_with(registration, &json!({})).await
    }

    /// Starts it with settings of homeserver.yaml that differ; null takes one out.
    pub async fn start_with(registration: &str, settings: &Value) -> Self {
        let mut synapse = Self {
            folder: fixtures::folder(),
            port: server::free_port(),
            as_token: as_token(registration).to_owned(),
            child: None,
            log: Log::default(),
            client: http::client(),
        };
        synapse.change_registration(registration);
        synapse.write("signing.key", SIGNING_KEY);
        synapse.write("log.yaml", &log_config().to_string());
        synapse.configure(settings);
        synapse.start_again().await;
        synapse
    }

    /// Writes homeserver.yaml, which is read at the next start, with settings that differ; null takes one out.
    pub fn configure(&self, settings: &Value) {
        let mut config = self.config();
        for (name, value) in settings.as_object().into_iter().flatten() {
            if value.is_null() {
                config.as_object_mut().unwrap().remove(name);
            } else {
                config[name] = value.clone();
            }
        }
        // JSON is YAML.
        self.write("homeserver.yaml", &config.to_string());
    }

    /// Puts another registration in place of the one that it was started with; it is read at the next start.
    pub fn change_registration(&self, registration: &str) {
        self.write("registration.yaml", registration);
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn config(&self) -> Value {
        let unlimited = json!({"per_second": 1000, "burst_count": 1000});
        let each = |names: &[&str]| -> Value {
            let limits = names
                .iter()
                .map(|&name| (name.to_owned(), unlimited.clone()));
            Value::Object(limits.collect())
        };
        let mut config = json!({
            "server_name": SERVER_NAME,
            "listeners": [{
                "type": "http",
                "port": self.port,
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["client"]}],
            }],
            "database": {"name": "sqlite3", "args": {"database": self.path("homeserver.db")}},
            "log_config": self.path("log.yaml"),
            "pid_file": self.path("pid"),
            "media_store_path": self.path("media"),
            "signing_key_path": self.path("signing.key"),
            "trusted_key_servers": [],
            "report_stats": false,
            "registration_shared_secret": SHARED_SECRET,
            "bcrypt_rounds": 4,
            "app_service_config_files": [self.path("registration.yaml")],
            // The api is on loopback, which Synapse does not push to by default.
            "ip_range_blacklist": [],
            "rc_login": each(&["address", "account", "failed_attempts"]),
            "rc_joins": each(&["local", "remote"]),
            "rc_invites": each(&["per_room", "per_user", "per_issuer"]),
        });
        for name in [
            "rc_message",
            "rc_registration",
            "rc_joins_per_room",
            "rc_room_creation",
        ] {
            config[name] = unlimited.clone();
        }
        config
    }

    /// Starts it on the same data, and waits until it answers.
    pub async fn start_again(&mut self) {
        let mut command = Command::new(python("synapse"));
        // Without proxy variables: it would push through the proxy.
        command
            .args(["-m", "synapse.app.homeserver", "--config-path"])
            .arg(self.path("homeserver.yaml"))
            .current_dir(self.folder.path())
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| {
            let python = python("synapse");
            panic!(
                "{} does not start: {error}; see tests/python/install",
                python.display()
            )
        });
        self.log.follow(&mut child);
        self.child = Some(child);
        let started = Instant::now();
        while !self.answers().await {
            let child = self.child.as_mut().unwrap();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("Synapse ended at its start, {status}:\n{}", self.log.text());
            }
            let waited = started.elapsed();
            assert!(
                waited < READY,
                "Synapse is not ready after {waited:?}:\n{}",
                self.log.text()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn answers(&self) -> bool {
        let request = self
            .client
            .get(format!("{}/_matrix/client/versions", self.url()));
        http::try_send(request)
            .await
            .is_ok_and(|reply| reply.status == 200)
    }

    /// SIGTERM, as an operator stops it, and waits for its end.
    pub async fn stop(&mut self) {
        let mut child = self.child.take().expect("Synapse runs");
        if let Some(pid) = child.id() {
            let pid = pid.to_string();
            let kill = Command::new("kill").args(["-TERM", &pid]).status().await;
            assert!(
                kill.is_ok_and(|status| status.success()),
                "no SIGTERM to Synapse"
            );
        }
        let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
        assert!(ended.is_ok(), "Synapse does not stop:\n{}", self.log.text());
    }

    /// SIGKILL, as the kernel ends it when memory is short.
    pub async fn kill(&mut self) {
        let mut child = self.child.take().expect("Synapse runs");
        child.kill().await.expect("SIGKILL to Synapse");
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The application service's token.
    pub fn as_token(&self) -> &str {
        &self.as_token
    }

    /// The lines of its log so far that contain `text`.
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        self.log.lines(text)
    }

    /// A bridge between this server and PNM's stand-in, to be changed before it starts. The api's address is
    /// fixed, because the pushers name it.
    pub fn bridge(&self) -> Builder {
        let api = format!("127.0.0.1:{}", server::free_port());
        Builder::default()
            .both("MATRIX_SERVER_NAME", SERVER_NAME)
            .api("LISTEN_ADDR", &api)
            .worker("MATRIX_HOMESERVER_URL", &self.url())
            .worker("MATRIX_AS_TOKEN", &self.as_token)
            .worker("PROXY_URL", &format!("http://{api}"))
    }

    /// Registers a user by the admin API of the shared secret.
    pub async fn register(&self, name: &str) -> User {
        let path = "/_synapse/admin/v1/register";
        let url = format!("{}{path}", self.url());
        let nonce = http::send(self.client.get(&url))
            .await
            .expect_status(200)
            .json();
        let nonce = nonce["nonce"].as_str().unwrap_or_default();
        let password = PASSWORD;
        let key = hmac::Key::new(
            hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            SHARED_SECRET.as_bytes(),
        );
        let signed = [nonce, name, password, "notadmin"].join("\0");
        let mac = hmac::sign(&key, signed.as_bytes());
        let mac = mac.as_ref().iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let body = json!({"nonce": nonce, "username": name, "password": password, "admin": false, "mac": mac});
        let reply = http::send(self.client.post(&url).json(&body))
            .await
            .expect_status(200);
        User {
            id: format!("@{name}:{SERVER_NAME}"),
            token: text(&reply, "access_token"),
            url: self.url(),
            client: self.client.clone(),
        }
    }

    /// Sets or deletes a user's pusher as somebody else would.
    pub async fn set_pusher(&self, user_id: &str, body: &Value) {
        let url = format!(
            "{}/_matrix/client/v3/pushers/set?user_id={}",
            self.url(),
            segment(user_id)
        );
        let request = self.client.post(url).bearer_auth(&self.as_token);
        http::send(request.json(body)).await.expect_status(200);
    }

    /// A user's pushers, as Synapse lists them to the application service.
    pub async fn pushers(&self, user_id: &str) -> Vec<Value> {
        let url = format!(
            "{}/_matrix/client/v3/pushers?user_id={}",
            self.url(),
            segment(user_id)
        );
        let reply = http::send(self.client.get(url).bearer_auth(&self.as_token)).await;
        reply.expect_status(200).json()["pushers"]
            .as_array()
            .cloned()
            .unwrap_or_default()
    }

    /// Waits until a user's pushers are these alone, by their pushkeys.
    pub async fn holds(&self, user_id: &str, pushkeys: &[&str]) {
        let mut wanted = pushkeys.to_vec();
        wanted.sort_unstable();
        let done = within(Duration::from_mins(1), async || {
            let pushers = self.pushers(user_id).await;
            let mut held: Vec<_> = pushers
                .iter()
                .filter_map(|p| p["pushkey"].as_str())
                .collect();
            held.sort_unstable();
            held == wanted
        })
        .await;
        let held = self.pushers(user_id).await;
        assert!(
            done,
            "{user_id} should have the pushers {wanted:?}, and has {held:?}"
        );
    }
}

/// A user of the server, logged in.
#[derive(Debug, Clone)]
pub struct User {
    /// `@name:example.org`
    pub id: String,
    token: String,
    url: String,
    client: Client,
}

impl User {
    /// The access token.
    pub fn token(&self) -> &str {
        &self.token
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}/_matrix/client/v3/{path}", self.url);
        self.client.request(method, url).bearer_auth(&self.token)
    }

    async fn call(&self, method: Method, path: &str, body: &Value) -> Reply {
        let reply = http::send(self.request(method, path).json(body)).await;
        reply.expect_status(200)
    }

    /// The names of his devices; null where one has none.
    pub async fn device_names(&self) -> Vec<Value> {
        let reply = http::send(self.request(Method::GET, "devices")).await;
        let devices = reply.expect_status(200).json();
        let devices = devices["devices"].as_array().cloned().unwrap_or_default();
        let name = |device: &Value| device["display_name"].clone();
        devices.iter().map(name).collect()
    }

    /// Opens a room in which the others are at once.
    pub async fn room_with(&self, others: &[&User]) -> String {
        let invite: Vec<_> = others.iter().map(|user| user.id.as_str()).collect();
        let body = json!({"preset": "private_chat", "invite": invite});
        let room = text(
            &self.call(Method::POST, "createRoom", &body).await,
            "room_id",
        );
        for other in others {
            let join = format!("join/{}", segment(&room));
            other.call(Method::POST, &join, &json!({})).await;
        }
        room
    }

    /// Opens a room and invites somebody.
    pub async fn invite(&self, other: &User) -> String {
        let body = json!({"preset": "private_chat", "invite": [other.id]});
        text(
            &self.call(Method::POST, "createRoom", &body).await,
            "room_id",
        )
    }

    /// Writes a message, and gives its event id.
    pub async fn say(&self, room: &str, words: &str) -> String {
        let content = json!({"msgtype": "m.text", "body": words});
        self.send(room, "m.room.message", &content).await
    }

    /// Sends any event, and gives its id.
    pub async fn send(&self, room: &str, kind: &str, content: &Value) -> String {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = format!("rooms/{}/send/{kind}/{number}", segment(room));
        text(&self.call(Method::PUT, &path, content).await, "event_id")
    }

    /// Says that everything up to this event has been read.
    pub async fn read(&self, room: &str, event_id: &str) {
        let path = format!(
            "rooms/{}/receipt/m.read/{}",
            segment(room),
            segment(event_id)
        );
        self.call(Method::POST, &path, &json!({})).await;
    }

    /// Switches all notifications off or on (the push rule `.m.rule.master`).
    pub async fn mute(&self, muted: bool) {
        let path = "pushrules/global/override/.m.rule.master/enabled";
        self.call(Method::PUT, path, &json!({"enabled": muted}))
            .await;
    }
}

/// What `matrix2acrobits-api registration` prints.
pub async fn registration() -> String {
    let env = Env::from([("MATRIX_SERVER_NAME".into(), SERVER_NAME.into())]);
    let output = Program::Api.run(&["registration"], &env).await;
    assert!(output.status.success(), "registration: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn as_token(registration: &str) -> &str {
    let mut lines = registration.lines();
    lines
        .find_map(|line| line.strip_prefix("as_token: "))
        .expect("an as_token")
}

fn text(reply: &Reply, key: &str) -> String {
    let body = reply.json();
    let value = body[key].as_str();
    value
        .unwrap_or_else(|| panic!("no {key} in {}", reply.text))
        .to_owned()
}

fn log_config() -> Value {
    json!({
        "version": 1,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"out": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stdout"}},
        "loggers": {"synapse.push": {"level": "INFO"}, "synapse.http.client": {"level": "INFO"}},
        "root": {"level": "WARNING", "handlers": ["out"]},
    })
}
