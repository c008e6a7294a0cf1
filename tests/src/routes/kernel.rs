//! Routes in the kernel, in three ways at once: our table, a kernel trie, and a namespace's own routes.
//!
//! Invariant: all three are asked by programs of one object (`lb-ebpf/src/bin/route.rs`), which take the same
//! destinations in the same way. A route's value is the last 16 bits of its gateway.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use lb_common::table::Prefix;
use lb_user::apply::fib::Parts;
use lb_user::apply::table::Table;
use lb_user::fib::Fib;

use super::Drawn;
use crate::netns::{Lab, Ns};
use crate::object::{object, run};

/// What a run asks so many of.
pub const DESTINATIONS: usize = 1 << 16;
/// The largest value that a gateway can say.
pub const VALUES: u32 = 0xfff0;
/// What a table of ours may take.
const ROOM: u64 = 1 << 29;

/// Which table is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// None.
    Floor,
    Ours,
    Trie,
    Kernel,
}

/// The loaded programs and their tables, of one family.
pub struct Routes<A> {
    ebpf: Ebpf,
    dir: PathBuf,
    link: u32,
    ns: Ns,
    lab: Lab,
    family: PhantomData<A>,
}

/// The gateway that says a value.
pub fn gateway<A: Drawn>(value: u32) -> IpAddr {
    if A::IS_V6 {
        [0xfd00, 0, 0, 0, 0, 0, 0, value as u16].into()
    } else {
        [10, 0, (value >> 8) as u8, value as u8].into()
    }
}

fn bits_of(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => addr.to_bits().into(),
        IpAddr::V6(addr) => addr.to_bits(),
    }
}

fn name<A: Drawn>(stem: &str) -> String {
    format!("{stem}{}", if A::IS_V6 { 6 } else { 4 })
}

