//! The workers, and the listeners in service.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{inherited::Inherited, lasting::run_lasting, listen::Listener, store};
use crate::{
    endpoint::Endpoint,
    metrics::Metrics,
    server::{self, Config, Connections, Face, Identity, KernelDrops, Service},
};

/// What serves clients.
pub(super) struct Serving {
    face: Arc<Face>,
    workers: Vec<(server::Handle, thread::JoinHandle<()>)>,
    listeners: HashMap<u32, Open>,
    next_listener: u32,
    connections: Arc<Connections>,
    kernel_drops: Arc<KernelDrops>,
    identity: Arc<Identity>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// A listener in service.
struct Open {
    /// As configured, where port 0 stands for any; `None` if the service manager opened it.
    configured: Option<(Service, Endpoint)>,
    address: SocketAddr,
    tcp: Option<TcpListener>,
    /// Those that may be served by another process: not that of QUIC.
    udp: Vec<Arc<UdpSocket>>,
    /// Whether the service manager has them too.
    is_kept: bool,
    closing: CancellationToken,
}

/// A listener that is open, and as what it is configured, if it is.
pub(super) type Opened = (Listener, Option<(Service, Endpoint)>);

/// A listener that can be put into service, which cannot fail any more.
pub(super) struct Prepared {
    listener: Listener,
    configured: Option<(Service, Endpoint)>,
    /// What accepts its connections, except for QUIC.
    accepting: Option<Arc<tokio::net::TcpListener>>,
}

impl Prepared {
    /// Takes the further descriptors that it needs. Within a runtime.
    pub fn new((listener, configured): Opened) -> Result<Self> {
        let accept = |tcp: &TcpListener| tokio::net::TcpListener::from_std(tcp.try_clone()?).map(Arc::new);
        let accepting = listener.tcp.as_ref().map(accept).transpose();
        let accepting = accepting.with_context(|| format!("cannot serve TCP at {}", listener.address))?;
        Ok(Self { listener, configured, accepting })
    }
}

impl Serving {
    /// Nothing in service yet. Its tasks join `tasks` and end with `stopping`.
    pub fn new(face: Arc<Face>, identity: Arc<Identity>, tasks: TaskTracker, stopping: CancellationToken) -> Self {
        let connections = Arc::new(Connections::new(face.budget().clone()));
        Self {
            face,
            workers: Vec::new(),
            listeners: HashMap::new(),
            next_listener: 0,
            connections,
            kernel_drops: Arc::default(),
            identity,
            tasks,
            stopping,
        }
    }

    /// Starts as many workers.
    pub fn start_workers(&mut self, count: usize, metrics: &Metrics) -> Result<()> {
        for number in 0..count {
            let worker = server::spawn_worker(number, self.face.clone(), metrics.cells(), |_| {});
            self.workers.push(worker.context("cannot start a worker; see `ulimit -n` and `ulimit -u`")?);
        }
        Ok(())
    }

    /// Waits until the workers serve what was put into service, for a start is over when queries are answered. One that is
    /// slower than a moment will find them queued.
    pub fn settle(&self) {
        for (worker, thread) in &self.workers {
            if !worker.settle() {
                tracing::warn!(worker = thread.thread().name(), "slow to take up its listeners; queries wait for it");
            }
        }
    }

    /// The connections of clients.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// What the kernel drops at the listeners.
    pub fn kernel_drops(&self) -> &Arc<KernelDrops> {
        &self.kernel_drops
    }

    /// Opens what is configured and not in service. The sockets of a socket unit are served instead of plain listeners.
    pub fn open_missing(&self, config: &Config) -> Result<Vec<Prepared>> {
        let is_at =
            |open: &Open, at: (Service, Endpoint)| open.configured.map_or(at.0 == Service::Plain, |own| own == at);
        let is_open = |at| self.listeners.values().any(|open| is_at(open, at));
        let opened = open_all(config, self.workers.len(), is_open, &mut Inherited::default())?;
        opened.into_iter().map(Prepared::new).collect()
    }

    /// Puts a listener into service.
    pub fn open(&mut self, prepared: Prepared, metrics: &Metrics) {
        let number = self.next_listener;
        self.next_listener += 1;
        let closing = self.stopping.child_token();
        let Prepared { listener, configured, accepting } = prepared;
        let Listener { service, address, tcp, mut udp } = listener;
        let shown = configured.map_or(address.into(), |(_, endpoint)| endpoint.with_port(address.port()));
        if let Some(accepting) = accepting {
            self.serve_stream(service, accepting, &closing);
        }
        if !udp.is_empty() {
            self.kernel_drops.watch(&udp, &metrics.listener(&shown.to_string()));
        }
        self.face.set_socket(number, udp.first().cloned());
        if service == Service::Quic {
            udp.drain(..).for_each(|socket| self.serve_quic(socket, &closing));
        }
        for ((worker, _), socket) in self.workers.iter().zip(&udp) {
            worker.add(number, socket.clone());
        }
        self.listeners.insert(number, Open { configured, address, tcp, udp, is_kept: false, closing });
        tracing::info!(address = %shown, "listening");
    }

