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
    open: Vec<(Face, SocketAddr, CancellationToken)>,
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
            if self.open.iter().any(|(open, served, _)| (*open, *served) == (face, address)) {
                continue;
            }
            let key = face.key();
            let listener = sys::bind_tcp(address).with_context(|| match face {
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
        self.open.retain(|(face, address, closing)| {
            let stays = configured.contains(&(*face, *address));
            if !stays {
                closing.cancel();
            }
            stays
        });
        for (face, configured, listener) in bound.0 {
            let key = face.key();
            let address = listener.local_addr().with_context(|| format!("cannot serve {key}"))?;
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
            self.open.push((face, configured, closing));
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
