//! Which pods of a StatefulSet come and go. Its pods are numbered from 0, and its number of replicas says how
//! many there are: the one with the highest number always goes first.

use std::collections::BTreeSet;

/// The pod that becomes the next node: the first one that is none and is not waited for. So a pod that is being
/// started again, or could not be started yet, is waited for before there are more.
#[must_use]
pub fn next_pod(taken: &BTreeSet<u32>) -> u32 {
    (0..).find(|pod| !taken.contains(pod)).unwrap_or(u32::MAX)
}

/// The replicas that there must be so that `pod` is among them; never fewer than there are.
#[must_use]
pub fn replicas_with(replicas: u32, pod: u32) -> u32 {
    replicas.max(pod.saturating_add(1))
}

/// The replicas that there must be so that all the pods that are `needed` stay: the others at the end go. Never
/// more than there are.
#[must_use]
pub fn replicas_for(replicas: u32, needed: &BTreeSet<u32>) -> u32 {
    replicas.min(needed.last().map_or(0, |last| last.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(pods: &[u32]) -> BTreeSet<u32> {
        pods.iter().copied().collect()
    }

    #[test]
    fn a_pod_that_is_missing_is_waited_for_before_there_are_more() {
        assert_eq!(next_pod(&set(&[])), 0);
        assert_eq!(next_pod(&set(&[0, 1])), 2);
        assert_eq!(next_pod(&set(&[0, 2])), 1, "it is being started again");
        assert_eq!((replicas_with(2, 2), replicas_with(5, 1)), (3, 5));
    }

    #[test]
    fn pods_go_only_from_the_end() {
        assert_eq!(replicas_for(4, &set(&[0, 1, 2])), 3);
        assert_eq!(replicas_for(4, &set(&[0, 3])), 4, "the last one is needed");
        assert_eq!(replicas_for(4, &set(&[])), 0);
        assert_eq!(replicas_for(1, &set(&[4])), 1);
    }

    proptest! {
        #[test]
        fn no_needed_pod_ever_goes_and_no_pod_is_two_nodes(
            replicas in 0_u32..9,
            pods in prop::collection::btree_set(0_u32..9, 0..9),
        ) {
            let here: BTreeSet<u32> = pods.into_iter().filter(|pod| *pod < replicas).collect();
            let pod = next_pod(&here);
            let more = replicas_with(replicas, pod);
            prop_assert!(!here.contains(&pod) && pod < more);
            prop_assert!((replicas..=replicas + 1).contains(&more));
            let fewer = replicas_for(replicas, &here);
            prop_assert!(fewer <= replicas && here.iter().all(|pod| *pod < fewer));
            prop_assert_eq!(replicas_for(fewer, &here), fewer);
        }
    }
}
