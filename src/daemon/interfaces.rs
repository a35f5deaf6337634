//! Listeners at link-local addresses: their interfaces come late, go, and come back with another index.

use std::time::Duration;

use super::{Daemon, http, inherited::Inherited};
use crate::{config::Config, endpoint::Endpoint};

/// The addresses of all listeners.
fn endpoints(config: &Config) -> impl Iterator<Item = Endpoint> {
    let dns = config.server.listeners().map(|(_, endpoint)| endpoint);
    dns.chain(http::addresses(config).map(|(_, endpoint)| endpoint))
}

/// True if any listener depends on an interface.
pub(super) fn are_followed(config: &Config) -> bool {
    endpoints(config).any(|endpoint| endpoint.has_interface())
}

/// A warning for each address that cannot be served yet.
pub(super) fn warnings(config: &Config) -> impl Iterator<Item = String> {
    let waiting = endpoints(config).filter(Endpoint::lacks_interface);
    waiting.map(|endpoint| {
        format!("cannot listen on {endpoint} yet: its interface is not there; it is tried every second")
    })
}

impl Daemon {
    /// Listens at the addresses whose interface has come, or come back.
    pub(super) fn follow_interfaces(&mut self) {
        self.serving.close_outdated();
        self.http.close_outdated();
        let outcome = self.listen_at_interfaces().map_err(|error| format!("{error:#}"));
        let fault = outcome.err();
        // It is tried again every second.
        if let Some(error) = fault.as_ref().filter(|_| fault != self.interface_fault) {
            tracing::error!(error, "cannot listen on an interface that has come");
        }
        self.interface_fault = fault;
    }

    fn listen_at_interfaces(&mut self) -> anyhow::Result<()> {
        for listener in self.serving.open_missing(&self.loaded.config.server)? {
            self.serving.open(listener, &self.metrics);
        }
        let http = self.http.bind(&self.loaded.config, &mut Inherited::default())?;
        if !http.is_empty() {
            self.serve_control(http);
        }
        self.keep_sockets();
        Ok(())
    }
}

/// How often interfaces are looked up.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
