//! One map with types: hashes, tries, arrays, per-CPU arrays.
//!
//! Invariant: a [`Table`] exists only for a map whose key and value sizes are those of its types.
//! Batches are used where the kernel has them for the kind of map, single calls where it hasn't, and
//! nobody outside notices. Deliberately not here: which maps there are ([`super::maps`]).

use std::io;
use std::marker::PhantomData;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lb_common::table::{Counters, Plain};

use super::sys::{Cursor, ENOTSUPP, RawMap, bytes};

/// Entries that a batched call carries.
const BATCH: usize = 4096;

/// A map of `K` to `V`: a hash, a trie, or (with `u32` keys) an array.
#[derive(Debug)]
pub struct Table<K, V> {
    pub name: &'static str,
    raw: RawMap,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    pub fn open(dir: &Path, name: &'static str) -> Result<Self> {
        let raw = RawMap::from_pin(&dir.join(name))?;
        ensure!(
            raw.key_size() == size_of::<K>() && raw.stride() == size_of::<V>(),
            "the map {name} has keys of {} and values of {} bytes, not {} and {}",
            raw.key_size(),
            raw.stride(),
            size_of::<K>(),
            size_of::<V>(),
        );
        Ok(Table { name, raw, types: PhantomData })
    }

    pub fn raw(&self) -> &RawMap {
        &self.raw
    }

    pub fn capacity(&self) -> u32 {
        self.raw.max_entries()
    }

    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = vec![0; size_of::<V>()];
        let found = self.raw.lookup(bytes(std::slice::from_ref(key)), &mut value).context(self.name)?;
        Ok(found.then(|| parse(&value)))
    }

    pub fn set(&self, key: &K, value: &V) -> Result<()> {
        let (key, value) = (bytes(std::slice::from_ref(key)), bytes(std::slice::from_ref(value)));
        self.raw.update(key, value).map_err(|error| self.refused(error))
    }

    /// Whether it was there.
    pub fn remove(&self, key: &K) -> Result<bool> {
        self.raw.delete(bytes(std::slice::from_ref(key))).context(self.name)
    }

    fn refused(&self, error: io::Error) -> anyhow::Error {
        refused(self.name, &self.raw, error)
    }

    /// All entries; an array's include those that are zero.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        let mut cursor = Cursor::default();
        while !self.walk(&mut cursor, |key, value| all.push((key, value)))? {}
        Ok(all)
    }

    /// [`walk`], of this table.
    pub fn walk(&self, cursor: &mut Cursor, mut each: impl FnMut(K, V)) -> Result<bool> {
        walk(self.name, &self.raw, cursor, |key, value| each(parse(key), parse(value)))
    }
}

/// Hands the next batch of a walk to `each`; true at the end. Entries that come and go meanwhile
/// may be met or not.
pub fn walk(name: &str, raw: &RawMap, cursor: &mut Cursor, mut each: impl FnMut(&[u8], &[u8])) -> Result<bool> {
    let mut room = BATCH;
    loop {
        let (mut keys, mut values) = (vec![0; room * raw.key_size()], vec![0; room * raw.stride()]);
        let batch = match raw.lookup_batch(cursor, &mut keys, &mut values) {
            // A bucket with more entries than the buffers hold.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 22 => {
                room *= 4;
                continue;
            }
            Err(error) if unsupported(&error) => {
                walk_singly(name, raw, each)?;
                return Ok(true);
            }
            result => result.with_context(|| name.to_owned())?,
        };
        let keys = keys.chunks_exact(raw.key_size());
        for (key, value) in keys.zip(values.chunks_exact(raw.stride())).take(batch.count) {
            each(key, value);
        }
        return Ok(batch.end);
    }
}

/// For kernels without batches of this kind of map.
fn walk_singly(name: &str, raw: &RawMap, mut each: impl FnMut(&[u8], &[u8])) -> Result<()> {
    let (mut key, mut value) = (vec![0; raw.key_size()], vec![0; raw.stride()]);
    let mut more = raw.next_key(None, &mut key).with_context(|| name.to_owned())?;
    while more {
        if raw.lookup(&key, &mut value).with_context(|| name.to_owned())? {
            each(&key, &value);
        }
        let last = key.clone();
        more = raw.next_key(Some(&last), &mut key).with_context(|| name.to_owned())?;
    }
    Ok(())
}

