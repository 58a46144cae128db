//! The loop on a paused clock, with ports that write down what they were asked.

mod announced;
mod control;
mod members;
mod plans;
mod rig;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use foreshard_actors::board::{Role, TickToken};
use foreshard_actors::loop_handle::{LoopArgs, LoopError, LoopHandle, Ticks};
use foreshard_actors::monitor::MonitorMessage;
use foreshard_actors::ports::Outlook;
use foreshard_actors::state_file::{DiskFile, StateFile};
use foreshard_policy::forecast::Forecast;
use foreshard_policy::history::{HistoryView, Succession};
use foreshard_policy::ids::Tick;
use ractor::ActorRef;

use rig::{Rig, calls, config, expression};

#[tokio::test(start_paused = true)]
async fn calls_flow_to_the_history_the_forecast_and_the_raw_records() {
    let rig = Rig::start(|_| ()).await;
    for _ in 0..3 {
        rig.handle.calls().offer(calls(0, 4));
        rig.handle.tick().await.unwrap();
    }
    assert_eq!(rig.handle.history().at, Tick(3));
    let forecast = rig.handle.forecast();
    assert_eq!(forecast.at, Tick(3));
    let series = &forecast.series[0];
    assert_eq!(series.key.expression, expression(0));
    assert_eq!(series.calls.len(), config().horizon_ticks());
    assert!((series.calls[0].q50 - 4.0).abs() < 0.5, "{:?}", series.calls[0]);
    assert_eq!(rig.handle.recent_calls().len(), 12);
    assert!(!rig.handle.scores().recent.is_empty());
    assert_eq!(rig.handle.calls().dropped(), 0);
}

#[tokio::test(start_paused = true)]
async fn ticks_go_by_the_clock_unless_they_go_by_hand() {
    let rig = Rig::start(|args| args.ticks = Ticks::ByClock).await;
    rig.handle.calls().offer(calls(0, 1));
    tokio::time::sleep(Duration::from_millis(10_500)).await;
    assert_eq!(rig.handle.last_tick(), Tick(10));
    assert_eq!(rig.handle.forecast().at, Tick(10));
}

