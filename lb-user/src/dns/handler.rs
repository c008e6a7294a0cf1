//! From a query's bytes to an answer's.
//!
//! Invariant: any bytes lead to a well-formed answer or to silence, and everything but asking others is done at
//! once. Names are looked up here first, and only then elsewhere. Not here: sockets.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use tokio::sync::watch;

use super::cache::{Key, Reply};
use super::fast::Repeat;
use super::forward::Forwarder;
use super::guard::Guard;
use super::metrics::{Event, Metrics, Origin};
use super::wire::{self, HEADER};
use super::{Settings, Snapshot, answer, records, transfer};

/// Aliases that are followed one after the other.
const ALIASES: usize = 8;

/// Who asks, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// None: whoever may use the agent's own socket.
    pub addr: Option<IpAddr>,
    /// Over TCP, or that socket.
    pub stream: bool,
}

#[derive(Debug)]
pub enum Outcome {
    Silence,
    Reply(Vec<u8>),
    /// One after the other.
    Replies(Vec<Vec<u8>>),
    /// Others are to be asked: [`Handler::finish`].
    Later(Box<Asking>),
}

/// A query that waits for others.
#[derive(Debug)]
pub struct Asking {
    message: Message,
    room: usize,
    key: Key,
    /// Who asked understands signatures, or asks whether they hold.
    cares: bool,
    origin: Origin,
}

pub struct Handler {
    pub settings: Settings,
    pub snapshot: watch::Receiver<Option<Arc<Snapshot>>>,
    pub guard: Guard,
    pub forwarder: Arc<Forwarder>,
    pub metrics: Arc<Metrics>,
}

/// What a packet's header alone forbids.
fn wrong(bytes: &[u8]) -> Option<ResponseCode> {
    let count = |i: usize| u16::from_be_bytes([bytes[i], bytes[i + 1]]);
    let opcode = bytes[2] >> 3 & 0xf;
    if opcode != u8::from(OpCode::Query) {
        Some(ResponseCode::NotImp)
    } else if count(4) != 1 || count(6) > 1 || count(8) > 1 || count(10) > 2 {
        Some(ResponseCode::FormErr)
    } else {
        None
    }
}

impl Handler {
    /// All that can be done at once.
    pub fn begin(&self, bytes: &[u8], client: &Client) -> Outcome {
        self.begin_noting(bytes, client, &mut None)
    }

    /// Notes what the same query may be answered by, too.
    pub fn begin_noting(&self, bytes: &[u8], client: &Client, repeat: &mut Option<Repeat>) -> Outcome {
        if bytes.len() < HEADER || bytes[2] & 0x80 != 0 {
            self.metrics.event(Event::Ignored);
            return Outcome::Silence;
        }
        if client.addr.is_some_and(|addr| !self.guard.admits(addr, Instant::now())) {
            self.metrics.event(Event::RateLimited);
            return Outcome::Silence;
        }
        let refused = wrong(bytes).map_or_else(|| Message::from_vec(bytes).map_err(|_| ResponseCode::FormErr), Err);
        match refused {
            Ok(query) if query.queries.len() == 1 => self.query(query, client, repeat),
            Ok(_) => self.refuse(bytes, ResponseCode::FormErr),
            Err(code) => self.refuse(bytes, code),
        }
    }

    fn refuse(&self, bytes: &[u8], code: ResponseCode) -> Outcome {
        self.metrics.event(Event::Malformed);
        self.metrics.answer(code, Origin::None);
        Outcome::Reply(wire::refusal(bytes, code))
    }

