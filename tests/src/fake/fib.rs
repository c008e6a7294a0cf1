//! Memory for a table of routes, shared by one that writes and several that look up.

use std::hint::spin_loop;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use lb_common::fib::{self, Line, Memory, PART, ROOT_WORDS};
use lb_common::flow_table::cell::Cell64;
use lb_common::wire::Addr;
use lb_user::fib::Store;

/// Of a fixed number of parts, made when they are first asked for.
pub struct Heap {
    root: Vec<Cell64>,
    parts: Vec<OnceLock<Vec<Line>>>,
    /// Odd while its reader looks something up.
    readers: Vec<AtomicU64>,
}

/// The writer's handle: which parts it has.
pub struct Writer<'a> {
    heap: &'a Heap,
    given: Vec<bool>,
}

impl Heap {
    pub fn new(parts: usize, readers: usize) -> Self {
        Heap {
            root: (0..ROOT_WORDS).map(|_| Cell64::default()).collect(),
            parts: (0..parts).map(|_| OnceLock::new()).collect(),
            readers: (0..readers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub fn writer(&self) -> Writer<'_> {
        Writer { heap: self, given: vec![false; self.parts.len()] }
    }

    /// A lookup that [`Store::wait`] waits for.
    pub fn find<A: Addr>(&self, reader: usize, dst: A) -> u32 {
        let turn = &self.readers[reader];
        turn.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let value = fib::find(self, dst);
        turn.fetch_add(1, Ordering::Release);
        value
    }
}

impl<A: Addr> Memory<A> for Heap {
    fn root(&self, index: u32) -> Option<&Cell64> {
        self.root.get(index as usize)
    }
    fn line(&self, index: u32) -> Option<&Line> {
        self.parts.get((index / PART) as usize)?.get()?.get((index % PART) as usize)
    }
}

impl<A: Addr> Memory<A> for Writer<'_> {
    fn root(&self, index: u32) -> Option<&Cell64> {
        Memory::<A>::root(self.heap, index)
    }
    fn line(&self, index: u32) -> Option<&Line> {
        Memory::<A>::line(self.heap, index)
    }
}

impl<A: Addr> Store<A> for Writer<'_> {
    fn grow(&mut self) -> Option<u32> {
        let part = self.given.iter().position(|given| !given)?;
        self.given[part] = true;
        self.heap.parts[part].get_or_init(|| (0..PART).map(|_| Line::default()).collect());
        Some(part as u32 * PART)
    }

    fn shrink(&mut self, firsts: &[u32]) {
        firsts.iter().for_each(|first| self.given[(first / PART) as usize] = false);
    }

    fn wait(&self) {
        fence(Ordering::SeqCst);
        for reader in &self.heap.readers {
            let turn = reader.load(Ordering::SeqCst);
            while turn % 2 == 1 && reader.load(Ordering::Acquire) == turn {
                spin_loop();
                std::thread::yield_now();
            }
        }
    }
}
