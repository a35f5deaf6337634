//! What changes in a catalog, for the log.

use std::{fmt, sync::Arc};

use super::{
    health::Status,
    model::{Check, Instance, InstanceKey, NodeKey},
    policy::{Candidate, Health},
};

/// A change that an operator may want to read of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// An instance that was not there before.
    Joined(Arc<Instance>),
    /// An instance that is gone.
    Left(Arc<Instance>),
    /// A check with another status than before.
    Check(CheckChange),
    /// Another instance of a service under the policy `one` is given than before.
    Primary {
        /// The service.
        service: Arc<str>,
        /// The instance that was given before, if any was.
        from: Option<InstanceKey>,
        /// The one that is given now.
        to: InstanceKey,
        /// Why.
        reason: Reason,
    },
}

/// A check with another status than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckChange {
    /// The node that it belongs to, itself or by its instance.
    pub node: NodeKey,
    /// The id of its instance; nothing if it is a check of the node.
    pub service: Option<Arc<str>>,
    /// Its id.
    pub check: Arc<str>,
    /// The status before.
    pub from: Status,
    /// The status now.
    pub to: Status,
    /// What it said.
    pub output: Arc<str>,
}

/// Why another instance is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// None was given before.
    First,
    /// The one before is not there any more.
    Left,
    /// The checks of the one before fail.
    Failed,
    /// The one before is in maintenance.
    Withdrawn,
    /// A check of the one before has no result yet.
    Unknown,
    /// `order` or `prefer_tag` prefer the new one.
    Preferred,
    /// The one before is healthy, but fails too often.
    Damped,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "none was given before",
            Self::Left => "the one before is gone",
            Self::Failed => "the checks of the one before fail",
            Self::Unknown => "a check of the one before has no result yet",
            Self::Withdrawn => "the one before is in maintenance",
            Self::Preferred => "a better one by order or prefer_tag is healthy",
            Self::Damped => "the one before fails too often",
        })
    }
}

/// What has been noticed for some time.
#[derive(Debug, Default)]
pub struct Noticed {
    /// The first changes, in their order. If there are more, only their numbers are known.
    pub first: Vec<Notice>,
    /// How many instances have joined, all told.
    pub joined: usize,
    /// How many have left.
    pub left: usize,
    /// How many checks have changed their status.
    pub checks: usize,
}

/// What has been noticed since it was taken out last.
#[derive(Default)]
pub(super) struct Notices(Noticed);

impl Notices {
    /// Takes out what there is.
    pub fn take(&mut self) -> Noticed {
        std::mem::take(&mut self.0)
    }

    /// Takes back what was noticed of primaries: they were chosen before it was known which there were.
    pub fn forget_primaries(&mut self) {
        self.0.first.retain(|notice| !matches!(notice, Notice::Primary { .. }));
    }

    fn push(&mut self, notice: Notice) {
        match notice {
            Notice::Joined(_) => self.0.joined += 1,
            Notice::Left(_) => self.0.left += 1,
            Notice::Check(_) => self.0.checks += 1,
            Notice::Primary { .. } => {}
        }
        if self.0.first.len() < MOST_NOTICES {
            self.0.first.push(notice);
        }
    }

    /// An instance is other than it was.
    pub fn instance(&mut self, before: Option<&Arc<Instance>>, after: Option<&Arc<Instance>>) {
        match (before, after) {
            (None, Some(after)) => self.push(Notice::Joined(after.clone())),
            (Some(before), None) => self.push(Notice::Left(before.clone())),
            (Some(before), Some(after)) => {
                let registration = &after.registration;
                let owner = (&registration.node, Some(&registration.id));
                self.checks(owner, &before.checks, &after.checks);
            }
            (None, None) => {}
        }
    }

    /// Checks of a node or an instance are other than they were.
    pub fn checks(&mut self, (node, service): (&NodeKey, Option<&Arc<str>>), before: &[Check], after: &[Check]) {
        for check in after {
            let Some(old) = before.iter().find(|old| old.id == check.id && old.status != check.status) else {
                continue;
            };
            self.push(Notice::Check(CheckChange {
                node: node.clone(),
                service: service.cloned(),
                check: check.id.clone(),
                from: old.status,
                to: check.status,
                output: check.output.clone(),
            }));
        }
    }

    /// Another instance is given. `candidates` are those that there are, with the ranks by which they are preferred.
    pub fn primary(
        &mut self,
        service: &Arc<str>,
        from: Option<&InstanceKey>,
        to: &InstanceKey,
        candidates: &[Candidate],
    ) {
        let find = |key: &InstanceKey| candidates.iter().find(|candidate| candidate.key == *key);
        let reason = match (from, from.and_then(find)) {
            (None, _) => Reason::First,
            (Some(_), None) => Reason::Left,
            (_, Some(old)) => match old.health {
                Health::Failed => Reason::Failed,
                Health::Withdrawn => Reason::Withdrawn,
                Health::Unknown(_) => Reason::Unknown,
                Health::Healthy if find(to).is_some_and(|new| new.rank < old.rank) => Reason::Preferred,
                Health::Healthy => Reason::Damped,
            },
        };
        self.push(Notice::Primary { service: service.clone(), from: from.cloned(), to: to.clone(), reason });
    }
}

/// So many changes are kept with all that there is to say of them.
const MOST_NOTICES: usize = 64;
