//! What users see of forecasts: system tables, `forecast()` and `past()`, announcements, `forecast show`.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::AsArray;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use foreshard::serve::Servers;
use foreshard::{Engine, EngineError};
use foreshard_actors::ports::{Clock, SystemClock};

use crate::rig::{self, batch, hashed, schema};
use crate::support::functions::of_int;
use crate::support::runtime;

/// 2026-12-01, midnight, in UTC.
const MIDNIGHT_MS: u64 = 1_796_083_200_000;

const PARTITIONS: u32 = 3;

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

/// An engine of ticks of a second, with the table `t` in three partitions and the function `f`.
struct Watched {
    engine: Engine,
    clock: Arc<ByHand>,
}

impl Watched {
    async fn start(folder: &Path, settings: &[(&str, &str)]) -> Self {
        let clock = Arc::new(ByHand(AtomicU64::new(MIDNIGHT_MS)));
        Self::at(folder, settings, clock).await
    }

    async fn at(folder: &Path, settings: &[(&str, &str)], clock: Arc<ByHand>) -> Self {
        let always = [("loop.lstm.enabled", "false"), ("serve.flight-address", "127.0.0.1:0")];
        let settings: Vec<_> = always.iter().chain(settings).copied().collect();
        let (card, udf, _) = of_int("f", |value| Ok(Some(value + 1)));
        let engine = Engine::builder()
            .config(rig::config(1, folder, &settings))
            .manual_ticks(true)
            .keep_state(true)
            .clock(clock.clone())
            .function(card, udf)
            .start()
            .await
            .unwrap();
        engine.create_memory_table("t", schema(), hashed(PARTITIONS), vec![]).await.unwrap();
        engine.append("t", vec![batch(0..300)]).await.unwrap();
        Self { engine, clock }
    }

    /// Ticks in each of which so many queries call `f` on every partition.
    async fn play(&self, queries: &[usize]) {
        for queries in queries {
            for _ in 0..*queries {
                self.engine.sql("SELECT f(x) FROM t").await.unwrap();
            }
            self.clock.0.fetch_add(1_000, Ordering::Relaxed);
            self.engine.tick().await;
        }
    }

    async fn numbers(&self, sql: &str) -> Vec<f64> {
        let rows = self.engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let columns = rows.iter().map(|batch| cast(batch.column(0), &DataType::Float64).unwrap());
        columns.flat_map(|it| it.as_primitive::<Float64Type>().values().to_vec()).collect()
    }

    async fn text(&self, sql: &str) -> String {
        let rows = self.engine.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string()
    }

