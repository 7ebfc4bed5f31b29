//! Outgoing calls by TLS: a private certificate authority counts once EXTRA_CA_FILE names it, and only then.

use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::{BOB, Phone, message};
use matrix2acrobits_tests::tls::TlsFront;
use matrix2acrobits_tests::{SOON, eventually};

#[tokio::test]
async fn a_private_authority_is_trusted_once_it_is_named() {
    let mut app = App::start().await;
    let homeserver = TlsFront::start(app.homeserver.addr()).await;
    let pnm = TlsFront::start(app.pnm.addr()).await;
    let settings = [
        ("PNM_URL", format!("{}/pnm2/send", pnm.url())),
        ("MATRIX_HOMESERVER_URL", homeserver.url()),
    ];
    for (name, value) in settings {
        app.api_env.insert(name.to_owned(), value.clone());
        app.worker_env.insert(name.to_owned(), value);
    }
    app.start_api().await;
    app.start_worker().await;

    let phone = Phone::seed();
    app.enroll(&[&phone]).await;
    eventually(SOON, "an attempt that failed", async || {
        let row = app.database.pusher(&phone.token).await;
        row.is_some_and(|row| row.attempts > 0)
    })
    .await;
    let notification = message("$1", &[phone.device()]);
    app.notify(&notification).await.expect_error(502);
    assert!(app.homeserver.calls().is_empty() && app.pnm.pushes().is_empty());

    let (env, file) = ("EXTRA_CA_FILE", homeserver.authority());
    app.worker_env.insert(env.to_owned(), file);
    app.api_env.insert(env.to_owned(), pnm.authority());
    app.start_api().await;
    app.start_worker().await;
    app.pushers_are(BOB, &[&phone]).await;
    app.notify(&notification).await.expect_status(200);
    assert_eq!(app.pnm.pushes_for(&phone.token).len(), 1);
}
