//! The command line: what can be asked for, and what is printed.

use std::{
    env,
    fmt::Write as _,
    io::{self, IsTerminal},
    path::PathBuf,
};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Loaded, Overrides, Refused, Source, Upstreams},
    daemon, forward, server,
};

/// A fast split-horizon forwarding DNS resolver.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t)]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Resolve names until told to stop
    Run(Run),
    /// Name every fault in a configuration, or what it binds and routes
    Check {
        /// The configuration file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct Run {
    /// The configuration file [default: /etc/watershed/watershed.toml if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Listen here, by UDP and TCP, instead of on server.listen
    #[arg(long, value_name = "ADDR")]
    listen: Vec<server::ListenAddress>,
    /// Ask here for all names that no other rule claims, instead of where the rule for "." says
    #[arg(long, value_name = "ADDR")]
    upstream: Vec<forward::UpstreamUrl>,
    /// Read override zones from here instead of from zones.directory
    #[arg(long, value_name = "DIR")]
    zones: Option<PathBuf>,
    /// Read definitions of services, as in /etc/consul.d, from here instead of from catalog.files.directory
    #[arg(long, value_name = "DIR")]
    services: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum LogFormat {
    /// For people
    #[default]
    Text,
    /// An object per line
    Json,
}

impl Cli {
    /// Does what is asked for. Fails with [`Refused`] if arguments or files were.
    pub fn execute(self) -> Result<()> {
        match self.command {
            Command::Run(run) => {
                start_logging(self.log_format)?;
                daemon::run(run.source().load().map_err(Refused::new)?)
            }
            Command::Check { file } => {
                let loaded = Source { file: Some(file), ..Source::default() }.load().map_err(Refused::new)?;
                let faults = daemon::check(&loaded);
                if !faults.is_empty() {
                    return Err(Refused(faults).into());
                }
                print!("{}", summary(&loaded));
                Ok(())
            }
        }
    }
}

impl Run {
    fn source(self) -> Source {
        let overrides = Overrides {
            listen: self.listen.into_iter().map(|address| address.0).collect(),
            upstreams: self.upstream,
            zones: self.zones,
            services: self.services,
        };
        Source { file: self.config, overrides, ..Source::default() }
    }
}

/// Log lines go to the standard error stream. The journal has its own clock.
fn start_logging(format: LogFormat) -> Result<()> {
    let filter = match env::var(LOG_VARIABLE) {
        Err(env::VarError::NotPresent) => EnvFilter::new(LOG_FILTER),
        value => value.map_err(|error| error.to_string()).and_then(read_filter).map_err(|error| {
            Refused(vec![format!("{LOG_VARIABLE}: {error}; write a level such as debug, or watershed::forward=debug")])
        })?,
    };
    let is_terminal = io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal);
    match format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text if env::var_os("JOURNAL_STREAM").is_some() => log.with_target(false).without_time().init(),
        LogFormat::Text => log.with_target(false).init(),
    }
    Ok(())
}

fn read_filter(text: String) -> Result<EnvFilter, String> {
    EnvFilter::try_new(text).map_err(|error| error.to_string())
}

/// What would be bound and routed.
fn summary(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let mut out = String::new();
    let mut line = |what: &str, value: &str| writeln!(out, "{what:<8} {value}").expect("a string takes all");
    line("listen", &join(&config.server.listen));
    let server::Config { tls_listen, https_listen, quic_listen, .. } = &config.server;
    for (what, listen) in [("tls", tls_listen), ("https", https_listen), ("quic", quic_listen)] {
        if !listen.is_empty() {
            line(what, &join(listen));
        }
    }
    line("allow", &config.server.allow.to_string());
    line("control", &config.control.listen.map_or("off".into(), |address| format!("http://{address}")));
    for zone in &config.zone {
        line("zone", &format!("{} from {} ({})", zone.apex.get_ref(), zone.file.display(), lower(zone.mode)));
    }
    let hosts = config.zones.hosts.iter();
    for path in config.zones.directory.iter().chain(hosts) {
        line("zones", &path.display().to_string());
    }
    if let Some(files) = &config.catalog.files {
        line("catalog", &files.directory.display().to_string());
    }
    if let Some(agent) = &config.catalog.consul {
        line("catalog", &format!("agent {}", agent.address));
    }
    if let Some(address) = config.catalog.api.listen {
        line("api", &format!("http://{address}"));
    }
    for rule in &loaded.rules {
        let suffixes = join(rule.suffixes.iter().map(toml::Spanned::get_ref));
        let policy = if rule.upstreams.len() > 1 { format!(" ({})", lower(rule.policy)) } else { String::new() };
        line("forward", &format!("{suffixes} to {}{policy}", join(&rule.upstreams)));
    }
    for suffix in &loaded.refused {
        line("refuse", &suffix.to_string());
    }
    if let Upstreams::System(file) = &loaded.upstreams {
        line("", &format!("the upstreams of . are those of {}", file.display()));
    }
    if let Some(missing) = loaded.upstreams.missing() {
        line("warning", missing);
    }
    out
}

