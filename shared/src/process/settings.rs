//! Settings: environment variables that are also command-line flags. Each is checked at start, and an error names the
//! setting.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser},
    parser::ValueSource,
};
use url::Url;

use crate::{
    ids::{ServerName, UserId},
    process::{
        failure::Failure,
        logs::{LogFilter, LogFormat},
        net::Outgoing,
    },
    secret::Secret,
};

pub use super::secrets::{required_secret, secret_or_file, token_or_file};

/// Exit code of a process whose settings are wrong.
pub const EXIT_BAD_SETTING: i32 = 2;

const SERVER_NAME: &str = "MATRIX_SERVER_NAME";

/// A setting that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct SettingError {
    name: &'static str,
    problem: String,
}

impl SettingError {
    /// `problem` completes the sentence that `name` begins. It must not repeat a secret.
    pub fn new(name: &'static str, problem: impl Into<String>) -> Self {
        Self {
            name,
            problem: problem.into(),
        }
    }

    /// The same problem with another setting.
    #[must_use]
    pub fn of(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// The setting is required.
    pub fn missing(name: &'static str) -> Self {
        Self::new(name, "is required and not set")
    }
}

/// The settings that both processes have. Values are kept as they came and parsed by the methods, so
/// that each command checks only what it uses and an empty variable counts as unset.
#[derive(Debug, Clone, Args)]
pub struct SharedArgs {
    /// The database that all processes share: an SQLite file, created if missing with at most its immediate folder, or
    /// postgres://user:password@host/database [default: sqlite://data/matrix2acrobits.db]
    #[arg(long, env = "DATABASE_URL", value_name = "URL", global = true, hide_env_values = true, value_parser = secret)]
    pub database_url: Option<Secret>,

    /// File that holds DATABASE_URL
    #[arg(long, env = "DATABASE_URL_FILE", value_name = "PATH", value_parser = path(), global = true)]
    pub database_url_file: Option<PathBuf>,

    /// Connections that this process may have to PostgreSQL, at least 4
    #[arg(
        long,
        env = "DATABASE_MAX_CONNECTIONS",
        value_name = "NUMBER",
        global = true,
        default_value = "8"
    )]
    pub database_max_connections: String,

    /// Token for the admin endpoints; without it they answer 403
    #[arg(long, env = "ADMIN_TOKEN", value_name = "TOKEN", global = true, hide_env_values = true, value_parser = secret)]
    pub admin_token: Option<Secret>,

    /// File that holds ADMIN_TOKEN
    #[arg(long, env = "ADMIN_TOKEN_FILE", value_name = "PATH", value_parser = path(), global = true)]
    pub admin_token_file: Option<PathBuf>,

    /// Base URL of the Matrix homeserver, such as https://matrix.example.org
    #[expect(rustdoc::bare_urls, reason = "--help shows it as it stands")]
    #[arg(long, env = "MATRIX_HOMESERVER_URL", value_name = "URL", global = true)]
    pub matrix_homeserver_url: Option<String>,

    /// The part after ":" in user IDs [default: the host of MATRIX_HOMESERVER_URL]
    #[arg(long, env = "MATRIX_SERVER_NAME", value_name = "NAME", global = true)]
    pub matrix_server_name: Option<String>,

    /// PEM file with certificate authorities that outgoing calls trust, in addition to the system's
    #[arg(long, env = "EXTRA_CA_FILE", value_name = "PATH", value_parser = path(), global = true)]
    pub extra_ca_file: Option<PathBuf>,

    /// The Go proxy's name for its user; tells the server name where MATRIX_SERVER_NAME does not
    #[arg(long, env = "AS_USER_ID", global = true, hide = true)]
    pub as_user_id: Option<String>,

    /// DEBUG, INFO, WARNING, CRITICAL, or tracing filters such as matrix2acrobits_api=debug
    #[arg(
        long,
        env = "LOGLEVEL",
        value_name = "LEVEL",
        global = true,
        default_value = "INFO"
    )]
    pub loglevel: String,

    /// The same as LOGLEVEL; it takes precedence
    #[arg(long, env = "RUST_LOG", value_name = "LEVEL", global = true)]
    pub rust_log: Option<String>,

    /// Log lines for people or for machines: text or json
    #[arg(
        long,
        env = "LOG_FORMAT",
        value_name = "FORMAT",
        global = true,
        default_value = "text"
    )]
    pub log_format: String,
}

