//! The most memory that this process held over some time.

use std::fs;

/// A stretch of time.
#[derive(Debug)]
pub(super) struct Peak {
    /// Whether the kernel forgot what was before.
    is_fresh: bool,
}

impl Peak {
    /// Begins one: the kernel is told to forget what the process held at most.
    pub(super) fn start() -> Self {
        Self { is_fresh: fs::write("/proc/self/clear_refs", "5").is_ok() }
    }

    /// Mebibytes held at most since then; NaN if nobody counts them.
    pub(super) fn mib(&self) -> f64 {
        let kib = || {
            let status = fs::read_to_string("/proc/self/status").ok()?;
            let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        };
        if self.is_fresh { kib().map_or(f64::NAN, |kib| kib / 1_024.0) } else { f64::NAN }
    }
}