    fn query(&self, mut query: Message, client: &Client, repeat: &mut Option<Repeat>) -> Outcome {
        let Some(question) = query.queries.pop() else { return Outcome::Silence };
        let room = wire::room(query.edns.as_ref(), client.stream);
        let kind = question.query_type();
        self.metrics.query(kind, client.stream);
        let mut message = Message::response(query.id, OpCode::Query);
        message.metadata.recursion_desired = query.recursion_desired;
        message.metadata.checking_disabled = query.checking_disabled;
        message.metadata.recursion_available = true;
        message.edns = query.edns.as_ref().map(wire::extensions);
        message.add_query(question.clone());
        if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return self.done(message, ResponseCode::BADVERS, Origin::None, room);
        }
        if client.addr.is_some_and(|addr| !self.may_ask(addr)) {
            self.metrics.event(Event::Outsider);
            return self.done(message, ResponseCode::Refused, Origin::None, room);
        }
        match (question.query_class(), kind) {
            (DNSClass::CH, RecordType::TXT) if client.addr.is_none() => self.counts(message, &question),
            (DNSClass::IN, RecordType::AXFR | RecordType::IXFR) => self.transfer(message, &question, client),
            (DNSClass::IN, RecordType::ANY) => {
                message.answers.push(records::not_all(question.name()));
                self.done(message, ResponseCode::NoError, Origin::None, room)
            }
            (DNSClass::IN, kind) if (128..=255).contains(&u16::from(kind)) || kind == RecordType::OPT => {
                self.done(message, ResponseCode::NotImp, Origin::None, room)
            }
            (DNSClass::IN, _) => self.name(message, &query, &question, room, repeat),
            _ => self.done(message, ResponseCode::Refused, Origin::None, room),
        }
    }

    pub fn may_ask(&self, client: IpAddr) -> bool {
        self.guard.is_inside(client) || self.snapshot.borrow().as_ref().is_some_and(|s| s.node.contains(&client))
    }

    fn name(
        &self,
        mut message: Message,
        query: &Message,
        question: &Query,
        room: usize,
        repeat: &mut Option<Repeat>,
    ) -> Outcome {
        let edns = query.edns.as_ref();
        // Those that carry something, such as a cookie, are each of its own kind.
        let plain = edns.is_none_or(|edns| edns.options().as_ref().is_empty());
        let (mut name, kind) = (question.name().clone(), question.query_type());
        let snapshot = self.snapshot.borrow().clone();
        let (mut origin, mut elsewhere) = (None, false);
        for _ in 0..ALIASES {
            let Some(own) = answer::answer(&self.settings, snapshot.as_deref(), &name, kind) else {
                elsewhere = true;
                break;
            };
            message.metadata.authoritative |= origin.is_none() && own.code != ResponseCode::ServFail;
            origin = origin.or(Some(own.origin));
            message.answers.extend(turned(own.answers, message.id));
            message.authorities = own.authorities;
            message.additionals.extend(own.additionals);
            match own.next {
                Some(next) => name = next,
                None => {
                    let origin = origin.unwrap_or(Origin::None);
                    // Several take turns.
                    if plain && message.answers.len() < 2 {
                        *repeat = Some(Repeat { kind, code: own.code, origin, of_others: false });
                    }
                    return self.done(message, own.code, origin, room);
                }
            }
        }
        if !elsewhere {
            // A circle, or as good as one.
            return self.done(message, ResponseCode::ServFail, origin.unwrap_or(Origin::None), room);
        }
        let dnssec = edns.is_some_and(|edns| edns.flags().dnssec_ok);
        let key = Key { name: name.to_lowercase(), kind, dnssec, unchecked: message.checking_disabled };
        let asking = Asking {
            message,
            room,
            key,
            cares: dnssec || query.authentic_data,
            origin: origin.unwrap_or(Origin::Forwarded),
        };
        match self.forwarder.known(&asking.key) {
            Some(reply) => {
                let (message, code, origin, room) = asking.take(reply);
                if plain {
                    *repeat = Some(Repeat { kind, code, origin, of_others: true });
                }
                self.done(message, code, origin, room)
            }
            None => Outcome::Later(Box::new(asking)),
        }
    }

    /// Asks others.
    pub async fn finish(&self, asking: Asking) -> Vec<u8> {
        let reply = self.forwarder.resolve(&asking.key).await;
        let (message, code, origin, room) = asking.take(reply);
        self.encoded(message, code, origin, room)
    }

    fn done(&self, message: Message, code: ResponseCode, origin: Origin, room: usize) -> Outcome {
        Outcome::Reply(self.encoded(message, code, origin, room))
    }

    fn encoded(&self, mut message: Message, code: ResponseCode, origin: Origin, room: usize) -> Vec<u8> {
        message.metadata.response_code = code;
        self.metrics.answer(code, origin);
        let (bytes, cut) = wire::encode(message, room);
        if cut {
            self.metrics.event(Event::Truncated);
        }
        bytes
    }

    /// The whole zone.
    fn transfer(&self, message: Message, question: &Query, client: &Client) -> Outcome {
        let snapshot = self.snapshot.borrow().clone();
        let may = client.addr.is_none_or(|addr| self.guard.may_transfer(addr)) && client.stream;
        let room = wire::room(message.edns.as_ref(), client.stream);
        let Some(snapshot) = snapshot.filter(|snapshot| may && snapshot.zone.is_whole()) else {
            return self.done(message, ResponseCode::Refused, Origin::None, room);
        };
        match transfer::records(&self.settings, &snapshot, question.name()) {
            Some(records) => {
                self.metrics.event(Event::Transfer);
                self.metrics.answer(ResponseCode::NoError, Origin::Cluster);
                Outcome::Replies(transfer::messages(&message, records))
            }
            None => self.done(message, ResponseCode::NotAuth, Origin::None, room),
        }
    }

    /// What was counted, to whoever may use the agent's own socket.
    fn counts(&self, mut message: Message, question: &Query) -> Outcome {
        for count in self.metrics.counts() {
            let words =
                vec![count.kind.to_owned(), count.name.to_owned(), count.count.to_string(), count.text.to_owned()];
            let data = hickory_proto::rr::RData::TXT(hickory_proto::rr::rdata::TXT::new(words));
            let mut record = Record::from_rdata(question.name().clone(), 0, data);
            record.dns_class = DNSClass::CH;
            message.answers.push(record);
        }
        Outcome::Reply(wire::encode(message, wire::LONGEST).0)
    }
}

impl Asking {
    /// Joins what others said.
    fn take(self, reply: Reply) -> (Message, ResponseCode, Origin, usize) {
        let Asking { mut message, room, cares, origin, .. } = self;
        message.metadata.authentic_data = cares && reply.authentic && origin == Origin::Forwarded;
        let asked = message.queries.first().map(|query| query.name().clone());
        // As it was written, not as it was asked on.
        let as_asked = |mut record: Record| {
            if let Some(asked) = asked.as_ref().filter(|asked| record.name == **asked) {
                record.name = asked.clone();
            }
            record
        };
        message.answers.extend(reply.answers.into_iter().map(as_asked));
        message.authorities = reply.authorities;
        (message, reply.code, origin, room)
    }

    /// The name that others are asked for.
    pub fn name(&self) -> &Name {
        &self.key.name
    }
}

/// Addresses in an order of their own for each query, so that who takes the first shares the load.
fn turned(mut records: Vec<Record>, id: u16) -> Vec<Record> {
    if records.len() > 1 {
        let by = usize::from(id) % records.len();
        records.rotate_left(by);
    }
    records
}
