//! Parses a `DATABASE_URL` that names a PostgreSQL database.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use matrix2acrobits_shared::process::settings::{SettingError, parse};
use sqlx::postgres::PgConnectOptions;
use url::Url;

/// The parameters that may follow a `?`. sqlx ignores parameters that it does not know, and then a connection differs
/// from what the operator expects.
const PARAMETERS: [&str; 6] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "application_name",
];

/// Those of them that name files.
const FILES: [&str; 3] = ["sslrootcert", "sslcert", "sslkey"];

/// The PostgreSQL database that `DATABASE_URL` names.
#[derive(Clone)]
pub struct DatabaseUrl {
    options: PgConnectOptions,
    /// The files that the URL names, each with its parameter.
    files: Vec<(String, PathBuf)>,
}

impl DatabaseUrl {
    /// Also trusts the certificate authorities in this file, unless the URL names some.
    #[must_use]
    pub fn trusting(mut self, extra_ca: Option<&Path>) -> Self {
        let has_roots = self.files.iter().any(|(name, _)| name == "sslrootcert");
        if let Some(path) = extra_ca.filter(|_| !has_roots) {
            self.options = self.options.ssl_root_cert(path);
        }
        self
    }

    /// Checks that the files that the URL names can be read.
    pub fn check_files(&self) -> Result<(), SettingError> {
        for (name, file) in &self.files {
            std::fs::File::open(file).map_err(|error| {
                let problem = format!(
                    "has {name}={}, which cannot be read: {error}",
                    file.display()
                );
                SettingError::new("DATABASE_URL", problem)
            })?;
        }
        Ok(())
    }

