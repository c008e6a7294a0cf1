//! Who may ask at the agent's own sockets.
//!
//! Invariant: the kernel says who asks, as of the moment of the connection. Root and the agent's own user may ask for
//! all; members of a group that the configuration names for what changes nothing; everybody else for nothing. The
//! sockets' files say the same, so that others don't get as far as a connection.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::sockopt::socket_peercred;

const GROUPS: &str = "/etc/group";

/// What one who asks may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    All,
    Read,
}

/// Somebody who may nothing.
#[derive(Debug)]
pub struct Refused {
    pub process: i32,
    pub user: u32,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "user {} (process {}) may not ask; root may, and members of `control.readers`",
            self.user, self.process
        )
    }
}

/// The agent's sockets and who may ask there.
#[derive(Debug, Default)]
pub struct Peers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    readers: Option<u32>,
    sockets: Vec<PathBuf>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a socket's file its rights, `known_as` being its name from now on; before that nobody may connect.
    pub fn admit(&self, socket: &Path, known_as: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        allow(socket, inner.readers)?;
        if !inner.sockets.iter().any(|known| known == known_as) {
            inner.sockets.push(known_as.to_owned());
        }
        Ok(())
    }

    /// From now on members of this group may ask, and no others'.
    pub fn set(&self, readers: Option<u32>) -> io::Result<()> {
        let mut inner = self.lock();
        if inner.readers == readers {
            return Ok(());
        }
        // Where a file's rights can't be set, the kernel's word is judged by the former group, too.
        inner.sockets.iter().filter(|socket| socket.exists()).try_for_each(|socket| allow(socket, readers))?;
        inner.readers = readers;
        Ok(())
    }

    /// What the process at the other end may.
    pub fn right(&self, stream: impl AsFd) -> io::Result<Result<Right, Refused>> {
        let peer = socket_peercred(stream.as_fd())?;
        let (process, user) = (peer.pid.as_raw_pid(), peer.uid.as_raw());
        let own = fs::metadata("/proc/self")?.uid();
        if user == 0 || user == own {
            return Ok(Ok(Right::All));
        }
        let readers = self.lock().readers;
        let reads = match readers {
            Some(group) => peer.gid.as_raw() == group || groups(stream.as_fd())?.contains(&group),
            None => false,
        };
        Ok(if reads { Ok(Right::Read) } else { Err(Refused { process, user }) })
    }
}

fn allow(socket: &Path, readers: Option<u32>) -> io::Result<()> {
    match readers {
        None => {
            fs::set_permissions(socket, Permissions::from_mode(0o600))?;
            chown(socket, None, Some(0))
        }
        Some(group) => {
            chown(socket, None, Some(group))?;
            fs::set_permissions(socket, Permissions::from_mode(0o660))
        }
    }
}

/// The groups of the process at the other end, beside its first one.
#[expect(unsafe_code, reason = "no safe form of this option")]
fn groups(stream: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut all = vec![0u32; 64];
    loop {
        let mut size = size_of_val(&all[..]) as libc::socklen_t;
        let (value, fd) = (all.as_mut_ptr().cast(), stream.as_raw_fd());
        // SAFETY: the value's size is that of `all`, and both live across the call.
        let rc = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, value, &raw mut size) };
        let have = size as usize / size_of::<u32>();
        if rc == 0 {
            all.truncate(have);
            return Ok(all);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || have <= all.len() {
            return Err(error);
        }
        all.resize(have, 0);
    }
}

/// The number of a group that is named, or said by its number.
pub fn group(name: &str) -> io::Result<Option<u32>> {
    match name.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Ok(number_of(&fs::read_to_string(GROUPS)?, name)),
    }
}

/// Lines of `name:password:number:members`.
fn number_of(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn groups_by_name() {
        let text = "root:x:0:\nnetops:x:1007:alice,bob\nbroken\nadm:x::\n";
        for (name, want) in [("netops", Some(1007)), ("root", Some(0)), ("net", None), ("broken", None), ("adm", None)]
        {
            assert_eq!(number_of(text, name), want, "{name}");
        }
        assert_eq!(group("1007").unwrap(), Some(1007));
    }

    #[test]
    fn the_own_user_may_ask_for_all() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert_eq!(Peers::default().right(&one).unwrap().unwrap(), Right::All);
        // As the kernel tells them: this process's own.
        assert!(groups(one.as_fd()).is_ok());
    }
}
