//! Consul's HTTP API, as far as tools use it, answered from our own catalog.
//!
//! Shapes, texts and status codes are those of Consul 1.8.7. What is read comes from the catalog's snapshot; what is
//! written goes as an [`Order`] to whoever keeps the registrations, and is answered when it is in force and saved.

mod agent;
mod asked;
mod blocking;
mod index;
mod rendered;
mod views;
mod write;

use std::{net::IpAddr, sync::Arc};

use axum::{
    Router,
    extract::{Path, Request, State},
    http::{Method, StatusCode, Uri, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{MethodRouter, any, get, put},
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{Connections, Shown};
use crate::{
    catalog::{
        ApiConfig, Kind, Live, ServiceKey,
        check::{CHECK_HEADER, USER_AGENT},
        health::Status,
        source::{
            external::{Addition, Removal},
            registered::{NewCheck, NewService, OtherChecks, Refused},
        },
    },
    metrics::Metrics,
};
use asked::Asked;
use blocking::{Said, answer};
use index::Memory;
use rendered::{Basis, Bodies};
use views::View;

/// A catalog that the API speaks for, and to whom it passes on what is to be changed.
pub struct Served {
    live: Arc<Live>,
    orders: mpsc::Sender<Order>,
    config: ApiConfig,
    /// What indexes are counted from: later than any that an earlier catalog has given.
    first_index: u64,
    memory: Memory,
    bodies: Bodies,
    /// Requests look at the catalog one after the other: the first sees for all that ask the same, and looking takes long, for
    /// which other connections shall not wait.
    turn: tokio::sync::Mutex<()>,
}

/// The catalog as it comes and goes with the configuration.
pub type Feed = watch::Receiver<Option<Arc<Served>>>;

/// To whoever reloads the configuration; the outcome comes back by what is sent.
pub type Reloads = mpsc::Sender<oneshot::Sender<Result<(), String>>>;

/// Something that is to be changed.
#[derive(Debug)]
pub struct Order {
    /// What.
    pub command: Command,
    /// The address of the client that wants it.
    pub client: Option<IpAddr>,
    /// To be told when it is in force, or why it is not.
    pub done: oneshot::Sender<Result<(), Refused>>,
}

/// What is to be changed.
#[derive(Debug)]
pub enum Command {
    /// A service is there from now on.
    RegisterService(NewService, OtherChecks),
    /// A service is not, by its id.
    DeregisterService(String),
    /// An external node, or something on it, is there from now on.
    RegisterNode(Addition),
    /// It is not.
    DeregisterNode(Removal),
    /// A check is there from now on.
    RegisterCheck(NewCheck),
    /// A check is not, by its id.
    DeregisterCheck(String),
    /// A TTL check has this status.
    Tell {
        /// Its id.
        check: String,
        /// How it is.
        status: Status,
        /// What it says.
        output: String,
    },
    /// A service, or our own node, is in maintenance, or no longer.
    Maintain {
        /// The id of the service; nothing for our node.
        service: Option<String>,
        /// Why; nothing to end it.
        reason: Option<String>,
    },
}

/// What the routes need.
#[derive(Clone)]
struct Api {
    feed: Feed,
    metrics: Arc<Metrics>,
    reloads: Reloads,
    connections: Arc<Connections>,
    closing: CancellationToken,
}

/// A request that is not answered as it was meant.
#[derive(Debug)]
struct Refusal(StatusCode, String);

impl Served {
    /// For a catalog that began at this time, in milliseconds since 1970; orders that find no room are refused.
    pub fn new(live: Arc<Live>, orders: mpsc::Sender<Order>, config: ApiConfig, began: u64) -> Self {
        let (memory, bodies, turn) = Default::default();
        Self { live, orders, config, first_index: began.max(1), memory, bodies, turn }
    }

    /// Where the answers come from.
    pub(super) fn live(&self) -> &Live {
        &self.live
    }

    /// Whether it is one for this catalog and configuration.
    pub fn is_for(&self, live: &Arc<Live>, config: &ApiConfig) -> bool {
        Arc::ptr_eq(&self.live, live) && self.config == *config
    }
}

/// The routes. Requests that wait for a change end with the token.
pub(super) fn routes(shown: Shown, closing: CancellationToken) -> Router {
    let Shown { metrics, catalog: feed, reloads, connections, .. } = shown;
    let api = Api { feed, metrics, reloads, connections, closing };
    let no_service = "Missing service name";
    let no_node = "Missing node name";
    Router::new()
        .route("/v1/catalog/register", put(write::register_node))
        .route("/v1/catalog/deregister", put(write::deregister_node))
        .route("/v1/catalog/datacenters", get(datacenters))
        .route("/v1/catalog/nodes", get(nodes))
        .route("/v1/catalog/services", get(services))
        .merge(named("/v1/catalog/service/", get(service_nodes), no_service))
        .merge(named("/v1/catalog/connect/", get(connect_nodes), no_service))
        .merge(named("/v1/catalog/node/", get(node_services), no_node))
        .merge(named("/v1/catalog/node-services/", get(node_service_list), no_node))
        .merge(named("/v1/health/service/", get(service_health), no_service))
        .merge(named("/v1/health/connect/", get(connect_health), no_service))
        .merge(named("/v1/health/node/", get(node_checks), no_node))
        .merge(named("/v1/health/checks/", get(service_checks), no_service))
        .merge(named("/v1/health/state/", get(checks_in_state), "Missing check state"))
        .route("/v1/status/leader", get(leader))
        .route("/v1/status/peers", get(peers))
        .route("/v1/agent/self", get(agent::itself))
        .route("/v1/agent/members", get(agent::members))
        .route("/v1/agent/services", get(agent::services))
        .route("/v1/agent/checks", get(agent::checks))
        .merge(named("/v1/agent/service/", get(agent::service), "Missing service ID"))
        .route("/v1/agent/service/register", put(write::register_service))
        .merge(named("/v1/agent/service/deregister/", put(write::deregister_service), "Missing service ID"))
        .merge(named("/v1/agent/service/maintenance/", put(write::maintain_service), "Missing service ID"))
        .route("/v1/agent/maintenance", put(write::maintain_node))
        .route("/v1/agent/check/register", put(write::register_check))
        .merge(named("/v1/agent/check/deregister/", put(write::deregister_check), "Missing check ID"))
        .merge(named("/v1/agent/check/pass/", put(write::pass_check), "Missing check ID"))
        .merge(named("/v1/agent/check/warn/", put(write::warn_check), "Missing check ID"))
        .merge(named("/v1/agent/check/fail/", put(write::fail_check), "Missing check ID"))
        .merge(named("/v1/agent/check/update/", put(write::update_check), "Missing check ID"))
        .route("/v1/agent/health/service/id/{*id}", get(agent::health_by_id))
        .route("/v1/agent/health/service/id/", get(async || Refusal::fault("Bad request: Missing serviceID")))
        .route("/v1/agent/health/service/name/{*name}", get(agent::health_by_name))
        .route("/v1/agent/health/service/name/", get(async || Refusal::fault("Bad request: Missing service Name")))
        .route("/v1/agent/metrics", get(agent::metrics))
        .route("/v1/agent/reload", put(write::reload))
        .route("/v1/kv/{*key}", get(blocking::absent_key).fallback(not_served))
        .route("/v1/kv/", get(async || Refusal::bad("Missing key name")).fallback(not_served))
        .route("/v1/", any(not_served))
        .route("/v1/{*other}", any(not_served))
        .method_not_allowed_fallback(refuse_method)
        .route_layer(middleware::from_fn(refuse_checks))
        .with_state(api)
}

/// A route that goes on with a name, in which slashes may be.
fn named(prefix: &str, handler: MethodRouter<Api>, missing: &'static str) -> Router<Api> {
    let without = async move || Refusal::bad(missing);
    let router = Router::new().route(&format!("{prefix}{{*name}}"), handler);
    router.route(prefix, get(without).put(without))
}

/// Refuses requests of health checks, be they ours or Consul's.
///
/// A client that registers a check, or a server that redirects one, could else use the rights of this host, and read what
/// they may not in the output of the check. `/live`, `/ready` and `/metrics` are no part of the API: to check them is usual.
async fn refuse_checks(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_consuls = headers.get(header::USER_AGENT).is_some_and(|agent| agent.as_bytes() == USER_AGENT.as_bytes());
    if is_consuls || headers.contains_key(CHECK_HEADER) {
        let text = "Permission denied: the API does not answer health checks; check /ready instead";
        return Refusal(StatusCode::FORBIDDEN, text.to_owned()).into_response();
    }
    next.run(request).await
}

/// Not 404, which client libraries take for "there is none".
async fn not_served(uri: Uri) -> Refusal {
    let text =
        format!("{} is not served: watershed speaks a part of Consul's API; see the README for which", uri.path());
    Refusal(StatusCode::NOT_IMPLEMENTED, text)
}

async fn refuse_method(method: Method) -> Refusal {
    Refusal(StatusCode::METHOD_NOT_ALLOWED, format!("method {method} not allowed"))
}

async fn datacenters(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.show(&asked, |view| asked.render(&view.datacenters())).await
}

async fn nodes(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    answer(&api, &asked, |view| Ok(Said::new(Basis::All, asked.render(&view.nodes())))).await
}

async fn services(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    answer(&api, &asked, |view| Ok(Said::new(Basis::All, asked.render(&view.services())))).await
}

async fn service_nodes(State(api): State<Api>, Path(name): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    instances(&api, &asked, Kind::Service, &name).await
}

async fn connect_nodes(State(api): State<Api>, Path(name): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    instances(&api, &asked, Kind::Connect, &name).await
}

async fn instances(api: &Api, asked: &Asked, kind: Kind, name: &str) -> Result<Response, Refusal> {
    api.learn(asked, kind, name).await?;
    answer(api, asked, |view| {
        let key = view.service_key(kind, name);
        Ok(Said::new(Basis::Service(key.clone()), asked.render(&view.instances(&key))))
    })
    .await
}

async fn node_services(State(api): State<Api>, Path(name): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    answer(&api, &asked, |view| Ok(Said::new(Basis::All, asked.render(&view.node_services(&name))))).await
}

async fn node_service_list(
    State(api): State<Api>,
    Path(name): Path<String>,
    asked: Asked,
) -> Result<Response, Refusal> {
    answer(&api, &asked, |view| Ok(Said::new(Basis::All, asked.render(&view.node_service_list(&name))))).await
}

async fn service_health(State(api): State<Api>, Path(name): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    health(&api, &asked, Kind::Service, &name).await
}

async fn connect_health(State(api): State<Api>, Path(name): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    health(&api, &asked, Kind::Connect, &name).await
}

async fn health(api: &Api, asked: &Asked, kind: Kind, name: &str) -> Result<Response, Refusal> {
    let passing = asked.is_passing()?;
    api.learn(asked, kind, name).await?;
    answer(api, asked, |view| {
        let key = view.service_key(kind, name);
        Ok(Said::new(Basis::Service(key.clone()), asked.render(&view.health(&key, passing))))
    })
    .await
}

async fn node_checks(State(api): State<Api>, Path(name): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    api.await_first_round().await?;
    answer(&api, &asked, |view| Ok(Said::new(Basis::All, asked.render(&view.node_checks(&name))))).await
}

async fn service_checks(State(api): State<Api>, Path(name): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    api.learn(&asked, Kind::Service, &name).await?;
    answer(&api, &asked, |view| {
        let key = view.service_key(Kind::Service, &name);
        Ok(Said::new(Basis::Service(key.clone()), asked.render(&view.service_checks(&key))))
    })
    .await
}

async fn checks_in_state(State(api): State<Api>, Path(state): Path<String>, asked: Asked) -> Result<Response, Refusal> {
    api.await_first_round().await?;
    answer(&api, &asked, |view| Ok(Said::new(Basis::All, asked.render(&view.checks_in_state(&state))))).await
}

/// Nobody is elected here: we are our own servers.
async fn leader(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.show(&asked, |view| asked.render(&view.server())).await
}

async fn peers(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    api.show(&asked, |view| asked.render(&[view.server()])).await
}

impl Api {
    fn served(&self) -> Result<Arc<Served>, Refusal> {
        self.feed.borrow().clone().ok_or_else(Refusal::no_catalog)
    }

    /// Has the catalog ask whoever knows more of a service.
    async fn learn(&self, asked: &Asked, kind: Kind, name: &str) -> Result<(), Refusal> {
        let served = self.served()?;
        let key = {
            let snapshot = served.live.load();
            let datacenter = asked.datacenter.as_deref().unwrap_or_else(|| snapshot.settings().datacenter());
            ServiceKey::new(kind, datacenter, name)
        };
        served.live.learn(&key).await;
        Ok(())
    }

    /// Returns when the first results of all checks are known, or need not be waited for: what lists the health of many
    /// services denies none that is only not checked yet.
    async fn await_first_round(&self) -> Result<(), Refusal> {
        self.served()?.live.await_first_round().await;
        Ok(())
    }

    /// Answers what nobody waits for.
    async fn show(&self, asked: &Asked, view: impl FnOnce(&View<'_>) -> Vec<u8>) -> Result<Response, Refusal> {
        self.look(asked, |catalog| json(view(catalog))).await
    }

    /// The same with any response.
    async fn look(&self, asked: &Asked, view: impl FnOnce(&View<'_>) -> Response) -> Result<Response, Refusal> {
        let served = self.served()?;
        let _turn = served.turn.lock().await;
        let snapshot = served.live.load();
        Ok(view(&View::new(&served, &snapshot, asked)?))
    }
}

impl Refusal {
    fn bad(text: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, text.into())
    }

    /// Where Consul answers with 500, though the client is at fault.
    fn fault(text: impl Into<String>) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, text.into())
    }

    fn no_catalog() -> Self {
        let text = "there is no catalog here; set catalog.files.directory or catalog.api.enable_registration";
        Self(StatusCode::SERVICE_UNAVAILABLE, text.into())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(status, text) = self;
        (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
    }
}

fn json(body: Vec<u8>) -> Response {
    (JSON, body).into_response()
}

const JSON: [(header::HeaderName, &str); 1] = [(header::CONTENT_TYPE, "application/json")];
