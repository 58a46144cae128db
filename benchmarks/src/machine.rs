//! What a benchmark ran on: figures mean little without it.

use std::fmt;
use std::process::Command;

use serde::Serialize;

/// A machine as far as it can be known without asking the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// Cores this process may use.
    pub cores: u64,
    /// Name of the processor, if the system says it.
    pub processor: Option<String>,
    /// Main memory in bytes, if the system says it.
    pub memory_bytes: Option<u64>,
    /// Operating system, its version if known, and the instruction set.
    pub os: String,
    /// Version of the compiler on the path, if there is one.
    pub rustc: Option<String>,
    /// `release` or `debug`: timings of a debug build say nothing.
    pub build: &'static str,
}

impl Machine {
    /// Looks at this machine.
    #[must_use]
    pub fn this() -> Self {
        let field = |file: &str, key: &str| {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|line| line.starts_with(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let kib = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let os = [std::env::consts::OS, kernel.trim(), std::env::consts::ARCH];
        Self {
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64),
            processor: field("/proc/cpuinfo", "model name"),
            memory_bytes: kib.map(|kib| kib * 1024),
            os: os.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "),
            rustc: rustc(),
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
        }
    }

    /// A machine of which nothing is known.
    #[cfg(test)]
    pub(crate) fn unknown() -> Self {
        Self {
            cores: 1,
            processor: None,
            memory_bytes: None,
            os: String::new(),
            rustc: None,
            build: "debug",
        }
    }
}

fn rustc() -> Option<String> {
    let output = Command::new("rustc").arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| version.trim().to_owned())
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cores", self.cores)?;
        if let Some(processor) = &self.processor {
            write!(f, " ({processor})")?;
        }
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {:.1} GiB", bytes as f64 / f64::from(1 << 30))?;
        }
        write!(f, ", {}, {} build", self.os, self.build)
    }
}
