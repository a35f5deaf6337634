//! What changes the catalog: registrations, and what TTL checks are told.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use axum::{
    extract::{ConnectInfo, FromRequestParts, Path, State},
    http::{HeaderMap, StatusCode, header, request::Parts, uri::Authority},
    response::Response,
};
use serde::Deserialize;
use tokio::sync::oneshot;

use super::{
    super::payload::Payload,
    Api, Command, Order, Refusal, Served,
    asked::{Asked, read_flag},
    json,
};
use crate::catalog::{
    health::Status,
    source::{
        external::{Addition, Removal},
        registered::{NewCheck, NewService, OtherChecks, Refused},
    },
};

/// Somebody who may tell TTL checks how they are.
///
/// He shows the token, if there is one; otherwise he is on this host. And no page of somebody else's has sent him.
pub(super) struct Teller(Arc<Served>, Option<IpAddr>);

/// A teller who may register as well.
pub(super) struct Registrar(Teller);

pub(super) async fn register_service(Registrar(teller): Registrar, asked: Asked, body: Payload) -> Result<(), Refusal> {
    let others = match asked.get("replace-existing-checks") {
        Some(word) if word.is_empty() || read_flag(word) == Some(true) => OtherChecks::Drop,
        _ => OtherChecks::Keep,
    };
    let new = NewService::read(text(&body)?)?;
    teller.order(Command::RegisterService(new, others)).await
}

pub(super) async fn deregister_service(Registrar(teller): Registrar, Path(id): Path<String>) -> Result<(), Refusal> {
    teller.order(Command::DeregisterService(id)).await
}

pub(super) async fn register_node(Registrar(teller): Registrar, body: Payload) -> Result<Response, Refusal> {
    teller.order(Command::RegisterNode(Addition::read(text(&body)?)?)).await?;
    Ok(json(b"true".to_vec()))
}

pub(super) async fn deregister_node(Registrar(teller): Registrar, body: Payload) -> Result<Response, Refusal> {
    teller.order(Command::DeregisterNode(Removal::read(text(&body)?)?)).await?;
    Ok(json(b"true".to_vec()))
}

pub(super) async fn register_check(Registrar(teller): Registrar, body: Payload) -> Result<(), Refusal> {
    teller.order(Command::RegisterCheck(NewCheck::read(text(&body)?)?)).await
}

pub(super) async fn deregister_check(Registrar(teller): Registrar, Path(id): Path<String>) -> Result<(), Refusal> {
    teller.order(Command::DeregisterCheck(id)).await
}

pub(super) async fn maintain_service(
    Registrar(teller): Registrar,
    Path(id): Path<String>,
    asked: Asked,
) -> Result<(), Refusal> {
    teller.order(Command::Maintain { service: Some(id), reason: maintenance(&asked)? }).await
}

pub(super) async fn maintain_node(Registrar(teller): Registrar, asked: Asked) -> Result<(), Refusal> {
    teller.order(Command::Maintain { service: None, reason: maintenance(&asked)? }).await
}

pub(super) async fn pass_check(teller: Teller, Path(id): Path<String>, asked: Asked) -> Result<(), Refusal> {
    teller.tell(id, Status::Passing, &asked).await
}

pub(super) async fn warn_check(teller: Teller, Path(id): Path<String>, asked: Asked) -> Result<(), Refusal> {
    teller.tell(id, Status::Warning, &asked).await
}

pub(super) async fn fail_check(teller: Teller, Path(id): Path<String>, asked: Asked) -> Result<(), Refusal> {
    teller.tell(id, Status::Critical, &asked).await
}

pub(super) async fn update_check(teller: Teller, Path(check): Path<String>, body: Payload) -> Result<(), Refusal> {
    let update: Update =
        serde_json::from_slice(&body.bytes).map_err(|error| Refusal::bad(format!("Request decode failed: {error}")))?;
    let word = update.status.unwrap_or_default();
    let status = Status::from_word(&word).ok_or_else(|| Refusal::bad(format!("Invalid check status: '{word}'")))?;
    teller.order(Command::Tell { check, status, output: update.output.unwrap_or_default() }).await
}

/// Reloads the configuration as SIGHUP does, and answers when that is done.
pub(super) async fn reload(_: Teller, State(api): State<Api>) -> Result<(), Refusal> {
    let (done, told) = oneshot::channel();
    let busy = |text: &str| Refusal(StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
    api.reloads.try_send(done).map_err(|_| busy("a reload is about to begin already; try again"))?;
    told.await.map_err(|_| busy("the daemon is stopping"))?.map_err(Refusal::fault)
}

/// Consul takes `null` for what is not said.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Update {
    #[serde(rename = "Status", alias = "status")]
    status: Option<String>,
    #[serde(rename = "Output", alias = "output")]
    output: Option<String>,
}

impl Teller {
    async fn tell(&self, check: String, status: Status, asked: &Asked) -> Result<(), Refusal> {
        let output = asked.get("note").unwrap_or_default().to_owned();
        self.order(Command::Tell { check, status, output }).await
    }

    async fn order(&self, command: Command) -> Result<(), Refusal> {
        let (done, told) = oneshot::channel();
        let busy = |text: &str| Refusal(StatusCode::SERVICE_UNAVAILABLE, text.to_owned());
        self.0
            .orders
            .try_send(Order { command, client: self.1, done })
            .map_err(|_| busy("too much is to be changed; try again"))?;
        told.await.map_err(|_| busy("the catalog is going; try again"))??;
        Ok(())
    }
}

