//! The life of one request: its head is checked, its body is read if it is wanted, and its response is charged.
//!
//! Nothing is kept of a body until a route has found the request allowed and asks for it. What is not asked for is read and
//! discarded, up to a limit: of a connection that is closed while the client still sends, the client may never see the
//! response.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::ConnectInfo,
    http::{Method, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    service::Service,
};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;

use super::{OwnHosts, payload::Sender};
use crate::budget::{Account, Charge, Exceeded, Share, Shared};

/// What a request meets.
#[derive(Clone)]
pub(super) struct Desk {
    pub routes: TowerToHyperService<Router>,
    pub hosts: OwnHosts,
    pub peer: SocketAddr,
    pub account: Account,
    /// How long a client may take to send a body.
    pub patience: Duration,
}

/// The body of a response, with its charge.
struct Counted {
    bytes: Bytes,
    _charge: Charge,
}

/// A body shared by its request and by the task that discards the unread rest.
#[derive(Clone)]
struct Lent(Arc<Mutex<Incoming>>);

/// Answers a request. Nothing if more would wait for the client than the limits allow: the connection has to be closed.
pub(super) async fn respond(desk: &Desk, request: Request<Incoming>) -> Option<Response<Full<Bytes>>> {
    let (mut head, body) = request.into_parts();
    let is_head = head.method == Method::HEAD;
    let is_complete = body.size_hint().exact() == Some(0);
    // A client that asks first whether it shall send the body does not send it when it is refused.
    let expects = head.headers.contains_key(header::EXPECT);
    let lent = Lent(Arc::new(Mutex::new(body)));
    let mut has_come = true;
    let response = if let Some(refusal) = refuse_foreign_host(&desk.hosts, &head) {
        refusal
    } else {
        // No route wants a body by any other method. It comes before the response, which may take long.
        if !is_complete && !matches!(head.method, Method::PUT | Method::POST) {
            has_come = lent.discard(desk.patience).await;
        }
        head.extensions.insert(ConnectInfo(desk.peer));
        head.extensions.insert(Sender { account: desk.account.clone(), patience: desk.patience });
        let request = Request::from_parts(head, Body::new(lent.clone()));
        desk.routes.call(request).await.unwrap_or_else(|never| match never {})
    };
    if !is_complete && !expects && has_come {
        has_come = lent.discard(desk.patience).await;
    }
    let mut response = charge(&desk.account, response, is_head).await?;
    if !has_come {
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    Some(response)
}

/// Refuses a request under a name that is not ours; clients that send no host are no browsers.
fn refuse_foreign_host(hosts: &OwnHosts, head: &axum::http::request::Parts) -> Option<Response> {
    let host = head.headers.get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let host = head.uri.host().or(host)?;
    let advice = "this host name is not ours; use an address, localhost or the name of the host, or add the name to \
                  control.hosts\n";
    (!hosts.include(host)).then(|| (StatusCode::MISDIRECTED_REQUEST, advice).into_response())
}

/// Charges a response to the connection for as long as its client has not taken it.
async fn charge(account: &Account, response: Response, is_head: bool) -> Option<Response<Full<Bytes>>> {
    let (mut head, body) = response.into_parts();
    let bytes = match head.extensions.remove::<Arc<Shared>>() {
        Some(shared) => {
            head.headers.insert(header::CONTENT_LENGTH, shared.data().len().into());
            if is_head {
                Bytes::new()
            } else {
                Bytes::from_owner::<Share>(with_patience(account, || shared.try_hold(account)).await?)
            }
        }
        None => {
            // It is there already; no route streams.
            let bytes = body.collect().await.ok()?.to_bytes();
            let charge = with_patience(account, || account.try_charge_response(bytes.len())).await?;
            Bytes::from_owner(Counted { bytes, _charge: charge })
        }
    };
    Some(Response::from_parts(head, Full::new(bytes)))
}

/// Tries to charge a response until other data of the client is gone. If that does not help the connection is revoked.
async fn with_patience<T>(account: &Account, charge: impl Fn() -> Result<T, Exceeded>) -> Option<T> {
    for _ in 0..MOST_TRIES {
        match charge() {
            Ok(charged) => return Some(charged),
            Err(_) if account.is_revoked() => return None,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    account.revoke();
    None
}

impl Lent {
    /// Reads the body to its end and keeps nothing of it. Returns false if it is too long or comes too slowly.
    async fn discard(&self, patience: Duration) -> bool {
        let mut length = 0;
        let mut rest = self.clone();
        let discarding = async {
            while length <= MOST_DISCARDED_BYTES {
                match rest.frame().await {
                    Some(Ok(frame)) => length += frame.data_ref().map_or(0, Bytes::len),
                    Some(Err(_)) => return false,
                    None => return true,
                }
            }
            false
        };
        tokio::time::timeout(patience, discarding).await.unwrap_or(false)
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}

/// How much of a body that is not wanted is read. It may be as long as one that is wanted, with something to spare.
const MOST_DISCARDED_BYTES: usize = 8 << 20;
/// How often, and how long after the last time, it is tried to charge a response.
const MOST_TRIES: usize = 50;
const PAUSE: Duration = Duration::from_millis(10);
