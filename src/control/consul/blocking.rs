//! Blocking queries: whoever knows the present state waits for another.

use std::{future::pending, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderName, HeaderValue, StatusCode},
    response::{IntoResponse, Response},
};
use rand::RngExt;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Api, JSON, Refusal, Served,
    asked::Asked,
    rendered::{Basis, Rendered},
    views::View,
};
use crate::{
    budget::Shared,
    catalog::{Slot, Snapshot},
};

/// What is said, and what that was made of.
pub(super) struct Said {
    basis: Basis,
    body: Vec<u8>,
}

/// What the next look at the catalog is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// To see whether there is anything new.
    News,
    /// To say what there is, new or not.
    Last,
}

impl Said {
    pub fn new(basis: Basis, body: Vec<u8>) -> Self {
        Self { basis, body }
    }
}

/// The key of a store that has none, as Consul says it. A client that knows that waits for it in vain, and no longer than it
/// asks for.
pub(super) async fn absent_key(State(api): State<Api>, asked: Asked) -> Result<Response, Refusal> {
    if asked.index == Some(EMPTY_STORE_INDEX) {
        let full = || Refusal(StatusCode::TOO_MANY_REQUESTS, "too many clients wait for a change".to_owned());
        let _place = api.connections.begin_waiting().ok_or_else(full)?;
        let _ = tokio::time::timeout(asked.wait, api.closing.cancelled()).await;
    }
    let mut response = StatusCode::NOT_FOUND.into_response();
    response.headers_mut().extend(index_fields(&asked, EMPTY_STORE_INDEX));
    Ok(response)
}

/// Answers, at once or when the answer is another than the one that is known, or after the time to wait.
///
/// A request that knows an index which is not ours has it from elsewhere, and is answered at once.
pub(super) async fn answer(
    api: &Api,
    asked: &Asked,
    view: impl Fn(&View<'_>) -> Result<Said, Refusal>,
) -> Result<Response, Refusal> {
    // As Consul does it, so that not all who came together come again together.
    let jitter = asked.wait.mul_f64(rand::rng().random_range(0.0..JITTER));
    let deadline = Instant::now() + asked.wait + jitter;
    let mut look = if asked.index.is_some() || asked.hash.is_some() { Look::News } else { Look::Last };
    let mut feed = api.feed.clone();
    let mut place = None;
    loop {
        let served = feed.borrow_and_update().clone().ok_or_else(Refusal::no_catalog)?;
        // Before the snapshot is looked at, so that no change is missed.
        let mut changes = served.live.changes();
        // Who looks later than this sees for us, too.
        let version = served.live.load().version();
        let found = {
            // Looking takes long, and the threads are for others, too: one looks at a time.
            let _turn = served.turn.lock().await;
            look_at(&served, asked, look, version, &view)?
        };
        let basis = match found {
            Found::Answer(response) => return Ok(response),
            Found::NoNews(basis) => basis,
            Found::Older => continue,
        };
        if place.is_none() {
            let full = || Refusal(StatusCode::TOO_MANY_REQUESTS, "Too many requests wait for a change".to_owned());
            place = Some(api.connections.begin_waiting().ok_or_else(full)?);
        }
        let change = async {
            while changes.changed().await.is_ok() {
                match &basis {
                    Basis::Service(key) => {
                        let index = served.index(served.live.last_change(Slot::of_service(key).index()));
                        if asked.index.is_some_and(|known| known < index) {
                            return;
                        }
                    }
                    // What is made of everything changes often, and takes long to make.
                    Basis::All | Basis::Hash(_) => return sleep(BREATH).await,
                }
            }
            pending().await
        };
        tokio::select! {
            () = change => {}
            Ok(()) = feed.changed() => {}
            () = sleep_until(deadline) => look = Look::Last,
            () = api.closing.cancelled() => look = Look::Last,
        }
    }
}

enum Found {
    Answer(Response),
    /// What there is is known to whoever asks.
    NoNews(Basis),
    /// Somebody has looked at a later snapshot meanwhile.
    Older,
}

fn look_at(
    served: &Served,
    asked: &Asked,
    look: Look,
    wanted: u32,
    view: impl Fn(&View<'_>) -> Result<Said, Refusal>,
) -> Result<Found, Refusal> {
    // Another who asks the same may have looked already.
    let since = served.memory.known(&asked.identity, wanted).filter(|_| look == Look::News);
    if since.is_some_and(|since| Some(served.index(since)) == asked.index) {
        return Ok(Found::NoNews(Basis::All));
    }
    let snapshot = served.live.load();
    let version = snapshot.version();
    let Rendered { basis, body } = render(served, asked, &snapshot, view)?;
    let index = match &basis {
        Basis::Service(key) => served.slot_index(Slot::of_service(key), version),
        Basis::All => match served.memory.since(&asked.identity, body.data(), version) {
            Some(since) => served.index(since),
            None => return Ok(Found::Older),
        },
        Basis::Hash(hash) if look == Look::News && asked.hash.as_ref() == Some(hash) => {
            return Ok(Found::NoNews(basis));
        }
        Basis::Hash(hash) => {
            let mut response = send(body);
            response.headers_mut().extend(hash.parse().ok().map(|hash| (CONTENT_HASH, hash)));
            return Ok(Found::Answer(response));
        }
    };
    if look == Look::News && asked.index == Some(index) {
        return Ok(Found::NoNews(basis));
    }
    Ok(Found::Answer(respond(asked, body, index)))
}

/// The body of the response from this snapshot, which another request may have rendered already.
fn render(
    served: &Served,
    asked: &Asked,
    snapshot: &Arc<Snapshot>,
    view: impl Fn(&View<'_>) -> Result<Said, Refusal>,
) -> Result<Rendered, Refusal> {
    if let Some(rendered) = served.bodies.find(&asked.identity, snapshot) {
        return Ok(rendered);
    }
    let Said { basis, body } = view(&View::new(served, snapshot, asked)?)?;
    let rendered = Rendered { basis, body: Shared::new(body) };
    served.bodies.keep(&asked.identity, snapshot, &rendered);
    Ok(rendered)
}

/// A response that shares its body: the sender takes the body from the extensions.
fn send(body: Arc<Shared>) -> Response {
    let mut response = JSON.into_response();
    response.extensions_mut().insert(body);
    response
}

fn respond(asked: &Asked, body: Arc<Shared>, index: u64) -> Response {
    let mut response = send(body);
    response.headers_mut().extend(index_fields(asked, index));
    response
}

fn index_fields(asked: &Asked, index: u64) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let consistency = if asked.get("stale").is_some() { "stale" } else { "leader" };
    let fields = [
        ("x-consul-effective-consistency", consistency.to_owned()),
        ("x-consul-index", index.to_string()),
        ("x-consul-knownleader", "true".to_owned()),
        ("x-consul-lastcontact", "0".to_owned()),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((HeaderName::from_static(name), value.parse().ok()?)))
}

/// The index of a key-value store in which nothing has ever been.
const EMPTY_STORE_INDEX: u64 = 1;
/// The most that is waited longer than asked for, as a part of it.
const JITTER: f64 = 1.0 / 16.0;
/// How long changes are gathered before all of the catalog is looked at again.
const BREATH: Duration = Duration::from_millis(100);
const CONTENT_HASH: HeaderName = HeaderName::from_static("x-consul-contenthash");
