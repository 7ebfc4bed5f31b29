//! The worker's settings, parsed once at start.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use matrix2acrobits_shared::{
    matrix::pushers::{NOTIFY_PATH, PushFormat, PusherSettings},
    process::{
        net::{self, Outgoing},
        settings::{self, SettingError, SharedArgs, path},
    },
    rules::retry::RetryPolicy,
    secret::Secret,
};
use url::Url;

/// Settings that only `run` uses, as they come from flags and environment.
#[derive(Debug, Clone, Args)]
pub(crate) struct RunArgs {
    /// Application service token (as_token of the registration)
    #[arg(long, env = "MATRIX_AS_TOKEN", value_name = "TOKEN", global = true, hide_env_values = true, value_parser = settings::secret)]
    matrix_as_token: Option<Secret>,

    /// File that holds MATRIX_AS_TOKEN
    #[arg(long, env = "MATRIX_AS_TOKEN_FILE", value_name = "PATH", value_parser = path(), global = true)]
    matrix_as_token_file: Option<PathBuf>,

    /// Public base URL of the api, such as https://push.example.org; no pusher is set while it is unset
    #[expect(rustdoc::bare_urls, reason = "--help shows it as it stands")]
    #[arg(long, env = "PROXY_URL", value_name = "URL", global = true)]
    proxy_url: Option<String>,

    /// Allow http in PROXY_URL beyond loopback: true or false
    #[arg(
        long,
        env = "ALLOW_INSECURE_PROXY_URL",
        value_name = "BOOL",
        global = true,
        default_value = "false"
    )]
    allow_insecure_proxy_url: String,

    /// What pushes carry: event_id_only or full
    #[arg(
        long,
        env = "PUSH_FORMAT",
        value_name = "FORMAT",
        global = true,
        default_value = "event_id_only"
    )]
    push_format: String,

    /// Let several accounts on one phone keep their pushers: true or false
    #[arg(
        long,
        env = "PUSHER_APPEND",
        value_name = "BOOL",
        global = true,
        default_value = "false"
    )]
    pusher_append: String,

    /// Ask the homeserver to send no counts without a message (MSC4076): true or false
    #[arg(
        long,
        env = "PUSHER_DISABLE_BADGE_COUNT",
        value_name = "BOOL",
        global = true,
        default_value = "false"
    )]
    pusher_disable_badge_count: String,

    /// How many jobs run side by side
    #[arg(
        long,
        env = "WORKER_CONCURRENCY",
        value_name = "NUMBER",
        global = true,
        default_value = "16"
    )]
    worker_concurrency: String,

    /// Longest wait for the homeserver, per attempt (a duration such as 500ms, 30s, 5m)
    #[arg(
        long,
        env = "HOMESERVER_TIMEOUT",
        value_name = "DURATION",
        global = true,
        default_value = "30s"
    )]
    homeserver_timeout: String,

    /// Wait after the first failed attempt (a duration; plus jitter)
    #[arg(
        long,
        env = "RETRY_INITIAL_INTERVAL",
        value_name = "DURATION",
        global = true,
        default_value = "1s"
    )]
    retry_initial_interval: String,

    /// Longest wait between attempts (a duration; plus jitter)
    #[arg(
        long,
        env = "RETRY_MAX_INTERVAL",
        value_name = "DURATION",
        global = true,
        default_value = "5m"
    )]
    retry_max_interval: String,

    /// Each wait is this many times the one before
    #[arg(
        long,
        env = "RETRY_MULTIPLIER",
        value_name = "NUMBER",
        global = true,
        default_value = "2"
    )]
    retry_multiplier: String,

    /// A registered pusher older than this is checked at the next report (a duration)
    #[arg(
        long,
        env = "PUSHER_REFRESH_INTERVAL",
        value_name = "DURATION",
        global = true,
        default_value = "24h"
    )]
    pusher_refresh_interval: String,
}

/// Address of the admin listener, which `healthcheck` uses too.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminArgs {
    /// Address for health and metrics
    #[arg(
        long,
        env = "ADMIN_LISTEN_ADDR",
        value_name = "ADDR:PORT",
        global = true,
        default_value = "127.0.0.1:9091"
    )]
    admin_listen_addr: String,
}

impl AdminArgs {
    pub(crate) fn addr(&self) -> Result<SocketAddr, SettingError> {
        settings::socket_addr("ADMIN_LISTEN_ADDR", &self.admin_listen_addr)
    }
}

/// The parsed settings of `run`.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) homeserver_url: Url,
    pub(crate) as_token: Secret,
    /// None while PROXY_URL is unset.
    pub(crate) pusher: Option<PusherSettings>,
    pub(crate) concurrency: usize,
    pub(crate) homeserver_timeout: Duration,
    pub(crate) retry: RetryPolicy,
    pub(crate) refresh_after: Duration,
    pub(crate) outgoing: Outgoing,
}

