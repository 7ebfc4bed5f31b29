//! Kills two apis, two workers and the database's server, at chosen points and at random, while phones report ever new
//! tokens. What was answered 200 ends at the homeserver, and nothing else does.
//!
//! `CRASH_ROUNDS=300 cargo nextest run -p matrix2acrobits-tests --no-capture crash::` kills that often
//! instead of once at each point; CRASH_SEED repeats a run's choices.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on stops where it is"
)]

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use matrix2acrobits_test_postgres::Server;
use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::database::Database;
use matrix2acrobits_tests::fixtures::{ALICE, BOB, Phone};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::hook::Moment;
use matrix2acrobits_tests::http;
use matrix2acrobits_tests::process::{Process, Program};
use matrix2acrobits_tests::{SOON, eventually, within};
use tokio::task::JoinSet;

/// Phones that report at any time.
const PHONES: usize = 24;
/// Kills before everything is left to settle and compared.
const ROUNDS_PER_CHECK: usize = 15;

/// Where a process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    /// The worker holds jobs and has not called the homeserver for most of them.
    BeforeTheCalls,
    /// The homeserver has the request and does not carry it out.
    DuringACallThatIsLost,
    /// The homeserver carries it out, and the worker never hears of it.
    DuringACallThatLands,
    /// The homeserver has answered, and the worker waits for the database.
    BeforeTheCommit,
    /// The worker, at any time.
    Worker,
    /// The apis' writers wait to begin their transactions, and all phones wait for them.
    BeforeTheEnqueue,
    /// An api, at any time: reports are in every stage.
    Api,
    /// The database's server, where there is one, at any time.
    Database,
    /// All, at any time, as when the power goes.
    Everything,
    /// Nothing is killed: a worker stops and starts, as for an update.
    Update,
}

const POINTS: [Point; 10] = [
    Point::BeforeTheCalls,
    Point::DuringACallThatIsLost,
    Point::DuringACallThatLands,
    Point::BeforeTheCommit,
    Point::Worker,
    Point::BeforeTheEnqueue,
    Point::Api,
    Point::Database,
    Point::Everything,
    Point::Update,
];

