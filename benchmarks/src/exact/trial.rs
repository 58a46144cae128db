//! Puts many statements to plain DataFusion and to engines of all shapes, and reports.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::exact::controller::Controller;
use crate::exact::data::Sample;
use crate::exact::functions;
use crate::exact::oracle::{Answer, Plain, Verdict};
use crate::exact::setups::{SHAPES, Setup, ask, plan, start};

/// Statements that run at the same time.
const WORKERS: usize = 3;

/// Mismatches that are written out; the rest is counted.
const MISMATCHES_SHOWN: usize = 12;

/// One statement to try.
#[derive(Clone, Debug)]
pub struct Statement {
    /// How to find it again: a seed or a number.
    pub label: String,
    /// The statement.
    pub sql: String,
    /// Its rows have one possible order.
    pub ordered: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Statements that plain DataFusion has an answer to.
    pub valid_on_plain: usize,
    /// Answers by what was found of them.
    pub verdicts: BTreeMap<&'static str, usize>,
    /// Answers by set-up.
    pub queries_by_setup: BTreeMap<String, usize>,
    /// The first mismatches.
    pub mismatches: Vec<String>,
    /// All mismatches.
    pub mismatch_count: usize,
    /// Steps of the random controllers.
    pub steps: BTreeMap<&'static str, u32>,
}

struct Trial {
    plain: Plain,
    setups: Vec<Setup>,
    controllers: Vec<Controller>,
    statements: Vec<Statement>,
    next: AtomicUsize,
    report: Mutex<Report>,
}

/// Puts `statements` to plain DataFusion and to engines over the same `tables`, which a random
/// controller turns upside down meanwhile.
///
/// # Errors
/// If an engine cannot be started, filled or stopped.
pub async fn run(tables: &[Sample], statements: Vec<Statement>, seed: u64) -> Result<Report> {
    let (plain_functions, counted_by_plain) = functions::all()?;
    let mut setups = Vec::new();
    for shape in SHAPES {
        setups.push(start(shape, tables).await?);
    }
    let controllers = setups
        .iter()
        .zip(seed..)
        .map(|(setup, seed)| Controller::start(setup.started.engine.clone(), seed))
        .collect();
    let trial = Arc::new(Trial {
        plain: Plain::new(tables, &plain_functions)?,
        setups,
        controllers,
        statements,
        next: AtomicUsize::new(0),
        report: Mutex::default(),
    });
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let trial = Arc::clone(&trial);
        workers.spawn(async move { trial.work().await });
    }
    while let Some(ended) = workers.join_next().await {
        ended.context("a worker broke off")?;
    }
    let trial = Arc::into_inner(trial).context("a worker has not ended")?;
    let mut report = trial.report.into_inner().unwrap_or_else(PoisonError::into_inner);
    for controller in trial.controllers {
        for (step, count) in controller.stop().await? {
            *report.steps.entry(step).or_default() += count;
        }
    }
    println!(
        "rows that `counted` was evaluated on: plain {}",
        counted_by_plain.load(Ordering::Relaxed)
    );
    for setup in trial.setups {
        println!("  {}: {}", setup.name, setup.started.counted.load(Ordering::Relaxed));
        setup.started.engine.shutdown().await?;
    }
    println!("{report}");
    Ok(report)
}

impl Trial {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(statement) = self.statements.get(index) else { return };
            let plain = self.plain.answer(&statement.sql).await;
            if plain.is_ok() {
                self.report().valid_on_plain += 1;
            }
            for (controller, setup) in self.controllers.iter().zip(&self.setups) {
                controller.nudge();
                self.put(statement, setup, &plain).await;
            }
        }
    }

    async fn put(&self, statement: &Statement, setup: &Setup, plain: &Answer) {
        let ours = ask(&setup.started.engine, &statement.sql).await;
        let verdict = self.plain.judge(&statement.sql, statement.ordered, plain, &ours).await;
        let mismatch = match &verdict {
            Ok(_) => None,
            Err(difference) => Some(format!(
                "{} on {}\n{}\n{difference}\n{}",
                statement.label,
                setup.name,
                statement.sql,
                plan(&setup.started.engine.session(), &statement.sql).await
            )),
        };
        let mut report = self.report();
        *report.queries_by_setup.entry(setup.name.clone()).or_default() += 1;
        let name = match verdict {
            Ok(Verdict::Same) => "same answer",
            Ok(Verdict::BothFail) => "both fail",
            Ok(Verdict::OnlyPlainFails) => "only plain fails",
            Ok(Verdict::PlainVaries) => "plain varies with its layout",
            Err(_) => "mismatch",
        };
        *report.verdicts.entry(name).or_default() += 1;
        if let Some(mismatch) = mismatch {
            report.mismatch_count += 1;
            if report.mismatches.len() < MISMATCHES_SHOWN {
                report.mismatches.push(mismatch);
            }
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "valid on plain: {}", self.valid_on_plain)?;
        writeln!(f, "verdicts: {:?}", self.verdicts)?;
        writeln!(f, "queries by set-up: {:?}", self.queries_by_setup)?;
        write!(f, "steps of the controllers: {:?}", self.steps)
    }
}

impl Report {
    /// Fails with the mismatches, if there are any.
    ///
    /// # Panics
    /// If there are any.
    pub fn expect_no_mismatch(&self) {
        assert!(
            self.mismatches.is_empty(),
            "{} answers are not plain DataFusion's; the first ones:\n\n{}",
            self.mismatch_count,
            self.mismatches.join("\n\n")
        );
    }
}
