//! Tasks that last as long as the daemon does: a panic does not end them.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    time::Duration,
};

/// Runs a task to its end. After a panic it is begun anew, from what `begin` takes along.
pub(super) async fn run_lasting<F: Future>(task: &'static str, mut begin: impl FnMut() -> F) {
    loop {
        match caught(begin()).await {
            Ok(_) => return,
            // The panic itself is logged and counted where it happens.
            Err(_) => tracing::error!(task, "the task begins anew"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The output of a future, or its panic.
pub(super) async fn caught<F: Future>(future: F) -> Result<F::Output, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    poll_fn(|context| {
        // Nobody sees it again after a panic.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        }
    })
    .await
}

/// So that one that panics at once does not keep a core busy.
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_begun_anew() {
        let mut runs = 0;
        run_lasting("test", || {
            runs += 1;
            let run = runs;
            async move {
                tokio::task::yield_now().await;
                assert!(run > 2, "the first two panic");
            }
        })
        .await;
        assert_eq!(runs, 3);
    }
}
