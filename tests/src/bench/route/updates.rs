//! How long one change takes in a full table: by the writer's clock, until the call returns.

use std::time::Instant;

use anyhow::Result;
use lb_common::table::Prefix;
use lb_user::apply::fib::Parts;
use lb_user::fib::Fib;
use stellwerk_tests::routes::{Drawn, Random};

use super::super::report::Row;
use super::super::series::{median, quantile};

/// Removes and puts back random routes, changes others, and the default route.
pub fn rows<A: Drawn>(mut fib: Fib<A, Parts>, table: &[(Prefix<A>, u32)], what: &str, quick: bool) -> Result<Vec<Row>> {
    let changes = if quick { 20_000 } else { 100_000 };
    let mut random = Random(13);
    let mut times = Vec::new();
    for _ in 0..changes / 2 {
        let (prefix, value) = &table[random.below(table.len() as u64) as usize];
        let begin = Instant::now();
        fib.remove(prefix)?;
        let middle = Instant::now();
        fib.insert(prefix, *value)?;
        times.push((middle - begin).as_secs_f64() * 1e6);
        times.push(middle.elapsed().as_secs_f64() * 1e6);
    }
    let name = |quantity: &str| format!("{what}: a change, {quantity}");
    let mut rows = vec![
        Row::new(name("p50"), median(&times), "µs").verdict("changes", times.len() as u64),
        Row::new(name("p99"), quantile(&times, 0.99), "µs"),
        Row::new(name("most"), times.iter().copied().fold(0.0, f64::max), "µs"),
    ];
    let default = Prefix { len: 0, addr: A::default() };
    let mut times = Vec::new();
    for turn in 0..40 {
        let begin = Instant::now();
        fib.insert(&default, 2 + turn % 2)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    rows.push(Row::new(format!("{what}: the default route's change"), median(&times), "µs"));
    Ok(rows)
}
