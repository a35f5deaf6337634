//! The log: which events are written, and how a line looks.
//!
//! Lines go to the standard error stream. Where that is the journal, each begins with its priority as in sd-daemon(3), and has
//! no time, because the journal has its own. Control characters in what an event says are escaped: much of it was chosen by
//! others.

use std::{
    env,
    fmt::{self, Write as _},
    fs::File,
    io::{self, IsTerminal, Write as _},
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use clap::ValueEnum;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{DefaultFields, Format, JsonFields, Writer},
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

use crate::escape::{Escaper, escape};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// An object per line
    Json,
}

/// Starts the log. An error says what is wrong with the filter; the log has the default filter then.
pub fn start(format: LogFormat) -> Result<(), String> {
    let (filter, outcome) = match filter_of_environment() {
        Ok(filter) => (filter, Ok(())),
        Err(error) => (DEFAULT_FILTER.to_owned(), Err(error)),
    };
    let is_journal = is_journal();
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // A log that has been started before stays as it is; only tests do that.
    let _ = match format {
        LogFormat::Json => {
            let json = Format::default().json().flatten_event(true);
            log.fmt_fields(JsonFields::new()).event_format(Prioritized { is_journal, inner: json }).try_init()
        }
        LogFormat::Text => {
            log.event_format(Prioritized { is_journal, inner: Text { has_time: !is_journal } }).try_init()
        }
    };
    outcome
}

/// Writes why the program ends: plain lines for people, and objects where the log consists of them.
pub fn refuse(format: LogFormat, lines: &[String]) {
    let is_journal = is_journal();
    let mut out = String::new();
    for line in lines {
        if is_journal {
            out.push_str(priority(Level::ERROR));
        }
        let _ = match format {
            LogFormat::Text => writeln!(out, "{}", escape(line)),
            LogFormat::Json => writeln!(out, "{}", object(line)),
        };
    }
    // If nobody can be told, the exit code remains.
    let _ = io::stderr().write_all(out.as_bytes());
}

/// An error as the log would have it.
fn object(error: &str) -> String {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    serde_json::json!({ "timestamp": time, "level": "ERROR", "message": "not started", "error": error }).to_string()
}

/// Puts the priority in front of a line where the journal reads it.
struct Prioritized<F> {
    is_journal: bool,
    inner: F,
}

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        if self.is_journal {
            out.write_str(priority(*event.metadata().level()))?;
        }
        self.inner.format_event(context, out, event)
    }
}

/// A line for people: time, level, message, fields.
struct Text {
    has_time: bool,
}

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        let has_colors = out.has_ansi_escapes();
        if self.has_time {
            out.write_str(if has_colors { "\x1b[2m" } else { "" })?;
            SystemTime.format_time(&mut out)?;
            out.write_str(if has_colors { "\x1b[0m " } else { " " })?;
        }
        match has_colors {
            true => write!(out, "\x1b[{}m{level:>5}\x1b[0m ", color(level))?,
            false => write!(out, "{level:>5} ")?,
        }
        let mut fields = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut fields), event)?;
        Escaper(&mut out).write_str(&fields)?;
        writeln!(out)
    }
}

/// The prefix of sd-daemon(3).
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

fn color(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        _ => 35,
    }
}

/// Whether the standard error stream is the one that the service manager has connected with the journal (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    let metadata = io::stderr().as_fd().try_clone_to_owned().and_then(|stream| File::from(stream).metadata());
    metadata.is_ok_and(|metadata| stream == format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// The filter to use; an error is one line.
fn filter_of_environment() -> Result<String, String> {
    match env::var(VARIABLE) {
        Err(env::VarError::NotPresent) => Ok(DEFAULT_FILTER.to_owned()),
        Err(error) => Err(format!("{VARIABLE}: {error}; {REMEDY}")),
        Ok(text) => read_filter(&text).map_err(|error| format!("{VARIABLE}: {error}; {REMEDY}")),
    }
}

/// Reads a filter. What it does not mention stays at the default.
fn read_filter(text: &str) -> Result<String, String> {
    let mut filter = DEFAULT_FILTER.to_owned();
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let (target, level) = match directive.split_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, directive),
        };
        if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
            return Err(format!("{level:?} is not a level"));
        }
        if let Some(target) = target {
            let is_path = target.split("::").all(|part| {
                !part.is_empty() && part.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'_')
            });
            if !is_path {
                return Err(format!("{target:?} is not the name of a module"));
            }
            let module = target.strip_prefix("watershed").map(|rest| rest.split("::").nth(1).unwrap_or_default());
            if module.is_some_and(|module| !module.is_empty() && !MODULES.contains(&module)) {
                return Err(format!("{target:?} is none of our modules, which are {}", MODULES.join(", ")));
            }
        }
        // A later directive for the same target replaces an earlier one.
        let target = target.map(|target| format!("{target}=")).unwrap_or_default();
        let _ = write!(filter, ",{target}{}", level.to_ascii_lowercase());
    }
    Ok(filter)
}

/// Hickory has a line for every query, and for every client that breaks off; h2 has one for every frame that a client should
/// not have sent, and so for as many as it likes.
const DEFAULT_FILTER: &str = "info,hickory=error,h2=error,quinn=error";
/// Filters log lines.
const VARIABLE: &str = "WATERSHED_LOG";
const REMEDY: &str =
    "write off, error, warn, info, debug or trace, or watershed::MODULE=LEVEL, or several with commas between";
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// The modules that have something to say.
const MODULES: [&str; 10] =
    ["cache", "catalog", "cli", "config", "control", "daemon", "forward", "resolve", "server", "zone"];

#[cfg(test)]
mod tests {
    use tracing::{enabled, subscriber::with_default};

    use super::*;

    #[test]
    fn no_client_fills_the_log() {
        for (text, expected) in [
            ("", [true, false, false, false]),
            ("debug", [true, true, false, false]),
            ("watershed::server=debug", [true, true, false, false]),
            ("hickory_net=warn", [true, false, true, false]),
            ("WARN", [false, false, false, false]),
        ] {
            let filter = EnvFilter::new(read_filter(text).unwrap());
            let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::sink).finish();
            let shown = with_default(log, || {
                [
                    enabled!(target: "watershed::server", Level::INFO),
                    enabled!(target: "watershed::server", Level::DEBUG),
                    enabled!(target: "hickory_net::udp", Level::WARN),
                    enabled!(target: "h2::proto::ping_pong", Level::WARN),
                ]
            });
            assert_eq!(shown, expected, "{text:?}");
        }
    }

    #[test]
    fn a_filter_that_would_silence_the_log_by_mistake_is_refused() {
        for text in [
            "warning",
            "debgu",
            "watershed",
            "watershed=verbose",
            "watershed::forwrd=debug",
            "=info",
            "a b=info",
            "[x]=info",
        ] {
            assert!(read_filter(text).is_err(), "{text}");
        }
        for text in [
            "off",
            "Debug",
            "info,watershed::forward=debug",
            "watershed=warn",
            " warn , h2=trace ,",
            "tokio::net=debug",
        ] {
            assert!(read_filter(text).is_ok_and(|filter| EnvFilter::try_new(filter).is_ok()), "{text}");
        }
    }
}
