//! The HTML of the status page. The templates escape all text that comes from outside.

use std::time::{Duration, UNIX_EPOCH};

use axum::{
    http::{
        HeaderName, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
            X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use matrix2acrobits_shared::{
    flow::{DeadLetter, GateState, GateStatus, PhoneListing, QueueState, WorkerStatus},
    ids::log_id,
    rules::arrival::Standing,
};
use maud::{DOCTYPE, Markup, PreEscaped, html as template};

use crate::notify::pnm::{answers::Summary, outcome::Outcome};
use crate::operator::push_test::Tested;

const STYLE: &str = include_str!("page.css");

/// A whole page, with headers that keep browsers from loading or sending anything else.
pub(super) fn html(status: StatusCode, content: &Markup) -> Response {
    let random: [u8; 16] = rand::random();
    let nonce = STANDARD.encode(random);
    let page = template! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "matrix2acrobits" }
                style nonce=(nonce) { (PreEscaped(STYLE)) }
            }
            body { (content) }
        }
    };
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    let headers: [(HeaderName, &str); 6] = [
        (CONTENT_TYPE, "text/html; charset=utf-8"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, &policy),
        (X_FRAME_OPTIONS, "DENY"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (status, headers, page.into_string()).into_response()
}

/// A page with one sentence.
pub(super) fn note(words: &str) -> Markup {
    template! { h1 { "matrix2acrobits" } p { (words) } }
}

/// What the database knows.
pub(super) struct Facts {
    pub(super) workers: Vec<WorkerStatus>,
    pub(super) pushers: Vec<(String, i64)>,
    pub(super) queue: QueueState,
    pub(super) dead: Vec<DeadLetter>,
    /// How many phones are silent, and the longest silent ones.
    pub(super) silent_phones: i64,
    pub(super) silent: Vec<PhoneListing>,
    /// A page of all phones, and where the next one begins.
    pub(super) phones: Vec<PhoneListing>,
    pub(super) next: Option<i64>,
}

/// Everything on the page.
pub(super) struct View<'a> {
    pub(super) now: i64,
    /// None when the database does not respond.
    pub(super) facts: Option<Facts>,
    pub(super) pnm: Summary,
    /// The last reports without a token: how many seconds ago they came, and the names of their fields.
    pub(super) tokenless: Vec<(i64, Vec<String>)>,
    pub(super) form_token: &'a str,
}

/// The colour of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    Bad,
    /// Neither good nor bad, or not known.
    Open,
}

impl Mood {
    fn class(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Open => "open",
        }
    }
}

