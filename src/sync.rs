//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock that a panicking thread cannot poison for others: for data that are plain values.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_that_a_panic_poisoned_still_opens() {
        let mutex = Mutex::new(3);
        let panicked = std::thread::scope(|scope| {
            let poison = || {
                let _guard = mutex.lock();
                panic!("while it is held");
            };
            scope.spawn(poison).join().is_err()
        });
        assert!(panicked && mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 3);
    }
}
