//! The discovery catalog: services as Consul means them, answered here.
//!
//! *Sources* publish what they know of nodes and of the instances of services; the [`Registry`] merges it by node and
//! service id into immutable [`Snapshot`]s, and says what each change makes void. A snapshot answers questions as
//! Consul's DNS does. How an answer is cut and in which order its instances come is decided reply by reply; an answer
//! says what there is to choose from.

pub mod check;
mod config;
pub mod health;
mod identity;
mod keys;
mod live;
mod model;
mod names;
mod notice;
pub mod policy;
mod records;
mod registry;
mod remote;
mod snapshot;
pub mod source;
mod subject;

pub use config::{ApiConfig, Config, FilesConfig, Problem, Settings, SoaConfig, Span, Token};
pub use identity::{Agent, Doubt, Identity, System, host_name};
pub use live::{Asked, Live, Wish};
pub use model::{
    Check, Host, Instance, InstanceKey, Kind, Node, NodeKey, Registration, Role, ServiceKey, Tagged, Weights,
};
pub use names::{Said, Verdict};
pub use notice::{CheckChange, Notice, Noticed, Reason};
pub use registry::{
    Changes, CheckKey, FIRST_RESULT_PATIENCE, Outcome, Outcomes, Part, Registry, SavedPolicy, Set, SourceId,
};
pub use remote::{Found, Held, News, Resumed, SavedRemote, Standing};
pub use snapshot::{Awaited, SLOTS, Service, Slot, Snapshot, Tally, Unmatched};
