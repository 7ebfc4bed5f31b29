//! Checks one user's pushers: compares what we want with what the homeserver holds.

use matrix2acrobits_shared::{
    flow::{PusherListing, TokenListing},
    ids::{AppId, Pushkey, Selector, UserId, log_id},
    mark::MarkKey,
    matrix::{
        client,
        pushers::{HeldPusher, PusherSettings, SetPusher},
    },
};
use matrix2acrobits_store::{Store, StoreError};

use super::{Report, ask::Asker};
use crate::commands::Failure;

const PAGE: u32 = 1000;

pub(super) async fn check(
    store: &Store,
    settings: &PusherSettings,
    user: &UserId,
    ask: &Asker,
    report: &mut Report,
) -> Result<(), Failure> {
    let ours = pushers_of(store, user).await.map_err(Failure::other)?;
    let reply = match ask.homeserver("pushers", Some(user)).await {
        Ok(reply) => reply,
        Err(problem) => {
            report.wrong("pushers", &format!("{problem}: ask again"));
            return Ok(());
        }
    };
    let Some(held) = client::held(reply.body.clone()) else {
        report.wrong(
            "pushers",
            &format!("the list cannot be read: {}", reply.describe()),
        );
        return Ok(());
    };
    let key = store.mark_keys().await.map_err(Failure::other)?.current;
    for row in &ours {
        one(row, (settings, &key), &held, report);
    }
    strangers(&ours, settings, &held, report);
    if !ours.iter().any(|row| row.wanted == "present") {
        let tokens = tokens_of(store, user).await.map_err(Failure::other)?;
        report.wrong("pushers", &why_none(user, &tokens));
    }
    Ok(())
}

fn one(
    row: &PusherListing,
    (settings, key): (&PusherSettings, &MarkKey),
    held: &[HeldPusher],
    report: &mut Report,
) {
    let parsed = (
        AppId::parse(&row.app_id),
        Pushkey::parse(&row.pushkey),
        Selector::parse(&row.selector),
    );
    let (Ok(app_id), Ok(pushkey), Ok(selector)) = parsed else {
        return report.wrong("pusher", "a row of the database cannot be read");
    };
    let name = format!("{app_id}, token {}", pushkey.log_id());
    let there = held
        .iter()
        .find(|held| held.app_id == row.app_id && held.pushkey == row.pushkey);
    let wanted = SetPusher::new(&app_id, &pushkey, &selector, settings, key);
    let state = state(row);
    let replay = format!("`replay --user {}`", row.user_id);
    match (row.wanted.as_str(), there) {
        ("present", Some(there)) if wanted.matches(there) => {
            report.ok("pusher", &format!("{name}: held as wanted"));
            report.ok("mark", "the homeserver hands our mark back");
        }
        ("present", Some(there)) if wanted.matches_but_mark(there) => {
            report.ok(
                "pusher",
                &format!("{name}: held as wanted, but for its mark"),
            );
            report.suspect("mark", &without_mark(there, &replay));
        }
        ("present", Some(_)) => {
            let text =
                format!("{name}: held with another URL, format or selector ({state}): {replay}");
            report.wrong("pusher", &text);
        }
        ("present", None) => {
            report.wrong("pusher", &format!("{name}: not held ({state}): {replay}"));
        }
        (_, Some(_)) => {
            let text = format!("{name}: held, and should not be any more ({state}): {replay}");
            report.wrong("pusher", &text);
        }
        (_, None) => {}
    }
}

fn without_mark(held: &HeldPusher, replay: &str) -> String {
    let mark = match held.text("mark") {
        Some(_) => "an old mark is",
        None => "no mark is",
    };
    format!(
        "{mark} in the pusher's data, so its pushes are limited (NOTIFY_AUTH=prefer) or refused (require): {replay}. If \
         it stays so, the homeserver does not hand back what it does not know, and only NOTIFY_AUTH=prefer or off will do"
    )
}

fn state(row: &PusherListing) -> String {
    let state = &row.state;
    match (&row.last_error, row.attempts) {
        (None, _) => format!("here {state}"),
        (Some(error), attempts) => {
            format!("here {state} after {attempts} failed attempts: {error}")
        }
    }
}

/// Reports pushers that lead to us but that we do not know. Pushers of other gateways are only counted.
fn strangers(
    ours: &[PusherListing],
    settings: &PusherSettings,
    held: &[HeldPusher],
    report: &mut Report,
) {
    let known = |held: &HeldPusher| {
        ours.iter()
            .any(|row| held.app_id == row.app_id && held.pushkey == row.pushkey)
    };
    let url = settings.notify_url.as_str();
    let to_us = |held: &HeldPusher| held.data.get("url").and_then(|url| url.as_str()) == Some(url);
    let (unknown, others): (Vec<_>, Vec<_>) = held
        .iter()
        .filter(|held| !known(held))
        .partition(|held| to_us(held));
    for held in &unknown {
        let text = format!(
            "{}, token {}: held for this PROXY_URL and not known here: a database that was lost, or another bridge at \
             the same URL; it goes with its next notification",
            held.app_id,
            log_id(&held.pushkey)
        );
        report.suspect("pusher", &text);
    }
    if !others.is_empty() {
        let text = format!("{} more, of other gateways", others.len());
        report.ok("pushers", &text);
    }
}

fn why_none(user: &UserId, tokens: &[TokenListing]) -> String {
    if tokens.iter().any(|token| token.dead_at.is_some()) {
        return format!(
            "PNM said that the token of {user} is gone: the app must be started, so that it reports again"
        );
    }
    if tokens.is_empty() {
        return format!(
            "none is wanted for {user}: no phone has reported, or no mapping ties its selector to this user (see \
             push_tokens and mappings at the api's admin listener)"
        );
    }
    format!(
        "none is wanted for {user}: the phone has reported no token for messages with an app id"
    )
}

async fn pushers_of(store: &Store, user: &UserId) -> Result<Vec<PusherListing>, StoreError> {
    let (mut found, mut after) = (Vec::new(), 0);
    loop {
        let page = store.list_pushers(None, after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(found);
        };
        after = last.id;
        found.extend(page.into_iter().filter(|row| row.user_id == user.as_str()));
    }
}

async fn tokens_of(store: &Store, user: &UserId) -> Result<Vec<TokenListing>, StoreError> {
    let (mut found, mut after) = (Vec::new(), 0);
    loop {
        let page = store.list_tokens(after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(found);
        };
        after = last.id;
        found.extend(
            page.into_iter()
                .filter(|row| row.user_id.as_deref() == Some(user.as_str())),
        );
    }
}
