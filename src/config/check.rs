//! What no room can check alone, and the lines of what the rooms find.

use std::collections::HashMap;

use toml::Spanned;

use super::{
    CONSUL, Config, Fault, Problem, Source,
    document::{Document, UNWRITTEN},
    read_suffixes,
};
use crate::{
    cache, catalog,
    endpoint::Endpoint,
    forward,
    location::Location,
    server,
    wire::{self, Name, SuffixError, Suffixes},
    zone,
};

/// A document under examination and all that has been found wrong with it.
pub struct Check<'a> {
    pub document: Document<'a>,
    pub faults: Vec<Fault>,
}

impl Check<'_> {
    /// What the rooms say of their sections.
    pub fn sections(&mut self, config: &Config) {
        for problem in config.server.problems() {
            self.report(self.document.locate_key("server", 0, problem.key()), Problem::Server(problem));
        }
        for problem in config.cache.problems() {
            let key = match problem {
                cache::Problem::OutOfRange { key, .. } => key,
                cache::Problem::Crossed => "min_ttl",
            };
            self.report(self.document.locate_key("cache", 0, key), Problem::Cache(problem));
        }
        for problem in config.limits.problems() {
            self.report(self.document.locate_key("limits", 0, problem.key), Problem::Limits(problem));
        }
        for problem in config.control.problems() {
            self.report(self.document.locate_key("control", 0, problem.key), Problem::Limits(problem));
        }
        if let Some(problem) = config.zones.problem() {
            self.report(self.document.locate_key("zones", 0, "max_file_bytes"), Problem::Zones(problem));
        }
        for problem in config.catalog.problems() {
            self.report(self.document.locate_key("catalog", 0, problem.key()), Problem::Catalog(problem));
        }
        for (index, rule) in config.forward.iter().enumerate() {
            for forward::Fault { span, problem } in rule.rule().err().unwrap_or_default() {
                let key = match problem {
                    // Suffixes are read across all rules, in `names`.
                    forward::Problem::Suffix { .. } | forward::Problem::SuffixTwice(_) => continue,
                    forward::Problem::NoSuffixes => "suffixes",
                    forward::Problem::NoUpstreams => "upstreams",
                    forward::Problem::TooLong { key, .. } => key,
                    forward::Problem::Timeout(_) => "timeout",
                    _ => "",
                };
                // What is gone for its own fault is not missing.
                if self.document.has_lost("forward", index, key) {
                    continue;
                }
                let location = match span {
                    Some(span) if key.is_empty() => self.document.locate(&span),
                    _ => self.document.locate_key("forward", index, key),
                };
                self.report(location, Problem::Forward(problem));
            }
        }
        for host in config.control.faulty_hosts() {
            self.report(self.document.locate(&host.span()), Problem::NotAHost(host.get_ref().clone()));
        }
        for (index, rule) in config.refuse.iter().enumerate() {
            if rule.suffixes.is_empty() && !self.document.has_lost("refuse", index, "suffixes") {
                self.report(self.document.locate_key("refuse", index, "suffixes"), Problem::NoSuffixes);
            }
        }
    }

    /// Each suffix is claimed by one rule, each apex by one zone. Overlays may share an apex: they are asked in turn.
    pub fn names(&mut self, config: &Config) {
        let forwarded = config.forward.iter().flat_map(|rule| &rule.suffixes);
        let refused = config.refuse.iter().flat_map(|rule| &rule.suffixes);
        let suffixes = forwarded.chain(refused).map(|text| (text, Claim::Alone, Suffixes::read(text.get_ref())));
        self.claims(suffixes, "suffix");
        let apexes = config.zone.iter().map(|zone| {
            let claim = if zone.mode == zone::Mode::Zone { Claim::Alone } else { Claim::Shared };
            let names = wire::read_name(zone.apex.get_ref()).map(|name| Suffixes { names: vec![name], open_bits: 0 });
            (&zone.apex, claim, names)
        });
        self.claims(apexes, "apex");
    }

    /// What the catalog claims nobody else does: he would never be asked.
    pub fn domains(&mut self, config: &Config) {
        let zones = config.zone.iter().filter(|zone| zone.mode == zone::Mode::Zone).map(|zone| &zone.apex);
        for (key, domain) in catalog_domains(&config.catalog) {
            // While an agent that is followed is lost, somebody else may be asked.
            let forwards = config.forward.iter().filter(|_| config.catalog.consul.is_none());
            let suffixes = forwards.flat_map(|rule| &rule.suffixes);
            let suffixes = suffixes.chain(config.refuse.iter().flat_map(|rule| &rule.suffixes));
            let claims = suffixes.map(|text| ("suffix", text)).chain(zones.clone().map(|text| ("apex", text)));
            for (what, text) in claims.filter(|(_, text)| read_suffixes(text).contains(&domain)) {
                let location = self.document.locate(&text.span());
                self.report(location, Problem::Catalogued { what, name: domain.clone(), key });
            }
        }
    }

    fn claims<'b>(
        &mut self,
        claims: impl Iterator<Item = (&'b Spanned<String>, Claim, Result<Suffixes, SuffixError>)>,
        what: &'static str,
    ) {
        // A network may contain another one that is claimed by itself.
        let mut known = HashMap::<(Name, u8), Location>::new();
        for (text, claim, names) in claims {
            let location = self.document.locate(&text.span());
            match names {
                Err(error) => self.report(location, Problem::NotAName { what, text: text.get_ref().clone(), error }),
                Ok(_) if claim == Claim::Shared => {}
                Ok(Suffixes { names, open_bits }) => {
                    // Of the zones of a network that is written twice, one says so.
                    for name in names {
                        if let Some(first) = known.get(&(name.clone(), open_bits)) {
                            let first = first.clone();
                            self.report(location, Problem::Twice { what, name, first });
                            break;
                        }
                        known.insert((name, open_bits), location.clone());
                    }
                }
            }
        }
    }

    /// No upstream leads back to ourselves. This is asked last, of what the command line and the system say too.
    pub fn addresses(&mut self, config: &Config, source: &Source) {
        let command_line = || Location::file(COMMAND_LINE);
        let overrides = &source.overrides;
        let server = &config.server;
        let listen_at = || match overrides.listen.is_empty() {
            true => self.document.locate_key("server", 0, "listen"),
            false => command_line(),
        };
        let mut found = Vec::new();
        if !overrides.listen.is_empty() {
            let problems = config.server.problems().into_iter().filter(|problem| problem.key() == "listen");
            found.extend(problems.map(|problem| (command_line(), Problem::Server(problem))));
        }
        let (control, api) = (&config.control, config.catalog.api.listen);
        let at = |section, key| self.document.locate_key(section, 0, key);
        let http = [
            ("control.listen", control.listen, at("control", "listen")),
            ("control.metrics_listen", control.metrics_listen, at("control", "metrics_listen")),
            ("catalog.api.listen", api, at("catalog", "api")),
        ];
        for (index, (key, address, location)) in http.iter().enumerate() {
            let Some(address) = address.filter(|address| address.port() != 0) else { continue };
            let other = http[..index].iter().find(|(_, taken, _)| *taken == Some(address));
            if is_taken(address, server) {
                found.push((location.clone(), Problem::ControlOnDns(address)));
            } else if let Some((other, ..)) = other {
                found.push((location.clone(), Problem::SameHttp { key, other, address }));
            }
        }
        for written in &config.forward {
            match written.rule() {
                // Those of the file are known already.
                Err(faults) => {
                    let faults = faults.into_iter().filter(|fault| fault.span == Some(UNWRITTEN));
                    found.extend(faults.map(|fault| (command_line(), Problem::Forward(fault.problem))));
                }
                Ok(rule) => {
                    for (url, text) in rule.upstreams.iter().zip(&written.upstreams) {
                        // Whatever is spoken at an address of ours, no other server is behind it.
                        let is_datagram = url.transport == forward::Transport::Udp;
                        let own = server.listeners().filter(|(service, _)| match service {
                            server::Service::Plain => true,
                            server::Service::Quic => is_datagram,
                            server::Service::Tls | server::Service::Https => !is_datagram,
                        });
                        let http = http.iter().filter_map(|(_, address, _)| address.filter(|_| !is_datagram));
                        let own: Vec<_> = own.map(|(_, address)| address).chain(http).collect();
                        let Some(listen) = source.system.is_us(url.address, &own) else { continue };
                        let location = match text.span() {
                            UNWRITTEN if overrides.upstreams.contains(url) => command_line(),
                            UNWRITTEN => listen_at(),
                            span => self.document.locate(&span),
                        };
                        found.push((location, Problem::Loop { upstream: url.to_string(), listen }));
                    }
                }
            }
        }
        found.into_iter().for_each(|(location, problem)| self.report(location, problem));
    }

    fn report(&mut self, location: Location, problem: Problem) {
        self.faults.push(Fault { location, problem });
    }
}

/// Whether a name is for one alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claim {
    Alone,
    Shared,
}

/// The names that the catalog claims, if there is one, each with the key that says so. Definition files may say otherwise
/// where the configuration says nothing; what they say is not known here.
pub fn catalog_domains(catalog: &catalog::Config) -> impl Iterator<Item = (&'static str, Name)> {
    let domain = catalog.domain.as_deref().unwrap_or(CONSUL);
    let domains = [("domain", Some(domain)), ("alt_domain", catalog.alt_domain.as_deref())];
    let domains = domains.into_iter().filter(|_| catalog.has_source());
    domains.filter_map(|(key, text)| Some((key, wire::read_name(text?).ok()?)))
}

/// Port 0 is whatever is free.
fn is_taken(address: Endpoint, server: &server::Config) -> bool {
    // That of QUIC is a port of UDP.
    let mut listeners = server.listeners().filter(|(service, _)| *service != server::Service::Quic);
    address.port() != 0 && listeners.any(|(_, taken)| taken == address)
}

/// What stands for the file in faults of what no file says.
const COMMAND_LINE: &str = "command line";
