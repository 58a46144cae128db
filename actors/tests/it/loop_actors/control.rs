//! What people say to the manager and the allocator: approve, undo, and who may do what by itself.

use foreshard_actors::board::Role;
use foreshard_policy::calls::CallRecord;
use foreshard_policy::cluster::Step;
use foreshard_policy::control::Control;
use foreshard_policy::decision::By;
use foreshard_policy::ids::NodeId;

use super::rig::{self, Answer, Rig, config};

async fn suggesting() -> Rig {
    let rig = Rig::start(|_| ()).await;
    rig.handle.change_controls(|all| all.set("t", Some(Control::Suggest))).await.unwrap();
    rig
}

#[tokio::test(start_paused = true)]
async fn a_suggestion_is_sent_once_it_is_approved_and_only_once() {
    let rig = suggesting().await;
    rig.tick_hot(0, 4).await;
    assert_eq!(rig.cluster.sent(), []);
    let row = rig.handle.decisions().remove(0);
    assert_eq!((row.by, row.standing().as_str()), (By::Suggestion, "suggested"));
    let new = rig.handle.approve(row.id).await.unwrap();
    let error = rig.handle.approve(row.id).await.unwrap_err();
    assert_eq!(error.code(), "FS-CONTROL-3", "{error}");
    rig.handle.settled().await;
    assert_eq!((rig.cluster.sent().len(), rig.cluster.holders(0)), (1, 2));
    let rows = rig.handle.decisions();
    let done = rows.iter().find(|row| row.id == new).unwrap();
    assert_eq!((done.by, &done.reason), (By::Approval { of: row.id }, &row.reason));
    assert_eq!(rows.iter().filter(|row| row.by == By::Suggestion).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_suggestion_that_is_not_planned_any_more_cannot_be_approved() {
    let rig = suggesting().await;
    rig.tick_hot(0, 3).await;
    let id = rig.handle.decisions()[0].id;
    for _ in 0..5 {
        rig.handle.tick().await.unwrap();
    }
    assert_eq!(rig.handle.decisions()[0].standing(), "left: not planned any more");
    assert_eq!(rig.handle.approve(id).await.unwrap_err().code(), "FS-CONTROL-3");
    assert_eq!(rig.cluster.sent(), []);
}

#[tokio::test(start_paused = true)]
async fn what_was_undone_stays_undone_though_the_manager_dies() {
    let rig = Rig::start(|_| ()).await;
    rig.tick_hot(0, 3).await;
    rig.handle.settled().await;
    assert_eq!(rig.cluster.holders(0), 2);
    let id = rig.handle.decisions()[0].id;
    let undo = rig.handle.undo(id).await.unwrap();
    rig.handle.settled().await;
    assert_eq!(rig.cluster.holders(0), 1);
    let row = rig.handle.decisions().into_iter().find(|row| row.id == undo).unwrap();
    assert_eq!((row.by, row.kind.as_str()), (By::Undo { of: id }, "drop"));
    rig.handle.kill(Role::Manager);
    rig.until(|handle| handle.restarts(Role::Manager) == 1).await;
    rig.tick_hot(0, 30).await;
    rig.handle.settled().await;
    assert_eq!(rig.cluster.holders(0), 1, "dwell is over, and it was undone");
    let ticks = config().reshape().undone_ticks() as usize;
    rig.tick_hot(0, ticks).await;
    rig.handle.settled().await;
    assert!(rig.cluster.holders(0) > 1, "people are not asked for ever");
}

#[tokio::test(start_paused = true)]
async fn a_step_under_way_must_end_before_its_partition_is_changed_by_hand() {
    let rig = Rig::start(|_| ()).await;
    rig.tick_hot(0, 3).await;
    rig.handle.settled().await;
    let id = rig.handle.decisions()[0].id;
    rig.cluster.answer(Answer::Never);
    let undo = rig.handle.undo(id).await.unwrap();
    let error = rig.handle.undo(id).await.unwrap_err();
    assert_eq!((error.code(), error.is_retryable()), ("FS-CONTROL-6", true));
    let error = rig.handle.undo(undo).await.unwrap_err();
    assert_eq!(error.to_string(), format!("decision {undo} cannot be undone: it is under way"));
}

#[tokio::test(start_paused = true)]
async fn nodes_are_suggested_where_nothing_is_left_to_the_loop_and_come_when_approved() {
    let rig =
        Rig::start(|args| args.config = config().with_control(Control::Suggest).unwrap()).await;
    for _ in 0..3 {
        rig.handle.calls().offer(rig::hot_calls(0, 30));
        rig.handle.tick().await.unwrap();
    }
    rig.handle.settled().await;
    assert_eq!(rig.cluster.nodes().len(), 3);
    let rows = rig.handle.decisions();
    let suggested = rows.iter().find(|row| row.kind == "add node").unwrap();
    assert_eq!(suggested.step, Some(Step::AddNode { node: NodeId(3) }));
    rig.handle.approve(suggested.id).await.unwrap();
    rig.handle.settled().await;
    assert_eq!(rig.cluster.nodes().len(), 4);
    let adds = rig.handle.decisions();
    let adds = adds.iter().filter(|row| row.target == "add node n3");
    assert_eq!(adds.count(), 2, "the suggestion, and what was done");
}

/// The same calls, three times as slow.
fn slow_calls(partition: u32) -> Vec<CallRecord> {
    let mut calls = rig::hot_calls(partition, 8);
    for call in &mut calls {
        (call.ns, call.would_be_ns) = (3 * call.ns, 3 * call.would_be_ns);
    }
    calls
}

/// A copy of partition 0 after a while in which it was measured only, and its number.
async fn copied() -> (Rig, u64) {
    let rig = Rig::start(|_| ()).await;
    rig.handle.change_controls(|all| all.set("t", Some(Control::Observe))).await.unwrap();
    rig.tick_hot(0, 12).await;
    rig.handle.change_controls(|all| all.set("t", None)).await.unwrap();
    rig.tick_hot(0, 1).await;
    rig.handle.settled().await;
    assert_eq!(rig.cluster.holders(0), 2);
    let id = rig.handle.decisions().iter().find(|row| row.kind == "copy").unwrap().id;
    (rig, id)
}

#[tokio::test(start_paused = true)]
async fn a_copy_since_which_calls_are_slower_is_taken_back_with_the_reason_and_not_taken_again() {
    let (rig, id) = copied().await;
    for _ in 0..9 {
        rig.handle.calls().offer(slow_calls(0));
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
    }
    let rows = rig.handle.decisions();
    let revert = rows.iter().find(|row| row.by == By::Revert { of: id }).unwrap();
    assert_eq!(revert.kind, "drop");
    let expected = format!("since decision {id} a row takes 3.00 times as long there as before");
    assert!(revert.reason.starts_with(&expected), "{}", revert.reason);
    for _ in 0..30 {
        rig.handle.calls().offer(slow_calls(0));
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
    }
    assert_eq!(rig.cluster.holders(0), 1, "{:?}", rig.handle.decisions());
    let copies = rig.handle.trust();
    assert!(copies[0].kind == "copy" && copies[0].now.factor < 0.9, "{copies:?}");
}

#[tokio::test(start_paused = true)]
async fn a_copy_since_which_calls_are_as_before_stays() {
    let (rig, _) = copied().await;
    rig.tick_hot(0, 130).await;
    rig.handle.settled().await;
    assert!(rig.cluster.holders(0) >= 2);
    let rows = rig.handle.decisions();
    assert!(rows.iter().all(|row| !matches!(row.by, By::Revert { .. })), "{rows:?}");
    let copies = rig.handle.trust();
    // Nobody waited for a CPU, so there was nothing to spare.
    assert!(copies[0].kind == "copy" && copies[0].steps > 0, "{copies:?}");
    assert_eq!(copies[0].measured_ns, 0.0);
}

#[tokio::test(start_paused = true)]
async fn harm_to_a_table_that_is_not_left_to_the_loop_is_written_down_and_not_taken_back() {
    let (rig, id) = copied().await;
    rig.handle.change_controls(|all| all.set("t", Some(Control::Suggest))).await.unwrap();
    for _ in 0..9 {
        rig.handle.calls().offer(slow_calls(0));
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
    }
    assert_eq!(rig.cluster.holders(0), 2);
    let rows = rig.handle.decisions();
    let harm = rows.iter().find(|row| row.kind == "harm").unwrap();
    assert_eq!(harm.target, format!("decision {id}"));
    assert!(harm.reason.ends_with("not left to the loop (system.controls); CALL undo does it"));
}
