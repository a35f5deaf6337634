//! One configuration from the sections of all rooms: read, completed, checked.
//!
//! Each room owns the `Config` of its sections. Here they are composed, their cross-references checked, and what was
//! left open taken from the system. All faults are reported at once, each as `file:line: what is wrong; what to do`,
//! to `check`, to the start and to a reload alike.

mod check;
mod document;
mod include;
mod resolvconf;
mod special;

use std::{
    collections::HashMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::{
    budget, cache,
    catalog::{self, source::consul},
    control,
    endpoint::Endpoint,
    files::{self, Copies},
    forward,
    location::Location,
    server,
    wire::{self, Name, SuffixError, Suffixes},
    zone,
};
use check::Check;
use document::{Document, Text, UNWRITTEN};
use resolvconf::NameServers;
pub use resolvconf::System;
pub use special::Kept;

/// Everything that can be configured.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Further files of the configuration, from the folder of this file; the last part of a path may have `*` and `?`. Their
    /// sections are joined to those here, and lists of sections too. Default: none. Applies at reload.
    pub include: Vec<Spanned<String>>,
    /// What faces clients.
    pub server: server::Config,
    /// Which names are asked of which upstreams.
    pub forward: Vec<forward::Config>,
    /// Which names are refused.
    pub refuse: Vec<Refuse>,
    /// Override zones by folder.
    pub zones: zone::Config,
    /// Override zones one by one.
    pub zone: Vec<zone::FileConfig>,
    /// Services, as Consul means them.
    pub catalog: catalog::Config,
    /// The response cache.
    pub cache: cache::Config,
    /// What faces operators.
    pub control: control::Config,
    /// How many bytes may wait for remote parties.
    pub limits: budget::Config,
}

/// Names that are refused, section `[[refuse]]`: what is at or below its suffixes, unless a longer one says otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Refuse {
    /// The names. No default. Applies at reload.
    pub suffixes: Vec<Spanned<String>>,
}

/// Where a configuration comes from. Loading it again is what a reload does.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The file; without one, [`DEFAULT_FILE`] if it is there, else the defaults.
    pub file: Option<PathBuf>,
    /// What the command line says instead of the file.
    pub overrides: Overrides,
    /// What the system says where neither does.
    pub system: System,
}

/// What the command line says instead of the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// Instead of `server.listen`, if any.
    pub listen: Vec<Endpoint>,
    /// Instead of whatever is said of the suffix `.`, if any.
    pub upstreams: Vec<forward::UpstreamUrl>,
    /// Instead of `zones.directory`.
    pub zones: Option<PathBuf>,
    /// Instead of `catalog.files.directory`.
    pub services: Option<PathBuf>,
}

/// A configuration without a fault.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The whole, defaults and overrides included, its paths made independent of the file's place.
    pub config: Config,
    /// `config.forward` in its final types, in the same order.
    pub rules: Vec<forward::Rule>,
    /// The suffixes of `config.refuse`.
    pub refused: Vec<Name>,
    /// `config.zone` in its final types, in the same order.
    pub zones: Vec<zone::Source>,
    /// Who says where names go that no rule claims.
    pub upstreams: Upstreams,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// Of this file and those that it includes, the ones in which secrets stand.
    pub files_with_secrets: Vec<PathBuf>,
    /// What to load again at a reload.
    pub source: Source,
}

/// Who says where names go that no rule claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    /// The file or the command line.
    Configured,
    /// A file of the system's.
    System {
        /// The file.
        file: PathBuf,
        /// Name servers in it that lead to ourselves, and are passed over.
        ourselves: Vec<Endpoint>,
    },
    /// Nobody: such names cannot be resolved.
    Unknown,
}

impl Upstreams {
    /// What there is to say to the operator where nobody names an upstream.
    pub fn missing(&self) -> Option<&'static str> {
        (*self == Self::Unknown).then_some(
            "no upstream for names that no rule claims: /etc/resolv.conf names no server but ourselves; write a \
             [[forward]] with suffixes = [\".\"], or use --upstream",
        )
    }
}

