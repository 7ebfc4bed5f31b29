//! PostgreSQL rows that somebody else holds: who needs them waits, and nobody else.

use std::time::{Duration, Instant};

use futures::future::join_all;
use matrix2acrobits_tests::app::App;
use matrix2acrobits_tests::fixtures::Phone;
use sqlx::{Connection, PgConnection};

/// Longer than anybody waits for a lock, and many reports long.
const WHILE: Duration = Duration::from_secs(6);

#[tokio::test]
async fn one_locked_row_holds_up_its_phone_alone() {
    let app = App::start().await;
    if !app.database.is_postgres() {
        return;
    }
    let held = Phone::new("held");
    let others: Vec<_> = (0..16).map(|n| Phone::new(&format!("other-{n}"))).collect();
    app.enroll(&[&held]).await;
    app.enroll(&others.iter().collect::<Vec<_>>()).await;

    // An operator's forgotten psql.
    let mut psql = PgConnection::connect(&app.database.url()).await.unwrap();
    let update = "BEGIN; UPDATE push_tokens SET device = device WHERE selector = 'SELECTOR-held'";
    sqlx::raw_sql(update).execute(&mut psql).await.unwrap();

    let until = Instant::now() + WHILE;
    let reporting = async |phone: &Phone| {
        let mut statuses = Vec::new();
        for round in 0.. {
            let changed = phone
                .clone()
                .with_token(&format!("{}-{round}", phone.token));
            statuses.push(app.report(&changed.report()).await.status);
            if Instant::now() > until {
                break;
            }
        }
        statuses
    };
    let (of_held, of_others) =
        tokio::join!(reporting(&held), join_all(others.iter().map(&reporting)));
    assert!(of_held.iter().all(|status| *status == 503), "{of_held:?}");
    for statuses in of_others {
        assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    }

    // And it goes on when the row is free.
    drop(psql);
    matrix2acrobits_tests::eventually(matrix2acrobits_tests::SOON, "the row is free", async || {
        app.report(&held.report()).await.status == 200
    })
    .await;
}
