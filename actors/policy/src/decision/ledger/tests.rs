//! What the ledger says, remembers and forgets.

use super::*;
use crate::config::Mode;
use crate::ids::Epoch;
use crate::reshape::{Basis, Worth};

const EXPECTED: Expected = Expected { mean_ns: 2e6, most_ns: 2e6, low_ns: 1.8e6, high_ns: 2.1e6 };

fn planned() -> Planned {
    Planned {
        step: Step::Precompute {
            function: "embed".into(),
            expression: ExpressionId(1),
            partition: PartitionId::new("trades", 0),
        },
        reason: Reason::Needed {
            calls: 4.0,
            in_ms: 250.0,
            rows: 1_000,
            ns_per_row: 2_000.0,
            expected: EXPECTED,
        },
        worth: Worth { benefit_ns: 8e6, cost_ns: 2e6, bytes: 8e3 },
        inputs: "0 rows stored".to_owned(),
        forecast: "4.0 calls".to_owned(),
        alternatives: vec!["embed on trades/1: 0.4 calls expected".to_owned()],
    }
}

fn call(ordinal: u32, rows_fresh_stored: u64) -> CallRecord {
    CallRecord {
        at_ms: 0,
        query: 1,
        function: "embed".into(),
        expression: ExpressionId(1),
        partition: PartitionId::new("trades", ordinal),
        node: NodeId(0),
        rows: 1_000,
        rows_stored: rows_fresh_stored,
        rows_fresh: rows_fresh_stored,
        rows_fresh_stored,
        ns: 0,
        waited_ns: 0,
        would_be_ns: 2_000_000,
        bytes: 0,
        traceparent: None,
    }
}

fn decide(ledger: &mut Ledger) -> u64 {
    ledger.decided(&planned(), By::Loop, stamp())
}

/// Ends a tick of a cluster of two nodes.
fn close(ledger: &mut Ledger, tick: u64) -> Vec<Harm> {
    let node = NodeView { cpu_permits: 1, ..NodeView::default() };
    let nodes = [0, 1].map(|id| (NodeId(id), node.clone())).into();
    ledger.close_tick(Tick(tick), &LoopConfig::default(), &nodes)
}

fn copy() -> Planned {
    let (busy_ms, limit_ms) = (900.0, 600.0);
    let expected = Expected { mean_ns: 2e9, most_ns: 2e9, low_ns: 1e9, high_ns: 3e9 };
    Planned {
        step: Step::Copy {
            partition: PartitionId::new("trades", 0),
            from: NodeId(0),
            to: NodeId(1),
        },
        reason: Reason::Hot { busy_ms, limit_ms, basis: Basis::Forecast, expected },
        ..planned()
    }
}

fn stamp() -> Stamp {
    Stamp { epoch: Epoch(3), mode: Mode::Forecast, tick: Tick(9), at_ms: 1_234 }
}

#[test]
fn a_decision_says_before_why_and_afterwards_what_it_was_worth() {
    let mut ledger = Ledger::new(10);
    let id = decide(&mut ledger);
    ledger.ended(id, Outcome::Done { rows: 1_000, bytes: 8_000, ns: 1_900_000 });
    ledger.credit(&call(0, 500));
    ledger.credit(&call(1, 500));
    let row = ledger.rows().next().unwrap();
    assert_eq!(row.target, "precompute embed on trades/0");
    assert_eq!(
        row.reason,
        "4.0 calls expected, the first within 250 ms; 1000 rows of 2.0 us are missing"
    );
    assert_eq!((row.expected_benefit_ns, row.expected_cost_ns), (8e6, 2e6));
    assert_eq!(row.outcome, Some(Outcome::Done { rows: 1_000, bytes: 8_000, ns: 1_900_000 }));
    assert_eq!(row.measured, Some(1e6));
}

