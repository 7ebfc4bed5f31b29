//! What can happen, in any order, and how proptest picks it.

use proptest::prelude::*;

use crate::behind::Spoilt;

/// How the homeserver responds to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Ok,
    /// The homeserver did it, but the response got lost.
    LostAfter,
    /// The homeserver did not do it, and we cannot know.
    LostBefore,
    /// The homeserver certainly did not do it. Retry.
    Failed,
    /// 429.
    Limited,
    /// 4xx: do not retry.
    Refused,
}

/// What a report says about the token for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Absent,
    Clear,
    Set { key: u8, app: u8 },
}

/// What a phone sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) selector: u8,
    pub(crate) device: u8,
    pub(crate) token: Token,
    /// The user that a login proved.
    pub(crate) owner: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Reports that come at the same time and share a transaction.
    Reports(Vec<Sent>),
    /// A phone hangs up after its request was polled this many times.
    HangUp {
        sent: Sent,
        polls: u8,
    },
    HangUpRemoval {
        selector: u8,
        polls: u8,
    },
    /// Two processes write at the same time: phones report while a worker records outcomes.
    AtOnce {
        sent: Vec<Sent>,
        worker: u8,
    },
    /// Spoils the rows of another phone.
    Spoil(Spoilt),
    Remove {
        selector: u8,
        /// None means all devices.
        device: Option<u8>,
    },
    Map {
        selector: u8,
        user: u8,
    },
    Unmap {
        selector: u8,
    },
    /// The homeserver pushes to one of its pushers, and PNM calls the token gone.
    PushToGoneToken {
        pusher: u8,
    },
    /// The homeserver is restored from a backup without pushers.
    HomeserverForgets,
    /// A worker takes jobs.
    Fetch {
        worker: u8,
        limit: u8,
        suspect: bool,
        /// If false, the worker never learns which jobs it got.
        answered: bool,
    },
    /// A running job takes its next step.
    Advance {
        job: u8,
        answer: Answer,
    },
    /// SIGKILL. `land` says which of the worker's requests still reach the homeserver.
    Kill {
        worker: u8,
        land: u8,
    },
    /// SIGTERM.
    Stop {
        worker: u8,
    },
    /// Records all jobs with a response, in one transaction.
    FinishAll,
    Heartbeat {
        worker: u8,
    },
    Tick {
        seconds: u8,
    },
    /// Somebody sets the machine's clock.
    Jump {
        seconds: i64,
    },
    Reconcile,
    ReplayAll,
    /// The operator renews the key of the marks.
    RenewKey,
    /// The workers notice the new key.
    NoticeKey,
}

pub(crate) const WORKERS: u8 = 2;
const SELECTORS: u8 = 3;
const DEVICES: u8 = 2;
const KEYS: u8 = 2;
const USERS: u8 = 2;

