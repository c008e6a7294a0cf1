//! What is measured of a way: connections and requests a second, and throughput.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use stellwerk_tests::netns::ethtool::{self, Offload};

use super::path::Path;
use crate::bench::sockets;

impl Path {
    fn at(&self) -> SocketAddr {
        (self.target.0, self.target.1).into()
    }

    /// Connections that are opened, asked once and closed.
    pub fn connections(&mut self, time: Duration) -> Result<f64> {
        sockets::connections(&self.client, self.at(), time, &self.failed)
    }

    /// The same of a client whose ports are those that Linux gives by default.
    pub fn connections_by_default(&mut self, time: Duration) -> Result<f64> {
        self.with_ports("32768 60999", time)
    }

    /// The same of a client that has nearly twice as many ports as there are outside, so that the next
    /// connection of a port outside is one of another port inside.
    pub fn connections_of_all_ports(&mut self, time: Duration) -> Result<f64> {
        self.with_ports("10000 65000", time)
    }

    fn with_ports(&mut self, ports: &str, time: Duration) -> Result<f64> {
        self.client.sysctls(&[("net/ipv4/ip_local_port_range", ports)])?;
        self.connections(time)
    }

    /// Requests on connections that stay.
    pub fn requests(&mut self, time: Duration) -> Result<f64> {
        sockets::requests(&self.client, self.at(), time)
    }

    /// Gbit/s, as the senders' stacks do it by themselves.
    pub fn throughput(&mut self, time: Duration) -> Result<f64> {
        sockets::throughput(&self.client, (self.target.0, self.iperf).into(), time)
    }

    /// Gbit/s in packets as they are on a wire.
    pub fn throughput_in_segments(&mut self, time: Duration) -> Result<f64> {
        for ns in [&self.client, &self.server] {
            // Without checksums there is no segmentation by a device, either.
            for offload in [Offload::TxChecksum, Offload::Segmentation] {
                ethtool::set(ns, "eth0", offload, false)?;
            }
        }
        // Nor are packets put together again in the middle, which a wire's speed leaves no time for.
        for link in ["eth0", "eth1"] {
            ethtool::set(&self.middle, link, Offload::Aggregation, false)?;
        }
        self.throughput(time)
    }
}
