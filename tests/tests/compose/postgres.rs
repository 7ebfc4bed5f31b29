//! docker-compose.postgres.yml: two apis and two workers on PostgreSQL, one of each killed while pushes flow.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use matrix2acrobits_tests::compose::{IN_TIME, Lab, Stack, docker, root};
use matrix2acrobits_tests::documents::{blocks, document, section};
use matrix2acrobits_tests::eventually;
use matrix2acrobits_tests::fixtures::{Phone, message};
use matrix2acrobits_tests::http::{self, segment};
use matrix2acrobits_tests::marks::MarkKey;
use matrix2acrobits_tests::process::Env;
use matrix2acrobits_tests::server::free_port;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::{ADMIN_TOKEN, AS_TOKEN, settings_from_example};

/// Phones that get one message after the other.
const PHONES: u32 = 8;
/// Messages that each gets at least after the kill.
const AFTER_THE_KILL: u32 = 20;
/// How long the homeserver's stand-in here waits before it tries again.
const PAUSE: Duration = Duration::from_millis(50);

/// The services on ports of their own.
struct Pair<'a> {
    stack: Stack<'a>,
    folder: PathBuf,
    apis: [u16; 2],
    admins: BTreeMap<&'static str, u16>,
    client: Client,
}

/// What became of the messages to one phone.
#[derive(Debug, Default)]
struct Sent {
    ids: Vec<String>,
    /// Requests that got no answer, or another than 200.
    failed: u32,
}

pub(crate) async fn two_of_each_lose_nothing_when_one_of_each_is_killed(lab: &Lab) {
    let moved = phone("moved", 1);
    let single = Pair::of(lab, &[]);
    single
        .stack
        .compose(&["up", "--detach", "--no-build"])
        .await;
    single.is_ready("api").await;
    single.enroll(&moved, 0).await;
    let page = document("docs/operations/postgresql.md");

    let pair = Pair::of(lab, &["docker-compose.postgres.yml"]);
    let [_, move_it] = &blocks(section(&page, "## Move"))[..] else {
        unreachable!("a dry run, and the move with compose: {page}");
    };
    pair.run(move_it).await;
    let up = ["--profile", "demo", "up", "--detach", "--no-build"];
    pair.stack.compose(&up).await;
    for service in ["api", "api-2", "worker", "worker-2"] {
        pair.is_ready(service).await;
    }
    pair.pushers_are_set(&[moved]).await;
    let phones: Vec<_> = (1..=PHONES).map(|it| phone("flow", it)).collect();
    for (place, phone) in phones.iter().enumerate() {
        pair.enroll(phone, place % 2).await;
    }
    pair.pushers_are_set(&phones).await;

    let key = pair.mark_key().await;
    let killed = AtomicBool::new(false);
    let flows = phones.iter().enumerate().map(|(place, phone)| {
        let mark = key.mark(&phone.token);
        pair.flow(phone, mark, place, &killed)
    });
    let late: Vec<_> = (1..=PHONES).map(|it| phone("late", it)).collect();
    let killing = async {
        pair.pushes_flow().await;
        // Its work is under way when the worker dies.
        join_all(late.iter().map(|it| pair.enroll(it, 1))).await;
        pair.stack.compose(&["kill", "api", "worker"]).await;
        for service in ["api", "worker"] {
            let running = pair.stack.inspect(service, "{{.State.Running}}").await;
            assert_eq!(running, "false", "{service}");
        }
        killed.store(true, Ordering::SeqCst);
        // The other worker takes up what the dead one held, and all that is new.
        let newest = phone("newest", 1);
        pair.enroll(&newest, 1).await;
        pair.pushers_are_set(&late).await;
        pair.pushers_are_set(&[newest]).await;
    };
    let (sent, ()) = tokio::join!(join_all(flows), killing);
    pair.all_arrived(&sent).await;

    pair.stack.compose(&["start", "api", "worker"]).await;
    for service in ["api", "worker"] {
        pair.is_ready(service).await;
    }
    pair.restores_a_dump(&page).await;
    pair.upgrades(&page).await;
    // The second api and worker have volumes without a name, which nothing finds once their containers are gone.
    let down = ["--profile", "demo", "down", "--volumes"];
    pair.stack.compose(&down).await;
}

fn phone(kind: &str, number: u32) -> Phone {
    Phone::new(&format!("{kind}-{number}"))
}

