//! What becomes known of panics. Each is contained where it happens: it costs a query, or a task that is begun anew.

use std::{
    panic::{self, PanicHookInfo},
    sync::Arc,
    thread,
};

use parking_lot::Mutex;

use crate::{clock::Moment, metrics::Metrics, server};

/// Has panics counted and, at most one a second, logged.
pub(super) fn report(metrics: Arc<Metrics>) {
    let logged = Mutex::new(None);
    panic::set_hook(Box::new(move |info| {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        metrics.panicked(name.starts_with(server::WORKER));
        let second = Moment::now().as_millis() / 1000;
        if logged.lock().replace(second) != Some(second) {
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            tracing::error!(thread = name, place, error = message(info), "panic; please report this fault");
        }
    }));
}

fn message<'a>(info: &'a PanicHookInfo<'_>) -> &'a str {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str).or_else(|| payload.downcast_ref().copied());
    text.unwrap_or("no message")
}