    /// The connection options of the URL.
    pub(crate) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Whether the server is on this machine.
    pub(crate) fn is_local(&self) -> bool {
        let host = self.options.get_host();
        let address = host.parse::<IpAddr>();
        self.options.get_socket().is_some()
            || host.starts_with('/')
            || host == "localhost"
            || address.is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for DatabaseUrl {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        parse("DATABASE_URL", text, |text| {
            let form = || "must look like postgres://user:password@host:5432/database".to_owned();
            let url = Url::parse(text).map_err(|_| form())?;
            if !matches!(url.scheme(), "postgres" | "postgresql") {
                return Err(form());
            }
            if !is_encoded(&url) {
                // The text is not repeated, because it holds the password.
                let words = "holds special characters that must be percent-encoded in a user or password, such as \
                             %2F for / and %40 for @";
                return Err(words.to_owned());
            }
            for (name, value) in url.query_pairs() {
                if !PARAMETERS.contains(&name.as_ref()) {
                    let known = PARAMETERS.join(", ");
                    return Err(format!(
                        "has the unknown parameter {name:?}; known are {known}"
                    ));
                }
                if name == "sslmode" && value.parse::<sqlx::postgres::PgSslMode>().is_err() {
                    let modes = "disable, allow, prefer, require, verify-ca or verify-full";
                    return Err(format!("has sslmode={value}; it must be {modes}"));
                }
            }
            if url.path().trim_start_matches('/').is_empty() {
                return Err(format!("names no database: {}", form()));
            }
            // sqlx's error could repeat the password.
            let mut options = PgConnectOptions::from_str(text).map_err(|_| form())?;
            let host = options.get_host();
            if host.contains(',') {
                let words = "names several hosts; name one, which leads to the primary (a virtual address or a proxy)";
                return Err(words.to_owned());
            }
            // The resolver knows an IPv6 address by its digits alone.
            if let Some(bare) = host
                .strip_prefix('[')
                .and_then(|host| host.strip_suffix(']'))
            {
                let bare = bare.to_owned();
                options = options.host(&bare);
            }
            Ok(Self {
                options,
                files: url
                    .query_pairs()
                    .filter(|(name, _)| FILES.contains(&name.as_ref()))
                    .map(|(name, file)| (name.into_owned(), file.into_owned().into()))
                    .collect(),
            })
        })
    }
}

/// Whether the parts of a URL are what they seem. In a password, a `/`, `?` or `#` that is not encoded ends the host's
/// part of the URL, and the rest of the password becomes the database's name, a parameter or a fragment.
fn is_encoded(url: &Url) -> bool {
    let database = url.path().trim_start_matches('/');
    let is_name = |name: &str| name.bytes().all(|it| it.is_ascii_lowercase() || it == b'_');
    !database.contains(['/', '@'])
        && url.fragment().is_none()
        && url.query_pairs().all(|(name, _)| is_name(&name))
}

/// Shown without the password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        let (user, database) = (
            options.get_username(),
            options.get_database().unwrap_or_default(),
        );
        if let Some(socket) = options.get_socket() {
            return write!(f, "postgres://{user}@{}/{database}", socket.display());
        }
        let (host, port) = (options.get_host(), options.get_port());
        if host.contains(':') {
            write!(f, "postgres://{user}@[{host}]:{port}/{database}")
        } else {
            write!(f, "postgres://{user}@{host}:{port}/{database}")
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_databases() {
        for (text, local) in [
            ("postgres://u@127.0.0.1/x", true),
            ("postgres://u@[::1]/x", true),
            ("postgres://u@localhost/x", true),
            ("postgres:///x?host=/run/postgresql", true),
            ("postgres://u@db.example.org/x", false),
            ("postgres://u@10.0.0.1/x", false),
        ] {
            assert_eq!(
                text.parse::<DatabaseUrl>().unwrap().is_local(),
                local,
                "{text}"
            );
        }
    }

    #[test]
    fn database_urls() {
        for text in [
            "postgres://bridge:s3cr3t@db.example.org/bridge",
            "postgresql://bridge:s3cr3t@db.example.org:6432/bridge?sslmode=verify-full",
            "postgres://bridge:s3cr3t@db/bridge?sslrootcert=/etc/ca.pem&sslmode=verify-ca",
            "postgres:///bridge?host=/var/run/postgresql",
        ] {
            let url = text.parse::<DatabaseUrl>().unwrap();
            let shown = format!("{url} {url:?}");
            assert!(!shown.contains("s3cr3t"), "{shown}");
            assert!(shown.contains("bridge"), "{shown}");
        }
        for (text, host) in [
            ("postgres://u@[::1]:5433/x", "::1"),
            ("postgres://u@[2001:db8::5]/x", "2001:db8::5"),
            ("postgres://u@127.0.0.1:5433/x", "127.0.0.1"),
        ] {
            let url = text.parse::<DatabaseUrl>().unwrap();
            assert_eq!(url.options().get_host(), host, "{text}");
            let shown = url.to_string();
            let (before, after) = text.rsplit_once('/').unwrap();
            assert!(shown.starts_with(before), "{shown}");
            assert!(shown.ends_with(after), "{shown}");
        }
        for (text, word) in [
            ("postgres://u:s3cr3t@a,b/x", "several hosts"),
            ("postgres:///x?host=a,b", "several hosts"),
            ("postgres://u:s3cr3t@a:5432,b:5432/x", "user:password@host"),
            ("postgres://", "database"),
            ("postgres://db", "database"),
            ("postgres://u:s3cr3t@db/x?sslmod=require", "sslmod"),
            ("postgres://u:s3cr3t@db/x?sslmode=on", "sslmode"),
            (
                "postgres://u:s3cr3t@db/x?target_session_attrs=any",
                "target_session_attrs",
            ),
            ("mysql://db/x", "postgres://"),
            ("postgres://u:p@s3cr3t/x@db/x", "percent-encoded"),
            ("postgres://u:p@s3cr3t?x@db/x", "percent-encoded"),
            ("postgres://u:p@s3cr3t#x@db/x", "percent-encoded"),
            ("postgres://u:/s3cr3t@db/x", "percent-encoded"),
            ("postgres://u:12/s3cr3t@db/x", "percent-encoded"),
        ] {
            let problem = text.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(problem.starts_with("DATABASE_URL: "), "{problem}");
            assert!(problem.contains(word), "{problem}");
            assert!(!problem.contains("s3cr3t"), "{problem}");
        }
    }
}
