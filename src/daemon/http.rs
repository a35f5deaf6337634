//! The HTTP listeners: for operators, and for Consul's API alone.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{inherited::Inherited, lasting::run_lasting, store};
use crate::{
    config::Config,
    control::{self, Face, Shown},
    endpoint::Endpoint,
    sys,
};

/// The listeners in service.
#[derive(Default)]
pub(super) struct Http {
    open: Vec<Open>,
    tasks: TaskTracker,
}

/// A listener in service.
struct Open {
    face: Face,
    /// As configured, where port 0 stands for any.
    configured: Endpoint,
    /// What is to be served at the address may change.
    socket: Arc<TcpListener>,
    address: SocketAddr,
    /// Whether the service manager has it too.
    is_kept: bool,
    closing: CancellationToken,
}

/// Listeners that are to be served, which cannot fail any more.
pub(super) struct Bound(Vec<Prepared>);

struct Prepared {
    face: Face,
    configured: Endpoint,
    socket: Arc<TcpListener>,
    /// Where the socket is bound.
    address: SocketAddr,
}

impl Bound {
    /// True if nothing has to be served that is not served.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Http {
    /// Binds the addresses of a configuration that are not served already, or takes up their sockets.
    pub fn bind(&self, config: &Config, inherited: &mut Inherited) -> Result<Bound> {
        let mut bound = Vec::new();
        for (face, address) in addresses(config) {
            let is_at = |open: &&Open| open.configured == address;
            if self.open.iter().filter(is_at).any(|open| open.face == face) || address.lacks_interface() {
                continue;
            }
            let key = key(face);
            // The other face gives up the address, for both cannot have it. Any port is no port of the other's.
            let taken_over = self.open.iter().filter(|_| address.port() != 0).find(is_at);
            let mut bind = || {
                let address = address.resolve()?;
                inherited.take_tcp(address).map_or_else(|| sys::bind_tcp(address), Ok)
            };
            let prepare = |listener: std::net::TcpListener| {
                let address = listener.local_addr()?;
                Ok((Arc::new(TcpListener::from_std(listener)?), address))
            };
            let prepared = match taken_over {
                Some(open) => Ok((open.socket.clone(), open.address)),
                None => bind().and_then(prepare),
            };
            let (socket, bound_address) = prepared.with_context(|| match face {
                Face::Control | Face::Metrics => {
                    format!("cannot serve {key} = \"{address}\"; choose another address, or \"\" for none")
                }
                Face::Consul => {
                    format!("cannot serve {key} = \"{address}\"; choose another address, or stop the agent that has it")
                }
            })?;
            bound.push(Prepared { face, configured: address, socket, address: bound_address });
        }
        Ok(Bound(bound))
    }

    /// Serves what was bound, and no longer what is not configured.
    pub fn serve(&mut self, config: &Config, bound: Bound, shown: Shown, stopping: &CancellationToken) {
        let configured: Vec<_> = addresses(config).collect();
        self.open.retain(|open| {
            let stays = configured.contains(&(open.face, open.configured));
            if !stays {
                open.closing.cancel();
                // By where it is, not by what is configured: any port is no port.
                store::forget(open.address);
            }
            stays
        });
        for Prepared { face, configured, socket, address } in bound.0 {
            let shown_address = configured.with_port(address.port());
            let closing = stopping.child_token();
            let task = match face {
                Face::Control => "control",
                Face::Metrics => "metrics",
                Face::Consul => "api",
            };
            let (listener, shown, ending) = (socket.clone(), shown.clone(), closing.clone());
            let serve = move || control::serve(listener.clone(), face, shown.clone(), ending.clone());
            self.tasks.spawn(run_lasting(task, serve));
            match face {
                Face::Control => tracing::info!(address = %shown_address, "control listening"),
                Face::Metrics => tracing::info!(address = %shown_address, "serving metrics"),
                Face::Consul => tracing::info!(address = %shown_address, "serving Consul's API"),
            }
            self.open.push(Open { face, configured, socket, address, is_kept: false, closing });
        }
    }

    /// Closes the listeners whose interface is another one now: their sockets hear nothing any more.
    pub fn close_outdated(&mut self) {
        self.open.retain(|open| {
            let is_outdated = open.configured.is_outdated(open.address);
            if is_outdated {
                open.closing.cancel();
                store::forget(open.address);
            }
            !is_outdated
        });
    }

    /// Has the service manager keep the sockets that it does not have.
    pub fn keep_sockets(&mut self) {
        for open in self.open.iter_mut().filter(|open| !open.is_kept) {
            store::keep(open.address, open.socket.as_fd());
            open.is_kept = true;
        }
    }

    /// All sockets, with the names by which a successor knows them.
    pub fn sockets(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        self.open.iter().map(|open| (store::name(open.address), open.socket.as_fd()))
    }

    /// Serves nobody any more, and waits a moment for those who are served. What comes in is queued.
    pub async fn pause(&mut self) {
        self.open.iter().for_each(|open| open.closing.cancel());
        self.tasks.close();
        let _ = tokio::time::timeout(PAUSE_PATIENCE, self.tasks.wait()).await;
        self.tasks.reopen();
    }

    /// What has to be [served](Self::serve) again after a pause.
    pub fn resume(&mut self) -> Bound {
        let prepared = |Open { face, configured, socket, address, .. }| Prepared { face, configured, socket, address };
        Bound(self.open.drain(..).map(prepared).collect())
    }

    /// The tasks that serve.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }
}

fn key(face: Face) -> &'static str {
    match face {
        Face::Control => "control.listen",
        Face::Metrics => "control.metrics_listen",
        Face::Consul => "catalog.api.listen",
    }
}

/// The addresses of HTTP, and what is served there.
pub(super) fn addresses(config: &Config) -> impl Iterator<Item = (Face, Endpoint)> {
    let control = &config.control;
    let all = [
        (Face::Control, control.listen),
        (Face::Metrics, control.metrics_listen),
        (Face::Consul, config.catalog.api.listen),
    ];
    all.into_iter().filter_map(|(face, address)| Some((face, address?)))
}

/// Requests that have begun get a second.
const PAUSE_PATIENCE: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
    };

    use super::*;
    use crate::metrics::Metrics;

    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_address_goes_from_one_face_to_the_other() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (_, catalog) = tokio::sync::watch::channel(None);
        let (reloads, _) = tokio::sync::mpsc::channel(1);
        let hosts = control::OwnHosts::new(&[], catalog.clone());
        let shown = Shown {
            metrics: Arc::new(Metrics::new()),
            readiness: Arc::new(control::Health::default),
            catalog,
            reloads,
            hosts,
            connections: Arc::new(control::Connections::new(Arc::default(), &control::Config::default())),
        };
        let stopping = CancellationToken::new();
        let mut http = Http::default();
        for (face, live, leader) in [
            (Face::Control, "200", "503"),
            (Face::Consul, "404", "503"),
            (Face::Metrics, "200", "404"),
            (Face::Control, "200", "503"),
        ] {
            let mut config = Config::default();
            config.control.listen = (face == Face::Control).then_some(address.into());
            config.control.metrics_listen = (face == Face::Metrics).then_some(address.into());
            config.catalog.api.listen = (face == Face::Consul).then_some(address.into());
            let bound = http.bind(&config, &mut Inherited::default()).unwrap();
            http.serve(&config, bound, shown.clone(), &stopping);
            for (path, status) in [("/live", live), ("/v1/status/leader", leader)] {
                let given = tokio::task::spawn_blocking(move || ask(address, path)).await.unwrap();
                assert_eq!(given, status, "{face:?} {path}");
            }
        }
        stopping.cancel();
    }
}
