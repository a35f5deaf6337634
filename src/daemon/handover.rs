//! From one process to the next without a gap (SIGUSR2): for a new binary, or what only a restart takes in.
//!
//! The running process starts its successor, from the path by which it was started itself, and passes it every socket. It
//! serves on until the successor does; then it replies to those who wait and ends. A successor that does not come up changes
//! nothing: so a faulty binary or configuration costs no query. The two talk over the successor's standard input.
//!
//! A successor that can take over what the catalog has found out asks for it when it needs it. So either of the two may be an
//! older version: a predecessor says in the variable whether it can be asked, and a successor need not ask.

use std::{
    env, io,
    os::fd::{AsFd, OwnedFd},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::sys;

/// A process that serves on the same sockets.
pub(super) struct Successor {
    process: Child,
    channel: OwnedFd,
}

/// The process that this one follows.
pub(super) struct Predecessor {
    channel: OwnedFd,
    /// Whether it can be asked for what its catalog has found out.
    has_estate: bool,
}

/// Makes what a successor is to know of the catalog, when it asks.
type Estate = Box<dyn FnMut() -> Result<Vec<u8>, String> + Send>;

impl Successor {
    /// Starts it, passes it the sockets with their names and, when it asks, the estate, and waits until it serves. Blocks.
    pub fn start(sockets: Vec<(String, OwnedFd)>, estate: Option<Estate>) -> Result<Self> {
        // With the first process of a PID namespace, all others are killed (pid_namespaces(7)).
        ensure!(std::process::id() != 1, "this process is number 1 of a container, which ends with it; restart that");
        let (channel, theirs) = sys::message_pair().context("cannot open a channel to the new process")?;
        let mut arguments = env::args_os();
        // Not `/proc/self/exe`: that is the old binary, also when a new one stands in its place.
        let program = arguments.next().context("the path of the program is not known")?;
        let mut command = Command::new(&program);
        command.args(arguments).stdin(theirs).env(VARIABLE, HAS_ESTATE);
        // They speak of this process alone. A watchdog without a process is everybody's.
        for variable in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(variable);
        }
        let process = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
        // Its end of the channel must be its alone, or its death would go unnoticed.
        drop(command);
        let mut successor = Self { process, channel };
        let outcome = successor.introduce(sockets, estate);
        if outcome.is_err() {
            let _ = successor.process.kill();
            let _ = successor.process.wait();
        }
        outcome.map(|()| successor)
    }

    fn introduce(&mut self, sockets: Vec<(String, OwnedFd)>, mut estate: Option<Estate>) -> Result<()> {
        sys::set_message_timeout(&self.channel, START_PATIENCE).context("cannot set up a channel")?;
        for (name, socket) in &sockets {
            let sent = sys::send_message(&self.channel, name.as_bytes(), Some(socket));
            sent.context("the new process does not take the sockets; it has said why")?;
        }
        self.say(END)?;
        let mut said = sys::receive_message(&self.channel);
        if matches!(&said, Ok(Some((text, _))) if text == ESTATE) {
            let text = estate.as_mut().map_or(Ok(Vec::new()), |estate| estate());
            let text = text.inspect_err(|error| tracing::warn!(error, "state of the catalog not passed on"));
            self.pass_on(&text.unwrap_or_default())?;
            said = sys::receive_message(&self.channel);
        }
        match said {
            Ok(Some((text, _))) if text == READY => Ok(()),
            Ok(Some(_)) => bail!("the new process does not speak as we do"),
            Ok(None) => bail!("the new process has ended; it has said why"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                bail!("the new process does not serve after {START_PATIENCE:?}")
            }
            Err(error) => Err(error).context("cannot hear the new process"),
        }
    }

    /// Sends a text: its length, and then as many messages as it takes.
    fn pass_on(&self, text: &[u8]) -> Result<()> {
        self.say(format!("{} bytes", text.len()).as_bytes())?;
        text.chunks(sys::MOST_MESSAGE_BYTES).try_for_each(|chunk| self.say(chunk))
    }

    /// Its number.
    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    /// Lets it speak to the service manager: it is the main process now. If it `is_outdated`, it has to reload first of all.
    pub fn release(self, is_outdated: bool) {
        // If it has ended meanwhile, whoever supervises it sees that.
        let _ = self.say(RELEASED);
        if is_outdated && let Some(process) = i32::try_from(self.process_id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(process, Signal::HUP);
        }
    }

    fn say(&self, text: &[u8]) -> Result<()> {
        sys::send_message(&self.channel, text, None::<OwnedFd>).context("the new process does not listen")
    }
}