/// Few names, so that they meet often.
pub(crate) fn step() -> impl Strategy<Value = Step> {
    let report = (
        0..SELECTORS,
        prop::bool::weighted(0.2),
        token(),
        prop::option::weighted(0.3, 0..USERS),
    );
    let report = report.prop_map(|(selector, device, token, owner)| Sent {
        selector,
        device: u8::from(device),
        token,
        owner,
    });
    prop_oneof![
        8 => report.clone().prop_map(|sent| Step::Reports(vec![sent])),
        3 => prop::collection::vec(report.clone(), 2..6).prop_map(Step::Reports),
        // A report with a login may be refused. The model could not tell, because a phone that hangs up gets no result.
        2 => (report.clone(), 0..4_u8).prop_map(|(sent, polls)| Step::HangUp {
            sent: Sent { owner: None, ..sent },
            polls,
        }),
        1 => (0..SELECTORS, 0..4_u8)
            .prop_map(|(selector, polls)| Step::HangUpRemoval { selector, polls }),
        3 => (prop::collection::vec(report, 1..4), 0..WORKERS)
            .prop_map(|(sent, worker)| Step::AtOnce { sent, worker }),
        1 => spoilt().prop_map(Step::Spoil),
        3 => (0..SELECTORS, prop::option::weighted(0.3, 0..DEVICES))
            .prop_map(|(selector, device)| Step::Remove { selector, device }),
        5 => (0..SELECTORS, 0..USERS).prop_map(|(selector, user)| Step::Map { selector, user }),
        1 => (0..SELECTORS).prop_map(|selector| Step::Unmap { selector }),
        2 => any::<u8>().prop_map(|pusher| Step::PushToGoneToken { pusher }),
        1 => Just(Step::HomeserverForgets),
        9 => (0..WORKERS, 1..6_u8, any::<bool>(), prop::bool::weighted(0.9)).prop_map(
            |(worker, limit, suspect, answered)| Step::Fetch { worker, limit, suspect, answered }
        ),
        36 => (any::<u8>(), answer()).prop_map(|(job, answer)| Step::Advance { job, answer }),
        3 => (0..WORKERS, any::<u8>()).prop_map(|(worker, land)| Step::Kill { worker, land }),
        1 => (0..WORKERS).prop_map(|worker| Step::Stop { worker }),
        3 => Just(Step::FinishAll),
        5 => (0..WORKERS).prop_map(|worker| Step::Heartbeat { worker }),
        5 => (0..20_u8).prop_map(|seconds| Step::Tick { seconds }),
        1 => prop_oneof![Just(-90_000_000_i64), -5000..5000_i64, Just(90_000_000_i64)]
            .prop_map(|seconds| Step::Jump { seconds }),
        1 => Just(Step::Reconcile),
        1 => Just(Step::ReplayAll),
        1 => Just(Step::RenewKey),
        1 => Just(Step::NoticeKey),
    ]
}

/// Two users who want the same pushkey. There are few kinds of events, so that every order of them comes up.
pub(crate) fn race() -> impl Strategy<Value = Step> {
    let phone = 0..2_u8;
    let token = Token::Set { key: 0, app: 0 };
    let report = phone.clone().prop_map(move |selector| Sent {
        selector,
        device: 0,
        token,
        owner: None,
    });
    prop_oneof![
        3 => report.clone().prop_map(|sent| Step::Reports(vec![sent])),
        1 => prop::collection::vec(report, 2..4).prop_map(Step::Reports),
        1 => Just(Step::FinishAll),
        3 => phone.prop_map(|selector| Step::Remove { selector, device: None }),
        4 => (0..WORKERS, prop::bool::weighted(0.9)).prop_map(
            |(worker, answered)| Step::Fetch { worker, limit: 2, suspect: true, answered }
        ),
        14 => (0..4_u8, race_answer()).prop_map(|(job, answer)| Step::Advance { job, answer }),
        2 => (0..WORKERS, 0..4_u8).prop_map(|(worker, land)| Step::Kill { worker, land }),
        2 => (0..WORKERS).prop_map(|worker| Step::Heartbeat { worker }),
        2 => Just(Step::Tick { seconds: 11 }),
        1 => Just(Step::PushToGoneToken { pusher: 0 }),
    ]
}

fn spoilt() -> impl Strategy<Value = Spoilt> {
    prop_oneof![
        Just(Spoilt::Payload),
        Just(Spoilt::PusherOfJob),
        Just(Spoilt::User),
        Just(Spoilt::Harmless),
    ]
}

fn race_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        10 => Just(Answer::Ok),
        2 => Just(Answer::LostAfter),
        1 => Just(Answer::Failed),
        1 => Just(Answer::Refused),
    ]
}

fn token() -> impl Strategy<Value = Token> + Clone {
    prop_oneof![
        1 => Just(Token::Absent),
        1 => Just(Token::Clear),
        10 => (0..KEYS, prop::bool::weighted(0.1))
            .prop_map(|(key, app)| Token::Set { key, app: u8::from(app) }),
    ]
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        12 => Just(Answer::Ok),
        2 => Just(Answer::LostAfter),
        1 => Just(Answer::LostBefore),
        1 => Just(Answer::Failed),
        1 => Just(Answer::Limited),
        1 => Just(Answer::Refused),
    ]
}
