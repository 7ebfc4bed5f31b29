//! The api's settings, parsed once at start.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use matrix2acrobits_shared::{
    ids::{Selector, ServerName, UserId},
    process::{
        net::Outgoing,
        settings::{self, SettingError, SharedArgs, path},
    },
    secret::Secret,
};
use url::Url;

use crate::{
    http::peers::Proxies,
    notify::{texts::Texts, trust::NotifyAuth},
    operator::{canary::Plan, push_test::To},
};

/// Settings that only `serve` uses, as they come from flags and environment.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// Address of the public listener [default: 127.0.0.1:8080]
    #[arg(long, env = "LISTEN_ADDR", value_name = "ADDR:PORT", global = true)]
    listen_addr: Option<String>,

    /// The Go proxy's name for the port to listen on, on all addresses, where LISTEN_ADDR is not set
    #[arg(long, env = "PROXY_PORT", global = true, hide = true)]
    proxy_port: Option<String>,

    /// How a report is tied to a user: selector (by an operator's mapping), nethcti or matrix (by a login)
    #[arg(
        long,
        env = "REPORT_AUTH",
        value_name = "MODE",
        global = true,
        default_value = "selector"
    )]
    report_auth: String,

    /// Base URL of the NethCTI login service, for REPORT_AUTH=nethcti
    #[arg(long, env = "EXT_AUTH_URL", value_name = "URL", global = true)]
    ext_auth_url: Option<String>,

    /// Longest wait for a login service, in seconds
    #[arg(
        long,
        env = "EXT_AUTH_TIMEOUT_S",
        value_name = "SECONDS",
        global = true,
        default_value = "5"
    )]
    ext_auth_timeout_s: String,

    /// How long a good login is remembered, in seconds; 0: not at all
    #[arg(
        long,
        env = "CACHE_TTL_SECONDS",
        value_name = "SECONDS",
        global = true,
        default_value = "300"
    )]
    cache_ttl_seconds: String,

    /// Selectors without a mapping that one address may add in an hour, with REPORT_AUTH=selector; 0: no limit
    #[arg(
        long,
        env = "NEW_SELECTORS_PER_HOUR",
        value_name = "NUMBER",
        global = true,
        default_value = "5000"
    )]
    new_selectors_per_hour: String,

    /// Proxies whose X-Forwarded-For is believed: addresses and networks such as 10.0.0.1,10.1.0.0/16 [default: none]
    #[arg(long, env = "TRUSTED_PROXIES", value_name = "LIST", global = true)]
    trusted_proxies: Option<String>,

    /// Where PNM takes pushes
    #[arg(
        long,
        env = "PNM_URL",
        value_name = "URL",
        global = true,
        default_value = "https://pnm.cloudsoftphone.com/pnm2/send"
    )]
    pnm_url: String,

    /// Longest wait for PNM, per attempt (a duration such as 500ms, 10s)
    #[arg(
        long,
        env = "PNM_TIMEOUT",
        value_name = "DURATION",
        global = true,
        default_value = "10s"
    )]
    pnm_timeout: String,

    /// Text of a push when the homeserver sends none; empty: no text [default: New message]
    #[arg(long, env = "PUSH_FALLBACK_TEXT", value_name = "TEXT", global = true)]
    push_fallback_text: Option<String>,

    /// TOML or JSON file with the words for photos, calls, invitations and the like [default: English]
    #[arg(long, env = "PUSH_TEXTS_FILE", value_name = "PATH", value_parser = path(), global = true)]
    push_texts_file: Option<PathBuf>,

    /// Whether to push a count that comes without a message: on or off
    #[arg(
        long,
        env = "PUSH_BADGE_UPDATES",
        value_name = "ON_OR_OFF",
        global = true,
        default_value = "off"
    )]
    push_badge_updates: String,

    /// How the app sees the sender: matrix (the sender's Matrix ID) or extension (the sender's main extension at NethCTI,
    /// with REPORT_AUTH=nethcti)
    #[arg(
        long,
        env = "PUSH_IDENTITY",
        value_name = "MODE",
        global = true,
        default_value = "matrix"
    )]
    push_identity: String,

    /// What becomes of notifications without our pusher's mark: prefer (pushed within a budget), require (refused) or
    /// off (pushed like any other, for endpoints that only the homeserver can reach)
    #[arg(
        long,
        env = "NOTIFY_AUTH",
        value_name = "MODE",
        global = true,
        default_value = "prefer"
    )]
    notify_auth: String,

    /// User whose phones get a test push at every CANARY_INTERVAL [default: none]
    #[arg(long, env = "CANARY_USER", value_name = "USER_ID", global = true)]
    canary_user: Option<String>,

    /// Selector whose phones get the test push, instead of a user's [default: none]
    #[arg(long, env = "CANARY_SELECTOR", value_name = "SELECTOR", global = true)]
    canary_selector: Option<String>,

    /// How often the canary pushes (a duration such as 1h, 24h)
    #[arg(
        long,
        env = "CANARY_INTERVAL",
        value_name = "DURATION",
        global = true,
        default_value = "24h"
    )]
    canary_interval: String,

    /// Homeserver token (hs_token of the registration); only with it are the application service endpoints served
    #[arg(long, env = "MATRIX_HS_TOKEN", value_name = "TOKEN", global = true, hide_env_values = true, value_parser = settings::secret)]
    matrix_hs_token: Option<Secret>,

    /// File that holds MATRIX_HS_TOKEN
    #[arg(long, env = "MATRIX_HS_TOKEN_FILE", value_name = "PATH", value_parser = path(), global = true)]
    matrix_hs_token_file: Option<PathBuf>,
}

