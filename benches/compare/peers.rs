//! The servers to compare: where their programs are, and how each is started as a forwarder with a cache, without
//! validation and without a log.

mod programs;

use std::{
    fmt::Write,
    fs,
    io::{self, BufWriter, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{changes, traffic};
use programs::PEERS;

/// What a server is to be set up for.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    pub upstream: SocketAddr,
    /// How many names its cache has to hold.
    pub names: u32,
    /// Rules beside the one for all names; each of them forwards its suffix to the same upstream.
    pub rules: u32,
    pub threads: u32,
    pub own: Own,
}

/// What a server knows by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    Nothing,
    /// That so many names do not exist.
    Blocked(u32),
    /// So many services.
    Services(u32),
}

/// Where it is set up.
pub struct Place<'a> {
    pub setup: &'a Setup,
    /// A folder of its own.
    pub dir: &'a Path,
    pub port: u16,
}

/// A server.
pub struct Peer {
    pub name: &'static str,
    program: &'static str,
    version_arg: &'static str,
    /// The text of its file of this name.
    file: &'static str,
    config: fn(&Place) -> String,
    args: fn(&Place) -> Vec<String>,
    threads: Threads,
    blocklist: Blocklist,
}

/// How many threads a server can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Threads {
    One,
    Many,
}

/// How a server is told of names that do not exist: a file of them.
struct Blocklist {
    head: &'static str,
    /// For each `OWNER`.
    line: &'static str,
    /// What then follows in the configuration.
    config: &'static str,
    /// A further file, if that names one, and its text.
    beside: (&'static str, &'static str),
}

/// A server whose program is here.
pub struct Installed {
    pub name: &'static str,
    pub version: String,
    kind: Kind,
}

enum Kind {
    Peer(&'static Peer, PathBuf),
    /// A part of this program.
    Limit(&'static str),
}

impl Installed {
    /// Those that are here, watershed first; it is the program at `watershed`.
    pub fn find(watershed: &Path) -> Vec<Self> {
        PEERS.iter().filter_map(|peer| Self::peer(peer, watershed)).collect()
    }

    /// The limit for hits, or for misses.
    pub fn limit(part: &'static str) -> Self {
        Self { name: LIMIT, version: "a part of this program".into(), kind: Kind::Limit(part) }
    }

    fn peer(peer: &'static Peer, watershed: &Path) -> Option<Self> {
        let folders = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
        let places = folders.iter().map(|folder| Path::new(folder).join(peer.program));
        let path = if peer.name == WATERSHED {
            watershed.to_owned()
        } else {
            places.into_iter().find(|path| path.is_file())?
        };
        let said = Command::new(&path).arg(peer.version_arg).output().ok()?;
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let is_version =
            |word: &&str| word.contains('.') && word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
        let version = said.split_whitespace().find(is_version).unwrap_or("?").trim_start_matches('v');
        Some(Self { name: peer.name, version: version.to_owned(), kind: Kind::Peer(peer, path) })
    }

    pub fn is_limit(&self) -> bool {
        matches!(self.kind, Kind::Limit(_))
    }

    /// Whether it can have so many threads, and know such things by itself.
    pub fn can(&self, threads: u32, own: Own) -> bool {
        match &self.kind {
            Kind::Limit(_) => own == Own::Nothing,
            Kind::Peer(peer, _) => {
                (threads == 1 || peer.threads == Threads::Many)
                    && (peer.name == WATERSHED || !matches!(own, Own::Services(_)))
            }
        }
    }

    /// Writes its files; how it is then started.
    pub fn prepare(&self, place: &Place) -> io::Result<(PathBuf, Vec<String>)> {
        match &self.kind {
            Kind::Peer(peer, path) => {
                fs::write(place.dir.join(peer.file), (peer.config)(place) + &peer.prepare_own(place)?)?;
                Ok((path.clone(), (peer.args)(place)))
            }
            Kind::Limit(part) => {
                let own = format!("127.0.0.1:{}", place.port);
                let more = match *part {
                    ANSWER => place.setup.threads.to_string(),
                    _ => place.setup.upstream.to_string(),
                };
                Ok((std::env::current_exe()?, vec![(*part).into(), own, more]))
            }
        }
    }
}

impl Peer {
    /// Writes the files of what it knows by itself; what it takes in the configuration.
    fn prepare_own(&self, place: &Place) -> io::Result<String> {
        let list = &self.blocklist;
        match place.setup.own {
            Own::Nothing => Ok(String::new()),
            Own::Blocked(count) => {
                let mut file = BufWriter::new(fs::File::create(place.dir.join("blocked"))?);
                file.write_all(list.head.as_bytes())?;
                for number in traffic::BLOCKED..traffic::BLOCKED + count {
                    file.write_all(list.line.replace("OWNER", &traffic::qname(number, 0)).as_bytes())?;
                }
                file.flush()?;
                if !list.beside.0.is_empty() {
                    fs::write(place.dir.join(list.beside.0), place.fill(list.beside.1))?;
                }
                Ok(place.fill(list.config))
            }
            Own::Services(count) => {
                let services = place.dir.join("services");
                fs::create_dir(&services)?;
                for service in 0..count {
                    let text = changes::definitions(service, traffic::INSTANCES.into(), 1);
                    fs::write(services.join(format!("s{service}.json")), text)?;
                }
                let config = "[catalog]\nnode_name = \"bench\"\naddress = \"192.0.2.1\"\n\
                              [catalog.files]\ndirectory = \"DIR/services\"\n";
                Ok(place.fill(config))
            }
        }
    }
}

impl Place<'_> {
    /// `text` with what is known of the place filled in.
    fn fill(&self, text: &str) -> String {
        self.fill_rules(text, "")
    }

    /// `text` for each rule, with its suffix in place of `SUFFIX`, and what is known of the setup filled in.
    fn fill_rules(&self, text: &str, rule: &str) -> String {
        let Setup { upstream, names, rules, threads, .. } = *self.setup;
        let mut filled = text.to_owned();
        for number in 0..rules {
            let _ = write!(filled, "{}", rule.replace("SUFFIX", &traffic::rule(number)));
        }
        let cache_bytes = (u64::from(names) * 2048).max(64 << 20);
        for (word, value) in [
            ("DIR", self.dir.display().to_string()),
            ("UPSTREAM_IP", upstream.ip().to_string()),
            ("UPSTREAM_PORT", upstream.port().to_string()),
            ("PORT", self.port.to_string()),
            ("CACHE_MB", (cache_bytes >> 20).to_string()),
            ("CACHE_NAMES", (names + names / 4).max(1000).to_string()),
            ("THREADS", threads.to_string()),
            ("SHARDS", if threads == 1 { "1".into() } else { "16".into() }),
        ] {
            filled = filled.replace(word, &value);
        }
        filled
    }

    fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }
}

fn args<const N: usize>(args: [&str; N]) -> Vec<String> {
    args.map(str::to_owned).into()
}

/// The part of this program that answers.
pub const ANSWER: &str = "answer";
/// The part of this program that forwards.
pub const FORWARD: &str = "forward";
/// The name of the least that is possible.
pub const LIMIT: &str = "limit";
/// Our own name.
pub const WATERSHED: &str = "watershed";
