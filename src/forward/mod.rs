//! From "this rule's upstreams shall be asked this question" to "this is the response".
//!
//! An [`Exchange`] is one query with all its attempts, as logic without socket or clock. Whoever has sockets drives it: a
//! worker thread by its [`UdpDriver`], anything that waits by [`run`]. What is known of a server is kept in its
//! [`Upstream`], what a rule makes of its servers in its [`Group`].

mod attempt;
mod event;
mod exchange;
mod group;
mod loops;
mod pace;
mod sockets;
mod task;
mod tcp;
#[cfg(test)]
mod testing;
mod transport;
mod trust;
mod udp;
mod upstream;
mod url;
mod verdict;
mod wheel;

use std::{
    ops::{Range, RangeInclusive},
    path::PathBuf,
    time::Duration,
};

use humantime_serde::re::humantime::format_duration;
use serde::{Deserialize, Serialize};
use toml::Spanned;

pub use event::{Action, Event, Failure, Options, Outcome, PATIENCE};
pub use exchange::Exchange;
pub use group::Group;
pub use loops::LoopWatch;
pub use task::{probe, run};
pub use transport::Error;
pub use trust::CaFileError;
pub use udp::{Limits, News, Registry, Report, UdpDriver};
pub use upstream::Upstream;
pub use url::{Transport, UpstreamUrl, UrlError};

use crate::wire::{Name, SuffixError, Suffixes, read_name};

/// A forward rule, section `[[forward]]`: names at or below its suffixes are asked of its upstreams.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The names for which the rule speaks, `"."` for all that no other rule claims. The longest suffix wins. A network such
    /// as `"10.0.0.0/8"` stands for its reverse zones. No default: at least one. Applies at reload.
    pub suffixes: Vec<Spanned<String>>,
    /// The servers to ask: `192.0.2.53`, `192.0.2.53:5353`, `[2001:db8::1]:53` by UDP (and TCP where that is needed),
    /// `tcp://192.0.2.53` by TCP alone, `tls://192.0.2.55#dns.example.net` and
    /// `https://192.0.2.55/dns-query#dns.example.net` encrypted, the name of the certificate after `#` (default: the
    /// address). A link-local address names its interface: `fe80::53%eth0`, `[fe80::53%eth0]:5353`. No default: at least one. Applies at reload; a server that stays keeps its connections and its health.
    pub upstreams: Vec<Spanned<String>>,
    /// The certificates of the authorities that encrypted upstreams must have theirs from, and of no others: a file in
    /// PEM format. A certificate that stands there itself is believed in its time and under its names. Default: none, which takes the public authorities that Mozilla lists. Read anew at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Which of them is asked first: `"ordered"` the first that is up, `"fastest"` the one with the least round-trip
    /// time, `"rotate"` each in turn. Default `"ordered"`. Applies at reload.
    pub policy: Policy,
    /// How long beyond its life a response may still be given while no upstream answers (RFC 8767).
    /// Default "1d", but "0s" for a rule that has the suffix `consul`: no dead instance is to be given. At most "7d".
    /// Applies at reload.
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub serve_stale: Option<Duration>,
    /// Shortest life of a positive answer of this rule. Default: `cache.min_ttl`. From "0s" to "1d". Applies at reload.
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub min_ttl: Option<Duration>,
    /// Longest life of a positive answer of this rule. Default: `cache.max_ttl`. From "0s" to "7d". Applies at reload.
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Duration>,
    /// Longest life of a negative answer of this rule. Default: `cache.max_negative_ttl`. From "0s" to "1d".
    /// Applies at reload.
    #[serde(with = "humantime_serde::option", skip_serializing_if = "Option::is_none")]
    pub max_negative_ttl: Option<Duration>,
    /// Whether the upstreams' word is taken for it that an answer was validated (the AD bit).
    /// Default: only from loopback and encrypted upstreams. Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust_ad: Option<bool>,
    /// Whether names that mean something only within a site (`local`, `home.arpa`, `test`, reverse names of private
    /// addresses) are answered here instead of by this rule. Default: only if every upstream has a public address.
    /// Applies at reload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_special: Option<bool>,
    /// Whether the letters of names are sent in mixed case (0x20), which a forger would have to guess besides port and id.
    /// Some authoritative servers compare letters, and a recursor that passes ours on to them keeps their denial for all its
    /// clients. A denial or failure is believed only once it is confirmed in plain letters, but the recursor's cache is not
    /// ours. A server that does not repeat letters is found out and spared by itself. Default false. Applies at reload.
    pub mixed_case: bool,
    /// How long a query may take, all attempts and CNAME targets included; after that the client is told of the failure. A
    /// query that leads through several rules has the longest of their timeouts in all, and asks the upstreams of each no
    /// longer than that one's own. libc gives up after 5 s, so there is a warning above "4.5s".
    /// Default "3.5s", from "100ms" to "10s". Applies at reload.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Whether addresses within a site (private, loopback, link-local, reserved, and IPv6 addresses that stand for such IPv4
    /// addresses) and address records of the wrong length are left out of answers, so
    /// that no page of a stranger reads what hosts of ours show (DNS rebinding). A name that a CNAME of this rule leads to
    /// is guarded too, whoever answers it. Default false. Applies at reload.
    pub rebinding_guard: bool,
    /// The names, and all below them, that may lead there all the same.
    /// Default: none. Applies at reload.
    pub rebinding_exempt: Vec<Spanned<String>>,
}

