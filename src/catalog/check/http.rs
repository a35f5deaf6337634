//! The HTTP probe: 2xx is passing, 429 warning, everything else critical.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use url::Url;

use super::{
    connect::{Dial, Error},
    definition::{Http, Redirects, Target},
};
use crate::catalog::health::Status;

/// Sends the request, and follows where it is sent on to.
pub(super) async fn probe(http: &Http, limit: usize, dial: &Dial<'_>) -> Result<(Status, String), Error> {
    let mut request = http.clone();
    for _ in 0..=MAX_REDIRECTS {
        match send(&request, limit, dial).await? {
            Answer::Final(status, body) => {
                let judged = match status {
                    _ if status.is_success() => Status::Passing,
                    StatusCode::TOO_MANY_REQUESTS => Status::Warning,
                    _ => Status::Critical,
                };
                return Ok((judged, format!("HTTP {} {}: {status} Output: {body}", http.method, http.url)));
            }
            Answer::Elsewhere(status, url) => redirect(&mut request, status, url),
        }
    }
    Err(Error::Response(format!("HTTP {} {}: more than {MAX_REDIRECTS} redirects", http.method, http.url)))
}

enum Answer {
    Final(StatusCode, String),
    Elsewhere(StatusCode, Url),
}

async fn send(http: &Http, limit: usize, dial: &Dial<'_>) -> Result<Answer, Error> {
    let invalid = || Error::Response(format!("{} is no URL to connect to", http.url));
    // A host of `url` keeps the brackets of an IPv6 address.
    let host = http.url.host_str().ok_or_else(invalid)?.trim_matches(['[', ']']).to_owned();
    let target = Target { host, port: http.url.port_or_known_default().ok_or_else(invalid)? };
    let tls = (http.url.scheme() == "https").then_some(&http.tls);
    let stream = dial.connect_with(&target, tls, b"http/1.1").await?;

    let mut request = Request::new(Full::new(Bytes::from(http.body.clone())));
    *request.method_mut() = http.method.clone();
    let path = &http.url[url::Position::BeforePath..url::Position::AfterQuery];
    *request.uri_mut() = path.parse().map_err(|_| invalid())?;
    *request.headers_mut() = http.headers.clone();
    let authority = &http.url[url::Position::BeforeHost..url::Position::AfterPort];
    let authority = HeaderValue::from_str(authority).map_err(|_| invalid())?;
    request.headers_mut().entry(header::HOST).or_insert(authority);
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));

    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        if http.redirects == Redirects::Follow
            && let Some(url) = location(&response, &http.url)
        {
            return Ok(Answer::Elsewhere(status, url));
        }
        Ok(Answer::Final(status, read(response.into_body(), limit).await))
    };
    tokio::select! {
        answer = exchange => answer,
        // An error of the connection is the exchange's error, too.
        never = async { let _ = connection.await; std::future::pending().await } => never,
    }
}

/// The beginning of a body. One that breaks off changes nothing: the status has arrived.
async fn read(mut body: Incoming, limit: usize) -> String {
    let (mut kept, mut total) = (Vec::new(), 0);
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        kept.extend_from_slice(&data[..data.len().min(limit - kept.len())]);
        total += data.len();
        if total > MAX_BODY_BYTES {
            break;
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn location(response: &Response<Incoming>, base: &Url) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(header::LOCATION)?.to_str().ok()?;
    base.join(location).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// As every HTTP client does: the body and its method survive 307 and 308 only, secrets only the same host.
fn redirect(request: &mut Http, status: StatusCode, url: Url) {
    let keeps_method = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    if !keeps_method {
        request.body.clear();
        request.headers.remove(header::CONTENT_TYPE);
        if request.method != Method::HEAD {
            request.method = Method::GET;
        }
    }
    if url.origin() != request.url.origin() {
        remove_secrets(&mut request.headers);
    }
    request.url = url;
}

fn remove_secrets(headers: &mut HeaderMap) {
    // A host given by hand was meant for the first server, too.
    for name in [header::AUTHORIZATION, header::COOKIE, header::HOST] {
        headers.remove(name);
    }
}

/// As in Go.
const MAX_REDIRECTS: usize = 10;
/// What is read of a body at most, so that a server is not cut off while it writes a usual one.
const MAX_BODY_BYTES: usize = 1 << 20;
