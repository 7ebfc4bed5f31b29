//! The store under test between phones, workers and a homeserver, all in one thread so that every order of events can
//! be tried. This module has the phones and the operator, and [`crate::workers`] has the workers.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    pin::pin,
    sync::Arc,
};

use futures::future::join_all;
use matrix2acrobits_shared::{
    clock::Clock,
    flow::PushTarget,
    ids::{AppId, Device, Pushkey, Selector, UserId},
    rules::{
        pushers::Replay,
        report::{Field, Report, Reporter, Saved},
    },
};
use matrix2acrobits_store::{Database, Role, Store};

use crate::{
    behind::{Behind, Spoilt},
    homeserver::Homeserver,
    steps::{Sent, Step, Token, WORKERS},
    workers::{self, Run},
};

const START: i64 = 1_800_000_000;

/// An app id and a pushkey.
pub(crate) type Pair = (u8, u8);

/// What a phone reported, as we expect it to be stored.
#[derive(Debug, Clone, Default)]
pub(crate) struct Phone {
    pub(crate) owner: Option<u8>,
    pub(crate) pair: Option<Pair>,
    pub(crate) dead: bool,
    /// It has belonged to nobody since its last report, or then. The store need not know exactly whether another phone
    /// with the same token reported before or after it.
    vague: bool,
}

