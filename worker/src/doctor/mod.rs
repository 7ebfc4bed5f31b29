//! `doctor`: finds out why pushes do not arrive. It checks every part in turn, prints a line that says what is wrong
//! and what to do about it, and changes nothing.

mod arrival;
mod ask;
mod backlog;
mod gateway;
mod homeserver;
mod pushers;
mod server;
mod software;

use matrix2acrobits_shared::{
    ids::UserId,
    matrix::pushers::PusherSettings,
    process::{health, output::Lines, settings as parse},
};
use matrix2acrobits_store::{Database, Store};

use ask::Asker;

use crate::{
    commands::{Cli, Failure},
    settings::Settings,
};

/// What to check in addition.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Also check what concerns one user, such as @bob:example.org
    #[arg(long, value_name = "USER_ID")]
    user: Option<String>,
}

/// Prints lines and counts them. Each line is printed at once, because checks of a homeserver that hangs take long.
#[derive(Debug, Default)]
pub(super) struct Report {
    ok: u32,
    wrong: u32,
    suspects: u32,
    skipped: u32,
    lines: Lines,
}

impl Report {
    /// Everything is as it should be.
    fn ok(&mut self, what: &str, text: &str) {
        self.ok += 1;
        self.line("ok", what, text);
    }

    /// Something is wrong. `text` says what to do.
    fn wrong(&mut self, what: &str, text: &str) {
        self.wrong += 1;
        self.line("WRONG", what, text);
    }

    /// Something may be wrong, but the doctor cannot tell.
    fn suspect(&mut self, what: &str, text: &str) {
        self.suspects += 1;
        self.line("suspect", what, text);
    }

    /// Something was not checked. `text` says why.
    fn skipped(&mut self, what: &str, text: &str) {
        self.skipped += 1;
        self.line("skipped", what, text);
    }

    fn line(&mut self, level: &str, what: &str, text: &str) {
        self.lines
            .print(format_args!("{level:<8} {what:<13} {text}"));
    }
}

pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let user = args.user.as_deref();
    let user = user.map(|user| parse::user("--user", user)).transpose()?;
    let mut report = Report::default();
    let settings = settings(cli, &mut report);
    let store = database(cli, &mut report).await;
    worker(cli, &mut report).await;
    if let Some(settings) = settings {
        outside(cli, &settings, store.as_ref(), user.as_ref(), &mut report).await?;
    } else {
        report.skipped("the rest", "it needs the settings");
    }
    if let (Some(store), Some(user)) = (&store, &user) {
        arrival::check(store, user, &mut report).await?;
    }
    let Report {
        ok,
        wrong,
        suspects,
        skipped,
        mut lines,
    } = report;
    lines.print(format_args!(
        "{ok} ok, {wrong} wrong, {suspects} suspect, {skipped} skipped"
    ));
    if let Some(user) = &user {
        lines.print(format_args!(
            "to see whether a push arrives: matrix2acrobits-api push-test --user {user}"
        ));
    }
    lines.complete()?;
    match wrong {
        0 => Ok(()),
        _ => Err(Failure::other("something is wrong")),
    }
}

/// Checks everything beyond this machine.
async fn outside(
    cli: &Cli,
    settings: &Settings,
    store: Option<&Store>,
    user: Option<&UserId>,
    report: &mut Report,
) -> Result<(), Failure> {
    let ask = Asker::new(settings).map_err(Failure::other)?;
    let mut accepted = homeserver::check(cli, settings, &ask, report).await;
    if accepted {
        accepted = software::pushers_are_served(&ask, report).await;
        software::logins(settings, &ask, report).await;
    }
    if let Some(pusher) = &settings.pusher {
        gateway::check(pusher, &ask, report).await;
    }
    let Some(user) = user else {
        report.skipped(
            "user",
            "give --user @bob:example.org for what concerns one user",
        );
        report.suspect("namespace", homeserver::EXCLUSIVE);
        return Ok(());
    };
    if !accepted {
        report.skipped(
            "user",
            "the homeserver has to answer, take MATRIX_AS_TOKEN and serve /pushers first",
        );
        return Ok(());
    }
    if homeserver::masquerade(user, &ask, report).await {
        if let (Some(store), Some(pusher)) = (store, &settings.pusher) {
            pushers::check(store, pusher, user, &ask, report).await?;
        }
        homeserver::notifications(user, &ask, report).await;
    }
    Ok(())
}

fn settings(cli: &Cli, report: &mut Report) -> Option<Settings> {
    match cli.run.parse(&cli.shared) {
        Err(error) => {
            report.wrong("settings", &error.to_string());
            None
        }
        Ok(settings) => {
            match &settings.pusher {
                None => report.wrong(
                    "settings",
                    "PROXY_URL is not set: no pusher is set until it is; give the api's public base URL",
                ),
                Some(PusherSettings { notify_url, .. }) => {
                    let text = format!(
                        "homeserver {}, pushers with {notify_url}",
                        settings.homeserver_url
                    );
                    report.ok("settings", &text);
                }
            }
            Some(settings)
        }
    }
}

async fn database(cli: &Cli, report: &mut Report) -> Option<Store> {
    match Database::of(&cli.shared) {
        Err(error) => {
            report.wrong("database", &error.to_string());
            return None;
        }
        Ok(database) => {
            if !server::check(&database, report).await {
                return None;
            }
        }
    }
    let store = match Store::open_existing(&cli.shared).await {
        Ok(store) => store,
        Err(failure) => {
            let text = format!("{failure}; the api and the worker make and share it");
            report.wrong("database", &text);
            return None;
        }
    };
    let (pushers, queue) = match (store.count_pushers().await, store.queue_state().await) {
        (Ok(pushers), Ok(queue)) => (pushers, queue),
        (Err(error), _) | (_, Err(error)) => {
            report.wrong(
                "database",
                &format!("it opens, but cannot be read: {error}"),
            );
            return None;
        }
    };
    let states: Vec<_> = pushers
        .iter()
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let states = if states.is_empty() {
        "none yet; phones must report, and mappings say whose they are".to_owned()
    } else {
        states.join(", ")
    };
    report.ok("database", &format!("pushers: {states}"));
    if let Err(error) = backlog::check(cli, &store, queue, report).await {
        let text = format!("it opens, but cannot be read: {error}");
        report.wrong("database", &text);
        return None;
    }
    Some(store)
}

/// Checks whether a worker runs here. It may run elsewhere on the same database, so its absence proves nothing.
async fn worker(cli: &Cli, report: &mut Report) {
    let addr = match cli.admin.addr() {
        Err(error) => return report.wrong("worker", &error.to_string()),
        Ok(addr) => addr,
    };
    match health::check(addr).await {
        Ok(()) => report.ok("worker", &format!("runs and is ready ({addr})")),
        Err(health::Problem::NotReady(problem)) => {
            let text = format!("runs and is not ready ({addr}): {problem}: see its log");
            report.wrong("worker", &text);
        }
        Err(problem @ health::Problem::Absent(_)) => {
            let text = format!("{problem}: unless it listens elsewhere, start it");
            report.suspect("worker", &text);
        }
    }
}
