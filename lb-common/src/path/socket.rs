//! Services at the socket: a client on this node is given a backend where it names a service, in its call, so that its
//! packets need no translation.
//!
//! Invariant: the choice is that of packets (the same row, affinity and policies); what a call doesn't know enough for, or
//! what packets refuse otherwise than a call can, is left as it is: then its packets are judged, as those of everybody.
//! What a socket is told of its peer is the service. Not here: whose sockets are asked, and how calls are changed.

use super::claimed;
use super::parse::Ip;
use super::policy::{self, Admission};
use super::service::{self, Chooser};
use crate::drop::Note;
use crate::hash;
use crate::table::{Backend, Service, ServiceKey, SocketKey, SocketPeer};
use crate::tables::Tables;
use crate::wire::header::TCP;
use crate::wire::{Addr, Be16};

/// What sockets remember.
pub trait SocketTable<A: Addr> {
    fn socket(&self, key: &SocketKey<A>) -> Option<SocketPeer<A>>;
    /// False: there is no room.
    fn socket_put(&self, key: &SocketKey<A>, peer: &SocketPeer<A>) -> bool;
}

/// A socket's call: whom it names, and by what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<A> {
    pub cookie: u64,
    pub dst: A,
    pub dport: Be16,
    /// TCP or UDP.
    pub proto: u8,
    /// The socket's own address, where it is bound to one, else the unspecified one. With ClientIP affinity it is the
    /// client: all of this node's sockets that aren't bound are one, whichever source their packets will have.
    pub src: A,
    pub now: u32,
}

/// What becomes of a call.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// Nothing: its packets go where it says.
    Left,
    /// It names a backend now.
    Changed,
    /// Nobody is there.
    Refused,
}

/// A connect(2).
#[inline(always)]
pub fn connect<A: Ip, T: Tables<A> + SocketTable<A>>(tables: &T, call: &mut Call<A>) -> Answer {
    let Some(mut service) = served(tables, call) else {
        return Answer::Left;
    };
    let mut backend = Backend::default();
    match open(tables, call, &mut service, &mut backend) {
        Ok(id) => change(tables, call, id, &backend, true),
        Err(answer) => answer,
    }
}

/// A datagram to an address that it names itself.
#[inline(always)]
pub fn send<A: Ip, T: Tables<A> + SocketTable<A>>(tables: &T, call: &mut Call<A>) -> Answer {
    let Some(mut service) = served(tables, call) else {
        return Answer::Left;
    };
    let key = key(call.cookie, call.dst, call.dport, SocketKey::<A>::SERVICE);
    let mut backend = Backend::default();
    if let Some(id) = kept(tables, &key, &service, &mut backend) {
        return change(tables, call, id, &backend, false);
    }
    match open(tables, call, &mut service, &mut backend) {
        Ok(id) if put(tables, &key, backend.addr, backend.port, id) => change(tables, call, id, &backend, true),
        Ok(_) => Answer::Left,
        Err(answer) => answer,
    }
}

/// Puts the service in place of a backend that a socket is told of: by recvmsg(2), by getpeername(2).
#[inline(always)]
pub fn name<A: Addr, T: SocketTable<A>>(tables: &T, cookie: u64, addr: &mut A, port: &mut Be16) -> bool {
    let Some(peer) = tables.socket(&key(cookie, *addr, *port, SocketKey::<A>::BACKEND)) else {
        return false;
    };
    (*addr, *port) = (peer.addr, peer.port);
    true
}

/// The service that a call names.
#[inline(always)]
fn served<A: Addr, T: Tables<A>>(tables: &T, call: &Call<A>) -> Option<Service> {
    if !claimed(tables, call.dst, call.dport, call.proto) {
        return None;
    }
    tables.service(&ServiceKey { addr: call.dst, port: call.dport, proto: call.proto, pad: 0 })
}

/// The backend that the socket's datagrams to the service have gone to so far, while it is there.
#[inline(always)]
fn kept<A: Addr, T: Tables<A> + SocketTable<A>>(
    tables: &T,
    key: &SocketKey<A>,
    service: &Service,
    backend: &mut Backend<A>,
) -> Option<u32> {
    let id = tables.socket(key)?.backend;
    *backend = tables.backend(id)?;
    (backend.state != 0 && backend.service == service.id).then_some(id)
}

/// A backend for a new connection, or what becomes of the call instead.
#[inline(always)]
fn open<A: Ip, T: Tables<A>>(
    tables: &T,
    call: &Call<A>,
    service: &mut Service,
    backend: &mut Backend<A>,
) -> Result<u32, Answer> {
    let admission = policy::admit_own(service);
    // UDP knows no refusal before a datagram: ICMP tells of it.
    if admission == Admission::Empty && call.proto == TCP {
        return Err(Answer::Refused);
    }
    if admission == Admission::Yes {
        let chooser = Chooser { client: call.src, now: call.now };
        let connection = || hash::socket(call.cookie, call.dst, call.dport);
        if let Ok(id) = service::choose(tables, service, &chooser, connection, backend) {
            return Ok(id);
        }
    }
    tables.note(Note::SocketLeft);
    Err(Answer::Left)
}

/// Makes the call name the backend, once it is remembered what to tell the socket of it.
#[inline(always)]
fn change<A: Addr, T: Tables<A> + SocketTable<A>>(
    tables: &T,
    call: &mut Call<A>,
    id: u32,
    backend: &Backend<A>,
    new: bool,
) -> Answer {
    let key = key(call.cookie, backend.addr, backend.port, SocketKey::<A>::BACKEND);
    // Of several services with one backend the last that was asked is whose answer comes. What has just been chosen is
    // written without a look.
    let known = !new && tables.socket(&key).is_some_and(|peer| peer.addr == call.dst && peer.port == call.dport);
    if !known && !put(tables, &key, call.dst, call.dport, id) {
        return Answer::Left;
    }
    if new {
        tables.count_connection(id);
        tables.note(Note::SocketTranslated);
    }
    (call.dst, call.dport) = (backend.addr, backend.port);
    Answer::Changed
}

#[inline(always)]
fn key<A: Addr>(cookie: u64, addr: A, port: Be16, kind: u16) -> SocketKey<A> {
    SocketKey { cookie: [cookie as u32, (cookie >> 32) as u32], addr, port, kind }
}

#[inline(always)]
fn put<A: Addr, T: Tables<A> + SocketTable<A>>(
    tables: &T,
    key: &SocketKey<A>,
    addr: A,
    port: Be16,
    backend: u32,
) -> bool {
    let done = tables.socket_put(key, &SocketPeer { addr, port, pad: 0, backend });
    if !done {
        tables.note(Note::SocketTableFull);
    }
    done
}
