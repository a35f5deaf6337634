//! What a check is to do, once its declaration has been found right.

use std::{collections::BTreeMap, fmt, time::Duration};

use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::percent_decode_str;
use tokio_rustls::rustls::pki_types::ServerName;
use url::Url;

use super::declaration::Declaration;
use crate::catalog::{
    health::Status,
    keys::{self, closest, remedy},
};

/// A check, ready to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Definition {
    /// The name for people.
    pub name: Option<String>,
    /// For people, too.
    pub notes: Option<String>,
    /// How its state is found out.
    pub kind: Kind,
    /// The declared status until the first result, if one is declared.
    pub initial: Option<Status>,
    /// How many equal results in a row a change of status takes.
    pub thresholds: Thresholds,
    /// How long the check may be critical before its service is to be deregistered. As in Consul, which promises no
    /// better, a minute at least.
    pub deregister_after: Option<Duration>,
    /// Longest output that is kept, in bytes.
    pub output_bytes: usize,
}

/// How the state of a check is found out.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// By trying, again and again.
    Probe {
        /// What is tried.
        probe: Probe,
        /// From one start to the next. As in Consul, a second at least.
        interval: Duration,
        /// When the probe is given up, and critical.
        timeout: Duration,
    },
    /// By being told; critical when not told anything for so long.
    Ttl(Duration),
    /// From other checks.
    Alias(Alias),
}

/// The checks that an alias follows: those of a service and of its node, or of the node alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The node; without, the alias's own.
    pub node: Option<String>,
    /// The id of the service on that node.
    pub service: Option<String>,
}

/// What is tried.
#[derive(Debug, Clone, PartialEq)]
pub enum Probe {
    /// Opens a connection, with TLS if so wanted.
    Tcp(Target, Option<Tls>),
    /// Sends an empty datagram; only an error is critical, for most servers do not answer it.
    Udp(Target),
    /// Sends an HTTP request.
    Http(Box<Http>),
    /// Asks the health service of gRPC about a service, or with an empty name about the whole server.
    Grpc(Target, Option<Tls>, String),
    /// Opens an HTTP/2 connection and sends a PING frame.
    H2Ping(Target, Option<Tls>),
    /// Runs a command: its path and arguments.
    Script(Vec<String>),
}

impl Probe {
    /// The host that is asked, if one is; of a URL without the brackets of an address.
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Tcp(target, _) | Self::Udp(target) | Self::Grpc(target, ..) | Self::H2Ping(target, _) => {
                Some(&target.host)
            }
            Self::Http(http) => http.url.host_str().map(|host| host.trim_matches(['[', ']'])),
            Self::Script(_) => None,
        }
    }
}

/// An HTTP request.
#[derive(Debug, Clone, PartialEq)]
pub struct Http {
    /// Where to; without a user, who is in the header.
    pub url: Url,
    /// GET, if nothing else is said.
    pub method: Method,
    /// All that is sent besides what belongs to the connection.
    pub headers: HeaderMap,
    /// Empty, if nothing else is said.
    pub body: String,
    /// Whether a redirection is followed, or is the response.
    pub redirects: Redirects,
    /// For `https` URLs.
    pub tls: Tls,
}

/// What to do about an HTTP redirection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirects {
    /// Go where it leads.
    Follow,
    /// Take it for the response, which is then critical.
    Take,
}

/// How to speak TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The server's name, if it is not the one connected to.
    pub server_name: Option<ServerName<'static>>,
    /// Whether its certificate must be good.
    pub trust: Trust,
}

/// Whom TLS trusts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Servers whose certificate leads to a root that the system trusts.
    Verified,
    /// Everybody.
    Anyone,
}

/// A host, by name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The name or address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// How many equal results in a row a change of status takes; the first result of all counts at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Successes before a failing check is passing or warning.
    pub passing: u32,
    /// Failures before a passing check is warning.
    pub warning: u32,
    /// Failures before it is critical.
    pub critical: u32,
}

/// Whether checks may run commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scripts {
    /// They may: `enable_script_checks` is set and the declaration is a local file's.
    Allowed,
    /// They may not.
    Refused,
}

