//! The Consul agent that the catalog follows, if it follows one.

use std::{mem, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::lasting::run_lasting;
use crate::{
    budget::Budget,
    catalog::{
        Resumed, Standing, Wish,
        source::consul::{Agent, Event},
    },
    metrics::Metrics,
};

/// Who follows the agent; another agent takes its place at a reload.
pub(super) struct Follower {
    /// Whoever follows has the receiver for as long.
    wishes: Arc<tokio::sync::Mutex<mpsc::Receiver<Wish>>>,
    running: Mutex<Option<(Arc<Agent>, CancellationToken)>>,
    tasks: TaskTracker,
    metrics: Arc<Metrics>,
    budget: Arc<Budget>,
    closing: CancellationToken,
}

impl Follower {
    /// A follower without an agent. It charges responses to `budget`. Its tasks join `tasks` and end with `closing`.
    pub fn new(
        wishes: mpsc::Receiver<Wish>,
        metrics: Arc<Metrics>,
        budget: Arc<Budget>,
        tasks: TaskTracker,
        closing: CancellationToken,
    ) -> Self {
        let wishes = Arc::new(wishes.into());
        Self { wishes, running: Mutex::new(None), tasks, metrics, budget, closing }
    }

    /// Whether this agent is followed already.
    pub fn follows(&self, agent: &Agent) -> bool {
        self.running.lock().as_ref().is_some_and(|(running, _)| running.is_like(agent))
    }

    /// Follows this agent, or none, in place of the last. `standing` is how the catalog stands to what the last
    /// has said; the agent is returned. `resumed` is what an earlier process has saved.
    pub fn replace(
        &self,
        agent: Option<Agent>,
        standing: Standing,
        resumed: Option<Resumed>,
        tell: impl Fn(Event) + Send + Sync + 'static,
    ) -> Option<Arc<Agent>> {
        let mut running = self.running.lock();
        if let Some((_, closing)) = running.take() {
            closing.cancel();
        }
        let levels = self.metrics.levels();
        levels.catalog_source_up.set(0);
        levels.catalog_source_followed.set(0);
        levels.catalog_source_configured.set(agent.is_some().into());
        let agent = Arc::new(agent?);
        let closing = self.closing.child_token();
        *running = Some((agent.clone(), closing.clone()));
        let (wishes, metrics, budget) = (self.wishes.clone(), self.metrics.clone(), self.budget.clone());
        self.tasks.spawn(async move {
            let (agent, wishes, tell, closing) = (&agent, &wishes, &tell, &closing);
            let charged = (&*metrics, &budget);
            let mut before = (standing, resumed);
            run_lasting("agent", || {
                // After a panic, what was said last stays in service until it is said again.
                let before = mem::replace(&mut before, (Standing::Away, None));
                async move { agent.run(&mut *wishes.lock().await, before, tell, charged, closing.clone()).await }
            })
            .await;
        });
        running.as_ref().map(|(agent, _)| agent.clone())
    }
}

/// Whoever looks at the metrics is not to wait for a source that is not configured any more.
impl Drop for Follower {
    fn drop(&mut self) {
        self.metrics.levels().catalog_source_configured.set(0);
    }
}