impl<'a> Pair<'a> {
    /// With these files on top of docker-compose.yml.
    fn of(lab: &'a Lab, more: &[&str]) -> Self {
        let apis = [free_port(), free_port()];
        let ports = [
            ("api", "API_ADMIN_PORT"),
            ("api-2", "API_2_ADMIN_PORT"),
            ("worker", "WORKER_ADMIN_PORT"),
            ("worker-2", "WORKER_2_ADMIN_PORT"),
        ];
        let ports = ports.map(|(service, setting)| (service, setting, free_port()));
        let mut env: Env = ports
            .iter()
            .map(|(_, setting, port)| ((*setting).to_owned(), format!("127.0.0.1:{port}")))
            .collect();
        for (setting, port) in ["API_PORT", "API_2_PORT"].into_iter().zip(apis) {
            env.insert(setting.into(), format!("127.0.0.1:{port}"));
        }
        env.insert("POSTGRES_IMAGE".into(), lab.postgres());
        let settings = lab.file("settings-of-postgres");
        fs::write(&settings, settings_with_secrets()).unwrap();
        env.insert("ENV_FILE".into(), settings.display().to_string());
        let files = [&["docker-compose.yml"], more].concat();
        let files: Vec<_> = files.iter().map(|name| root().join(name)).collect();
        let second: &[&str] = match more {
            [] => &[],
            _ => &["api-2", "worker-2"],
        };
        Self {
            stack: lab.stack("postgres", &files, second, env),
            folder: lab.file("."),
            apis,
            admins: ports.iter().map(|&(name, _, port)| (name, port)).collect(),
            client: http::client(),
        }
    }

    async fn is_ready(&self, service: &str) {
        let url = format!("http://127.0.0.1:{}/health/ready", self.admins[service]);
        eventually(IN_TIME, &format!("{service} is ready"), async || {
            let reply = http::try_send(self.client.get(&url)).await;
            reply.is_ok_and(|reply| reply.status == 200)
        })
        .await;
    }

    /// Runs commands of the documents.
    async fn run(&self, commands: &str) -> String {
        self.stack.shell(&self.folder, commands).await
    }

    /// A phone that reports between the dump and its return is lost with the database; the others are not.
    async fn restores_a_dump(&self, page: &str) {
        let [dump, restore] = &blocks(section(page, "## Backup"))[..] else {
            unreachable!("a dump and its return: {page}");
        };
        self.run(dump).await;
        let late = phone("after-the-dump", 1);
        self.enroll(&late, 0).await;
        self.run(restore).await;
        for service in ["api", "api-2", "worker", "worker-2"] {
            self.is_ready(service).await;
        }
        let tokens = format!(
            "http://127.0.0.1:{}/api/internal/push_tokens?limit=1000",
            self.admins["api"]
        );
        let tokens = self.client.get(tokens).bearer_auth(ADMIN_TOKEN);
        let phones = http::send(tokens)
            .await
            .expect_status(200)
            .json()
            .to_string();
        let known = |phone: &Phone| phones.contains(&phone.selector);
        assert!(
            known(&phone("moved", 1)) && known(&phone("newest", 1)),
            "{phones}"
        );
        assert!(!known(&late), "{phones}");
    }

    async fn upgrades(&self, page: &str) {
        let [upgrade] = &blocks(section(page, "## Upgrade"))[..] else {
            unreachable!("one line: {page}");
        };
        // "(`--wait` needs Compose 2)"
        let mut upgrade = upgrade.clone();
        if !self.stack.knows_wait().await {
            upgrade = upgrade.replace(" --wait", "");
        }
        self.run(&upgrade).await;
        for service in ["api", "api-2", "worker", "worker-2"] {
            self.is_ready(service).await;
        }
    }

    /// Maps and reports a phone at one of the apis.
    async fn enroll(&self, phone: &Phone, api: usize) {
        let admin = self.admins[["api", "api-2"][api]];
        let path = format!("api/internal/mappings/{}", segment(&phone.selector));
        let mapping = format!("http://127.0.0.1:{admin}/{path}");
        let report = format!(
            "http://127.0.0.1:{}/api/client/push_token_report",
            self.apis[api]
        );
        let user = json!({"user_id": phone.user});
        self.is_taken(phone, || {
            let request = self.client.put(&mapping).bearer_auth(ADMIN_TOKEN);
            request.json(&user)
        })
        .await;
        let body = phone.report();
        self.is_taken(phone, || self.client.post(&report).json(&body))
            .await;
    }

    /// A server that is slow to write gets the request again, as its 503 says.
    async fn is_taken(&self, phone: &Phone, request: impl Fn() -> RequestBuilder) {
        eventually(IN_TIME, "a request is taken", async || {
            let reply = http::send(request()).await;
            assert!(
                reply.status < 300 || reply.status == 503,
                "{phone:?}: {reply:?}"
            );
            reply.status < 300
        })
        .await;
    }

