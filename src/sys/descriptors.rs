//! How many descriptors the process may have, and how they are divided.
//!
//! The kernel's limit (RLIMIT_NOFILE) is one number for the whole process, and whichever part takes the last descriptor lets
//! all others fail. So each part that remote parties can make grow has a share that it never exceeds. What is left is for
//! files, listeners, health checks, the service manager's sockets and those of a successor.

#![allow(unsafe_code)]

use std::io;

/// What descriptors are used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Connections of clients by TCP, TLS and HTTPS: a half.
    Tcp,
    /// Connections of operators and their tools by HTTP: an eighth.
    Http,
    /// UDP sockets of all workers towards upstreams: a quarter.
    Workers,
    /// UDP sockets of tasks towards upstreams: a sixteenth.
    Tasks,
}

/// How many descriptors there may be at a time for this.
pub fn descriptors_for(part: Use) -> usize {
    share(part, open_files_limit())
}

fn share(part: Use, limit: usize) -> usize {
    let divided = limit.saturating_sub((limit / 8).clamp(LEAST_LEFT, MOST_LEFT));
    let divisor = match part {
        Use::Tcp => 2,
        Use::Http => 8,
        Use::Workers => 4,
        Use::Tasks => 16,
    };
    (divided / divisor).max(1)
}

/// Sets the limit on open files: to this number, or for 0 to the most that is allowed.
pub fn limit_open_files(wanted: u32) -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is written by the call and lives through it.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = if wanted == 0 { limit.rlim_max } else { limit.rlim_max.min(wanted.into()) };
    // SAFETY: `limit` is read by the call and lives through it.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// How many files may be open; a few if nobody knows.
pub fn open_files_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is written by the call and lives through it.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result < 0 { 256 } else { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) }
}

/// How many files are open.
pub fn open_files() -> usize {
    // The folder itself is open meanwhile.
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

/// Descriptors that are not divided, of an eighth of all: at least, and at most.
const LEAST_LEFT: usize = 16;
const MOST_LEFT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_leave_some_for_everything_else() {
        for (limit, expected) in
            [(44, [14, 3, 7, 1]), (1024, [448, 112, 224, 56]), (65_536, [32_256, 8064, 16_128, 4032])]
        {
            let shares = [Use::Tcp, Use::Http, Use::Workers, Use::Tasks].map(|part| share(part, limit));
            assert_eq!(shares, expected, "{limit}");
            assert!(shares.iter().sum::<usize>() + LEAST_LEFT <= limit, "{limit}");
        }
        assert!(share(Use::Http, 10) > 0);
        assert!(open_files() > 2 && open_files() <= open_files_limit());
    }
}
