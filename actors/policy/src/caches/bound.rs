//! The most that any store of a size could spare, knowing all calls in advance.

use std::collections::BTreeMap;

use super::Call;

/// Nanoseconds that no store of `bytes_max` can spare more than of `calls`.
///
/// To answer a call, a store must have kept its bytes since the call before of the same key. Among those
/// spans the most is chosen of which the sum of bytes x calls in between fits into budget x all calls,
/// the last one in part. A store also keeps the budget at every single call, so it spares no more.
///
/// # Cost
/// `O(n log n)`.
#[must_use]
pub fn ns_spared_max(calls: &[Call], bytes_max: u64) -> f64 {
    let mut last = BTreeMap::new();
    let mut spans = vec![];
    for (at, call) in calls.iter().enumerate() {
        if let Some(before) = last.insert(call.key, at)
            && call.bytes <= bytes_max
        {
            spans.push((call.ns.max(0.0), call.bytes as f64 * (at - before) as f64));
        }
    }
    spans.sort_unstable_by(|a, b| (b.0 * a.1).total_cmp(&(a.0 * b.1)));
    let mut room = bytes_max as f64 * calls.len() as f64;
    let mut spared = 0.0;
    for (ns, takes) in spans {
        if takes >= room {
            return spared + ns * room / takes.max(1.0);
        }
        room -= takes;
        spared += ns;
    }
    spared
}
