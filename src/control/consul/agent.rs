//! What an agent says of itself and of what is its own.

use std::hash::BuildHasher;

use axum::{
    extract::{Path, State},
    http::StatusCode,
    response::Response,
};
use foldhash::fast::FixedState;

use super::{
    Api, Refusal,
    asked::Asked,
    blocking::{self, Basis, Said},
};

pub(super) async fn itself(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.show(&asked, |view| asked.render(&view.itself()))
}

/// There is no gossip here, and so nobody to name. A list of ourselves alone would read as if all others were lost.
pub(super) async fn members() -> Refusal {
    let text =
        "watershed is no member of a cluster, so it has no members to name; `consul catalog nodes` names the nodes";
    Refusal(StatusCode::NOT_IMPLEMENTED, text.to_owned())
}

pub(super) async fn services(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.show(&asked, |view| asked.render(&view.own_services()))
}

pub(super) async fn checks(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.show(&asked, |view| asked.render(&view.own_checks()))
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
