//! The HTTP probe: 2xx is passing, 429 warning, everything else critical.

use std::convert::Infallible;

use http::{HeaderName, Method, header};
use tokio::io::AsyncWriteExt;
use url::Url;

use super::{
    connect::{Dial, Error},
    definition::{CHECK_HEADER, Http, Redirects, Target},
    held::Held,
    response::Response,
};
use crate::catalog::health::Status;

/// Sends the request, and follows redirects within the server.
///
/// A redirect to another scheme, host or port is not followed, unlike in Consul: the server that is checked would choose what
/// this host asks, such as pages that only loopback may see, and read the answer in the output of the check. The connection
/// goes to the same address each time (see [`Dial`]), whatever the name of the host means by then.
pub(super) async fn probe(http: &Http, limit: usize, dial: &Dial<'_>) -> Result<(Status, String), Error> {
    let mut request = http.clone();
    for _ in 0..=MAX_REDIRECTS {
        match send(&request, limit, dial).await? {
            Answer::Final(status, line, body) => {
                let judged = match status {
                    200..300 => Status::Passing,
                    429 => Status::Warning,
                    _ => Status::Critical,
                };
                return Ok((judged, format!("HTTP {} {}: {line} Output: {body}", http.method, http.url)));
            }
            Answer::Elsewhere(_, url) if url.origin() != request.url.origin() => {
                let text = "it redirects to another server, which is not followed";
                return Err(Error::Response(format!("HTTP {} {}: {text}", http.method, http.url)));
            }
            Answer::Elsewhere(status, url) => redirect(&mut request, status, url),
        }
    }
    Err(Error::Response(format!("HTTP {} {}: more than {MAX_REDIRECTS} redirects", http.method, http.url)))
}

enum Answer {
    /// The status, as a number and as written, and the beginning of the body.
    Final(u16, String, String),
    Elsewhere(u16, Url),
}

async fn send(http: &Http, limit: usize, dial: &Dial<'_>) -> Result<Answer, Error> {
    let invalid = || Error::Response(format!("{} is no URL to connect to", http.url));
    // A host of `url` keeps the brackets of an IPv6 address.
    let host = http.url.host_str().ok_or_else(invalid)?.trim_matches(['[', ']']).to_owned();
    let target = Target { host, port: http.url.port_or_known_default().ok_or_else(invalid)? };
    let tls = (http.url.scheme() == "https").then_some(&http.tls);
    let stream = dial.connect_with(&target, tls, b"http/1.1").await?;

    let held = Held::new(dial.account().ok_or(Error::NoRoom)?)?;
    let revoked = held.revoked();
    let (reader, mut writer) = tokio::io::split(stream);
    let request = write(http);
    // A server may answer before it has read all, or without reading any.
    let sending = async {
        let _ = writer.write_all(&request).await;
        let _ = writer.flush().await;
        std::future::pending::<Infallible>().await
    };
    let receiving = async {
        let response = Response::receive(reader, &http.method, held).await?;
        if http.redirects == Redirects::Follow
            && let Some(url) = location(&response, &http.url)
        {
            return Ok(Answer::Elsewhere(response.status, url));
        }
        let (status, line) = (response.status, response.status_line.clone());
        let body = response.body(limit, MAX_BODY_BYTES).await;
        Ok(Answer::Final(status, line, String::from_utf8_lossy(&body).into_owned()))
    };
    tokio::select! {
        answer = receiving => answer,
        () = revoked => Err(Error::NoRoom),
        never = sending => match never {},
    }
}

/// The request as it is sent.
fn write(http: &Http) -> Vec<u8> {
    let path = &http.url[url::Position::BeforePath..url::Position::AfterQuery];
    let authority = &http.url[url::Position::BeforeHost..url::Position::AfterPort];
    let mut request = format!("{} {path} HTTP/1.1\r\n", http.method).into_bytes();
    let mut add = |name: &HeaderName, value: &[u8]| {
        request.extend_from_slice(name.as_str().as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value);
        request.extend_from_slice(b"\r\n");
    };
    if !http.headers.contains_key(header::HOST) {
        add(&header::HOST, authority.as_bytes());
    }
    // These are ours, whatever the definition says: they belong to the connection and to the body, or tell what sends them.
    let ours = [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, CHECK_HEADER];
    for (name, value) in http.headers.iter().filter(|(name, _)| !ours.contains(name)) {
        add(name, value.as_bytes());
    }
    add(&CHECK_HEADER, b"1");
    add(&header::CONNECTION, b"close");
    let takes_body = matches!(http.method, Method::POST | Method::PUT | Method::PATCH);
    if takes_body || !http.body.is_empty() {
        add(&header::CONTENT_LENGTH, http.body.len().to_string().as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(http.body.as_bytes());
    request
}

fn location<R>(response: &Response<R>, base: &Url) -> Option<Url> {
    let location = response.location.as_deref().filter(|_| matches!(response.status, 301 | 302 | 303 | 307 | 308))?;
    base.join(location).ok().filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// As every HTTP client does: the body and its method survive 307 and 308 only.
fn redirect(request: &mut Http, status: u16, url: Url) {
    let keeps_method = matches!(status, 307 | 308);
    if !keeps_method {
        request.body.clear();
        request.headers.remove(header::CONTENT_TYPE);
        if request.method != Method::HEAD {
            request.method = Method::GET;
        }
    }
    request.url = url;
}

/// Within one server there is no need for more. Consul follows 10.
const MAX_REDIRECTS: usize = 3;
/// What is read of a body at most, so that a server is not cut off while it writes a usual one.
const MAX_BODY_BYTES: u64 = 1 << 20;
