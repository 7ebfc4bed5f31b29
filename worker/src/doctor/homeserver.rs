//! The doctor's checks of the homeserver: whether it responds, which user our token belongs to, and for whom we may
//! act.

use matrix2acrobits_shared::{clock::Clock, ids::UserId};

use super::{
    Report,
    ask::{Asker, Reply},
    software,
};
use crate::{commands::Cli, settings::Settings};

/// How far two clocks may differ, in seconds. A proxy's Date can be a little old.
const SKEW: i64 = 30;

/// Synapse says nothing about an exclusive namespace. Only its configuration shows it.
pub(super) const EXCLUSIVE: &str = "cannot be seen from here: the registration must say `exclusive: false`; with \
     true Synapse takes pushers, never pushes a message, and logs nothing";

/// Checks the homeserver, its clock, and our token. True if the homeserver accepts the token.
pub(super) async fn check(
    cli: &Cli,
    settings: &Settings,
    ask: &Asker,
    report: &mut Report,
) -> bool {
    let url = &settings.homeserver_url;
    let advice = format!("check MATRIX_HOMESERVER_URL ({url}) and the way there");
    match ask.versions().await {
        Err(problem) => {
            report.wrong("homeserver", &format!("{problem}: {advice}"));
            return false;
        }
        Ok(reply) if reply.status != 200 || !reply.body["versions"].is_array() => {
            let answer = reply.describe();
            // M_UNRECOGNIZED also comes from the api, if MATRIX_HOMESERVER_URL leads there by mistake.
            let text = match reply.text("errcode") {
                Some(errcode) if errcode != "M_UNRECOGNIZED" => {
                    format!("it refuses to name its versions: {answer}: see the homeserver's log")
                }
                _ => format!("it is no Matrix homeserver: {answer}: {advice}"),
            };
            report.wrong("homeserver", &text);
            return false;
        }
        Ok(reply) => {
            report.ok("homeserver", "answers");
            clock(&reply, report);
            software::check(settings, ask, report).await;
        }
    }
    match ask.homeserver("account/whoami", None).await {
        Err(problem) => {
            report.wrong("as_token", &format!("{problem}: {advice}"));
            false
        }
        Ok(reply) => as_token(cli, &reply, report),
    }
}

fn clock(reply: &Reply, report: &mut Report) {
    let Some(homeserver_time) = reply.date else {
        return report.skipped("clock", "the homeserver does not say what time it has");
    };
    let ahead = Clock::system().unix() - homeserver_time;
    if ahead.abs() <= SKEW {
        return report.ok("clock", "as the homeserver's");
    }
    let (seconds, where_to) = (ahead.abs(), if ahead > 0 { "ahead of" } else { "behind" });
    let text = format!(
        "this machine is {seconds} s {where_to} the homeserver: set both by NTP, or logs do not match and \
         certificates seem to be out of date"
    );
    report.wrong("clock", &text);
}

fn as_token(cli: &Cli, reply: &Reply, report: &mut Report) -> bool {
    let us = match (reply.status, reply.text("user_id")) {
        (200, Some(user)) => user,
        (401, _) => {
            let text = format!(
                "{}: MATRIX_AS_TOKEN must be the as_token of a registration that is listed under \
                 app_service_config_files; the homeserver reads it when it starts",
                reply.describe()
            );
            report.wrong("as_token", &text);
            return false;
        }
        _ => {
            report.wrong(
                "as_token",
                &format!("{}: see the homeserver's log", reply.describe()),
            );
            return false;
        }
    };
    if reply.body.get("device_id").is_some() {
        let text =
            format!("MATRIX_AS_TOKEN is an access token of {us}: take the registration's as_token");
        report.wrong("as_token", &text);
        return false;
    }
    report.ok("as_token", &format!("accepted, as {us}"));
    server_name(cli, us, report);
    true
}

/// The user IDs that logins lead to must belong to the homeserver that we talk to.
fn server_name(cli: &Cli, us: &str, report: &mut Report) {
    let Some((_, server)) = us.split_once(':') else {
        return;
    };
    match cli.shared.server_name() {
        Ok(Some(ours)) if ours.as_str() == server => {}
        Ok(Some(ours)) => {
            let text = format!(
                "MATRIX_SERVER_NAME is {ours} here, and the homeserver's users are @...:{server}: set it to \
                 {server} for both processes"
            );
            report.suspect("server name", &text);
        }
        Ok(None) | Err(_) => {}
    }
}

/// Checks whether we may act for this user.
pub(super) async fn masquerade(user: &UserId, ask: &Asker, report: &mut Report) -> bool {
    let reply = match ask.homeserver("account/whoami", Some(user)).await {
        Ok(reply) => reply,
        Err(problem) => {
            report.wrong("user", &format!("{problem}: ask again"));
            return false;
        }
    };
    if reply.status == 200 && reply.text("user_id") == Some(user.as_str()) {
        report.ok("user", &format!("the bridge may act for {user}"));
        return true;
    }
    let error = reply.text("error").unwrap_or_default();
    let advice = if error.contains("masquerade") {
        "the regular expression under `namespaces: users:` of the registration must match this whole ID"
    } else if error.contains("not registered") {
        "there is no such user; once there is, the phone's next report or `replay --user` sets the pusher"
    } else {
        "see the homeserver's log"
    };
    report.wrong("user", &format!("{}: {advice}", reply.describe()));
    false
}

/// Checks whether the homeserver finds anything to notify this user about.
pub(super) async fn notifications(user: &UserId, ask: &Asker, report: &mut Report) {
    let muted = "pushrules/global/override/.m.rule.master/enabled";
    if let Ok(reply) = ask.homeserver(muted, Some(user)).await
        && reply.body["enabled"] == true
    {
        let text = format!(
            "{user} has switched off all notifications: the user can switch them on in a Matrix client"
        );
        return report.wrong("notifications", &text);
    }
    let Ok(reply) = ask.homeserver("notifications", Some(user)).await else {
        return report.skipped("notifications", "the homeserver does not list them");
    };
    let newest = reply.body["notifications"]
        .as_array()
        .into_iter()
        .flatten()
        // Synapse notifies of invitations even in an exclusive namespace.
        .filter(|one| one["event"]["type"] != "m.room.member")
        .filter_map(|one| one["ts"].as_i64())
        .max();
    if let Some(newest) = newest {
        let ago = (Clock::system().unix() - newest / 1000).max(0);
        let text = format!(
            "the homeserver found a message to notify of {ago} s ago; so the namespace was not exclusive"
        );
        report.ok("notifications", &text);
    } else {
        let text = "the homeserver knows no unread message that it notified of: have somebody write, and look again. \
                    If it stays so, the room is muted, or the namespace exclusive";
        report.suspect("notifications", text);
        report.suspect("namespace", EXCLUSIVE);
    }
}
