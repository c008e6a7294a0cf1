//! Answers as bytes.
//!
//! Invariant: whatever came, what leaves is a whole message that is not longer than it may be; what had to be left
//! out is told (TC).

use hickory_proto::op::{Edns, Message, ResponseCode};

use super::upstream::PAYLOAD;

/// Of a message's first bytes.
pub const HEADER: usize = 12;
/// Without extensions, over UDP.
const PLAIN: usize = 512;
/// Over TCP.
pub const LONGEST: usize = u16::MAX as usize;

/// How long an answer may be.
pub fn room(edns: Option<&Edns>, stream: bool) -> usize {
    if stream {
        return LONGEST;
    }
    let asked = edns.map_or(PLAIN, |edns| usize::from(edns.max_payload()));
    asked.clamp(PLAIN, usize::from(PAYLOAD))
}

/// The extensions of an answer to who has any.
pub fn extensions(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD).set_version(0).set_dnssec_ok(asked.flags().dnssec_ok);
    edns
}

/// A message that fits, and whether something was left out that matters.
pub fn encode(mut message: Message, room: usize) -> (Vec<u8>, bool) {
    let bytes = |message: &Message| message.to_vec().ok();
    let fits = |bytes: &Vec<u8>| bytes.len() <= room;
    if let Some(bytes) = bytes(&message).filter(fits) {
        return (bytes, false);
    }
    // Nobody misses these.
    message.additionals.clear();
    if let Some(bytes) = bytes(&message).filter(fits) {
        return (bytes, false);
    }
    message.metadata.truncation = true;
    message.authorities.clear();
    let all = std::mem::take(&mut message.answers);
    // As many as fit.
    let (mut least, mut most) = (0, all.len());
    while least < most {
        let middle = (least + most).div_ceil(2);
        message.answers = all[..middle].to_vec();
        match bytes(&message).filter(fits) {
            Some(_) => least = middle,
            None => most = middle - 1,
        }
    }
    message.answers = all[..least].to_vec();
    let bytes = bytes(&message).filter(fits).unwrap_or_else(|| bare(message.id, ResponseCode::ServFail));
    (bytes, true)
}

/// The answer to what can't be understood: its number, and why not.
pub fn refusal(query: &[u8], code: ResponseCode) -> Vec<u8> {
    let mut bytes = bare(u16::from_be_bytes([query[0], query[1]]), code);
    // Its kind of operation, and whether it wished for others to be asked.
    bytes[2] |= query[2] & 0x79;
    bytes
}

fn bare(id: u16, code: ResponseCode) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes[..2].copy_from_slice(&id.to_be_bytes());
    (bytes[2], bytes[3]) = (0x80, code.low());
    bytes
}
