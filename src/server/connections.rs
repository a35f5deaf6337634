//! The TCP connections of clients: how many of them a network may open in a second, and which [`Places`] there are for them.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    Config, Face,
    limit::{self, Allowance, Limiter},
};
use crate::{
    budget::{Budget, ClientIsFull, Most, NoPlace, Place, Places},
    clock::Moment,
    metrics::Refusal,
    sys::{self, Use},
};

/// The connections that are open.
pub struct Connections {
    places: Arc<Places>,
    /// As many as leave descriptors for everything else.
    most: usize,
    rate: Limiter,
}

impl Connections {
    /// None yet. What waits for them is charged to this budget.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self { places: Arc::new(Places::new(budget)), most: sys::descriptors_for(Use::Tcp), rate: Limiter::new() }
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.places.count()
    }

    /// See [`Places::has_emptied`].
    pub fn has_emptied(&self) -> bool {
        self.places.has_emptied()
    }

    /// Takes a place for a connection of this peer and tells whether another connection was displaced for it. An error says
    /// why the connection has to be closed.
    pub(super) async fn enter(&self, peer: IpAddr, config: &Config) -> Result<(Place, bool), Refusal> {
        let rate = limit::Config { responses_per_second: config.tcp_accept_rate, slip: 0, ..config.rate_limit.clone() };
        if self.rate.take(peer, &rate, Moment::now()) != Allowance::Reply {
            return Err(Refusal::Rate);
        }
        let most = Most {
            in_all: config.tcp_connections.min(self.most),
            of_client: config.tcp_connections_per_client,
            then: ClientIsFull::Refuse,
        };
        self.places.enter(peer, most).await.map_err(|no_place| match no_place {
            NoPlace::OfClient => Refusal::PerClient,
            NoPlace::InAll => Refusal::Displaced,
        })
    }

    /// Closes the connection that [`enter`](Self::enter) would displace, because descriptors have run out.
    pub(super) fn displace(&self) {
        self.places.displace();
    }
}

impl Default for Connections {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

/// Lets a client send or read something within this time, or within a moment once the daemon ends: no client delays that.
pub(super) async fn within<T>(
    patience: Duration,
    shutdown: &CancellationToken,
    work: impl Future<Output = T>,
) -> Option<T> {
    let ends = async {
        shutdown.cancelled().await;
        sleep(LINGERING).await;
    };
    tokio::select! {
        biased;
        done = work => Some(done),
        () = sleep(patience) => None,
        () = ends => None,
    }
}

/// The same within the time for one message. A client that needs longer is counted as slow, unless the daemon ends.
pub(super) async fn in_time<T>(
    face: &Face,
    shutdown: &CancellationToken,
    work: impl Future<Output = T>,
) -> io::Result<T> {
    let done = within(face.config().tcp_message_timeout, shutdown, work).await;
    if done.is_none() && !shutdown.is_cancelled() {
        face.cells().refuse(Refusal::Slow);
    }
    done.ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// No query is open for so long.
pub(super) const MOST_WAIT: Duration = Duration::from_secs(5);
/// How long a client must have been silent, or must have read nothing, for its connection to be closed at a shutdown: one that
/// has connected is about to ask, and a query on its way when the connection closes is lost.
pub(super) const LINGERING: Duration = Duration::from_millis(200);
/// How long a client that is never silent for so long may go on; it has to ask again elsewhere (RFC 7766 §6.2.4).
pub(super) const MOST_LINGERING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_network_opens_as_many_connections_a_second_as_it_may() {
        let all = Connections::default();
        let config = Config {
            tcp_connections: 1000,
            tcp_connections_per_client: 1000,
            tcp_accept_rate: 10,
            ..Config::default()
        };
        for (peer, expected) in [("192.0.2.1", 10), ("192.0.3.1", 10), ("127.0.0.1", 30)] {
            let mut accepted = 0;
            for _ in 0..30 {
                accepted += usize::from(all.enter(peer.parse().unwrap(), &config).await.is_ok());
            }
            assert_eq!(accepted, expected, "{peer}");
        }
    }
}