fn join(items: impl IntoIterator<Item: ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// A variant's name as the configuration spells it.
fn lower(variant: impl std::fmt::Debug) -> String {
    format!("{variant:?}").to_lowercase()
}

/// Hickory has a line for every query, and for every client that breaks off; h2 has one for every frame that a client should
/// not have sent, and so for as many as it likes.
const LOG_FILTER: &str = "info,hickory=error,h2=error,quinn=error";
/// Filters log lines.
const LOG_VARIABLE: &str = "WATERSHED_LOG";
const AFTER_HELP: &str = "WATERSHED_LOG filters the log: error, warn, info (default), debug, or watershed::ROOM=LEVEL.\n\
                          Exit codes: 0 done, 1 failed, 2 arguments or files refused.";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    #[test]
    fn the_definition_of_the_arguments_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_client_fills_the_log() {
        use tracing::{Level, enabled, subscriber::with_default};
        let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(LOG_FILTER)).with_writer(io::sink).finish();
        let shown = with_default(log, || {
            [
                enabled!(target: "watershed::server", Level::INFO),
                enabled!(target: "hickory_net::udp", Level::WARN),
                enabled!(target: "h2::proto::ping_pong", Level::WARN),
            ]
        });
        assert_eq!(shown, [true, false, false]);
    }

    #[test]
    fn arguments_are_read_into_final_types() {
        let line = "watershed run --config a.toml --listen 127.0.0.1 --listen [::1]:5300 --upstream tls://192.0.2.1 --zones z \
             --services s";
        let Command::Run(run) = Cli::parse_from(line.split(' ')).command else { panic!("run") };
        let source = run.source();
        assert_eq!(join(&source.overrides.listen), "127.0.0.1:53, [::1]:5300");
        assert_eq!(join(&source.overrides.upstreams), "tls://192.0.2.1:853#192.0.2.1");
        assert_eq!((source.file, source.overrides.zones), (Some("a.toml".into()), Some("z".into())));
        assert_eq!(source.overrides.services, Some("s".into()));
    }

    #[test]
    fn what_is_wrong_with_an_argument_is_said() {
        for (line, kind, message) in [
            ("run --listen localhost", ErrorKind::ValueValidation, "write IP, IP:PORT or [IPv6]:PORT"),
            ("run --upstream dns.example", ErrorKind::ValueValidation, "write an address such as 192.0.2.53"),
            ("run --liste 127.0.0.1", ErrorKind::UnknownArgument, "--listen"),
            ("check", ErrorKind::MissingRequiredArgument, "<FILE>"),
            ("serve", ErrorKind::InvalidSubcommand, "serve"),
        ] {
            let error = Cli::try_parse_from(["watershed"].into_iter().chain(line.split(' '))).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{line}");
            assert!(error.to_string().contains(message), "{line}: {error}");
        }
    }

    #[test]
    fn check_tells_what_would_be_bound_and_routed() {
        let source = Source { file: Some("examples/watershed.toml".into()), ..Source::default() };
        assert_eq!(
            summary(&source.load().unwrap()),
            "listen   127.0.0.1:53, [::1]:53\n\
             allow    loopback, 10.20.0.0/16\n\
             control  http://127.0.0.1:8653\n\
             zones    /etc/watershed/zones\n\
             zones    /etc/hosts\n\
             forward  . to 10.20.0.53:53, 10.20.1.53:53 (ordered)\n\
             forward  consul. to 127.0.0.1:8600\n\
             forward  corp.example., 20.10.in-addr.arpa. to 10.20.0.10:53, 10.20.0.11:53 (fastest)\n\
             refuse   telemetry.vendor.example.\n"
        );
    }

    #[test]
    fn check_refuses_a_faulty_file_with_all_its_faults() {
        let file = "tests/fixtures/config/suffix_claimed_twice.toml";
        let error = Cli::parse_from(["watershed", "check", file]).execute().unwrap_err();
        assert_eq!(error.downcast_ref::<Refused>().map(|refused| refused.0.len()), Some(2));
    }
}