#[test]
fn what_is_only_suggested_is_not_credited_with_what_others_stored() {
    let mut ledger = Ledger::new(10);
    let done = decide(&mut ledger);
    let suggested = ledger.decided(&planned(), By::Suggestion, stamp());
    assert_eq!(ledger.get(suggested).unwrap().standing(), "suggested");
    ledger.credit(&call(0, 500));
    assert_eq!(ledger.get(done).unwrap().measured, Some(1e6));
    assert_eq!(ledger.get(suggested).unwrap().measured, None);
}

#[test]
fn a_kind_is_trusted_by_what_was_measured_of_its_steps_once_they_are_due() {
    let mut ledger = Ledger::new(1_000);
    let mut play = |tick: u64, used: bool| {
        let id = ledger.decided(&planned(), By::Loop, stamp());
        ledger.judge_at(id, Tick(tick + 9));
        ledger.ended(id, Outcome::Done { rows: 1_000, bytes: 8_000, ns: 1 });
        if used {
            ledger.credit(&call(0, 1_000));
        }
        assert_eq!(close(&mut ledger, tick), []);
        ledger.trust().now().get("precompute").copied().unwrap_or_default()
    };
    assert!((1..100).all(|tick| play(tick, true).factor == 1.0));
    let stopped = (100..1_000).find(|tick| play(*tick, false).steps_left.is_some());
    assert!(stopped.is_some_and(|tick| tick < 800), "{stopped:?}");
    let kind = ledger.trust().kinds().next().unwrap();
    assert!(kind.expected_ns > kind.measured_ns && kind.measured_ns > 90.0 * 2e6, "{kind:?}");
}

#[test]
fn steps_that_failed_or_are_forgotten_are_not_judged() {
    let mut ledger = Ledger::new(2);
    for tick in 1..20 {
        let id = decide(&mut ledger);
        ledger.judge_at(id, Tick(tick + 5));
        ledger.ended(id, Outcome::Failed { code: "FS-MOVE-1".into(), reason: "late".into() });
        close(&mut ledger, tick);
    }
    assert_eq!((ledger.trust().kinds().count(), ledger.due.len()), (0, 5));
}

#[test]
fn what_got_slower_since_a_copy_is_harm_of_that_copy_and_costs_its_kind_trust() {
    let mut ledger = Ledger::new(10);
    let copy = copy();
    let mut id = 0;
    let harms: Vec<_> = (1..100)
        .flat_map(|tick| {
            let slower = if tick > 30 { 3 } else { 1 };
            ledger.credit(&CallRecord { ns: slower * 1_000_000, ..call(0, 0) });
            ledger.credit(&CallRecord { ns: 1_000_000, ..call(1, 0) });
            let harms = close(&mut ledger, tick);
            if tick == 30 {
                id = ledger.decided(&copy, By::Loop, stamp());
                ledger.ended(id, Outcome::Done { rows: 0, bytes: 8, ns: 1 });
                ledger.watch(id, Tick(130));
            }
            harms.into_iter().map(move |harm| (tick, harm))
        })
        .collect();
    let [(tick, harm)] = harms[..] else { panic!("{harms:?}") };
    assert!(tick < 35 && harm.id == id && (2.5..3.5).contains(&harm.slower), "{harms:?}");
    assert!(ledger.trust().now()["copy"].factor < 0.8);
    let undo = ledger.decided(&copy, By::Undo { of: id }, stamp());
    ledger.watch(undo, Tick(200));
    ledger.credit(&CallRecord { ns: 100_000_000, ..call(0, 0) });
    assert_eq!(close(&mut ledger, 100), [], "people are not contradicted");
}

/// Ticks in which partition 0 keeps a CPU busy for 800 ms in all, on node 0 or half on each node, and calls wait
/// there as long as they would if they came at random.
fn play(ledger: &mut Ledger, ticks: std::ops::Range<u64>, is_copied: bool) {
    for tick in ticks {
        let on = |node: u32, ms: u64, waited: u64| CallRecord {
            node: NodeId(node),
            ns: ms * 1_000_000,
            waited_ns: waited * 1_000_000,
            ..call(0, 0)
        };
        if is_copied {
            ledger.credit(&on(0, 400, 267));
            ledger.credit(&on(1, 400, 267));
        } else {
            ledger.credit(&on(0, 800, 3_200));
        }
        assert_eq!(close(ledger, tick), []);
    }
}

