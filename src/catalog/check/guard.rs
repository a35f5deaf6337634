//! Whether the others are down, or we are the ones who are cut off.
//!
//! When every check of another host falls silent at once, all those hosts may have died together. If at the same time
//! our own link is at fault, it is far more likely that they live and we do not see them; to take them out of the
//! answers then would leave the clients with the lone local instance, or with none. So the last set is kept while
//! both are true, and everything the remote checks have said since that moment is not believed.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// What a probe says about the way to its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
pub enum Reach {
    /// Nothing: it has not run, or is a command.
    Unknown,
    /// The host has answered, be it only by refusing.
    Answered,
    /// The host has not.
    Silent,
    /// It never came so far: this host has no way to that network.
    NoRoute,
}

/// The last probe of a check, and since when its host answers, or does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// What the last probe has said.
    pub reach: Reach,
    /// Since when the host has answered without a break, or has not.
    pub since: Moment,
    /// The longest time after which the check notices an outage: its interval and timeout.
    pub delay: Duration,
}

/// What is known of our own link from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Nothing speaks against it.
    Sound,
    /// It has lost its carrier, its route or all upstreams.
    AtFault,
}

/// Since when we are cut off from all other hosts, if we are, by the checks of their instances.
///
/// A host that was silent before the slowest check can have noticed the outage was dead before, and says nothing. One
/// that answers proves that we are not cut off.
pub fn cut_off_since(remote: impl IntoIterator<Item = Sighting>, link: Link) -> Option<Moment> {
    let mut lost: Vec<Sighting> = Vec::new();
    for sighting in remote {
        match sighting.reach {
            Reach::Answered => return None,
            Reach::Unknown => {}
            Reach::Silent | Reach::NoRoute => lost.push(sighting),
        }
    }
    let last = lost.iter().map(|sighting| sighting.since).max()?;
    let slowest = lost.iter().map(|sighting| sighting.delay).max()?;
    lost.retain(|sighting| sighting.since + slowest >= last);
    let is_our_fault = link == Link::AtFault || lost.iter().any(|sighting| sighting.reach == Reach::NoRoute);
    if is_our_fault { lost.iter().map(|sighting| sighting.since).min() } else { None }
}

#[cfg(test)]
mod tests {
    use super::{
        Link::{AtFault, Sound},
        Reach::{Answered, NoRoute, Silent, Unknown},
        *,
    };

    #[test]
    fn we_are_cut_off_only_if_all_others_and_our_link_fail_at_once() {
        for (remote, link, expected) in [
            (vec![(Silent, 100), (Silent, 105), (Silent, 109)], AtFault, Some(100)),
            (vec![(Silent, 100), (NoRoute, 105)], Sound, Some(100)),
            (vec![(Silent, 100), (Silent, 105)], Sound, None), // they may well be dead
            (vec![(Silent, 100), (Answered, 0)], AtFault, None),
            (vec![(NoRoute, 100), (Answered, 0)], Sound, None), // no IPv6 here, say
            (vec![(Silent, 20), (Silent, 100)], AtFault, Some(100)), // one was dead before
            (vec![(NoRoute, 20), (Silent, 100)], Sound, None),  // and is no witness
            (vec![(Unknown, 0), (Silent, 100)], AtFault, Some(100)), // a script
            (vec![(Unknown, 0)], AtFault, None),
            (vec![], AtFault, None),
        ] {
            let sightings = remote.iter().map(|&(reach, second)| {
                let delay = Duration::from_secs(10);
                Sighting { reach, since: Moment::from_millis(second * 1000), delay }
            });
            let expected = expected.map(|second: u64| Moment::from_millis(second * 1000));
            assert_eq!(cut_off_since(sightings, link), expected, "{remote:?} {link:?}");
        }
    }
}