impl Source {
    /// Reads, completes and checks the configuration. Every fault is reported, in the order of the lines.
    pub fn load(&self) -> Result<Loaded, Vec<Fault>> {
        let default_file = || Some(PathBuf::from(DEFAULT_FILE)).filter(|file| is_there(file));
        let file = self.file.clone().or_else(default_file);
        let path = file.as_deref().unwrap_or(Path::new(""));
        let unreadable = |error: io::Error| {
            let problem = match error.kind() {
                io::ErrorKind::InvalidData => Problem::NotUtf8,
                _ => Problem::Unreadable(error.to_string()),
            };
            vec![Fault { location: Location::file(path), problem }]
        };
        let text = file.as_deref().map_or(Ok(String::new()), files::read_text).map_err(unreadable)?;
        let main = Text { file: path.to_owned(), text };
        let mut document = Document::parse(&main)?;
        let mut faults = Vec::new();
        let included = read_included(&document, path, &mut faults);
        for text in &included {
            faults.extend(document.add(text).err().into_iter().flatten());
        }
        let mut config: Config = document.read(&mut faults).unwrap_or_default();
        let mut check = Check { document, faults };
        check.sections(&config);
        check.names(&config);

        for path in config.paths_mut() {
            let text = path.to_string_lossy().into_owned();
            match include::expand(&text) {
                Ok(expanded) if expanded != text => *path = expanded.into(),
                Ok(_) => {}
                Err(problem) => check
                    .faults
                    .push(Fault { location: check.document.locate_text(&text), problem: Problem::Variable(problem) }),
            }
        }
        config.anchor(path);
        self.overrides.apply(&mut config);
        check.domains(&config);
        let upstreams = self.fill_in(&mut config);
        check.addresses(&config, self);
        let mut rules: Vec<forward::Rule> = config.forward.iter().filter_map(|rule| rule.rule().ok()).collect();
        let mut refused: Vec<Name> =
            config.refuse.iter().flat_map(|rule| &rule.suffixes).flat_map(read_suffixes).collect();
        let zones = config.zone.iter().filter_map(|zone| {
            Some(zone::Source { path: zone.file.clone(), apex: read_name(&zone.apex)?, mode: zone.mode })
        });
        let zones: Vec<zone::Source> = zones.collect();

        let Check { document, mut faults } = check;
        if !faults.is_empty() {
            faults.sort_by_key(|fault| (document.order(&fault.location.file), fault.location.line));
            // Whoever mends these shall know at once what else there is to mend.
            let files = zone::Files::load(&config.zones, &zones, None, &Copies::default()).faults;
            faults.extend(files.into_iter().map(|zone::Error { location, problem }| Fault {
                location,
                problem: Problem::Zone(Box::new(problem)),
            }));
            return Err(faults);
        }
        leave_to_smaller_networks(&config, &mut rules, &mut refused);
        let files_with_secrets = files_with_secrets(&config, &document);
        let source = self.clone();
        Ok(Loaded { config, rules, refused, zones, upstreams, file, files_with_secrets, source })
    }

