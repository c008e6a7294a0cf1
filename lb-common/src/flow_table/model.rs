//! What several threads' accesses to cells may give, all of it up to a bound: for tests.
//!
//! Every access of a thread is a step. Between two steps another thread may go on; and a load may give any value
//! that the orderings asked for allow, also on arm64: what was written later, or what stood there before, as long as
//! this thread has not seen otherwise (views, as in Kang et al., "A Promising Semantics", without promises: no load
//! sees a store that its own thread has yet to do). The bounds are how often a thread is interrupted and how
//! often a load gives something old; within them all is tried.
//!
//! Invariant: the real memory is never written: it is how every run begins. There are no real threads: one that is
//! interrupted is unwound, and begins anew with what its steps had given.

use std::boxed::Box;
use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::vec;
use std::vec::Vec;

/// One access.
#[derive(Clone, Copy)]
pub enum Step {
    Load {
        acquire: bool,
    },
    /// Eight bytes that are written one by one.
    Bytes,
    Store(u64),
    Byte {
        lane: u32,
        value: u8,
    },
    /// `fenced`: a full barrier.
    Swap {
        old: u64,
        new: u64,
        fenced: bool,
    },
    Acquire,
}

#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub interruptions: u32,
    pub old_values: u32,
    /// Without: a program whose loads have no order,
    pub acquires: bool,
    /// and one whose compare-and-exchanges are no barriers.
    pub barriers: bool,
}

/// By location, the first of its values that a thread may still see.
type View = Vec<u16>;

fn join(view: &mut View, other: &View) {
    view.resize(view.len().max(other.len()), 0);
    view.iter_mut().zip(other).for_each(|(a, b)| *a = (*a).max(*b));
}

fn see(view: &mut View, location: usize, index: usize) {
    view.resize(view.len().max(location + 1), 0);
    view[location] = view[location].max(index as u16);
}

#[derive(Default)]
struct Thread {
    /// What its steps have given.
    log: Vec<u64>,
    next: usize,
    result: Option<u64>,
    seen: View,
    /// What it will have seen after an acquire.
    met: View,
    /// What its stores carry along.
    carried: View,
}

struct Model {
    threads: Vec<Thread>,
    /// None: all is over, and the latest values are read.
    current: Option<usize>,
    /// The thread has just been chosen.
    fresh: bool,
    /// Values of each location, with what who wrote them had seen.
    values: Vec<Vec<(u64, View)>>,
    locations: HashMap<usize, usize>,
    barrier: View,
    left: Bounds,
    /// Choices of this run, each of how many.
    path: Vec<(usize, usize)>,
    at: usize,
}

/// A thread is interrupted.
struct Interrupted;

std::thread_local! {
    static MODEL: RefCell<Option<Model>> = const { RefCell::new(None) };
}

/// What a step gives; none while no model runs. `initial`: what really lies there.
pub fn step(address: usize, initial: u64, step: Step) -> Option<u64> {
    let given = MODEL.with_borrow_mut(|model| model.as_mut().map(|model| model.step(address, initial, step)))?;
    match given {
        Some(value) => Some(value),
        // Without a panic's message.
        None => resume_unwind(Box::new(Interrupted)),
    }
}

impl Model {
    fn choose(&mut self, of: usize) -> usize {
        if of < 2 {
            return 0;
        }
        if self.at == self.path.len() {
            self.path.push((0, of));
        }
        self.at += 1;
        self.path[self.at - 1].0
    }

    /// None: another thread goes on.
    fn step(&mut self, address: usize, initial: u64, step: Step) -> Option<u64> {
        let Some(current) = self.current else {
            return Some(self.latest(address, initial, step));
        };
        let thread = &mut self.threads[current];
        if let Some(&given) = thread.log.get(thread.next) {
            thread.next += 1;
            return Some(given);
        }
        if !self.fresh && self.left.interruptions > 0 {
            let others: Vec<_> = self.others(current);
            match self.choose(1 + others.len()) {
                0 => {}
                chosen => {
                    self.left.interruptions -= 1;
                    self.current = Some(others[chosen - 1]);
                    return None;
                }
            }
        }
        self.fresh = false;
        let given = self.give(current, address, initial, step);
        let thread = &mut self.threads[current];
        thread.log.push(given);
        thread.next += 1;
        Some(given)
    }

    /// Other threads that have not ended.
    fn others(&self, current: usize) -> Vec<usize> {
        (0..self.threads.len()).filter(|&t| t != current && self.threads[t].result.is_none()).collect()
    }

    fn location(&mut self, address: usize, initial: u64) -> usize {
        let next = self.values.len();
        let location = *self.locations.entry(address).or_insert(next);
        if location == next {
            self.values.push(vec![(initial, View::new())]);
        }
        location
    }

    fn latest(&mut self, address: usize, initial: u64, step: Step) -> u64 {
        let mut last = |address, initial| {
            let location = self.location(address, initial);
            self.values[location].last().map_or(0, |(value, _)| *value)
        };
        match step {
            Step::Load { .. } => last(address, initial),
            Step::Bytes => (0..8).fold(0, |word, i| word | last(address + i, initial >> (i * 8) & 0xff) << (i * 8)),
            Step::Acquire => 0,
            _ => unreachable!("nothing is written when all is over"),
        }
    }

