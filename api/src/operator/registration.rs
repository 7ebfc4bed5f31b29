//! The application service registration that the homeserver needs (Matrix application service API).

use std::io::Write;

use matrix2acrobits_shared::{
    ids::ServerName,
    process::{output::written, settings::SettingError},
};

use crate::cli::{Cli, Failure};

/// Prints the registration as YAML, with fresh random tokens.
pub(crate) fn run(cli: &Cli) -> Result<(), Failure> {
    let server_name = cli.shared.server_name()?.ok_or_else(|| {
        SettingError::new(
            "MATRIX_SERVER_NAME",
            "is required: users of this server are registered for",
        )
    })?;
    let yaml = yaml(&server_name, &fresh_token(), &fresh_token());
    written(std::io::stdout().write_all(yaml.as_bytes()))?;
    Ok(())
}

/// 256 random bits in hexadecimal.
fn fresh_token() -> String {
    use std::fmt::Write;
    let bytes: [u8; 32] = rand::random();
    bytes
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn yaml(server_name: &ServerName, as_token: &str, hs_token: &str) -> String {
    let server = server_name
        .as_str()
        .replace('.', r"\.")
        .replace('[', r"\[")
        .replace(']', r"\]");
    format!(
        "# Application service registration of matrix2acrobits. Keep it secret: as_token acts for every user.
# Synapse: list this file under app_service_config_files and restart. The worker gets as_token as
# MATRIX_AS_TOKEN.
id: matrix2acrobits
# null: the homeserver sends us nothing but pushes.
url: null
as_token: {as_token}
hs_token: {hs_token}
sender_localpart: _matrix2acrobits
rate_limited: false
namespaces:
  users:
    # exclusive must stay false: with true Synapse never pushes messages for these users, and says nothing.
    - exclusive: false
      regex: '@.*:{server}'
  aliases: []
  rooms: []
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_server_literally_and_is_not_exclusive() {
        let yaml = yaml(&ServerName::parse("example.org").unwrap(), "as", "hs");
        assert!(yaml.contains(r"regex: '@.*:example\.org'"), "{yaml}");
        assert!(yaml.contains("exclusive: false") && yaml.contains("url: null"));
        assert_ne!(fresh_token(), fresh_token());
        assert_eq!(fresh_token().len(), 64);
    }
}