/// Which upstream is asked first; one that is down comes last whatever the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// As written.
    #[default]
    Ordered,
    /// By smoothed round-trip time.
    Fastest,
    /// Each in turn.
    Rotate,
}

/// A forward rule in its final types.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// The suffixes, each with its place in the file, so that one claimed twice is reported there.
    pub suffixes: Vec<Spanned<Name>>,
    /// The upstreams as written.
    pub upstreams: Vec<UpstreamUrl>,
    /// [`Config::ca_file`].
    pub ca_file: Option<PathBuf>,
    /// Which is asked first.
    pub policy: Policy,
    /// [`Config::trust_ad`].
    pub trust_ad: Option<bool>,
    /// [`Config::block_special`].
    pub block_special: Option<bool>,
    /// [`Config::mixed_case`].
    pub mixed_case: bool,
    /// [`Config::timeout`].
    pub timeout: Duration,
    /// [`Config::rebinding_exempt`], if there is a guard.
    pub guarded_but: Option<Vec<Name>>,
}

impl Rule {
    /// What an operator should know of the rule, though it is served as it stands.
    pub fn warning(&self) -> Option<String> {
        (self.timeout > LIBC_PATIENCE).then(|| {
            let name = self.suffixes.first().map_or_else(|| ".".into(), |suffix| suffix.get_ref().to_string());
            let timeout = format_duration(self.timeout);
            format!("the rule for {name}: timeout is {timeout}, but libc gives up after 5s; choose 4.5s or less")
        })
    }

    /// Whether names that mean something only within a site are answered here instead of by this rule.
    pub fn blocks_special(&self) -> bool {
        let all_public = !self.upstreams.is_empty() && self.upstreams.iter().all(UpstreamUrl::is_public);
        self.block_special.unwrap_or(all_public)
    }
}

