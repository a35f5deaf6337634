//! A service manager as far as sockets go: it hears what the daemon notifies, and keeps the descriptors that it stores. As with
//! `NotifyAccess=main`, only the main process is heard: the first that speaks, until it names another.

use std::{
    fs::File,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net::UnixDatagram, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};

use super::{Daemon, PATIENCE, Setup, wait_until};

/// It listens until the test ends.
pub struct Manager {
    path: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    main_process: Option<i32>,
    /// Name and descriptor, each socket once.
    stored: Vec<(String, OwnedFd)>,
    messages: Vec<String>,
}

impl Manager {
    /// A manager whose socket lies in this folder.
    pub fn new(folder: &Path) -> Self {
        let path = folder.join("manager");
        let socket = UnixDatagram::bind(&path).unwrap();
        sockopt::set_socket_passcred(&socket, true).unwrap();
        let state = Arc::<Mutex<State>>::default();
        thread::spawn({
            let state = state.clone();
            move || {
                while let Some((text, descriptor, process)) = receive(&socket) {
                    state.lock().unwrap().hear(text, descriptor, process);
                }
            }
        });
        Self { path, state }
    }

    /// Starts the daemon, with the descriptors that are stored.
    pub fn start(&self, setup: Setup) -> Daemon {
        let setup = setup.env("NOTIFY_SOCKET", &self.path.display().to_string());
        self.state.lock().unwrap().main_process = None;
        setup.start_with(|daemon| {
            let stored: Vec<(String, OwnedFd)> = {
                let state = self.state.lock().unwrap();
                // Above all that the child is given, lest one takes the place of another before that is passed on.
                let moved = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 500).unwrap();
                state.stored.iter().map(|(name, fd)| (name.clone(), moved(fd))).collect()
            };
            let names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
            let mut command = Command::new("sh");
            command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]);
            command.arg(daemon.get_program()).args(daemon.get_args());
            command.current_dir(daemon.get_current_dir().unwrap());
            for (name, value) in daemon.get_envs() {
                match value {
                    Some(value) => command.env(name, value),
                    None => command.env_remove(name),
                };
            }
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
            let pass_on = move || {
                for (number, (_, fd)) in stored.iter().enumerate() {
                    let mut place = ManuallyOwned::at(3 + number as i32);
                    rustix::io::dup2(fd, &mut place.0)?;
                }
                Ok(())
            };
            // SAFETY: between fork and exec it only calls dup2, which is safe to call there.
            unsafe { command.pre_exec(pass_on) };
            command
        })
    }

    /// The names of what is stored, sorted.
    pub fn stored(&self) -> Vec<String> {
        let mut names: Vec<_> = self.state.lock().unwrap().stored.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    /// Waits until so many descriptors are stored.
    #[track_caller]
    pub fn wait_for_stored(&self, count: usize) {
        wait_until("descriptors to be stored", PATIENCE, || (self.stored().len() == count).then_some(()));
    }

    /// Where it hears.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there was a message with this line.
    pub fn has_heard(&self, line: &str) -> bool {
        self.state.lock().unwrap().messages.iter().any(|text| text.lines().any(|heard| heard == line))
    }

    /// Waits for a message with this line.
    #[track_caller]
    pub fn wait_for(&self, line: &str) {
        wait_until(line, PATIENCE, || self.has_heard(line).then_some(()));
    }
}

impl State {
    fn hear(&mut self, text: String, descriptor: Option<OwnedFd>, process: i32) {
        if *self.main_process.get_or_insert(process) != process {
            return;
        }
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        if let Some(main_process) = value("MAINPID=") {
            self.main_process = Some(main_process.parse().unwrap());
        }
        let name = value("FDNAME=").unwrap_or_else(|| "stored".to_owned());
        if value("FDSTORE=").is_some()
            && let Some(descriptor) = descriptor
        {
            let inode = |fd: &OwnedFd| File::from(fd.try_clone().unwrap()).metadata().unwrap().ino();
            if !self.stored.iter().any(|(_, known)| inode(known) == inode(&descriptor)) {
                self.stored.push((name, descriptor));
            }
        } else if value("FDSTOREREMOVE=").is_some() {
            self.stored.retain(|(known, _)| *known != name);
        }
        self.messages.push(text);
    }
}

/// A descriptor's number as the target of dup2, which nobody closes.
struct ManuallyOwned(std::mem::ManuallyDrop<OwnedFd>);

impl ManuallyOwned {
    fn at(number: i32) -> Self {
        // SAFETY: dup2 makes it open, and it is never dropped.
        Self(std::mem::ManuallyDrop::new(unsafe { std::os::fd::FromRawFd::from_raw_fd(number) }))
    }
}

/// A message, the descriptor that it brings, and the process that has sent it.
fn receive(socket: &UnixDatagram) -> Option<(String, Option<OwnedFd>, i32)> {
    let mut text = vec![0; 4096];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut room);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    text.truncate(received.bytes);
    let (mut descriptor, mut process) = (None, None);
    for message in control.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(mut fds) => descriptor = fds.next(),
            RecvAncillaryMessage::ScmCredentials(sender) => process = Some(sender.pid.as_raw_nonzero().get()),
            _ => {}
        }
    }
    Some((String::from_utf8_lossy(&text).into_owned(), descriptor, process?))
}
