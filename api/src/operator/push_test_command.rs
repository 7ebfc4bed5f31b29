//! `push-test`: asks the running api to push to a user's or selector's phones, and shows what PNM said.

use std::time::Duration;

use matrix2acrobits_shared::process::{
    health,
    net::{own_process, read_body},
    output::print,
    settings::SettingError,
};
use serde_json::Value;

use super::proof::{PushTestRequest, TestedPhones};
use crate::cli::{Cli, Failure};

/// Longer than the 50 s after which the api answers in any case.
const TIMEOUT: Duration = Duration::from_mins(1);
const MAX_ANSWER: usize = 1024 * 1024;

/// To whom, and what.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    to: To,
    /// What the phone shows [default: Test push from matrix2acrobits]
    #[arg(long)]
    text: Option<String>,
    /// Send it as a message, which wakes the app, instead of a text that is only shown
    #[arg(long)]
    message: bool,
}

#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
struct To {
    /// To all phones of this user, such as @bob:example.org
    #[arg(long, value_name = "USER_ID")]
    user: Option<String>,
    /// To the phones with this selector
    #[arg(long)]
    selector: Option<String>,
}

pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let addr = health::reachable(cli.admin.addr()?);
    let token = cli.shared.admin_token()?;
    let token = token.ok_or_else(|| SettingError::missing("ADMIN_TOKEN"))?;
    let request = PushTestRequest {
        user: args.to.user.clone(),
        selector: args.to.selector.clone(),
        text: args.text.clone(),
        message: Some(args.message),
    };
    let client = own_process(Duration::from_secs(2))
        .timeout(TIMEOUT)
        .build()
        .map_err(Failure::other)?;
    let url = format!("http://{addr}/api/internal/push_test");
    let response = client
        .post(&url)
        .bearer_auth(token.expose())
        .body(serde_json::to_vec(&request).map_err(Failure::of)?)
        .send()
        .await
        .map_err(|_| {
            Failure::other(format!(
                "no answer from {url}: does the api run, and is ADMIN_LISTEN_ADDR its address?"
            ))
        })?;
    let status = response.status();
    let body = read_body(response, MAX_ANSWER).await.map_err(Failure::of)?;
    if !status.is_success() {
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let words = body["error"]
            .as_str()
            .unwrap_or("the answer is not the api's");
        return Err(Failure::other(format!("{status}: {words}")));
    }
    let tested: TestedPhones =
        serde_json::from_slice(&body).map_err(|_| Failure::other("the answer is not the api's"))?;
    for phone in &tested.phones {
        print(format_args!(
            "{} {} {}: {}",
            phone.user_id.as_deref().unwrap_or("-"),
            phone.app_id.as_deref().unwrap_or("-"),
            phone.phone,
            phone.words
        ));
    }
    let sent = tested.phones.iter().filter(|phone| phone.sent()).count();
    match tested.phones.len() - sent {
        0 => Ok(()),
        others => Err(Failure::other(format!(
            "PNM took {sent} of {} pushes",
            sent + others
        ))),
    }
}
