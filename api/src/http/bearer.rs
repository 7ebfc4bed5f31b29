//! The token of an `Authorization: Bearer` header (RFC 6750). Names of schemes have no case (RFC 9110, 11.1).

use axum::http::{HeaderMap, header::AUTHORIZATION};

/// The token, if there is one.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (value, token) in [
            ("Bearer s", Some("s")),
            ("bearer s", Some("s")),
            ("BEARER  s ", Some("s")),
            ("Bearer ", Some("")),
            ("Bearer", None),
            ("Bearers", None),
            ("Basic s", None),
            ("s", None),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            assert_eq!(bearer(&headers), token, "{value}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
