//! Decides what becomes of the files of the store as they get older: seconds become minutes, minutes
//! hours, and hours go. Pure: it sees a list of files and the time, and says the next step.

use super::timeline::Resolution;
use crate::config::MonitorConfig;

/// Files of one period that are left side by side; more become one.
pub const FILES_MAX: usize = 8;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// A file that holds rows of one resolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its number; no two files ever have the same.
    pub id: u64,
    /// How long its buckets are.
    pub resolution: Resolution,
    /// Beginning of its first bucket, in milliseconds since the Unix epoch.
    pub first_ms: u64,
    /// Beginning of its last bucket.
    pub last_ms: u64,
    /// Its size.
    pub bytes: u64,
}

/// How much is kept for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    seconds_ms: u64,
    minutes_ms: u64,
    hours_ms: u64,
    bytes_max: u64,
}

impl From<&MonitorConfig> for Keep {
    fn from(config: &MonitorConfig) -> Self {
        Self {
            seconds_ms: config.seconds_kept().saturating_mul(HOUR_MS),
            minutes_ms: config.minutes_kept().saturating_mul(DAY_MS),
            hours_ms: config.hours_kept().saturating_mul(DAY_MS),
            bytes_max: config.disk_bytes(),
        }
    }
}

impl Keep {
    /// The same, with less room on the disk, for something else takes so much of it.
    #[must_use]
    pub fn beside(self, bytes: u64) -> Self {
        Self { bytes_max: self.bytes_max.saturating_sub(bytes), ..self }
    }

    fn of(&self, resolution: Resolution) -> u64 {
        match resolution {
            Resolution::Second => self.seconds_ms,
            Resolution::Minute => self.minutes_ms,
            Resolution::Hour => self.hours_ms,
        }
    }
}

/// One change of the files. Those it names are replaced by what it makes, at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileStep {
    /// Add the rows of these files up to one file of buckets of this length.
    AddUp {
        /// Numbers of the files, ascending.
        files: Vec<u64>,
        /// Length of the buckets of the new file; that of the old ones, if they only become one.
        to: Resolution,
    },
    /// Throw a file away.
    Drop {
        /// Its number.
        file: u64,
    },
}

/// The next step, if there is one. Asking again after carrying it out comes to an end.
///
/// * `files`: every file, in any order.
/// * `calm`: whether the clock may be believed. If not, nothing happens because of its age; only the
///   bound on the disk is kept.
#[must_use]
pub fn next_step(files: &[StoredFile], now_ms: u64, calm: bool, keep: &Keep) -> Option<FileStep> {
    let by_age = || if calm { aged(files, now_ms, keep) } else { None };
    crowded(files).or_else(by_age).or_else(|| under_pressure(files, keep.bytes_max))
}

/// A period whose files become coarser together, by number: an hour of seconds, a day of minutes.
fn period(file: &StoredFile) -> (Resolution, u64) {
    let length_ms = match file.resolution {
        Resolution::Second => HOUR_MS,
        Resolution::Minute => DAY_MS,
        Resolution::Hour => 32 * DAY_MS,
    };
    (file.resolution, file.last_ms - file.last_ms % length_ms)
}

fn together(files: &[StoredFile], with: &StoredFile) -> Vec<u64> {
    let same = files.iter().filter(|file| period(file) == period(with));
    let mut ids: Vec<u64> = same.map(|file| file.id).collect();
    ids.sort_unstable();
    ids
}

fn crowded(files: &[StoredFile]) -> Option<FileStep> {
    files.iter().find_map(|file| {
        let files = together(files, file);
        (files.len() > FILES_MAX).then_some(FileStep::AddUp { files, to: file.resolution })
    })
}

fn aged(files: &[StoredFile], now_ms: u64, keep: &Keep) -> Option<FileStep> {
    let is_over = |file: &&StoredFile| {
        let (resolution, start_ms) = period(file);
        // Together with what else its period holds; hours go one by one.
        let end_ms = match resolution {
            Resolution::Second => start_ms.saturating_add(HOUR_MS),
            Resolution::Minute => start_ms.saturating_add(DAY_MS),
            Resolution::Hour => file.last_ms.saturating_add(HOUR_MS),
        };
        end_ms.saturating_add(keep.of(resolution)) <= now_ms
    };
    let oldest = files.iter().filter(is_over).min_by_key(|file| (file.last_ms, file.id))?;
    Some(coarser(files, oldest))
}

fn under_pressure(files: &[StoredFile], bytes_max: u64) -> Option<FileStep> {
    let bytes: u64 = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
    if bytes <= bytes_max {
        return None;
    }
    // What is finest first: it takes most, and something of it is left.
    let next = files.iter().min_by_key(|file| (file.resolution, file.last_ms, file.id))?;
    Some(coarser(files, next))
}