/// A fault of a rule and where in the file it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The bytes that hold it, or the beginning of the rule; `None` for a rule in which there is nothing.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a forward rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No `suffixes`.
    #[error("the rule has no suffixes; write suffixes = [\".\"] for all names")]
    NoSuffixes,
    /// No `upstreams`.
    #[error("the rule has no upstreams; name at least one, such as \"192.0.2.53\"")]
    NoUpstreams,
    /// A suffix that is not a name.
    #[error("suffix {suffix:?}: {error}")]
    Suffix {
        /// As written.
        suffix: String,
        /// Why not.
        error: SuffixError,
    },
    /// An exempt name that is none.
    #[error("rebinding_exempt {name:?}: {error}")]
    Exempt {
        /// As written.
        name: String,
        /// Why not.
        error: SuffixError,
    },
    /// A suffix that the same rule has twice.
    #[error("suffix {0} stands here twice; remove one")]
    SuffixTwice(Name),
    /// An upstream that cannot be read.
    #[error("upstream {upstream:?}: {error}")]
    Upstream {
        /// As written.
        upstream: String,
        /// Why not.
        error: UrlError,
    },
    /// An upstream that the same rule has twice.
    #[error("upstream {0} stands here twice; remove one")]
    UpstreamTwice(UpstreamUrl),
    /// A duration out of its range.
    #[error("{key} is at most {most}; write a smaller value")]
    TooLong {
        /// The key.
        key: &'static str,
        /// The upper end of its range.
        most: &'static str,
    },
    /// A timeout out of its range.
    #[error("timeout is {}; choose from 100ms to 10s", format_duration(*.0))]
    Timeout(Duration),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            suffixes: Vec::new(),
            upstreams: Vec::new(),
            ca_file: None,
            policy: Policy::default(),
            serve_stale: None,
            min_ttl: None,
            max_ttl: None,
            max_negative_ttl: None,
            trust_ad: None,
            block_special: None,
            mixed_case: false,
            timeout: DEFAULT_TIMEOUT,
            rebinding_guard: false,
            rebinding_exempt: Vec::new(),
        }
    }
}

impl Config {
    /// The rule in its final types, or every fault in it.
    pub fn rule(&self) -> Result<Rule, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut fault = |span, problem| faults.push(Fault { span, problem });
        let beginning = self.suffixes.first().or(self.upstreams.first()).map(Spanned::span);
        let mut suffixes: Vec<Spanned<Name>> = Vec::new();
        for text in &self.suffixes {
            match Suffixes::read(text.get_ref()) {
                Ok(read) => {
                    for name in read.names {
                        match suffixes.iter().any(|known| *known.get_ref() == name) {
                            // A network and a part of it may both be written.
                            true if read.open_bits > 0 => {}
                            true => fault(Some(text.span()), Problem::SuffixTwice(name)),
                            false => suffixes.push(Spanned::new(text.span(), name)),
                        }
                    }
                }
                Err(error) => fault(Some(text.span()), Problem::Suffix { suffix: text.get_ref().clone(), error }),
            }
        }
        let mut upstreams: Vec<UpstreamUrl> = Vec::new();
        for text in &self.upstreams {
            match text.get_ref().parse::<UpstreamUrl>() {
                Ok(url) if upstreams.contains(&url) => fault(Some(text.span()), Problem::UpstreamTwice(url)),
                Ok(url) => upstreams.push(url),
                Err(error) => fault(Some(text.span()), Problem::Upstream { upstream: text.get_ref().clone(), error }),
            }
        }
        let mut exempt = Vec::new();
        for text in &self.rebinding_exempt {
            match read_name(text.get_ref()) {
                Ok(name) => exempt.push(name),
                Err(error) => fault(Some(text.span()), Problem::Exempt { name: text.get_ref().clone(), error }),
            }
        }
        if self.suffixes.is_empty() {
            fault(beginning.clone(), Problem::NoSuffixes);
        }
        if self.upstreams.is_empty() {
            fault(beginning.clone(), Problem::NoUpstreams);
        }
        for (key, value, bound, most) in [
            ("serve_stale", self.serve_stale, 7 * DAY, "7d"),
            ("min_ttl", self.min_ttl, DAY, "1d"),
            ("max_ttl", self.max_ttl, 7 * DAY, "7d"),
            ("max_negative_ttl", self.max_negative_ttl, DAY, "1d"),
        ] {
            if value.is_some_and(|value| value > bound) {
                fault(beginning.clone(), Problem::TooLong { key, most });
            }
        }
        if !TIMEOUTS.contains(&self.timeout) {
            fault(beginning, Problem::Timeout(self.timeout));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let Self { policy, trust_ad, block_special, mixed_case, timeout, .. } = *self;
        let ca_file = self.ca_file.clone();
        let guarded_but = self.rebinding_guard.then_some(exempt);
        Ok(Rule { suffixes, upstreams, ca_file, policy, trust_ad, block_special, mixed_case, timeout, guarded_but })
    }
}

