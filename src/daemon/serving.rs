//! The workers, and the listeners in service.

use std::{collections::HashMap, io, net::SocketAddr, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::listen::Listener;
use crate::{
    metrics::Metrics,
    server::{self, Config, Connections, Face, Identity, KernelDrops, Service},
};

/// What serves clients.
pub(super) struct Serving {
    face: Arc<Face>,
    workers: Vec<(server::Handle, thread::JoinHandle<io::Result<()>>)>,
    listeners: HashMap<u32, Open>,
    next_listener: u32,
    connections: Arc<Connections>,
    kernel_drops: Arc<KernelDrops>,
    identity: Arc<Identity>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    worker_ended: CancellationToken,
}

/// A listener in service.
struct Open {
    /// As configured, where port 0 stands for any; `None` if the service manager opened it.
    configured: Option<(Service, SocketAddr)>,
    closing: CancellationToken,
}

/// A listener that is to be put into service, and as what it is configured, if it is.
pub(super) type Opened = (Listener, Option<(Service, SocketAddr)>);

impl Serving {
    /// Nothing in service yet. Its tasks join `tasks` and end with `stopping`.
    pub fn new(face: Arc<Face>, identity: Arc<Identity>, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        Self {
            face,
            workers: Vec::new(),
            listeners: HashMap::new(),
            next_listener: 0,
            connections: Arc::default(),
            kernel_drops: Arc::default(),
            identity,
            tasks,
            stopping,
            worker_ended: CancellationToken::new(),
        }
    }

    /// Starts as many workers.
    pub fn start_workers(&mut self, count: usize, metrics: &Metrics) -> Result<()> {
        for number in 0..count {
            let worker = server::spawn_worker(number, self.face.clone(), metrics.cells(), self.worker_ended.clone());
            self.workers.push(worker.context("cannot start a worker; see `ulimit -n` and `ulimit -u`")?);
        }
        Ok(())
    }

    /// The connections of clients.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// What the kernel drops at the listeners.
    pub fn kernel_drops(&self) -> &Arc<KernelDrops> {
        &self.kernel_drops
    }

    /// Waits until a worker has ended though nobody told it to.
    pub async fn worker_ended(&self) {
        self.worker_ended.cancelled().await;
    }

    /// Opens what is configured and not in service.
    pub fn open_missing(&self, config: &Config) -> Result<Vec<Opened>> {
        let mut opened = Vec::new();
        for (service, address) in config.listeners() {
            let is_open =
                |open: &Open| open.configured.map_or(service == Service::Plain, |at| at == (service, address));
            if !self.listeners.values().any(is_open) {
                let listener = Listener::open(service, address, self.workers.len())?;
                opened.push((listener, Some((service, address))));
            }
        }
        Ok(opened)
    }

    /// Puts a listener into service.
    pub fn open(&mut self, (listener, configured): Opened, metrics: &Metrics) -> Result<()> {
        let number = self.next_listener;
        self.next_listener += 1;
        let closing = self.stopping.child_token();
        let Listener { service, address, tcp, udp } = listener;
        if let Some(tcp) = tcp {
            let tcp = tokio::net::TcpListener::from_std(tcp).context("cannot serve TCP")?;
            let spoken = server::spoken(service, self.identity.clone()).context("cannot serve TLS")?;
            let (face, connections) = (self.face.clone(), self.connections.clone());
            self.tasks.spawn(server::serve_tcp(tcp, spoken, face, connections, closing.clone()));
        }
        if !udp.is_empty() {
            self.kernel_drops.watch(&udp, &metrics.listener(&address.to_string()));
        }
        self.face.set_socket(number, udp.first().cloned());
        for ((worker, _), socket) in self.workers.iter().zip(udp) {
            worker.add(number, socket);
        }
        self.listeners.insert(number, Open { configured, closing });
        tracing::info!(%address, "listening");
        Ok(())
    }

    /// Closes the listeners that are no longer configured; those that the service manager opened stay.
    pub fn close_others(&mut self, config: &Config) {
        let is_gone = |open: &Open| open.configured.is_some_and(|at| !config.listeners().any(|kept| kept == at));
        let gone: Vec<u32> =
            self.listeners.iter().filter(|(_, open)| is_gone(open)).map(|(&number, _)| number).collect();
        for number in gone {
            let Some(open) = self.listeners.remove(&number) else { continue };
            open.closing.cancel();
            for (worker, _) in &self.workers {
                worker.remove(number);
            }
            // Those who wait are still replied to, from a socket that hears nobody else.
            let face = self.face.clone();
            face.deafen_socket(number);
            self.tasks.spawn(async move {
                tokio::time::sleep(DRAIN).await;
                face.set_socket(number, None);
            });
            tracing::info!(address = open.configured.map(|at| tracing::field::display(at.1)), "no longer listening");
        }
    }

    /// Why a worker has ended though nobody told it to. Without it some clients get no answers, so the daemon ends too.
    pub fn worker_failure(&mut self) -> anyhow::Error {
        let workers = std::mem::take(&mut self.workers);
        for (_, thread) in workers {
            // Its guard is dropped a moment before the thread ends; the others go on, and are not waited for.
            for _ in 0..100 {
                if thread.is_finished() {
                    break;
                }
                thread::yield_now();
            }
            if thread.is_finished() {
                return match thread.join() {
                    Ok(Ok(())) => anyhow::anyhow!("a worker has ended"),
                    Ok(Err(error)) => anyhow::Error::from(error).context("a worker has failed"),
                    Err(_) => anyhow::anyhow!("a worker has panicked"),
                };
            }
        }
        anyhow::anyhow!("a worker has ended")
    }

    /// Has the workers reply to what is queued and to those who wait, and waits for their end.
    pub async fn stop_workers(&mut self) -> Result<()> {
        let workers = std::mem::take(&mut self.workers);
        for (worker, _) in &workers {
            worker.stop();
        }
        let ended = tokio::task::spawn_blocking(move || {
            workers.into_iter().map(|(_, thread)| thread.join()).collect::<Vec<_>>()
        });
        for outcome in ended.await.context("cannot wait for the workers")? {
            match outcome {
                Ok(ended) => ended.context("a worker has failed")?,
                Err(_) => anyhow::bail!("a worker has panicked"),
            }
        }
        Ok(())
    }
}

/// How long it takes until nobody waits any more: a bit longer than the deadline of any query.
pub(super) const DRAIN: Duration = Duration::from_millis(4500);
