//! Work that keeps the processor busy, so that the tests find it taken.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

/// Threads that compute until this is dropped.
pub struct Busy {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Busy {
    /// Starts so many.
    pub fn start(threads: usize) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let one = || {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                let mut number = 1u64;
                while !over.load(Ordering::Relaxed) {
                    for _ in 0..1_000_000 {
                        number = black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                    }
                }
            })
        };
        let threads = (0..threads).map(|_| one()).collect();
        Self { over, threads }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
