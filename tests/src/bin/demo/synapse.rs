//! The same story with a real Synapse instead of the stand-in.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{BOB, Phone};
use matrix2acrobits_tests::http::segment;
use matrix2acrobits_tests::pnm::{Answer, Push};
use matrix2acrobits_tests::process::Program;
use matrix2acrobits_tests::synapse::{self, Synapse, User};

use super::{
    Step, reached, require, stop,
    tell::{answered, rounded, short, show, title},
};

pub(super) async fn play(keep: bool) -> Step {
    install()?;
    println!("Starting Synapse with the registration that the api prints:");
    let registration = synapse::registration().await;
    for line in registration
        .lines()
        .filter(|line| !line.contains("_token:"))
    {
        println!("  {line}");
    }
    let mut synapse = Synapse::start(&registration).await;
    let bob = synapse.register("bob").await;
    let alice = synapse.register("alice").await;
    let room = alice.room_with(&[&bob]).await;
    println!(
        "Starting the api and the worker on a new SQLite file, between Synapse and PNM's stand-in."
    );
    // So that there is something to read in the pushes.
    let builder = synapse.bridge().worker("PUSH_FORMAT", "full");
    let mut app = builder.start().await;
    println!("  api      {}", app.api().public_url());
    println!("  worker   {}", app.worker().admin_url());
    println!("  Synapse  {}", synapse.url());
    println!("  PNM      {}  (stand-in)", app.pnm.url());

    let phone = Phone::seed();
    report_while_it_is_down(&app, &mut synapse, &phone).await?;
    message(&app, &alice, &room).await?;
    let phone = token_changes(&app, &synapse, &phone).await?;
    dead_token(&app, &synapse, &alice, &room, &phone).await?;
    doctor(&app).await?;
    if keep {
        stay(&app, &synapse, &alice, &room).await?;
    }
    stop(&mut app).await
}

/// What `./tests/run` installs, too.
fn install() -> Step {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/install");
    let output = Command::new(script)
        .arg("synapse")
        .stderr(std::process::Stdio::inherit())
        .output();
    let output = output.map_err(|error| format!("tests/python/install: {error}"))?;
    require(output.status.success(), "Synapse cannot be installed")
}

async fn report_while_it_is_down(app: &App, synapse: &mut Synapse, phone: &Phone) -> Step {
    title(1, "Synapse is stopped, and Bob's phone reports its token.");
    synapse.stop().await;
    app.map(&phone.selector, BOB).await;
    let reply = app.report(&phone.report()).await;
    answered(reply.status, &reply.text, reply.took);
    require(reply.status == 200, "the report is not taken")?;
    title(2, "Synapse comes back, and gets the pusher.");
    synapse.start_again().await;
    let back = Instant::now();
    pushers_are(synapse, &[phone]).await?;
    println!("  set {} after Synapse was ready:", rounded(back.elapsed()));
    for pusher in synapse.pushers(BOB).await {
        show(&pusher);
    }
    Ok(())
}

async fn message(app: &App, alice: &User, room: &str) -> Step {
    title(3, "Alice writes to Bob, and PNM gets the push.");
    let said = Instant::now();
    let event = alice.say(room, "Hello!").await;
    let push = push_of(app, &event).await?;
    let late = push.at.saturating_duration_since(said);
    println!("  {} after she wrote:", rounded(late));
    show(&push.body);
    Ok(())
}

async fn token_changes(app: &App, synapse: &Synapse, phone: &Phone) -> Result<Phone, String> {
    title(
        4,
        "The phone gets another token: the new pusher is set, the old one deleted.",
    );
    let renewed = phone
        .clone()
        .with_token("APA91bRenewedTokenAfterReinstallingTheApp");
    let reply = app.report(&renewed.report()).await;
    require(reply.status == 200, "the report is not taken")?;
    pushers_are(synapse, &[&renewed]).await?;
    println!("  Synapse lists {} alone", short(&renewed.token));
    Ok(renewed)
}

async fn dead_token(app: &App, synapse: &Synapse, alice: &User, room: &str, phone: &Phone) -> Step {
    title(
        5,
        "The app is deleted: PNM says that the token is gone, and Synapse drops the pusher.",
    );
    app.pnm.answer_for(&phone.token, Answer::Gone);
    let event = alice.say(room, "Are you still there?").await;
    push_of(app, &event).await?;
    pushers_are(synapse, &[]).await?;
    println!("  Synapse lists no pusher for Bob");
    title(6, "It is installed again, and reports the same token.");
    app.pnm.answer_for(&phone.token, Answer::Ok);
    let reply = app.report(&phone.report()).await;
    require(reply.status == 200, "the report is not taken")?;
    pushers_are(synapse, &[phone]).await?;
    let event = alice.say(room, "Welcome back!").await;
    let push = push_of(app, &event).await?;
    println!("  {}", push.body["Message"]);
    Ok(())
}

async fn doctor(app: &App) -> Step {
    title(7, "matrix2acrobits-worker doctor --user @bob:example.org");
    let mut env = app.worker_env.clone();
    let admin = app.worker().admin_url().replace("http://", "");
    env.insert("ADMIN_LISTEN_ADDR".into(), admin);
    let output = Program::Worker.run(&["doctor", "--user", BOB], &env).await;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        println!("  {line}");
    }
    require(output.status.success(), "the doctor finds something wrong")
}

/// Until Ctrl-C: says how to write as Alice, and shows each push.
async fn stay(app: &App, synapse: &Synapse, alice: &User, room: &str) -> Step {
    let url = synapse.url();
    println!(
        "\nAll is up until Ctrl-C. Write as Alice, in another terminal, and see the push here:\n"
    );
    println!(
        "curl -X PUT \"{url}/_matrix/client/v3/rooms/{}/send/m.room.message/$RANDOM\" \\\n  \
         -H 'Authorization: Bearer {}' --json '{{\"msgtype\": \"m.text\", \"body\": \"Hello!\"}}'\n",
        segment(room),
        alice.token()
    );
    println!(
        "curl '{url}/_matrix/client/v3/pushers?user_id={BOB}' -H 'Authorization: Bearer {}'\n",
        synapse.as_token()
    );
    let mut shown = app.pnm.pushes().len();
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    loop {
        tokio::select! {
            interrupt = tokio::signal::ctrl_c() => {
                println!();
                return interrupt.map_err(|error| format!("cannot wait for Ctrl-C: {error}"));
            }
            _ = tick.tick() => {}
        }
        for push in &app.pnm.pushes()[shown..] {
            show(&push.body);
            shown += 1;
        }
    }
}

async fn pushers_are(synapse: &Synapse, phones: &[&Phone]) -> Step {
    let wanted: Vec<_> = phones.iter().map(|phone| phone.token.as_str()).collect();
    reached("the pushers that Synapse should have", async || {
        let pushers = synapse.pushers(BOB).await;
        pushers
            .iter()
            .filter_map(|pusher| pusher["pushkey"].as_str())
            .eq(wanted.iter().copied())
    })
    .await
}

async fn push_of(app: &App, event: &str) -> Result<Push, String> {
    let found = || {
        app.pnm
            .pushes()
            .into_iter()
            .find(|push| push.body["Id"] == event)
    };
    reached("the push", async || found().is_some()).await?;
    found().ok_or_else(|| "the push is gone".to_owned())
}