impl FromRequestParts<Api> for Teller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let denied = |text: &str| Refusal(StatusCode::FORBIDDEN, format!("Permission denied: {text}"));
        if is_foreign(&parts.headers, parts.uri.authority()) {
            return Err(denied("a page of another site must not change anything here"));
        }
        let served = api.served()?;
        let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip().to_canonical());
        match &served.config.token {
            Some(token) if !shown_token(parts).is_some_and(|shown| token.is(shown.as_bytes())) => {
                Err(denied("show the token of catalog.api.token as X-Consul-Token"))
            }
            None if !peer.is_some_and(|peer| peer.is_loopback()) => {
                Err(denied("only this host may change anything; set catalog.api.token, and show it"))
            }
            _ => Ok(Self(served, peer)),
        }
    }
}

impl FromRequestParts<Api> for Registrar {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let teller = Teller::from_request_parts(parts, api).await?;
        if !teller.0.config.enable_registration {
            let text = "Permission denied: registration is off; set catalog.api.enable_registration";
            return Err(Refusal(StatusCode::FORBIDDEN, text.to_owned()));
        }
        Ok(Self(teller))
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        let status = match &refused {
            Refused::Undecodable(_)
            | Refused::NoServiceName
            | Refused::NoCheckName
            | Refused::Address
            | Refused::Service(_)
            | Refused::Check(_)
            | Refused::Sidecar(_)
            | Refused::Script => StatusCode::BAD_REQUEST,
            Refused::NothingToMaintain(_) => StatusCode::NOT_FOUND,
            Refused::ServiceOfFile(_) | Refused::CheckOfFile(_) => StatusCode::CONFLICT,
            // Consul's own, on which tools rely.
            Refused::NoSuchService(_) | Refused::NotTtl(_) | Refused::Catalog(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Refused::Full => StatusCode::INSUFFICIENT_STORAGE,
            Refused::Unsaved(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, refused.to_string())
    }
}

/// Whether a browser has sent this for a page of another site, which browsers say.
fn is_foreign(headers: &HeaderMap, target: Option<&Authority>) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = target.map(Authority::as_str).or_else(|| text(header::HOST));
    let origin_is_foreign = text(header::ORIGIN).is_some_and(|origin| {
        let own = origin.split_once("://").map(|(_, authority)| authority);
        own.is_none() || !own.zip(host).is_some_and(|(own, host)| own.eq_ignore_ascii_case(host))
    });
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    origin_is_foreign || site.is_some_and(|site| !matches!(site, b"same-origin" | b"none"))
}

/// Where Consul's clients put it: in either of two header fields, or among the parameters.
fn shown_token(parts: &Parts) -> Option<String> {
    let field = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let bearer = || field("authorization")?.strip_prefix("Bearer ");
    let parameter = || {
        let query = parts.uri.query().unwrap_or_default();
        let token = query.split('&').find_map(|pair| pair.strip_prefix("token="))?;
        percent_encoding::percent_decode_str(token).decode_utf8().ok().map(|token| token.into_owned())
    };
    field("x-consul-token").or_else(bearer).map(str::to_owned).or_else(parameter)
}

fn maintenance(asked: &Asked) -> Result<Option<String>, Refusal> {
    let enable = asked.get("enable").filter(|word| !word.is_empty());
    let enable = enable.ok_or_else(|| Refusal::bad("Missing value for enable"))?;
    let enable = read_flag(enable).ok_or_else(|| Refusal::bad(format!("Invalid value for enable: {enable:?}")))?;
    Ok(enable.then(|| asked.get("reason").unwrap_or_default().to_owned()))
}

fn text(body: &Payload) -> Result<&str, Refusal> {
    std::str::from_utf8(&body.bytes).map_err(|_| Refusal::bad("Request decode failed: it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_other_sites_are_known_by_what_browsers_say() {
        for (fields, expected) in [
            (&[("host", "127.0.0.1:8653")][..], false), // no browser
            (&[("host", "127.0.0.1:8653"), ("origin", "http://127.0.0.1:8653")], false),
            (&[("host", "127.0.0.1:8653"), ("origin", "http://127.0.0.1:3000")], true),
            (&[("host", "localhost:8653"), ("origin", "HTTP://LOCALHOST:8653")], false),
            (&[("host", "127.0.0.1:8653"), ("origin", "https://attacker.example")], true),
            (&[("host", "127.0.0.1:8653"), ("origin", "null")], true),
            (&[("host", "127.0.0.1:8653"), ("origin", "")], true),
            (&[("origin", "http://127.0.0.1:8653")], true),
            (&[("host", "127.0.0.1:8653"), ("sec-fetch-site", "cross-site")], true),
            (&[("host", "127.0.0.1:8653"), ("sec-fetch-site", "same-site")], true),
            (&[("host", "127.0.0.1:8653"), ("sec-fetch-site", "same-origin")], false),
            (&[("host", "127.0.0.1:8653"), ("sec-fetch-site", "none")], false),
        ] {
            let headers = fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            assert_eq!(is_foreign(&headers, None), expected, "{fields:?}");
        }
    }
}