impl RunArgs {
    pub(crate) fn parse(&self, shared: &SharedArgs) -> Result<Settings, SettingError> {
        let homeserver_url = shared.required_homeserver_url()?;
        shared.server_name()?;
        let as_token = settings::required_secret(
            "MATRIX_AS_TOKEN",
            self.matrix_as_token.as_ref(),
            "MATRIX_AS_TOKEN_FILE",
            self.matrix_as_token_file.as_ref(),
        )?;
        let insecure =
            settings::boolean("ALLOW_INSECURE_PROXY_URL", &self.allow_insecure_proxy_url)?;
        let format = settings::parse("PUSH_FORMAT", &self.push_format, |text| match text {
            "event_id_only" => Ok(PushFormat::EventIdOnly),
            "full" => Ok(PushFormat::Full),
            _ => Err(format!("must be event_id_only or full, not {text:?}")),
        })?;
        let append = settings::boolean("PUSHER_APPEND", &self.pusher_append)?;
        let no_badge_counts = settings::boolean(
            "PUSHER_DISABLE_BADGE_COUNT",
            &self.pusher_disable_badge_count,
        )?;
        let notify_url = settings::optional("PROXY_URL", self.proxy_url.as_deref(), |text| {
            notify_url(text, insecure)
        })?;
        let initial = settings::duration("RETRY_INITIAL_INTERVAL", &self.retry_initial_interval)?;
        let max = settings::duration("RETRY_MAX_INTERVAL", &self.retry_max_interval)?;
        if max < initial {
            return Err(SettingError::new(
                "RETRY_MAX_INTERVAL",
                "must not be shorter than RETRY_INITIAL_INTERVAL",
            ));
        }
        let multiplier = settings::parse("RETRY_MULTIPLIER", &self.retry_multiplier, |text| {
            let number = text
                .parse()
                .ok()
                .filter(|n: &f64| (1.0..=100.0).contains(n));
            number.ok_or_else(|| format!("must be a number from 1 to 100, not {text:?}"))
        })?;
        let concurrency =
            settings::number("WORKER_CONCURRENCY", &self.worker_concurrency, 1, 1024)?;
        Ok(Settings {
            homeserver_url,
            as_token,
            pusher: notify_url.map(|notify_url| PusherSettings {
                notify_url,
                format,
                append,
                no_badge_counts,
            }),
            concurrency: usize::try_from(concurrency).unwrap_or(1),
            homeserver_timeout: settings::duration("HOMESERVER_TIMEOUT", &self.homeserver_timeout)?,
            retry: RetryPolicy {
                initial,
                max,
                multiplier,
            },
            refresh_after: settings::duration(
                "PUSHER_REFRESH_INTERVAL",
                &self.pusher_refresh_interval,
            )?,
            outgoing: shared.outgoing()?,
        })
    }
}

/// The URL that pushers carry, from PROXY_URL. Synapse accepts only the exact path. https is required because anybody
/// who can read the connection can read messages and ring phones.
fn notify_url(text: &str, insecure: bool) -> Result<Url, String> {
    let mut url = settings::base_url(text)?;
    if !matches!(url.path(), "" | "/") {
        return Err(
            "must not contain a path: Synapse posts to /_matrix/push/v1/notify alone".into(),
        );
    }
    if url.scheme() != "https" && !net::is_loopback(&url) && !insecure {
        return Err("must be https (or set ALLOW_INSECURE_PROXY_URL=true)".into());
    }
    url.set_path(NOTIFY_PATH);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_urls() {
        let good = |text, insecure| notify_url(text, insecure).unwrap().to_string();
        assert_eq!(
            good("https://push.example.org", false),
            "https://push.example.org/_matrix/push/v1/notify"
        );
        assert_eq!(
            good("https://push.example.org:8443/", false),
            "https://push.example.org:8443/_matrix/push/v1/notify"
        );
        assert_eq!(
            good("http://127.0.0.1:8080", false),
            "http://127.0.0.1:8080/_matrix/push/v1/notify"
        );
        assert_eq!(
            good("http://[::1]:8080", false),
            "http://[::1]:8080/_matrix/push/v1/notify"
        );
        assert_eq!(
            good("http://api:8080", true),
            "http://api:8080/_matrix/push/v1/notify"
        );
        for bad in [
            "http://api:8080",
            "https://x/path",
            "https://x/?q=1",
            "https://u@x",
            "push.example.org",
            "https://x/_matrix/push/v1/notify",
        ] {
            assert!(notify_url(bad, false).is_err(), "{bad}");
        }
    }
}
