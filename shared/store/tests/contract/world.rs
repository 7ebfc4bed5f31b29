//! The store under test between phones, workers and a homeserver, all in one thread so that every order of
//! events can be tried.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::join_all;
use matrix2acrobits_shared::{
    clock::Clock,
    flow::{Claim, Finished, GateReport, Heartbeat, Held, PushTarget},
    ids::{AppId, Device, Pushkey, Selector, UserId},
    rules::{
        pushers::{FinishSettings, Goal, Loaded, Outcome, PusherTask, Replay},
        report::{Field, Report, Reporter, Saved},
    },
};
use matrix2acrobits_store::{DatabaseUrl, Role, Store};
use sqlx::SqlitePool;
use tempfile::TempDir;

use crate::{
    homeserver::Homeserver,
    steps::{Answer, Sent, Step, Token, WORKERS},
};

const SETTINGS: &str = "event_id_only https://push.example.org";
const START: i64 = 1_800_000_000;
/// The longest backoff, in seconds.
const LONGEST_WAIT: i64 = 20;

/// A job in a worker's hands.
#[derive(Debug)]
struct Run {
    held: Held,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Taken,
    Loaded(PusherTask),
    /// The homeserver was asked and does not hold it.
    Missing(PusherTask),
    Acted(PusherTask, Outcome),
}

/// An app id and a pushkey.
pub(crate) type Pair = (u8, u8);

/// What a phone reported, as we expect it to be stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Phone {
    pub(crate) owner: Option<u8>,
    pub(crate) pair: Option<Pair>,
    pub(crate) dead: bool,
}

pub(crate) struct World {
    pub(crate) store: Store,
    pub(crate) homeserver: Homeserver,
    pub(crate) append: bool,
    pub(crate) phones: BTreeMap<(u8, u8), Phone>,
    pub(crate) mappings: BTreeMap<u8, u8>,
    /// Who reported a pair last.
    pub(crate) claims: BTreeMap<Pair, u8>,
    pub(crate) forgotten: bool,
    now: i64,
    workers: Vec<(Arc<str>, i64)>,
    /// For looking behind the store.
    raw: SqlitePool,
    started: usize,
    runs: Vec<Run>,
    _folder: TempDir,
}

pub(crate) fn key(number: u8) -> Pushkey {
    Pushkey::parse(&format!("key-{number}")).unwrap()
}

pub(crate) fn app(number: u8) -> AppId {
    AppId::parse(&format!("app-{number}")).unwrap()
}

pub(crate) fn selector(number: u8) -> Selector {
    Selector::parse(&format!("selector-{number}")).unwrap()
}

fn phone(number: u8) -> Device {
    Device::parse(&format!("device-{number}")).unwrap()
}

pub(crate) fn user(number: u8) -> UserId {
    UserId::parse(&format!("@user-{number}:example.org")).unwrap()
}

/// Memory where there is some, for thousands of small databases with `synchronous=FULL`.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

impl Sent {
    fn report(self) -> Report {
        let (token_msgs, app_id_msgs) = match self.token {
            Token::Absent => (Field::Absent, Field::Absent),
            Token::Clear => (Field::Clear, Field::Absent),
            Token::Set { key: k, app: a } => (Field::Set(key(k)), Field::Set(app(a))),
        };
        Report {
            from: Reporter {
                selector: selector(self.selector),
                device: Some(phone(self.device)),
                owner: self.owner.map(user),
                strangers: true,
            },
            token_msgs,
            app_id_msgs,
            token_calls: Field::Absent,
            app_id_calls: Field::Absent,
        }
    }
}

impl World {
    pub(crate) async fn new(append: bool) -> Self {
        let folder = folder();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        let database = url.parse::<DatabaseUrl>().unwrap();
        let clock = Clock::manual(START);
        let store = Store::open(&database, Role::Ahead, clock).await;
        let mut world = Self {
            store: store.unwrap(),
            raw: SqlitePool::connect(&url).await.unwrap(),
            homeserver: Homeserver::default(),
            append,
            phones: BTreeMap::new(),
            mappings: BTreeMap::new(),
            claims: BTreeMap::new(),
            forgotten: false,
            now: START,
            workers: Vec::new(),
            started: 0,
            runs: Vec::new(),
            _folder: folder,
        };
        for _ in 0..WORKERS {
            let name = world.new_worker().await;
            world.workers.push(name);
        }
        world
    }

