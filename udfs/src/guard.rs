//! Turns panics of a function into errors and checks what it returned against what it declared.

use std::any::Any;
use std::cell::Cell;
use std::future::poll_fn;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::task::Poll;

use arrow::array::{Array, ArrayRef, AsArray, Datum};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::ColumnarValue;

use crate::error::{Call, FunctionError};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics that become errors off the standard error output, for the whole process.
///
/// A panic inside a registered function reaches the user as [`FunctionError::Panicked`]. Rust's
/// panic hook would also print it, with a hint at backtraces that helps nobody who writes SQL.
/// Programs call this once at start; a library must not, the hook is not its own. All other panics
/// go to the hook that was set before.
pub fn quiet_function_panics() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let earlier = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                earlier(info);
            }
        }));
    });
}

/// Runs `work`; a panic in it becomes its message.
///
/// The shared state a panic may leave half-changed is the function's own: [`crate::Registered`]
/// never stores outputs of a function that has panicked.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = GUARDED.replace(true);
    let answer = panic::catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    answer.map_err(|payload| message_of(payload.as_ref()))
}

/// Awaits `work`; a panic in it becomes its message.
pub(crate) async fn caught_later<F: Future>(work: F) -> Result<F::Output, String> {
    let mut work = Box::pin(work);
    poll_fn(|context| match caught(|| work.as_mut().poll(context)) {
        Ok(polled) => polled.map(Ok),
        Err(message) => Poll::Ready(Err(message)),
    })
    .await
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a value that is not text").to_owned()
}

/// What a call has promised, taken before its arguments are handed to the function.
pub(crate) struct Promise<'a> {
    pub(crate) arguments: &'a [FieldRef],
    pub(crate) rows: usize,
    pub(crate) returns: &'a FieldRef,
    /// A single-row array stands for a scalar: DataFusion's rule when all arguments are scalars.
    pub(crate) all_scalars: bool,
    /// Rows in which a strict function must answer NULL.
    pub(crate) strict: Option<NullBuffer>,
    pub(crate) bytes_max: usize,
}

impl Promise<'_> {
    /// Gives back the answer if it keeps the promise.
    pub(crate) fn check(&self, function: &str, answer: ColumnarValue) -> Result<ColumnarValue> {
        let call = || Box::new(Call::new(function, self.arguments, self.rows));
        let returned = answer.data_type();
        if returned != *self.returns.data_type() {
            let declared = Box::new(self.returns.data_type().clone());
            let returned = Box::new(returned);
            return Err(FunctionError::Type { call: call(), declared, returned }.into());
        }
        match answer {
            ColumnarValue::Scalar(scalar) => {
                if scalar.is_null() && !self.returns.is_nullable() {
                    return Err(undeclared_null(call()).into());
                }
                let bytes = scalar.size();
                self.check_bytes(bytes, call)?;
                Ok(ColumnarValue::Scalar(scalar))
            }
            ColumnarValue::Array(array) if array.len() == self.rows => {
                self.check_nulls(&array, call)?;
                self.check_bytes(bytes_held(&array), call)?;
                Ok(ColumnarValue::Array(array))
            }
            ColumnarValue::Array(array) if array.len() == 1 && self.all_scalars => {
                Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?))
            }
            ColumnarValue::Array(array) => {
                Err(FunctionError::Length { call: call(), returned: array.len() }.into())
            }
        }
    }

    fn check_nulls(&self, array: &ArrayRef, call: impl Fn() -> Box<Call>) -> Result<()> {
        if !self.returns.is_nullable() && array.logical_null_count() > 0 {
            return Err(undeclared_null(call()).into());
        }
        let Some(must) = &self.strict else { return Ok(()) };
        let kept = match array.logical_nulls() {
            Some(nulls) => nulls.contains(must),
            None => must.null_count() == 0,
        };
        if kept {
            return Ok(());
        }
        let rule = "it declares to answer NULL to a NULL argument, and did not";
        Err(FunctionError::Nulls { call: call(), rule }.into())
    }

    fn check_bytes(&self, bytes: usize, call: impl Fn() -> Box<Call>) -> Result<()> {
        if bytes <= self.bytes_max {
            return Ok(());
        }
        Err(FunctionError::Bytes { call: call(), bytes, bytes_max: self.bytes_max }.into())
    }
}

fn undeclared_null(call: Box<Call>) -> FunctionError {
    FunctionError::Nulls { call, rule: "it declares to answer no NULL, and did" }
}

/// Rows in which any argument is NULL: where a strict function must answer NULL.
pub(crate) fn null_rows(arguments: &[ColumnarValue], rows: usize) -> Option<NullBuffer> {
    let nulls = arguments.iter().map(|argument| match argument {
        ColumnarValue::Array(array) => array.logical_nulls(),
        ColumnarValue::Scalar(scalar) => scalar.is_null().then(|| NullBuffer::new_null(rows)),
    });
    nulls.fold(None, |all, nulls| NullBuffer::union(all.as_ref(), nulls.as_ref()))
}

/// Bytes of an array's own rows; buffers that it shares with a longer array are not counted.
fn bytes_held(array: &ArrayRef) -> usize {
    // A view's layout knows its 16 bytes only; the texts lie in buffers that many arrays may share.
    let texts = match array.data_type() {
        DataType::Utf8View => array.as_string_view().lengths().map(|len| len as usize).sum(),
        DataType::BinaryView => array.as_binary_view().lengths().map(|len| len as usize).sum(),
        _ => 0,
    };
    let rest = array.to_data().get_slice_memory_size();
    texts + rest.unwrap_or_else(|_| array.get().0.get_array_memory_size())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray, StringViewArray};
    use std::sync::Arc;

    #[test]
    fn a_panic_becomes_its_message_whatever_it_carries() {
        assert_eq!(caught(|| 7), Ok(7));
        assert_eq!(caught(|| panic!("text")), Err::<(), _>("text".to_owned()));
        assert_eq!(caught(|| panic!("row {}", 3)), Err::<(), _>("row 3".to_owned()));
        assert_eq!(
            caught(|| panic::panic_any(3_u8)),
            Err::<(), _>("a value that is not text".to_owned())
        );
    }

    #[test]
    fn a_guarded_panic_leaves_the_thread_unguarded() {
        let nested = caught(|| {
            let inner = caught(|| panic!("inner"));
            (inner, GUARDED.get())
        });
        assert_eq!(nested, Ok((Err::<(), _>("inner".to_owned()), true)));
        assert!(!GUARDED.get());
    }

    #[test]
    fn the_bytes_of_a_slice_are_those_of_its_own_rows() {
        let long: ArrayRef = Arc::new(StringArray::from(vec!["a".repeat(1_000); 100]));
        assert!(bytes_held(&long) > 100_000);
        assert!(bytes_held(&long.slice(3, 1)) < 1_100);
        let views: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a".repeat(1_000)); 100]));
        assert!(bytes_held(&views) > 100_000);
        assert!(bytes_held(&views.slice(3, 1)) < 1_100);
    }

    #[test]
    fn null_rows_are_those_of_any_argument() {
        let left = ColumnarValue::Array(Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])));
        let right = ColumnarValue::Scalar(ScalarValue::Int64(None));
        assert_eq!(null_rows(std::slice::from_ref(&left), 3).map(|n| n.null_count()), Some(1));
        assert_eq!(null_rows(&[left, right], 3).map(|n| n.null_count()), Some(3));
        assert!(null_rows(&[ColumnarValue::Scalar(ScalarValue::from(1_i64))], 3).is_none());
    }
}
