//! A probe from its start to its outcome.

use std::time::Duration;

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout, timeout_at},
};

use super::{
    connect::{Dial, Dialer, Error},
    definition::Probe,
    guard::Reach,
    http, http2, script,
    state::{Outcome, head},
};
use crate::catalog::health::Status;

/// Runs a probe. Its output has the limit's length at most, but for a note if it is cut.
pub(super) async fn run(probe: &Probe, patience: Duration, limit: usize, dialer: &Dialer) -> Outcome {
    if let Probe::Script(command) = probe {
        // It keeps its own time, to save what was said until then.
        let (status, output) = script::run(command, limit, patience).await;
        return Outcome { status, output, reach: Reach::Unknown };
    }
    let deadline = Instant::now() + patience;
    let dial = Dial::new(dialer, deadline);
    let result = timeout_at(deadline, ask(probe, patience, limit, &dial)).await;
    let result = result.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()));
    let reach = dial.reach(result.as_ref().map(|_| ()));
    let (status, output) = match result {
        Ok(found) => found,
        Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::TimedOut => {
            (Status::Critical, format!("{}: no answer within {patience:?}", describe(probe)))
        }
        Err(error) => (Status::Critical, format!("{}: {error}", describe(probe))),
    };
    Outcome { status, output: head(&output, limit).into_owned(), reach }
}

async fn ask(probe: &Probe, patience: Duration, limit: usize, dial: &Dial<'_>) -> Result<(Status, String), Error> {
    let done = match probe {
        Probe::Tcp(target, tls) => {
            dial.connect_with(target, tls.as_ref(), b"").await?;
            format!("TCP connect {target}: Success")
        }
        Probe::Udp(target) => {
            poke(&dial.udp(target).await?, patience.min(UDP_SILENCE)).await?;
            format!("UDP connect {target}: Success")
        }
        Probe::Grpc(target, tls, service) => {
            http2::grpc(target, tls.as_ref(), service, dial).await?;
            format!("gRPC check {}: success", describe(probe))
        }
        Probe::H2Ping(target, tls) => {
            http2::ping(target, tls.as_ref(), dial).await?;
            "HTTP2 ping was successful".to_owned()
        }
        Probe::Http(request) => return http::probe(request, limit, dial).await,
        Probe::Script(_) => unreachable!("commands are run by `run`"),
    };
    Ok((Status::Passing, done))
}

/// Most servers do not answer an empty datagram. But a host without the server returns an error.
async fn poke(socket: &UdpSocket, patience: Duration) -> Result<(), Error> {
    socket.send(&[]).await?;
    if let Ok(received) = timeout(patience, socket.recv(&mut [0; 1])).await {
        received?;
    }
    Ok(())
}

fn describe(probe: &Probe) -> String {
    match probe {
        Probe::Tcp(target, _) => format!("TCP connect {target}"),
        Probe::Udp(target) => format!("UDP {target}"),
        Probe::Http(request) => format!("HTTP {} {}", request.method, request.url),
        Probe::Grpc(target, _, service) if service.is_empty() => format!("gRPC {target}"),
        Probe::Grpc(target, _, service) => format!("gRPC {target}/{service}"),
        Probe::H2Ping(target, _) => format!("HTTP/2 ping {target}"),
        Probe::Script(command) => command.join(" "),
    }
}

/// An error comes within a round trip; silence after that means no more if it lasts longer.
const UDP_SILENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