impl<A: Drawn> Routes<A> {
    /// Programs with empty tables, and a namespace without routes.
    pub fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let (ns, far) = (lab.ns("routes")?, lab.ns("far")?);
        lab.wire((&ns, "r0"), (&far, "r0"))?;
        ns.forward()?;
        ns.ip("addr add 10.0.255.254/16 dev r0\naddr add fd00::1:0/64 dev r0 nodad")?;
        let dir = lab.pins();
        std::fs::create_dir_all(&dir).context("the folder of pins")?;
        let bytes = object("route")?;
        let mut ebpf = EbpfLoader::new().load(&bytes).context("loading route.o")?;
        for (name, program) in ebpf.programs_mut() {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("loading {name}"))?;
        }
        for (name, map) in ebpf.maps() {
            if !name.starts_with('.') {
                map.pin(dir.join(name)).with_context(|| format!("pinning {name}"))?;
            }
        }
        let link = ns.ip_text("-o link show r0")?.split(':').next().unwrap_or_default().trim().parse()?;
        Ok(Routes { ebpf, dir, link, ns, lab, family: PhantomData })
    }

    pub fn ns(&self) -> &Ns {
        &self.ns
    }

    /// Where the maps are pinned.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The index of the link that all routes lead out of.
    pub fn link(&self) -> u32 {
        self.link
    }

    pub fn ours(&self, routes: &[(Prefix<A>, u32)]) -> Result<Fib<A, Parts>> {
        Ok(Fib::load(Parts::open::<A>(&self.dir, ROOM)?, routes)?)
    }

    pub fn fill_trie(&self, routes: &[(Prefix<A>, u32)]) -> Result<()> {
        let table: Table<Prefix<A>, u32> =
            if A::IS_V6 { Table::open(&self.dir, "TRIE6")? } else { Table::open(&self.dir, "TRIE4")? };
        routes.iter().try_for_each(|(prefix, value)| table.set(prefix, value))
    }

    /// Adds routes to the namespace's.
    pub fn fill_kernel(&self, routes: &[(Prefix<A>, u32)]) -> Result<()> {
        self.change_kernel("add", routes)
    }

    /// Has the kernel `add`, `replace` or `del` them among the namespace's.
    pub fn change_kernel(&self, verb: &str, routes: &[(Prefix<A>, u32)]) -> Result<()> {
        let mut text = String::new();
        for (prefix, value) in routes {
            ensure!(*value <= VALUES, "no gateway says {value}");
            writeln!(text, "route {verb} {}/{} via {} dev r0", prefix.addr.to_ip(), prefix.len, gateway::<A>(*value))?;
        }
        self.ns.ip(&text)
    }

    /// What the kernel says by RTM_GETROUTE, as `ip route get` asks it; 0: no route.
    pub fn asked(&self, to: &[A]) -> Result<Vec<u32>> {
        let mut text = String::new();
        to.iter().try_for_each(|addr| writeln!(text, "route get {}", addr.to_ip()))?;
        let file = self.lab.dir().join("questions");
        std::fs::write(&file, text)?;
        // What has no route is an error, which must not end the others.
        let out = self.ns.command("ip").args(["-force", "-batch"]).arg(&file).output().context("ip")?;
        let text = String::from_utf8_lossy(&out.stdout);
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let addr: IpAddr = words.next()?.parse().ok()?;
            let via: IpAddr = words.skip_while(|word| *word != "via").nth(1)?.parse().ok()?;
            Some((addr, bits_of(via) as u32 & 0xffff))
        };
        let said: HashMap<IpAddr, u32> = text.lines().filter_map(line).collect();
        Ok(to.iter().map(|addr| said.get(&addr.to_ip()).copied().unwrap_or(0)).collect())
    }

    pub fn set_destinations(&self, to: &[A]) -> Result<()> {
        ensure!(to.len() == DESTINATIONS, "there are {DESTINATIONS}");
        let words = |addr: &A| {
            let bits = super::bits(*addr);
            [96, 64, 32, 0].map(|shift| ((bits >> shift) as u32).to_be())
        };
        if A::IS_V6 {
            let table = Table::<u32, [u32; 4]>::open(&self.dir, "TO6")?;
            return (0..).zip(to).try_for_each(|(index, addr)| table.set(&index, &words(addr)));
        }
        let table = Table::<u32, u32>::open(&self.dir, "TO4")?;
        (0..).zip(to).try_for_each(|(index, addr)| table.set(&index, &words(addr)[0]))
    }

    fn set_up(&self, shuffled: bool) -> Result<()> {
        Table::<u32, u64>::open(&self.dir, "TURN")?.set(&0, &0)?;
        Table::<u32, [u32; 2]>::open(&self.dir, "SETUP")?.set(&0, &[shuffled.into(), self.link])
    }

    fn test_run(&self, program: &str, repeat: u32) -> Result<()> {
        run(&self.ebpf, &name::<A>(program), repeat)
    }

    /// Looks up destinations in random order. In the namespace ([`Self::ns`]) alone.
    pub fn run(&self, lane: Lane, repeat: u32) -> Result<()> {
        self.set_up(true)?;
        let program = match lane {
            Lane::Floor => "floor",
            Lane::Ours => "ours",
            Lane::Trie => "trie",
            Lane::Kernel => "kernel",
        };
        self.test_run(program, repeat)
    }

    /// What each destination is answered; 0: no route.
    pub fn answers(&self, lane: Lane) -> Result<Vec<u32>> {
        self.set_up(false)?;
        let program = match lane {
            Lane::Floor => "floor",
            Lane::Ours => "keep_ours",
            Lane::Trie => "keep_trie",
            Lane::Kernel => "keep_kernel",
        };
        self.test_run(program, DESTINATIONS as u32)?;
        let found = Table::<u32, u32>::open(&self.dir, "FOUND")?;
        Ok(found.entries()?.into_iter().map(|(_, value)| value).collect())
    }
}
