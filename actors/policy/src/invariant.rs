//! The promises of the engine, each with a number that logs, tests and documents share.

use std::fmt;

/// A promise. Its number never changes meaning and is never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Promise {
    /// P1: a result equals plain DataFusion's on the same snapshot.
    SameAnswers,
    /// P2: a query sees one version of each table.
    OneSnapshot,
    /// P3: a changed row or function never meets an old output.
    NeverStale,
    /// P4: nothing acknowledged is lost.
    NothingLost,
    /// P5: only outputs of immutable functions are stored.
    OnlySafe,
    /// P6: no query waits for the loop.
    NobodyWaits,
    /// P7: every queue, budget and cache has a limit and is charged.
    Bounded,
    /// P8: copy, move and drop fail no query and repeat or lose no row.
    InvisibleMoves,
    /// P9: every step has a reason before and a measured worth after.
    Explained,
    /// P10: a wrong forecast makes nothing worse.
    SafeToBeWrong,
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SameAnswers => "P1 same answers",
            Self::OneSnapshot => "P2 one snapshot",
            Self::NeverStale => "P3 never stale",
            Self::NothingLost => "P4 nothing acknowledged is lost",
            Self::OnlySafe => "P5 only the safe is stored",
            Self::NobodyWaits => "P6 nobody waits for the loop",
            Self::Bounded => "P7 bounded",
            Self::InvisibleMoves => "P8 moves are invisible",
            Self::Explained => "P9 explained",
            Self::SafeToBeWrong => "P10 safe to be wrong",
        })
    }
}

/// Stops a debug build where a promise is broken; in release the caller carries on.
#[inline]
#[track_caller]
pub fn check(promise: Promise, holds: bool) {
    debug_assert!(holds, "broken promise: {promise}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "P7 bounded")]
    fn a_broken_promise_stops_a_debug_build() {
        check(Promise::Bounded, false);
    }
}
