//! What the manager and the allocator do with a plan: send, wait, give up, charge, write down.

use std::sync::Arc;
use std::time::Duration;

use foreshard_actors::board::Role;
use foreshard_actors::loop_handle::LoopHandle;
use foreshard_actors::manager::ManagerMessage;
use foreshard_actors::ports::{Outcome, Outlook};
use foreshard_policy::cluster::Step;
use foreshard_policy::config::Mode;
use foreshard_policy::decision::Outcome as Recorded;
use foreshard_policy::forecast::{Forecast, Quantiles};
use foreshard_policy::history::HistoryView;
use foreshard_policy::ids::{Epoch, NodeId};
use ractor::ActorRef;

use super::rig::{self, Answer, Rig, calls, config, expression};

#[tokio::test(start_paused = true)]
async fn a_step_that_never_answers_holds_the_manager_up_for_its_deadline_only() {
    let rig = Rig::start(|args| args.step_time_max = Duration::from_secs(7)).await;
    rig.cluster.answer(Answer::Never);
    rig.tick_hot(0, 3).await;
    let sent = rig.cluster.sent().len();
    assert!(sent >= 1);
    rig.tick_hot(0, 3).await;
    assert_eq!(rig.cluster.sent().len(), sent, "what is under way is not sent again");

    let start = tokio::time::Instant::now();
    rig.handle.settled().await;
    assert_eq!(start.elapsed().as_secs(), 7);
    let row = &rig.handle.decisions()[0];
    assert!(
        matches!(&row.outcome, Some(Recorded::Failed { code, .. }) if code == "FS-STEP-1"),
        "{row:?}"
    );
    rig.cluster.answer(Answer::Done);
    rig.tick_hot(0, 3).await;
    rig.handle.settled().await;
    assert!(rig.cluster.sent().len() > sent, "afterwards it is tried again");
    assert!(rig.cluster.holders(0) > 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_an_old_epoch_or_for_the_second_time_changes_nothing() {
    let rig = Rig::start(|_| ()).await;
    rig.cluster.answer(Answer::Never);
    rig.tick_hot(0, 3).await;
    let (epoch, step) = rig.cluster.sent()[0].clone();
    let row = rig.handle.decisions()[0].clone();
    assert_eq!((row.epoch, row.outcome), (epoch, None));

    let manager: ActorRef<ManagerMessage> = rig.handle.board().cell(Role::Manager).unwrap().into();
    let done = |epoch, id| ManagerMessage::StepDone {
        epoch,
        id,
        outcome: Box::new(Outcome::Done { rows: 1, bytes: 1, ns: 1 }),
    };
    manager.cast(done(Epoch(epoch.0 - 1), row.id)).unwrap();
    manager.cast(done(epoch, row.id + 1_000)).unwrap();
    let in_flight = ractor::call_t!(manager, ManagerMessage::GetInFlight, 1_000).unwrap();
    assert_eq!(in_flight, [step]);
    assert_eq!(rig.handle.decisions()[0].outcome, None);

    manager.cast(done(epoch, row.id)).unwrap();
    manager.cast(done(epoch, row.id)).unwrap();
    let in_flight = ractor::call_t!(manager, ManagerMessage::GetInFlight, 1_000).unwrap();
    assert_eq!(in_flight, []);
    let outcome = rig.handle.decisions()[0].outcome.clone();
    assert_eq!(outcome, Some(Recorded::Done { rows: 1, bytes: 1, ns: 1 }));
}

#[tokio::test(start_paused = true)]
async fn a_plan_is_newer_than_the_one_whose_steps_are_under_way() {
    let rig = Rig::start(|_| ()).await;
    rig.cluster.answer(Answer::Never);
    rig.tick_hot(0, 3).await;
    rig.tick_hot(1, 3).await;
    let epochs: Vec<u64> = rig.cluster.sent().iter().map(|(epoch, _)| epoch.0).collect();
    assert_eq!(epochs, [2, 3], "{:?}", rig.cluster.sent());
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_dies_gives_its_steps_up_and_its_successor_says_so() {
    let rig = Rig::start(|_| ()).await;
    rig.cluster.answer(Answer::Never);
    rig.tick_hot(0, 3).await;
    assert_eq!(rig.handle.decisions()[0].outcome, None);
    rig.handle.kill(Role::Manager);
    rig.until(|handle| handle.restarts(Role::Manager) == 1).await;
    rig.handle.settled().await;
    let outcome = rig.handle.decisions()[0].outcome.clone();
    assert!(
        matches!(&outcome, Some(Recorded::Failed { code, .. }) if code == "FS-STEP-3"),
        "{outcome:?}"
    );
    assert_eq!(rig.cluster.under_way(), 0, "the work itself was cancelled");
}

#[tokio::test(start_paused = true)]
async fn mode_off_learns_and_plans_nothing_until_it_is_switched_on() {
    let rig = Rig::start(|args| args.config = config().with_mode(Mode::Off).unwrap()).await;
    rig.tick_hot(0, 4).await;
    assert_eq!(rig.handle.forecast().series.len(), 1);
    assert!(rig.cluster.sent().is_empty() && rig.handle.decisions().is_empty());
    rig.handle.set_mode(Mode::Reactive).unwrap();
    rig.tick_hot(0, 1).await;
    assert!(!rig.cluster.sent().is_empty());
    assert_eq!(rig.handle.decisions()[0].mode, Mode::Reactive);
}

#[tokio::test(start_paused = true)]
async fn more_load_than_the_nodes_carry_brings_a_node_and_budgets() {
    let rig = Rig::start(|_| ()).await;
    for _ in 0..4 {
        for partition in 0..3 {
            rig.handle.calls().offer(rig::hot_calls(partition, 60));
        }
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
    }
    assert!(rig.cluster.nodes().contains(&NodeId(3)), "{:?}", rig.cluster.nodes());
    assert!(rig.cluster.budgets().contains_key(&NodeId(0)));
    let rows = rig.handle.decisions();
    let row = rows.iter().find(|row| row.kind == "add node").unwrap();
    assert!(matches!(row.outcome, Some(Recorded::Done { .. })), "{row:?}");
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_takes_too_long_is_given_up_as_a_whole() {
    let rig = Rig::start(|args| args.plan_time_max = Duration::from_secs(3)).await;
    rig.cluster.answer(Answer::Never);
    rig.tick_hot(0, 3).await;
    assert_eq!(rig.cluster.under_way(), 1);
    let start = tokio::time::Instant::now();
    rig.handle.settled().await;
    assert_eq!(start.elapsed().as_secs(), 3);
    tokio::task::yield_now().await;
    assert_eq!(rig.cluster.under_way(), 0, "the work itself was cancelled");
    let outcome = rig.handle.decisions()[0].outcome.clone();
    assert!(
        matches!(&outcome, Some(Recorded::Failed { reason, .. }) if reason.contains("3000 ms")),
        "{outcome:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn stored_rows_that_calls_used_are_the_measured_worth_of_the_step_that_made_them() {
    let rig = Rig::start(|_| ()).await;
    rig.cluster.append(&[0]);
    for _ in 0..12 {
        rig.handle.calls().offer(calls(0, 5));
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
    }
    let made =
        |handle: &LoopHandle| handle.decisions().into_iter().find(|r| r.kind == "precompute");
    let before = made(&rig.handle).unwrap().measured.unwrap_or(0.0);
    rig.handle.calls().offer(rig::stored_calls(0, 5));
    rig.handle.tick().await.unwrap();
    let after = made(&rig.handle).unwrap().measured.unwrap_or(0.0);
    assert!(before < 1.0 && (after - 5e6).abs() < 1e5, "{before} before, {after} after");
}

#[tokio::test(start_paused = true)]
async fn background_work_is_charged_with_what_it_took_and_rests_until_that_is_paid() {
    let rig = Rig::start(|args| {
        // Half a millisecond a tick; a step is expected to take one and takes five.
        let precompute = config().precompute().clone().with_budget_share(0.0005).unwrap();
        args.config = config().with_precompute(precompute).unwrap();
    })
    .await;
    rig.cluster.takes(5_000_000);
    let mut ticks_with_steps = Vec::new();
    for tick in 0..50 {
        rig.cluster.append(&[0]);
        rig.handle.calls().offer(calls(0, 5));
        let before = rig.cluster.sent().len();
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
        if rig.cluster.sent().len() > before {
            ticks_with_steps.push(tick);
        }
    }
    let pauses: Vec<i32> = ticks_with_steps.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() >= 3 && pauses[1..].iter().all(|ticks| *ticks == 10), "{pauses:?}");
}

/// Ticks after the first in which partition 0 gets its second and its third replica, if 8 calls bring the
/// second, and from then on there are `count` a tick that take `slower` times as long.
async fn copied_at(count: usize, slower: u64) -> Vec<u64> {
    let rig = Rig::start(|_| ()).await;
    let mut changes = Vec::new();
    for tick in 0..20 {
        let mut calls = rig::hot_calls(0, if changes.is_empty() { 8 } else { count });
        for call in calls.iter_mut().filter(|_| !changes.is_empty()) {
            (call.ns, call.would_be_ns) = (slower * call.ns, slower * call.would_be_ns);
        }
        rig.handle.calls().offer(calls);
        let before = rig.cluster.holders(0);
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
        if rig.cluster.holders(0) != before {
            changes.push(tick);
        }
    }
    changes
}

#[tokio::test(start_paused = true)]
async fn a_partition_rests_after_its_replicas_changed_unless_it_is_called_more() {
    let rest = config().reshape().dwell_ticks();
    let slower = copied_at(8, 3).await;
    assert!(slower.len() >= 2 && slower[1] - slower[0] >= rest, "{slower:?}");
    let more = copied_at(24, 1).await;
    assert!(more.len() >= 2 && more[1] - more[0] == 1, "{more:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_could_not_be_added_is_asked_for_again_after_a_rest() {
    let rig = Rig::start(|_| ()).await;
    rig.cluster.answer(Answer::Fails);
    for _ in 0..11 {
        rig.handle.calls().offer(rig::hot_calls(0, 180));
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
    }
    let rows = rig.handle.decisions();
    let asked: Vec<_> = rows.iter().filter(|row| row.target == "add node n3").collect();
    assert_eq!(asked.len(), 2, "{rows:?}");
    assert!(asked[1].tick.0 - asked[0].tick.0 >= 8, "{asked:?}");
    assert!(asked.iter().all(|row| matches!(row.outcome, Some(Recorded::Failed { .. }))));
}

#[tokio::test(start_paused = true)]
async fn a_budget_is_set_once_and_not_at_every_tick() {
    let rig = Rig::start(|_| ()).await;
    for _ in 0..5 {
        rig.handle.tick().await.unwrap();
    }
    assert_eq!(rig.cluster.budgets_set(), 3);
}

/// Six days of 24 ticks: expression 0 is called in the evening, expression 1 at night, and midnight
/// brings new rows for both. Answers when outputs were computed on the last day, by expression.
async fn hours_of_the_last_day(mode: Mode) -> (Rig, [Vec<u64>; 2]) {
    const DAY: u64 = 24;
    const DAYS: u64 = 6;
    let rig = Rig::start(|args| {
        let config = config().with_season_ticks(Some(DAY as usize)).unwrap();
        args.config = config.with_mode(mode).unwrap();
    })
    .await;
    let mut hours = [vec![], vec![]];
    for tick in 0..DAY * DAYS {
        let hour = tick % DAY;
        if hour == 0 {
            rig.cluster.append(&[0, 1]);
        }
        let (evening, night) = ((18..22).contains(&hour), (2..5).contains(&hour));
        if evening || night {
            rig.handle.calls().offer(calls(u32::from(night), 5));
        }
        let before = rig.cluster.sent().len();
        rig.handle.tick().await.unwrap();
        rig.handle.settled().await;
        for (_, step) in rig.cluster.sent().split_off(before) {
            match step {
                Step::Precompute { expression: made, .. } if tick / DAY == DAYS - 1 => {
                    hours[usize::from(made == expression(1))].push(hour);
                }
                _ => {}
            }
        }
    }
    (rig, hours)
}

#[tokio::test(start_paused = true)]
async fn before_a_daily_peak_the_outputs_it_will_need_are_computed() {
    let (rig, [evening, night]) = hours_of_the_last_day(Mode::Forecast).await;
    assert!(!evening.is_empty() && evening.iter().all(|h| (8..18).contains(h)), "{evening:?}");
    assert!(night.iter().all(|hour| *hour < 5), "{night:?}");
    let row = rig.handle.decisions().into_iter().rfind(|row| row.kind == "precompute").unwrap();
    assert!(matches!(row.outcome, Some(Recorded::Done { .. })), "{row:?}");
    assert!(row.reason.contains("calls expected"), "{}", row.reason);
}

#[tokio::test(start_paused = true)]
async fn reactive_computes_nothing_ahead_and_inverted_the_wrong_things_but_both_show_the_truth() {
    let (forecast, _) = hours_of_the_last_day(Mode::Forecast).await;
    let (reactive, [evening, night]) = hours_of_the_last_day(Mode::Reactive).await;
    assert_eq!((evening, night), (vec![], vec![]));
    let (inverted, [evening, _]) = hours_of_the_last_day(Mode::Inverted).await;
    assert!(evening.iter().all(|hour| !(8..18).contains(hour)), "{evening:?}");
    for other in [&reactive, &inverted] {
        assert_eq!(other.handle.forecast(), forecast.handle.forecast());
    }
}

/// Expects a call of everything in the next tick.
#[derive(Debug)]
struct Everything;

impl Outlook for Everything {
    fn told(&self, forecast: &Arc<Forecast>, seen: &HistoryView) -> Arc<Forecast> {
        assert_eq!(forecast.at, seen.at);
        let mut told = Forecast { trusted: true, ..Forecast::clone(forecast) };
        for series in &mut told.series {
            series.calls = vec![Quantiles::exactly(1.0)];
        }
        Arc::new(told)
    }
}

#[tokio::test(start_paused = true)]
async fn planners_are_told_another_outlook_and_everybody_else_the_forecast() {
    for is_other in [false, true] {
        let rig = Rig::start(|args| {
            args.outlook = is_other.then(|| Arc::new(Everything) as Arc<dyn Outlook>);
        })
        .await;
        rig.cluster.append(&[0]);
        rig.tick_hot(0, 1).await;
        rig.handle.settled().await;
        let is_precompute = |(_, step): &(Epoch, Step)| matches!(step, Step::Precompute { .. });
        assert_eq!(rig.cluster.sent().iter().any(is_precompute), is_other, "after one tick");
        assert!(!rig.handle.forecast().trusted);
        assert_eq!(rig.handle.forecast().series[0].calls.len(), config().horizon_ticks());
    }
}