    fn serve_stream(&self, service: Service, listener: Arc<tokio::net::TcpListener>, closing: &CancellationToken) {
        let spoken = server::spoken(service, self.identity.clone());
        let (face, connections) = (self.face.clone(), self.connections.clone());
        let until = closing.clone();
        let serve = move || {
            server::serve_tcp(listener.clone(), spoken.clone(), face.clone(), connections.clone(), until.clone())
        };
        self.tasks.spawn(run_lasting("tcp", serve));
    }

    fn serve_quic(&self, socket: Arc<UdpSocket>, closing: &CancellationToken) {
        let (identity, face, until) = (self.identity.clone(), self.face.clone(), closing.clone());
        let connections = self.connections.clone();
        let serve = move || {
            server::serve_quic(socket.clone(), identity.clone(), face.clone(), connections.clone(), until.clone())
        };
        self.tasks.spawn(run_lasting("quic", serve));
    }

    /// Leaves what comes in from now on to the process that follows, where that has sockets of its own: those of QUIC.
    pub fn leave_to_successor(&self) {
        let is_quic = |open: &Open| open.configured.is_some_and(|(service, _)| service == Service::Quic);
        let quic = self.listeners.iter().filter(|(_, open)| is_quic(open));
        quic.for_each(|(&number, _)| self.face.deafen_socket(number));
    }

    /// Has the service manager keep the sockets that it does not have, so that nothing is lost while no process runs.
    pub fn keep_sockets(&mut self) {
        for open in self.listeners.values_mut().filter(|open| open.configured.is_some() && !open.is_kept) {
            open.descriptors().for_each(|socket| store::keep(open.address, socket));
            open.is_kept = true;
        }
    }

    /// All sockets, with the names by which a successor knows whose they are.
    pub fn sockets(&self) -> impl Iterator<Item = (String, BorrowedFd<'_>)> {
        self.listeners.values().flat_map(|open| {
            let name = open.configured.map_or_else(|| store::UNIT.to_owned(), |_| store::name(open.address));
            open.descriptors().map(move |socket| (name.clone(), socket))
        })
    }

    /// Closes the listeners that are no longer configured; those that the service manager opened stay.
    pub fn close_others(&mut self, config: &Config) {
        self.close(|open| open.configured.is_some_and(|at| !config.listeners().any(|kept| kept == at)));
    }

    /// Closes the listeners whose interface is another one now: their sockets hear nothing any more.
    pub fn close_outdated(&mut self) {
        self.close(|open| open.configured.is_some_and(|(_, endpoint)| endpoint.is_outdated(open.address)));
    }

    fn close(&mut self, is_gone: impl Fn(&Open) -> bool) {
        let gone: Vec<u32> =
            self.listeners.iter().filter(|&(_, open)| is_gone(open)).map(|(&number, _)| number).collect();
        for number in gone {
            let Some(open) = self.listeners.remove(&number) else { continue };
            open.closing.cancel();
            // Of QUIC nothing is kept, and at its address TLS may go on.
            if open.tcp.is_some() || !open.udp.is_empty() {
                store::forget(open.address);
            }
            for (worker, _) in &self.workers {
                worker.remove(number);
            }
            // Those who wait are still replied to, from a socket that hears nobody else.
            let face = self.face.clone();
            face.deafen_socket(number);
            // Not among the tasks that are waited for at the end: whoever waits is waited for there.
            tokio::spawn(async move {
                tokio::time::sleep(DRAIN).await;
                face.set_socket(number, None);
            });
            tracing::info!(address = open.configured.map(|at| tracing::field::display(at.1)), "no longer listening");
        }
    }

    /// Has the workers reply to what is queued and to those who wait, `patience` at most, and waits for their end.
    pub async fn stop_workers(&mut self, patience: Duration) -> Result<()> {
        let workers = std::mem::take(&mut self.workers);
        for (worker, _) in &workers {
            worker.stop(patience);
        }
        let join = move || workers.into_iter().all(|(_, thread)| thread.join().is_ok());
        let have_ended = tokio::task::spawn_blocking(join).await.context("cannot wait for the workers")?;
        if have_ended { Ok(()) } else { Err(anyhow::anyhow!("a worker has panicked")) }
    }
}

impl Open {
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        // Workers may share a socket.
        let udp =
            self.udp.iter().enumerate().filter(|(at, socket)| !self.udp[..*at].iter().any(|s| Arc::ptr_eq(s, socket)));
        self.tcp.iter().map(AsFd::as_fd).chain(udp.map(|(_, socket)| socket.as_fd()))
    }
}

/// Opens what is configured and not open, or takes it up. An address whose interface is not there is left for later.
pub(super) fn open_all(
    config: &Config,
    workers: usize,
    is_open: impl Fn((Service, Endpoint)) -> bool,
    inherited: &mut Inherited,
) -> Result<Vec<Opened>> {
    let mut opened = Vec::new();
    let missing = config.listeners().filter(|&at| !is_open(at)).filter(|(_, address)| !address.lacks_interface());
    for (service, address) in missing {
        let listeners = Listener::open(service, address, workers, inherited)?;
        opened.extend(listeners.into_iter().map(|listener| (listener, Some((service, address)))));
    }
    Ok(opened)
}

/// How long it takes until nobody waits any more: a bit longer than the deadline of any query.
pub(super) const DRAIN: Duration = Duration::from_millis(4500);