    async fn new_worker(&mut self) -> (Arc<str>, i64) {
        self.started += 1;
        let name: Arc<str> = format!("worker-{}", self.started).into();
        let registered = self
            .store
            .register_worker(name.clone(), SETTINGS.into())
            .await;
        (name, registered.unwrap())
    }

    pub(crate) async fn take(&mut self, step: &Step) {
        match *step {
            Step::Reports(ref sent) => self.reports(sent).await,
            Step::Remove { selector, device } => self.remove(selector, device).await,
            Step::Map { selector, user } => self.map(selector, Some(user)).await,
            Step::Unmap { selector } => self.map(selector, None).await,
            Step::PushToGoneToken { pusher } => self.push_to_gone_token(pusher).await,
            Step::HomeserverForgets => {
                self.homeserver.pushers.clear();
                self.forgotten = true;
            }
            Step::Fetch {
                worker,
                limit,
                suspect,
            } => self.fetch(worker, limit, suspect).await,
            Step::Advance { job, answer } => {
                if !self.runs.is_empty() {
                    let run = self.runs.remove(usize::from(job) % self.runs.len());
                    if let Some(run) = self.advance(run, answer).await {
                        self.runs.push(run);
                    }
                }
            }
            Step::Kill { worker, land } => self.kill(worker, land).await,
            Step::Stop { worker } => self.stop(worker).await,
            Step::FinishAll => self.finish_all().await,
            Step::Heartbeat { worker } => self.beat(worker).await,
            Step::Tick { seconds } => self.pass(seconds.into()),
            Step::Jump { seconds } => self.pass(seconds),
            Step::Reconcile => {
                self.store.reconcile().await.unwrap();
            }
            Step::ReplayAll => self.replay(Replay::All).await,
        }
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        self.store.clock().set(self.now);
    }

    pub(crate) async fn replay(&self, replay: Replay) {
        let mut after = 0;
        while let Some((last, _)) = self.store.replay_chunk(&replay, after).await.unwrap() {
            after = last;
        }
    }

    /// What comes at once may be taken in any order, but the model needs one: as it was sent.
    async fn reports(&mut self, sent: &[Sent]) {
        let saving = sent.iter().map(|it| self.store.save_report(it.report()));
        for (it, saved) in sent.iter().zip(join_all(saving).await) {
            self.reported(*it, &saved.unwrap());
        }
    }

    fn reported(&mut self, sent: Sent, saved: &Saved) {
        let Sent {
            selector,
            device,
            token,
            owner,
        } = sent;
        if !matches!(saved, Saved::Done { .. }) {
            return;
        }
        let known = self.phones.contains_key(&(selector, device));
        if !known && !matches!(token, Token::Set { .. }) {
            return;
        }
        let phone = self.phones.entry((selector, device)).or_default();
        phone.owner = owner.or(phone.owner);
        phone.dead = false;
        match token {
            Token::Absent => {}
            Token::Clear => phone.pair = None,
            Token::Set { key, app } => phone.pair = Some((app, key)),
        }
        self.claim(selector, device);
    }

    fn claim(&mut self, selector: u8, device: u8) {
        if let Some(phone) = self.phones.get(&(selector, device))
            && let (Some(pair), Some(user)) = (phone.pair, self.user_of(selector, phone))
            && !phone.dead
        {
            self.claims.insert(pair, user);
        }
    }

    pub(crate) fn user_of(&self, selector: u8, phone: &Phone) -> Option<u8> {
        self.mappings.get(&selector).copied().or(phone.owner)
    }

    async fn remove(&mut self, number: u8, device: Option<u8>) {
        let from = Reporter {
            selector: selector(number),
            device: device.map(phone),
            owner: None,
            strangers: true,
        };
        self.store.remove_account(from, None).await.unwrap();
        self.phones
            .retain(|&(s, d), _| s != number || device.is_some_and(|device| device != d));
    }

    async fn map(&mut self, number: u8, to: Option<u8>) {
        if let Some(to) = to {
            let put = self.store.put_mapping(selector(number), user(to));
            put.await.unwrap();
            self.mappings.insert(number, to);
        } else {
            self.store.delete_mapping(selector(number)).await.unwrap();
            self.mappings.remove(&number);
        }
        let devices: Vec<_> = self.phones.keys().copied().collect();
        for (selector, device) in devices {
            if selector == number {
                self.claim(selector, device);
            }
        }
    }

