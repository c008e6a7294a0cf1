//! What passes an interface, both ways, while a value lives.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Ns;

/// The last packets may still be on their way when a capture is asked for.
const LAST: Duration = Duration::from_millis(200);

/// A namespace's packets, of all its links, from when it was made. A namespace with one link shows
/// each packet once.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<Vec<u8>>>>,
}

impl Capture {
    pub fn start(ns: &Ns) -> Result<Capture> {
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        let socket = ns.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(all))))??;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut packets, mut buffer) = (Vec::new(), vec![0; 70_000]);
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(n) = (&socket).read(&mut buffer) {
                    packets.push(buffer[..n].to_vec());
                }
            }
            packets
        });
        Ok(Capture { stop, thread: Some(thread) })
    }

    /// All packets so far, with their link-layer headers.
    pub fn end(mut self) -> Result<Vec<Vec<u8>>> {
        std::thread::sleep(LAST);
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().ok_or_else(|| anyhow!("ended twice"))?;
        thread.join().map_err(|_| anyhow!("the capture broke"))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
