//! The words of `stellwerk trace`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use super::Listing;
use crate::trace::packet::{self, Words};
use crate::trace::{Backend, Packets, Place, Question};

#[derive(Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["words", "hex", "pcap"])))]
#[command(group(clap::ArgGroup::new("place").required(true).args(["in", "out"])))]
pub struct Trace {
    /// Protocol, source and target, such as: tcp 198.51.100.7:40000 192.168.20.100:80
    #[arg(value_name = "WORD", num_args = 3)]
    pub words: Vec<String>,
    /// A frame in hexadecimal digits, from its Ethernet header on
    #[arg(long, value_name = "DIGITS")]
    pub hex: Option<String>,
    /// The frames of a capture, one after the other
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// It comes in by this port or interface
    #[arg(long, value_name = "PORT")]
    pub r#in: Option<String>,
    /// This node's own stack sends it by this port or interface
    #[arg(long, value_name = "PORT")]
    pub out: Option<String>,
    /// TCP's flags: syn, ack, fin, rst, psh
    #[arg(long, value_delimiter = ',', default_value = "syn", requires = "words")]
    pub flags: Vec<String>,
    /// The hop limit
    #[arg(long, value_name = "N", default_value_t = 64, requires = "words")]
    pub ttl: u8,
    /// Bytes of payload
    #[arg(long, value_name = "N", default_value_t = 0, requires = "words", value_parser = clap::value_parser!(u16).range(..=9_000))]
    pub length: u16,
    /// Say why it doesn't go to this backend: an address, or one with a port
    #[arg(long, value_name = "BACKEND")]
    pub why_not: Option<Backend>,
    #[command(flatten)]
    pub listing: Listing,
}

impl Trace {
    pub fn question(&self) -> Result<Question> {
        let packets = match (&self.hex, &self.pcap) {
            (Some(digits), _) => Packets::Frames(vec![packet::hex(digits).context("--hex")?]),
            (None, Some(path)) => Packets::Frames(packet::capture(path)?),
            (None, None) => {
                let (flags, length) = (self.flags.clone(), self.length.into());
                Packets::Words(Words { flags, ttl: self.ttl, length, ..Words::read(&self.words)? })
            }
        };
        let place = match (&self.r#in, &self.out) {
            (Some(name), _) => Place::In(name.clone()),
            (None, name) => Place::Out(name.clone().unwrap_or_default()),
        };
        Ok(Question { packets, place, why_not: self.why_not })
    }
}
