//! 64-byte live frames: sent by the kernel's own test runner, counted by a program where they arrive.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::maps::{Array, PerCpuArray};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp};
use stellwerk_tests::netns::Ns;

use super::path::{Path, attach_xdp, link, way};
use crate::bench::machine::pin_cpu;
use crate::bench::scene::STRANGER;
use crate::bench::script::{CLIENTS, Clients, Order, Peer, Script};
use crate::bench::sockets::PORT;

/// Connections that the frames belong to.
const FLOWS: u32 = 1024;
const BATCH: u32 = 64;
const BURST: u32 = 1 << 16;

impl Path {
    /// Frames a second from the client to the server on one core, the generator's work included.
    pub fn frames(&mut self, time: Duration) -> Result<f64> {
        let target = Peer { v4: self.target.0.into(), port: self.target.1, ..STRANGER };
        let server = Peer { v4: self.address.into(), port: PORT, ..STRANGER };
        // A masquerade that finds a client's port free keeps it.
        let answered = self.way.answered().map_or(CLIENTS, |v4| Clients { v4: v4.into(), ..CLIENTS });
        let in_turn = Order { count: FLOWS, first: 0, shuffled: false };
        let (client_ns, server_ns) = (self.client.clone(), self.server.clone());
        // While it counts, the server's own traffic passes the same program.
        attach_counter(self)?;
        let (gateway, back) = (neighbour(&client_ns)?, neighbour(&server_ns)?);
        // Each connection is opened and answered once, so that it is established.
        self.script(&Script::udp4(target, None, in_turn).link(gateway.2, gateway.1))?;
        send(&mut self.ebpf, &client_ns, gateway, FLOWS)?;
        self.script(&Script::udp4(server, Some(answered), in_turn).link(back.2, back.1))?;
        send(&mut self.ebpf, &server_ns, back, FLOWS)?;
        self.script(&Script::udp4(target, None, Order::random(FLOWS)).link(gateway.2, gateway.1))?;
        send(&mut self.ebpf, &client_ns, gateway, FLOWS)?;
        let (before, begin) = (self.arrived()?, Instant::now());
        while begin.elapsed() < time {
            send(&mut self.ebpf, &client_ns, gateway, BURST)?;
        }
        let rate = (self.arrived()? - before) as f64 / begin.elapsed().as_secs_f64();
        detach_counter(self)?;
        Ok(rate)
    }

    fn arrived(&self) -> Result<u64> {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map("ARRIVED").context("ARRIVED")?)?;
        Ok(map.get(&0, 0)?.iter().sum())
    }

    fn script(&mut self, script: &Script) -> Result<()> {
        let mut map = Array::<_, [u32; 24]>::try_from(self.ebpf.map_mut("SCRIPT").context("SCRIPT")?)?;
        let words: [u32; 24] = zerocopy::transmute!(*script);
        Ok(map.set(0, words, 0)?)
    }
}

/// Ways without XDP have the counter on the server's link only while frames are counted: it would turn
/// the box's segmentation off.
fn attach_counter(path: &mut Path) -> Result<()> {
    let server = path.server.clone();
    if path.counts() { Ok(()) } else { attach_xdp(&mut path.ebpf, &server, "count", "eth0", true) }
}

fn detach_counter(path: &mut Path) -> Result<()> {
    if path.counts() {
        return Ok(());
    }
    let program: &mut Xdp = path.ebpf.program_mut("count").context("count")?.try_into()?;
    program.unload()?;
    Ok(program.load()?)
}

/// The link out of an end, its address and that of the box.
type Out = (u32, [u8; 6], [u8; 6]);

fn neighbour(ns: &Ns) -> Result<Out> {
    let (index, own) = link(ns, "eth0")?;
    let gateway = if ns.full_name().ends_with("-c") { "10.1.0.1" } else { "10.2.0.1" };
    let at = || ns.ip_text(&format!("neigh show {gateway}"));
    // On a busy machine the answer may be late.
    for _ in 0..10 {
        if at()?.contains("lladdr") {
            break;
        }
        ns.run(|| {
            std::net::TcpStream::connect_timeout(&format!("{gateway}:9").parse()?, Duration::from_millis(300))
                .map_err(anyhow::Error::from)
        })?
        .ok();
    }
    let text = at()?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let position = words.iter().position(|w| *w == "lladdr").with_context(|| format!("no neighbour: {text}"))?;
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(words[position + 1].split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    Ok((index, own, mac))
}

/// Sends frames of the script out of an end's link.
fn send(ebpf: &mut Ebpf, ns: &Ns, (index, own, box_mac): Out, count: u32) -> Result<()> {
    way(ebpf, 0, index, box_mac, own)?;
    let program: &mut Xdp = ebpf.program_mut("generate").context("generate")?.try_into()?;
    if program.fd().is_err() {
        program.load().context("loading the generator")?;
    }
    let program = &*program;
    let packet = [0u8; 64];
    ns.run(|| -> Result<()> {
        pin_cpu()?;
        let options = TestRunOptions {
            data_in: Some(&packet),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        program.test_run(options).context("live frames")?;
        Ok(())
    })??;
    ensure!(count > 0, "nothing was sent");
    Ok(())
}