#[tokio::test(start_paused = true)]
async fn members_know_the_calendar_where_ticks_go_by_the_clock() {
    for (ticks, knows) in [(Ticks::ByClock, true), (Ticks::ByHand, false)] {
        let (members, seen) = members::watching_member();
        let rig = Rig::start(|args| (args.ticks, args.members) = (ticks, members)).await;
        rig.handle.calls().offer(calls(0, 1));
        rig.handle.tick().await.unwrap();
        let seen = seen.lock().unwrap().clone();
        assert!(
            !seen.is_empty() && seen.iter().all(|epoch_ms| (*epoch_ms > 0) == knows),
            "{seen:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_sink_drops_and_counts_and_takes_more_once_there_is_room() {
    let rig = Rig::start(|args| args.batches_max = 2).await;
    let sink = rig.handle.calls();
    // Nothing is awaited, so the monitor has no turn between these.
    for _ in 0..5 {
        sink.offer(calls(0, 3));
    }
    assert_eq!((sink.waiting(), sink.dropped()), (2, 9));
    rig.handle.tick().await.unwrap();
    assert_eq!((sink.waiting(), rig.handle.recent_calls().len()), (0, 6));
    sink.offer(calls(0, 3));
    rig.handle.tick().await.unwrap();
    assert_eq!((sink.dropped(), rig.handle.recent_calls().len()), (9, 9));
}

#[tokio::test(start_paused = true)]
async fn whoever_of_the_four_is_killed_is_started_again_and_the_loop_goes_on() {
    let rig = Rig::start(|_| ()).await;
    rig.handle.calls().offer(calls(0, 4));
    rig.handle.tick().await.unwrap();
    for role in Role::ALL {
        for death in 1..=3 {
            rig.handle.kill(role);
            rig.until(|handle| handle.restarts(role) == death).await;
        }
        rig.handle.calls().offer(calls(0, 4));
        let tick = rig.handle.tick().await.unwrap();
        assert_eq!(rig.handle.forecast().at, tick, "after the {role} died");
    }
    assert_eq!(rig.handle.last_tick(), Tick(5), "no tick is lost or counted twice");

    // The manager and the allocator plan, too.
    rig.tick_hot(0, 3).await;
    assert!(rig.cluster.sent().iter().any(|(_, step)| step.kind() == "copy"));
}

#[tokio::test(start_paused = true)]
async fn calls_for_a_monitor_that_is_dead_are_dropped_and_counted_and_a_tick_says_so() {
    let rig = Rig::start(|_| ()).await;
    let sink = rig.handle.calls();
    rig.handle.kill(Role::Monitor);
    sink.offer(calls(0, 4)); // It may reach the mailbox of the dying monitor: lost, but not waiting.
    assert_eq!(rig.handle.tick().await, Err(LoopError::Down { role: Role::Monitor }));
    rig.until(|handle| handle.restarts(Role::Monitor) == 1).await;
    assert_eq!(sink.waiting(), 0);
    sink.offer(calls(0, 4));
    rig.handle.tick().await.unwrap();
    assert_eq!(rig.handle.history().series.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_fails_is_left_out_and_forecasts_go_on() {
    let rig = Rig::start(|args| args.members = members::failing_member(false)).await;
    rig.tick_hot(0, 10).await;
    assert_eq!(rig.handle.forecast().at, Tick(10));
    assert_eq!(rig.handle.restarts(Role::Predictor), 0);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_panics_costs_the_predictor_and_nobody_else() {
    let rig = Rig::start(|args| args.members = members::failing_member(true)).await;
    for _ in 0..3 {
        rig.tick_hot(0, 1).await;
    }
    rig.until(|handle| handle.restarts(Role::Predictor) >= 1).await;
    assert_eq!(rig.handle.last_tick(), Tick(3));
    assert_eq!(rig.handle.history().series.len(), 1);
    for role in [Role::Monitor, Role::Manager, Role::Allocator] {
        assert_eq!(rig.handle.restarts(role), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_member_that_learns_and_a_shutdown_keeps_what_it_learned() {
    let (members, gate) = members::slow_member();
    let rig = Rig::start(|args| args.members = members).await;
    let first = rig.handle.clone();
    let held_up = async move { first.tick().await };
    let meanwhile = async {
        gate.begun.notified().await;
        // Calls are taken, ticks closed and forecasts made, while it goes on learning.
        rig.cluster.lose(2);
        let monitor: ActorRef<MonitorMessage> =
            rig.handle.board().cell(Role::Monitor).unwrap().into();
        for _ in 0..3 {
            rig.handle.calls().offer(calls(0, 4));
            monitor.cast(MonitorMessage::TickDue(TickToken::default())).unwrap();
        }
        while rig.cluster.sent().is_empty() || rig.handle.forecast().at < Tick(4) {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.handle.last_tick(), Tick(4));
        let stop = rig.handle.shutdown();
        tokio::join!(stop, async { drop(gate.hold) }).0.unwrap();
    };
    tokio::join!(held_up, meanwhile).0.unwrap();
    let kept = String::from_utf8(rig.checkpoint.load().unwrap().unwrap()).unwrap();
    assert!(kept.contains(r#"["slow",["#) && !kept.contains(r#"["slow",[0]]"#), "{kept}");
}

/// Writes down the ticks of the forecasts that planners are told, and how far each looks ahead.
#[derive(Debug, Default)]
struct Noted(Mutex<Vec<(Tick, usize)>>);

impl Outlook for Noted {
    fn told(&self, forecast: &Arc<Forecast>, _: &HistoryView) -> Arc<Forecast> {
        let ahead = forecast.series.iter().map(|series| series.calls.len()).max();
        self.0.lock().unwrap().push((forecast.at, ahead.unwrap_or_default()));
        Arc::clone(forecast)
    }
}

#[tokio::test(start_paused = true)]
async fn planners_are_told_the_last_forecast_carried_on_as_long_as_the_next_one_takes() {
    let (members, gate) = members::member_slow_to_forecast();
    let noted = Arc::new(Noted::default());
    let rig = Rig::start(|args| {
        args.members = members;
        args.outlook = Some(noted.clone());
    })
    .await;
    rig.handle.calls().offer(calls(0, 4));
    rig.handle.tick().await.unwrap();
    let second = rig.handle.clone();
    let held_up = async move { second.tick().await };
    let meanwhile = async {
        gate.begun.notified().await;
        let monitor: ActorRef<MonitorMessage> =
            rig.handle.board().cell(Role::Monitor).unwrap().into();
        for ticks in 2..4 {
            monitor.cast(MonitorMessage::TickDue(TickToken::default())).unwrap();
            while noted.0.lock().unwrap().len() < ticks {
                tokio::task::yield_now().await;
            }
        }
        let horizon = config().horizon_ticks();
        let told = noted.0.lock().unwrap().clone();
        assert_eq!(told, [(Tick(1), horizon), (Tick(3), horizon - 2), (Tick(4), horizon - 3)]);
        assert_eq!(rig.handle.forecast().at, Tick(1), "what was made is what is shown");
        drop(gate.hold);
    };
    tokio::join!(held_up, meanwhile).0.unwrap();
    rig.handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn without_forecasts_repairs_go_on_after_two_ticks() {
    let rig = Rig::start(|args| args.members = members::failing_member(true)).await;
    rig.cluster.lose(0);
    rig.tick_hot(0, 2).await;
    assert!(rig.cluster.sent().is_empty());
    rig.tick_hot(0, 1).await;
    assert!(!rig.cluster.sent().is_empty(), "a lost partition is loaded without a forecast");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_forecasts_are_waited_for_as_long_as_at_the_first_start() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(|args| *args = args.clone().in_folder(folder.path())).await;
    rig.tick_hot(0, 9).await;
    rig.handle.shutdown().await.unwrap();
    let failing = |args: &mut LoopArgs| {
        *args = args.clone().in_folder(folder.path());
        args.members = members::failing_member(true);
    };
    let rig = Rig::start(failing).await;
    rig.cluster.lose(0);
    rig.tick_hot(0, 2).await;
    assert_eq!(rig.cluster.sent(), []);
    rig.tick_hot(0, 1).await;
    assert!(!rig.cluster.sent().is_empty(), "a lost partition is loaded without a forecast");
}

#[tokio::test(start_paused = true)]
async fn the_history_survives_the_monitor_by_its_file_and_its_store_and_ticks_never_go_back() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(|args| *args = args.clone().in_folder(folder.path())).await;
    rig.tick_hot(0, 65).await;
    rig.until(|_| folder.path().join("history").exists()).await;
    rig.handle.kill(Role::Monitor);
    rig.until(|handle| handle.restarts(Role::Monitor) == 1).await;
    assert_eq!(rig.handle.tick().await, Ok(Tick(66)));
    let history = rig.handle.history();
    // What came after the save of tick 60 is in the store.
    let calls: Vec<f64> =
        [60, 61, 65, 66].map(|tick| history.series[0].calls_at(Tick(tick))).into();
    assert_eq!(calls, [8.0, 8.0, 8.0, 0.0]);
    assert_eq!(history.series[0].stats.calls, 65 * 8);
}

#[tokio::test(start_paused = true)]
async fn without_a_store_a_dead_monitor_forgets_what_came_after_the_last_save() {
    let folder = tempfile::tempdir().unwrap();
    let in_folder = |args: &mut LoopArgs| {
        *args = LoopArgs { store_folder: None, ..args.clone().in_folder(folder.path()) };
    };
    let rig = Rig::start(in_folder).await;
    rig.tick_hot(0, 65).await;
    rig.until(|_| folder.path().join("history").exists()).await;
    rig.handle.kill(Role::Monitor);
    rig.until(|handle| handle.restarts(Role::Monitor) == 1).await;
    assert_eq!(rig.handle.tick().await, Ok(Tick(66)));
    let history = rig.handle.history();
    assert_eq!(history.series[0].calls_at(Tick(60)), 8.0);
    assert_eq!(history.series[0].calls_at(Tick(61)), 0.0);
}

#[tokio::test(start_paused = true)]
async fn series_follow_rows_that_are_moved_and_so_they_do_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(|args| *args = args.clone().in_folder(folder.path())).await;
    rig.tick_hot(0, 3).await;
    let from = rig.handle.history().series[0].key.partition.table.clone();
    assert!(rig.handle.follow(Succession::Renamed { from, to: "renamed".into() }));
    rig.handle.tick().await.unwrap();
    let table = |rig: &Rig| rig.handle.history().series[0].key.partition.table.to_string();
    assert_eq!(table(&rig), "renamed");
    rig.until(|_| folder.path().join("history").exists()).await;
    rig.handle.kill(Role::Monitor);
    rig.until(|handle| handle.restarts(Role::Monitor) == 1).await;
    rig.handle.tick().await.unwrap();
    assert_eq!((table(&rig), rig.handle.history().series[0].stats.calls), ("renamed".into(), 24));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_is_counted_and_the_ticks_go_on() {
    let rig = Rig::start(|args| args.ticks = Ticks::ByClock).await;
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(rig.handle.last_tick(), Tick(3));
    rig.clock.jump_ms(-7_200_000);
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert_eq!(rig.handle.last_tick(), Tick(4));
    rig.clock.jump_ms(10_000);
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert_eq!(rig.handle.last_tick(), Tick(15));
    rig.clock.jump_ms(1_000_000_000_000);
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert_eq!(rig.handle.last_tick(), Tick(16));
    let irregular = rig.handle.irregular();
    assert_eq!((irregular.clock_back, irregular.clock_ahead), (1, 1));
    assert_eq!((irregular.ticks_missing, irregular.ticks_duplicate), (10, 0));
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_was_shut_down_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::start(|args| *args = args.clone().in_folder(folder.path())).await;
    rig.tick_hot(0, 20).await;
    let skill = rig.handle.forecast().skill;
    let trusted = rig.handle.forecast().trusted;
    rig.handle.shutdown().await.unwrap();
    assert_eq!(rig.handle.shutdown().await, Ok(()), "a second time is no error");
    assert!(rig.handle.tick().await.is_err());

    let rig = Rig::start(|args| *args = args.clone().in_folder(folder.path())).await;
    assert_eq!(rig.handle.last_tick(), Tick(20), "known before another tick is closed");
    rig.tick_hot(0, 1).await;
    assert_eq!(rig.handle.last_tick(), Tick(21));
    assert_eq!(rig.handle.history().series[0].calls_at(Tick(3)), 8.0);
    assert_eq!((rig.handle.forecast().skill, rig.handle.forecast().trusted), (skill, trusted));
}

#[tokio::test(start_paused = true)]
async fn states_that_cannot_be_read_are_set_aside_and_the_loop_starts_empty() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["history", "forecast"] {
        DiskFile::new(folder.path().join(name)).save(b"\0\0\0\0\0\0\0\0 not a state").unwrap();
    }
    let rig = Rig::start(|args| *args = args.clone().in_folder(folder.path())).await;
    rig.tick_hot(0, 2).await;
    assert_eq!(rig.handle.forecast().at, Tick(2));
    for name in ["history.unusable", "forecast.unusable"] {
        assert!(folder.path().join(name).exists(), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_folder_that_cannot_be_written_costs_the_memory_and_not_the_loop() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let rig = Rig::start(|args| *args = args.clone().in_folder(&gone)).await;
    rig.tick_hot(0, 61).await;
    assert_eq!(rig.handle.forecast().at, Tick(61));
    rig.handle.shutdown().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_a_member_refuses_is_an_error_at_the_start() {
    let members = Arc::new(|_: &_| {
        Err(foreshard_policy::forecast::ForecastError::Setting {
            name: "lstm.hidden",
            value: 0.0,
            bound: "1 to 127",
        })
    });
    let args = LoopArgs { members, ..Rig::args() };
    let error = LoopHandle::start(args, None).await.unwrap_err();
    assert_eq!(error.code(), "FS-LOOP-1");
    assert!(error.to_string().contains("lstm.hidden is 0; it must be 1 to 127"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_lstm_learns_within_the_loop_and_its_weights_survive_the_predictor() {
    let rig = Rig::start(|args| {
        args.members = Arc::new(foreshard_actors::predictor::neural_members);
        let lstm = config().lstm().clone().with_enabled(true).unwrap();
        let lstm = lstm.with_hidden(8).unwrap().with_window(12).unwrap();
        args.config = config().with_lstm(lstm.with_steps_per_tick(1).unwrap()).unwrap();
    })
    .await;
    rig.tick_hot(0, 60).await;
    let weight = |handle: &LoopHandle| {
        let weights = handle.forecast().series[0].weights.clone();
        weights.into_iter().find(|(name, _)| name == "lstm").map(|(_, weight)| weight)
    };
    assert!(weight(&rig.handle).is_some());
    let kept = rig.checkpoint.load().unwrap().unwrap();
    rig.handle.kill(Role::Predictor);
    rig.until(|handle| handle.restarts(Role::Predictor) == 1).await;
    rig.tick_hot(0, 1).await;
    assert_eq!(weight(&rig.handle).map(f64::is_finite), Some(true));
    rig.handle.shutdown().await.unwrap();
    let later = rig.checkpoint.load().unwrap().unwrap();
    assert!(kept.len() > 1_000 && later.len() > 1_000 && kept != later);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_cannot_be_started_is_tried_again_with_growing_pauses() {
    let rig = Rig::start(|args| args.members = members::members_that_fail_on(2..=4)).await;
    rig.handle.kill(Role::Predictor);
    let start = tokio::time::Instant::now();
    rig.until(|handle| handle.restarts(Role::Predictor) == 1).await;
    // At once, after 100, after 200 and, this time well, after 400 ms.
    let waited_ms = start.elapsed().as_millis();
    assert!((700..750).contains(&waited_ms), "{waited_ms} ms");
    rig.tick_hot(0, 1).await;
    assert_eq!(rig.handle.forecast().at, Tick(1));
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_lived_for_a_while_is_started_again_at_once() {
    let rig = Rig::start(|_| ()).await;
    let pause_ms = async |deaths| {
        let start = tokio::time::Instant::now();
        rig.handle.kill(Role::Allocator);
        rig.until(|handle| handle.restarts(Role::Allocator) == deaths).await;
        start.elapsed().as_millis()
    };
    assert!(pause_ms(1).await < 50);
    assert!(pause_ms(2).await >= 100);
    assert!(pause_ms(3).await >= 200);
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(pause_ms(4).await < 50);
}
