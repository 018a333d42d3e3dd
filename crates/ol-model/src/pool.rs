//! Persistent worker threads that spin for a moment, then sleep.
//!
//! A forward pass of a small model forks a few dozen times for some tens of
//! microseconds each; waking threads through the kernel every time would cost
//! more than the work. Tasks are claimed one at a time, so a worker that the
//! operating system has put aside delays nobody but its own task.
#![expect(unsafe_code, reason = "a borrowed closure crosses into worker threads")]

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

use crate::isa::Isa;

/// Rounds of waiting before a thread goes to sleep: some tens of microseconds.
const SPIN_ROUNDS: u32 = 4_000;

type Job = *const (dyn Fn(usize) + Sync);

thread_local! {
    static INSIDE_TASK: Cell<bool> = const { Cell::new(false) };
}

struct Shared {
    /// Raised once per job so that idle workers notice.
    epoch: AtomicU64,
    /// Whether `job` may be entered.
    open: AtomicBool,
    /// Workers that may be looking at `job`.
    active: AtomicUsize,
    next: AtomicUsize,
    n_tasks: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    job: UnsafeCell<Option<Job>>,
}

// SAFETY: `job` is written only while `open` is false and read only by a
// worker that counted itself into `active` and then saw `open` true; the writer
// closes the job and waits for `active == 0` before the closure dies. All other
// fields are atomics. The closure itself is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only followed under that protocol.
unsafe impl Send for Shared {}

impl Shared {
    fn work(&self) {
        self.active.fetch_add(1, SeqCst);
        if self.open.load(SeqCst) {
            // SAFETY: see `Sync for Shared`: the job is open and we are counted.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job {
                // SAFETY: the caller of `run` keeps the closure alive until
                // `active` is zero again.
                let job = unsafe { &*job };
                let done = catch_unwind(AssertUnwindSafe(|| self.drain(job)));
                if done.is_err() {
                    self.panicked.store(true, SeqCst);
                }
            }
        }
        self.active.fetch_sub(1, SeqCst);
    }

    fn drain(&self, job: &(dyn Fn(usize) + Sync)) {
        let n_tasks = self.n_tasks.load(SeqCst);
        INSIDE_TASK.set(true);
        loop {
            let task = self.next.fetch_add(1, SeqCst);
            if task >= n_tasks {
                break;
            }
            job(task);
        }
        INSIDE_TASK.set(false);
    }
}

struct Worker {
    thread: Thread,
    asleep: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

/// Threads that the kernels split their output over.
///
/// Work is split over output rows and columns only, never over the summed
/// index, so **results do not depend on the number of threads**. One pool may
/// be shared; calls from several threads take turns.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    turn: Mutex<()>,
    isa: Isa,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads())
            .field("isa", &self.isa)
            .finish()
    }
}

impl Pool {
    /// A pool of `n_threads` (at least one, at most 256) on the best
    /// instructions of this CPU. The calling thread is one of them.
    #[must_use]
    pub fn new(n_threads: usize) -> Self {
        Self::with_isa(n_threads, Isa::detect())
    }

    /// As [`Pool::new`] on a chosen instruction set, for comparing them.
    #[must_use]
    pub fn with_isa(n_threads: usize, isa: Isa) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicU64::new(0),
            open: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            n_tasks: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
        });
        let workers = (1..n_threads.clamp(1, 256))
            .filter_map(|i| spawn(&shared, i))
            .collect();
        Self {
            shared,
            workers,
            turn: Mutex::new(()),
            isa,
        }
    }

    /// Threads that take part, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Instruction set of the kernels run on this pool.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `job(0..n_tasks)`, each once, on any thread in any order, and
    /// returns when all have returned. Called from inside a task it runs them
    /// on the spot.
    ///
    /// # Panics
    /// If a task panicked.
    pub fn run(&self, n_tasks: usize, job: &(dyn Fn(usize) + Sync)) {
        if n_tasks <= 1 || self.workers.is_empty() || INSIDE_TASK.get() {
            (0..n_tasks).for_each(job);
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = &*self.shared;
        shared.n_tasks.store(n_tasks, SeqCst);
        shared.next.store(0, SeqCst);
        shared.panicked.store(false, SeqCst);
        // SAFETY: only the lifetime is lengthened. `Close` below waits, even
        // when unwinding, until no worker can still follow the pointer.
        let pointer: Job = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize) + Sync + '_),
                *const (dyn Fn(usize) + Sync + 'static),
            >(job)
        };
        // SAFETY: the job is closed and no worker is active, so nobody reads.
        unsafe { *shared.job.get() = Some(pointer) };
        shared.open.store(true, SeqCst);
        let close = Close(shared);
        shared.epoch.fetch_add(1, SeqCst);
        for worker in self.workers.iter().take(n_tasks - 1) {
            if worker.asleep.load(SeqCst) {
                worker.thread.unpark();
            }
        }
        let mine = catch_unwind(AssertUnwindSafe(|| shared.drain(job)));
        drop(close);
        if let Err(panic) = mine {
            INSIDE_TASK.set(false);
            resume_unwind(panic);
        }
        assert!(!shared.panicked.load(SeqCst), "a task of the pool panicked");
    }

    /// Calls `job` with consecutive ranges that cover `0..n`, about
    /// `chunk` long.
    pub(crate) fn ranges(
        &self,
        n: usize,
        chunk: usize,
        job: &(dyn Fn(std::ops::Range<usize>) + Sync),
    ) {
        let chunk = chunk.max(1);
        self.run(n.div_ceil(chunk), &|i| {
            job(i * chunk..((i + 1) * chunk).min(n))
        });
    }
}

