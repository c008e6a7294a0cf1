//! Work that is done by all cores, and what comes of it in order.

use std::io;
use std::sync::mpsc::sync_channel;
use std::thread;

pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// Does `work` for each of `count` pieces, and hands the results to `then` in the pieces' order. No core is further
/// ahead than two pieces.
pub fn in_order<T: Send>(
    count: usize,
    work: impl Fn(usize) -> T + Sync,
    mut then: impl FnMut(T) -> io::Result<()>,
) -> io::Result<()> {
    let threads = cores().min(count);
    if threads < 2 {
        return (0..count).map(work).try_for_each(then);
    }
    thread::scope(|scope| {
        let work = &work;
        let start = |first| {
            let (done, results) = sync_channel(1);
            // Who would receive may have seen enough.
            scope.spawn(move || (first..count).step_by(threads).all(|piece| done.send(work(piece)).is_ok()));
            results
        };
        let results: Vec<_> = (0..threads).map(start).collect();
        (0..count).try_for_each(|piece| then(results[piece % threads].recv().map_err(io::Error::other)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_until_one_is_too_many() {
        for count in [0, 1, 2, 3, 100] {
            let mut met = Vec::new();
            let then = |twice| {
                met.push(twice);
                Ok(())
            };
            in_order(count, |piece| piece * 2, then).unwrap();
            assert_eq!(met, (0..count).map(|piece| piece * 2).collect::<Vec<_>>());
        }
        let mut left = 5;
        let then = |_| {
            left -= 1;
            if left == 0 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
        };
        let error = in_order(1_000_000, |piece| piece, then).unwrap_err();
        assert_eq!((error.kind(), left), (io::ErrorKind::BrokenPipe, 0));
    }
}