    /// Adds the rules that are there unless somebody says otherwise: for all names, and for Consul's.
    fn fill_in(&self, config: &mut Config) -> Upstreams {
        let mut upstreams = Upstreams::Configured;
        if !config.claims(&Name::root()) {
            upstreams = match self.system.upstreams(&config.server.listen) {
                Some(NameServers { servers, ourselves, file }) => {
                    config.forward.push(rule(".", &servers));
                    Upstreams::System { file, ourselves }
                }
                None => Upstreams::Unknown,
            };
        }
        // With a catalog of our own, we are the ones who know; while an agent that is followed is lost, its DNS is asked.
        let catalog = &config.catalog;
        let followed = catalog.consul.as_ref().map(consul::Config::hosts).filter(|hosts| !hosts.is_empty());
        let agents = followed.unwrap_or_else(|| vec![Ipv4Addr::LOCALHOST.into()]);
        let agents = agents.into_iter().map(|ip| match ip.to_canonical() {
            // Which leads to this host.
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            _ => ip,
        });
        let agents: Vec<_> = agents.map(|ip| Endpoint::new(ip, CONSUL_PORT)).collect();
        let names: Vec<String> = match (catalog.has_source(), &catalog.consul) {
            (true, None) => Vec::new(),
            (true, Some(_)) => check::catalog_domains(catalog).map(|(_, name)| name.to_string()).collect(),
            (false, _) => vec![CONSUL.to_owned()],
        };
        for name in &names {
            if read_name(&unwritten(name)).is_some_and(|suffix| !config.claims(&suffix)) {
                config.forward.push(rule(name, &agents));
            }
        }
        // What Consul no longer says of its services is not to be believed.
        let names: Vec<Name> = names.iter().filter_map(|name| read_name(&unwritten(name))).collect();
        let speaks_for_consul = |rule: &&mut forward::Config| {
            rule.suffixes.iter().flat_map(read_suffixes).any(|suffix| names.contains(&suffix))
        };
        for rule in config.forward.iter_mut().filter(speaks_for_consul) {
            rule.serve_stale.get_or_insert(Duration::ZERO);
        }
        upstreams
    }
}

impl Loaded {
    /// Takes over the upstreams that the system named before, if it names none now: a file that is being written must not cost
    /// any answer.
    pub fn keep_system(&mut self, previous: &Self) {
        let is_default =
            |rule: &&forward::Config| rule.suffixes.iter().any(|text| read_name(text) == Some(Name::root()));
        if self.upstreams == Upstreams::Unknown
            && matches!(previous.upstreams, Upstreams::System { .. })
            && let Some(default) = previous.config.forward.iter().find(is_default)
        {
            self.config.forward.push(default.clone());
            self.rules.extend(default.rule());
            self.upstreams = previous.upstreams.clone();
        }
    }

    /// The same with the upstreams that the system names now; nothing if the configuration names them, or if they are the
    /// same. As long as the system names none, the last that it named stay.
    pub fn follow_system(&self) -> Option<Self> {
        if self.upstreams == Upstreams::Configured {
            return None;
        }
        let NameServers { servers, ourselves, file } = self.source.system.upstreams(&self.config.server.listen)?;
        let mut new = self.clone();
        let fresh = rule(".", &servers);
        let is_default =
            |rule: &forward::Config| rule.suffixes.iter().any(|text| read_name(text) == Some(Name::root()));
        match new.config.forward.iter().position(is_default) {
            Some(place) if new.config.forward[place].upstreams == fresh.upstreams => return None,
            Some(place) => new.config.forward[place] = fresh,
            None => new.config.forward.push(fresh),
        }
        new.rules = new.config.forward.iter().filter_map(|rule| rule.rule().ok()).collect();
        new.upstreams = Upstreams::System { file, ourselves };
        Some(new)
    }
}

impl Config {
    /// Whether a rule or a whole zone speaks for exactly this suffix.
    fn claims(&self, suffix: &Name) -> bool {
        let forwarded = self.forward.iter().flat_map(|rule| &rule.suffixes);
        let refused = self.refuse.iter().flat_map(|rule| &rule.suffixes);
        let zones = self.zone.iter().filter(|zone| zone.mode == zone::Mode::Zone).map(|zone| &zone.apex);
        forwarded.chain(refused).chain(zones).any(|text| read_suffixes(text).contains(suffix))
    }

    /// Makes paths that are relative start from the folder of the configuration file.
    fn anchor(&mut self, file: &Path) {
        let Some(folder) = std::path::absolute(file).ok().and_then(|file| Some(file.parent()?.to_owned())) else {
            return;
        };
        for path in self.paths_mut() {
            *path = folder.join(&*path);
        }
    }