#[test]
fn what_a_copy_spares_is_measured_against_its_prediction_and_judged_by_it() {
    let mut ledger = Ledger::new(100);
    play(&mut ledger, 1..60, false);
    let id = ledger.decided(&copy(), By::Loop, stamp());
    ledger.ended(id, Outcome::Done { rows: 0, bytes: 8, ns: 1 });
    ledger.follow(id, Tick(59), 12);
    play(&mut ledger, 60..71, true);
    assert_eq!(ledger.get(id).unwrap().measured, None, "its time is not over");
    play(&mut ledger, 71..72, true);
    let row = ledger.get(id).unwrap();
    // Twelve seconds in which 3.2 s would have been waited for, and 0.53 s were.
    let spared = row.measured.unwrap() / 12.0;
    assert!((2.6e9..2.75e9).contains(&spared), "{spared}");
    assert_eq!(row.predicted.unwrap().mean_ns, 2e9);
    let kind = ledger.trust().kinds().next().unwrap();
    assert_eq!((kind.kind, kind.steps, kind.expected_ns), ("copy", 1, 2e9));
    assert_eq!(kind.measured_ns, row.measured.unwrap());
}

#[test]
fn a_step_that_is_held_back_is_compared_with_those_that_are_taken_and_judged_by_nothing_else() {
    let mut ledger = Ledger::new(100);
    play(&mut ledger, 1..60, false);
    let held = |until| Planned {
        reason: Reason::HeldBack {
            until: Tick(until),
            ticks: 12,
            share: 0.02,
            expected: copy().reason.expected().unwrap(),
        },
        ..copy()
    };
    let stamp = Stamp { tick: Tick(59), ..stamp() };
    let id = ledger.decided(&held(71), By::Holdback, stamp);
    ledger.decided(&held(70), By::Holdback, stamp); // Others are taken before it was watched to its end.
    play(&mut ledger, 60..80, false);
    let row = ledger.get(id).unwrap();
    assert_eq!((row.standing(), row.measured), ("held back".to_owned(), None));
    let kind = ledger.trust().kinds().next().unwrap();
    assert_eq!((kind.steps, kind.held_back, kind.now.factor), (0, 1, 1.0));
}

#[test]
fn what_is_to_be_avoided_is_forgotten_in_time_and_bounded_in_number() {
    let mut ledger = Ledger::new(10);
    let aim = |ordinal| Aim {
        kind: "copy",
        partition: Some(PartitionId::new("t", ordinal)),
        expression: None,
    };
    ledger.avoid(aim(0), Tick(5));
    assert_eq!(ledger.avoided(Tick(4)), [aim(0)].into());
    assert_eq!(ledger.avoided(Tick(5)), BTreeSet::new());
    for ordinal in 0..AVOIDED_MAX as u32 + 1 {
        ledger.avoid(aim(ordinal), Tick(u64::from(ordinal) + 10));
    }
    let avoided = ledger.avoided(Tick(0));
    assert!(avoided.len() == AVOIDED_MAX && !avoided.contains(&aim(0)));
}

#[test]
fn old_decisions_are_forgotten_and_later_news_of_them_change_nothing() {
    let mut ledger = Ledger::new(2);
    let ids: Vec<_> = (0..5).map(|_| decide(&mut ledger)).collect();
    assert_eq!(ids, [1, 2, 3, 4, 5]);
    ledger.ended(1, Outcome::Failed { code: "FS-MOVE-1".into(), reason: "late".into() });
    let kept: Vec<_> = ledger.rows().map(|row| (row.id, row.outcome.is_none())).collect();
    assert_eq!(kept, [(4, true), (5, true)]);
    assert_eq!(ledger.get(3).unwrap_err(), ControlError::Unknown { id: 3 });
}