    async fn error(&self, sql: &str) -> EngineError {
        self.engine.sql(sql).await.map(|rows| panic!("{sql}: {rows:?}")).unwrap_err()
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn a_function_is_forecast_as_the_sum_of_its_partitions_with_moments_and_calls_at_a_time() {
    runtime::run(async {
        let folder = folder();
        let watched = Watched::start(folder.path(), &[]).await;
        watched.play(&[2; 20]).await;
        let calls = 2.0 * f64::from(PARTITIONS);
        assert_eq!(watched.numbers("SELECT calls FROM past('f', 4)").await, [calls; 4]);
        let medians = watched.numbers("SELECT calls_q50 FROM forecast('f', 5) ORDER BY tick").await;
        assert_eq!(medians.len(), 5);
        assert!(medians.iter().all(|median| (median - calls).abs() < 0.1), "{medians:?}");
        assert_eq!(watched.numbers("SELECT tick FROM forecast('f', 2)").await, [21.0, 22.0]);
        let at = "SELECT CAST(at AS BIGINT) FROM forecast('f') ORDER BY tick LIMIT 2";
        let next = MIDNIGHT_MS as f64 + 20_000.0;
        assert_eq!(watched.numbers(at).await, [next, next + 1_000.0]);
        let disordered = "SELECT count(*) FROM forecast('f')
            WHERE NOT (calls_q10 <= calls_q50 AND calls_q50 <= calls_q90)";
        assert_eq!(watched.numbers(disordered).await, [0.0]);
        let of_series =
            "SELECT sum(concurrency) FROM system.forecasts WHERE function = 'f' AND tick = 21";
        let of_function = "SELECT concurrency FROM forecast('f', 1)";
        let (series, function) =
            (watched.numbers(of_series).await[0], watched.numbers(of_function).await[0]);
        assert!(function > 0.0 && (series / function - 1.0).abs() < 1e-9, "{series}, {function}");
        assert_eq!(watched.numbers("SELECT tick FROM forecast('f', 12, 't')").await.len(), 12);
        // Known, and never called.
        assert!(watched.numbers("SELECT tick FROM forecast('soundex', 5)").await.is_empty());
    });
}

#[test]
fn what_cannot_be_forecast_is_refused_with_the_argument_and_its_bound() {
    runtime::run(async {
        let folder = folder();
        let watched = Watched::start(folder.path(), &[]).await;
        watched.play(&[1; 2]).await;
        for (sql, code, message) in [
            ("forecast('sondex', 5)", "FS-SQL-4", "unknown function sondex; did you mean soundex?"),
            (
                "forecast('f', 0)",
                "FS-SQL-8",
                "forecast over 0 ticks; it must be 1 to 12 (loop.horizon-ticks)",
            ),
            ("forecast('f', 13)", "FS-SQL-8", "forecast over 13 ticks; it must be 1 to 12"),
            ("forecast('f', -1)", "FS-SQL-8", "forecast over -1 ticks"),
            (
                "forecast(5)",
                "FS-SQL-5",
                "the first argument of forecast must be the name of a function, not 5",
            ),
            (
                "forecast('f', 'ten')",
                "FS-SQL-5",
                "the second argument of forecast must be a number of ticks",
            ),
            ("forecast('f', 5, 'tt')", "FS-SQL-2", "unknown table tt; did you mean t?"),
            ("forecast('f', 5, 't', 1)", "FS-SQL-8", "4 arguments were given"),
            ("past('f', 5000)", "FS-SQL-8", "it must be 1 to 4096 (loop.history-ticks-max)"),
        ] {
            let error = watched.error(&format!("SELECT * FROM {sql}")).await;
            assert_eq!(error.code(), code, "{sql}: {error}");
            assert!(error.to_string().contains(message), "{sql}: {error}");
        }
    });
}

#[test]
fn tables_say_who_forecasts_what_that_was_worth_and_why_it_is_trusted() {
    runtime::run(async {
        let folder = folder();
        let watched = Watched::start(folder.path(), &[]).await;
        watched.play(&[1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3, 1, 2, 1, 3]).await;
        let trusted = "SELECT DISTINCT CAST(trusted AS INT) FROM system.forecasts";
        let is_trusted = watched.numbers(trusted).await == [1.0];
        let reason = watched.text("SELECT DISTINCT reason FROM system.forecasts").await;
        assert_eq!(reason.contains("| trusted: "), is_trusted, "{reason}");
        assert_eq!(reason.contains("| not trusted: "), !is_trusted, "{reason}");
        let weights = watched.numbers("SELECT sum(weight_mean) FROM system.members").await[0];
        assert!((weights - 1.0).abs() < 1e-6, "{weights}");
        let naive = "SELECT scaled_loss FROM system.members WHERE member = 'naive' AND awake";
        assert!((watched.numbers(naive).await[0] - 1.0).abs() < 1e-6);
        let members = watched.text("SELECT * FROM system.members").await;
        assert!(!members.contains("nan") && !members.contains("NaN"), "{members}");
        let wrong = "SELECT count(*) FROM system.scores WHERE function = 'f' AND
            (covered <> (actual BETWEEN expected_q10 - 1e-6 AND expected_q90 + 1e-6)
             OR coverage NOT BETWEEN 0 AND 1 OR skill > 1)";
        assert_eq!(watched.numbers(wrong).await, [0.0]);
        assert!(watched.numbers("SELECT count(*) FROM system.scores").await[0] > 0.0);
    });
}

/// From the tenth second from now on, for an hour.
const PEAK: &str = "CALL announce('f', 5, '2026-12-01T00:00:30Z', '2026-12-01T01:00:00Z')";

#[test]
fn an_announced_peak_is_expected_kept_across_a_restart_and_taken_back() {
    runtime::run(async {
        let folder = folder();
        let watched = Watched::start(folder.path(), &[]).await;
        watched.play(&[2; 20]).await;
        assert_eq!(watched.numbers(PEAK).await, [1.0]);
        watched.play(&[2; 5]).await;
        let medians = "SELECT calls_q50 FROM forecast('f') ORDER BY tick";
        let calls = 2.0 * f64::from(PARTITIONS);
        let near =
            |medians: &[f64], calls: f64| medians.iter().all(|it| (it / calls - 1.0).abs() < 0.05);
        let told = watched.numbers(medians).await;
        assert!(near(&told[..5], calls) && near(&told[5..], 5.0 * calls), "{told:?}");
        let announced = "SELECT DISTINCT tick FROM system.forecasts WHERE announced";
        assert_eq!(watched.numbers(announced).await.len(), 12);
        let clock = watched.clock.clone();
        watched.engine.shutdown().await.unwrap();

        let watched = Watched::at(folder.path(), &[], clock).await;
        let spans = watched.text("SELECT * FROM system.announced").await;
        assert!(
            spans.contains("| f        | 5.0    | 2026-12-01T00:00:30Z | 2026-12-01T01:00:00Z |"),
            "{spans}"
        );
        // The peak comes, and is no news.
        watched.play(&[2, 2, 2, 2, 2, 10, 10, 10, 10]).await;
        let within = watched.numbers(medians).await;
        assert!(near(&within, 5.0 * calls), "{within:?}");
        assert_eq!(watched.numbers("CALL unannounce('f')").await, [1.0]);
        assert_eq!(watched.numbers("SELECT count(*) FROM system.announced").await, [0.0]);
        assert_eq!(watched.numbers("CALL unannounce('f')").await, [0.0]);
        watched.engine.shutdown().await.unwrap();
    });
}

#[test]
fn an_announcement_that_cannot_be_is_refused_and_says_why() {
    runtime::run(async {
        let folder = folder();
        let watched = Watched::start(folder.path(), &[]).await;
        let (from, until) = ("'2026-12-01T09:00:00Z'", "'2026-12-01T10:00:00Z'");
        for (arguments, code, message) in [
            (format!("'soundx', 5, {from}, {until}"), "FS-SQL-4", "did you mean soundex?"),
            (
                format!("'f', 0, {from}, {until}"),
                "FS-ANNOUNCE-1",
                "the factor is 0; it must be 0.001 to 1000",
            ),
            (format!("'f', -2, {from}, {until}"), "FS-ANNOUNCE-1", "the factor is -2"),
            (format!("'f', 'many', {from}, {until}"), "FS-SQL-8", "must be a number, not \"many\""),
            (format!("'f', 5, {until}, {from}"), "FS-ANNOUNCE-2", "3600000 ms before it"),
            (
                "'f', 5, '2026-11-01', '2026-11-02'".to_owned(),
                "FS-ANNOUNCE-3",
                "must be in the future",
            ),
            (format!("'f', 5, 'soon', {until}"), "FS-SQL-8", "the third argument of announce"),
            ("'f', 5".to_owned(), "FS-SQL-8", "CALL announce('function', factor, 'from', 'until')"),
        ] {
            let error = watched.error(&format!("CALL announce({arguments})")).await;
            assert_eq!(error.code(), code, "{arguments}: {error}");
            assert!(error.to_string().contains(message), "{arguments}: {error}");
        }
        assert_eq!(watched.numbers("SELECT count(*) FROM system.announced").await, [0.0]);
    });
}

fn show(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foreshard"));
    command.args(["forecast", "show"]).args(arguments).current_dir(folder);
    command.env_remove("RUST_LOG").stdin(Stdio::null()).output().unwrap()
}

fn said(output: &[u8]) -> &str {
    std::str::from_utf8(output).unwrap()
}

/// Every file below `folder` with its bytes.
fn files(folder: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push((path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn forecast_show_reads_a_data_folder_and_changes_nothing_in_it() {
    runtime::run(async {
        let (folder, elsewhere) = (folder(), folder());
        let watched = Watched::start(folder.path(), &[]).await;
        watched.play(&[1, 2, 3, 4, 3, 2, 1, 2, 3, 4, 3, 2, 1, 2, 3, 4]).await;
        watched.engine.shutdown().await.unwrap();
        let before = files(folder.path());
        let data = format!("data-dir={}", folder.path().display());
        let set = ["--set", &data, "--set", "loop.lstm.enabled=false"];
        let one = show(elsewhere.path(), &[&["f", "--svg", "f.svg"][..], &set].concat());
        assert_eq!(one.status.code(), Some(0), "{}", said(&one.stderr));
        let text = said(&one.stdout);
        assert!(text.starts_with("f: ") && text.contains("┊ now"), "{text}");
        assert!(text.contains("trusted: "), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
        assert!(!text.contains('\u{1b}'), "no colours where nobody looks");
        let svg = std::fs::read_to_string(elsewhere.path().join("f.svg")).unwrap();
        assert!(svg.contains("calls per 1 s"), "{svg}");
        let all = show(elsewhere.path(), &set);
        assert!(said(&all.stdout).contains("\nf "), "{}", said(&all.stdout));
        for (arguments, message) in [
            (vec!["g"], "error[FS-SQL-4]: unknown function g"),
            (vec!["f", "--horizon", "13"], "forecast over 13 ticks; it must be 1 to 12"),
        ] {
            let refused = show(elsewhere.path(), &[&arguments[..], &set].concat());
            assert_eq!(refused.status.code(), Some(1));
            assert!(said(&refused.stderr).contains(message), "{}", said(&refused.stderr));
        }
        assert!(files(folder.path()) == before, "a look changes nothing");
        let nothing = show(elsewhere.path(), &[]);
        assert!(said(&nothing.stderr).contains("does not exist"), "{}", said(&nothing.stderr));
    });
}

#[test]
fn forecast_show_asks_a_server_that_runs() {
    runtime::run(async {
        let folder = folder();
        let watched = Watched::start(folder.path(), &[("serve.http-address", "off")]).await;
        watched.play(&[1, 2, 3, 4, 3, 2, 1, 2, 3, 4, 3, 2, 1, 2, 3, 4]).await;
        let servers = Servers::start(&watched.engine).await.unwrap();
        let address = servers.flight_address().unwrap().to_string();
        let ask = |arguments: &'static [&'static str]| {
            let (folder, address) = (folder.path().to_owned(), address.clone());
            let asked = move || show(&folder, &[arguments, &["--server", &address]].concat());
            async move { tokio::task::spawn_blocking(asked).await.unwrap() }
        };
        let one = ask(&["f", "--horizon", "6"]).await;
        let text = said(&one.stdout);
        assert!(text.starts_with("f: ") && text.contains("┊ now"), "{text}{}", said(&one.stderr));
        assert!(said(&ask(&[]).await.stdout).contains("\nf "));
        let unknown = ask(&["sondex"]).await;
        let text = said(&unknown.stderr);
        assert!(
            text.contains("error[FS-SQL-4]: unknown function sondex; did you mean soundex?"),
            "{text}"
        );
        servers.stop().await;
        let gone = ask(&["f"]).await;
        assert!(said(&gone.stderr).contains("error[FS-NET-2]"), "{}", said(&gone.stderr));
        watched.engine.shutdown().await.unwrap();
    });
}

#[test]
fn what_is_called_next_and_within_the_hour_is_a_table() {
    runtime::run(async {
        let folder = folder();
        let watched = Watched::start(folder.path(), &[]).await;
        assert!(watched.numbers("SELECT rank FROM system.next_calls").await.is_empty());
        watched.play(&[2; 5]).await;
        let next = "SELECT chance FROM system.next_calls
            WHERE next = 'call' AND rank = 1 AND function = 'f' AND table_name = 't'";
        let chance = watched.numbers(next).await;
        assert!(chance.len() == 1 && chance[0] > 0.9, "{chance:?}");
        let hour = "SELECT chance FROM system.next_calls WHERE next = 'hour' AND partition >= 0";
        assert!(watched.numbers(hour).await.is_empty(), "no hour is over");
        watched.clock.0.fetch_add(3_600_000, Ordering::Relaxed);
        watched.play(&[1]).await;
        let chances = watched.numbers(hour).await;
        assert_eq!(chances.len(), PARTITIONS as usize, "{chances:?}");
        assert!(chances.iter().all(|chance| (0.0..=1.0).contains(chance)), "{chances:?}");
        let trust = watched.text("SELECT trust FROM system.next_calls LIMIT 1").await;
        assert!(trust.contains("markov"), "{trust}");
    });
}
