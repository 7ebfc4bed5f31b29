//! Plays the bridge's story on this machine, with stand-ins for the homeserver and PNM, and says what happens.
#![expect(
    clippy::print_stdout,
    reason = "the demo talks to the person at the terminal"
)]

mod synapse;
mod tell;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use matrix2acrobits_tests::app::{ADMIN_TOKEN, App};
use matrix2acrobits_tests::fixtures::{BOB, Phone, message};
use matrix2acrobits_tests::homeserver::Fault;
use matrix2acrobits_tests::http::segment;
use matrix2acrobits_tests::pnm::Answer;
use matrix2acrobits_tests::within;

use tell::{answered, rounded, short, show, title};

/// Shows what matrix2acrobits does, step by step. Nothing leaves this machine.
#[derive(Debug, Parser)]
#[command(name = "cargo demo")]
struct Args {
    /// With a real Synapse, which is installed into the target folder if need be, instead of its stand-in
    #[arg(long)]
    synapse: bool,
    /// Stay up at the end, and print commands to try, until Ctrl-C
    #[arg(long)]
    keep: bool,
}

type Step = Result<(), String>;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match play(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            println!("\nFAILED: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn play(args: &Args) -> Step {
    if args.synapse {
        return synapse::play(args.keep).await;
    }
    println!("Starting the api and the worker on a new SQLite file, between two stand-ins.");
    let mut app = App::start().await;
    println!("  api         {}", app.api().public_url());
    println!("  api, admin  {}", app.api().admin_url());
    println!("  worker      {}", app.worker().admin_url());
    println!("  homeserver  {}  (stand-in)", app.homeserver.url());
    println!("  PNM         {}  (stand-in)", app.pnm.url());
    println!("  database    {}", app.file.display());

    let phone = Phone::seed();
    report_during_outage(&app, &phone).await?;
    homeserver_returns(&app, &phone).await?;
    message_is_pushed(&app, &phone).await?;
    let phone = token_changes(&app, &phone).await?;
    dead_token_is_rejected(&app, &phone).await?;
    phones_confirm(&app).await?;
    if args.keep {
        stay(&app, &phone).await?;
    }
    stop(&mut app).await
}

async fn report_during_outage(app: &App, phone: &Phone) -> Step {
    title(
        1,
        "The homeserver is down, and Bob's phone reports its token.",
    );
    app.homeserver.break_with(Fault::Refuse).await;
    app.map(&phone.selector, BOB).await;
    println!("  POST /api/client/push_token_report");
    show(&phone.report());
    let reply = app.report(&phone.report()).await;
    answered(reply.status, &reply.text, reply.took);
    require(reply.status == 200, "the report is not taken")?;
    reached("a job that waits in the database", async || {
        app.database
            .pusher(&phone.token)
            .await
            .is_some_and(|row| row.attempts > 0)
            && app.database.live_jobs().await == 1
    })
    .await?;
    if let Some(row) = app.database.pusher(&phone.token).await {
        let error = row.last_error.unwrap_or_default();
        println!(
            "  pusher: {}, attempts: {}, {error}",
            row.state, row.attempts
        );
    }
    Ok(())
}

async fn homeserver_returns(app: &App, phone: &Phone) -> Step {
    title(2, "The homeserver returns, and gets the pusher.");
    let back = Instant::now();
    app.homeserver.repair().await;
    reached("the pusher", async || has_only(app, phone)).await?;
    println!(
        "  set {} after the homeserver's return:",
        rounded(back.elapsed())
    );
    let body = app.homeserver.pushers().pop().map(|pusher| pusher.body);
    show(&body.unwrap_or_default());
    reached("an empty queue", async || {
        app.database.live_jobs().await == 0
    })
    .await
}

async fn message_is_pushed(app: &App, phone: &Phone) -> Step {
    title(3, "Alice writes to Bob, and PNM gets the push.");
    let reply = app.notify(&message("$event_id", &[phone.device()])).await;
    let last = app.pnm.pushes().pop().ok_or("nothing arrives at PNM")?;
    show(&last.body);
    println!(
        "  the homeserver is answered {} {}",
        reply.status, reply.text
    );
    require(reply.status == 200, "the notification is not taken")?;
    require(last.body["Message"] == "Hello!", "the text is not pushed")
}

async fn token_changes(app: &App, phone: &Phone) -> Result<Phone, String> {
    title(
        4,
        "The phone gets another token: the new pusher is set, the old one deleted.",
    );
    let renewed = phone
        .clone()
        .with_token("APA91bRenewedTokenAfterReinstallingTheApp");
    let before = app.homeserver.sets().len();
    let reply = app.report(&renewed.report()).await;
    require(reply.status == 200, "the report is not taken")?;
    reached("the new pusher alone", async || has_only(app, &renewed)).await?;
    for call in app.homeserver.sets().split_off(before) {
        let kind = if call.body["kind"].is_null() {
            "deleted"
        } else {
            "set"
        };
        println!("  {kind:8}{}", short(call.pushkey()));
    }
    Ok(renewed)
}

async fn dead_token_is_rejected(app: &App, phone: &Phone) -> Step {
    title(
        5,
        "The app is deleted: PNM says that the token is gone, and the homeserver hears of it.",
    );
    app.pnm.answer_for(&phone.token, Answer::Gone);
    let body = message("$another_event", &[phone.device()]);
    let reply = app.notify(&body).await;
    println!(
        "  the homeserver is answered {} {}",
        reply.status, reply.text
    );
    let rejected = reply.json()["rejected"][0] == phone.token;
    app.pnm.answer_for(&phone.token, Answer::Ok);
    require(reply.status == 200 && rejected, "the token is not rejected")
}

async fn phones_confirm(app: &App) -> Step {
    title(
        6,
        "Two more phones: one confirms its push, the other one stays silent.",
    );
    let (good, silent) = (Phone::new("confirms-phone"), Phone::new("silent-phone"));
    app.enroll(&[&good, &silent]).await;
    let devices = [good.device(), silent.device()];
    let reply = app.notify(&message("$confirmed_event", &devices)).await;
    require(reply.status == 200, "the notification is not taken")?;
    let receipt = serde_json::json!({"token": good.token, "id": "$confirmed_event"});
    println!("  POST /api/client/push_received");
    show(&receipt);
    let request = app.public(reqwest::Method::POST, "/api/client/push_received");
    let reply = matrix2acrobits_tests::http::send(request.json(&receipt)).await;
    answered(reply.status, &reply.text, reply.took);
    require(reply.status == 200, "the receipt is not taken")?;
    let listed = async || {
        let reply = app.admin(reqwest::Method::GET, "/api/internal/phones", None);
        let phones = reply.await.json()["phones"].take();
        let phones = phones.as_array().cloned().unwrap_or_default();
        let pushed = phones.into_iter().filter(|it| !it["last_push"].is_null());
        pushed.collect::<Vec<_>>()
    };
    let confirms = |phone: &serde_json::Value| !phone["last_receipt"].is_null();
    println!("  written down within five seconds, with all that happened meanwhile:");
    reached("the receipt in the list of phones", async || {
        listed().await.iter().any(confirms)
    })
    .await?;
    for phone in listed().await {
        let text = |name: &str| phone[name].as_str().unwrap_or_default().to_owned();
        println!("  phone {}: {}", text("phone"), text("verdict"));
    }
    Ok(())
}

async fn stay(app: &App, phone: &Phone) -> Step {
    let (api, admin) = (app.api().public_url(), app.api().admin_url());
    let worker = app.worker().admin_url();
    let notification = message("$from_the_shell", &[phone.device()]);
    println!("\nAll is up until Ctrl-C. To try, in another terminal:\n");
    println!(
        "curl {api}/api/client/push_token_report --json '{}'\n",
        phone.report()
    );
    println!("curl {api}/_matrix/push/v1/notify --json '{notification}'\n");
    let mapping = segment(&phone.selector);
    println!(
        "curl {admin}/api/internal/mappings/{mapping} -H 'Authorization: Bearer {ADMIN_TOKEN}'\n"
    );
    println!("curl '{admin}/api/internal/pushers' -H 'Authorization: Bearer {ADMIN_TOKEN}'\n");
    println!("curl {worker}/metrics\n");
    println!(
        "curl '{}/_matrix/client/v3/pushers?user_id={BOB}' -H 'Authorization: Bearer {}'",
        app.homeserver.url(),
        matrix2acrobits_tests::app::AS_TOKEN
    );
    let interrupt = tokio::signal::ctrl_c().await;
    println!();
    interrupt.map_err(|error| format!("cannot wait for Ctrl-C: {error}"))
}

async fn stop(app: &mut App) -> Step {
    println!("\nStopping.");
    // After Ctrl-C the terminal has told them already.
    let codes = [
        app.worker_mut().terminate().await,
        app.api_mut().terminate().await,
    ];
    require(codes == [Some(0); 2], "they do not stop cleanly")?;
    println!("Done: everything went as it should.");
    Ok(())
}

fn has_only(app: &App, phone: &Phone) -> bool {
    app.homeserver.pushkeys_of(BOB) == [phone.token.clone()]
}

fn require(holds: bool, otherwise: &str) -> Step {
    if holds {
        Ok(())
    } else {
        Err(otherwise.to_owned())
    }
}

async fn reached(what: &str, condition: impl AsyncFn() -> bool) -> Step {
    let done = within(Duration::from_secs(30), condition).await;
    require(done, &format!("not within 30 seconds: {what}"))
}
