//! The HTTP listeners: for operators, and for Consul's API alone.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    control::{self, Shown},
    sys,
};

/// The listeners in service.
#[derive(Default)]
pub(super) struct Http {
    open: Vec<Open>,
}

/// A listener in service.
struct Open {
    face: Face,
    /// As configured, where port 0 stands for any.
    configured: SocketAddr,
    /// What is to be served at the address may change.
    socket: TcpListener,
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
    /// Binds the addresses of a configuration that are not served already.
    pub fn bind(&self, config: &Config) -> Result<Bound> {
        let mut bound = Vec::new();
        for (face, address) in addresses(config) {
            let is_at = |open: &&Open| open.configured == address;
            if self.open.iter().filter(is_at).any(|open| open.face == face) {
                continue;
            }
            let key = face.key();
            // The other face gives up the address, for both cannot have it. Any port is no port of the other's.
            let taken_over = self.open.iter().filter(|_| address.port() != 0).find(is_at);
            let listener = taken_over.map_or_else(|| sys::bind_tcp(address), |open| open.socket.try_clone());
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
    pub fn serve(
        &mut self,
        config: &Config,
        bound: Bound,
        shown: Shown,
        tasks: &TaskTracker,
        stopping: &CancellationToken,
    ) -> Result<()> {
        let configured: Vec<_> = addresses(config).collect();
        self.open.retain(|open| {
            let stays = configured.contains(&(open.face, open.configured));
            if !stays {
                open.closing.cancel();
            }
            stays
        });
        for (face, configured, listener) in bound.0 {
            let key = face.key();
            let address = listener.local_addr().with_context(|| format!("cannot serve {key}"))?;
            let socket = listener.try_clone().with_context(|| format!("cannot serve {key}"))?;
            let listener =
                tokio::net::TcpListener::from_std(listener).with_context(|| format!("cannot serve {key}"))?;
            let closing = stopping.child_token();
            match face {
                Face::Control => {
                    tasks.spawn(control::serve(listener, shown.clone(), closing.clone()));
                    tracing::info!(%address, "control listening");
                }
                Face::Consul => {
                    tasks.spawn(control::serve_consul(listener, shown.catalog.clone(), closing.clone()));
                    tracing::info!(%address, "serving Consul's API");
                }
            }
            self.open.push(Open { face, configured, socket, closing });
        }
        Ok(())
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

fn addresses(config: &Config) -> impl Iterator<Item = (Face, SocketAddr)> {
    let all = [(Face::Control, config.control.listen), (Face::Consul, config.catalog.api.listen)];
    all.into_iter().filter_map(|(face, address)| Some((face, address?)))
}

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
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let mut http = Http::default();
        for (control, api, status) in
            [(Some(address), None, "200"), (None, Some(address), "404"), (Some(address), None, "200")]
        {
            let mut config = Config::default();
            (config.control.listen, config.catalog.api.listen) = (control, api);
            let bound = http.bind(&config).unwrap();
            http.serve(&config, bound, shown.clone(), &tasks, &stopping).unwrap();
            let given = tokio::task::spawn_blocking(move || ask(address, "/live")).await.unwrap();
            assert_eq!(given, status, "{control:?} {api:?}");
        }
        stopping.cancel();
    }
}