/// Choices that a seed repeats (SplitMix64).
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn pick(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

fn setting<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

/// What the phones share.
#[derive(Debug, Default)]
struct Load {
    apis: Mutex<[String; 2]>,
    stop: AtomicBool,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    waiting: AtomicU64,
}

impl Load {
    /// Reports new tokens until it is told to stop; each until it is acknowledged, as a phone does that
    /// starts again. Returns the phone with its newest token.
    async fn report(
        self: Arc<Self>,
        mut phone: Phone,
        mut number: u64,
        mut choices: Choices,
    ) -> (Phone, u64) {
        let client = http::client();
        let name = phone.selector.clone();
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            // Some come back to a token that they had, as after the restore of a backup.
            let token = if choices.pick(0..6) == 0 {
                number / 2
            } else {
                number
            };
            phone = phone.with_token(&format!("{name}-token-{token}"));
            loop {
                let api = usize::from(choices.pick(0..2) == 0);
                let api = self.apis.lock().unwrap()[api].clone();
                let url = format!("{api}/api/client/push_token_report");
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let reply = http::try_send(client.post(url).json(&phone.report())).await;
                self.waiting.fetch_sub(1, Ordering::SeqCst);
                if reply.is_ok_and(|reply| reply.status == 200) {
                    self.acknowledged.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                self.failed.fetch_add(1, Ordering::SeqCst);
                pause(20).await;
            }
            pause(choices.pick(1..60)).await;
        }
        (phone, number)
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

/// The bridge with a second api and a second worker, and the phones.
struct Scene {
    app: App,
    second_api: Process,
    second: Process,
    /// None where the database is a file.
    server: Option<Server>,
    load: Arc<Load>,
    phones: Vec<(Phone, u64)>,
    choices: Choices,
    kills: BTreeMap<Point, usize>,
}

impl Scene {
    async fn start(seed: u64) -> Self {
        // Few calls at a time, so that held jobs wait for theirs.
        let mut app = App::builder().worker("WORKER_CONCURRENCY", "4");
        let mut server = None;
        if std::env::var("TEST_DATABASE").is_ok_and(|it| it == "postgres") {
            let own = Server::own().unwrap();
            app = app.database(Database::of(own.database()));
            server = Some(own);
        }
        let app = app.start().await;
        let mut second_api = Process::start(Program::Api, &[], &app.api_env);
        second_api.listening().await;
        let second = Process::start(Program::Worker, &[], &app.worker_env);
        let mut phones = Vec::new();
        for number in 0..PHONES {
            let user = if number % 2 == 0 { BOB } else { ALICE };
            let phone = Phone::new(&format!("p{number}")).of(user);
            app.map(&phone.selector, user).await;
            phones.push((phone, 0));
        }
        Self {
            app,
            second_api,
            second,
            server,
            load: Arc::default(),
            phones,
            choices: Choices(seed),
            kills: BTreeMap::new(),
        }
    }

    /// Some kills under load, then quiet, then the comparison. Returns how long it took to settle.
    async fn rounds(&mut self, points: &[Point]) -> Duration {
        self.app.homeserver.break_with(Fault::Delay(15)).await;
        self.load.stop.store(false, Ordering::SeqCst);
        self.tell_apis();
        let mut phones = JoinSet::new();
        for (phone, number) in std::mem::take(&mut self.phones) {
            let choices = Choices(self.choices.next());
            phones.spawn(self.load.clone().report(phone, number, choices));
        }
        for &point in points {
            self.kill(point).await;
            *self.kills.entry(point).or_default() += 1;
            self.app.homeserver.hook().clear();
            self.restart(point).await;
        }
        self.load.stop.store(true, Ordering::SeqCst);
        self.phones = phones.join_all().await;
        let quiet = Instant::now();
        self.compare().await;
        quiet.elapsed()
    }

    /// Tells the phones where the apis are.
    fn tell_apis(&self) {
        let apis = [&self.second_api, self.app.api()].map(Process::public_url);
        *self.load.apis.lock().unwrap() = apis;
    }

    async fn kill(&mut self, point: Point) {
        let wait = self.choices.pick(0..300);
        match point {
            Point::BeforeTheCalls => {
                let database = &self.app.database;
                let many = async || {
                    let jobs = database.jobs().await;
                    jobs.iter().filter(|job| job.status == "Queued").count() > 8
                };
                within(Duration::from_secs(2), many).await;
                self.app.worker_mut().kill().await;
                self.second.kill().await;
            }
            Point::DuringACallThatIsLost => self.kill_at(Moment::Arrived, false).await,
            Point::DuringACallThatLands => self.kill_at(Moment::Done, false).await,
            Point::BeforeTheCommit => {
                // The one lock that every writer needs: calls end, and nobody can note that.
                let lock = self.app.database.lock().await;
                let answered = Arc::new(AtomicBool::new(false));
                let seen = answered.clone();
                self.app.homeserver.hook().set(move |moment, _| {
                    seen.fetch_or(moment == Moment::Done, Ordering::SeqCst);
                    true
                });
                within(Duration::from_secs(1), async || {
                    answered.load(Ordering::SeqCst)
                })
                .await;
                pause(wait / 30).await;
                self.app.worker_mut().kill().await;
                self.second.kill().await;
                drop(lock);
            }
            Point::Worker => {
                pause(wait).await;
                self.app.worker_mut().kill().await;
            }
            Point::BeforeTheEnqueue => {
                let lock = self.app.database.lock().await;
                let all = u64::try_from(PHONES).unwrap();
                let waiting = async || self.load.waiting.load(Ordering::SeqCst) == all;
                within(Duration::from_secs(2), waiting).await;
                self.app.api_mut().kill().await;
                self.second_api.kill().await;
                drop(lock);
            }
            Point::Api => {
                pause(wait).await;
                self.app.api_mut().kill().await;
            }
            Point::Database => {
                pause(wait).await;
                self.server.iter().for_each(Server::kill);
                pause(wait).await;
            }
            Point::Everything => {
                pause(wait).await;
                self.app.worker_mut().kill().await;
                self.app.api_mut().kill().await;
                self.server.iter().for_each(Server::kill);
                self.second_api.kill().await;
                self.second.kill().await;
            }
            Point::Update => {
                pause(wait).await;
                assert_eq!(self.app.worker_mut().terminate().await, Some(0));
            }
        }
    }

    /// Kills both workers at a moment of a request that sets or deletes a pusher.
    async fn kill_at(&self, at: Moment, goes_on: bool) {
        let pids: Vec<_> = [self.app.worker().pid(), self.second.pid()]
            .into_iter()
            .flatten()
            .collect();
        let killed = Arc::new(AtomicBool::new(false));
        let done = killed.clone();
        self.app.homeserver.hook().set(move |moment, request| {
            if request.method != "POST" || moment != at {
                return true;
            }
            if !done.swap(true, Ordering::SeqCst) {
                for &pid in &pids {
                    Process::kill_pid(pid);
                }
            }
            goes_on
        });
        eventually(SOON, "a call to kill at", async || {
            killed.load(Ordering::SeqCst)
        })
        .await;
    }

    async fn restart(&mut self, point: Point) {
        if matches!(point, Point::Database | Point::Everything) {
            self.server.iter().for_each(Server::start);
        }
        let apis = matches!(point, Point::BeforeTheEnqueue | Point::Everything);
        if apis || point == Point::Api {
            self.app.start_api().await;
        }
        if apis {
            self.second_api = Process::start(Program::Api, &[], &self.app.api_env);
            self.second_api.listening().await;
        }
        match point {
            Point::BeforeTheEnqueue | Point::Api | Point::Database => {}
            Point::Worker | Point::Update => self.app.start_worker().await,
            _ => {
                self.app.start_worker().await;
                self.second = Process::start(Program::Worker, &[], &self.app.worker_env);
            }
        }
        self.tell_apis();
    }

    /// The homeserver holds every phone's newest token and no other; nothing is stuck, double or dead.
    async fn compare(&self) {
        self.app.homeserver.repair().await;
        // A killed worker's jobs are free 10 to 12 seconds after another one has found its feet.
        let no_job = async || self.app.database.live_jobs().await == 0;
        let settled = within(Duration::from_mins(1), no_job).await;
        assert!(settled, "stuck: {:#?}", self.app.database.jobs().await);
        let mut wanted: Vec<_> = self
            .phones
            .iter()
            .map(|(phone, _)| (&*phone.user, &*phone.token))
            .collect();
        wanted.sort_unstable();
        let pushers = self.app.homeserver.pushers();
        let mut held: Vec<_> = pushers
            .iter()
            .map(|pusher| (&*pusher.user_id, &*pusher.pushkey))
            .collect();
        held.sort_unstable();
        assert_eq!(held, wanted);
        assert_eq!(self.app.database.count("jobs").await, 0, "dead letters");
        for row in self.app.database.pushers().await {
            let as_wanted = matches!(
                (&*row.wanted, &*row.state),
                ("present", "registered") | ("absent", "removed")
            );
            assert!(as_wanted, "{row:?}");
        }
        assert_eq!(self.app.database.integrity().await, "ok");
    }

    /// No two jobs of one pusher; the database itself sees to that, and this that it does.
    async fn no_duplicates(&self) {
        let mut keys: Vec<_> = self
            .app
            .database
            .jobs()
            .await
            .into_iter()
            .map(|job| job.pusher_id)
            .collect();
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert!(keys.len() == count && !keys.contains(&None), "{keys:?}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_every_kill() {
    let seed = setting("CRASH_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let rounds: usize = setting("CRASH_ROUNDS").unwrap_or(POINTS.len());
    println!("CRASH_SEED={seed} CRASH_ROUNDS={rounds}");
    let began = Instant::now();
    let mut scene = Scene::start(seed).await;
    let mut settling = Vec::new();
    let mut done = 0;
    while done < rounds {
        // Each point as often as any other, in an order of its own each time.
        let mut points: Vec<_> = (done..rounds)
            .take(ROUNDS_PER_CHECK)
            .map(|n| POINTS[n % POINTS.len()])
            .collect();
        for last in (1..points.len()).rev() {
            let other = scene.choices.pick(0..u64::try_from(last).unwrap() + 1);
            points.swap(last, usize::try_from(other).unwrap());
        }
        done += points.len();
        settling.push(scene.rounds(&points).await);
        scene.no_duplicates().await;
    }
    let load = &scene.load;
    println!(
        "{rounds} rounds in {:.0?}: {:?}\n{} reports acknowledged, {} failed and repeated; {} calls set or \
         deleted pushers; all {PHONES} newest tokens and no other are at the homeserver; settled at most {:.1?} after",
        began.elapsed(),
        scene.kills,
        load.acknowledged.load(Ordering::SeqCst),
        load.failed.load(Ordering::SeqCst),
        scene.app.homeserver.sets().len(),
        settling.iter().max().copied().unwrap_or_default(),
    );
}