impl Predecessor {
    /// The process that has started this one to be followed by it, if one has.
    pub fn find() -> io::Result<Option<Self>> {
        let Some(said) = env::var_os(VARIABLE) else { return Ok(None) };
        let channel = io::stdin().as_fd().try_clone_to_owned()?;
        sys::set_message_timeout(&channel, PATIENCE)?;
        Ok(Some(Self { channel, has_estate: said == HAS_ESTATE }))
    }

    /// Its sockets, with their names.
    pub fn sockets(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut sockets = Vec::new();
        loop {
            match sys::receive_message(&self.channel)? {
                Some((name, Some(socket))) => sockets.push((String::from_utf8_lossy(&name).into_owned(), socket)),
                Some((text, None)) if text == END => return Ok(sockets),
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// What its catalog has found out by now; nothing if it has no catalog, or is of a version that passes nothing on. To be
    /// asked once, after the sockets. Blocks.
    pub fn estate(&self) -> Option<Vec<u8>> {
        if !self.has_estate {
            return None;
        }
        let ask = || -> io::Result<Option<Vec<u8>>> {
            sys::send_message(&self.channel, ESTATE, None::<OwnedFd>)?;
            let hear = || -> io::Result<Vec<u8>> {
                let said = sys::receive_message(&self.channel)?;
                said.map(|(text, _)| text).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            };
            let said = String::from_utf8_lossy(&hear()?).into_owned();
            let length = said.strip_suffix(" bytes").and_then(|length| length.parse::<usize>().ok());
            let length = length.ok_or(io::ErrorKind::InvalidData)?;
            let mut text = Vec::new();
            while text.len() < length {
                text.append(&mut hear()?);
            }
            Ok(Some(text).filter(|text| !text.is_empty()))
        };
        let asked = ask();
        asked.inspect_err(|error| tracing::warn!(%error, "the predecessor does not pass its state on")).ok().flatten()
    }

    /// Tells it that this process serves, and waits until it has told the service manager. Blocks.
    ///
    /// A predecessor that ends before that was told to stop, and this process is not to serve on alone.
    pub fn succeed(self) -> Result<()> {
        sys::send_message(&self.channel, READY, None::<OwnedFd>).context("the process that ran has ended")?;
        match sys::receive_message(&self.channel) {
            Ok(Some((text, _))) if text == RELEASED => Ok(()),
            Err(error) => Err(error).context("the process that runs does not let go"),
            Ok(_) => bail!("the process that ran has ended before it handed over"),
        }
    }
}

/// Set for a process that is to follow another; "1" by versions that pass on the sockets alone.
const VARIABLE: &str = "WATERSHED_HAND_OVER";
/// The value of the variable if the predecessor can be asked for its estate.
const HAS_ESTATE: &str = "2";
/// The successor asks for the estate, and the predecessor passes it on.
const ESTATE: &[u8] = b"estate";
/// There are no more sockets.
const END: &[u8] = b"end";
/// The successor serves.
const READY: &[u8] = b"ready";
/// The predecessor takes in nothing any more.
const RELEASED: &[u8] = b"released";
/// How long a process may take to start: it has zones and definition files to read.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long the predecessor may take for a message: it may have files to read first.
const PATIENCE: Duration = Duration::from_secs(60);
