//! Which calls come next: which function and partition follow the ones just seen, and which will be
//! called most in the next hour.
//!
//! A key is whatever calls are told apart by, mostly a [`SeriesKey`](crate::ids::SeriesKey) or its number.
//! Both predictors hold a bounded number of keys, learn from every call, and are the same after the same
//! calls.

pub mod hot;
pub mod sequence;

pub use hot::HotKeys;
pub use sequence::Sequence;