pub(crate) struct World {
    /// The api's store.
    pub(crate) store: Store,
    /// The worker's store: another writer.
    pub(crate) other: Store,
    pub(crate) homeserver: Homeserver,
    pub(crate) append: bool,
    /// The name of the key of the marks, as far as the workers know.
    pub(crate) key: String,
    pub(crate) phones: BTreeMap<(u8, u8), Phone>,
    pub(crate) mappings: BTreeMap<u8, u8>,
    /// Who reported a pair last.
    pub(crate) claims: BTreeMap<Pair, u8>,
    /// The phones in the order of their last reports.
    reported: Vec<(u8, u8)>,
    pub(crate) forgotten: bool,
    pub(crate) now: i64,
    pub(crate) workers: Vec<(Arc<str>, i64)>,
    /// Workers that did not get the result of their last claim.
    pub(crate) doubtful: HashSet<Arc<str>>,
    /// The database, reached without the store.
    pub(crate) behind: Behind,
    started: usize,
    pub(crate) runs: Vec<Run>,
    spoilt: usize,
    /// Dead letters that stay, because a row cannot be read.
    pub(crate) unreadable: usize,
    /// Those of them whose job has lost its pusher.
    pub(crate) orphans: usize,
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

fn reporter(number: u8, device: Option<u8>) -> Reporter {
    Reporter {
        selector: selector(number),
        device: device.map(phone),
        owner: None,
        strangers: true,
    }
}

pub(crate) async fn open(behind: &Behind, role: Role, clock: Clock) -> Store {
    let database = Database {
        url: behind.url().parse().unwrap(),
        max_connections: 4,
    };
    Store::open(&database, role, clock).await.unwrap()
}

/// Begins something without waiting for its end.
async fn begin<T>(work: impl Future<Output = T>, polls: u8) {
    let mut work = pin!(work);
    for _ in 0..polls {
        if futures::poll!(work.as_mut()).is_ready() {
            return;
        }
        tokio::task::yield_now().await;
    }
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
    pub(crate) async fn new(behind: Behind, append: bool) -> Self {
        let clock = Clock::manual(START);
        let store = open(&behind, Role::Ahead, clock.clone()).await;
        behind.empty().await;
        let key = store.mark_keys().await.unwrap().current;
        let mut world = Self {
            store,
            other: open(&behind, Role::Behind, clock).await,
            behind,
            homeserver: Homeserver::default(),
            append,
            key: key.name().to_owned(),
            phones: BTreeMap::new(),
            mappings: BTreeMap::new(),
            claims: BTreeMap::new(),
            reported: Vec::new(),
            forgotten: false,
            now: START,
            workers: Vec::new(),
            doubtful: HashSet::new(),
            started: 0,
            runs: Vec::new(),
            spoilt: 0,
            unreadable: 0,
            orphans: 0,
        };
        for _ in 0..WORKERS {
            let name = world.new_worker().await;
            world.workers.push(name);
        }
        world
    }

    pub(crate) async fn new_worker(&mut self) -> (Arc<str>, i64) {
        self.started += 1;
        let name: Arc<str> = format!("worker-{}", self.started).into();
        let registered = self
            .other
            .register_worker(name.clone(), workers::SETTINGS.into())
            .await;
        (name, registered.unwrap())
    }

    pub(crate) async fn take(&mut self, step: &Step) {
        match *step {
            Step::Reports(ref sent) => self.reports(sent).await,
            Step::HangUp { sent, polls } => self.hang_up(sent, polls).await,
            Step::HangUpRemoval { selector, polls } => self.hang_up_removal(selector, polls).await,
            Step::AtOnce { ref sent, worker } => self.at_once(sent, worker).await,
            Step::Spoil(what) => self.spoil(what).await,
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
                answered,
            } => self.fetch(worker, limit, suspect, answered).await,
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
                self.other.reconcile(self.append).await.unwrap();
            }
            Step::ReplayAll => self.replay(Replay::All).await,
            Step::RenewKey => {
                self.store.renew_mark_key().await.unwrap();
            }
            Step::NoticeKey => self.notice_key().await,
        }
    }

    /// The states of all jobs.
    pub(crate) async fn jobs(&self) -> Vec<String> {
        let jobs = self.store.list_jobs(None, "", 10_000).await.unwrap();
        jobs.into_iter().map(|job| job.state).collect()
    }

    pub(crate) fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        self.store.clock().set(self.now);
    }

    pub(crate) async fn replay(&self, replay: Replay) {
        let mut after = 0;
        while let Some((last, _)) = self.other.replay_chunk(&replay, after).await.unwrap() {
            after = last;
        }
    }

    /// The store may save reports that come at the same time in any order, but the model needs one: the order of
    /// sending.
    async fn reports(&mut self, sent: &[Sent]) {
        let saving = sent
            .iter()
            .map(|report| self.store.save_report(report.report()));
        for (report, saved) in sent.iter().zip(join_all(saving).await) {
            self.reported(*report, &saved.unwrap());
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
        let vague = self
            .user_of(selector, &self.phones[&(selector, device)])
            .is_none();
        self.phones.entry((selector, device)).or_default().vague = vague;
        self.reported.retain(|phone| *phone != (selector, device));
        self.reported.push((selector, device));
        self.claim(selector, device);
    }

    /// The phone hangs up. A report that has reached the writer is saved, and any other is not.
    async fn hang_up(&mut self, sent: Sent, polls: u8) {
        begin(self.store.save_report(sent.report()), polls).await;
        self.written().await;
        if polls > 0 {
            let saved = Saved::Done {
                changed: true,
                user: None,
                stranger: false,
                same_row: None,
            };
            self.reported(sent, &saved);
        }
    }

    async fn hang_up_removal(&mut self, number: u8, polls: u8) {
        begin(
            self.store.remove_account(reporter(number, None), None),
            polls,
        )
        .await;
        self.written().await;
        if polls > 0 {
            self.phones.retain(|&(s, _), _| s != number);
        }
    }

    /// Returns when all earlier writes of the api are in the database, because the writer keeps the order.
    async fn written(&self) {
        let nobody = Selector::parse("nobody").unwrap();
        assert!(!self.store.delete_mapping(nobody).await.unwrap());
    }

    /// Phones report while a worker records outcomes, sends a heartbeat and looks for pushers without a job.
    async fn at_once(&mut self, sent: &[Sent], worker: u8) {
        let answered = self.take_answered();
        let saving = join_all(
            sent.iter()
                .map(|report| self.store.save_report(report.report())),
        );
        let finishing = join_all(answered.iter().map(|run| self.finish(run)));
        let (saved, (), _, reconciled) = tokio::join!(
            saving,
            self.beat(worker),
            finishing,
            self.other.reconcile(self.append)
        );
        reconciled.unwrap();
        for (report, saved) in sent.iter().zip(saved) {
            self.reported(*report, &saved.unwrap());
        }
    }

    /// Spoils the rows of a phone that shares nothing with others.
    async fn spoil(&mut self, what: Spoilt) {
        self.spoilt += 1;
        let name = format!("spoilt-{}", self.spoilt);
        let selector = Selector::parse(&name).unwrap();
        let user = UserId::parse(&format!("@{name}:example.org")).unwrap();
        self.store
            .put_mapping(selector.clone(), user)
            .await
            .unwrap();
        let mut report = Sent {
            selector: 0,
            device: 0,
            token: Token::Set { key: 0, app: 0 },
            owner: None,
        }
        .report();
        report.from.selector = selector;
        report.token_msgs = Field::Set(Pushkey::parse(&name).unwrap());
        self.store.save_report(report).await.unwrap();
        let pushers = self.store.list_pushers(None, 0, 1000).await.unwrap();
        let pusher = pushers
            .iter()
            .find(|pusher| pusher.pushkey == name)
            .unwrap();
        let what = self.behind.spoil(what, pusher.id).await;
        self.unreadable += usize::from(what.is_fatal());
        self.orphans += usize::from(what == Spoilt::PusherOfJob);
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
        let from = reporter(number, device);
        self.store.remove_account(from, None).await.unwrap();
        self.phones
            .retain(|&(s, d), _| s != number || device.is_some_and(|device| device != d));
    }

    async fn map(&mut self, number: u8, to: Option<u8>) {
        // Who has left a pair and gets into it again by a mapping is not the one who reported last.
        let phones = self.phones.iter().filter(|(_, phone)| !phone.dead);
        let held: BTreeSet<_> = phones
            .filter_map(|(at, phone)| Some((phone.pair?, self.user_of(at.0, phone)?)))
            .collect();
        self.claims
            .retain(|pair, user| held.contains(&(*pair, *user)));
        if let Some(to) = to {
            let put = self.store.put_mapping(selector(number), user(to));
            put.await.unwrap();
            if self.mappings.insert(number, to) == Some(to) {
                // Said again, it changes nothing.
                return;
            }
        } else {
            self.store.delete_mapping(selector(number)).await.unwrap();
            if self.mappings.remove(&number).is_none() {
                return;
            }
            let phones = self.phones.iter_mut().filter(|(at, _)| at.0 == number);
            for (_, phone) in phones.filter(|(_, phone)| phone.owner.is_none()) {
                phone.vague = true;
            }
        }
        // Whoever owns the phone that reported last has it.
        for (selector, device) in self.reported.clone() {
            let holds = |at: &(u8, u8)| {
                let of = |at| self.phones.get(at).filter(|phone| !phone.dead);
                let pair = of(at).and_then(|phone| phone.pair);
                let user = of(at).and_then(|phone| self.user_of(at.0, phone));
                pair.filter(|_| user.is_some())
            };
            let at = (selector, device);
            let Some(pair) = holds(&at).filter(|_| selector == number) else {
                continue;
            };
            let others = || {
                self.reported
                    .iter()
                    .filter(|other| holds(other) == Some(pair))
            };
            if others().any(|other| self.phones[other].vague) {
                self.claims.remove(&pair);
            } else if others().next_back() == Some(&at) {
                self.claim(selector, device);
            }
        }
    }

    /// The row that the api chooses for this pusher (`api::notify`).
    pub(crate) async fn target(&self, pusher: &crate::homeserver::Held) -> Option<PushTarget> {
        let rows = self.store.targets(&pusher.key).await.unwrap();
        let mut rows: Vec<_> = rows.into_iter().map(|row| row.target).collect();
        rows.retain(|row| row.app_id.as_str() == pusher.app);
        rows.sort_by_key(|row| (row.selector.as_str() != pusher.selector, row.dead));
        rows.into_iter().next()
    }

    /// PNM calls a token gone, we reject it, and the homeserver drops that pusher.
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
}