    async fn pushers_are_set(&self, phones: &[Phone]) {
        for phone in phones {
            let line = format!("pusher of {} set, token {}\n", phone.user, phone.token);
            self.stack.logged("stand-ins", &line).await;
        }
    }

    /// The key by which the apis know our pushers, as the server has it.
    async fn mark_key(&self) -> MarkKey {
        let postgres = self.stack.container("postgres").await;
        let psql = ["exec", &postgres, "psql", "-U", "matrix2acrobits", "-Atc"];
        let sql = "SELECT encode(value, 'hex') FROM meta WHERE name = 'mark_key'";
        let key = docker(&[&psql[..], &[sql]].concat()).await;
        let digits = key.trim().as_bytes().chunks(2);
        let digits = digits.map(|it| u8::from_str_radix(str::from_utf8(it).unwrap(), 16).unwrap());
        MarkKey::new(&digits.collect::<Vec<_>>())
    }

    /// One message after the other to one phone, as a homeserver sends them through a load balancer: what is not
    /// answered 200 is sent again, to the other api. Ends some messages after the kill.
    async fn flow(&self, phone: &Phone, mark: String, mut api: usize, killed: &AtomicBool) -> Sent {
        let mut device = phone.device();
        device["data"]["mark"] = json!(mark);
        let (mut sent, mut after) = (Sent::default(), 0);
        let started = Instant::now();
        while after < AFTER_THE_KILL {
            after += u32::from(killed.load(Ordering::SeqCst));
            let id = format!("${}-{}", phone.token, sent.ids.len());
            let body = message(&id, std::slice::from_ref(&device));
            loop {
                assert!(started.elapsed() < 2 * IN_TIME, "{phone:?}: {sent:?}");
                api += 1;
                let url = format!(
                    "http://127.0.0.1:{}/_matrix/push/v1/notify",
                    self.apis[api % 2]
                );
                let reply = http::try_send(self.client.post(url).json(&body)).await;
                match reply {
                    Ok(reply) if reply.status == 200 => {
                        assert_eq!(reply.json(), json!({"rejected": []}), "{id}");
                        break;
                    }
                    _ => sent.failed += 1,
                }
                tokio::time::sleep(PAUSE).await;
            }
            sent.ids.push(id);
        }
        sent
    }

    /// Waits until each phone has got some messages.
    async fn pushes_flow(&self) {
        let some = 10 * usize::try_from(PHONES).unwrap();
        eventually(IN_TIME, "pushes flow", async || {
            self.pushed().await.len() >= some
        })
        .await;
    }

    /// How often PNM got each message.
    async fn pushed(&self) -> BTreeMap<String, u32> {
        let (log, _) = self.stack.logs("stand-ins").await;
        let pushes = log
            .lines()
            .filter_map(|line| line.strip_prefix("PNM: push "));
        let mut counts = BTreeMap::new();
        for push in pushes {
            let push: Value = serde_json::from_str(push).unwrap();
            let id = push["Id"].as_str().unwrap_or_default().to_owned();
            *counts.entry(id).or_default() += 1;
        }
        counts
    }

    /// Each message has reached PNM; twice only if its first answer did not come.
    async fn all_arrived(&self, sent: &[Sent]) {
        let counts = self.pushed().await;
        let (mut messages, mut failed) = (0, 0);
        for one in sent {
            messages += one.ids.len();
            failed += one.failed;
            let lost: Vec<_> = one
                .ids
                .iter()
                .filter(|id| !counts.contains_key(*id))
                .collect();
            assert!(lost.is_empty(), "{lost:?}");
        }
        let pushes: u32 = counts.values().sum();
        let twice = pushes - u32::try_from(counts.len()).unwrap();
        println!(
            "{messages} messages, {failed} requests sent again, {twice} pushed twice, none lost, none rejected"
        );
        assert!(failed > 0, "an api was killed, and nobody noticed");
        assert!(twice <= PHONES, "{twice} pushed twice");
    }
}

/// .env.example as an operator fills it in.
fn settings_with_secrets() -> String {
    let mut settings = settings_from_example();
    for (example, own) in [
        ("\nADMIN_TOKEN=\n", format!("\nADMIN_TOKEN={ADMIN_TOKEN}\n")),
        (
            "\nMATRIX_AS_TOKEN=\n",
            format!("\nMATRIX_AS_TOKEN={AS_TOKEN}\n"),
        ),
        (
            "\n#POSTGRES_PASSWORD=\n",
            "\nPOSTGRES_PASSWORD=0123456789abcdef\n".into(),
        ),
    ] {
        assert!(settings.contains(example), "{example} in .env.example");
        settings = settings.replace(example, &own);
    }
    // Where the demo has PNM.
    settings.push_str("\nPNM_URL=http://stand-ins:8009/pnm2/send\n");
    settings
}