/// A name, its colour, and the text.
type Line = (&'static str, Mood, String);

impl View<'_> {
    pub(super) fn render(&self) -> Markup {
        let time = UNIX_EPOCH + Duration::from_secs(u64::try_from(self.now).unwrap_or(0));
        template! {
            h1 { "matrix2acrobits" }
            p { small { "As of " (humantime::format_rfc3339_seconds(time)) ", version " (env!("CARGO_PKG_VERSION")) } }
            table {
                @for (name, mood, words) in self.lines() {
                    tr { th { (name) } td { span class=(mood.class()) { (words) } } }
                }
            }
            @if let Some(facts) = &self.facts {
                (workers(&facts.workers))
                (self.silent(facts))
                (self.dead(facts))
                (counts(facts))
            }
            (tokenless(&self.tokenless))
            (answers(&self.pnm))
            @if let Some(facts) = &self.facts { (self.phones(facts)) }
        }
    }

    fn lines(&self) -> Vec<Line> {
        let mut lines = vec![("Api", Mood::Good, "answers".into())];
        match &self.facts {
            None => lines.push(("Database", Mood::Bad, "does not answer; see the log".into())),
            Some(facts) => {
                lines.push(("Database", Mood::Good, "answers".into()));
                lines.push(worker_line(&facts.workers));
                lines.push(homeserver_line(&facts.workers));
                lines.push(phones_line(facts));
            }
        }
        lines.push(pnm_line(&self.pnm));
        lines
    }

    fn silent(&self, facts: &Facts) -> Markup {
        template! {
            @if !facts.silent.is_empty() {
                h2 { "Silent phones: " (facts.silent_phones) }
                p { "They confirmed pushes before, and none for a day. Send a test push, and look at the phone." }
                @for phone in &facts.silent { (self.phone(phone)) }
                (more(facts.silent_phones, facts.silent.len(), "phones --silent"))
            }
        }
    }

    fn phones(&self, facts: &Facts) -> Markup {
        template! {
            h2 { "Phones" }
            form method="post" action="/push-test" {
                input type="hidden" name="token" value=(self.form_token);
                label { "Test push to all phones of " input name="user" placeholder="@bob:example.org" required; }
                " " button { "Send" }
            }
            @if facts.phones.is_empty() { p { "none here" } }
            @for phone in &facts.phones { (self.phone(phone)) }
            @if let Some(next) = facts.next { p { a href={ "/?after=" (next) } { "More phones" } } }
        }
    }

    fn phone(&self, phone: &PhoneListing) -> Markup {
        let standing = phone.standing(self.now);
        let ago = |at: Option<i64>| {
            at.map_or("never".to_owned(), |at| {
                format!("{} ago", span((self.now - at).max(0)))
            })
        };
        template! {
            article {
                b { (phone.user_id.as_deref().unwrap_or("nobody")) }
                " " small {
                    (phone.app_id.as_deref().unwrap_or("no app id")) ", phone "
                    (log_id(phone.token.as_ref().unwrap_or(&phone.selector)))
                }
                p { span class=(mood(standing).class()) { (standing.words()) } }
                p { small {
                    "report " (ago(Some(phone.reported_at)))
                    ", pusher " (phone.pusher.as_deref().unwrap_or("none"))
                    ", push " (ago(phone.pushed_at))
                    ", receipt " (ago(phone.received_at))
                } }
                @if let Some(user) = &phone.user_id {
                    form method="post" action="/push-test" {
                        input type="hidden" name="token" value=(self.form_token);
                        input type="hidden" name="user" value=(user);
                        button { "Test push" }
                    }
                }
            }
        }
    }

    fn dead(&self, facts: &Facts) -> Markup {
        let more = facts.queue.killed - i64::try_from(facts.dead.len()).unwrap_or(i64::MAX);
        template! {
            h2 { "Dead letters: " (facts.queue.killed) }
            @if !facts.dead.is_empty() {
                p { "Given up until the phone's next report, or a replay. What was wrong should be put right first." }
                (self.button("dead", "", "Replay all dead letters"))
            }
            @for letter in &facts.dead {
                article {
                    p {
                        b { (letter.user_id.as_deref().unwrap_or("(no pusher)")) }
                        @if let Some(app_id) = &letter.app_id { " " (app_id) }
                    }
                    p { (reason(letter)) }
                    p { small {
                        "attempts: " (letter.attempts)
                        @if let Some(seconds) = letter.seconds { ", " (span(seconds)) " ago" }
                        @if let Some(pushkey) = &letter.pushkey { ", pushkey " (log_id(pushkey)) }
                    } }
                    @if let Some(user) = &letter.user_id {
                        (self.button("user", user, &format!("Replay all of {user}")))
                    }
                }
            }
            @if more > 0 { p { "And " (more) " more: " code { "matrix2acrobits-worker jobs --state Killed" } } }
        }
    }

    fn button(&self, what: &str, user: &str, words: &str) -> Markup {
        template! {
            form method="post" action="/replay" {
                input type="hidden" name="token" value=(self.form_token);
                input type="hidden" name="what" value=(what);
                input type="hidden" name="user" value=(user);
                button { (words) }
            }
        }
    }
}

/// Why the job was given up. If the homeserver's text repeats the pushkey, the page does not show it.
fn reason(letter: &DeadLetter) -> String {
    let reason = letter.reason.as_deref().unwrap_or("no reason was kept");
    match &letter.pushkey {
        Some(pushkey) => {
            reason.replace(pushkey.as_str(), &format!("[pushkey {}]", log_id(pushkey)))
        }
        None => reason.to_owned(),
    }
}

/// The results of a test push.
pub(super) fn tested(phones: &[Tested]) -> Markup {
    template! {
        h1 { "Test push" }
        @for phone in phones {
            @let mood = if phone.sent() { Mood::Good } else { Mood::Bad };
            article {
                b { (phone.user_id.as_deref().unwrap_or("nobody")) }
                " " small { (phone.app_id.as_deref().unwrap_or("no app id")) ", phone " (phone.phone) }
                p { span class=(mood.class()) { (phone.words) } }
            }
        }
        p { a href="/" { "Back" } }
    }
}

/// How many more there are than shown, and the command that shows all.
fn more(all: i64, shown: usize, command: &str) -> Markup {
    let more = all - i64::try_from(shown).unwrap_or(i64::MAX);
    template! {
        @if more > 0 { p { "And " (more) " more: " code { "matrix2acrobits-api " (command) } } }
    }
}

fn mood(standing: Standing) -> Mood {
    match standing {
        Standing::Confirms => Mood::Good,
        Standing::Silent | Standing::Gone | Standing::PusherFailed | Standing::NoPusher => {
            Mood::Bad
        }
        Standing::NoToken
        | Standing::Nobodys
        | Standing::PusherPending
        | Standing::Waits
        | Standing::Unknown
        | Standing::Unused => Mood::Open,
    }
}

fn phones_line(facts: &Facts) -> Line {
    let (mood, words) = match facts.silent_phones {
        0 => (
            Mood::Good,
            "none is silent, as far as they send receipts".to_owned(),
        ),
        silent => (Mood::Bad, format!("{silent} silent")),
    };
    ("Phones", mood, words)
}

