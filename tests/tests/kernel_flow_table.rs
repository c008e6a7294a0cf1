//! The flow table in the kernel, on all CPUs at once and beside user space. Needs root; without it the tests say so
//! and pass. `STELLWERK_TORTURE_SECONDS` says for how long torture goes on; 3 without it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lb_common::flow_table::{self, FlowTable, Hit, MULTIPLIERS, Meta, Place, WAYS, Words};
use lb_common::table::{FlowKey, Settings};
use lb_common::tcp;
use lb_common::wire::{Ip4, Ip6};
use lb_user::apply::flows::{Flows, connections};
use lb_user::apply::{Kernel, Paths, sweep, unload};
use lb_user::intent::Capacity;
use stellwerk_tests::flow_maps::{Dying, FlowMaps, NOW, Numbered, Setup, key, whole};
use stellwerk_tests::netns::Lab;
use zerocopy::FromZeros;

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("left out: loading programs needs root");
    }
    root
}

fn pin(cpu: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set).unwrap();
}

/// What user space does meanwhile; numbers of values seen and of those that were wrong.
#[derive(Default)]
struct Beside {
    stop: AtomicBool,
    seen: AtomicU64,
    wrong: AtomicU64,
    swept: AtomicU64,
}

impl Beside {
    fn see<A: Numbered>(&self, key: &FlowKey<A>, hit: &Hit<A>, keys: u32) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let right = whole(&hit.flow) && self::key::<A>(hit.flow.service % keys) == *key;
        self.wrong.fetch_add((!right).into(), Ordering::Relaxed);
    }

    /// Walks as `stellwerk flows` does, looks up, and sweeps as the agent does, for whom everything that is not
    /// answered is over.
    fn run<A: Numbered>(&self, table: &Flows<A>, keys: u32) {
        let (mut next, settings) = (0, Settings::with_clock(100));
        // Later than any limit of an unanswered connection, sooner than an answered one's.
        let later = NOW + settings.tcp_transitory + 3 * 8_192;
        assert!(later < NOW + settings.tcp_established);
        while !self.stop.load(Ordering::Relaxed) {
            flow_table::walk(table, 0..table.buckets(), |key, hit| self.see(&key, &hit, keys));
            let swept = sweep::connections(table, &mut next, &settings, later);
            self.swept.fetch_add(swept as u64, Ordering::Relaxed);
            for number in 0..keys {
                let (key, mut hit) = (key::<A>(number), Hit::new_zeroed());
                if flow_table::find_into(table, &key, &mut hit) {
                    self.see(&key, &hit, keys);
                }
            }
        }
    }
}

/// No key twice, and no slot that somebody owns.
fn settled<A: Numbered>(table: &Flows<A>) {
    let entries = table.entries();
    let keys: HashSet<_> = entries.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys.len(), entries.len(), "a key is there twice");
    let slots = (0..table.slots()).filter(|slot| slot % WAYS != WAYS - 1);
    let left = slots.filter_map(|slot| table.entry(slot)).filter(|entry| {
        let phase = entry.meta().phase();
        phase == Meta::OWNED || phase == Meta::PENDING
    });
    assert_eq!(left.count(), 0, "slots are left owned");
}

