//! Seeded churn over the production code: see `stellwerk_tests::sim`. One seed alone: `SEED=7`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use stellwerk_tests::sim;

#[test]
fn connections_survive_churn_failures_and_restarts() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => {
            let seed: u64 = seed.parse().expect("SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..300,
    };
    let mut total = sim::Figures::default();
    for seed in seeds {
        let figures = catch_unwind(AssertUnwindSafe(|| sim::run(seed)))
            .unwrap_or_else(|_| panic!("seed {seed}; again: SEED={seed}"));
        total.operations += figures.operations;
        total.failed_applies += figures.failed_applies;
        total.restarts += figures.restarts;
        total.connections += figures.connections;
        total.packets += figures.packets;
        total.ended += figures.ended;
    }
    println!("{total:?}");
    assert!(total.connections > 0 && total.packets > total.connections);
}
