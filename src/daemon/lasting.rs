//! Tasks that last as long as the daemon does: a panic does not end them.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// Runs a task to its end. After a panic it is begun anew, from what `begin` takes along: soon, and if it panics again soon, later
/// and later.
pub(super) async fn run_lasting<F: Future>(task: &'static str, mut begin: impl FnMut() -> F) {
    let mut pause = SHORTEST_PAUSE;
    loop {
        let begun = Instant::now();
        if caught(begin()).await.is_ok() {
            return;
        }
        // The panic itself is logged and counted where it happens.
        tracing::error!(task, ?pause, "the task begins anew");
        sleep(pause).await;
        pause = next_pause(pause, begun.elapsed());
    }
}

/// The pause after the next panic of a task that was begun so long ago.
fn next_pause(pause: Duration, since_begun: Duration) -> Duration {
    if since_begun < 2 * LONGEST_PAUSE { LONGEST_PAUSE.min(pause * 2) } else { SHORTEST_PAUSE }
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

/// So that one that panics at once neither keeps a core busy nor fills the log.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_again_and_again_is_begun_anew_ever_more_rarely() {
        let pauses: Vec<u128> = std::iter::successors(Some(SHORTEST_PAUSE), |&pause| Some(next_pause(pause, pause)))
            .map(|pause| pause.as_millis())
            .take(6)
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(next_pause(LONGEST_PAUSE, Duration::from_secs(60)), SHORTEST_PAUSE, "it had gone well");
    }

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
