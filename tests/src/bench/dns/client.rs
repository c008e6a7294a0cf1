//! A client that always has so many queries on their way.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use stellwerk_tests::netns::Ns;

use super::super::machine::pin_cpu;
use super::super::series::quantile;

/// Queries on their way.
const WINDOW: usize = 32;
/// After this one is lost.
const PATIENCE: Duration = Duration::from_millis(500);

pub struct Client {
    socket: UdpSocket,
    /// One after the other, with numbers to be set.
    queries: Vec<Vec<u8>>,
    next: usize,
    buffer: Vec<u8>,
}

/// What a turn gave.
pub struct Round {
    /// Answers a second.
    pub rate: f64,
    /// Microseconds.
    pub p99: f64,
    pub answers: u64,
    pub lost: u64,
}

impl Client {
    pub fn open(ns: &Ns, to: SocketAddr, names: &[String]) -> Result<Client> {
        let socket = ns.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        let query = |name: &String| {
            let mut message = Message::new(0, MessageType::Query, OpCode::Query);
            message.metadata.recursion_desired = true;
            message.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
            Ok(message.to_vec()?)
        };
        let queries = names.iter().map(query).collect::<Result<Vec<_>>>()?;
        Ok(Client { socket, queries, next: 0, buffer: vec![0; 1_500] })
    }

    fn send(&mut self, id: u16) -> Result<()> {
        let at = self.next % self.queries.len();
        self.next += 1;
        let query = &mut self.queries[at];
        query[..2].copy_from_slice(&id.to_be_bytes());
        self.socket.send(query).map(drop).context("sending a query")
    }

    /// The number of an answer that says what it should; None: none came.
    fn receive(&mut self) -> Result<Option<u16>> {
        let Ok(len) = self.socket.recv(&mut self.buffer) else { return Ok(None) };
        let answer = &self.buffer[..len];
        ensure!(len > 12 && answer[3] & 0xf == 0 && answer[7] == 1, "an answer without the address: {answer:?}");
        Ok(Some(u16::from_be_bytes([answer[0], answer[1]])))
    }

    /// Asks the next query until it is answered.
    pub fn one(&mut self) -> Result<()> {
        self.send(1)?;
        self.receive()?.context("no answer").map(drop)
    }

    /// Asks everything once.
    pub fn each(&mut self) -> Result<()> {
        for _ in 0..self.queries.len() {
            // One at a time is never too much, and a lost one is asked again.
            if self.one().is_err() {
                self.next -= 1;
                self.one()?;
            }
        }
        Ok(())
    }

    /// How long it takes until the next query has its answer, from a moment on.
    pub fn wait(&mut self, from: Instant) -> Result<Duration> {
        while self.one().is_err() {
            ensure!(from.elapsed() < PATIENCE * 20, "no such name");
            std::thread::sleep(Duration::from_micros(200));
        }
        Ok(from.elapsed())
    }

    pub fn turn(&mut self, length: Duration) -> Result<Round> {
        pin_cpu()?;
        let (mut sent, mut times, mut lost, mut waiting) = (vec![None; 1 << 16], Vec::new(), 0, 0);
        let (begin, mut id) = (Instant::now(), 0u16);
        while begin.elapsed() < length {
            while waiting < WINDOW {
                id = id.wrapping_add(1);
                sent[usize::from(id)] = Some(Instant::now());
                self.send(id)?;
                waiting += 1;
            }
            match self.receive()? {
                Some(id) => {
                    if let Some(at) = sent[usize::from(id)].take() {
                        times.push(at.elapsed().as_secs_f64() * 1e6);
                        waiting -= 1;
                    }
                }
                None => {
                    lost += waiting as u64;
                    waiting = 0;
                    sent.fill(None);
                }
            }
        }
        let rate = times.len() as f64 / begin.elapsed().as_secs_f64();
        // What is still on its way belongs to no other turn.
        while waiting > 0 && self.receive()?.is_some() {
            waiting -= 1;
        }
        Ok(Round { rate, p99: quantile(&times, 0.99), answers: times.len() as u64, lost })
    }
}
