//! The probe that runs a command, as Nagios plugins are run: exit code 0 is passing, 1 warning, all else critical.
//!
//! The command inherits our environment, without what the service manager has put into it for us, and leads a process
//! group of its own, which is killed as a whole when its time is up. It is over when the command is: what it has left
//! behind in the background may keep its output open for as long as it likes.

use std::{
    io::{self, PipeReader, Read},
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::Receiver,
    process::{Child, Command},
    time::timeout,
};

use crate::catalog::health::Status;

/// Runs a command to its end, or for as long as it may take.
pub(super) async fn run(command: &[String], limit: usize, patience: Duration) -> (Status, String) {
    match start(command) {
        Ok((group, pipe)) => finish(group, pipe, limit, patience).await,
        Err(error) => (Status::Critical, format!("run {}: {error}", command.first().map_or("", String::as_str))),
    }
}

async fn finish(mut group: Group, pipe: Pipe, limit: usize, patience: Duration) -> (Status, String) {
    let mut output = Tail::new(limit);
    let ended = timeout(patience, wait(&mut group, pipe, &mut output)).await;
    match ended {
        Ok(Ok(status)) => {
            let status = match status.code() {
                Some(0) => Status::Passing,
                Some(1) => Status::Warning,
                _ => Status::Critical,
            };
            (status, output.into_text())
        }
        Ok(Err(error)) => (Status::Critical, format!("wait for the command: {error}")),
        Err(_) => {
            let text = output.into_text();
            let gap = if text.is_empty() { "" } else { "\n\n" };
            (Status::Critical, format!("Timed out ({patience:?}) running check{gap}{text}"))
        }
    }
}

/// Reads while the command runs, lest it block; and what is left in the pipe once it has ended.
async fn wait(group: &mut Group, pipe: Pipe, output: &mut Tail) -> io::Result<ExitStatus> {
    let Pipe { mut stream, mut rest } = pipe;
    let mut buffer = [0; 4096];
    let status = loop {
        tokio::select! {
            status = group.leader.wait() => break status?,
            // At its end, nothing is left to do but wait.
            Ok(length @ 1..) = stream.read(&mut buffer) => output.push(&buffer[..length]),
        }
    };
    group.is_over = true;
    // No more than a pipe holds, lest somebody in the background fill it as fast as we read.
    for _ in 0..PIPE_BYTES / buffer.len() {
        let Ok(length @ 1..) = rest.read(&mut buffer) else { break };
        output.push(&buffer[..length]);
    }
    Ok(status)
}

fn start(command: &[String]) -> io::Result<(Group, Pipe)> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    for name in OURS {
        command.env_remove(name);
    }
    let leader = command.spawn()?;
    let rest = reader.try_clone()?;
    Ok((Group { leader, is_over: false }, Pipe { stream: Receiver::from_owned_fd(OwnedFd::from(reader))?, rest }))
}

/// One pipe, to be waited for and, without waiting, to be emptied: the former does not know yet what has come in last.
struct Pipe {
    stream: Receiver,
    rest: PipeReader,
}