/// What is wrong with a declaration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each says what it is")]
pub enum Problem {
    #[error("unknown key `{key}` in a check; {}", remedy(closest(key, keys::CHECK)))]
    UnknownKey { key: String },
    #[error("{key} checks are not supported; use args, http or tcp")]
    Unsupported { key: String },
    #[error("the check says not what to do; give it one of args, http, tcp, udp, grpc, h2ping, ttl, alias_service")]
    NoKind,
    #[error("the check is several in one ({}); make each a check of its own", .kinds.join(", "))]
    SeveralKinds { kinds: Vec<&'static str> },
    #[error("the {kind} check has no interval; add one such as \"10s\"")]
    NoInterval { kind: &'static str },
    #[error("the {kind} check has an interval, but nothing to do at it; remove it")]
    StrayInterval { kind: &'static str },
    #[error(
        "the check runs a command, which is not allowed; set catalog.files.enable_script_checks, or use http or tcp"
    )]
    Script,
    #[error("status {status:?} is none; use \"passing\", \"warning\" or \"critical\"")]
    Status { status: String },
    #[error("{key} {value:?} is not HOST:PORT")]
    Target { key: &'static str, value: String },
    #[error("http {value:?} is not an http or https URL with a host")]
    Url { value: String },
    #[error("method {value:?} is none of HTTP's")]
    Method { value: String },
    #[error("header {name:?} has a name or value that HTTP cannot carry")]
    Header { name: String },
    #[error("tls_server_name {value:?} is neither a name nor an address")]
    ServerName { value: String },
    #[error("failures_before_warning is above failures_before_critical; it must come first")]
    WarningAfterCritical,
}

impl Declaration {
    /// Makes the check of it, or says everything that is wrong.
    pub fn define(&self, scripts: Scripts) -> Result<Definition, Vec<Problem>> {
        let mut problems: Vec<Problem> = Vec::new();
        problems.extend(self.unknown.iter().map(|key| Problem::UnknownKey { key: key.clone() }));
        problems.extend(self.unsupported.iter().map(|key| Problem::Unsupported { key: key.clone() }));

        let kind = self.kind(scripts, &mut problems);
        let initial = self.status.as_deref().and_then(|word| {
            let status = Status::from_word(word);
            if status.is_none() {
                problems.push(Problem::Status { status: word.to_owned() });
            }
            status
        });
        let critical = self.failures_before_critical;
        // Consul, too: without a threshold of its own there is no warning before critical.
        let warning = if self.failures_before_warning == 0 { critical } else { self.failures_before_warning };
        if warning > critical {
            problems.push(Problem::WarningAfterCritical);
        }
        match kind {
            Some(kind) if problems.is_empty() => Ok(Definition {
                name: self.name.clone(),
                notes: self.notes.clone(),
                kind,
                initial,
                thresholds: Thresholds { passing: self.success_before_passing, warning, critical },
                deregister_after: self.deregister_critical_service_after.map(|after| after.max(MIN_DEREGISTER_AFTER)),
                output_bytes: if self.output_max_size == 0 {
                    OUTPUT_BYTES
                } else {
                    self.output_max_size.min(OUTPUT_BYTES)
                },
            }),
            _ => Err(problems),
        }
    }

    /// The kind, if it is one; whatever is wrong with it is added to the problems.
    fn kind(&self, scripts: Scripts, problems: &mut Vec<Problem>) -> Option<Kind> {
        let kinds: Vec<&'static str> = [
            ("script", !self.args.is_empty() || self.script.is_some()),
            ("http", self.http.is_some()),
            ("tcp", self.tcp.is_some()),
            ("udp", self.udp.is_some()),
            ("grpc", self.grpc.is_some()),
            ("h2ping", self.h2ping.is_some()),
            ("ttl", self.ttl.is_some()),
            ("alias", self.alias_node.is_some() || self.alias_service.is_some()),
        ]
        .into_iter()
        .filter_map(|(kind, is_wanted)| is_wanted.then_some(kind))
        .collect();
        let kind = match *kinds {
            [kind] => kind,
            [] => {
                if self.unsupported.is_empty() {
                    problems.push(Problem::NoKind);
                }
                return None;
            }
            _ => {
                problems.push(Problem::SeveralKinds { kinds });
                return None;
            }
        };
        if let Some(waits) = self.waiting_kind() {
            // Consul passes over that of an alias.
            if self.interval.is_some() && self.ttl.is_some() {
                problems.push(Problem::StrayInterval { kind });
            }
            return Some(waits);
        }
        if self.interval.is_none() {
            problems.push(Problem::NoInterval { kind });
        }
        let (probe, patience) = match self.command() {
            Some(command) => {
                if scripts == Scripts::Refused {
                    problems.push(Problem::Script);
                }
                (Some(Probe::Script(command)), SCRIPT_TIMEOUT)
            }
            None => (self.network_probe(problems), TIMEOUT),
        };
        let interval = self.interval?.max(MIN_INTERVAL);
        Some(Kind::Probe { probe: probe?, interval, timeout: self.timeout.unwrap_or(patience) })
    }

    /// A kind that does nothing of itself.
    fn waiting_kind(&self) -> Option<Kind> {
        if let Some(ttl) = self.ttl {
            return Some(Kind::Ttl(ttl));
        }
        let alias = Alias { node: self.alias_node.clone(), service: self.alias_service.clone() };
        (alias.node.is_some() || alias.service.is_some()).then_some(Kind::Alias(alias))
    }

    /// Consul ran the old `script` by a shell.
    fn command(&self) -> Option<Vec<String>> {
        match &self.script {
            Some(script) => Some(["/bin/sh", "-c", script].map(str::to_owned).into()),
            None => (!self.args.is_empty()).then(|| self.args.clone()),
        }
    }

    fn network_probe(&self, problems: &mut Vec<Problem>) -> Option<Probe> {
        let tls = self.tls(problems);
        let mut target = |key, value: &str| {
            let target = Target::parse(value);
            if target.is_none() {
                problems.push(Problem::Target { key, value: value.to_owned() });
            }
            target
        };
        if let Some(tcp) = &self.tcp {
            return Some(Probe::Tcp(target("tcp", tcp)?, self.tcp_use_tls.then_some(tls)));
        }
        if let Some(udp) = &self.udp {
            return Some(Probe::Udp(target("udp", udp)?));
        }
        if let Some(grpc) = &self.grpc {
            let (server, service) = grpc.split_once('/').unwrap_or((grpc, ""));
            return Some(Probe::Grpc(target("grpc", server)?, self.grpc_use_tls.then_some(tls), service.to_owned()));
        }
        if let Some(h2ping) = &self.h2ping {
            return Some(Probe::H2Ping(target("h2ping", h2ping)?, self.h2ping_use_tls.unwrap_or(true).then_some(tls)));
        }
        self.http_request(tls, problems).map(|http| Probe::Http(Box::new(http)))
    }

    fn http_request(&self, tls: Tls, problems: &mut Vec<Problem>) -> Option<Http> {
        let mut headers = headers(&self.header, problems);
        let method = self.method.as_deref().unwrap_or("GET");
        let parsed = Method::from_bytes(method.as_bytes());
        if parsed.is_err() {
            problems.push(Problem::Method { value: method.to_owned() });
        }
        let value = self.http.as_deref()?;
        let Some(mut url) = Url::parse(value).ok().filter(|url| matches!(url.scheme(), "http" | "https")) else {
            problems.push(Problem::Url { value: value.to_owned() });
            return None;
        };
        if let Some(credentials) = take_credentials(&mut url) {
            headers.entry(header::AUTHORIZATION).or_insert(credentials);
        }
        headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static(USER_AGENT));
        headers.entry(header::ACCEPT).or_insert(HeaderValue::from_static("text/plain, text/*, */*"));
        let redirects = if self.disable_redirects { Redirects::Take } else { Redirects::Follow };
        Some(Http { url, method: parsed.ok()?, headers, body: self.body.clone().unwrap_or_default(), redirects, tls })
    }

