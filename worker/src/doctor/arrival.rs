//! Checks whether pushes arrive at one user's phones, as far as the phones confirm them.

use matrix2acrobits_shared::{
    flow::PhoneListing,
    ids::{UserId, log_id},
    rules::arrival::Standing,
};
use matrix2acrobits_store::Store;

use super::Report;
use crate::commands::Failure;

/// No person has more phones.
const MOST_PHONES: u32 = 100;

pub(super) async fn check(
    store: &Store,
    user: &UserId,
    report: &mut Report,
) -> Result<(), Failure> {
    let phones = store.phones_of_user(user, 0, MOST_PHONES).await;
    let now = store.clock().unix();
    for phone in phones.map_err(Failure::other)? {
        let Some(token) = &phone.token else { continue };
        let app = phone.app_id.as_deref().unwrap_or("no app id");
        let text = format!("{app}, token {}: {}", log_id(token), sentence(&phone, now));
        match phone.standing(now) {
            Standing::Silent | Standing::Gone => report.suspect("arrival", &text),
            _ => report.ok("arrival", &text),
        }
    }
    Ok(())
}

fn sentence(phone: &PhoneListing, now: i64) -> String {
    let ago = |at: Option<i64>| match at {
        None => "never".to_owned(),
        Some(at) => {
            let seconds = u64::try_from(now - at).unwrap_or(0);
            // After two minutes, seconds do not matter.
            let seconds = if seconds < 120 {
                seconds
            } else {
                seconds / 60 * 60
            };
            let ago = std::time::Duration::from_secs(seconds);
            format!("{} ago", humantime::format_duration(ago))
        }
    };
    format!(
        "{} (last push {}, last receipt {})",
        phone.standing(now).words(),
        ago(phone.pushed_at),
        ago(phone.received_at)
    )
}
