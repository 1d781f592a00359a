//! Work on all threads, in order; on one thread without the `rayon` feature. Results never depend
//! on which.

use crate::error::Result;

/// `f(0), f(1), ..., f(n - 1)` in order.
#[cfg(feature = "rayon")]
pub(crate) fn map<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    use rayon::prelude::*;
    (0..n).into_par_iter().map(f).collect()
}

/// `f(0), f(1), ..., f(n - 1)` in order.
#[cfg(not(feature = "rayon"))]
pub(crate) fn map<T: Send>(n: usize, f: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    (0..n).map(f).collect()
}

/// `f(i, chunk)` for each chunk of `size` elements.
#[cfg(feature = "rayon")]
pub(crate) fn for_each_chunk<T: Send>(
    all: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    use rayon::prelude::*;
    all.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
}

/// `f(i, chunk)` for each chunk of `size` elements.
#[cfg(not(feature = "rayon"))]
pub(crate) fn for_each_chunk<T: Send>(
    all: &mut [T],
    size: usize,
    f: impl Fn(usize, &mut [T]) + Sync + Send,
) {
    all.chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
}

/// Runs both and returns both results.
#[cfg(all(feature = "rayon", feature = "checkpoints"))]
pub(crate) fn join<A: Send, B: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    rayon::join(a, b)
}

/// Runs both and returns both results.
#[cfg(all(not(feature = "rayon"), feature = "checkpoints"))]
pub(crate) fn join<A: Send, B: Send>(
    a: impl FnOnce() -> A + Send,
    b: impl FnOnce() -> B + Send,
) -> (A, B) {
    (a(), b())
}

/// When the memory of a job is free again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// When its work is done: results are small.
    Worked,
    /// When its result was taken.
    #[cfg(feature = "checkpoints")]
    Taken,
}

/// A job of [`map_within`] and [`pipeline`] may need this many bytes of memory.
pub(crate) trait Cost: Fn(usize) -> u64 + Sync {}
impl<F: Fn(usize) -> u64 + Sync> Cost for F {}

/// What each thread may keep of `budget` bytes when half of it is for that, `most` at most.
pub(crate) fn share(budget: u64, most: u64) -> u64 {
    (budget / (2 * threads())).min(most)
}

/// How many threads there are.
pub(crate) fn threads() -> u64 {
    #[cfg(feature = "rayon")]
    let threads = rayon::current_num_threads() as u64;
    #[cfg(not(feature = "rayon"))]
    let threads = 1;
    threads.max(1)
}

/// As [`map`], with no more jobs at a time than fit into `budget` bytes, but always one.
///
/// # Errors
/// That of the first job, in order, that fails. The run ends with it.
pub(crate) fn map_within<T: Send>(
    n: usize,
    budget: u64,
    cost: impl Cost,
    f: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let mut all = Vec::with_capacity(n);
    each_within(n, budget, cost, f, |result| all.push(result))?;
    Ok(all)
}

/// As [`map_within`], but `take` gets the results, in order, one by one.
///
/// # Errors
/// As [`map_within`].
pub(crate) fn each_within<T: Send>(
    n: usize,
    budget: u64,
    cost: impl Cost,
    f: impl Fn(usize) -> Result<T> + Sync,
    mut take: impl FnMut(T),
) -> Result<()> {
    let work = |i, ()| f(i);
    pipeline(
        n,
        budget,
        Until::Worked,
        cost,
        |_| Ok(()),
        work,
        |_, result| {
            take(result);
            Ok(())
        },
    )
}