struct Close<'a>(&'a Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        self.0.open.store(false, SeqCst);
        let mut rounds = 0;
        while self.0.active.load(SeqCst) != 0 {
            rounds += 1;
            if rounds < SPIN_ROUNDS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

fn spawn(shared: &Arc<Shared>, index: usize) -> Option<Worker> {
    let asleep = Arc::new(AtomicBool::new(false));
    let (their_shared, their_asleep) = (Arc::clone(shared), Arc::clone(&asleep));
    // A machine that refuses another thread is served by fewer.
    let handle = std::thread::Builder::new()
        .name(format!("ol-pool-{index}"))
        .spawn(move || worker_loop(&their_shared, &their_asleep))
        .ok()?;
    Some(Worker {
        thread: handle.thread().clone(),
        asleep,
        handle: Some(handle),
    })
}

fn worker_loop(shared: &Shared, asleep: &AtomicBool) {
    let mut seen = 0;
    loop {
        let mut rounds = 0;
        loop {
            if shared.stop.load(SeqCst) {
                return;
            }
            let epoch = shared.epoch.load(SeqCst);
            if epoch != seen {
                seen = epoch;
                break;
            }
            rounds += 1;
            if rounds < SPIN_ROUNDS {
                std::hint::spin_loop();
                continue;
            }
            asleep.store(true, SeqCst);
            // The caller raises `epoch` before it looks at `asleep`: one of
            // the two sees the other.
            if shared.epoch.load(SeqCst) == seen && !shared.stop.load(SeqCst) {
                std::thread::park();
            }
            asleep.store(false, SeqCst);
        }
        shared.work();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker catches the panics of its tasks, so it ends well.
                let _ = handle.join();
            }
        }
    }
}

/// A mutable slice that several tasks write disjoint parts of.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    life: std::marker::PhantomData<&'a mut [T]>,
}

impl<T> Clone for Parts<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Parts<'_, T> {}

// SAFETY: hands out only what `slice`'s caller promises to be disjoint.
unsafe impl<T: Send> Send for Parts<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(all: &'a mut [T]) -> Self {
        Self {
            start: all.as_mut_ptr(),
            len: all.len(),
            life: std::marker::PhantomData,
        }
    }

    /// Part `range` of the slice.
    ///
    /// # Safety
    /// No two live results may overlap.
    pub(crate) unsafe fn slice(&self, range: std::ops::Range<usize>) -> &'a mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "part outside its slice"
        );
        // SAFETY: in bounds by the assertion, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

impl<T> Parts<'_, T> {
    /// Lends part `range` to `write`. Internal contract: parts in use at the
    /// same time do not overlap, because each belongs to one task.
    pub(crate) fn with<R>(
        &self,
        range: std::ops::Range<usize>,
        write: impl FnOnce(&mut [T]) -> R,
    ) -> R {
        // SAFETY: see the contract.
        write(unsafe { self.slice(range) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads);
            for n in [0, 1, 2, 3, 17, 1000] {
                let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n, &|i| {
                    hits[i].fetch_add(1, SeqCst);
                });
                assert!(
                    hits.iter().all(|h| h.load(SeqCst) == 1),
                    "{threads} threads, {n} tasks"
                );
            }
        }
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        pool.run(5, &|_| pool.run(3, &|j| _ = sum.fetch_add(j, SeqCst)));
                    }
                });
            }
        });
        assert_eq!(sum.load(SeqCst), 4 * 200 * 5 * 3);
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        for bad in 0..8 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, &|i| assert!(i != bad, "task {i} fails on purpose"));
            }));
            assert!(outcome.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(100, &|_| _ = count.fetch_add(1, SeqCst));
        assert_eq!(count.load(SeqCst), 100);
    }
}
