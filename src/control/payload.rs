//! The body of a request that a route has asked for, read within limits.

use std::time::Duration;

use axum::{
    body::Body,
    extract::FromRequest,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::budget::{Account, Charge};

/// The body of a request, which a route asks for last, once the request is allowed. It is charged to the connection.
pub(super) struct Payload {
    pub bytes: Bytes,
    _charge: Charge,
}

/// Whose body it is and how long it may take.
#[derive(Clone)]
pub(super) struct Sender {
    pub account: Account,
    pub patience: Duration,
}

impl<S: Sync> FromRequest<S> for Payload {
    type Rejection = Response;

    async fn from_request(request: Request<Body>, _: &S) -> Result<Self, Response> {
        let refuse = |status: StatusCode, text: &'static str| (status, text).into_response();
        let too_long = || refuse(StatusCode::PAYLOAD_TOO_LARGE, "the request is too long\n");
        let over_limit = |_| refuse(StatusCode::SERVICE_UNAVAILABLE, "too much waits for this client\n");
        let (head, mut body) = request.into_parts();
        let Some(Sender { account, patience }) = head.extensions.get::<Sender>() else {
            return Err(refuse(StatusCode::INTERNAL_SERVER_ERROR, "the request has no sender\n"));
        };
        if body.size_hint().lower() > MOST_BODY_BYTES as u64 {
            return Err(too_long());
        }
        let mut charge = account.charge(0).map_err(over_limit)?;
        let mut bytes = BytesMut::new();
        let reading = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| refuse(StatusCode::BAD_REQUEST, "the request was broken off\n"))?;
                let Some(data) = frame.data_ref() else { continue };
                if bytes.len() + data.len() > MOST_BODY_BYTES {
                    return Err(too_long());
                }
                bytes.extend_from_slice(data);
                charge.resize(bytes.capacity()).map_err(over_limit)?;
            }
            Ok(())
        };
        let late = |_| refuse(StatusCode::REQUEST_TIMEOUT, "the request was not sent in time\n");
        tokio::time::timeout(*patience, reading).await.map_err(late)??;
        Ok(Self { bytes: bytes.freeze(), _charge: charge })
    }
}

/// As long as what Consul takes.
const MOST_BODY_BYTES: usize = 512 << 10;