/// Three stages: one thread reads, all threads work, the calling thread takes the results, each in
/// order of the jobs. A stage waits for the one behind it as soon as the jobs between reading and
/// `until` would need more than `budget` bytes; one job is always let through.
///
/// # Errors
/// The error of the first job, in order, that fails in any stage; later jobs are dropped.
#[cfg(feature = "rayon")]
pub(crate) fn pipeline<A: Send, B: Send>(
    n: usize,
    budget: u64,
    until: Until,
    cost: impl Cost,
    read: impl Fn(usize) -> Result<A> + Sync,
    work: impl Fn(usize, A) -> Result<B> + Sync,
    mut take: impl FnMut(usize, B) -> Result<()>,
) -> Result<()> {
    let threads = rayon::current_num_threads().min(n);
    if threads <= 1 && until == Until::Worked {
        return inline(n, read, work, take);
    }
    let belt = Belt { state: Default::default(), changed: Default::default(), budget };
    std::thread::scope(|scope| {
        // Whatever ends this function ends the other threads too, panics included.
        let _stop = StopOnDrop(&belt);
        scope.spawn(|| {
            let _stop = StopOnPanic(&belt);
            for i in 0..n {
                if !belt.enter(cost(i)) {
                    return;
                }
                belt.put_read(i, read(i));
            }
            belt.end_reading();
        });
        for _ in 0..threads {
            scope.spawn(|| {
                let _stop = StopOnPanic(&belt);
                while let Some((i, input)) = belt.next_read() {
                    let result = input.and_then(|input| work(i, input));
                    belt.put_worked(i, result, if until == Until::Worked { cost(i) } else { 0 });
                }
            });
        }
        for i in 0..n {
            let Some(result) = belt.next_worked(i) else { break };
            take(i, result?)?;
            if until != Until::Worked {
                belt.leave(cost(i));
            }
        }
        Ok(())
    })
}

/// As above, on one thread.
///
/// # Errors
/// That of the first job that fails.
#[cfg(not(feature = "rayon"))]
pub(crate) fn pipeline<A: Send, B: Send>(
    n: usize,
    _budget: u64,
    _until: Until,
    _cost: impl Cost,
    read: impl Fn(usize) -> Result<A> + Sync,
    work: impl Fn(usize, A) -> Result<B> + Sync,
    take: impl FnMut(usize, B) -> Result<()>,
) -> Result<()> {
    inline(n, read, work, take)
}

fn inline<A, B>(
    n: usize,
    read: impl Fn(usize) -> Result<A>,
    work: impl Fn(usize, A) -> Result<B>,
    mut take: impl FnMut(usize, B) -> Result<()>,
) -> Result<()> {
    (0..n).try_for_each(|i| take(i, work(i, read(i)?)?))
}

#[cfg(feature = "rayon")]
use belt::{Belt, StopOnDrop, StopOnPanic};

#[cfg(feature = "rayon")]
mod belt {
    use std::collections::{BTreeMap, VecDeque};
    use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

    use crate::error::Result;

    /// What lies between the stages.
    pub(super) struct Belt<A, B> {
        pub(super) state: Mutex<State<A, B>>,
        pub(super) changed: Condvar,
        pub(super) budget: u64,
    }

    pub(super) struct State<A, B> {
        in_flight: u64,
        read: VecDeque<(usize, Result<A>)>,
        worked: BTreeMap<usize, Result<B>>,
        all_read: bool,
        stop: bool,
    }

    impl<A, B> Default for State<A, B> {
        fn default() -> Self {
            let (read, worked) = (VecDeque::new(), BTreeMap::new());
            Self { in_flight: 0, read, worked, all_read: false, stop: false }
        }
    }

    impl<A, B> Belt<A, B> {
        fn lock(&self) -> MutexGuard<'_, State<A, B>> {
            // No job runs under the lock, so a panic elsewhere leaves the state whole.
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn change(&self, f: impl FnOnce(&mut State<A, B>)) {
            f(&mut self.lock());
            self.changed.notify_all();
        }

