//! Whether the daemon lives, and whether it can do all that it is there for.

use axum::{extract::State, http::StatusCode, response::IntoResponse};

use super::Shown;

/// What `/ready` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// What makes answers wrong or missing now.
    pub missing: Vec<String>,
    /// What an operator has to mend, though every answer is as it was.
    pub faults: Vec<String>,
}

/// 200 as long as requests are answered at all.
pub async fn live() -> &'static str {
    "live\n"
}

/// 200, or 503 with a line for each thing that is missing; then a line for each fault.
pub async fn ready(State(shown): State<Shown>) -> impl IntoResponse {
    let Health { missing, faults } = (shown.readiness)();
    let (status, first) = match missing.is_empty() {
        true => (StatusCode::OK, Some("ready".to_owned())),
        false => (StatusCode::SERVICE_UNAVAILABLE, None),
    };
    let lines = first.into_iter().chain(missing).chain(faults.into_iter().map(|fault| format!("fault: {fault}")));
    (status, lines.map(|line| line + "\n").collect::<String>())
}
