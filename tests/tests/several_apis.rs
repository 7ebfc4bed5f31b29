//! Two apis at one PostgreSQL database, whichever of them the homeserver reaches.
//!
//! They need PostgreSQL's server from Debian's package; where there is none, they say so and test nothing.

#![expect(clippy::panic, reason = "a test that cannot go on stops where it is")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use matrix2acrobits_test_postgres::Server;
use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::database::Database;
use matrix2acrobits_tests::fixtures::{Phone, message};
use matrix2acrobits_tests::http::{self, Reply};
use matrix2acrobits_tests::process::{Process, Program};
use matrix2acrobits_tests::proxy::{Cut, Proxy};
use matrix2acrobits_tests::{SOON, eventually, within};
use reqwest::Client;
use serde_json::{Value, json};

const TOLD: &str = "matrix2acrobits_notify_told_total";
const DUPLICATES: &str = r#"matrix2acrobits_notify_devices_total{outcome="duplicate"}"#;

/// Two apis, and a phone that has reported.
pub(crate) struct Apis {
    pub(crate) app: App,
    second: Process,
    /// Between the second api and the database.
    network: Proxy,
    client: Client,
    pub(crate) device: Value,
}

/// One of the two.
#[derive(Clone, Copy)]
pub(crate) enum Api {
    First,
    Second,
}
use Api::{First, Second};

impl Apis {
    /// None where no server can be had.
    async fn start() -> Option<Self> {
        Some(Self::at(Server::shared()?).await)
    }

    /// At a server of the test's own.
    pub(crate) async fn at(server: &Server) -> Self {
        let (database, network) = (server.database(), Proxy::start(server.port()).await);
        let url = database.url_at(network.port());
        let app = App::builder().database(Database::of(database));
        let app = app.without_worker().start().await;
        let mut env = app.api_env.clone();
        env.insert("DATABASE_URL".to_owned(), url);
        let mut second = Process::start(Program::Api, &[], &env);
        second.listening().await;
        // What is told before an api listens is lost.
        let listening = "pg_stat_activity
                         WHERE datname = current_database()
                           AND query LIKE '%clock_timestamp%'
                           AND application_name LIKE '%feed'";
        eventually(SOON, "both feeds hear", async || {
            app.database.count(listening).await == 2
        })
        .await;
        let phone = Phone::seed();
        app.enroll(&[&phone]).await;
        Self {
            device: app.marked(&phone).await,
            client: http::client(),
            app,
            second,
            network,
        }
    }

    fn api(&self, api: Api) -> &Process {
        match api {
            First => self.app.api(),
            Second => &self.second,
        }
    }

    /// An event reaches one of them, which takes it.
    pub(crate) async fn push(&self, api: Api, event: &str) {
        let reply = self.push_to(api, event, &self.device).await;
        assert_eq!(reply.expect_status(200).json(), json!({"rejected": []}));
    }

    /// An event for any phone.
    pub(crate) async fn push_to(&self, api: Api, event: &str, device: &Value) -> Reply {
        let url = self.api(api).public_url() + "/_matrix/push/v1/notify";
        let body = message(event, std::slice::from_ref(device));
        http::send(self.client.post(url).json(&body)).await
    }

    /// How often each event rang.
    pub(crate) fn rang(&self) -> BTreeMap<String, usize> {
        let mut rang = BTreeMap::new();
        for push in self.app.pnm.pushes() {
            let event = push.body["Id"].as_str().unwrap_or_default().to_owned();
            *rang.entry(event).or_default() += 1;
        }
        rang
    }

    /// What one of them counts.
    async fn count(&self, api: Api, series: &str) -> u64 {
        let url = self.api(api).admin_url() + "/metrics";
        let text = http::send(self.client.get(url)).await.text;
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or_else(|| panic!("no {series} in {text}"))
    }

    /// What both count of what they were told.
    async fn both_told(&self) -> [u64; 2] {
        [
            self.count(First, TOLD).await,
            self.count(Second, TOLD).await,
        ]
    }

    /// Waits until one of them hears the other again.
    async fn hears(&self, api: Api, other: Api, event: &str) {
        let number = AtomicU64::new(0);
        eventually(SOON, "the feed hears again", async || {
            let event = format!("{event}-{}", number.fetch_add(1, Ordering::Relaxed));
            let told = self.count(api, TOLD).await;
            self.push(other, &event).await;
            let hears = async || self.count(api, TOLD).await > told;
            within(Duration::from_secs(1), hears).await
        })
        .await;
    }

    /// Waits until one of them has been told of so many pushes of the other.
    async fn told(&self, api: Api, count: u64) {
        eventually(SOON, &format!("{count} pushes told"), async || {
            self.count(api, TOLD).await == count
        })
        .await;
    }
}

