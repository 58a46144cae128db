//! Work that is spread over threads.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow};

/// Does `work` with each of `items` on so many threads, and answers in their order.
///
/// # Errors
/// One of the errors of `work`, or that it panicked.
pub(crate) fn each<T: Send, R: Send>(
    items: Vec<T>,
    threads: usize,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let waiting = Mutex::new(items.into_iter().enumerate().rev().collect::<Vec<_>>());
    let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let one = || -> Result<Vec<(usize, R)>> {
        let mut done = Vec::new();
        while let Some((place, item)) = next() {
            done.push((place, work(item)?));
        }
        Ok(done)
    };
    let mut all = std::thread::scope(|scope| -> Result<Vec<(usize, R)>> {
        let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(one)).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_panic| anyhow!("work broke off"))??);
        }
        Ok(all)
    })?;
    all.sort_by_key(|(place, _)| *place);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_one_error_is_the_answer() {
        let doubled = each((0..50).collect(), 3, |item: u32| Ok(2 * item)).unwrap();
        assert_eq!(doubled, (0..50).map(|item| 2 * item).collect::<Vec<_>>());
        let failed =
            each(vec![1, 2], 2, |item| if item == 2 { Err(anyhow!("two")) } else { Ok(()) });
        assert_eq!(failed.unwrap_err().to_string(), "two");
    }
}
