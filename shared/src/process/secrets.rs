//! Secrets among the settings: each comes from its own setting or from a file.

use std::path::PathBuf;

use super::settings::SettingError;
use crate::secret::Secret;

/// Takes a secret from its setting or from the file that its `_FILE` setting names.
pub fn secret_or_file(
    name: &'static str,
    value: Option<&Secret>,
    file_name: &'static str,
    file: Option<&PathBuf>,
) -> Result<Option<Secret>, SettingError> {
    let value = value.filter(|secret| !secret.expose().trim().is_empty());
    let file = file.filter(|path| !path.as_os_str().is_empty());
    match (value, file) {
        (Some(_), Some(_)) => Err(SettingError::new(
            file_name,
            format!("must not be set together with {name}"),
        )),
        (Some(secret), None) => one_line(name, secret.expose()).map(Some),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                SettingError::new(
                    file_name,
                    format!("cannot be read: {}: {e}", path.display()),
                )
            })?;
            let text = text.trim();
            if text.is_empty() {
                return Err(SettingError::new(
                    file_name,
                    format!("names an empty file: {}", path.display()),
                ));
            }
            one_line(file_name, text).map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// A secret without line ends and the like.
fn one_line(name: &'static str, text: &str) -> Result<Secret, SettingError> {
    let text = text.trim();
    if text.chars().any(char::is_control) {
        return Err(SettingError::new(name, "must be one line"));
    }
    Ok(Secret::new(text))
}

/// The same for a token that requests carry in a header: no request could carry any other than ASCII.
pub fn token_or_file(
    name: &'static str,
    value: Option<&Secret>,
    file_name: &'static str,
    file: Option<&PathBuf>,
) -> Result<Option<Secret>, SettingError> {
    let token = secret_or_file(name, value, file_name, file)?;
    if token
        .as_ref()
        .is_some_and(|token| !token.expose().is_ascii())
    {
        let from_file = value.is_none_or(|value| value.expose().trim().is_empty());
        let source = if from_file { file_name } else { name };
        let problem = "must have no characters beyond ASCII, since no header can carry them";
        return Err(SettingError::new(source, problem));
    }
    Ok(token)
}

/// The same for a token that must be there.
pub fn required_secret(
    name: &'static str,
    value: Option<&Secret>,
    file_name: &'static str,
    file: Option<&PathBuf>,
) -> Result<Secret, SettingError> {
    token_or_file(name, value, file_name, file)?.ok_or_else(|| SettingError::missing(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_come_from_one_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "from-file\n").unwrap();
        let value = Secret::new("direct");
        let empty = Secret::new("");
        let get = |value: Option<&Secret>, file: Option<&PathBuf>| {
            secret_or_file("X", value, "X_FILE", file).map(|s| s.map(|s| s.expose().to_owned()))
        };
        assert_eq!(get(Some(&value), None).unwrap().as_deref(), Some("direct"));
        assert_eq!(
            get(Some(&empty), Some(&path)).unwrap().as_deref(),
            Some("from-file")
        );
        assert_eq!(get(Some(&empty), None).unwrap(), None);
        assert!(
            get(Some(&value), Some(&path))
                .unwrap_err()
                .to_string()
                .starts_with("X_FILE: ")
        );
        assert!(get(None, Some(&folder.path().join("none"))).is_err());
    }
}
