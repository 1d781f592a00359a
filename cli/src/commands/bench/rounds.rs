//! Timing of jobs that are compared with each other.

use std::time::{Duration, Instant};

/// One sample of a job lasts at least this long.
const SAMPLE: Duration = Duration::from_millis(4);

/// Something to measure.
pub struct Job<'a> {
    pub name: String,
    pub run: Box<dyn FnMut() + 'a>,
}

impl<'a> Job<'a> {
    pub fn new(name: impl Into<String>, run: impl FnMut() + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// The median seconds of one call of each job. Jobs take turns, so that whatever else the machine
/// does meets all of them; each sample follows a call that isn't timed.
pub fn medians(jobs: &mut [Job<'_>], rounds: usize) -> Vec<f64> {
    let mut calls = Vec::new();
    for job in jobs.iter_mut() {
        (job.run)();
        let start = Instant::now();
        (job.run)();
        let once = start.elapsed().max(Duration::from_nanos(1));
        calls.push((SAMPLE.as_nanos() / once.as_nanos()).clamp(1, 1_000_000));
    }
    let mut samples = vec![Vec::new(); jobs.len()];
    for _ in 0..rounds {
        for ((job, calls), samples) in jobs.iter_mut().zip(&calls).zip(&mut samples) {
            (job.run)();
            let start = Instant::now();
            for _ in 0..*calls {
                (job.run)();
            }
            samples.push(start.elapsed().as_secs_f64() / *calls as f64);
        }
    }
    let median = |samples: &mut Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    samples.iter_mut().map(median).collect()
}
