//! How homeservers other than Synapse differ, as read in the source of Dendrite 08cac1c, Tuwunel 1.9.0 and
//! Continuwuity 26.8-alpha.

use axum::response::Response;
use serde_json::{Value, json};

use super::fault::matrix_error;
use super::{Inner, Pusher};
use crate::server::{self, Request};

const DEVICES: &str = "/_matrix/client/v3/devices/";

/// The homeserver that the stand-in behaves like.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Synapse in one process.
    #[default]
    Synapse,
    /// A generic worker of Synapse: pushers are set at the main process alone.
    SynapseWorker,
    /// Dendrite.
    Dendrite,
    /// Tuwunel.
    Tuwunel,
    /// Continuwuity.
    Continuwuity,
}

impl Profile {
    /// All that set pushers.
    pub const THAT_SET_PUSHERS: [Self; 4] = [
        Self::Synapse,
        Self::Dendrite,
        Self::Tuwunel,
        Self::Continuwuity,
    ];

    /// Whether an application service sets a pusher only while it masquerades as a device (MSC4326).
    pub fn wants_device(self) -> bool {
        matches!(self, Self::Tuwunel | Self::Continuwuity)
    }

    /// `GET /_matrix/federation/v1/version`.
    pub(super) fn version(self) -> Response {
        let (name, version) = match self {
            Self::Synapse | Self::SynapseWorker => ("Synapse", "1.163.2"),
            Self::Dendrite => ("Dendrite", "0.15.2"),
            Self::Tuwunel => ("Tuwunel", "1.9.0"),
            Self::Continuwuity => ("continuwuity", "26.8.0-alpha"),
        };
        server::json(200, &json!({"server": {"name": name, "version": version}}))
    }

    /// Refuses a request that sets or deletes a pusher because of its device.
    pub(super) fn refuses_device(
        self,
        inner: &Inner,
        user: &str,
        request: &Request,
    ) -> Option<Response> {
        if !self.wants_device() {
            return None;
        }
        let stable = request.query("device_id");
        let device = stable.or(request.query("org.matrix.msc3202.device_id"));
        let Some(device) = device else {
            let error = "user must be authenticated and device identified";
            return Some(matrix_error(403, "M_FORBIDDEN", error));
        };
        let own = (user.to_owned(), device.to_owned());
        (!inner.made_devices.contains(&own)).then(|| {
            let error = "Unknown device for this user";
            matrix_error(400, "M_INVALID_PARAM", error)
        })
    }

    /// Whether it takes a pusher with this URL.
    pub(super) fn takes_url(self, url: &str) -> bool {
        match self {
            Self::Synapse | Self::SynapseWorker => true,
            Self::Dendrite => url.starts_with("https://"),
            Self::Tuwunel | Self::Continuwuity => {
                url.starts_with("https://") || url.starts_with("http://")
            }
        }
    }

    /// Whether this pusher goes when `user` sets one of this app and pushkey.
    pub(super) fn is_displaced(self, held: &Pusher, user: &str, set: &Value) -> bool {
        let append = set["append"].as_bool().unwrap_or(false);
        let own = held.user_id == user;
        let key = set["pushkey"] == *held.pushkey;
        let pair = key && set["app_id"] == *held.app_id;
        match self {
            Self::Synapse | Self::SynapseWorker => pair && (own || !append),
            // Without append the user's other pushers go as well.
            Self::Dendrite if append => pair && own,
            Self::Dendrite => pair || own,
            Self::Tuwunel | Self::Continuwuity => key && own,
        }
    }

    /// Whether this pusher goes when `user` deletes one of this app and pushkey.
    pub(super) fn is_deleted(self, held: &Pusher, user: &str, deletion: &Value) -> bool {
        let append = deletion["append"].as_bool().unwrap_or(false);
        let own = held.user_id == user;
        let key = deletion["pushkey"] == *held.pushkey;
        let pair = key && deletion["app_id"] == *held.app_id;
        match self {
            Self::Synapse | Self::SynapseWorker => pair && own,
            Self::Dendrite => pair && (own || !append),
            Self::Tuwunel | Self::Continuwuity => key && own,
        }
    }
}

/// `PUT /devices/{id}` of an application service (MSC4190), where there is such a thing.
pub(super) fn put_device(inner: &mut Inner, user: &str, request: &Request) -> Option<Response> {
    let device = request.path.strip_prefix(DEVICES)?;
    if !inner.profile.wants_device() {
        return None;
    }
    if inner.refuses_devices {
        return Some(matrix_error(404, "M_NOT_FOUND", "Device not found."));
    }
    let new = inner
        .made_devices
        .insert((user.to_owned(), device.to_owned()));
    Some(server::json(if new { 201 } else { 200 }, &json!({})))
}