    /// All paths of files and folders.
    fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        // One without a folder is a file's name wherever it is.
        let ordered = self.zones.order.iter_mut().filter(|path| path.components().count() > 1);
        let paths = self.zones.hosts.iter_mut().chain(ordered).chain(self.zone.iter_mut().map(|zone| &mut zone.file));
        let paths = paths.chain(self.forward.iter_mut().filter_map(|rule| rule.ca_file.as_mut()));
        let definitions = self.catalog.files.iter_mut().map(|files| &mut files.directory);
        let of_agent = self.catalog.consul.iter_mut().flat_map(consul::Config::paths_mut);
        let paths = paths.chain(&mut self.zones.directory).chain(definitions).chain(of_agent);
        paths.chain(self.server.paths_mut())
    }
}

impl Overrides {
    fn apply(&self, config: &mut Config) {
        if !self.listen.is_empty() {
            config.server.listen = self.listen.clone();
        }
        let absolute = |folder: &PathBuf| std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
        if let Some(directory) = &self.zones {
            config.zones.directory = Some(absolute(directory));
        }
        if let Some(directory) = self.services.as_ref().map(absolute) {
            match &mut config.catalog.files {
                Some(files) => files.directory = directory,
                None => config.catalog.files = Some(catalog::FilesConfig::new(directory)),
            }
        }
        if !self.upstreams.is_empty() {
            let is_other = |suffix: &Spanned<String>| read_name(suffix).is_none_or(|name| !name.is_root());
            config.forward.iter_mut().for_each(|rule| rule.suffixes.retain(is_other));
            config.forward.retain(|rule| !rule.suffixes.is_empty());
            config.refuse.iter_mut().for_each(|rule| rule.suffixes.retain(is_other));
            config.refuse.retain(|rule| !rule.suffixes.is_empty());
            config.forward.push(rule(".", &self.upstreams));
        }
    }
}

/// Something wrong, and where. Prints as `file:line: what is wrong; what to do`.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// Where; for what the command line says, its name in place of a file's.
    pub location: Location,
    /// What, and what to do.
    pub problem: Problem,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.location, self.problem)
    }
}

/// Arguments or files are refused, for these faults: a message each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Refused(pub Vec<String>);