#[tokio::test]
async fn an_event_rings_once_whichever_api_gets_its_repeat() {
    let Some(apis) = Apis::start().await else {
        return;
    };
    for (event, api, other) in [("$1", First, Second), ("$2", Second, First)] {
        apis.push(api, event).await;
        apis.told(other, 1).await;
        apis.push(other, event).await;
        apis.push(api, event).await;
        assert_eq!(apis.rang()[event], 1);
        assert_eq!(
            apis.count(other, DUPLICATES).await,
            1 + u64::from(event == "$2")
        );
    }
    // What one of them has not sent itself it does not tell either, nor does it count its own.
    apis.push(First, "$3").await;
    apis.told(Second, 2).await;
    apis.told(First, 1).await;
}

#[tokio::test]
async fn many_events_at_both_at_once_ring_once_each() {
    const EVENTS: usize = 600;
    let Some(apis) = Apis::start().await else {
        return;
    };
    let push_all = async |attempt: usize, reached: fn(usize) -> Api| {
        let each = |number| {
            let (apis, event) = (&apis, format!("${attempt}-{number}"));
            async move {
                // As a homeserver does it, should a busy api have no room.
                eventually(SOON, "the push is taken", async || {
                    let reply = apis.push_to(reached(number), &event, &apis.device).await;
                    assert!(matches!(reply.status, 200 | 503), "{reply:?}");
                    reply.status == 200
                })
                .await;
            }
        };
        join_all((0..EVENTS).map(each)).await;
    };
    let even = |number| [First, Second][number % 2];
    let odd = |number| [Second, First][number % 2];
    // On a busy machine a feed may be cut off for a moment, and what is told meanwhile is lost: then again, with others.
    for attempt in 0..5 {
        let before = apis.both_told().await;
        push_all(attempt, even).await;
        let told = before.map(|told| told + EVENTS as u64 / 2);
        if !within(SOON / 2, async || apis.both_told().await == told).await {
            continue;
        }
        push_all(attempt, odd).await;
        push_all(attempt, even).await;
        let mut rang = apis.rang();
        rang.retain(|event, _| event.starts_with(&format!("${attempt}-")));
        assert_eq!(rang.len(), EVENTS);
        assert!(rang.values().all(|times| *times == 1), "{rang:?}");
        return;
    }
    panic!("the apis never told each other all that they had pushed");
}

/// The memory is best effort: what cannot be told rings again rather than not at all.
#[tokio::test]
async fn an_api_without_its_feed_learns_nothing_and_pushes() {
    let Some(apis) = Apis::start().await else {
        return;
    };
    apis.push(First, "$0").await;
    apis.told(Second, 1).await;
    for (cut, event) in [(Cut::Feed, "$feed"), (Cut::Everything, "$everything")] {
        let told = apis.count(Second, TOLD).await;
        let heard = apis.count(First, TOLD).await;
        apis.network.cut(cut);
        apis.push(First, event).await;
        // The memory of the tokens serves where the database does not answer.
        apis.push(Second, event).await;
        apis.push(Second, event).await;
        assert_eq!(apis.rang()[event], 2, "{cut:?}");
        if cut == Cut::Feed {
            // The metrics, too, ask the database.
            assert_eq!(apis.count(Second, TOLD).await, told);
        }
        apis.network.cut(Cut::Nothing);
        // What it could not tell meanwhile it tells now.
        apis.told(First, heard + 1).await;
        apis.hears(Second, First, event).await;
    }
}

/// When the feed comes back all that is remembered is doubtful; it is all there is if the database goes at that moment.
#[tokio::test]
async fn a_known_token_rings_though_the_database_goes_as_soon_as_it_is_back() {
    let Some(apis) = Apis::start().await else {
        return;
    };
    // Then it has heard of the report, too, which makes it forget the token.
    apis.hears(Second, First, "$heard").await;
    apis.push(Second, "$known").await;
    let feeds = "SELECT pg_terminate_backend(pid)
                 FROM pg_stat_activity
                 WHERE datname = current_database()
                   AND application_name LIKE '%feed'";
    apis.app.database.meddle(feeds).await;
    apis.hears(Second, First, "$back").await;
    apis.network.cut(Cut::Everything);
    apis.push(Second, "$away").await;
    assert_eq!(apis.rang()["$away"], 1);
}

/// A fail-over that leads to a standby which is behind: what it does not know may have been reported a moment ago.
#[tokio::test]
async fn a_standby_is_never_asked_whose_a_token_is() {
    let Some(server) = Server::own() else {
        return;
    };
    let apis = Apis::at(&server).await;
    server.back_up();
    let late = Phone::new("late");
    apis.app.enroll(&[&late]).await;
    server.stop("fast");
    server.start_standby();

    let request = |event: String| {
        let device = late.device();
        let notification = message(&event, &[device]);
        let url = format!("{}/_matrix/push/v1/notify", apis.second.public_url());
        http::send(apis.client.post(url).json(&notification))
    };
    let until = Instant::now() + Duration::from_secs(8);
    for round in 0.. {
        request(format!("$behind-{round}")).await.expect_error(503);
        if Instant::now() > until {
            break;
        }
    }
    assert!(apis.second.log().contains("standby"), "the log says why");
    // sqlx would say it for each of its attempts, ten a second.
    assert_eq!(apis.second.log_lines("after_connect"), [""; 0]);
}
