//! Netlink messages: how they are written, asked and read.
//!
//! Invariant: nothing here trusts a length that the kernel sent; what doesn't fit ends the walk.
//! Which attributes mean what is the callers'.

use std::io;

use anyhow::{Context, Result, bail};
use netlink_sys::{Socket, SocketAddr};

pub const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
pub const REPLACE: u16 = 0x100;
pub const EXCLUSIVE: u16 = 0x200;
pub const CREATE: u16 = 0x400;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The kernel's table changed while it was dumped.
const INTERRUPTED: u16 = 0x10;
const HEADER: usize = 16;

/// A request under construction.
pub struct Message(Vec<u8>);

impl Message {
    /// `header`: the fixed part behind netlink's own header.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut buf = vec![0; HEADER];
        buf[4..6].copy_from_slice(&kind.to_ne_bytes());
        buf[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        buf.extend_from_slice(header);
        Message(buf)
    }

    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A fixed part amid attributes, before those that it is the header of.
    pub fn fixed(mut self, header: &[u8]) -> Self {
        self.0.extend_from_slice(header);
        self
    }

    /// As [`Message::nest`], where the kernel wants to be told that it is one (`NLA_F_NESTED`).
    pub fn nested(self, kind: u16, inside: impl FnOnce(Message) -> Message) -> Self {
        self.nest(kind | 0x8000, inside)
    }

    /// An attribute that holds attributes.
    pub fn nest(self, kind: u16, inside: impl FnOnce(Message) -> Message) -> Self {
        let inner = inside(Message(Vec::new())).0;
        self.attr(kind, &inner)
    }

    fn finish(mut self, flags: u16, sequence: u32) -> Vec<u8> {
        let all = u16::from_ne_bytes([self.0[6], self.0[7]]) | flags;
        self.0[6..8].copy_from_slice(&all.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        let len = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// The attributes of a message.
#[derive(Clone, Copy)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = u16_at(self.0, 0)? as usize;
        // The two upper bits say "nested" and "network order".
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

impl<'a> Attrs<'a> {
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(k, value)| (k == kind).then_some(value))
    }

    pub fn u32(self, kind: u16) -> Option<u32> {
        u32_at(self.find(kind)?, 0)
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// A name without its closing zero.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Twice of what the kernel puts into one answer (`netlink_dump`: up to 32 KiB).
const DATAGRAM: usize = 1 << 16;

/// A socket for requests and their answers.
pub struct Connection {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

enum Dump {
    Whole,
    Interrupted,
}

impl Connection {
    /// `protocol`: `NETLINK_ROUTE` or `NETLINK_GENERIC`.
    pub fn open(protocol: i32) -> Result<Self> {
        let mut socket = Socket::new(protocol as isize).context("a netlink socket")?;
        socket.bind_auto().context("binding a netlink socket")?;
        socket.connect(&SocketAddr::new(0, 0)).context("a netlink socket to the kernel")?;
        Ok(Connection { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// Dumps are filtered by what their request's header says.
    pub fn strict(&self) -> io::Result<()> {
        self.socket.set_netlink_get_strict_chk(true)
    }

    /// Asks for one change; the kernel's refusal is an error of its own errno.
    pub fn change(&mut self, message: Message) -> io::Result<()> {
        self.exchange(message, ACK, |_, _| {}).map(drop)
    }

    /// Asks for one object.
    pub fn ask(&mut self, message: Message, each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        self.exchange(message, ACK, each).map(drop)
    }

    /// Asks for a table and hands over each of its messages. Begins again when the table changed
    /// meanwhile: `make` makes the request, `begin` forgets what came so far.
    pub fn dump<T: Default>(&mut self, make: impl Fn() -> Message, mut each: impl FnMut(&mut T, &[u8])) -> Result<T> {
        for _ in 0..8 {
            let mut all = T::default();
            if let Dump::Whole = self.exchange(make(), DUMP, |_, payload| each(&mut all, payload))? {
                return Ok(all);
            }
        }
        bail!("the kernel's tables change faster than they can be read");
    }

    /// The number of a generic family; None: the kernel has none of that name.
    pub fn generic(&mut self, name: &str) -> io::Result<Option<u16>> {
        let mut family = None;
        // CTRL_CMD_GETFAMILY by CTRL_ATTR_FAMILY_NAME gives CTRL_ATTR_FAMILY_ID.
        let message = Message::new(16, 0, &[3, 1, 0, 0]).attr(2, &[name.as_bytes(), &[0]].concat());
        match self.ask(message, |_, payload| family = payload.get(4..).and_then(|p| u16_at(Attrs(p).find(1)?, 0))) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
            _ => Ok(family),
        }
    }

    fn exchange(&mut self, message: Message, flags: u16, mut each: impl FnMut(u16, &[u8])) -> io::Result<Dump> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = message.finish(flags, self.sequence);
        self.socket.send(&message, 0)?;
        let mut interrupted = false;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = &self.buffer[..];
            while let Some((kind, flags, sequence, payload)) = split(&mut rest) {
                if sequence != self.sequence {
                    continue;
                }
                interrupted |= flags & INTERRUPTED != 0;
                match kind {
                    DONE => return Ok(if interrupted { Dump::Interrupted } else { Dump::Whole }),
                    ERROR => match u32_at(payload, 0).unwrap_or_default() as i32 {
                        0 => return Ok(Dump::Whole),
                        error => return Err(io::Error::from_raw_os_error(-error)),
                    },
                    _ => each(kind, payload),
                }
            }
        }
    }
}

/// Takes one message off a datagram: kind, flags, sequence, payload.
fn split<'a>(rest: &mut &'a [u8]) -> Option<(u16, u16, u32, &'a [u8])> {
    let len = u32_at(rest, 0)? as usize;
    let message = rest.get(..len).filter(|m| m.len() >= HEADER)?;
    *rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some((u16_at(message, 4)?, u16_at(message, 6)?, u32_at(message, 8)?, &message[HEADER..]))
}

/// The messages of a datagram: kind, flags, payload.
pub fn each(mut datagram: &[u8]) -> impl Iterator<Item = (u16, u16, &[u8])> {
    std::iter::from_fn(move || split(&mut datagram).map(|(kind, flags, _, payload)| (kind, flags, payload)))
}
