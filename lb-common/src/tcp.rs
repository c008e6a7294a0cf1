//! The states of a connection, for TCP and for protocols without states of their own.
//!
//! Pure: `step(state, reply, flags) -> state`. Every combination is enumerated by a test.

use crate::wire::header::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// The client has sent; nobody has answered.
pub const NEW: u8 = 0;
/// TCP: the backend has answered SYN with SYN-ACK; the client has not confirmed.
pub const ANSWERED: u8 = 1;
/// Both sides have proven that they are there.
pub const ESTABLISHED: u8 = 2;
/// TCP: the client has sent FIN.
pub const FIN_CLIENT: u8 = 3;
/// TCP: the backend has sent FIN.
pub const FIN_BACKEND: u8 = 4;
/// TCP: FIN both ways; a new SYN starts a new connection.
pub const CLOSED: u8 = 5;
/// TCP: RST; the entries go at once.
pub const RESET: u8 = 6;
/// TCP: taken over in mid-stream, not answered yet.
pub const MID_STREAM: u8 = 7;

/// The state after a TCP packet. `reply`: from the backend.
#[inline(always)]
pub fn step(state: u8, reply: bool, flags: u8) -> u8 {
    if flags & TCP_RST != 0 {
        return RESET;
    }
    let syn = flags & TCP_SYN != 0;
    match (state, reply) {
        (NEW, true) if syn && flags & TCP_ACK != 0 => ANSWERED,
        (ANSWERED, false) if !syn && flags & TCP_ACK != 0 => fin(ESTABLISHED, false, flags),
        (MID_STREAM, true) => fin(ESTABLISHED, true, flags),
        (ESTABLISHED | FIN_CLIENT | FIN_BACKEND, _) if !syn => fin(state, reply, flags),
        _ => state,
    }
}

#[inline(always)]
fn fin(state: u8, reply: bool, flags: u8) -> u8 {
    if flags & TCP_FIN == 0 {
        return state;
    }
    match (state, reply) {
        (ESTABLISHED, false) => FIN_CLIENT,
        (ESTABLISHED, true) => FIN_BACKEND,
        (FIN_CLIENT, true) | (FIN_BACKEND, false) => CLOSED,
        _ => state,
    }
}

/// The name in listings.
pub const fn label(state: u8) -> &'static str {
    match state {
        NEW => "new",
        ANSWERED => "answered",
        ESTABLISHED => "established",
        FIN_CLIENT => "fin-client",
        FIN_BACKEND => "fin-backend",
        CLOSED => "closed",
        RESET => "reset",
        MID_STREAM => "mid-stream",
        _ => "unknown",
    }
}
