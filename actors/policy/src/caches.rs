//! Ways to choose what a store of limited size keeps, in one shape, to compare them on the same calls.
//!
//! | module | what gives way |
//! |---|---|
//! | [`lru`] | what was called longest ago |
//! | [`s3_fifo`] | what came and was not called again; of the rest, what came first |
//! | [`gdsf`] | what spares least per byte, old calls counting less with each eviction |
//! | [`worth`] | what is expected to spare least per byte ([`crate::admit`]: what the nodes do) |
//! | [`bound`] | nothing: the most that any of them could spare |

pub mod bound;
pub mod gdsf;
pub mod lru;
pub mod s3_fifo;
pub mod worth;

/// A call of something that may be stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Call {
    /// What is called.
    pub key: u64,
    /// Bytes that storing it takes; the same at each call.
    pub bytes: u64,
    /// Nanoseconds that the call takes if it is not stored, less those of looking it up.
    pub ns: f64,
}

/// A store that keeps some of what is called.
pub trait Cache {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Takes a call; true if it is answered from what is stored, else it may be stored now.
    fn call(&mut self, call: &Call) -> bool;

    /// Bytes that are stored; never more than the budget.
    fn bytes_held(&self) -> u64;
}

/// One store of each kind with a budget of `bytes_max`.
#[must_use]
pub fn all(bytes_max: u64) -> Vec<Box<dyn Cache>> {
    vec![
        Box::new(lru::Lru::new(bytes_max)),
        Box::new(s3_fifo::S3Fifo::new(bytes_max)),
        Box::new(gdsf::Gdsf::new(bytes_max)),
        Box::new(worth::Worth::new(bytes_max)),
    ]
}

/// A float in the order of `total_cmp`, for ordered collections.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rank(f64);

impl Eq for Rank {}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

#[cfg(test)]
mod tests;
