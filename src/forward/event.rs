//! What an exchange and whoever drives it tell each other.

use std::{fmt, io, sync::Arc, time::Duration};

use super::Upstream;
use crate::{sys::is_exhaustion, wire::Response};

/// What an exchange depends on besides group and question.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Ask for DNSSEC records (the DO bit).
    pub dnssec_ok: bool,
    /// Ask for data that was not validated (the CD bit).
    pub checking_disabled: bool,
    /// When to say [`Action::OutOfPatience`] first, counted from the start; `None` for never. It is said again whenever
    /// [`PATIENCE`] has passed, for those who have come to wait since.
    pub patience: Option<Duration>,
    /// When to give up, counted from the start.
    pub timeout: Duration,
}

/// What has happened.
#[derive(Clone, Copy)]
pub enum Event<'a> {
    /// A message has come for an attempt.
    Reply {
        /// The attempt.
        attempt: usize,
        /// The message.
        wire: &'a [u8],
    },
    /// The network has refused an attempt, or its stream has ended.
    Failed {
        /// The attempt.
        attempt: usize,
        /// For the log.
        error: &'a dyn fmt::Display,
    },
    /// An attempt could not be made for want of descriptors or memory here.
    Unsent {
        /// The attempt.
        attempt: usize,
    },
    /// [`Exchange::wake_at`] has come.
    Time,
}

impl<'a> Event<'a> {
    /// What an error of a socket means for an attempt.
    pub(super) fn of_error(attempt: usize, error: &'a io::Error) -> Self {
        if is_exhaustion(error) { Self::Unsent { attempt } } else { Self::Failed { attempt, error } }
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Send [`Exchange::write_query`] as a datagram: from the socket of this attempt, or a new one if it has none yet.
    SendUdp {
        /// The attempt.
        attempt: usize,
        /// To whom.
        upstream: Arc<Upstream>,
    },
    /// Send [`Exchange::write_query`] over the upstream's stream.
    SendStream {
        /// The attempt.
        attempt: usize,
        /// To whom.
        upstream: Arc<Upstream>,
    },
    /// No datagram is expected for this attempt any more.
    CloseUdp {
        /// The attempt.
        attempt: usize,
    },
    /// Those who wait have waited long enough for a stale answer to be better than none. The exchange goes on.
    OutOfPatience,
    /// This is the end.
    Finish(Outcome),
}

/// How an exchange has ended.
#[derive(Debug)]
pub struct Outcome {
    /// The response of an upstream, ready to be kept: AA is clear, AD is there only if the upstream is trusted, and the
    /// letters are the question's.
    pub response: Result<Response, Failure>,
    /// Who has sent it; `None` for a response of ours.
    pub upstream: Option<Arc<Upstream>>,
}

/// No upstream had an answer.
#[derive(Debug)]
pub struct Failure {
    /// What to tell the client: SERVFAIL or REFUSED, with an extended error.
    pub response: Response,
    /// True if any query left this host. If none did, that says nothing of the upstreams.
    pub was_sent: bool,
}

/// How long a client waits before it is given a stale answer (RFC 8767 §5).
pub const PATIENCE: Duration = Duration::from_millis(1800);
