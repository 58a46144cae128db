//! One call of an asynchronous function: cut into batches, each within its limits, and put together.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, new_empty_array};
use arrow::compute::concat;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::async_udf::AsyncScalarUDF;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Volatility};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use super::options::AsyncOptions;
use crate::error::{Call, FunctionError};
use crate::guard;

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// One call.
pub(super) struct Batches {
    pub(super) udf: Arc<AsyncScalarUDF>,
    pub(super) options: AsyncOptions,
    /// One for each batch that may be on its way, whoever asks.
    pub(super) slots: Arc<Semaphore>,
    pub(super) args: ScalarFunctionArgs,
}

/// Why an attempt gave no answer.
enum Failure {
    /// Another attempt may succeed.
    Failed(String),
    /// The function is broken.
    Panicked(String),
}

impl Batches {
    /// The answer to all rows. Dropped halfway, it asks no more, and stops what is on its way.
    pub(super) async fn answer(mut self) -> Result<ColumnarValue> {
        let returns = self.args.return_field.data_type();
        if self.args.number_rows == 0 {
            return Ok(ColumnarValue::Array(new_empty_array(returns)));
        }
        let is_scalar = |value: &ColumnarValue| matches!(value, ColumnarValue::Scalar(_));
        let is_constant = !self.args.args.is_empty()
            && self.args.args.iter().all(is_scalar)
            && self.udf.signature().volatility != Volatility::Volatile;
        if is_constant {
            self.args.number_rows = 1;
        }
        let (rows, batch_rows) = (self.args.number_rows, self.batch_rows());
        let batches = (0..rows).step_by(batch_rows);
        let batches = batches.map(move |first| first..rows.min(first.saturating_add(batch_rows)));
        let (at_a_time, this) = (self.options.concurrency, Arc::new(self));
        let answers = batches.map(|batch| Arc::clone(&this).batch(batch));
        let answers = stream::iter(answers).buffer_unordered(at_a_time);
        let mut answers: Vec<(usize, ArrayRef)> = answers.try_collect().await?;
        answers.sort_unstable_by_key(|(first, _)| *first);
        let answers: Vec<&dyn Array> = answers.iter().map(|(_, answer)| answer.as_ref()).collect();
        let answer = concat(&answers)?;
        Ok(match is_constant {
            true => ColumnarValue::Scalar(ScalarValue::try_from_array(&answer, 0)?),
            false => ColumnarValue::Array(answer),
        })
    }

    fn batch_rows(&self) -> usize {
        let rows = self.options.batch_rows.or_else(|| self.udf.ideal_batch_size());
        rows.unwrap_or(self.args.number_rows).max(1)
    }

    /// The answer to one batch, with its first row.
    async fn batch(self: Arc<Self>, rows: Range<usize>) -> Result<(usize, ArrayRef)> {
        let retries = match self.udf.signature().volatility {
            Volatility::Immutable => self.options.retries,
            Volatility::Stable | Volatility::Volatile => 0,
        };
        let call = || {
            let call = Call::new(self.udf.name(), &self.args.arg_fields, self.args.number_rows);
            Box::new(call.in_rows(rows.clone()))
        };
        let mut attempts = 1;
        loop {
            match self.attempt(&rows).await {
                Ok(answer) => return Ok((rows.start, self.checked(&rows, answer, call)?)),
                Err(Failure::Panicked(message)) => {
                    return Err(FunctionError::Panicked { call: call(), message }.into());
                }
                Err(Failure::Failed(reason)) if attempts > retries => {
                    return Err(FunctionError::unanswered(call(), attempts, &reason).into());
                }
                Err(Failure::Failed(reason)) => {
                    let function = self.udf.name();
                    tracing::debug!(function, ?rows, attempts, reason, "a batch is tried again");
                }
            }
            tokio::time::sleep(pause(self.options.backoff, attempts)).await;
            attempts += 1;
        }
    }

    async fn attempt(&self, rows: &Range<usize>) -> Result<ColumnarValue, Failure> {
        let slot = self.slots.acquire().await;
        let asked = guard::caught_later(self.udf.invoke_async_with_args(self.part(rows)));
        let answer = tokio::time::timeout(self.options.timeout, asked).await;
        drop(slot);
        match answer {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(error))) => Err(Failure::Failed(error.strip_backtrace())),
            Ok(Err(message)) => Err(Failure::Panicked(message)),
            Err(_elapsed) => {
                let timeout = self.options.timeout;
                Err(Failure::Failed(format!("it gave no answer within {timeout:?}")))
            }
        }
    }

    /// The arguments of some rows.
    fn part(&self, rows: &Range<usize>) -> ScalarFunctionArgs {
        let mut part = self.args.clone();
        part.number_rows = rows.len();
        for value in &mut part.args {
            if let ColumnarValue::Array(array) = value {
                *array = array.slice(rows.start, rows.len());
            }
        }
        part
    }

    /// The answer as an array, if it fits its batch: put together with others a wrong one would look
    /// right.
    fn checked(
        &self,
        rows: &Range<usize>,
        answer: ColumnarValue,
        call: impl Fn() -> Box<Call>,
    ) -> Result<ArrayRef> {
        let (returned, declared) = (answer.data_type(), self.args.return_field.data_type());
        if returned != *declared {
            let (declared, returned) = (Box::new(declared.clone()), Box::new(returned));
            return Err(FunctionError::Type { call: call(), declared, returned }.into());
        }
        let answer = match answer {
            ColumnarValue::Array(array) => array,
            ColumnarValue::Scalar(scalar) => scalar.to_array_of_size(rows.len())?,
        };
        if answer.len() != rows.len() {
            return Err(FunctionError::Length { call: call(), returned: answer.len() }.into());
        }
        Ok(answer)
    }
}

/// The pause after so many attempts: twice as long each time, and up to a half less by chance.
fn pause(backoff: Duration, attempts: u32) -> Duration {
    let longest = backoff.saturating_mul(1 << (attempts - 1).min(20)).min(PAUSE_MAX);
    let chance = RandomState::new().build_hasher().finish() % 1_000;
    longest - longest.mul_f64(chance as f64 / 2_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_a_minute_and_loses_at_most_a_half() {
        for (attempts, longest) in [(1, 100), (2, 200), (5, 1_600), (11, 60_000), (200, 60_000)] {
            let longest = Duration::from_millis(longest);
            let pauses: Vec<Duration> =
                (0..50).map(|_| pause(Duration::from_millis(100), attempts)).collect();
            assert!(pauses.iter().all(|one| (longest / 2..=longest).contains(one)), "{pauses:?}");
            assert!(pauses.iter().any(|one| *one != pauses[0]), "by chance");
        }
    }
}