fn refused(name: &str, raw: &RawMap, error: io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => {
            anyhow::anyhow!("the table {name} is full: it has room for {} entries", raw.max_entries())
        }
        _ => anyhow::Error::new(error).context(format!("writing {name}")),
    }
}

/// Bytes that the kernel handed back as a value. Any bits are one.
pub(super) fn parse<T: Plain>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).expect("the sizes are checked when a table is opened")
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP | libc::EOPNOTSUPP))
}

/// Writes entries that lie one behind the other in `keys` and `values`.
pub fn set_many(name: &str, raw: &RawMap, keys: &[u8], values: &[u8]) -> Result<()> {
    let (k, v) = (raw.key_size(), raw.stride());
    for (keys, values) in keys.chunks(BATCH * 16 * k).zip(values.chunks(BATCH * 16 * v)) {
        let Err((done, error)) = raw.update_batch(keys, values) else { continue };
        if !unsupported(&error) {
            return Err(refused(name, raw, error));
        }
        for (key, value) in keys.chunks_exact(k).zip(values.chunks_exact(v)).skip(done) {
            raw.update(key, value).map_err(|error| refused(name, raw, error))?;
        }
    }
    Ok(())
}

/// Removes entries whose keys lie one behind the other; those that aren't there are no error.
pub fn remove_many(name: &str, raw: &RawMap, keys: &[u8]) -> Result<usize> {
    let k = raw.key_size();
    let mut removed = 0;
    let mut rest = keys;
    while !rest.is_empty() {
        match raw.delete_batch(rest) {
            Ok(()) => {
                removed += rest.len() / k;
                break;
            }
            // Kernels without batches of this map end here at the first key, and take it singly.
            Err((done, error)) if unsupported(&error) || error.raw_os_error() == Some(libc::ENOENT) => {
                removed += done;
                let Some((key, behind)) = rest[done * k..].split_at_checked(k) else { break };
                removed += raw.delete(key).with_context(|| format!("removing from {name}"))? as usize;
                rest = behind;
            }
            Err((_, error)) => return Err(anyhow::Error::new(error).context(format!("removing from {name}"))),
        }
    }
    Ok(removed)
}

/// A per-CPU array of `V`.
#[derive(Debug)]
pub struct PerCpu<V> {
    pub name: &'static str,
    raw: RawMap,
    types: PhantomData<fn() -> V>,
}

impl<V: Plain> PerCpu<V> {
    pub fn open(dir: &Path, name: &'static str) -> Result<Self> {
        let raw = RawMap::from_pin(&dir.join(name))?;
        let slice = size_of::<V>().next_multiple_of(8);
        ensure!(raw.key_size() == 4 && raw.stride().is_multiple_of(slice), "the map {name} has another layout");
        Ok(PerCpu { name, raw, types: PhantomData })
    }

    pub fn capacity(&self) -> u32 {
        self.raw.max_entries()
    }

    fn slices(value: &[u8]) -> impl Iterator<Item = V> {
        value.chunks_exact(size_of::<V>().next_multiple_of(8)).map(|slice| parse(&slice[..size_of::<V>()]))
    }

    /// The values of all CPUs.
    pub fn get(&self, index: u32) -> Result<Vec<V>> {
        let mut value = vec![0; self.raw.stride()];
        if !self.raw.lookup(&index.to_ne_bytes(), &mut value).context(self.name)? {
            bail!("{} has no entry {index}", self.name);
        }
        Ok(Self::slices(&value).collect())
    }

    pub fn zero(&self, index: u32) -> Result<()> {
        self.raw.update(&index.to_ne_bytes(), &vec![0; self.raw.stride()]).context(self.name)
    }
}

impl PerCpu<Counters> {
    pub fn sum(&self, index: u32) -> Result<Counters> {
        Ok(self.get(index)?.into_iter().fold(Counters::default(), add))
    }
}

impl PerCpu<u64> {
    pub fn sum(&self, index: u32) -> Result<u64> {
        Ok(self.get(index)?.into_iter().fold(0, u64::wrapping_add))
    }
}

pub fn add(a: Counters, b: Counters) -> Counters {
    Counters {
        connections: a.connections.wrapping_add(b.connections),
        packets: a.packets.wrapping_add(b.packets),
        bytes: a.bytes.wrapping_add(b.bytes),
        reply_packets: a.reply_packets.wrapping_add(b.reply_packets),
        reply_bytes: a.reply_bytes.wrapping_add(b.reply_bytes),
    }
}
