//! Clients that take their time do not hold a connection for ever.

use matrix2acrobits_tests::app::App;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn a_trickling_body_is_cut_off_and_others_are_served_meanwhile() {
    let app = App::builder().without_worker().start().await;
    let mut stream = TcpStream::connect(app.api().public_url().trim_start_matches("http://"))
        .await
        .unwrap();
    let head = "POST /api/client/push_token_report HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nselector=";
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let trickle = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(Duration::from_millis(500));
        loop {
            ticks.tick().await;
            if write.write_all(b"x").await.is_err() {
                return;
            }
        }
    });
    app.report_form(&[("selector", "s"), ("token_msgs", "t"), ("app_id_msgs", "a")])
        .await
        .expect_status(200);
    let mut answer = Vec::new();
    // A reset after the answer is an end as well.
    let end = read.read_to_end(&mut answer);
    let _ = tokio::time::timeout(Duration::from_mins(1), end)
        .await
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    trickle.abort();
}