/// How long beyond its life a response may be given, unless a rule says otherwise.
pub const DEFAULT_SERVE_STALE: Duration = DAY;
/// How long a query may take, unless a rule says otherwise: libc gives up after 5 s.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(3500);
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(10);
/// A client that is told later than this has perhaps gone.
const LIBC_PATIENCE: Duration = Duration::from_millis(4500);
const DAY: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Config {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_rule_is_read_with_its_defaults() {
        let rule =
            read("suffixes = ['.', 'Corp.example']\nupstreams = ['192.0.2.53', 'tls://192.0.2.55#dns.example.net']");
        assert_eq!(rule.serve_stale, None);
        assert!(!rule.mixed_case, "behind a recursor it changes answers");
        assert_eq!(rule.timeout, Duration::from_millis(3500));
        let rule = rule.rule().unwrap();
        assert_eq!(rule.upstreams[0].to_string(), "192.0.2.53:53");
        assert_eq!(rule.upstreams[1].to_string(), "tls://192.0.2.55:853#dns.example.net");
        assert_eq!(*rule.suffixes[1].get_ref(), "corp.example".parse().unwrap());
        assert_eq!((rule.policy, rule.trust_ad), (Policy::Ordered, None));
    }

    #[test]
    fn every_fault_is_reported_at_its_place() {
        let text = "suffixes = ['a..b', 'x.example', 'X.example.']\nupstreams = ['dns.example', '192.0.2.1', '192.0.2.1:53']\n\
                    serve_stale = '8d'\nrebinding_exempt = ['lan', 'b..c']";
        let faults = read(text).rule().unwrap_err();
        let printed: Vec<(Option<&str>, String)> =
            faults.iter().map(|fault| (fault.span.clone().map(|s| &text[s]), fault.problem.to_string())).collect();
        assert_eq!(
            printed,
            [
                (Some("'a..b'"), "suffix \"a..b\": a label is empty; write a name such as \"corp.example\"".into()),
                (Some("'X.example.'"), "suffix X.example. stands here twice; remove one".into()),
                (
                    Some("'dns.example'"),
                    "upstream \"dns.example\": \"dns.example\" is not an address; write an address such as 192.0.2.53, \
                     192.0.2.53:5353 or [2001:db8::1]:53"
                        .into()
                ),
                (Some("'192.0.2.1:53'"), "upstream 192.0.2.1:53 stands here twice; remove one".into()),
                (Some("'b..c'"), "rebinding_exempt \"b..c\": a label is empty; write a name such as \"corp.example\"".into()),
                (Some("'a..b'"), "serve_stale is at most 7d; write a smaller value".into()),
            ]
        );
        let faults: Vec<Problem> = read("").rule().unwrap_err().into_iter().map(|fault| fault.problem).collect();
        assert_eq!(faults, [Problem::NoSuffixes, Problem::NoUpstreams]);
        assert!(toml::from_str::<Config>("suffix = ['.']").is_err(), "an unknown key");
    }

    #[test]
    fn a_timeout_has_a_range_and_a_warning() {
        for (text, in_range, is_odd) in [
            ("99ms", false, false),
            ("100ms", true, false),
            ("4500ms", true, false),
            ("4501ms", true, true),
            ("10s", true, true),
            ("10001ms", false, true),
        ] {
            let rule =
                read(&format!("suffixes = ['corp.example']\nupstreams = ['192.0.2.1']\ntimeout = '{text}'")).rule();
            assert_eq!(rule.is_ok(), in_range, "{text}");
            match rule {
                Ok(rule) => assert_eq!(rule.warning().is_some(), is_odd, "{text}"),
                Err(faults) => {
                    let said = faults[0].problem.to_string();
                    assert!(said.ends_with("; choose from 100ms to 10s") && said.starts_with("timeout is "), "{said}");
                }
            }
        }
    }

    #[test]
    fn the_defaults_are_read_as_written() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(read(&text), Config::default());
    }
}
