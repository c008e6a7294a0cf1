//! The table of routes in the kernel, asked by a program there, beside the kernel's own routes and a naive
//! longest prefix match.

use std::collections::HashSet;

use lb_common::table::Prefix;
use lb_common::wire::{Ip4, Ip6};
use lb_user::apply::fib::Parts;
use lb_user::fib::Fib;
use stellwerk_tests::routes::kernel::{DESTINATIONS, Lane, Routes};
use stellwerk_tests::routes::{self, Drawn, Oracle, Random};

/// Of each sample, what the kernel is asked as `ip route get` does it.
const ASKED: usize = 2_000;
/// Rounds of changes.
const ROUNDS: usize = 4;

/// Addresses in prefixes, beside them, and anywhere.
fn sample<A: Drawn>(table: &[(Prefix<A>, u32)], random: &mut Random) -> Vec<A> {
    let mut one = || {
        let (prefix, _) = &table[random.below(table.len() as u64) as usize];
        match random.below(4) {
            0 => A::of(A::draw(random).0),
            1 => {
                let wider = Prefix { len: prefix.len.saturating_sub(2), addr: prefix.addr };
                let bits = routes::mask(routes::bits(prefix.addr), wider.len);
                routes::within(random, &Prefix { addr: A::of(bits), ..wider })
            }
            _ => routes::within(random, prefix),
        }
    };
    (0..DESTINATIONS).map(|_| one()).collect()
}

fn agree<A: Drawn>(routes: &Routes<A>, table: &[(Prefix<A>, u32)], random: &mut Random) {
    let to = sample(table, random);
    routes.set_destinations(&to).unwrap();
    let ask = |lane| routes.ns().run(|| routes.answers(lane)).unwrap().unwrap();
    let (ours, kernel) = (ask(Lane::Ours), ask(Lane::Kernel));
    let oracle = Oracle::of(table);
    for (index, addr) in to.iter().enumerate() {
        let right = oracle.find(*addr);
        assert_eq!((ours[index], kernel[index]), (right, right), "{}: (ours, kernel)", addr.to_ip());
    }
    let some = &to[..ASKED];
    for ((addr, ours), asked) in some.iter().zip(&ours).zip(routes.asked(some).unwrap()) {
        assert_eq!(*ours, asked, "{}: (ours, ip route get)", addr.to_ip());
    }
}

/// Removes, adds and gives other next hops, at random, in our table and in the kernel's.
fn change<A: Drawn>(
    routes: &Routes<A>,
    fib: &mut Fib<A, Parts>,
    there: &mut Vec<(Prefix<A>, u32)>,
    more: &mut Vec<(Prefix<A>, u32)>,
    random: &mut Random,
) {
    let mut some = |from: &mut Vec<(Prefix<A>, u32)>| -> Vec<(Prefix<A>, u32)> {
        (0..500).map(|_| from.swap_remove(random.below(from.len() as u64) as usize)).collect()
    };
    let (gone, mut other, new) = (some(there), some(there), some(more));
    other.iter_mut().for_each(|(_, value)| *value ^= 1);
    gone.iter().for_each(|(prefix, value)| assert_eq!(fib.remove(prefix).unwrap(), Some(*value)));
    other.iter().for_each(|(prefix, value)| assert_eq!(fib.insert(prefix, *value).unwrap(), Some(*value ^ 1)));
    new.iter().for_each(|(prefix, value)| assert_eq!(fib.insert(prefix, *value).unwrap(), None));
    routes.change_kernel("del", &gone).unwrap();
    routes.change_kernel("replace", &other).unwrap();
    routes.change_kernel("add", &new).unwrap();
    more.extend(gone);
    there.extend(other.into_iter().chain(new));
}

fn in_kernel<A: Drawn>() {
    let routes = Routes::<A>::new().unwrap();
    let mut random = Random(23);
    let table = routes::table::<A>(12_000, 60_000, 29);
    let (first, later) = table.split_at(8_000);
    let mut fib = routes.ours(first).unwrap();
    routes.fill_kernel(first).unwrap();
    agree(&routes, first, &mut random);

    for (prefix, value) in later {
        fib.insert(prefix, *value).unwrap();
    }
    routes.fill_kernel(later).unwrap();
    agree(&routes, &table, &mut random);

    let (mut table, mut more) = (table, routes::table::<A>(12_000, 60_000, 37));
    let known: HashSet<_> = table.iter().map(|(prefix, _)| *prefix).collect();
    more.retain(|(prefix, _)| !known.contains(prefix));
    for _ in 0..ROUNDS {
        change(&routes, &mut fib, &mut table, &mut more, &mut random);
        agree(&routes, &table, &mut random);
    }

    // Another agent takes over: the last one's parts go when its own table is there.
    drop(fib);
    let fib = routes.ours(&table).unwrap();
    agree(&routes, &table, &mut random);
    println!("{:?}, {} bytes", fib.usage(), fib.store().bytes());
}

#[test]
fn answers_as_the_kernel_does4() {
    in_kernel::<Ip4>();
}

#[test]
fn answers_as_the_kernel_does6() {
    in_kernel::<Ip6>();
}

/// A small device pays for what it has.
#[test]
fn a_small_table_is_small() {
    let routes = Routes::<Ip4>::new().unwrap();
    let few = routes::table::<Ip4>(100, 10, 31);
    let bytes = routes.ours(&few).unwrap().store().bytes();
    assert!(bytes <= 1 << 20, "{bytes} bytes");
}