        /// Waits until `ready` gives something; nothing when the run is stopped.
        fn wait<T>(&self, mut ready: impl FnMut(&mut State<A, B>) -> Option<T>) -> Option<T> {
            let mut state = self.lock();
            loop {
                if state.stop {
                    return None;
                }
                if let Some(found) = ready(&mut state) {
                    return Some(found);
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }

        /// Waits for room; false when the run is stopped.
        pub(super) fn enter(&self, cost: u64) -> bool {
            let fits = |s: &mut State<A, B>| {
                let sum = s.in_flight.saturating_add(cost);
                (s.in_flight == 0 || sum <= self.budget).then(|| s.in_flight = sum)
            };
            self.wait(fits).is_some()
        }

        pub(super) fn leave(&self, cost: u64) {
            self.change(|s| s.in_flight = s.in_flight.saturating_sub(cost));
        }

        pub(super) fn put_read(&self, i: usize, input: Result<A>) {
            self.change(|s| s.read.push_back((i, input)));
        }

        pub(super) fn end_reading(&self) {
            self.change(|s| s.all_read = true);
        }

        /// The next job to work on; nothing when there are no more.
        pub(super) fn next_read(&self) -> Option<(usize, Result<A>)> {
            let next = |s: &mut State<A, B>| match s.read.pop_front() {
                Some(job) => Some(Some(job)),
                None => s.all_read.then_some(None),
            };
            self.wait(next).flatten()
        }

        pub(super) fn put_worked(&self, i: usize, result: Result<B>, free: u64) {
            self.change(|s| {
                s.in_flight = s.in_flight.saturating_sub(free);
                s.worked.insert(i, result);
            });
        }

        /// The result of job `i`; nothing when the run is stopped.
        pub(super) fn next_worked(&self, i: usize) -> Option<Result<B>> {
            self.wait(|s| s.worked.remove(&i))
        }

        fn stop(&self) {
            self.change(|s| s.stop = true);
        }
    }

    /// Ends the run when the stage that holds it ends.
    pub(super) struct StopOnDrop<'a, A, B>(pub(super) &'a Belt<A, B>);

    impl<A, B> Drop for StopOnDrop<'_, A, B> {
        fn drop(&mut self) {
            self.0.stop();
        }
    }

    /// Ends the run when the stage that holds it panics.
    pub(super) struct StopOnPanic<'a, A, B>(pub(super) &'a Belt<A, B>);

    impl<A, B> Drop for StopOnPanic<'_, A, B> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.stop();
            }
        }
    }
}

#[cfg(all(test, feature = "rayon"))]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::error::Error;

    #[test]
    fn results_come_in_order_and_memory_stays_within_the_budget() {
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let cost = |i: usize| 10 + (i % 7) as u64;
        let mut taken = vec![];
        pipeline(
            500,
            64,
            Until::Taken,
            cost,
            |i| {
                let sum = now.fetch_add(cost(i), Ordering::SeqCst) + cost(i);
                most.fetch_max(sum, Ordering::SeqCst);
                Ok(i)
            },
            |i, j| {
                assert_eq!(i, j);
                std::thread::sleep(std::time::Duration::from_micros((i as u64 * 37) % 90));
                Ok(i * i)
            },
            |i, square| {
                now.fetch_sub(cost(i), Ordering::SeqCst);
                taken.push(square);
                Ok(())
            },
        )
        .expect("nothing fails");
        assert!(taken.into_iter().eq((0..500).map(|i| i * i)));
        assert!(most.into_inner() <= 64);
    }

    #[test]
    fn a_job_beyond_the_budget_still_runs_alone() {
        let squares = map_within(5, 1, |_| 1000, |i| Ok(i * i)).expect("nothing fails");
        assert_eq!(squares, [0, 1, 4, 9, 16]);
    }

    #[test]
    fn the_first_error_in_order_is_reported_whatever_the_stage() {
        for (read_at, work_at, take_at) in [(3, 9, 9), (9, 3, 9), (9, 9, 3), (3, 4, 5)] {
            let fail = |at: usize, i: usize| match i >= at {
                true => Err(Error::argument(format!("job {i}"))),
                false => Ok(()),
            };
            let result = pipeline(
                1000,
                40,
                Until::Taken,
                |_| 10,
                |i| fail(read_at, i),
                |i, ()| fail(work_at, i),
                |i, ()| fail(take_at, i),
            );
            assert_eq!(result.expect_err("a stage fails").message(), "job 3");
        }
    }

    #[test]
    #[should_panic(expected = "scoped thread panicked")]
    fn a_panic_ends_the_run() {
        let job = |i: usize| {
            assert_ne!(i, 50, "on purpose");
            Ok(())
        };
        let _ = map_within(100, 10, |_| 1, job);
    }
}
