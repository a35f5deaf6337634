//! The command line: what can be asked for, and what is printed.

mod log;
mod summary;

use std::{
    env,
    ffi::OsString,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::{
    config::{Overrides, Refused, Source},
    daemon::{self, Unreadable},
    forward, server,
    sys::User,
};
use log::LogFormat;

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
    /// Name every fault in a configuration, or what it binds, serves and routes
    Check(Check),
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

#[derive(Debug, Args)]
struct Check {
    /// The configuration file [default: what `run` would read]
    #[arg(conflicts_with = "config")]
    file: Option<PathBuf>,
    /// Judge as this user, by name or number: files that only others can read are faults. Needs root
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    #[command(flatten)]
    run: Run,
}

/// Does what the arguments ask for, and says how it went.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        // Help is no error, and is for people.
        Err(error) if error.exit_code() == 0 || !asks_for_json(&arguments) => error.exit(),
        Err(error) => {
            let text = error.to_string();
            log::refuse(LogFormat::Json, &[text.lines().next().unwrap_or_default().to_owned()]);
            return ExitCode::from(REFUSED);
        }
    };
    let format = cli.log_format;
    match cli.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let refused = error.downcast_ref::<Refused>();
            let lines = match refused {
                Some(Refused(faults)) => faults.clone(),
                None => vec![format!("watershed: {error:#}")],
            };
            log::refuse(format, &lines);
            ExitCode::from(if refused.is_some() { REFUSED } else { FAILED })
        }
    }
}

/// Whether arguments that cannot be read ask for a log of objects.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let is_pair = |pair: &[OsString]| pair[0] == "--log-format" && pair[1] == "json";
    arguments.iter().any(|argument| argument == "--log-format=json") || arguments.windows(2).any(is_pair)
}

impl Cli {
    /// Does what is asked for. Fails with [`Refused`] if arguments or files were.
    pub fn execute(self) -> Result<()> {
        match self.command {
            Command::Run(run) => {
                log::start(self.log_format).map_err(|error| Refused(vec![error]))?;
                tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");
                daemon::run(run.source().load().map_err(Refused::new)?)
            }
            Command::Check(check) => check.execute(),
        }
    }
}

impl Check {
    fn execute(self) -> Result<()> {
        let mut notes = Vec::new();
        let unreadable = match &self.user {
            Some(name) => {
                notes.extend(become_user(name)?);
                Unreadable::Fault
            }
            None => Unreadable::AsRun,
        };
        let mut source = self.run.source();
        source.file = self.file.or(source.file);
        let refuse = |mut faults: Vec<String>| {
            faults.extend(notes.iter().map(|note| format!("note: {note}")));
            Refused(faults)
        };
        let loaded = source.load().map_err(|faults| refuse(Refused::new(faults).0))?;
        let mut report = daemon::check(&loaded, unreadable);
        if !report.faults.is_empty() {
            let warnings = report.warnings.iter().map(|warning| format!("warning: {warning}"));
            report.faults.extend(warnings);
            return Err(refuse(report.faults).into());
        }
        let mut out = summary::summary(&loaded, &report);
        notes.iter().for_each(|note| out.push_str(&format!("note     {}\n", crate::escape::escape(note))));
        // Whoever has closed the output has read enough.
        let _ = io::stdout().write_all(out.as_bytes());
        Ok(())
    }
}

/// Goes on as this user. A name without an account, as `DynamicUser=` has, stands for a user who owns nothing; that is said.
fn become_user(name: &str) -> Result<Option<String>> {
    let found = User::find(name).with_context(|| format!("cannot look up user {name:?}"))?;
    let note = match (&found, name.parse::<u32>()) {
        (Some(_), _) => None,
        (None, Ok(_)) => Some(format!("no account has the user id {name}; judged as that user without other groups")),
        (None, Err(_)) => Some(format!(
            "user {name:?} has no account, as with DynamicUser=; judged as an unprivileged user who owns no file and is in no \
             group; pass secrets to the unit by LoadCredential="
        )),
    };
    let user = found.unwrap_or_else(|| User::without_account(name.parse().unwrap_or(NO_ACCOUNT)));
    if !user.is_current() {
        user.become_for_good()
            .map_err(|error| Refused(vec![format!("cannot judge as user {name:?}: {error}; run the check as root")]))?;
    }
    Ok(note)
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

/// Arguments or files were refused.
const REFUSED: u8 = 2;
const FAILED: u8 = 1;
/// The first id that systemd gives to a unit with `DynamicUser=`; no file of this host belongs to it while no unit has it.
const NO_ACCOUNT: u32 = 61_184;
const AFTER_HELP: &str = "WATERSHED_LOG filters the log: off, error, warn, info (default), debug, trace, or \
                          watershed::MODULE=LEVEL, or several with commas between.\n\
                          Signals: SIGHUP reloads, SIGUSR1 logs statistics, SIGUSR2 hands over to a new process, SIGTERM stops.\n\
                          Exit codes: 0 done, 1 failed, 2 arguments or configuration refused.";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    #[test]
    fn the_definition_of_the_arguments_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_are_read_into_final_types() {
        let line = "watershed run --config a.toml --listen 127.0.0.1 --listen [::1]:5300 --upstream tls://192.0.2.1 --zones z \
             --services s";
        let Command::Run(run) = Cli::parse_from(line.split(' ')).command else { panic!("run") };
        let source = run.source();
        assert_eq!(summary::join(&source.overrides.listen), "127.0.0.1:53, [::1]:5300");
        assert_eq!(summary::join(&source.overrides.upstreams), "tls://192.0.2.1:853#192.0.2.1");
        assert_eq!((source.file, source.overrides.zones), (Some("a.toml".into()), Some("z".into())));
        assert_eq!(source.overrides.services, Some("s".into()));
    }

    #[test]
    fn what_is_wrong_with_an_argument_is_said() {
        for (line, kind, message) in [
            ("run --listen localhost", ErrorKind::ValueValidation, "write IP, IP:PORT or [IPv6]:PORT"),
            ("run --upstream dns.example", ErrorKind::ValueValidation, "write an address such as 192.0.2.53"),
            ("run --liste 127.0.0.1", ErrorKind::UnknownArgument, "--listen"),
            ("check a.toml --config b.toml", ErrorKind::ArgumentConflict, "--config"),
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
        let report = daemon::Report {
            services: vec![daemon::ServiceSummary {
                name: "web\n".into(),
                instances: 2,
                checks: 1,
                policy: "one".into(),
            }],
            warnings: vec!["odd".into()],
            ..daemon::Report::default()
        };
        assert_eq!(
            summary::summary(&source.load().unwrap(), &report),
            "listen   127.0.0.1:53, [::1]:53\n\
             allow    loopback, 10.20.0.0/16\n\
             control  http://127.0.0.1:8653\n\
             zones    /etc/watershed/zones\n\
             service  web\\n: 2 instances, 1 check, policy one\n\
             forward  . to 10.20.0.53:53, 10.20.1.53:53 (ordered)\n\
             forward  consul. to 127.0.0.1:8600\n\
             forward  corp.example., 20.10.in-addr.arpa. to 10.20.0.10:53, 10.20.0.11:53 (fastest)\n\
             refuse   telemetry.vendor.example.\n\
             warning  odd\n"
        );
    }

    #[test]
    fn check_refuses_a_faulty_file_with_all_its_faults() {
        let file = "tests/fixtures/config/suffix_claimed_twice.toml";
        let error = Cli::parse_from(["watershed", "check", file]).execute().unwrap_err();
        assert_eq!(error.downcast_ref::<Refused>().map(|refused| refused.0.len()), Some(2));
    }
}