/// A command with all that it has started. Dropped before it is over, it is killed.
struct Group {
    leader: Child,
    is_over: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        // As long as nobody has waited for the leader, the number is its own. tokio waits for what is dropped.
        let leader = self.leader.id().and_then(|id| Pid::from_raw(id.try_into().ok()?));
        if let (false, Some(leader)) = (self.is_over, leader) {
            // It fails if all are gone already.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// The end of an output, which is where commands say why they fail.
struct Tail {
    bytes: Vec<u8>,
    limit: usize,
    total: usize,
}

impl Tail {
    fn new(limit: usize) -> Self {
        Self { bytes: Vec::new(), limit, total: 0 }
    }

    fn push(&mut self, more: &[u8]) {
        self.total += more.len();
        self.bytes.extend_from_slice(more);
        if self.bytes.len() > 2 * self.limit {
            self.bytes.drain(..self.bytes.len() - self.limit);
        }
    }

    fn into_text(self) -> String {
        if self.total <= self.limit {
            return String::from_utf8_lossy(&self.bytes).into_owned();
        }
        let kept = &self.bytes[self.bytes.len() - self.limit..];
        // The first letter may have lost its beginning.
        let start = kept.iter().take(3).take_while(|&&byte| byte & 0xc0 == 0x80).count();
        let text = String::from_utf8_lossy(&kept[start..]);
        format!("Captured {} of {} bytes\n...\n{text}", kept.len() - start, self.total)
    }
}

const PIPE_BYTES: usize = 64 * 1024;

/// What the service manager tells us, and us alone.
const OURS: [&str; 8] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
    "WATERSHED_HAND_OVER",
];

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    async fn sh(script: &str, limit: usize, patience: Duration) -> (Status, String) {
        run(&["/bin/sh", "-c", script].map(str::to_owned), limit, patience).await
    }

    #[tokio::test]
    async fn exit_codes_are_those_of_nagios_plugins() {
        for (script, status, output) in [
            ("echo fine", Status::Passing, "fine\n"),
            ("echo out; echo err >&2; exit 1", Status::Warning, "out\nerr\n"),
            ("exit 2", Status::Critical, ""),
            ("exit 3", Status::Critical, ""),
            ("kill -KILL $$", Status::Critical, ""),
            ("cat; echo $?", Status::Passing, "0\n"), // there is no input
            ("exec >&- 2>&-; exit 1", Status::Warning, ""),
        ] {
            assert_eq!(sh(script, 100, LONG).await, (status, output.to_owned()), "{script}");
        }
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_critical() {
        let (status, output) = run(&["/nonexistent/command".to_owned()], 100, LONG).await;
        assert_eq!(status, Status::Critical);
        assert!(output.starts_with("run /nonexistent/command: "), "{output}");
    }

    #[tokio::test]
    async fn what_stays_in_the_background_does_not_hold_up_the_result() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; echo done", pid.display());
        assert_eq!(sh(&script, 100, LONG).await, (Status::Passing, "done\n".to_owned()));
        let pid = Pid::from_raw(std::fs::read_to_string(pid).unwrap().trim().parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::KILL).expect("it was left alone");
    }

    #[tokio::test]
    async fn a_command_whose_time_is_up_is_critical() {
        let (status, output) = sh("exec sleep 1000", 100, Duration::ZERO).await;
        assert_eq!((status, output.as_str()), (Status::Critical, "Timed out (0ns) running check"));
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_when_its_result_is_not_wanted_any_more() {
        // A child of the command holds the writing end of a FIFO, which closes when it dies.
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().await.unwrap().success());
        let script = format!("(echo held; exec sleep 1000) > {}; echo after", fifo.display());
        let running = tokio::spawn(async move { sh(&script, 100, LONG).await });
        let (held, is_held) = tokio::sync::oneshot::channel();
        let closed = tokio::task::spawn_blocking(move || {
            let mut fifo = std::fs::File::open(fifo).unwrap();
            fifo.read_exact(&mut [0; 5]).unwrap();
            held.send(()).unwrap();
            fifo.read_to_end(&mut Vec::new()).unwrap()
        });
        is_held.await.unwrap();
        running.abort();
        assert_eq!(closed.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn of_a_long_output_the_end_is_kept() {
        let (status, output) = sh("i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done", 22, LONG).await;
        assert_eq!(status, Status::Passing);
        assert_eq!(output, "Captured 22 of 318890 bytes\n...\nline 29998\nline 29999\n");
    }

    #[test]
    fn outputs_are_cut_between_letters() {
        let mut tail = Tail::new(4);
        tail.push("a€uro".as_bytes());
        assert_eq!(tail.into_text(), "Captured 3 of 7 bytes\n...\nuro");
        let mut tail = Tail::new(4);
        tail.push(b"ok\xff");
        assert_eq!(tail.into_text(), "ok\u{fffd}");
    }
}