impl SharedArgs {
    /// Where the database is.
    pub fn database_url(&self) -> Result<Secret, SettingError> {
        let set = secret_or_file(
            "DATABASE_URL",
            self.database_url.as_ref(),
            "DATABASE_URL_FILE",
            self.database_url_file.as_ref(),
        )?;
        Ok(set.unwrap_or_else(|| Secret::new("sqlite://data/matrix2acrobits.db")))
    }

    /// The token for the admin endpoints, if there is one.
    pub fn admin_token(&self) -> Result<Option<Secret>, SettingError> {
        token_or_file(
            "ADMIN_TOKEN",
            self.admin_token.as_ref(),
            "ADMIN_TOKEN_FILE",
            self.admin_token_file.as_ref(),
        )
    }

    /// The homeserver's base URL, if set.
    pub fn homeserver_url(&self) -> Result<Option<Url>, SettingError> {
        optional(
            "MATRIX_HOMESERVER_URL",
            self.matrix_homeserver_url.as_deref(),
            base_url,
        )
    }

    /// The homeserver's base URL, which must be set.
    pub fn required_homeserver_url(&self) -> Result<Url, SettingError> {
        self.homeserver_url()?
            .ok_or_else(|| SettingError::missing("MATRIX_HOMESERVER_URL"))
    }

    /// The server name of user IDs, if known.
    pub fn server_name(&self) -> Result<Option<ServerName>, SettingError> {
        let stated = self.stated_server_name()?;
        if stated.is_some() {
            return Ok(stated);
        }
        let url = self.homeserver_url()?;
        let host = url.as_ref().and_then(Url::host_str);
        host.map(|host| {
            ServerName::parse(host).map_err(|e| SettingError::new(SERVER_NAME, e.to_string()))
        })
        .transpose()
    }

    /// The server name of user IDs, if the operator has stated it. The host of MATRIX_HOMESERVER_URL is only a guess:
    /// with delegation, or with an address in a local network, user IDs have another server name.
    pub fn stated_server_name(&self) -> Result<Option<ServerName>, SettingError> {
        let set = optional(SERVER_NAME, self.matrix_server_name.as_deref(), |text| {
            ServerName::parse(text).map_err(|e| e.to_string())
        })?;
        Ok(set.or_else(|| Some(self.as_user_id()?.server_name())))
    }

    /// The operator's file with certificate authorities, if there is one.
    pub fn extra_ca_file(&self) -> Option<&Path> {
        let file = self.extra_ca_file.as_deref();
        file.filter(|path| !path.as_os_str().is_empty())
    }

    /// The certificate authorities that outgoing calls trust. The process must have a TLS provider before this.
    pub fn outgoing(&self) -> Result<Outgoing, SettingError> {
        let file = self.extra_ca_file();
        Outgoing::new(file).map_err(|problem| {
            let file = file.map(|path| format!(": {}", path.display()));
            SettingError::new("EXTRA_CA_FILE", problem + &file.unwrap_or_default())
        })
    }

    /// The Go proxy's AS_USER_ID, if it is a user ID. Any other value is ignored, because AS_USER_ID is not our
    /// setting.
    pub fn as_user_id(&self) -> Option<UserId> {
        UserId::parse(self.as_user_id.as_deref()?.trim()).ok()
    }

