//! Sockets of this node: the calls that name an address, from the kernel's context to the engine and back.
//!
//! A control group's programs see the sockets of all network namespaces whose processes are in it; those of the agent's
//! own are this node's. Who is in another namespace (a pod) is served by its packets, as it would be from elsewhere.

use core::ffi::c_void;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use lb_common::drop::Drop;
use lb_common::path::socket::{self, Answer, Call, SocketTable};
use lb_common::table::{SocketKey, SocketPeer};
use lb_common::wire::header::{TCP, UDP};
use lb_common::wire::{Be16, Ip4, Ip6};

use crate::maps;
use crate::tables::{Family, Kernel, count, now};

/// What the kernel is told: the call goes on, or fails. Programs behind a call can only let it go on.
const GO_ON: i32 = 1;
const FAIL: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// The number of the agent's network namespace; constant once the program is loaded, as is the next.
#[unsafe(no_mangle)]
static SOCKET_NAMESPACE: u64 = 0;
/// Not zero: a program can say why a call fails (kernels from 6.1). Otherwise the call's packets are refused.
#[unsafe(no_mangle)]
static SOCKET_REFUSES: u32 = 0;

#[cgroup_sock_addr(connect4)]
pub fn stellwerk_connect4(context: SockAddrContext) -> i32 {
    to::<V4>(&context, socket::connect)
}

#[cgroup_sock_addr(connect6)]
pub fn stellwerk_connect6(context: SockAddrContext) -> i32 {
    if is_mapped(&context) { to::<Mapped>(&context, socket::connect) } else { to::<V6>(&context, socket::connect) }
}

#[cgroup_sock_addr(sendmsg4)]
pub fn stellwerk_sendmsg4(context: SockAddrContext) -> i32 {
    to::<V4>(&context, socket::send)
}

