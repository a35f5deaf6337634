//! Files of the operator: read whole, within limits, and without waiting for what may never come.
//!
//! A path may lead to anything: a pipe without a writer, a device, a sparse file of any size, a file under a lease, a network
//! file system that does not answer. So every file is opened and read here. What was opened is examined, not its path, which
//! may lead elsewhere a moment later. A read that does not come back costs its file alone: [`patiently`].
//!
//! Here are also what tells a changed file from an unchanged one ([`Stamp`]), the last good version of each data file on the
//! disk ([`Copies`]), how a file is replaced as a whole ([`replace`]), a file that changes are appended to ([`Journal`]), and
//! how certificates are read.

mod checksum;
mod copies;
mod journal;
mod patience;
mod pem;
mod read;
mod replace;
mod stamp;

pub use copies::{Copies, Saved, Version};
pub use journal::{Journal, Lines, Tail};
pub use patience::{access, patiently};
pub use pem::{read_certificates, read_private_key};
pub use read::{Listed, SMALL, list, read, read_text};
pub use replace::{Durability, remove_leftovers, replace};
pub use stamp::{Stamp, is_absent, is_folder, is_removed};