    fn tls(&self, problems: &mut Vec<Problem>) -> Tls {
        let server_name = self.tls_server_name.as_ref().and_then(|value| {
            let name = ServerName::try_from(value.clone()).ok();
            if name.is_none() {
                problems.push(Problem::ServerName { value: value.clone() });
            }
            name
        });
        Tls { server_name, trust: if self.tls_skip_verify { Trust::Anyone } else { Trust::Verified } }
    }
}

fn headers(declared: &BTreeMap<String, Vec<String>>, problems: &mut Vec<Problem>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in declared.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value))) {
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            (Ok(name), Ok(value)) => drop(headers.append(name, value)),
            _ => problems.push(Problem::Header { name: name.clone() }),
        }
    }
    headers
}

/// Takes user and password out of a URL, where the output of the check would show them.
fn take_credentials(url: &mut Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut credentials: Vec<u8> = percent_decode_str(url.username()).collect();
    credentials.push(b':');
    credentials.extend(percent_decode_str(url.password().unwrap_or_default()));
    // They fail for URLs without a host, which those of HTTP are not.
    let (Ok(()), Ok(())) = (url.set_username(""), url.set_password(None)) else { return None };
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64.encode(&credentials))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl Kind {
    /// Consul's word for it, the `Type` of its API.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Ttl(_) => "ttl",
            Self::Alias(_) => "alias",
            Self::Probe { probe, .. } => match probe {
                Probe::Tcp(..) => "tcp",
                Probe::Udp(_) => "udp",
                Probe::Http(_) => "http",
                Probe::Grpc(..) => "grpc",
                Probe::H2Ping(..) => "h2ping",
                Probe::Script(_) => "script",
            },
        }
    }
}

impl Target {
    /// Reads `HOST:PORT`, with an IPv6 address in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = match host.strip_prefix('[') {
            Some(address) => address.strip_suffix(']')?,
            None => Some(host).filter(|host| !host.contains(':'))?,
        };
        // As in Go, no host at all is this one.
        let host = if host.is_empty() { "localhost" } else { host };
        Some(Self { host: host.to_owned(), port: port.parse().ok().filter(|&port| port != 0)? })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MIN_DEREGISTER_AFTER: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(10);
const SCRIPT_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest output that is kept.
const OUTPUT_BYTES: usize = 4096;

/// What our checks call themselves: Consul's words, which servers may know.
pub const USER_AGENT: &str = "Consul Health Check";

/// A header of all requests of our checks. A definition may choose another User-Agent, but can neither change nor drop this one.
pub const CHECK_HEADER: HeaderName = HeaderName::from_static("watershed-check");

#[cfg(test)]
#[path = "definition_tests.rs"]
mod tests;