impl Refused {
    /// For faults of any kind.
    pub fn new(faults: impl IntoIterator<Item: ToString>) -> Self {
        Self(faults.into_iter().map(|fault| fault.to_string()).collect())
    }
}

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// The file.
    #[error("cannot be read: {0}; mend the path or its permissions")]
    Unreadable(String),
    /// The encoding.
    #[error("not UTF-8 text; save it as that")]
    NotUtf8,
    /// The syntax.
    #[error("this is not TOML: {0}")]
    Syntax(String),
    /// A key that two files have.
    #[error("{key} stands at {first} already; remove one")]
    KeyTwice {
        /// The key, with those of its sections.
        key: String,
        /// Where it stands first.
        first: Location,
    },
    /// An include that is refused.
    #[error("{0}")]
    Include(include::Error),
    /// An include in a file that is included.
    #[error("a file that is included cannot include others; list them in the main file")]
    NestedInclude,
    /// A variable in a path.
    #[error("{0}")]
    Variable(include::Variable),
    /// An unknown key, or a value that is none for its key.
    #[error("{0}")]
    Value(String),
    /// More unknown keys than are named.
    #[error("{count} more unknown keys follow in this section; remove them")]
    MoreUnknown {
        /// How many.
        count: usize,
    },
    /// More faults than are looked for.
    #[error("there are more faults than these; they are looked for once these are mended")]
    TooManyFaults,
    /// A section of one room.
    #[error(transparent)]
    Server(server::Problem),
    /// A section of one room.
    #[error(transparent)]
    Limits(budget::OutOfRange),
    /// A section of one room.
    #[error(transparent)]
    Zones(zone::OutOfRange),
    /// A section of one room.
    #[error(transparent)]
    Cache(cache::Problem),
    /// A section of one room.
    #[error(transparent)]
    Catalog(catalog::Problem),
    /// A section of one room.
    #[error(transparent)]
    Forward(forward::Problem),
    /// A file of local data.
    #[error(transparent)]
    Zone(Box<zone::Problem>),
    /// A suffix or an apex that is not a name.
    #[error("{what} {text:?}: {error}")]
    NotAName {
        /// Suffix or apex.
        what: &'static str,
        /// As written.
        text: String,
        /// Why not.
        error: SuffixError,
    },
    /// A suffix that two rules claim, or an apex that two zones do.
    #[error("{what} {name} stands at {first} already; remove one")]
    Twice {
        /// Suffix or apex.
        what: &'static str,
        /// The name.
        name: Name,
        /// Where it stands first.
        first: Location,
    },
    /// A suffix or an apex that is the catalog's.
    #[error("{what} {name} is the catalog's {key}, so nobody would be asked for it; remove it, or set catalog.{key}")]
    Catalogued {
        /// Suffix or apex.
        what: &'static str,
        /// The name.
        name: Name,
        /// The key of `[catalog]` that claims it.
        key: &'static str,
    },
    /// An upstream that is ourselves.
    #[error("upstream {upstream} is ourselves, who listen on {listen}; name the server behind us, or listen elsewhere")]
    Loop {
        /// The upstream.
        upstream: String,
        /// The address of ours that it reaches.
        listen: Endpoint,
    },
    /// A refuse rule without names.
    #[error("the rule has no suffixes; name at least one, such as \"ads.example\"")]
    NoSuffixes,
    /// DNS and HTTP on one address.
    #[error("{0} is an address of [server] too; choose another port")]
    ControlOnDns(Endpoint),
    /// Two HTTP listeners on one address.
    #[error("{key} is {address}, which {other} serves already; remove one of the two, or choose another port")]
    SameHttp {
        /// The key of the second.
        key: &'static str,
        /// The key of the first.
        other: &'static str,
        /// The address of both.
        address: Endpoint,
    },
    /// A host that no request can name.
    #[error("host {0:?} is not a name; write one such as \"monitor1.corp.example\", without a port")]
    NotAHost(String),
}

/// Reads the files that a document includes, each once, and notes which cannot be read.
fn read_included(document: &Document<'_>, main: &Path, faults: &mut Vec<Fault>) -> Vec<Text> {
    let folder = main.parent().unwrap_or(Path::new(""));
    let real = |path: &Path| files::access(path, || path.canonicalize()).ok();
    let own = real(main);
    let mut texts: Vec<Text> = Vec::new();
    for (span, entry) in document.includes() {
        let mut blame = |problem| faults.push(Fault { location: document.locate(&span), problem });
        let found = match include::expand(&entry) {
            Err(problem) => {
                blame(Problem::Variable(problem));
                continue;
            }
            Ok(entry) => include::find(folder, &entry),
        };
        let files = found.unwrap_or_else(|problem| {
            blame(Problem::Include(problem));
            Vec::new()
        });
        for file in files {
            let is_known = own.is_some() && real(&file) == own;
            if is_known || texts.iter().any(|text| text.file == file) {
                continue;
            }
            match include::read(file) {
                Ok(text) => texts.push(text),
                Err(problem) => blame(Problem::Include(problem)),
            }
        }
    }
    texts
}

