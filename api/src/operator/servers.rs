//! Decides which servers' users a selector may be mapped to.

use matrix2acrobits_shared::{
    ids::{ServerName, UserId},
    process::settings::{SettingError, SharedArgs},
};

/// The operator's server if MATRIX_SERVER_NAME states it, otherwise any server. We cannot act for users of other
/// servers, because the registration covers the users of one homeserver.
#[derive(Debug, Clone)]
pub(crate) struct Servers(Option<ServerName>);

impl Servers {
    pub(crate) fn new(settings: &SharedArgs) -> Result<Self, SettingError> {
        settings.stated_server_name().map(Self)
    }

    /// Why this user's phones cannot have a pusher here.
    pub(crate) fn refuse(&self, user: &UserId) -> Option<String> {
        let ours = self.0.as_ref()?;
        (user.server_name() != *ours)
            .then(|| format!("{user} is of another server than {ours} (MATRIX_SERVER_NAME)."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_other_servers() {
        let bob = |server: &str| UserId::parse(&format!("@bob:{server}")).unwrap();
        let ours = Servers(ServerName::parse("example.org").ok());
        assert_eq!(ours.refuse(&bob("example.org")), None);
        for other in ["evil.org", "matrix.example.org", "example.org:8448"] {
            let words = ours.refuse(&bob(other)).unwrap();
            assert!(
                words.contains(other) && words.contains("MATRIX_SERVER_NAME"),
                "{words}"
            );
        }
        assert_eq!(Servers(None).refuse(&bob("evil.org")), None);
    }
}