/// Address of the admin listener, which `healthcheck` uses too.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminArgs {
    /// Address for health, metrics and the admin endpoints
    #[arg(
        long,
        env = "ADMIN_LISTEN_ADDR",
        value_name = "ADDR:PORT",
        global = true,
        default_value = "127.0.0.1:9090"
    )]
    admin_listen_addr: String,
}

impl AdminArgs {
    pub(crate) fn addr(&self) -> Result<SocketAddr, SettingError> {
        settings::socket_addr("ADMIN_LISTEN_ADDR", &self.admin_listen_addr)
    }
}

/// How we find out which user a report belongs to.
#[derive(Debug, Clone)]
pub(crate) enum ReportAuth {
    /// By the operator's mapping, without a login.
    Selector,
    /// By a login at NethCTI.
    NethCti { url: Url, server_name: ServerName },
    /// By a login at the homeserver.
    Matrix { homeserver: Url },
}

/// The parsed settings of `serve`.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) listen_addr: SocketAddr,
    pub(crate) report_auth: ReportAuth,
    pub(crate) auth_timeout: Duration,
    pub(crate) login_ttl: Duration,
    pub(crate) trusted_proxies: Proxies,
    pub(crate) pnm_url: Url,
    pub(crate) pnm_timeout: Duration,
    pub(crate) texts: Texts,
    pub(crate) badge_updates: bool,
    /// Whether to name senders by their extensions.
    pub(crate) by_extension: bool,
    pub(crate) notify_auth: NotifyAuth,
    pub(crate) hs_token: Option<Secret>,
    pub(crate) strangers_per_hour: u32,
    pub(crate) canary: Option<Plan>,
    pub(crate) outgoing: Outgoing,
}

impl ServeArgs {
    fn texts(&self) -> Result<Texts, SettingError> {
        let file = self.push_texts_file.as_deref();
        let mut texts = match file.filter(|file| !file.as_os_str().is_empty()) {
            None => Texts::english(),
            Some(file) => {
                let wrong = |problem: &str| {
                    SettingError::new("PUSH_TEXTS_FILE", format!("{}: {problem}", file.display()))
                };
                let content = std::fs::read_to_string(file);
                let content = content.map_err(|error| wrong(&error.to_string()))?;
                let json = file
                    .extension()
                    .is_some_and(|end| end.eq_ignore_ascii_case("json"));
                Texts::parse(&content, json).map_err(|problem| wrong(&problem))?
            }
        };
        if let Some(text) = &self.push_fallback_text {
            text.trim().clone_into(&mut texts.message);
        }
        Ok(texts)
    }