/// The files in which a secret itself stands, and not the path of a file.
fn files_with_secrets(config: &Config, document: &Document<'_>) -> Vec<PathBuf> {
    let has_token = config.catalog.consul.as_ref().is_some_and(|agent| agent.token.is_some());
    let secrets = [
        ("server", "cookie_secrets", !config.server.cookie_secrets.is_empty()),
        ("catalog", "api", config.catalog.api.token.is_some()),
        ("catalog", "consul", has_token),
    ];
    let secrets = secrets.into_iter().filter(|(.., is_there)| *is_there);
    secrets.map(|(section, key, _)| document.locate_key(section, 0, key).file).collect()
}

/// Whether there is a file, or something that keeps us from knowing: that is for whoever reads it to say.
fn is_there(file: &Path) -> bool {
    let absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    files::access(file, || file.symlink_metadata()).as_ref().err().is_none_or(|error| !absent(error))
}

/// A forward rule that nobody has written.
fn rule(suffix: &str, upstreams: &[impl ToString]) -> forward::Config {
    forward::Config {
        suffixes: vec![unwritten(suffix)],
        upstreams: upstreams.iter().map(|upstream| unwritten(&upstream.to_string())).collect(),
        ..forward::Config::default()
    }
}

fn unwritten(text: &str) -> Spanned<String> {
    Spanned::new(UNWRITTEN, text.to_owned())
}

fn read_name(text: &Spanned<String>) -> Option<Name> {
    wire::read_name(text.get_ref()).ok()
}

/// The names that a suffix stands for; none if it is faulty.
fn read_suffixes(text: &Spanned<String>) -> Vec<Name> {
    Suffixes::read(text.get_ref()).map(|suffixes| suffixes.names).unwrap_or_default()
}

/// Leaves a reverse zone that several networks share to the smallest of them: `172.16.0.0/16` is a part of `172.16.0.0/12`.
fn leave_to_smaller_networks(config: &Config, rules: &mut [forward::Rule], refused: &mut Vec<Name>) {
    let forwarded: Vec<Claims> = config.forward.iter().map(|rule| Claims::of(&rule.suffixes)).collect();
    let refusals: Vec<Claims> = config.refuse.iter().map(|rule| Claims::of(&rule.suffixes)).collect();
    let mut all = Claims(HashMap::new());
    forwarded.iter().chain(&refusals).for_each(|claims| all.take_in(&claims.0));
    if forwarded.iter().chain(&refusals).all(Claims::are_whole) {
        return;
    }
    for (rule, claims) in rules.iter_mut().zip(&forwarded) {
        rule.suffixes.retain(|suffix| claims.open_bits(suffix.get_ref()) == all.open_bits(suffix.get_ref()));
    }
    let is_refused = |name: &Name| refusals.iter().any(|claims| claims.open_bits(name) == all.open_bits(name));
    refused.retain(is_refused);
}

/// The names that suffixes stand for, each with the bits that are [open](Suffixes::open_bits).
struct Claims(HashMap<Name, u8>);

impl Claims {
    fn of(suffixes: &[Spanned<String>]) -> Self {
        let mut claims = Self(HashMap::new());
        for Suffixes { names, open_bits } in suffixes.iter().filter_map(|text| Suffixes::read(text.get_ref()).ok()) {
            claims.take_in(&names.into_iter().map(|name| (name, open_bits)).collect());
        }
        claims
    }

    fn take_in(&mut self, claims: &HashMap<Name, u8>) {
        for (name, &open_bits) in claims {
            let least = self.0.entry(name.clone()).or_insert(open_bits);
            *least = open_bits.min(*least);
        }
    }

    fn open_bits(&self, name: &Name) -> Option<u8> {
        self.0.get(name).copied()
    }

    fn are_whole(&self) -> bool {
        self.0.values().all(|&open_bits| open_bits == 0)
    }
}

/// The configuration that is read if none is named, if it is there.
pub const DEFAULT_FILE: &str = "/etc/watershed/watershed.toml";
const CONSUL: &str = "consul";
/// On which a Consul agent speaks DNS, unless it is told otherwise.
const CONSUL_PORT: u16 = 8600;

#[cfg(test)]
mod tests;
