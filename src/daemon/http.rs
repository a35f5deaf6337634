//! The HTTP listeners: for operators, and for Consul's API alone.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{inherited::Inherited, lasting::run_lasting, store};
use crate::{
    config::Config,
    control::{self, Shown},
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
    configured: SocketAddr,
    /// What is to be served at the address may change.
    socket: TcpListener,
    /// Whether the service manager has it too.
    is_kept: bool,
    closing: CancellationToken,
}

/// Sockets that are to be served.
pub(super) struct Bound(Vec<(Face, SocketAddr, TcpListener)>);

/// What is served at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Face {
    /// Everything.
    Control,
    /// Consul's API.
    Consul,
}

impl Http {
    /// Binds the addresses of a configuration that are not served already, or takes up their sockets.
    pub fn bind(&self, config: &Config, inherited: &mut Inherited) -> Result<Bound> {
        let mut bound = Vec::new();
        for (face, address) in addresses(config) {
            let is_at = |open: &&Open| open.configured == address;
            if self.open.iter().filter(is_at).any(|open| open.face == face) {
                continue;
            }
            let key = face.key();
            // The other face gives up the address, for both cannot have it. Any port is no port of the other's.
            let taken_over = self.open.iter().filter(|_| address.port() != 0).find(is_at);
            let bind = || inherited.take_tcp(address).map_or_else(|| sys::bind_tcp(address), Ok);
            let listener = taken_over.map_or_else(bind, |open| open.socket.try_clone());
            let listener = listener.with_context(|| match face {
                Face::Control => {
                    format!("cannot serve {key} = \"{address}\"; choose another address, or \"\" for none")
                }
                Face::Consul => {
                    format!("cannot serve {key} = \"{address}\"; choose another address, or stop the agent that has it")
                }
            })?;
            bound.push((face, address, listener));
        }
        Ok(Bound(bound))
    }

    /// Serves what was bound, and no longer what is not configured.
    pub fn serve(&mut self, config: &Config, bound: Bound, shown: Shown, stopping: &CancellationToken) -> Result<()> {
        let configured: Vec<_> = addresses(config).collect();
        self.open.retain(|open| {
            let stays = configured.contains(&(open.face, open.configured));
            if !stays {
                open.closing.cancel();
                // By where it is, not by what is configured: any port is no port.
                open.socket.local_addr().into_iter().for_each(store::forget);
            }
            stays
        });
        for (face, configured, listener) in bound.0 {
            let key = face.key();
            let address = listener.local_addr().with_context(|| format!("cannot serve {key}"))?;
            let socket = listener.try_clone().with_context(|| format!("cannot serve {key}"))?;
            let listen = move || tokio::net::TcpListener::from_std(listener.try_clone()?);
            let closing = stopping.child_token();
            match face {
                Face::Control => {
                    let (shown, closing) = (shown.clone(), closing.clone());
                    self.tasks.spawn(run_lasting("control", move || {
                        let (listener, shown, closing) = (listen(), shown.clone(), closing.clone());
                        async move { note_end(key, async { control::serve(listener?, shown, closing).await }.await) }
                    }));
                    tracing::info!(%address, "control listening");
                }
                Face::Consul => {
                    let (feed, closing) = (shown.catalog.clone(), closing.clone());
                    self.tasks.spawn(run_lasting("api", move || {
                        let (listener, feed, closing) = (listen(), feed.clone(), closing.clone());
                        async move { note_end(key, async { control::serve_consul(listener?, feed, closing).await }.await) }
                    }));
                    tracing::info!(%address, "serving Consul's API");
                }
            }
            self.open.push(Open { face, configured, socket, is_kept: false, closing });
        }
        Ok(())
    }

    /// Has the service manager keep the sockets that it does not have.
    pub fn keep_sockets(&mut self) {
        for open in self.open.iter_mut().filter(|open| !open.is_kept) {
            if let Ok(address) = open.socket.local_addr() {
                store::keep(address, open.socket.as_fd());
            }
            open.is_kept = true;
        }
    }

    /// All sockets, with the names by which a successor knows them.
    pub fn sockets(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        self.open.iter().filter_map(|open| Some((store::name(open.socket.local_addr().ok()?), open.socket.as_fd())))
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
        Bound(self.open.drain(..).map(|open| (open.face, open.configured, open.socket)).collect())
    }

    /// The tasks that serve.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }
}

impl Face {
    fn key(self) -> &'static str {
        match self {
            Self::Control => "control.listen",
            Self::Consul => "catalog.api.listen",
        }
    }
}

/// One that ends by itself is served no more.
fn note_end(key: &str, outcome: io::Result<()>) {
    if let Err(error) = outcome {
        tracing::error!(key, %error, "HTTP is not served any more; restart the daemon");
    }
}

fn addresses(config: &Config) -> impl Iterator<Item = (Face, SocketAddr)> {
    let all = [(Face::Control, config.control.listen), (Face::Consul, config.catalog.api.listen)];
    all.into_iter().filter_map(|(face, address)| Some((face, address?)))
}

/// Requests that have begun get a second.
const PAUSE_PATIENCE: Duration = Duration::from_millis(1500);

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        sync::Arc,
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
        let shown = Shown { metrics: Arc::new(Metrics::new()), readiness: Arc::new(Vec::new), catalog };
        let stopping = CancellationToken::new();
        let mut http = Http::default();
        for (control, api, status) in
            [(Some(address), None, "200"), (None, Some(address), "404"), (Some(address), None, "200")]
        {
            let mut config = Config::default();
            (config.control.listen, config.catalog.api.listen) = (control, api);
            let bound = http.bind(&config, &mut Inherited::default()).unwrap();
            http.serve(&config, bound, shown.clone(), &stopping).unwrap();
            let given = tokio::task::spawn_blocking(move || ask(address, "/live")).await.unwrap();
            assert_eq!(given, status, "{control:?} {api:?}");
        }
        stopping.cancel();
    }
}