/// Programs on every CPU, and user space beside them, all on the same few connections.
fn torture<A: Numbered>(slots: u32, keys: u32, time: Duration) {
    let maps = FlowMaps::<A>::new(slots, 1).unwrap();
    let table = maps.table().unwrap();
    maps.set_up(&Setup { keys, state: tcp::NEW, ..Setup::default() }).unwrap();
    let (beside, steps, begin) = (Beside::default(), AtomicU64::new(0), Instant::now());
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|thread| {
                let (maps, steps) = (&maps, &steps);
                scope.spawn(move || {
                    pin(thread % cpus);
                    while begin.elapsed() < time {
                        maps.run("torture", 100_000).unwrap();
                        steps.fetch_add(100_000, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        scope.spawn(|| beside.run(&table, keys));
        let ended: Vec<_> = runs.into_iter().map(|run| run.join()).collect();
        beside.stop.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    let [found, inserted, removed, wrong] = maps.tortured().unwrap();
    let [seen, unlike, swept] = [&beside.seen, &beside.wrong, &beside.swept].map(|count| count.load(Ordering::Relaxed));
    println!(
        "{} steps: {found} found, {inserted} inserted, {removed} removed, {wrong} wrong; \
         user space saw {seen}, {unlike} wrong, and swept {swept}",
        steps.load(Ordering::Relaxed)
    );
    assert_eq!((wrong, unlike), (0, 0));
    assert!(found > 0 && inserted > 0 && removed > 0 && seen > 0 && swept > 0);
    settled(&table);
}

#[test]
fn cpus_and_user_space_agree() {
    if !is_root() {
        return;
    }
    let seconds = std::env::var("STELLWERK_TORTURE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let time = Duration::from_secs(seconds) / 4;
    // Nearly all meet in one bucket; a table with room; and one that is always too full.
    torture::<Ip4>(32, 24, time);
    torture::<Ip4>(1_024, 600, time);
    torture::<Ip6>(64, 500, time);
    torture::<Ip6>(256, 160, time);
}

/// Ten times as many connections as there is room for, which nobody answers, beside answered ones: these all stay,
/// with the values they had.
#[test]
fn a_flood_pushes_out_no_answered_connection() {
    if !is_root() {
        return;
    }
    const ANSWERED: u32 = 200_000;
    let slots = 1 << 19;
    let maps = FlowMaps::<Ip4>::new(slots, 1).unwrap();
    maps.run("put", ANSWERED / 2).unwrap();
    assert_eq!(maps.done().unwrap(), u64::from(ANSWERED));
    // Two entries a connection.
    let flood = connections(slots) * 10;
    maps.set_up(&Setup { base: 1 << 24, state: tcp::NEW, ..Setup::default() }).unwrap();
    let begin = Instant::now();
    maps.run("put", flood).unwrap();
    let each = begin.elapsed() / flood;
    let refused = u64::from(flood) * 2 - maps.done().unwrap();
    println!("a connection of the flood takes {each:?}; {refused} of {} entries found no room", u64::from(flood) * 2);
    assert!(refused * 1_000 < u64::from(flood) * 2, "{refused} entries of the flood found no room");
    let table = maps.table().unwrap();
    let alive = table.entries().into_iter().filter(|(key, hit)| {
        hit.flow.state == tcp::ESTABLISHED && whole(&hit.flow) && self::key::<Ip4>(hit.flow.service) == *key
    });
    assert_eq!(alive.count(), ANSWERED as usize);
    settled(&table);
}

/// A sweeper that is killed in the midst of a removal leaves a slot owned: packets neither find nor touch it, and go
/// on with all others. The next agent frees it.
#[test]
fn a_killed_sweeper_costs_a_slot_until_the_next_agent() {
    if !is_root() {
        return;
    }
    let maps = FlowMaps::<Ip4>::new(32, 1).unwrap();
    maps.run("put", 10).unwrap();
    let table = maps.table().unwrap();
    let (gone, hit) = table.entries()[5];
    // The first access finds the entry, the second would find its hints.
    assert!(Dying::after(&table, 1, |table| flow_table::remove(table, &hit)).is_none());
    let there = |number| flow_table::find_into(&table, &key(number), &mut Hit::<Ip4>::new_zeroed());
    assert!(!flow_table::find_into(&table, &gone, &mut Hit::new_zeroed()), "what somebody owns is not found");
    let pair = hit.flow.service & !1;
    // Its connection comes again, and ten others, which is as many as there is room for.
    for (base, pairs) in [(pair, 1), (100, 5)] {
        maps.set_up(&Setup { base, ..Setup::default() }).unwrap();
        maps.run("put", pairs).unwrap();
        assert_eq!(maps.done().unwrap(), if base == pair { 1 } else { 10 });
    }
    assert!((0..20).chain(100..110).all(there));
    maps.set_up(&Setup { base: 200, ..Setup::default() }).unwrap();
    maps.run("put", 1).unwrap();
    assert_eq!(maps.done().unwrap(), 0, "there is room that nobody should have");
    assert_eq!((table.recover(), table.recover()), (1, 0));
    maps.run("put", 1).unwrap();
    assert_eq!(maps.done().unwrap(), 1);
    settled(&table);
}

/// The hash's numbers are random, and stay as long as the tables: across an agent's restart, and an upgrade of its
/// programs; another installation has others.
#[test]
fn the_hash_stays_with_the_tables() {
    if !is_root() {
        return;
    }
    let capacity = Capacity { connections: 1_000, ..Capacity::default() };
    let lab = Lab::new().unwrap();
    let ns = lab.ns("hash").unwrap();
    let load = |lab: &Lab| {
        let paths = Paths::new(lab.pins());
        let load = || Kernel::load(&paths, &capacity, false).unwrap();
        let kernel = ns.run(load).unwrap();
        let family = [kernel.maps.v4.flows.multipliers(), kernel.maps.v6.flows.multipliers()];
        assert_eq!(family[0], family[1]);
        (kernel, family[0])
    };
    let (first, drawn) = load(&lab);
    assert!(drawn.iter().all(|number| *number != 0) && drawn[MULTIPLIERS - 1] % 2 == 1, "{drawn:?}");
    let connection = key::<Ip4>(7);
    let slot = Place::of(&first.maps.v4.flows, &Words::of(&connection)).home();
    drop(first);
    let (second, kept) = load(&lab);
    assert_eq!(kept, drawn);
    assert_eq!(Place::of(&second.maps.v4.flows, &Words::of(&connection)).home(), slot);
    let other = Lab::new().unwrap();
    let (_third, others) = load(&other);
    assert!(others.iter().zip(&drawn).all(|(a, b)| a != b), "another installation has the same numbers");
    for lab in [&lab, &other] {
        ns.run(|| unload(&Paths::new(lab.pins())).unwrap()).unwrap();
    }
}
