//! The table of routes in the kernel, asked by a program there, beside the kernel's own routes and a naive
//! longest prefix match.

use lb_common::table::Prefix;
use lb_common::wire::{Ip4, Ip6};
use stellwerk_tests::routes::kernel::{DESTINATIONS, Lane, Routes};
use stellwerk_tests::routes::{self, Drawn, Oracle, Random};

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

    // Another agent takes over: the last one's parts go when its own table is there.
    drop(fib);
    let fib = routes.ours(&table).unwrap();
    agree(&routes, &table, &mut random);
    println!("{:?}, {} bytes", fib.usage(), lb_user::apply::fib::Parts::bytes(fib.store()));
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