    /// Which log lines to write.
    pub fn log_filter(&self) -> Result<LogFilter, SettingError> {
        let (name, text) = match self.rust_log.as_deref().map(str::trim) {
            Some(filter) if !filter.is_empty() => ("RUST_LOG", filter),
            _ => ("LOGLEVEL", self.loglevel.as_str()),
        };
        LogFilter::parse(text)
            .ok_or_else(|| SettingError::new(name, "is not a level or a list of tracing filters"))
    }

    /// How to write them.
    pub fn log_format(&self) -> Result<LogFormat, SettingError> {
        parse("LOG_FORMAT", &self.log_format, |text| match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("must be text or json".into()),
        })
    }
}

/// clap's way to the path of a file. An empty one counts as unset, which clap's own way would refuse.
pub fn path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// clap's way to a [`Secret`], so that no argument struct can print it.
pub fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Parses a setting that must have a value. `read` says what is wrong with the value.
pub fn parse<T>(
    name: &'static str,
    text: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, SettingError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(SettingError::new(name, "must not be empty"));
    }
    read(text).map_err(|problem| SettingError::new(name, problem))
}

/// Parses a setting that may be unset. An empty value counts as unset.
pub fn optional<T>(
    name: &'static str,
    text: Option<&str>,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, SettingError> {
    match text.map(str::trim) {
        None | Some("") => Ok(None),
        Some(text) => parse(name, text, read).map(Some),
    }
}

/// Parses a duration such as `500ms`, `1s`, `5m`. Zero is not allowed.
pub fn duration(name: &'static str, text: &str) -> Result<Duration, SettingError> {
    parse(name, text, |text| {
        let form = || format!("must be a duration such as 500ms, 1s or 5m, not {text:?}");
        let duration = humantime::parse_duration(text).map_err(|_| form())?;
        if duration.is_zero() || duration > Duration::from_hours(8784) {
            return Err(form());
        }
        Ok(duration)
    })
}

/// Reads a time such as `2026-01-31T12:00:00Z`, or a duration such as `2h` before `now`, as seconds since
/// 1970.
pub fn time_or_ago(text: &str, now: i64) -> Result<i64, String> {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now.saturating_sub(seconds(ago)));
    }
    let time = humantime::parse_rfc3339_weak(text).ok();
    let since_1970 = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since_1970.map(seconds).ok_or_else(|| {
        format!(
            "must be a time such as 2026-01-31T12:00:00Z or a duration such as 2h, not {text:?}"
        )
    })
}

/// Parses a whole number between two bounds, both included.
pub fn number(name: &'static str, text: &str, least: u32, most: u32) -> Result<u32, SettingError> {
    parse(name, text, |text| {
        text.parse()
            .ok()
            .filter(|n| (least..=most).contains(n))
            .ok_or_else(|| format!("must be a whole number from {least} to {most}, not {text:?}"))
    })
}

/// Parses `true` or `false`.
pub fn boolean(name: &'static str, text: &str) -> Result<bool, SettingError> {
    parse(name, text, |text| {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(format!("must be true or false, not {text:?}")),
        }
    })
}

/// Parses a user ID.
pub fn user(name: &'static str, text: &str) -> Result<UserId, SettingError> {
    parse(name, text.trim(), |text| {
        UserId::parse(text).map_err(|error| error.to_string())
    })
}

/// Parses an address to listen on.
pub fn socket_addr(name: &'static str, text: &str) -> Result<SocketAddr, SettingError> {
    parse(name, text, |text| {
        text.parse().map_err(|_| {
            format!("must be an address and port such as 127.0.0.1:8080, not {text:?}")
        })
    })
}

/// Reads an `http` or `https` URL that other URLs are built from, so it has no user, query or fragment.
pub fn base_url(text: &str) -> Result<Url, String> {
    let form = "must be a URL with a host, such as https://example.org";
    let url = Url::parse(text).map_err(|_| form.to_owned())?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(form.into());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user or password".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("must not contain a query or fragment".into());
    }
    Ok(url)
}

