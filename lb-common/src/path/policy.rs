//! Who may open a connection to a service, and whose endpoints it gets: source ranges and traffic policies.
//!
//! Invariant: only what has no connection yet is asked. Whoever is of this node (itself, its inside; pods anywhere
//! count, as for kube-proxy) gets the nearest of all endpoints also where the traffic policy for others is Local, as
//! nobody routes its packets to the right node. Not here: which endpoints are of this node; the plan says so.

use super::parse::{Ip, Parsed};
use super::{Context, Work, claimed};
use crate::table::{Link, Owned, Service, ServiceKey, Source};
use crate::tables::Tables;

/// What becomes of a packet that may open a connection.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is for no service.
    NoService,
    Yes,
    /// There is no endpoint at all.
    Empty,
    /// There are some, but none on this node.
    Elsewhere,
    /// Its source isn't one that the service names.
    Barred,
}

/// Finds the service that a packet is for, as it is for this client: with the row that the client gets,
/// [`Service::LOCAL`] if that is of this node's endpoints, [`Service::MASQUERADE`] if the client gets this node's
/// address, and [`Service::DIRECT`] if it may be answered by others.
#[inline(never)]
pub fn admit<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Admission {
    let Parsed { key, proto, .. } = &work.parsed;
    let key = ServiceKey { addr: key.dst, port: key.dport, proto: *proto, pad: 0 };
    if !claimed(context.tables, key.addr, key.port, key.proto) {
        return Admission::NoService;
    }
    let Some(service) = context.tables.service(&key) else {
        return Admission::NoService;
    };
    work.service = service;
    if service.flags != 0 { judged(work, context) } else { of_row(service.count, Admission::Empty) }
}

#[inline(always)]
fn of_row(count: u32, empty: Admission) -> Admission {
    if count == 0 { empty } else { Admission::Yes }
}

/// Goes by the service's flags.
#[inline(never)]
fn judged<A: Ip, T: Tables<A>>(work: &mut Work<A>, context: &Context<T>) -> Admission {
    if work.service.flags & Service::RANGES != 0 && !allowed(work, context) {
        return Admission::Barred;
    }
    let near = is_of_node(work, context);
    let service = &mut work.service;
    let flags = service.flags;
    let local = flags & Service::LOCAL != 0 && (!near || flags & Service::EVERYBODY != 0);
    service.flags = if near { 0 } else { flags & (Service::MASQUERADE | Service::DIRECT) };
    if !local {
        return of_row(service.count, Admission::Empty);
    }
    of_local_row(service)
}

/// Gives the client the row of this node's endpoints.
#[inline(always)]
fn of_local_row(service: &mut Service) -> Admission {
    let others = service.count;
    service.flags |= Service::LOCAL;
    service.first = service.local_first;
    service.count = service.local_count;
    of_row(service.count, if others == 0 { Admission::Empty } else { Admission::Elsewhere })
}

/// The same for this node's own sockets, whose packets don't exist yet.
#[inline(always)]
pub fn admit_own(service: &mut Service) -> Admission {
    let flags = service.flags;
    if flags & Service::RANGES != 0 {
        // The kernel chooses the source by the way to the service: its packet will show it.
        return Admission::Barred;
    }
    service.flags = 0;
    if flags & (Service::LOCAL | Service::EVERYBODY) != Service::LOCAL | Service::EVERYBODY {
        return of_row(service.count, Admission::Empty);
    }
    of_local_row(service)
}

/// Whether the service names the packet's source.
#[inline(never)]
fn allowed<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> bool {
    context.tables.allows(&Source { service: work.service.id, addr: work.parsed.key.src })
}

/// Whether the packet is this node's own, or comes from its inside or a pod.
#[inline(never)]
fn is_of_node<A: Ip, T: Tables<A>>(work: &Work<A>, context: &Context<T>) -> bool {
    let (tables, at) = (context.tables, context.at);
    if at.own != 0 {
        return true;
    }
    if tables.link(at.ifindex).unwrap_or_default().flags & Link::INSIDE != 0 {
        return true;
    }
    let source = tables.owned(work.parsed.key.src).unwrap_or_default();
    source.is(Owned::INSIDE | Owned::PREFIX_INSIDE | Owned::PODS)
}
