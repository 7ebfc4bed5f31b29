//! Checks which homeserver it is, what follows from that, and whether users can log in with a password.

use url::Url;

use super::{
    Report,
    ask::{Asker, Reply},
};
use crate::settings::Settings;

/// Known homeservers by the name that they report, and what an operator has to know about each.
const KNOWN: [(&str, &str); 4] = [
    (
        "synapse",
        "retries failed pushes and deletes rejected pushers",
    ),
    (
        "dendrite",
        "does not retry: pushes during an outage of the api are lost; PROXY_URL must be https; with \
         PUSHER_APPEND=false a set deletes the user's other pushers, those of other apps too",
    ),
    (
        "tuwunel",
        "sets pushers only as a device, which the worker makes: the registration needs \
         `device_management: true` and `io.element.msc4190: true`; PROXY_URL must not be a private address",
    ),
    (
        "continuwuity",
        "sets pushers only as a device, which the worker makes: the registration needs \
         `device_management: true` and `io.element.msc4190: true`; PROXY_URL must not be a private address; it does \
         not retry, so pushes during an outage of the api are lost, and it keeps pushers that we reject",
    ),
];

/// Names the homeserver's software. No result of this check counts as wrong.
pub(super) async fn check(settings: &Settings, ask: &Asker, report: &mut Report) {
    let version = ask
        .get(at(settings, "/_matrix/federation/v1/version"))
        .await;
    match version.ok().as_ref().and_then(named) {
        Some((name, version)) => report.ok("software", &advice(&name, &version)),
        None => report.skipped(
            "software",
            "the homeserver does not name itself at this URL; see docs/homeservers.md for what differs",
        ),
    }
}

/// Checks that /pushers is served. A generic worker of Synapse serves everything else that we need, but not /pushers.
pub(super) async fn pushers_are_served(ask: &Asker, report: &mut Report) -> bool {
    let Ok(reply) = ask.homeserver("pushers", None).await else {
        return true;
    };
    if reply.status != 404 || reply.text("errcode") != Some("M_UNRECOGNIZED") {
        return true;
    }
    let text = "MATRIX_HOMESERVER_URL leads to a process that does not serve /pushers, as generic workers of Synapse \
                do not: use the URL of the main process, or of the reverse proxy in front of both";
    report.wrong("pushers", text);
    false
}

/// Checks whether `REPORT_AUTH=matrix` can work at this URL. The other ways to log in do not need it.
pub(super) async fn logins(settings: &Settings, ask: &Asker, report: &mut Report) {
    let Ok(reply) = ask.get(at(settings, "/_matrix/client/v3/login")).await else {
        return report.skipped("logins", "the homeserver does not say how users log in");
    };
    match password_logins(&reply) {
        Logins::Password => report.ok("logins", "users can log in with a password"),
        Logins::Delegated => report.suspect(
            "logins",
            "there is no login with a password at MATRIX_HOMESERVER_URL: a Matrix Authentication Service is in \
             charge. REPORT_AUTH=matrix works only if that service has passwords enabled and the api's \
             MATRIX_HOMESERVER_URL is the public URL, where /login leads to it; REPORT_AUTH=selector and nethcti \
             do not need it",
        ),
        Logins::None => report.suspect(
            "logins",
            "the homeserver offers no login with a password: REPORT_AUTH=matrix cannot work; REPORT_AUTH=selector \
             and nethcti do not need it",
        ),
        Logins::Unknown => {
            let text = format!(
                "the homeserver does not say how users log in: {}",
                reply.describe()
            );
            report.skipped("logins", &text);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logins {
    Password,
    /// Another service handles logins.
    Delegated,
    None,
    Unknown,
}

fn password_logins(reply: &Reply) -> Logins {
    let flows = reply.body["flows"].as_array();
    match (reply.status, flows) {
        (200, Some(flows)) => {
            let delegates = [
                "org.matrix.msc3824.delegated_oidc_compatibility",
                "oauth_aware_preferred",
            ];
            if flows.iter().any(|flow| flow["type"] == "m.login.password") {
                Logins::Password
            } else if flows
                .iter()
                .any(|flow| delegates.iter().any(|&name| flow[name] == true))
            {
                Logins::Delegated
            } else {
                Logins::None
            }
        }
        // Synapse has no /login if a Matrix Authentication Service handles logins.
        (404, _) => Logins::Delegated,
        _ => Logins::Unknown,
    }
}

fn named(reply: &Reply) -> Option<(String, String)> {
    let server = reply.body.get("server").filter(|_| reply.status == 200)?;
    let name = server.get("name")?.as_str()?;
    let version = server.get("version").and_then(|version| version.as_str());
    Some((short(name), short(version.unwrap_or("of unknown version"))))
}

/// Shortens a text for a terminal.
fn short(text: &str) -> String {
    let visible = text.chars().filter(|char| !char.is_control());
    visible.take(60).collect()
}

fn advice(name: &str, version: &str) -> String {
    let lower = name.to_lowercase();
    match KNOWN.iter().find(|(known, _)| lower.contains(known)) {
        Some((_, advice)) => format!("{name} {version}: it {advice} (docs/homeservers.md)"),
        None => format!("{name} {version}: not one that we know; see docs/homeservers.md"),
    }
}

fn at(settings: &Settings, path: &str) -> Url {
    let mut url = settings.homeserver_url.clone();
    let base = url.path().trim_end_matches('/');
    let path = format!("{base}{path}");
    url.set_path(&path);
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn reply(status: u16, body: Value) -> Reply {
        Reply {
            status,
            body,
            ..Reply::default()
        }
    }

    #[test]
    fn flows_say_whether_passwords_work() {
        let sso =
            json!({"type": "m.login.sso", "org.matrix.msc3824.delegated_oidc_compatibility": true});
        for (reply, expected) in [
            (
                reply(200, json!({"flows": [{"type": "m.login.password"}]})),
                Logins::Password,
            ),
            (reply(200, json!({"flows": [sso]})), Logins::Delegated),
            (
                reply(200, json!({"flows": [{"type": "m.login.sso"}]})),
                Logins::None,
            ),
            (
                reply(404, json!({"errcode": "M_UNRECOGNIZED"})),
                Logins::Delegated,
            ),
            (reply(200, Value::Null), Logins::Unknown),
            (reply(502, Value::Null), Logins::Unknown),
        ] {
            assert_eq!(password_logins(&reply), expected, "{reply:?}");
        }
    }

    #[test]
    fn a_homeserver_is_named_if_it_names_itself() {
        let of = |status, server: Value| named(&reply(status, json!({ "server": server })));
        let name = of(200, json!({"name": "Dendrite", "version": "0.15"}));
        let (name, version) = name.unwrap();
        assert!(advice(&name, &version).starts_with("Dendrite 0.15: it does not retry"));
        assert_eq!(of(404, json!({"name": "Dendrite"})), None);
        assert_eq!(of(200, json!("Dendrite")), None);
        assert!(advice("Conduit", "1").contains("not one that we know"));
    }
}
