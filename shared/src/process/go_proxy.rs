//! Log lines about environment variables of the Go proxy that this bridge replaces: how each process uses them now.

use crate::process::settings::SharedArgs;

/// One line for each variable of the Go proxy that is set and that is not a setting of this process. `set` says whether
/// a variable has a value.
fn notes(args: &SharedArgs, is_api: bool, set: impl Fn(&str) -> bool) -> Vec<String> {
    let mut notes = Vec::new();
    let mut note = |name: &str, text: String| {
        if set(name) {
            notes.push(format!("{name} of the Go proxy: {text}"));
        }
    };
    if is_api {
        let text = if set("LISTEN_ADDR") {
            "not used, LISTEN_ADDR is set"
        } else {
            "used as the port to listen on, on all addresses; LISTEN_ADDR is its new name"
        };
        note("PROXY_PORT", text.into());
        note(
            "PUSH_TOKEN_DB_PATH",
            "`matrix2acrobits-api import` takes that database over; the one to work with is DATABASE_URL".into(),
        );
        note(
            "MAPPING_FILE",
            "not used, it maps telephone numbers; see `matrix2acrobits-api mappings import`".into(),
        );
    }
    let server = args.as_user_id().map(|user| user.server_name());
    let text = match (set("MATRIX_SERVER_NAME"), server) {
        (true, _) => "not used, MATRIX_SERVER_NAME is set".into(),
        (false, Some(server)) => {
            format!(
                "the server name {server} was taken from it; MATRIX_SERVER_NAME is its new name"
            )
        }
        (false, None) => "not used, it is not a user ID".into(),
    };
    note("AS_USER_ID", text);
    note(
        "SUPER_ADMIN_TOKEN",
        "not used: the worker's as_token is MATRIX_AS_TOKEN, and ADMIN_TOKEN, which must be another secret, opens \
         the admin endpoints"
            .into(),
    );
    notes
}

/// Writes these notes to the log.
pub fn log_notes(args: &SharedArgs, is_api: bool) {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    for note in notes(args, is_api, set) {
        tracing::info!("{note}");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        shared: SharedArgs,
    }

    #[test]
    fn each_name_that_is_set_is_noted() {
        let args = Cli::parse_from(["x", "--as-user-id", "@_acrobits_proxy:example.org"]).shared;
        assert_eq!(args.server_name().unwrap().unwrap().as_str(), "example.org");
        let old = [
            "PROXY_PORT",
            "PUSH_TOKEN_DB_PATH",
            "AS_USER_ID",
            "SUPER_ADMIN_TOKEN",
            "LOGLEVEL",
        ];
        let lines = notes(&args, true, |name| old.contains(&name));
        // LOGLEVEL has kept its name and its values.
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("example.org")));
        assert_eq!(notes(&args, false, |name| name == "PROXY_PORT"), [""; 0]);
    }

    #[test]
    fn the_new_names_outrank() {
        let given = [
            "x",
            "--as-user-id",
            "@_acrobits_proxy:old.org",
            "--matrix-server-name",
            "new.org",
        ];
        let args = Cli::parse_from(given).shared;
        assert_eq!(args.server_name().unwrap().unwrap().as_str(), "new.org");
        let both = [
            "AS_USER_ID",
            "MATRIX_SERVER_NAME",
            "PROXY_PORT",
            "LISTEN_ADDR",
        ];
        let lines = notes(&args, true, |name| both.contains(&name));
        assert!(
            lines.iter().all(|line| line.contains("not used")),
            "{lines:?}"
        );
    }
}