    /// Which row the api takes for this pusher (`api::tokens`).
    pub(crate) async fn target(&self, pusher: &crate::homeserver::Held) -> Option<PushTarget> {
        let rows = self.store.targets(&pusher.key).await.unwrap();
        let mut rows: Vec<_> = rows.into_iter().map(|row| row.target).collect();
        rows.retain(|row| row.app_id.as_str() == pusher.app);
        rows.sort_by_key(|row| (row.selector.as_str() != pusher.selector, row.dead));
        rows.into_iter().next()
    }

    /// PNM calls it gone, we reject it, and the homeserver drops that pusher.
    async fn push_to_gone_token(&mut self, number: u8) {
        if self.homeserver.pushers.is_empty() {
            return;
        }
        let index = usize::from(number) % self.homeserver.pushers.len();
        let pusher = self.homeserver.pushers.remove(index);
        let Some(target) = self.target(&pusher).await else {
            return;
        };
        if !target.dead {
            let marked = self.store.mark_dead(&target, Some(&pusher.selector));
            assert!(marked.await.unwrap());
            let rows = self.store.list_tokens(target.row_id - 1, 1).await.unwrap();
            let of = |number: u8| rows[0].device == phone(number).as_str();
            for ((at, device), phone) in &mut self.phones {
                if selector(*at) == target.selector && of(*device) {
                    phone.dead = true;
                }
            }
        }
    }

    async fn fetch(&mut self, worker: u8, limit: u8, suspect: bool) {
        let claim = Claim {
            worker: self.workers[usize::from(worker)].0.clone(),
            settings: SETTINGS.into(),
            limit: limit.into(),
            suspect,
        };
        let claimed = self.store.claim(claim).await.unwrap();
        for held in claimed.jobs {
            if held.suspect {
                self.store.begin(held.clone()).await.unwrap();
            }
            self.runs.push(Run {
                held,
                stage: Stage::Taken,
            });
        }
    }

    /// What the worker does next with a job (`worker::sync_pusher`). None when it is through with it.
    async fn advance(&mut self, run: Run, answer: Answer) -> Option<Run> {
        let Run { held, stage } = run;
        let stage = match stage {
            Stage::Taken => self.load(&held).await?,
            Stage::Loaded(row) => match (row.goal, answer) {
                (Goal::Check, Answer::Ok) if self.homeserver.has(&row) => {
                    Stage::Acted(row, Outcome::Registered)
                }
                (Goal::Check, Answer::Ok) => Stage::Missing(row),
                (Goal::Check, answer) => {
                    // Looking changes nothing.
                    let outcome = self.outcome(answer, Outcome::Registered, false);
                    Stage::Acted(row, outcome)
                }
                _ => self.act(row, answer),
            },
            Stage::Missing(row) => self.act(row, answer),
            Stage::Acted(row, outcome) => {
                self.finish(held, &row, outcome).await;
                return None;
            }
        };
        Some(Run { held, stage })
    }

    async fn load(&self, held: &Held) -> Option<Stage> {
        let row = match self.store.task(held, self.append).await.unwrap() {
            Loaded::Task(row) => row,
            Loaded::Gone => {
                self.store.drop_job(held.clone()).await.unwrap();
                return None;
            }
            Loaded::Unreadable => {
                let error = "cannot be read".into();
                self.store.kill_job(held.clone(), error).await.unwrap();
                return None;
            }
        };
        Some(match row.goal {
            Goal::Set | Goal::Check | Goal::Delete => Stage::Loaded(row),
            Goal::Outdone => Stage::Acted(row, Outcome::Outdone),
            Goal::Nothing | Goal::Yield => Stage::Acted(row, Outcome::Nothing),
        })
    }

    fn act(&mut self, row: PusherTask, answer: Answer) -> Stage {
        if matches!(answer, Answer::Ok | Answer::LostAfter) {
            self.land(&row);
        }
        let done = match row.goal {
            Goal::Delete => Outcome::Removed,
            _ => Outcome::Registered,
        };
        let outcome = self.outcome(answer, done, true);
        Stage::Acted(row, outcome)
    }

    fn land(&mut self, row: &PusherTask) {
        match row.goal {
            Goal::Delete => self.homeserver.delete(row),
            _ => self.homeserver.set(row, self.append),
        }
    }

    fn outcome(&self, answer: Answer, done: Outcome, changes: bool) -> Outcome {
        let retry = |maybe_done, strict: bool| Outcome::Retry {
            run_at: self.now + if strict { 40 } else { LONGEST_WAIT },
            error: "no".into(),
            maybe_done,
            strict,
        };
        match answer {
            Answer::Ok => done,
            Answer::LostAfter | Answer::LostBefore => retry(changes, false),
            Answer::Failed => retry(false, false),
            Answer::Limited => retry(false, true),
            Answer::Refused => Outcome::Dead { error: "no".into() },
        }
    }

