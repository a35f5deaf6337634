//! Override zones: local data that outranks the upstreams.
//!
//! A *zone* file holds a whole zone: it alone speaks below its apex, and denies. An *overlay* holds single names, and
//! what it does not hold falls through to whoever is next; it speaks the actions of response policy zones. *Hosts files*
//! are overlays, with their PTR records. Some zones are *built in*.
//!
//! Everything is read once into immutable tables. A file with faults is refused with all of them, each at its line,
//! and the version that was read before stays in service; a file that has not changed keeps its table, and with it the
//! generation under which its answers are cached.

pub mod builtin;
mod contents;
mod entry;
mod error;
mod file;
mod generate;
mod hosts;
mod lookup;
mod names;
mod overlay;
mod rdata;
mod store;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

pub use error::{Error, Problem};
pub use hosts::{Client, Hosts};
pub use lookup::Zone;
pub use overlay::{Ordered, Overlay, Overlays, Ruling};
pub use store::{Faulty, Files, Instead, Outcome, Source, Summary};

use crate::wire::{Name, Record, Rtype, Soa, SuffixError, read_name};

/// Where override zones come from, section `[zones]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A folder of master files. `NAME.zone` holds the whole zone NAME, `NAME.overlay` only the names in it; `@` at the
    /// beginning of NAME stands for the root, so `@ads.overlay` may hold any name. Other files are passed over.
    /// Default: "/etc/watershed/zones" if it exists. Applies at reload.
    pub directory: Option<PathBuf>,

    /// Files in the format of /etc/hosts; they answer addresses, and names for addresses. An entry with a loopback address
    /// is given to loopback clients only. Faulty lines are passed over with a warning.
    /// Default ["/etc/hosts"]. Applies at reload.
    pub hosts: Vec<PathBuf>,

    /// Overlays and hosts files that are asked first, in this order: the first that holds a name decides. Each is a file's
    /// name, or its path. The others follow: exact before wildcard, then the longer apex, then the order of the files.
    /// Default []. Applies at reload.
    pub order: Vec<PathBuf>,

    /// Whether a name in a hosts file is asked of others for types other than addresses. Its addresses stay those of the
    /// file: a name with an IPv4 address alone has no IPv6 address. Default false: the file owns the name for all types.
    /// Applies at reload.
    pub hosts_fallthrough: bool,

    /// The most bytes of a zone or overlay file, with the files that it includes, and of a hosts file, from 64 KiB to 4 GiB. A
    /// larger file is a faulty one. Reading takes up to ten times as much memory. Default "64MiB". Applies at reload.
    pub max_file_bytes: ByteSize,
}

/// A value of the section `[zones]` that is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("max_file_bytes is {0}; choose from 64 KiB to 4 GiB")]
pub struct OutOfRange(ByteSize);

/// One override zone, section `[[zone]]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The apex: the name above which others answer; "." for the root. No default. Applies at reload.
    pub apex: toml::Spanned<String>,

    /// The master file; a relative path starts from the folder of the configuration file. No default. Applies at reload.
    pub file: PathBuf,

    /// "zone": the whole zone, which denies what it does not hold; "overlay": only the names in it, others fall through.
    /// Default "zone". Applies at reload.
    #[serde(default)]
    pub mode: Mode,
}

/// How much a file claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything at and below its apex.
    #[default]
    Zone,
    /// The names in it.
    Overlay,
}

impl Default for Config {
    fn default() -> Self {
        let hosts = vec![PathBuf::from("/etc/hosts")];
        let max_file_bytes = ByteSize::b(DEFAULT_FILE_BYTES);
        Self { directory: None, hosts, order: Vec::new(), hosts_fallthrough: false, max_file_bytes }
    }
}

impl Config {
    /// The folder of master files, whether or not it exists.
    pub fn directory(&self) -> &Path {
        self.directory.as_deref().unwrap_or(Path::new("/etc/watershed/zones"))
    }

    /// What is wrong with its values.
    pub fn problem(&self) -> Option<OutOfRange> {
        let (least, most) = MAX_FILE_BYTES;
        (!(least..=most).contains(&self.max_file_bytes.as_u64())).then_some(OutOfRange(self.max_file_bytes))
    }
}

impl FileConfig {
    /// The file with its apex parsed and its path starting from `base`, the folder of the configuration file.
    pub fn source(&self, base: &Path) -> Result<Source, SuffixError> {
        Ok(Source { apex: read_name(self.apex.get_ref())?, path: base.join(&self.file), mode: self.mode })
    }
}

/// The records of one owner and type.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rrset {
    rtype: Rtype,
    ttl: u32,
    /// At least one.
    rdatas: Vec<Arc<[u8]>>,
}

impl Rrset {
    fn records(&self, owner: &Name) -> impl Iterator<Item = Record> {
        self.rdatas.iter().map(|rdata| Record::new(owner.clone(), self.rtype, self.ttl, rdata.clone()))
    }
}

/// The SOA record of a denial by data that has none of its own; but for the SOA minimum it is that of RFC 6303 §3.
///
/// The minimum is short: what was denied may stand in the file a minute later.
fn synthesize_soa(owner: &Name) -> Record {
    let rname = Name::from_wire(b"\x06nobody\x07invalid\0").expect("two labels and the root");
    let mname = owner.clone();
    Soa { mname, rname, serial: 1, refresh: 3600, retry: 1200, expire: 604_800, minimum: 60 }.record(owner.clone())
}

/// An SOA record as denials carry it: its TTL is no longer than the SOA minimum (RFC 2308 §3).
fn denial_soa(soa: &Rrset, apex: &Name) -> Option<Record> {
    let soa = soa.records(apex).next()?;
    let minimum = u32::from_be_bytes(*soa.rdata.last_chunk()?);
    Some(Record { ttl: soa.ttl.min(minimum), ..soa })
}

/// A number that no other table of this process has.
fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The least and the most of [`Config::max_file_bytes`].
const MAX_FILE_BYTES: (u64, u64) = (64 << 10, 4 << 30);
const DEFAULT_FILE_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests;
