//! What is kept of a check for the next process.
//!
//! A saved state counts again if the check still asks the same and its last result is not too old. Times are kept relative
//! to the moment of saving, because each process has a monotonic clock of its own.

use std::{hash::Hasher, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::{
    Id,
    definition::{Definition, Kind, Probe, Tls, Trust},
    state,
};
use crate::clock::{Moment, Offset};

/// What is kept of a check.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Saved {
    node: Arc<str>,
    check: Arc<str>,
    /// What the check asked; see [`subject`].
    subject: String,
    pub(super) state: state::Saved,
    /// As of when the state was the latest.
    pub(super) result: Offset,
    /// When the next probe was to start, or did start if it ran; when the TTL ends.
    pub(super) due: Option<Offset>,
    /// When the last probe that has ended was started.
    pub(super) begun: Option<Offset>,
}

impl Saved {
    /// What is kept of a check with this definition.
    pub(super) fn new(id: &Id, definition: &Definition, state: state::Saved, result: Offset) -> Self {
        let subject = subject(definition);
        Self { node: id.node.clone(), check: id.check.clone(), subject, state, result, due: None, begun: None }
    }

    /// Which check it is of.
    pub fn id(&self) -> Id {
        Id { node: self.node.clone(), check: self.check.clone() }
    }

    /// Whether the state, saved at `origin`, counts for a check with this definition.
    pub(super) fn counts_for(&self, definition: &Definition, origin: Moment, now: Moment) -> bool {
        let is_fresh = match definition.kind {
            Kind::Probe { interval, .. } => now.since(origin.at(self.result)) <= interval * FRESH_INTERVALS,
            Kind::Ttl(_) => self.due.is_some_and(|due| origin.at(due) > now),
            // It follows other checks at once.
            Kind::Alias(_) => true,
        };
        is_fresh && self.subject == subject(definition)
    }
}

/// What a check asks, without how often: of two definitions with the same subject, the result of one holds for the other.
/// A hash, because requests carry secrets.
fn subject(definition: &Definition) -> String {
    let mut hasher = SipHasher13::new();
    let mut add = |part: &[u8]| {
        hasher.write_u64(part.len() as u64);
        hasher.write(part);
    };
    let tls = |tls: Option<&Tls>| match tls {
        None => String::new(),
        Some(Tls { server_name, trust }) => {
            let name = server_name.as_ref().map(|name| name.to_str().into_owned()).unwrap_or_default();
            format!("{} {name}", if *trust == Trust::Verified { "verified" } else { "anyone" })
        }
    };
    match &definition.kind {
        Kind::Ttl(_) => add(b"ttl"),
        Kind::Alias(alias) => {
            let parts = [alias.node.as_deref(), alias.service.as_deref()];
            add(b"alias");
            parts.iter().for_each(|part| add(part.unwrap_or_default().as_bytes()));
        }
        Kind::Probe { probe, .. } => match probe {
            Probe::Tcp(target, by) => {
                ["tcp", &target.to_string(), &tls(by.as_ref())].iter().for_each(|part| add(part.as_bytes()));
            }
            Probe::Udp(target) => ["udp", &target.to_string()].iter().for_each(|part| add(part.as_bytes())),
            Probe::Grpc(target, by, service) => {
                let parts = ["grpc", &target.to_string(), &tls(by.as_ref()), service];
                parts.iter().for_each(|part| add(part.as_bytes()));
            }
            Probe::H2Ping(target, by) => {
                ["h2ping", &target.to_string(), &tls(by.as_ref())].iter().for_each(|part| add(part.as_bytes()));
            }
            Probe::Http(http) => {
                let parts = ["http", http.url.as_str(), http.method.as_str(), &http.body, &tls(Some(&http.tls))];
                parts.iter().for_each(|part| add(part.as_bytes()));
                for (name, value) in &http.headers {
                    add(name.as_str().as_bytes());
                    add(value.as_bytes());
                }
            }
            Probe::Script(command) => {
                add(b"script");
                command.iter().for_each(|part| add(part.as_bytes()));
            }
        },
    }
    format!("{:016x}", hasher.finish())
}

/// A result that is older than so many intervals of its check counts no more.
const FRESH_INTERVALS: u32 = 3;

/// How often repeated results are saved, which change the times alone, for checks of which this is the shortest interval.
pub(super) fn timing_delay(shortest: Duration) -> Duration {
    (shortest / 10).clamp(SHORTEST_DELAY, LONGEST_DELAY)
}

const SHORTEST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(10);
