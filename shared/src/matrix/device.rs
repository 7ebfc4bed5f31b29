//! Decides when to send a device id and when to make the device (specification 1.17, MSC4326). Some homeservers let an
//! application service set pushers only when it acts as a device of the user.

use crate::rules::outcome::{Reply, Response};

/// The id of the device that we act as for each user, where the homeserver wants one.
pub const DEVICE_ID: &str = "MATRIX2ACROBITS";
/// What users see in their list of devices.
pub const DEVICE_NAME: &str = "Push notifications of the softphone";

/// Whether the homeserver refused a request because it named no device.
pub fn is_wanted(reply: &Reply) -> bool {
    let Reply::Response(response) = reply else {
        return false;
    };
    let error = response.error.as_deref().unwrap_or_default();
    // Synapse repeats the user ID, which may contain the word.
    response.status == 403
        && response.errcode.is_some()
        && !error.contains("this user")
        && error.to_lowercase().contains("device")
}

/// Whether the homeserver says that it does not know the device that a request named.
pub(super) fn is_unknown(reply: &Reply) -> bool {
    let Reply::Response(response) = reply else {
        return false;
    };
    // The specification says M_UNKNOWN_DEVICE. Tuwunel and Continuwuity respond M_INVALID_PARAM.
    let errcode = response.errcode.as_deref().unwrap_or_default();
    response.status == 400
        && (errcode.ends_with("M_UNKNOWN_DEVICE") || errcode == "M_INVALID_PARAM")
}

/// Whether the reply to `PUT /devices/{id}` says that the device is there now.
pub fn is_made(put: &Reply) -> bool {
    matches!(put, Reply::Response(put) if (200..300).contains(&put.status))
}

/// The reply to report when the device could not be made. `first` is the reply to the request, and `put` the reply to
/// `PUT /devices/{id}`.
pub fn not_made(first: Reply, put: Reply) -> Reply {
    match put {
        // The homeserver refuses to make the device. The operator has to act, and the request stays refused.
        Reply::Response(put)
            if (400..=499).contains(&put.status) && put.errcode.is_some() && put.status != 429 =>
        {
            let errcode = put.errcode.unwrap_or_default();
            let words = put.error.unwrap_or_default();
            let error = format!(
                "the homeserver wants a device, and does not let us make one ({errcode}: {words}): add \
                 `device_management: true` and `io.element.msc4190: true` to the registration"
            );
            match first {
                Reply::Response(first) => Reply::Response(Response {
                    error: Some(error),
                    ..first
                }),
                nothing @ Reply::Nothing { .. } => nothing,
            }
        }
        trouble => trouble,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, errcode: &str, error: &str) -> Reply {
        Reply::Response(Response {
            status,
            json: true,
            errcode: Some(errcode.into()),
            error: Some(error.into()),
            ..Response::default()
        })
    }

    #[test]
    fn a_device_is_wanted_only_where_the_refusal_says_so() {
        let tuwunel = "user must be authenticated and device identified";
        for (status, errcode, error, expected) in [
            (403, "M_FORBIDDEN", tuwunel, true),
            (403, "M_FORBIDDEN", "Device required", true),
            (400, "M_FORBIDDEN", tuwunel, false),
            (403, "M_FORBIDDEN", "not allowed", false),
            (
                403,
                "M_FORBIDDEN",
                "Application service cannot masquerade as this user (@device:example.org).",
                false,
            ),
        ] {
            let reply = reply(status, errcode, error);
            assert_eq!(is_wanted(&reply), expected, "{status} {errcode} {error}");
        }
    }

    #[test]
    fn an_unknown_device_has_three_names() {
        for (status, errcode, expected) in [
            (400, "M_UNKNOWN_DEVICE", true),
            (400, "ORG.MATRIX.MSC4326.M_UNKNOWN_DEVICE", true),
            (400, "M_INVALID_PARAM", true),
            (400, "M_MISSING_PARAM", false),
            (403, "M_UNKNOWN_DEVICE", false),
        ] {
            let reply = reply(status, errcode, "words");
            assert_eq!(is_unknown(&reply), expected, "{status} {errcode}");
        }
    }

    #[test]
    fn a_device_that_may_not_be_made_is_named_and_trouble_stays_trouble() {
        let first = reply(400, "M_INVALID_PARAM", "Unknown device");
        let refused = not_made(first.clone(), reply(404, "M_NOT_FOUND", "no"));
        let Reply::Response(refused) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(refused.status, 400);
        assert!(refused.error.unwrap().contains("device_management"));
        let down = Reply::Response(Response {
            status: 502,
            ..Response::default()
        });
        assert_eq!(not_made(first, down.clone()), down);
    }
}