    fn give(&mut self, current: usize, address: usize, initial: u64, step: Step) -> u64 {
        match step {
            Step::Load { acquire } => self.load(current, address, initial, acquire),
            Step::Bytes => (0..8)
                .fold(0, |word, i| word | self.load(current, address + i, initial >> (i * 8) & 0xff, false) << (i * 8)),
            Step::Store(value) => self.store(current, address, initial, value),
            Step::Byte { lane, value } => {
                self.store(current, address + lane as usize, initial >> (lane * 8) & 0xff, value.into())
            }
            Step::Swap { old, new, fenced } => {
                let fenced = fenced && self.left.barriers;
                self.swap(current, (address, initial), old, new, fenced)
            }
            Step::Acquire => {
                if self.left.acquires {
                    let thread = &mut self.threads[current];
                    join(&mut thread.seen, &thread.met);
                }
                0
            }
        }
    }

    fn load(&mut self, current: usize, address: usize, initial: u64, acquire: bool) -> u64 {
        let location = self.location(address, initial);
        let first = self.threads[current].seen.get(location).map_or(0, |index| usize::from(*index));
        let last = self.values[location].len() - 1;
        let back = if self.left.old_values > 0 { self.choose(1 + last - first) } else { 0 };
        self.left.old_values -= u32::from(back > 0);
        let (value, carried) = &self.values[location][last - back];
        let thread = &mut self.threads[current];
        see(&mut thread.seen, location, last - back);
        join(&mut thread.met, carried);
        if acquire && self.left.acquires {
            join(&mut thread.seen, carried);
        }
        *value
    }

    fn store(&mut self, current: usize, address: usize, initial: u64, value: u64) -> u64 {
        let location = self.location(address, initial);
        let thread = &mut self.threads[current];
        see(&mut thread.seen, location, self.values[location].len());
        let mut carried = thread.carried.clone();
        see(&mut carried, location, self.values[location].len());
        self.values[location].push((value, carried));
        0
    }

    fn swap(&mut self, current: usize, (address, initial): (usize, u64), old: u64, new: u64, fenced: bool) -> u64 {
        let location = self.location(address, initial);
        let index = self.values[location].len();
        let (value, carried) = self.values[location][index - 1].clone();
        let thread = &mut self.threads[current];
        if fenced {
            let met = std::mem::take(&mut thread.met);
            join(&mut thread.seen, &met);
            join(&mut thread.seen, &self.barrier);
        }
        see(&mut thread.seen, location, index - 1);
        join(&mut thread.seen, &carried);
        if value == old {
            see(&mut thread.seen, location, index);
            self.values[location].push((new, thread.seen.clone()));
        }
        if fenced {
            thread.carried = thread.seen.clone();
            self.barrier = thread.seen.clone();
        }
        u64::from(value == old)
    }
}

/// Runs all threads to their ends, in the way that the path says, and further as it comes.
fn run(threads: &[&dyn Fn() -> u64], bounds: Bounds, path: Vec<(usize, usize)>) -> Vec<u64> {
    let count = threads.len();
    let mut model = Model {
        threads: (0..count).map(|_| Thread::default()).collect(),
        current: None,
        fresh: true,
        values: Vec::new(),
        locations: HashMap::new(),
        barrier: View::new(),
        left: bounds,
        path,
        at: 0,
    };
    model.current = Some(model.choose(count));
    MODEL.set(Some(model));
    let with = |work: &mut dyn FnMut(&mut Model)| MODEL.with_borrow_mut(|model| work(model.as_mut().expect("it runs")));
    loop {
        let mut current = None;
        with(&mut |model| {
            current = model.current;
            model.fresh = true;
            current.iter().for_each(|&thread| model.threads[thread].next = 0);
        });
        let Some(current) = current else { break };
        match catch_unwind(AssertUnwindSafe(threads[current])) {
            Ok(result) => with(&mut |model| {
                model.threads[current].result = Some(result);
                let others = model.others(current);
                model.current = (!others.is_empty()).then(|| others[model.choose(others.len())]);
            }),
            Err(why) if why.is::<Interrupted>() => {}
            Err(why) => resume_unwind(why),
        }
    }
    let mut results = Vec::new();
    with(&mut |model| results.extend(model.threads.iter().map(|thread| thread.result.expect("it has ended"))));
    results
}

/// Tries everything within the bounds; after each run `check` sees the memory as it then is, and what the threads
/// said. How many runs.
pub fn explore(threads: &[&dyn Fn() -> u64], bounds: Bounds, check: impl Fn(&[u64])) -> u64 {
    let (mut path, mut runs) = (Vec::new(), 0);
    loop {
        let results = run(threads, bounds, path);
        check(&results);
        runs += 1;
        path = MODEL.take().map(|model| model.path).unwrap_or_default();
        while path.last().is_some_and(|(taken, of)| taken + 1 == *of) {
            path.pop();
        }
        match path.last_mut() {
            Some((taken, _)) => *taken += 1,
            None => return runs,
        }
    }
}
