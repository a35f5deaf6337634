//! The probes over HTTP/2: PING frames, and gRPC's health service.
//!
//! The service is `grpc.health.v1.Health/Check`. Its request has one field, the name of a service, and its response
//! one, a number that is 1 if the service is serving; so the messages are put together and taken apart by hand.

use bytes::Bytes;
use h2::{Ping, RecvStream, client};
use http::{HeaderMap, Request, Version};

use super::{
    connect::{Dial, Error, Stream},
    definition::{CHECK_HEADER, Target, Tls, USER_AGENT},
    held::{Held, Metered},
};

/// Sends a PING frame and waits for its echo.
pub(super) async fn ping(target: &Target, tls: Option<&Tls>, dial: &Dial<'_>) -> Result<(), Error> {
    let (stream, _) = connect(target, tls, dial).await?;
    // The connection would close without its sender.
    let (_sender, mut connection) = bounded().handshake::<_, Bytes>(stream).await?;
    let mut ping_pong = connection.ping_pong().expect("nobody has taken it yet");
    tokio::select! {
        echo = ping_pong.ping(Ping::opaque()) => echo.map(|_| ()).map_err(Error::from),
        closed = connection => Err(early_end(closed)),
    }
}

/// Asks the health service about a service.
pub(super) async fn grpc(target: &Target, tls: Option<&Tls>, service: &str, dial: &Dial<'_>) -> Result<(), Error> {
    let (stream, revoked) = connect(target, tls, dial).await?;
    let (sender, connection) = bounded().handshake(stream).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let request = Request::post(format!("{scheme}://{target}/grpc.health.v1.Health/Check"))
        .version(Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .header(CHECK_HEADER, "1")
        .body(())
        .map_err(|error| Error::Response(error.to_string()))?;
    let exchange = async {
        let mut sender = sender.ready().await?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(message(service), true)?;
        let response = response.await?;
        if response.status() != http::StatusCode::OK {
            return Err(Error::Response(format!("HTTP status {}", response.status())));
        }
        judge(response.headers().clone(), response.into_body()).await
    };
    tokio::select! {
        biased;
        result = exchange => result,
        () = revoked => Err(Error::NoRoom),
        closed = connection => Err(early_end(closed)),
    }
}

/// A connection whose data counts, and what says that it has to be dropped.
async fn connect(
    target: &Target,
    tls: Option<&Tls>,
    dial: &Dial<'_>,
) -> Result<(Metered<Box<dyn Stream>>, impl Future<Output = ()> + use<>), Error> {
    let stream = dial.connect_with(target, tls, b"h2").await?;
    let held = Held::new(dial.account().ok_or(Error::NoRoom)?)?;
    let revoked = held.revoked();
    Ok((Metered::new(stream, held, MAX_KEPT_BYTES), revoked))
}

/// A client that has little kept for it: one short response, and no streams that the server begins.
fn bounded() -> client::Builder {
    let mut builder = client::Builder::new();
    builder.enable_push(false).max_header_list_size(MAX_HEADER_BYTES).initial_window_size(MAX_MESSAGE_BYTES as u32 + 1);
    builder
}

async fn judge(headers: HeaderMap, mut body: RecvStream) -> Result<(), Error> {
    let mut message = Vec::new();
    while let Some(data) = body.data().await {
        message.extend_from_slice(&data?);
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(Error::Response("a response too long for the health service's".to_owned()));
        }
    }
    // An error may come without a body, and then the headers are the trailers.
    let trailers = body.trailers().await?.unwrap_or(headers);
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match text("grpc-status") {
        "0" => match serving_status(&message) {
            Some(SERVING) => Ok(()),
            Some(0) => Err(Error::Response("gRPC serving status: UNKNOWN".to_owned())),
            Some(2) => Err(Error::Response("gRPC serving status: NOT_SERVING".to_owned())),
            Some(3) => Err(Error::Response("gRPC serving status: SERVICE_UNKNOWN".to_owned())),
            _ => Err(Error::Response("not a response of the health service".to_owned())),
        },
        "" => Err(Error::Response("no gRPC status".to_owned())),
        "5" => Err(Error::Response("gRPC does not know the service".to_owned())),
        "12" => Err(Error::Response("gRPC server without health service".to_owned())),
        code => Err(Error::Response(format!("gRPC status {code}: {}", text("grpc-message")))),
    }
}

/// A length-prefixed message, not compressed, of field 1, a string.
fn message(service: &str) -> Bytes {
    let mut field = Vec::new();
    if !service.is_empty() {
        field.push(0x0a);
        push_varint(&mut field, service.len() as u64);
        field.extend_from_slice(service.as_bytes());
    }
    let mut message = vec![0];
    message.extend_from_slice(&(field.len() as u32).to_be_bytes());
    message.extend_from_slice(&field);
    message.into()
}

/// Field 1, a number, which is 0 if it is missing. Other fields are skipped.
fn serving_status(message: &[u8]) -> Option<u64> {
    let (prefix, mut rest) = message.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    if prefix[0] != 0 || rest.len() != length {
        return None;
    }
    let mut status = 0;
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        match tag & 7 {
            0 => {
                let value = take_varint(&mut rest)?;
                if tag >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = take_varint(&mut rest)?;
                rest = rest.get(usize::try_from(length).ok()?..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn early_end(closed: Result<(), h2::Error>) -> Error {
    match closed {
        Ok(()) => Error::Response("the server has closed the connection".to_owned()),
        Err(error) => error.into(),
    }
}

const SERVING: u64 = 1;
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// What h2 keeps of what has come: the window of a connection (RFC 9113, section 6.9.2), a header and a frame.
const MAX_KEPT_BYTES: usize = 96 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_protobuf_makes_of_them() {
        assert_eq!(&message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&message("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = message(&"x".repeat(300));
        assert_eq!(&long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 2]);
    }

    #[test]
    fn responses_are_taken_apart() {
        for (body, expected) in [
            (vec![8, 1], Some(1)),
            (vec![8, 2], Some(2)),
            (vec![], Some(0)),
            (vec![0x12, 1, b'x', 8, 1], Some(1)), // another field first
            (vec![8, 0xff], None),                // a number that does not end
            (vec![0x12, 9], None),                // a string that does not
            (vec![0x0f], None),
        ] {
            let mut message = vec![0, 0, 0, 0, body.len() as u8];
            message.extend(&body);
            assert_eq!(serving_status(&message), expected, "{body:?}");
        }
        for message in [&[][..], &[0, 0, 0], &[1, 0, 0, 0, 0], &[0, 0, 0, 0, 9, 8, 1]] {
            assert_eq!(serving_status(message), None, "{message:?}");
        }
    }
}
