//! Users of this host, and becoming one of them.
#![allow(unsafe_code)]

use std::{ffi::CString, io, mem::MaybeUninit, ptr};

/// The ids with which a process of a user runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user.
    pub user_id: u32,
    /// The main group.
    pub group_id: u32,
    /// All groups, the main one too.
    pub group_ids: Vec<u32>,
}

impl User {
    /// The user of this name, or of this number; `None` if the host has no such account.
    pub fn find(name: &str) -> io::Result<Option<Self>> {
        let Ok(text) = CString::new(name) else { return Ok(None) };
        let mut buffer = vec![0; BUFFER_BYTES];
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = ptr::null_mut();
        let buffer_bytes = buffer.len();
        let error = match name.parse::<u32>() {
            // SAFETY: `entry`, `buffer` and `found` are written by the call, and live as long as what is read of them.
            Ok(id) => unsafe {
                libc::getpwuid_r(id, entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer_bytes, &raw mut found)
            },
            // SAFETY: the same; `text` ends with a zero.
            Err(_) => unsafe {
                libc::getpwnam_r(text.as_ptr(), entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer_bytes, &raw mut found)
            },
        };
        // These stand for "not found" on some systems (getpwnam(3)).
        if !matches!(error, 0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM) {
            return Err(io::Error::from_raw_os_error(error));
        }
        if found.is_null() {
            return Ok(None);
        }
        // SAFETY: the call has filled the entry, because `found` is set.
        let entry = unsafe { entry.assume_init() };
        let mut group_ids = vec![0; MOST_GROUPS];
        let mut count = MOST_GROUPS as libc::c_int;
        // SAFETY: the name lies in `buffer`; at most `count` groups are written.
        let listed = unsafe { libc::getgrouplist(entry.pw_name, entry.pw_gid, group_ids.as_mut_ptr(), &raw mut count) };
        if listed < 0 {
            return Err(io::Error::other("the user is in too many groups"));
        }
        group_ids.truncate(usize::try_from(count).unwrap_or_default());
        Ok(Some(Self { user_id: entry.pw_uid, group_id: entry.pw_gid, group_ids }))
    }

    /// A user without an account and in no group but his own.
    pub fn without_account(id: u32) -> Self {
        Self { user_id: id, group_id: id, group_ids: vec![id] }
    }

    /// Whether this process runs as this user already.
    pub fn is_current(&self) -> bool {
        rustix::process::geteuid().as_raw() == self.user_id
    }

    /// Makes this process one of this user, for good. Only root may do that.
    pub fn become_for_good(&self) -> io::Result<()> {
        let outcome = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        // SAFETY: the list has that many groups, and is only read.
        outcome(unsafe { libc::setgroups(self.group_ids.len(), self.group_ids.as_ptr()) })?;
        // SAFETY: takes numbers alone.
        outcome(unsafe { libc::setresgid(self.group_id, self.group_id, self.group_id) })?;
        // SAFETY: takes numbers alone.
        outcome(unsafe { libc::setresuid(self.user_id, self.user_id, self.user_id) })
    }
}

/// Room for one entry of the account database.
const BUFFER_BYTES: usize = 64 << 10;
/// The kernel has no more for one process.
const MOST_GROUPS: usize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_found_by_name_and_number() {
        let root = User::find("root").unwrap().unwrap();
        assert_eq!((root.user_id, root.group_id), (0, 0));
        assert!(root.group_ids.contains(&0));
        assert_eq!(User::find("0").unwrap(), Some(root));
        assert_eq!(User::find("no-such-user-here").unwrap(), None);
        assert_eq!(User::find("a\0b").unwrap(), None);
        assert_eq!(User::find("4294967290").unwrap(), None);
    }
}