fn coarser(files: &[StoredFile], file: &StoredFile) -> FileStep {
    match file.resolution.coarser() {
        Some(to) => FileStep::AddUp { files: together(files, file), to },
        None => FileStep::Drop { file: file.id },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000_000 - 1_700_000_000_000 % DAY_MS;

    fn file(id: u64, resolution: Resolution, last_ms: u64, bytes: u64) -> StoredFile {
        StoredFile { id, resolution, first_ms: last_ms.saturating_sub(60_000), last_ms, bytes }
    }

    fn keep() -> Keep {
        Keep::from(&MonitorConfig::default())
    }

    /// Carries a step out as the store does, except that a file's new size is a guess.
    fn carry_out(files: &mut Vec<StoredFile>, step: &FileStep) {
        match step {
            FileStep::Drop { file } => files.retain(|held| held.id != *file),
            FileStep::AddUp { files: ids, to } => {
                let (old, mut left): (Vec<_>, Vec<_>) =
                    files.drain(..).partition(|file| ids.contains(&file.id));
                let ids = left.iter().chain(&old).map(|file| file.id);
                left.push(StoredFile {
                    id: ids.max().unwrap() + 1,
                    resolution: *to,
                    first_ms: to.start(old.iter().map(|file| file.first_ms).min().unwrap()),
                    last_ms: to.start(old.iter().map(|file| file.last_ms).max().unwrap()),
                    bytes: old.iter().map(|file| file.bytes).sum::<u64>() / 2 + 1,
                });
                *files = left;
            }
        }
    }

    #[test]
    fn an_hour_of_seconds_becomes_minutes_when_all_of_it_is_old() {
        let last = NOW - 48 * HOUR_MS - 1_000;
        let files =
            [file(1, Resolution::Second, last - 900_000, 9), file(2, Resolution::Second, last, 9)];
        let step = FileStep::AddUp { files: vec![1, 2], to: Resolution::Minute };
        assert_eq!(next_step(&files, NOW, true, &keep()), Some(step));
        assert_eq!(next_step(&files, NOW - 1, true, &keep()), None);
        assert_eq!(next_step(&files, NOW, false, &keep()), None);
    }

    #[test]
    fn minutes_become_hours_by_the_day_and_hours_go() {
        let minutes = [file(1, Resolution::Minute, NOW - 30 * DAY_MS - 60_000, 9)];
        let step = FileStep::AddUp { files: vec![1], to: Resolution::Hour };
        assert_eq!(next_step(&minutes, NOW, true, &keep()), Some(step));
        let hours = [file(1, Resolution::Hour, NOW - 730 * DAY_MS - HOUR_MS, 9)];
        assert_eq!(next_step(&hours, NOW, true, &keep()), Some(FileStep::Drop { file: 1 }));
        assert_eq!(next_step(&hours, NOW - 1, true, &keep()), None);
    }

    #[test]
    fn a_full_disk_makes_the_oldest_seconds_coarser_before_anything_is_lost() {
        let keep = Keep { bytes_max: 100, ..keep() };
        let mut files = vec![
            file(1, Resolution::Hour, NOW - 90 * DAY_MS, 10),
            file(2, Resolution::Second, NOW - HOUR_MS, 60),
            file(3, Resolution::Second, NOW - 3 * HOUR_MS, 60),
        ];
        let step = next_step(&files, NOW, false, &keep).unwrap();
        assert_eq!(step, FileStep::AddUp { files: vec![3], to: Resolution::Minute });
        carry_out(&mut files, &step);
        // 10 + 60 + 31 bytes are still too many.
        let step = next_step(&files, NOW, false, &keep).unwrap();
        assert_eq!(step, FileStep::AddUp { files: vec![2], to: Resolution::Minute });
    }

    #[test]
    fn many_small_files_become_one() {
        let files: Vec<StoredFile> =
            (0..9).map(|id| file(id, Resolution::Second, NOW + id, 9)).collect();
        let step = FileStep::AddUp { files: (0..9).collect(), to: Resolution::Second };
        assert_eq!(next_step(&files, NOW, false, &keep()), Some(step));
        assert_eq!(next_step(&files[1..], NOW, false, &keep()), None);
    }

    fn files() -> impl Strategy<Value = Vec<StoredFile>> {
        let one = (0usize..3, 0u64..900 * DAY_MS, 1u64..1_000);
        prop::collection::vec(one, 0..40).prop_map(|files| {
            let made = files.into_iter().zip(0u64..);
            made.map(|((resolution, age_ms, bytes), id)| {
                file(id, Resolution::ALL[resolution], NOW - age_ms, bytes)
            })
            .collect()
        })
    }

    proptest! {
        #[test]
        fn the_steps_come_to_an_end_within_the_bounds_and_name_files_that_are_there(
            mut files in files(),
            bytes_max in 0u64..10_000,
            calm in any::<bool>(),
        ) {
            let keep = Keep { bytes_max, ..keep() };
            let steps_max = 4 * files.len();
            for step in 0.. {
                prop_assert!(step <= steps_max, "no end after {step} steps");
                let Some(step) = next_step(&files, NOW, calm, &keep) else { break };
                let named = match &step {
                    FileStep::AddUp { files, .. } => files.clone(),
                    FileStep::Drop { file } => vec![*file],
                };
                prop_assert!(named.iter().all(|id| files.iter().any(|file| file.id == *id)));
                carry_out(&mut files, &step);
            }
            prop_assert!(files.iter().map(|file| file.bytes).sum::<u64>() <= bytes_max);
            if calm {
                let oldest = files.iter().map(|file| file.last_ms).min().unwrap_or(NOW);
                prop_assert!(NOW - oldest < 731 * DAY_MS);
            }
        }
    }
}
