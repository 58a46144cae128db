//! What people announce reaches the forecast, is acted on, and outlives whoever dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foreshard_actors::announcements::AnnouncementError;
use foreshard_actors::board::Role;
use foreshard_actors::kept;
use foreshard_actors::ports::{Clock, SystemClock};
use foreshard_policy::forecast::announced::Announcement;
use foreshard_policy::ids::Tick;

use super::rig::{Rig, calls, config};

/// A clock that is set by hand.
#[derive(Debug)]
struct ByHand(AtomicU64);

impl Clock for ByHand {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn monotonic_ns(&self) -> u64 {
        SystemClock.monotonic_ns()
    }
}

/// Five times as many calls, from one second to another.
fn peak(from_s: u64, until_s: u64) -> Announcement {
    let (from_ms, until_ms) = (from_s * 1_000, until_s * 1_000);
    Announcement { function: "f".into(), factor: 5.0, from_ms, until_ms }
}

/// Ticks of one second with so many calls each.
async fn play(rig: &Rig, clock: &ByHand, loads: &[usize]) {
    for load in loads {
        rig.handle.calls().offer(calls(0, *load));
        clock.0.fetch_add(1_000, Ordering::Relaxed);
        rig.handle.tick().await.unwrap();
    }
}

fn medians(rig: &Rig) -> Vec<f64> {
    rig.handle.forecast().series[0].calls.iter().map(|calls| calls.q50.round()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_announced_peak_is_expected_from_the_next_tick_on_and_outlives_the_loop() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ByHand(AtomicU64::new(0)));
    let start = async || {
        Rig::start(|args| {
            *args = args.clone().in_folder(folder.path());
            args.clock = clock.clone();
        })
        .await
    };
    let rig = start().await;
    play(&rig, &clock, &[4; 20]).await;
    rig.handle.announce(peak(23, 60)).await.unwrap();
    assert_eq!(medians(&rig)[..4], [4.0; 4], "what was said before stands");
    play(&rig, &clock, &[4]).await;
    assert_eq!(medians(&rig)[..4], [4.0, 4.0, 20.0, 20.0]);
    rig.handle.kill(Role::Predictor);
    rig.until(|handle| handle.restarts(Role::Predictor) == 1).await;
    play(&rig, &clock, &[4]).await;
    assert_eq!(medians(&rig)[..4], [4.0, 20.0, 20.0, 20.0]);
    rig.handle.shutdown().await.unwrap();

    // Who looks at what it left finds the same, and changes nothing.
    let left = kept::look(&config(), folder.path()).unwrap().unwrap();
    assert_eq!((left.forecast.at, left.moments.closed_ms), (Tick(22), 22_000));
    let seen: Vec<f64> = left.forecast.series[0].calls.iter().map(|it| it.q50.round()).collect();
    assert_eq!(seen, medians(&rig));

    let rig = start().await;
    assert_eq!(rig.handle.announced().iter().collect::<Vec<_>>(), [&peak(23, 60)]);
    play(&rig, &clock, &[4, 20, 20]).await;
    assert_eq!(medians(&rig)[..4], [20.0; 4], "the peak is no news");
    assert_eq!(rig.handle.take_back("f").await, Ok(1));
    rig.handle.shutdown().await.unwrap();
    assert_eq!(start().await.handle.announced().iter().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_announcement_is_an_error_and_old_ones_make_room() {
    let clock = Arc::new(ByHand(AtomicU64::new(0)));
    let rig = Rig::start(|args| args.clock = clock.clone()).await;
    rig.handle.announce(peak(1, 2)).await.unwrap();
    clock.0.store(10_000, Ordering::Relaxed);
    let error = rig.handle.announce(peak(1, 2)).await.unwrap_err();
    assert!(matches!(error, AnnouncementError::Refused(_)), "{error}");
    assert_eq!(rig.handle.announced().iter().count(), 1);
    // Nothing that is remembered is so old.
    clock.0.store(10_000_000, Ordering::Relaxed);
    rig.handle.announce(peak(20_000, 20_001)).await.unwrap();
    assert_eq!(rig.handle.announced().iter().collect::<Vec<_>>(), [&peak(20_000, 20_001)]);
}

#[tokio::test(start_paused = true)]
async fn where_no_loop_was_there_is_nothing_to_look_at_and_a_damaged_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(kept::look(&config(), folder.path()).unwrap().is_none());
    std::fs::write(folder.path().join("history"), b"not a history at all").unwrap();
    let error = kept::look(&config(), folder.path()).unwrap_err().to_string();
    assert!(error.starts_with("history cannot be read: "), "{error}");
}

#[tokio::test(start_paused = true)]
async fn every_member_says_how_it_stands() {
    let rig = Rig::start(|_| ()).await;
    let clock = ByHand(AtomicU64::new(0));
    play(&rig, &clock, &[4, 8, 4, 8, 4, 8, 4, 8]).await;
    let fits = rig.handle.fits();
    let of_forecast = &rig.handle.forecast().series[0].weights;
    let names: Vec<&str> = fits.iter().map(|fit| fit.standing.member).collect();
    assert_eq!(names, of_forecast.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
    let naive = fits.iter().find(|fit| fit.standing.member == "naive").unwrap();
    assert!((naive.standing.scaled_loss.unwrap() - 1.0).abs() < 1e-9, "{naive:?}");
    assert!(fits.iter().all(|fit| fit.error.is_none()));
    let broken = Rig::start(|args| args.members = super::members::failing_member(false)).await;
    play(&broken, &clock, &[4]).await;
    let fits = broken.handle.fits();
    let error = fits.iter().find_map(|fit| fit.error.as_deref());
    assert_eq!(error, Some("member failing failed: as always"));
}
