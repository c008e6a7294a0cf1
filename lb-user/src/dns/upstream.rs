//! One name server that is asked, and what of its answer is taken.
//!
//! Invariant: an answer is taken only if it comes from where it was asked for, with the number, the question and
//! the form of what was asked; and of it only what the question leads to. Each question has a socket, and so a
//! port, of its own. Not here: whom to ask, and when again.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::cache::{Key, Reply};
use super::metrics::{Event, Metrics};

/// What fits through any path in one piece.
pub const PAYLOAD: u16 = 1_232;

#[derive(Debug, PartialEq)]
pub enum Failure {
    /// It didn't answer in time, or can't be reached.
    Silent,
    /// It says that it can't tell.
    Unable(ResponseCode),
    /// It tells of something else.
    Wrong,
}

/// Asks, within a time: over UDP, then over TCP what is cut short, and without extensions who knows none.
pub async fn ask(server: SocketAddr, key: &Key, within: Duration, metrics: &Metrics) -> Result<Reply, Failure> {
    let end = Instant::now() + within;
    let mut answer = attempt(server, key, true, end, metrics).await?;
    if matches!(answer.response_code, ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS) {
        answer = attempt(server, key, false, end, metrics).await?;
    }
    taken(key, answer)
}

async fn attempt(
    server: SocketAddr,
    key: &Key,
    extended: bool,
    end: Instant,
    metrics: &Metrics,
) -> Result<Message, Failure> {
    let question = question(key, extended);
    metrics.event(Event::Upstream);
    let answer = in_time(end, over_udp(server, &question, metrics)).await?;
    if !answer.truncation {
        return Ok(answer);
    }
    metrics.event(Event::UpstreamOverTcp);
    in_time(end, over_tcp(server, &question)).await
}

async fn in_time(end: Instant, asking: impl Future<Output = io::Result<Message>>) -> Result<Message, Failure> {
    match timeout_at(end, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => Err(Failure::Wrong),
        Ok(Err(_)) | Err(_) => Err(Failure::Silent),
    }
}

fn question(key: &Key, extended: bool) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = key.unchecked;
    message.add_query(Query::query(key.name.clone(), key.kind));
    if extended {
        let mut edns = Edns::new();
        edns.set_max_payload(PAYLOAD).set_version(0).set_dnssec_ok(key.dnssec);
        message.set_edns(edns);
    }
    message
}

fn bytes(message: &Message) -> io::Result<Vec<u8>> {
    message.to_vec().map_err(io::Error::other)
}

async fn over_udp(server: SocketAddr, question: &Message, metrics: &Metrics) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    // From now on the kernel lets nobody else's packets through.
    socket.connect(server).await?;
    socket.send(&bytes(question)?).await?;
    let mut buffer = vec![0; 4_096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..len]) {
            Ok(answer) if is_answer(question, &answer) => return Ok(answer),
            // Somebody guesses, or it answers what was asked before: the right one may still come.
            _ => metrics.event(Event::UpstreamWrong),
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let question_bytes = bytes(question)?;
    let mut framed = (question_bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend(question_bytes);
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    if is_answer(question, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn is_answer(question: &Message, answer: &Message) -> bool {
    let same = |asked: &Query, told: &Query| {
        asked.name() == told.name() && asked.query_type() == told.query_type() && told.query_class() == DNSClass::IN
    };
    let is_response = answer.id == question.id && answer.message_type == MessageType::Response;
    // Who can't read a question can't repeat it.
    let unread = answer.queries.is_empty() && answer.response_code == ResponseCode::FormErr;
    is_response
        && answer.op_code == OpCode::Query
        && (unread || (answer.queries.len() == 1 && same(&question.queries[0], &answer.queries[0])))
}

/// What of an answer is about the question.
fn taken(key: &Key, answer: Message) -> Result<Reply, Failure> {
    let code = answer.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return Err(Failure::Unable(code));
    }
    let authentic = answer.authentic_data;
    let names = names(&key.name, &answer.answers);
    let told = !answer.answers.is_empty();
    let about = |record: &Record| {
        record.dns_class == DNSClass::IN
            && (names.contains(&record.name)
                || (record.record_type() == RecordType::DNAME && names.iter().any(|n| record.name.zone_of(n))))
    };
    let signed = |record: &Record| key.dnssec || key.kind == record.record_type() || !record.record_type().is_dnssec();
    let answers: Vec<Record> = answer.answers.into_iter().filter(|r| about(r) && signed(r)).collect();
    if told && answers.is_empty() {
        return Err(Failure::Wrong);
    }
    let last = names.last().unwrap_or(&key.name);
    let proves = |record: &Record| match record.record_type() {
        RecordType::SOA => record.name.zone_of(last),
        other => key.dnssec && other.is_dnssec(),
    };
    let authorities = answer.authorities.into_iter().filter(proves).collect();
    Ok(Reply { code, answers, authorities, authentic })
}

/// The name that was asked for, and those that aliases lead to from there.
fn names(asked: &Name, answers: &[Record]) -> Vec<Name> {
    let mut names = vec![asked.clone()];
    // No chain is longer than there are records.
    for _ in 0..answers.len() {
        let last = &names[names.len() - 1];
        let next = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *last => Some(target.0.clone()),
            _ => None,
        });
        match next {
            Some(next) if !names.contains(&next) => names.push(next),
            _ => break,
        }
    }
    names
}
