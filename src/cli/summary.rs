//! What `check` prints of a configuration that is good: what would be bound, served and asked.

use std::fmt::Write as _;

use crate::{
    config::{Kept, Loaded, Upstreams},
    daemon::Report,
    escape::escape,
    server, zone,
};

/// A line for each thing.
pub fn summary(loaded: &Loaded, report: &Report) -> String {
    let config = &loaded.config;
    let mut out = String::new();
    // Names of files and services are chosen by others.
    let mut line = |what: &str, value: &str| writeln!(out, "{what:<8} {}", escape(value)).expect("a string takes all");
    line("listen", &join(&config.server.listen));
    let server::Config { tls_listen, https_listen, quic_listen, .. } = &config.server;
    for (what, listen) in [("tls", tls_listen), ("https", https_listen), ("quic", quic_listen)] {
        if !listen.is_empty() {
            line(what, &join(listen));
        }
    }
    line("allow", &config.server.allow.to_string());
    line("control", &config.control.listen.map_or("off".into(), |address| format!("http://{address}")));
    line("zones", &config.zones.directory().display().to_string());
    for zone::Summary { source, records, is_hosts } in &report.zones {
        let file = source.path.display();
        match (is_hosts, source.mode) {
            (true, _) => line("hosts", &format!("{file} ({})", count(*records, "name"))),
            (false, zone::Mode::Zone) => {
                line("zone", &format!("{} from {file} ({})", source.apex, count(*records, "record")))
            }
            (false, zone::Mode::Overlay) => {
                line("overlay", &format!("{} from {file} ({})", source.apex, count(*records, "record")));
            }
        }
    }
    if let Some(files) = &config.catalog.files {
        line("catalog", &files.directory.display().to_string());
    }
    if let Some(agent) = &config.catalog.consul {
        line("catalog", &format!("agent {}", agent.address));
    }
    if config.catalog.api.enable_registration {
        line("catalog", "registrations over the API");
    }
    for service in &report.services {
        let (instances, checks) = (count(service.instances, "instance"), count(service.checks, "check"));
        line("service", &format!("{}: {instances}, {checks}, policy {}", service.name, service.policy));
    }
    if let Some(address) = config.catalog.api.listen {
        line("api", &format!("http://{address}"));
    }
    for rule in &loaded.rules {
        let suffixes = join(rule.suffixes.iter().map(toml::Spanned::get_ref));
        let policy = if rule.upstreams.len() > 1 { format!(" ({})", lower(rule.policy)) } else { String::new() };
        line("forward", &format!("{suffixes} to {}{policy}", join(&rule.upstreams)));
    }
    let is_whole = |zone: &&zone::Summary| !zone.is_hosts && zone.source.mode == zone::Mode::Zone;
    let zones = report.zones.iter().filter(is_whole).map(|zone| zone.source.apex.clone());
    for Kept { rule, is_configured, names } in loaded.kept_special_names(zones) {
        let cause = if is_configured { "is set" } else { "is on: all its upstreams are public" };
        line(
            "block",
            &format!("{} are answered here, not by the rule for {rule} (block_special {cause})", names.join(", ")),
        );
    }
    for suffix in &loaded.refused {
        line("refuse", &suffix.to_string());
    }
    if let Upstreams::System { file, .. } = &loaded.upstreams {
        line("", &format!("the upstreams of . are those of {}", file.display()));
    }
    for warning in &report.warnings {
        line("warning", warning);
    }
    out
}

pub(super) fn join(items: impl IntoIterator<Item: ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// "1 record", "2 records".
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// A variant's name as the configuration spells it.
fn lower(variant: impl std::fmt::Debug) -> String {
    format!("{variant:?}").to_lowercase()
}
