//! The states of a connection, for TCP and for protocols without states of their own.
//!
//! Pure: `step(state, reply, flags) -> state`. Every combination is enumerated by a test.

use crate::wire::header::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};

/// The client has sent; nobody has answered.
pub const NEW: u8 = 0;
/// TCP: the backend has answered SYN with SYN-ACK; the client has not confirmed.
pub const ANSWERED: u8 = 1;
/// TCP: taken over in mid-stream, not answered yet.
pub const MID_STREAM: u8 = 2;
/// Not TCP: translated between inside and outside, not answered yet; the answer may take as long as that of
/// an answered connection.
pub const WAITING: u8 = 3;
/// Both sides have proven that they are there: this state and those above.
pub const ESTABLISHED: u8 = 4;
/// TCP: the client has sent FIN.
pub const FIN_CLIENT: u8 = 5;
/// TCP: the backend has sent FIN.
pub const FIN_BACKEND: u8 = 6;
/// TCP: FIN both ways; a new SYN starts a new connection.
pub const CLOSED: u8 = 7;
/// TCP: RST; the entries go at once.
pub const RESET: u8 = 8;

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

/// Whether both sides have proven that they are there.
#[inline(always)]
pub const fn answered(state: u8) -> bool {
    state >= ESTABLISHED
}

/// Whether a connection of this state may not be pushed out by another: it is answered, and has not ended.
#[inline(always)]
pub const fn protected(state: u8) -> bool {
    matches!(state, ESTABLISHED | FIN_CLIENT | FIN_BACKEND)
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
        WAITING => "waiting",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// What RFC 9293's connection does to a middle box's state, written down whole: by state and
    /// direction, what SYN, SYN-ACK, ACK, FIN-ACK and RST lead to.
    #[rustfmt::skip]
    const TABLE: [(u8, bool, [u8; 5]); 16] = [
        // state        reply   SYN          SYN-ACK      ACK          FIN-ACK      RST
        (NEW,         false, [NEW,         NEW,         NEW,         NEW,         RESET]),
        (NEW,         true,  [NEW,         ANSWERED,    NEW,         NEW,         RESET]),
        (ANSWERED,    false, [ANSWERED,    ANSWERED,    ESTABLISHED, FIN_CLIENT,  RESET]),
        (ANSWERED,    true,  [ANSWERED,    ANSWERED,    ANSWERED,    ANSWERED,    RESET]),
        (ESTABLISHED, false, [ESTABLISHED, ESTABLISHED, ESTABLISHED, FIN_CLIENT,  RESET]),
        (ESTABLISHED, true,  [ESTABLISHED, ESTABLISHED, ESTABLISHED, FIN_BACKEND, RESET]),
        (FIN_CLIENT,  false, [FIN_CLIENT,  FIN_CLIENT,  FIN_CLIENT,  FIN_CLIENT,  RESET]),
        (FIN_CLIENT,  true,  [FIN_CLIENT,  FIN_CLIENT,  FIN_CLIENT,  CLOSED,      RESET]),
        (FIN_BACKEND, false, [FIN_BACKEND, FIN_BACKEND, FIN_BACKEND, CLOSED,      RESET]),
        (FIN_BACKEND, true,  [FIN_BACKEND, FIN_BACKEND, FIN_BACKEND, FIN_BACKEND, RESET]),
        (CLOSED,      false, [CLOSED,      CLOSED,      CLOSED,      CLOSED,      RESET]),
        (CLOSED,      true,  [CLOSED,      CLOSED,      CLOSED,      CLOSED,      RESET]),
        (RESET,       false, [RESET,       RESET,       RESET,       RESET,       RESET]),
        (RESET,       true,  [RESET,       RESET,       RESET,       RESET,       RESET]),
        (MID_STREAM,  false, [MID_STREAM,  MID_STREAM,  MID_STREAM,  MID_STREAM,  RESET]),
        (MID_STREAM,  true,  [ESTABLISHED, ESTABLISHED, ESTABLISHED, FIN_BACKEND, RESET]),
    ];
    const FLAGS: [u8; 5] = [TCP_SYN, TCP_SYN | TCP_ACK, TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST];

    #[test]
    fn every_state_direction_and_flag() {
        for (state, reply, expected) in TABLE {
            let stepped: Vec<u8> = FLAGS.iter().map(|&flags| step(state, reply, flags)).collect();
            assert_eq!(stepped, expected, "{} reply={reply}", label(state));
        }
    }

    #[test]
    fn any_bits_lead_to_a_known_state() {
        for state in 0..=RESET {
            for reply in [false, true] {
                for flags in 0..=255 {
                    let next = step(state, reply, flags);
                    assert_ne!(label(next), "unknown");
                    assert!(flags & TCP_RST == 0 || next == RESET);
                }
            }
        }
    }
}
