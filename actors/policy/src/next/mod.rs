//! Which calls come next: which function and partition follow the ones just seen, and which will be
//! called most in the next hour.
//!
//! A key is whatever calls are told apart by, mostly a [`SeriesKey`](crate::ids::SeriesKey) or its number.
//! The predictors hold a bounded number of keys, learn from every call, and are the same after the same
//! calls. A [`Blend`] mixes several predictors of the next key.

pub mod blend;
pub mod hot;
pub mod sequence;

pub use blend::Blend;
pub use hot::HotKeys;
pub use sequence::Sequence;
