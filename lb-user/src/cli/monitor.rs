//! The words of `stellwerk monitor`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use lb_common::drop::Drop as Reason;

use crate::monitor::{Asked, Filter, reason};

#[derive(Args, Clone, Debug)]
pub struct Monitor {
    /// Only from or to this address
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
    /// Only from or to this port
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only of this service: namespace/name, or with :port
    #[arg(long, value_name = "SERVICE")]
    pub service: Option<String>,
    /// Only packets that are dropped or refused for this reason, as `stellwerk drops` has it
    #[arg(long, value_name = "REASON", value_parser = reason)]
    pub reason: Option<Reason>,
    /// Beside what is dropped one packet in N of each CPU's; 1: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub every: u32,
    /// Leave out connections that begin and end
    #[arg(long)]
    pub no_flows: bool,
    /// Write the packets to a capture file, too
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "N")]
    pub seconds: Option<u64>,
    /// An object a line
    #[arg(long)]
    pub json: bool,
}

impl Monitor {
    pub fn asked(&self) -> Asked {
        Asked {
            filter: Filter {
                address: self.address,
                port: self.port,
                service: self.service.clone(),
                reason: self.reason,
            },
            every: self.every,
            flows: !self.no_flows,
            json: self.json,
            pcap: self.pcap.clone(),
            count: self.count,
            seconds: self.seconds,
        }
    }
}
