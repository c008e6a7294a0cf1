//! A thread in a namespace that runs futures until its value is dropped.

use std::future::Future;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use tokio::sync::oneshot;

use crate::netns::Ns;

/// The thread. Dropping it ends its futures and closes their sockets, before drop returns.
#[derive(Debug)]
pub struct Task {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Task {
    /// Runs `setup` inside the namespace, waits until it succeeded, and runs the future that it
    /// returned until the end.
    pub fn start<S, F>(ns: &Ns, setup: S) -> Result<Task>
    where
        S: AsyncFnOnce() -> Result<F> + Send + 'static,
        F: Future<Output = ()>,
    {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let ns = ns.clone();
        let thread = std::thread::spawn(move || {
            ns.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            // A local set: the server's tasks are of this thread alone.
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let work = match setup().await {
                    Ok(work) => work,
                    Err(e) => return Err(e),
                };
                let _ = ready.send(());
                tokio::select! { _ = work => (), _ = stopped => () }
                Ok(())
            })
        });
        if is_ready.recv().is_ok() {
            return Ok(Task { stop: Some(stop), thread: Some(thread) });
        }
        match thread.join() {
            Ok(Err(e)) => Err(e).context("starting a server"),
            _ => Err(anyhow!("a server's thread ended at once")),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
