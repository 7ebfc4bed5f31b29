//! The OpenAPI description of the HTTP endpoints: `matrix2acrobits-api openapi`, checked in as docs/openapi.json. Each
//! endpoint is described at its handler. A test makes requests from the description and checks it against a running
//! api.

use matrix2acrobits_shared::process::output::write;
use utoipa::{Modify, OpenApi, openapi};

use crate::{
    cli::Failure,
    http::{errors::ProblemBody, health},
    notify, operator, reports,
};

/// Prints the description.
pub(crate) fn run() -> Result<(), Failure> {
    let mut description = Description::openapi();
    for part in [
        health::Description::openapi(),
        notify::Description::openapi(),
        operator::Description::openapi(),
        operator::ProofDescription::openapi(),
        reports::Description::openapi(),
        reports::receipts::Description::openapi(),
    ] {
        description.merge(part);
    }
    let text = description.to_pretty_json().map_err(Failure::other)?;
    write(text)?;
    Ok(())
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "matrix2acrobits-api",
        description = "Matrix push gateway for Acrobits softphones. The endpoints tagged phones and homeserver are on \
                       LISTEN_ADDR, those tagged operator on ADMIN_LISTEN_ADDR. Each endpoint tagged health says \
                       where it is.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    components(schemas(ProblemBody<'static>)),
    modifiers(&AdminToken),
)]
struct Description;

/// `Authorization: Bearer ADMIN_TOKEN`.
struct AdminToken;

impl Modify for AdminToken {
    fn modify(&self, description: &mut openapi::OpenApi) {
        use openapi::security::{Http, HttpAuthScheme, SecurityScheme};
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = description.components.get_or_insert_default();
        components.add_security_scheme("admin_token", scheme);
    }
}
