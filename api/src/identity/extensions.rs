//! The main extensions of the chat's users (`PUSH_IDENTITY=extension`), in memory. Every login reads NethCTI's list,
//! and between logins we read it from time to time with the last login's token.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use serde_json::Value;

use super::nethcti::{main_extension, user_id};
use matrix2acrobits_shared::ids::ServerName;

/// How often to read the list while nobody logs in.
pub(super) const REFRESH: Duration = Duration::from_mins(5);

/// The list. Cheap to clone. A push uses the current list and never waits for a new one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extensions(Arc<RwLock<Arc<HashMap<String, String>>>>);

impl Extensions {
    /// The current list, by Matrix ID.
    pub(crate) fn list(&self) -> Arc<HashMap<String, String>> {
        let list = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&list)
    }

    /// Takes NethCTI's list.
    pub(super) fn replace(&self, users: &[Value], server: &ServerName) {
        let of = |user: &Value| {
            let id = user_id(user["user_name"].as_str()?.trim(), server)?;
            Some((id.as_str().to_owned(), main_extension(user)?))
        };
        let list = Arc::new(users.iter().filter_map(of).collect());
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = list;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn users_with_a_main_extension_are_known_by_their_matrix_id() {
        let users = [
            json!({"user_name": "Alice", "main_extension": "201", "extensions": ["201", "91201"]}),
            json!({"user_name": "bob", "main_extension": 202}),
            json!({"user_name": "carol", "main_extension": ""}),
            json!({"user_name": "dave"}),
            json!({"main_extension": "205"}),
            json!("odd"),
        ];
        let extensions = Extensions::default();
        assert!(extensions.list().is_empty());
        extensions.replace(&users, &ServerName::parse("example.org").unwrap());
        let list = extensions.list();
        assert_eq!(list.len(), 2, "{list:?}");
        assert_eq!(list["@alice:example.org"], "201");
        assert_eq!(list["@bob:example.org"], "202");
    }
}
