//! What an agent says of itself and of what is its own.

use std::hash::BuildHasher;

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use foldhash::fast::FixedState;

use super::{
    Api, Refusal,
    asked::Asked,
    blocking::{self, Said},
    json,
    rendered::Basis,
    views::AgentHealthView,
};

pub(super) async fn itself(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.show(&asked, |view| asked.render(&view.itself())).await
}

/// There is no gossip here, and so nobody to name. A list of ourselves alone would read as if all others were lost.
pub(super) async fn members() -> Refusal {
    let text =
        "watershed is no member of a cluster, so it has no members to name; `consul catalog nodes` names the nodes";
    Refusal(StatusCode::NOT_IMPLEMENTED, text.to_owned())
}

pub(super) async fn services(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.show(&asked, |view| asked.render(&view.own_services())).await
}

pub(super) async fn checks(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.await_first_round().await?;
    api.show(&asked, |view| asked.render(&view.own_checks())).await
}

/// One service, or another state of it than the one whose hash is known.
pub(super) async fn service(State(api): State<Api>, Path(id): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    blocking::answer(&api, &asked, |view| {
        let unknown = || Refusal(StatusCode::NOT_FOUND, format!("unknown service ID: {id}"));
        let mut service = view.own_service(&id).ok_or_else(unknown)?;
        let hash = format!("{:016x}", FixedState::default().hash_one(asked.render(&service)));
        service.content_hash = Some(hash.clone());
        Ok(Said::new(Basis::Hash(hash), asked.render(&service)))
    })
    .await
}

/// The health of one service, in the status code as well.
pub(super) async fn health_by_id(
    State(api): State<Api>,
    Path(id): Path<String>,
    asked: Asked,
    fields: HeaderMap,
) -> Result<Response, Refusal> {
    api.await_first_round().await?;
    let is_text = wants_text(&asked, &fields);
    api.look(&asked, |view| match view.own_health(&id) {
        Some(health) if is_text => plain_text(health.code(), health.word()),
        Some(health) => (health.code(), json(asked.render(&health))).into_response(),
        None if is_text => {
            let text = format!("ServiceId {id} not found");
            (StatusCode::NOT_FOUND, json(asked.render(&text))).into_response()
        }
        None => (StatusCode::NOT_FOUND, json(asked.render(&AgentHealthView::absent()))).into_response(),
    })
    .await
}

/// The same for all of our own services of a name: the worst of them counts.
pub(super) async fn health_by_name(
    State(api): State<Api>,
    Path(name): Path<String>,
    asked: Asked,
    fields: HeaderMap,
) -> Result<Response, Refusal> {
    api.await_first_round().await?;
    api.look(&asked, |view| {
        let all = view.own_health_of(&name);
        let worst = all.iter().max_by_key(|health| health.code());
        let code = worst.map_or(StatusCode::NOT_FOUND, AgentHealthView::code);
        if wants_text(&asked, &fields) {
            let absent = || format!("ServiceName {name} Not Found");
            return plain_text(code, &worst.map_or_else(absent, |worst| worst.word().to_owned()));
        }
        (code, json(asked.render(&all))).into_response()
    })
    .await
}

/// Our metrics: in the form of Consul's, or in that of Prometheus.
pub(super) async fn metrics(State(api): State<Api>, asked: Asked) -> Response {
    if asked.get("format") == Some("prometheus") {
        return (PROMETHEUS, api.metrics.render()).into_response();
    }
    json(asked.render(&api.metrics.summary()))
}

/// As Consul decides it.
fn wants_text(asked: &Asked, fields: &HeaderMap) -> bool {
    let accepted = fields.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok());
    accepted.is_some_and(|accepted| accepted.starts_with("text/plain")) || asked.get("format") == Some("text")
}

fn plain_text(code: StatusCode, text: &str) -> Response {
    (code, [(header::CONTENT_TYPE, "text/plain")], text.to_owned()).into_response()
}

const PROMETHEUS: [(header::HeaderName, &str); 1] =
    [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
