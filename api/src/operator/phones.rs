//! What we know about each phone, for the endpoint and for the command `phones`, which works with or without a running
//! api.

use matrix2acrobits_shared::{
    flow::{PhoneListing, SilentCursor},
    ids::{UserId, log_id},
    process::{
        output::write,
        settings,
        words::{self, Counted},
    },
    rules::arrival::Standing,
};
use matrix2acrobits_store::{Store, StoreError};
use serde::Serialize;
use utoipa::ToSchema;

use crate::cli::{Cli, Failure};

const PAGE: u32 = 500;

/// Which phones, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Only the phones of this user, such as @bob:example.org
    #[arg(long, value_name = "USER_ID")]
    user: Option<String>,
    /// Only phones that have confirmed no push for a day, and did before
    #[arg(long)]
    silent: bool,
    /// One JSON array instead of a table
    #[arg(long)]
    json: bool,
}

/// A phone. Times are seconds since 1970.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PhoneRow {
    /// The hash of the phone's token, or of its selector if it has no token, as in the logs
    pub(super) phone: String,
    #[schema(required)]
    pub(super) user_id: Option<String>,
    #[schema(required)]
    pub(super) app_id: Option<String>,
    pub(super) last_report: i64,
    /// pending, registered, failed or removed
    #[schema(required)]
    pub(super) pusher: Option<String>,
    /// The last push that PNM accepted
    #[schema(required)]
    pub(super) last_push: Option<i64>,
    #[schema(required)]
    pub(super) last_receipt: Option<i64>,
    pub(super) receipts: i64,
    /// Whether the phone has confirmed no push for a day, but did before
    pub(super) silent: bool,
    /// Where the phone stands, for people
    pub(super) verdict: &'static str,
}

impl PhoneRow {
    pub(super) fn new(row: &PhoneListing, now: i64) -> Self {
        let standing = row.standing(now);
        Self {
            phone: log_id(row.token.as_ref().unwrap_or(&row.selector)).to_string(),
            user_id: row.user_id.clone(),
            app_id: row.app_id.clone(),
            last_report: row.reported_at,
            pusher: row.pusher.clone(),
            last_push: row.pushed_at,
            last_receipt: row.received_at,
            receipts: row.receipts,
            silent: standing == Standing::Silent,
            verdict: standing.words(),
        }
    }
}

/// Reads page after page.
struct Pages<'a> {
    store: &'a Store,
    user: Option<UserId>,
    silent: bool,
    after: i64,
    after_silent: SilentCursor,
}

impl Pages<'_> {
    /// The next page. None at the end.
    async fn next(&mut self) -> Result<Option<Vec<PhoneListing>>, StoreError> {
        if let (None, true) = (&self.user, self.silent) {
            let (page, next) = self.store.silent_phones(self.after_silent, PAGE).await?;
            self.after_silent = next.unwrap_or(self.after_silent);
            return Ok(next.map(|_| page));
        }
        let page = match &self.user {
            Some(user) => self.store.phones_of_user(user, self.after, PAGE).await?,
            None => self.store.list_phones(self.after, PAGE).await?,
        };
        let Some(last) = page.last() else {
            return Ok(None);
        };
        self.after = last.id;
        Ok(Some(page))
    }
}

pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let user = args.user.as_deref();
    let user = user
        .map(|user| settings::user("--user", user))
        .transpose()?;
    let store = Store::open_existing(&cli.shared).await?;
    let now = store.clock().unix();
    if !args.json {
        write(row([
            "USER", "PHONE", "APP", "REPORT", "PUSHER", "PUSH", "RECEIPT", "VERDICT",
        ]))?;
    }
    let (mut count, mut all) = (0, Vec::new());
    let mut pages = Pages {
        store: &store,
        user,
        silent: args.silent,
        after: 0,
        after_silent: SilentCursor::default(),
    };
    while let Some(page) = pages.next().await.map_err(Failure::of)? {
        let page = page.iter().map(|phone| PhoneRow::new(phone, now));
        for phone in page.filter(|phone| !args.silent || phone.silent) {
            count += 1;
            if args.json {
                all.push(phone);
            } else if !write(line(&phone))? {
                return Ok(());
            }
        }
    }
    if args.json {
        write(serde_json::to_string_pretty(&all).map_err(Failure::of)?)?;
    } else {
        write(Counted(count, "phone"))?;
    }
    Ok(())
}

fn line(phone: &PhoneRow) -> String {
    row([
        phone.user_id.as_deref().unwrap_or("-"),
        &phone.phone,
        phone.app_id.as_deref().unwrap_or("-"),
        &time(Some(phone.last_report)),
        phone.pusher.as_deref().unwrap_or("-"),
        &time(phone.last_push),
        &time(phone.last_receipt),
        phone.verdict,
    ])
}

fn row([user, phone, app, report, pusher, push, receipt, verdict]: [&str; 8]) -> String {
    format!(
        "{user:<32} {phone:<8} {app:<24} {report:<20} {pusher:<10} {push:<20} {receipt:<20} {verdict}"
    )
}

fn time(seconds: Option<i64>) -> String {
    let seconds = seconds.and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map_or("-".into(), words::time)
}
