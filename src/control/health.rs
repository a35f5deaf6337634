//! Whether the daemon lives, and whether it can do all that it is there for.

use axum::{extract::State, http::StatusCode, response::IntoResponse};

use super::Shown;

/// 200 as long as requests are answered at all.
pub async fn live() -> &'static str {
    "live\n"
}

/// 200, or 503 with a line for each thing that is missing.
pub async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    let missing = (shown.readiness)();
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let lines = missing.into_iter().map(|line| line + "\n");
    (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
}