/// Never with an IPv4 address: the kernel asks the program for IPv4 then.
#[cgroup_sock_addr(sendmsg6)]
pub fn stellwerk_sendmsg6(context: SockAddrContext) -> i32 {
    to::<V6>(&context, socket::send)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn stellwerk_recvmsg4(context: SockAddrContext) -> i32 {
    from::<V4>(&context);
    GO_ON
}

#[cgroup_sock_addr(recvmsg6)]
pub fn stellwerk_recvmsg6(context: SockAddrContext) -> i32 {
    from6(&context);
    GO_ON
}

#[cgroup_sock_addr(getpeername4)]
pub fn stellwerk_getpeername4(context: SockAddrContext) -> i32 {
    from::<V4>(&context);
    GO_ON
}

#[cgroup_sock_addr(getpeername6)]
pub fn stellwerk_getpeername6(context: SockAddrContext) -> i32 {
    from6(&context);
    GO_ON
}

/// A field of the program's own context, or of its socket. Volatile, since whole words are what the kernel allows.
macro_rules! field {
    ($at:expr, $($field:tt)+) => {
        // SAFETY: see above: they are there as long as the program runs.
        unsafe { (&raw const (*$at).$($field)+).read_volatile() }
    };
}

/// The same, written.
macro_rules! set_field {
    ($at:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as for `field!`.
        unsafe { (&raw mut (*$at).$($field)+).write_volatile($value) }
    };
}

/// Asks for a call that names whom it is to.
#[inline(always)]
fn to<P: Place>(context: &SockAddrContext, ask: impl FnOnce(&Kernel, &mut Call<P::Addr>) -> Answer) -> i32 {
    let at = context.sock_addr;
    let proto = field!(at, protocol);
    if (proto != TCP as u32 && proto != UDP as u32) || !is_own(at) {
        return GO_ON;
    }
    let (dst, dport) = (P::addr(at), port(at));
    let mut call = Call { cookie: cookie(at), dst, dport, proto: proto as u8, src: P::bound(at), now: now() };
    match ask(&Kernel, &mut call) {
        Answer::Left => GO_ON,
        Answer::Changed => {
            P::put(at, call.dst);
            put_port(at, call.dport);
            GO_ON
        }
        Answer::Refused => refuse(),
    }
}

#[inline(always)]
fn refuse() -> i32 {
    // SAFETY: a static of our own; the agent, not this program, gives it its value.
    if unsafe { core::ptr::read_volatile(&raw const SOCKET_REFUSES) } == 0 {
        return GO_ON;
    }
    count(&maps::DROPS, Drop::SocketRefused as u32);
    // SAFETY: the helper only notes the number for the kernel.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    FAIL
}

/// Puts the service in place of a backend that a call tells of.
#[inline(always)]
fn from<P: Place>(context: &SockAddrContext) {
    let at = context.sock_addr;
    if !is_own(at) {
        return;
    }
    let (mut addr, mut port) = (P::addr(at), port(at));
    if socket::name(&Kernel, cookie(at), &mut addr, &mut port) {
        P::put(at, addr);
        put_port(at, port);
    }
}

#[inline(always)]
fn from6(context: &SockAddrContext) {
    if is_mapped(context) {
        from::<Mapped>(context);
    } else {
        from::<V6>(context);
    }
}

#[inline(always)]
fn is_own(at: *mut bpf_sock_addr) -> bool {
    // SAFETY: the program's own context, and as for `SOCKET_REFUSES`.
    unsafe { bpf_get_netns_cookie(at.cast::<c_void>()) == core::ptr::read_volatile(&raw const SOCKET_NAMESPACE) }
}

#[inline(always)]
fn cookie(at: *mut bpf_sock_addr) -> u64 {
    // SAFETY: the program's own context.
    unsafe { bpf_get_socket_cookie(at.cast::<c_void>()) }
}

#[inline(always)]
fn port(at: *mut bpf_sock_addr) -> Be16 {
    Be16::from_raw(field!(at, user_port) as u16)
}

#[inline(always)]
fn put_port(at: *mut bpf_sock_addr, port: Be16) {
    // The kernel takes its lower half.
    set_field!(at, port.raw() as u32, user_port)
}

/// Whether an IPv6 socket's call names an IPv4 address (RFC 4291 §2.5.5.2).
#[inline(always)]
fn is_mapped(context: &SockAddrContext) -> bool {
    let [a, b, c, _] = V6::addr(context.sock_addr).raw();
    (a, b, c) == (0, 0, 0xffff_u32.to_be())
}

/// Where a context has an address.
trait Place {
    type Addr: Family;
    fn addr(at: *mut bpf_sock_addr) -> Self::Addr;
    fn put(at: *mut bpf_sock_addr, addr: Self::Addr);
    /// The one that the socket is bound to, else the unspecified one.
    fn bound(at: *mut bpf_sock_addr) -> Self::Addr;
}

struct V4;
struct V6;
/// An IPv4 address in an IPv6 call.
struct Mapped;

/// The context's socket, which is always there.
#[inline(always)]
fn sock(at: *mut bpf_sock_addr) -> *mut bpf_sock {
    field!(at, __bindgen_anon_1.sk)
}

impl Place for V4 {
    type Addr = Ip4;

    #[inline(always)]
    fn addr(at: *mut bpf_sock_addr) -> Ip4 {
        Ip4::from_raw(field!(at, user_ip4))
    }

    #[inline(always)]
    fn put(at: *mut bpf_sock_addr, addr: Ip4) {
        set_field!(at, addr.raw(), user_ip4)
    }

    #[inline(always)]
    fn bound(at: *mut bpf_sock_addr) -> Ip4 {
        Ip4::from_raw(field!(sock(at), src_ip4))
    }
}

impl Place for V6 {
    type Addr = Ip6;

    #[inline(always)]
    fn addr(at: *mut bpf_sock_addr) -> Ip6 {
        Ip6::from_raw([
            field!(at, user_ip6[0]),
            field!(at, user_ip6[1]),
            field!(at, user_ip6[2]),
            field!(at, user_ip6[3]),
        ])
    }

    #[inline(always)]
    fn put(at: *mut bpf_sock_addr, addr: Ip6) {
        let [a, b, c, d] = addr.raw();
        set_field!(at, a, user_ip6[0]);
        set_field!(at, b, user_ip6[1]);
        set_field!(at, c, user_ip6[2]);
        set_field!(at, d, user_ip6[3]);
    }

    #[inline(always)]
    fn bound(at: *mut bpf_sock_addr) -> Ip6 {
        let sock = sock(at);
        Ip6::from_raw([
            field!(sock, src_ip6[0]),
            field!(sock, src_ip6[1]),
            field!(sock, src_ip6[2]),
            field!(sock, src_ip6[3]),
        ])
    }
}

impl Place for Mapped {
    type Addr = Ip4;

    #[inline(always)]
    fn addr(at: *mut bpf_sock_addr) -> Ip4 {
        let [.., last] = V6::addr(at).raw();
        Ip4::from_raw(last)
    }

    #[inline(always)]
    fn put(at: *mut bpf_sock_addr, addr: Ip4) {
        set_field!(at, addr.raw(), user_ip6[3])
    }

    #[inline(always)]
    fn bound(at: *mut bpf_sock_addr) -> Ip4 {
        V4::bound(at)
    }
}

impl<A: Family> SocketTable<A> for Kernel {
    #[inline(always)]
    fn socket(&self, key: &SocketKey<A>) -> Option<SocketPeer<A>> {
        // SAFETY: only calls of this very socket write the entry; two at once may mix two backends that it may have, or
        // two services that it asked.
        unsafe { A::SOCKETS.get(key) }.copied()
    }

    #[inline(always)]
    fn socket_put(&self, key: &SocketKey<A>, peer: &SocketPeer<A>) -> bool {
        A::SOCKETS.insert(key, peer, 0).is_ok()
    }
}