/// Parses the command line and the environment, and says which secrets are on the command line. Help and version print
/// and exit 0. Any problem prints one line and exits with [`EXIT_BAD_SETTING`].
pub fn parse_cli<C: clap::Parser>() -> (C, Exposed) {
    let command = C::command();
    let parsed = command.clone().try_get_matches().and_then(|matches| {
        let cli = C::from_arg_matches(&matches).map_err(|error| error.format(&mut C::command()))?;
        Ok((cli, Exposed::of(&command, &matches)))
    });
    parsed.unwrap_or_else(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        let text = error.to_string();
        // The problem comes first. Usage and tips come after an empty line.
        let lines = text.lines().map(str::trim);
        let problem: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        Failure::bad_setting(problem.join(" ")).exit()
    })
}

/// The flags with secrets on the command line, where every user of the machine can read them in the process list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed(Vec<String>);

impl Exposed {
    /// Secrets are the arguments whose values `--help` hides.
    fn of(command: &clap::Command, matches: &clap::ArgMatches) -> Self {
        let secrets = command.get_arguments().filter(|arg| {
            arg.is_hide_env_values_set()
                && (arg.get_id() != "database_url" || has_password(matches))
                && matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
        });
        Self(
            secrets
                .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
                .collect(),
        )
    }

    /// Logs one line for each. The log must be set up before this.
    pub fn warn(&self) {
        for flag in &self.0 {
            tracing::warn!(
                flag,
                "a secret stands on the command line, where every user of this machine can read it in the process list: use the environment variable, or a file"
            );
        }
    }
}

/// Whether DATABASE_URL contains a password. The path of a file is not a secret.
fn has_password(matches: &clap::ArgMatches) -> bool {
    let url = matches.get_one::<Secret>("database_url");
    let url = url.and_then(|url| Url::parse(url.expose()).ok());
    url.is_some_and(|url| url.password().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("500ms", 500),
            ("1s", 1000),
            (" 5m ", 300_000),
            ("1m 30s", 90_000),
        ] {
            assert_eq!(duration("X", text).unwrap(), Duration::from_millis(ms));
        }
        for text in ["", "0s", "5", "-1s", "soon"] {
            assert!(
                duration("X", text)
                    .unwrap_err()
                    .to_string()
                    .starts_with("X: "),
                "{text}"
            );
        }
    }

    #[test]
    fn times_and_durations_ago() {
        assert_eq!(time_or_ago("2h", 10_000), Ok(2800));
        assert_eq!(time_or_ago("1970-01-01T00:01:00Z", 10_000), Ok(60));
        assert_eq!(time_or_ago("1970-01-02 00:00:00", 10_000), Ok(86_400));
        assert!(time_or_ago("yesterday", 10_000).is_err());
    }

    #[test]
    fn base_urls() {
        assert!(base_url("https://matrix.example.org").is_ok());
        for text in [
            "matrix.example.org",
            "ftp://x",
            "https://u:p@x",
            "https://x/?q",
            "https://x/#f",
        ] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn secrets_on_the_command_line_are_named() {
        let command = clap::Command::new("x")
            .args([
                clap::Arg::new("token")
                    .long("token")
                    .global(true)
                    .hide_env_values(true),
                clap::Arg::new("key")
                    .long("key")
                    .global(true)
                    .hide_env_values(true)
                    .default_value("k"),
                clap::Arg::new("url").long("url").global(true),
            ])
            .subcommand(clap::Command::new("run"));
        for (line, expected) in [
            ("x --url u", &[][..]),
            ("x --token t --url u", &["--token"]),
            ("x --token t run --url u", &["--token"]),
            ("x run --token t --key k", &["--token", "--key"]),
        ] {
            let matches = command.clone().get_matches_from(line.split(' '));
            assert_eq!(Exposed::of(&command, &matches).0, expected, "{line}");
        }
    }
}