    fn listen_addr(&self) -> Result<SocketAddr, SettingError> {
        let named = |name, text: Option<&str>, read: fn(&str) -> Option<SocketAddr>, form| {
            settings::optional(name, text, |text| {
                read(text).ok_or_else(|| format!("must be {form}, not {text:?}"))
            })
        };
        let addr = named(
            "LISTEN_ADDR",
            self.listen_addr.as_deref(),
            |text| text.parse().ok(),
            "an address and port such as 127.0.0.1:8080",
        )?;
        let port = named(
            "PROXY_PORT",
            self.proxy_port.as_deref(),
            |text| Some((Ipv4Addr::UNSPECIFIED, text.parse().ok()?).into()),
            "a port",
        )?;
        Ok(addr
            .or(port)
            .unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 8080).into()))
    }

    fn canary(&self) -> Result<Option<Plan>, SettingError> {
        let user = settings::optional("CANARY_USER", self.canary_user.as_deref(), |text| {
            UserId::parse(text).map_err(|error| error.to_string())
        })?;
        let selector =
            settings::optional("CANARY_SELECTOR", self.canary_selector.as_deref(), |text| {
                Selector::parse(text).map_err(|error| error.to_string())
            })?;
        let interval = settings::duration("CANARY_INTERVAL", &self.canary_interval)?;
        let to = match (user, selector) {
            (Some(_), Some(_)) => {
                return Err(SettingError::new(
                    "CANARY_SELECTOR",
                    "must not be set together with CANARY_USER",
                ));
            }
            (Some(user), None) => To::User(user),
            (None, Some(selector)) => To::Selector(selector),
            (None, None) => return Ok(None),
        };
        Ok(Some(Plan { to, interval }))
    }

    pub(crate) fn parse(&self, shared: &SharedArgs) -> Result<Settings, SettingError> {
        let homeserver = shared.homeserver_url()?;
        let server_name = shared.server_name()?;
        let ext_auth_url = settings::optional(
            "EXT_AUTH_URL",
            self.ext_auth_url.as_deref(),
            settings::base_url,
        )?;
        let missing =
            |name, mode| SettingError::new(name, format!("is required with REPORT_AUTH={mode}"));
        let report_auth = match self.report_auth.trim() {
            "selector" => ReportAuth::Selector,
            "nethcti" => ReportAuth::NethCti {
                url: ext_auth_url.ok_or_else(|| missing("EXT_AUTH_URL", "nethcti"))?,
                server_name: server_name.ok_or_else(|| missing("MATRIX_SERVER_NAME", "nethcti"))?,
            },
            "matrix" => ReportAuth::Matrix {
                homeserver: homeserver.ok_or_else(|| missing("MATRIX_HOMESERVER_URL", "matrix"))?,
            },
            other => {
                let problem = format!("must be selector, nethcti or matrix, not {other:?}");
                return Err(SettingError::new("REPORT_AUTH", problem));
            }
        };
        let seconds = |name, text: &str, least| {
            settings::number(name, text, least, 86_400)
                .map(|seconds| Duration::from_secs(seconds.into()))
        };
        let badge_updates = settings::boolean("PUSH_BADGE_UPDATES", &self.push_badge_updates)?;
        let by_extension =
            settings::parse("PUSH_IDENTITY", &self.push_identity, |text| match text {
                "matrix" => Ok(false),
                "extension" if matches!(report_auth, ReportAuth::NethCti { .. }) => Ok(true),
                "extension" => Err("can be extension with REPORT_AUTH=nethcti only".to_owned()),
                other => Err(format!("must be matrix or extension, not {other:?}")),
            })?;
        Ok(Settings {
            listen_addr: self.listen_addr()?,
            report_auth,
            auth_timeout: seconds("EXT_AUTH_TIMEOUT_S", &self.ext_auth_timeout_s, 1)?,
            login_ttl: seconds("CACHE_TTL_SECONDS", &self.cache_ttl_seconds, 0)?,
            trusted_proxies: settings::optional(
                "TRUSTED_PROXIES",
                self.trusted_proxies.as_deref(),
                Proxies::parse,
            )?
            .unwrap_or_default(),
            pnm_url: settings::parse("PNM_URL", &self.pnm_url, settings::base_url)?,
            pnm_timeout: settings::duration("PNM_TIMEOUT", &self.pnm_timeout)?,
            texts: self.texts()?,
            badge_updates,
            by_extension,
            notify_auth: settings::parse("NOTIFY_AUTH", &self.notify_auth, NotifyAuth::parse)?,
            hs_token: settings::token_or_file(
                "MATRIX_HS_TOKEN",
                self.matrix_hs_token.as_ref(),
                "MATRIX_HS_TOKEN_FILE",
                self.matrix_hs_token_file.as_ref(),
            )?,
            strangers_per_hour: settings::number(
                "NEW_SELECTORS_PER_HOUR",
                &self.new_selectors_per_hour,
                0,
                1_000_000,
            )?,
            canary: self.canary()?,
            outgoing: shared.outgoing()?,
        })
    }
}