    async fn finish_all(&mut self) {
        let (answered, rest) = std::mem::take(&mut self.runs)
            .into_iter()
            .partition(|run| matches!(run.stage, Stage::Acted(..)));
        self.runs = rest;
        let answered: Vec<Run> = answered;
        let finishing = answered.iter().filter_map(|run| match &run.stage {
            Stage::Acted(row, outcome) => Some(self.finish(run.held.clone(), row, outcome.clone())),
            _ => None,
        });
        join_all(finishing).await;
    }

    async fn finish(&self, held: Held, row: &PusherTask, outcome: Outcome) {
        let settings = FinishSettings {
            fingerprint: SETTINGS.into(),
            settings: SETTINGS.into(),
            append: self.append,
            refresh_after: 86_400,
        };
        let finished = self.store.finish(Finished {
            held,
            task: row.clone(),
            outcome,
            settings,
        });
        finished.await.unwrap();
    }

    async fn kill(&mut self, worker: u8, land: u8) {
        let (name, _) = self.workers[usize::from(worker)].clone();
        let (theirs, others) = std::mem::take(&mut self.runs)
            .into_iter()
            .partition(|run| run.held.worker == name);
        self.runs = others;
        for (index, run) in Vec::<Run>::into_iter(theirs).enumerate() {
            // What was on its way may arrive, unless others have long taken the worker for dead.
            let lands = land >> (index % 8) & 1 == 1 && self.holds(&run.held).await;
            match &run.stage {
                Stage::Missing(row) if lands => self.land(row),
                Stage::Loaded(row) if lands && row.goal != Goal::Check => self.land(row),
                _ => {}
            }
        }
        self.workers[usize::from(worker)] = self.new_worker().await;
    }

    async fn holds(&self, held: &Held) -> bool {
        let lock: Option<Option<String>> =
            sqlx::query_scalar("SELECT lock_by FROM Jobs WHERE id = ?")
                .bind(&held.job_id)
                .fetch_optional(&self.raw)
                .await
                .unwrap();
        lock.flatten().as_deref() == Some(held.worker.as_ref())
    }

    async fn stop(&mut self, worker: u8) {
        let (name, _) = self.workers[usize::from(worker)].clone();
        let (theirs, others) = std::mem::take(&mut self.runs)
            .into_iter()
            .partition(|run| run.held.worker == name);
        self.runs = others;
        for run in Vec::<Run>::into_iter(theirs) {
            if !matches!(run.stage, Stage::Taken) {
                self.run_to_its_end(run).await;
            }
        }
        self.store.release_worker(name).await.unwrap();
        self.workers[usize::from(worker)] = self.new_worker().await;
    }

    async fn run_to_its_end(&mut self, run: Run) {
        let mut next = Some(run);
        while let Some(run) = next {
            next = self.advance(run, Answer::Ok).await;
        }
    }

    async fn beat(&self, worker: u8) {
        let (name, started) = self.workers[usize::from(worker)].clone();
        let heartbeat = Heartbeat {
            worker: name,
            started,
            settings: SETTINGS.into(),
            gate: GateReport::default(),
        };
        self.store.heartbeat(heartbeat).await.unwrap();
    }

    /// Everything works from now on, until nothing is left to do.
    pub(crate) async fn settle(&mut self) {
        for run in std::mem::take(&mut self.runs) {
            self.run_to_its_end(run).await;
        }
        // Longer in all than the homeserver may ask for.
        for round in 0..80 {
            for worker in 0..WORKERS {
                self.beat(worker).await;
            }
            self.store.correct_waits(LONGEST_WAIT).await.unwrap();
            self.fetch(0, 64, true).await;
            for run in std::mem::take(&mut self.runs) {
                self.run_to_its_end(run).await;
            }
            let live: i64 = self
                .count("SELECT count(*) FROM Jobs WHERE status <> 'Killed'")
                .await;
            if live == 0 {
                return;
            }
            self.pass(if round < 15 { 5 } else { 60 });
        }
        panic!(
            "a job is stuck: {:?}",
            self.store.list_jobs(None, "", 9).await
        );
    }

    pub(crate) async fn count(&self, sql: &'static str) -> i64 {
        let count = sqlx::query_scalar(sql).fetch_one(&self.raw);
        count.await.unwrap()
    }
}
