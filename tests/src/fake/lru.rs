//! A table with a capacity, as the kernel's hash maps are: one that refuses when full, and one
//! that lets the least recently used entry go.
//!
//! Equality is of the entries alone: in which order they were used does not count.

use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub struct Lru<K, V> {
    capacity: usize,
    /// The value and when it was used last.
    entries: BTreeMap<K, (V, u64)>,
    by_use: BTreeMap<u64, K>,
    clock: u64,
}

impl<K: Ord + Copy, V: Copy> Lru<K, V> {
    pub fn new(capacity: u32) -> Self {
        Lru { capacity: capacity as usize, entries: BTreeMap::new(), by_use: BTreeMap::new(), clock: 0 }
    }

    pub fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value; marks the entry as used.
    pub fn get(&mut self, key: &K) -> Option<V> {
        let now = self.tick();
        let (value, used) = self.entries.get_mut(key)?;
        self.by_use.remove(used);
        *used = now;
        self.by_use.insert(now, *key);
        Some(*value)
    }

    /// The value; leaves the order of use alone.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    /// Changes the value in place, if it is there.
    pub fn change(&mut self, key: &K, with: impl FnOnce(&mut V)) {
        if let Some((value, _)) = self.entries.get_mut(key) {
            with(value);
        }
    }

    /// Inserts or replaces; where there is no room, the least recently used entry goes.
    pub fn put(&mut self, key: K, value: V) {
        self.remove(&key);
        while self.is_full() {
            let Some((_, oldest)) = self.by_use.pop_first() else {
                return;
            };
            self.entries.remove(&oldest);
        }
        let now = self.tick();
        self.entries.insert(key, (value, now));
        self.by_use.insert(now, key);
    }

    pub fn remove(&mut self, key: &K) {
        if let Some((_, used)) = self.entries.remove(key) {
            self.by_use.remove(&used);
        }
    }

    pub fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        let gone: Vec<K> = self.iter().filter(|(k, v)| !keep(k, v)).map(|(k, _)| *k).collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, (value, _))| (key, value))
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.values_mut().map(|(value, _)| value)
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl<K: Ord + Copy, V: Copy + PartialEq> PartialEq for Lru<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