fn worker_line(workers: &[WorkerStatus]) -> Line {
    let alive = workers.iter().filter(|worker| worker.is_alive()).count();
    let (mood, words) = match (alive, workers.first()) {
        (0, None) => (
            Mood::Bad,
            "none has been heard of: it does not run, or has no PROXY_URL".into(),
        ),
        (0, Some(last)) => {
            let silent = span(last.silent);
            (Mood::Bad, format!("gone: last heartbeat {silent} ago"))
        }
        (_, Some(last)) => {
            let silent = span(last.silent);
            let words = format!("{alive} running, last heartbeat {silent} ago");
            (Mood::Good, words)
        }
        (_, None) => (Mood::Open, String::new()),
    };
    ("Worker", mood, words)
}

/// What the running workers report about the homeserver. The worst state takes precedence.
fn homeserver_line(workers: &[WorkerStatus]) -> Line {
    let alive = workers.iter().filter(|worker| worker.is_alive());
    let gates: Vec<&GateStatus> = alive.filter_map(|worker| worker.gate.as_ref()).collect();
    let find = |state| gates.iter().find(|gate| gate.state == state);
    let (mood, words) = if let Some(gate) = find(GateState::Shut) {
        let why = gate.reason.as_deref().unwrap_or("no reason was kept");
        let words = format!(
            "does not work, jobs wait, for {}: {why}",
            span(gate.seconds)
        );
        (Mood::Bad, words)
    } else if let Some(gate) = find(GateState::Open) {
        let words = format!(
            "worked when last asked, no outage for {}",
            span(gate.seconds)
        );
        (Mood::Good, words)
    } else if let Some(gate) = find(GateState::Untried) {
        let words = format!(
            "not asked since the worker's start {} ago",
            span(gate.seconds)
        );
        (Mood::Open, words)
    } else {
        (Mood::Open, "not known: no worker runs to ask it".into())
    };
    ("Homeserver", mood, words)
}

fn pnm_line(pnm: &Summary) -> Line {
    let (mood, words) = match pnm.last.first() {
        None => (Mood::Open, "not asked since the api's start".into()),
        Some((seconds, outcome)) => {
            let (mood, what) = match outcome {
                Outcome::Trouble(_) => (Mood::Bad, "last push failed"),
                Outcome::Sent | Outcome::TokenGone | Outcome::BadMessage => {
                    (Mood::Good, "last answer")
                }
            };
            let words = format!("{what}: {}, {} ago", outcome.as_str(), span(*seconds));
            (mood, words)
        }
    };
    ("PNM", mood, words)
}

fn workers(workers: &[WorkerStatus]) -> Markup {
    template! {
        @if workers.len() > 1 {
            h2 { "Workers" }
            table {
                @for worker in workers {
                    tr {
                        th { (log_id(&worker.name)) }
                        td {
                            @if worker.is_alive() { "running" } @else { "gone" }
                            ", last heartbeat " (span(worker.silent)) " ago"
                            @if let Some(gate) = &worker.gate { ", homeserver " (gate.state.as_str()) }
                        }
                    }
                }
            }
        }
    }
}

fn counts(facts: &Facts) -> Markup {
    let queue = facts.queue;
    let states = [
        ("ready", queue.pending),
        ("running", queue.queued),
        ("waiting to be tried again", queue.failed),
        ("dead letters", queue.killed),
    ];
    template! {
        h2 { "Pushers" }
        @if facts.pushers.is_empty() { p { "none" } }
        table { @for (state, count) in &facts.pushers { tr { th { (state) } td { (count) } } } }
        h2 { "Jobs" }
        table {
            @for (state, count) in states { tr { th { (state) } td { (count) } } }
            tr { th { "oldest that is due" } td {
                @if queue.oldest_ready > 0 { "for " (span(queue.oldest_ready)) } @else { "none late" }
            } }
        }
    }
}

fn answers(pnm: &Summary) -> Markup {
    template! {
        h2 { "PNM's answers since the api's start" }
        @if pnm.counts.is_empty() { p { "none" } }
        table { @for (outcome, count) in &pnm.counts { tr { th { (outcome.as_str()) } td { (count) } } } }
        @if !pnm.last.is_empty() {
            p { "The last: "
                @for (index, (seconds, outcome)) in pnm.last.iter().enumerate() {
                    @if index > 0 { ", " }
                    (outcome.as_str()) " " (span(*seconds)) " ago"
                }
            }
        }
    }
}

fn tokenless(reports: &[(i64, Vec<String>)]) -> Markup {
    template! {
        @if !reports.is_empty() {
            h2 { "Reports without a token" }
            p { "They change nothing: compare the names of their fields with your app's template." }
            table {
                @for (seconds, names) in reports {
                    tr { th { (span(*seconds)) " ago" } td { code { (names.join(", ")) } } }
                }
            }
        }
    }
}

/// A length of time in its largest unit.
fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests;
