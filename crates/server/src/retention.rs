//! Names of the files of kept texts, and removing those of days that are over.
//!
//! Each pod does it, once an hour and so many files at once: what another one was sooner with is gone already, which is no failure.
//! Nothing is removed but files with names as pods give them, in folders with names as pods give them, below the service's own.

use std::sync::Arc;
use std::time::Duration;

use flywheel_contract::feedback::FILE_SUFFIX;
use flywheel_contract::scalar::Uri;
use flywheel_store::{Purpose, Store, StoreError};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

use crate::metrics::Metrics;

/// How day folders begin, as tools that read partitions know them.
const DAY: &str = "date=";
/// Time between two looks. The first comes after a part of it, in each process another.
const INTERVAL: Duration = Duration::from_secs(3600);
const FIRST_WITHIN_SECONDS: u64 = 600;
/// Most files that a look removes: ten times what a pod writes in the meantime, at one in 30 s.
const FILES: usize = 1200;
/// Digits of a file's number, at least.
const NUMBER_DIGITS: usize = 6;
/// Digits of a process.
const PROCESS_DIGITS: usize = 16;

/// Beginning of the names of a process's files.
pub(crate) fn writer(pod: &str, process: u64) -> String {
    format!("{pod}-{process:016x}")
}

/// Name of a writer's file number `n`.
pub(crate) fn file_name(writer: &str, n: u64) -> String {
    format!("{writer}-{n:06}{FILE_SUFFIX}")
}

/// The folder of the day of a moment (UTC).
pub(crate) fn day_folder(at: Timestamp) -> String {
    at.strftime("date=%Y-%m-%d").to_string()
}

/// The day of a folder with a name as [`day_folder`] gives them; `None` for any other.
fn day_of(folder: &str) -> Option<Date> {
    let date: Date = folder.strip_prefix(DAY)?.parse().ok()?;
    (folder == format!("{DAY}{}", date.strftime("%Y-%m-%d"))).then_some(date)
}

/// Whether a name is one that [`file_name`] gives.
fn is_ours(name: &str) -> bool {
    let parts = name.strip_suffix(FILE_SUFFIX).and_then(|stem| {
        let (writer, number) = stem.rsplit_once('-')?;
        let (pod, process) = writer.rsplit_once('-')?;
        Some((pod, process, number))
    });
    parts.is_some_and(|(pod, process, number)| {
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        !pod.is_empty()
            && process.len() == PROCESS_DIGITS
            && process.bytes().all(hex)
            && number.len() >= NUMBER_DIGITS
            && number.bytes().all(|c| c.is_ascii_digit())
    })
}

/// Removes what is older than it may be.
pub(crate) struct Retention {
    store: Arc<Store>,
    folder: Uri,
    days: u32,
    /// Where this process begins in a folder, so that several do not all remove the same files.
    process: u64,
    metrics: Arc<Metrics>,
}

impl Retention {
    /// Begins, for as long as the process runs. `folder`: that of the service.
    pub fn start(store: Arc<Store>, folder: Uri, days: u32, process: u64, metrics: &Arc<Metrics>) {
        let retention = Self {
            store,
            folder,
            days,
            process,
            metrics: Arc::clone(metrics),
        };
        tokio::spawn(retention.follow());
    }

    async fn follow(self) {
        tokio::time::sleep(Duration::from_secs(self.process % FIRST_WITHIN_SECONDS)).await;
        loop {
            self.look(Timestamp::now()).await;
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// One look; what it cannot do the next one does.
    async fn look(&self, now: Timestamp) {
        match self.remove(now).await {
            Ok(0) => {}
            Ok(files) => {
                tracing::info!(files, uri = %self.folder, days = self.days, "kept texts were removed, as they are old")
            }
            Err(error) => {
                self.metrics.retention("failed", 1);
                let failure = error.failure(Purpose::Output);
                tracing::warn!(
                    reason = failure.reason.as_str(),
                    message = failure.message,
                    "old texts are not removed; tried again in an hour. The pods' identity must be allowed to list and delete there"
                );
            }
        }
    }

    /// Removes files of days that are over, the oldest day first; how many.
    async fn remove(&self, now: Timestamp) -> Result<usize, StoreError> {
        let today = now.to_zoned(TimeZone::UTC).date();
        let Ok(first_kept) = today.checked_sub(i64::from(self.days).days()) else {
            return Ok(0);
        };
        let listing = self.store.list(&self.folder).await?;
        let mut old: Vec<(Date, &String)> = listing
            .folders
            .iter()
            .filter_map(|name| Some((day_of(name)?, name)))
            .filter(|(day, _)| *day < first_kept)
            .collect();
        old.sort_unstable();
        let mut removed = 0;
        for (_, day) in old {
            let uri = self.folder.join(day);
            let mut files = self.store.list(&uri).await?.objects;
            files.retain(|name| is_ours(name));
            files.sort_unstable();
            let places = files.len().max(1);
            // Smaller than the number of files.
            files.rotate_left(usize::try_from(self.process % places as u64).unwrap_or(0));
            for name in files {
                if removed == FILES {
                    return Ok(removed);
                }
                self.store.delete(&uri.join(&name)).await?;
                self.metrics.retention("removed", 1);
                removed += 1;
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use flywheel_contract::storage::StorageSettings;

    use super::*;

    const PROCESS: &str = "00c0ffee00c0ffee";

    #[test]
    fn only_names_that_pods_give_are_theirs() {
        for name in [
            file_name(&writer("intent", 7), 0),
            file_name(&writer("intent-2", u64::MAX), 999_999),
            file_name(&writer("a", 0), 1_234_567),
        ] {
            assert!(is_ours(&name), "{name}");
        }
        for name in [
            "",
            ".jsonl",
            "rows.jsonl",
            "intent-00c0ffee00c0ffee-000001.json",
            "intent-00c0ffee00c0ffee-000001.jsonl.bak",
            "intent-00c0ffee00c0ffe-000001.jsonl",
            "intent-00C0FFEE00C0FFEE-000001.jsonl",
            "intent-00c0ffee00c0ffee-00001.jsonl",
            "intent-00c0ffee00c0ffee-00000x.jsonl",
            "-00c0ffee00c0ffee-000001.jsonl",
        ] {
            assert!(!is_ours(name), "{name}");
        }
        let day = |name: &str| day_of(name).map(|day| day.to_string());
        assert_eq!(day("date=2026-02-28").as_deref(), Some("2026-02-28"));
        assert_eq!(day(&day_folder(Timestamp::UNIX_EPOCH)).as_deref(), Some("1970-01-01"));
        for name in [
            "2026-02-28",
            "date=2026-02-30",
            "date=20260228",
            "date=2026-02-28 ",
            "date=2026-02-28T00:00",
            "date=x",
            "Date=2026-02-28",
        ] {
            assert_eq!(day(name), None, "{name}");
        }
    }

    fn write(folder: &Path, name: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "{}\n").unwrap();
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut all = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    all.push(path.strip_prefix(folder).unwrap().display().to_string());
                }
            }
        }
        all.sort();
        all
    }

    fn retention(folder: &Path, days: u32, process: u64) -> Retention {
        Retention {
            store: Arc::new(Store::new(&StorageSettings::default()).unwrap()),
            folder: Uri(format!("file://{}", folder.display())),
            days,
            process,
            metrics: Arc::new(Metrics::new()),
        }
    }

    fn removed(retention: &Retention, outcome: &str) -> u64 {
        let text = retention.metrics.text(0, 0, 0);
        let line = format!("flywheel_retention_files_total{{outcome=\"{outcome}\"}} ");
        let count = text.lines().find_map(|l| l.strip_prefix(&line));
        count.map_or(0, |count| count.parse().unwrap())
    }

    #[tokio::test]
    async fn old_days_go_and_new_ones_and_what_is_not_ours_stay() {
        let bucket = tempfile::tempdir().unwrap();
        let mine = bucket.path().join("team/intent");
        let ours = |n: u64| format!("intent-{PROCESS}-{n:06}.jsonl");
        let old: Vec<String> = ["2025-12-31", "2026-10-27"]
            .iter()
            .flat_map(|day| (0..5).map(move |n| format!("date={day}/{}", ours(n))))
            .collect();
        let stay = [
            format!("date=2026-10-28/{}", ours(0)),
            format!("date=2026-11-27/{}", ours(0)),
            format!("date=2026-12-24/{}", ours(0)),
            format!("date=2025-12-31/deeper/{}", ours(0)),
            format!("date=2025-13-01/{}", ours(0)),
            format!("2025-12-31/{}", ours(0)),
            "date=2025-12-31/golden.jsonl".to_owned(),
            "date=2025-12-31/_SUCCESS".to_owned(),
            ours(9),
        ];
        for name in old.iter().chain(&stay) {
            write(&mine, name);
        }
        let other = format!("team/other/date=2025-12-31/{}", ours(0));
        write(bucket.path(), &other);
        let now: Timestamp = "2026-11-27T23:59:59Z".parse().unwrap();
        let retention = retention(&mine, 30, 7);
        retention.look(now).await;
        let mut want: Vec<String> = stay.into();
        want.sort();
        assert_eq!(files(&mine), want);
        assert!(bucket.path().join(other).exists());
        assert_eq!((removed(&retention, "removed"), removed(&retention, "failed")), (10, 0));
        // A second later there is a new day, and one day more is over.
        retention.look("2026-11-28T00:00:00Z".parse().unwrap()).await;
        assert!(!files(&mine).contains(&format!("date=2026-10-28/{}", ours(0))));
        assert_eq!(removed(&retention, "removed"), 11);
    }

    #[tokio::test]
    async fn a_look_is_bounded_and_several_pods_at_once_do_no_harm() {
        let bucket = tempfile::tempdir().unwrap();
        for n in 0..FILES + 10 {
            write(bucket.path(), &format!("date=2026-01-01/intent-{PROCESS}-{n:06}.jsonl"));
        }
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let pods = [retention(bucket.path(), 1, 3), retention(bucket.path(), 1, 700)];
        pods[0].look(now).await;
        assert_eq!(
            (removed(&pods[0], "removed"), files(bucket.path()).len()),
            (FILES as u64, 10)
        );
        tokio::join!(pods[0].look(now), pods[1].look(now));
        assert_eq!(files(bucket.path()), Vec::<String>::new());
        assert_eq!(pods.iter().map(|pod| removed(pod, "failed")).sum::<u64>(), 0);
        pods[0].look(now).await;
    }

    /// Time passes only while nothing is done.
    #[tokio::test(start_paused = true)]
    async fn a_process_looks_soon_after_it_began_and_once_an_hour() {
        let bucket = tempfile::tempdir().unwrap();
        let old = format!("date=2020-01-01/intent-{PROCESS}-000000.jsonl");
        write(bucket.path(), &old);
        let Retention {
            store, folder, metrics, ..
        } = retention(bucket.path(), 1, 0);
        Retention::start(store, folder, 1, 599, &metrics);
        for (seconds, stays) in [
            (598, true),
            (10, false),
            (3500, true),
            (110, false),
            (3500, true),
            (110, false),
        ] {
            if stays {
                write(bucket.path(), &old);
            }
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            assert_eq!(bucket.path().join(&old).exists(), stays, "{seconds}");
        }
    }

    #[tokio::test]
    async fn a_storage_that_refuses_is_counted_and_a_folder_that_is_not_there_is_none() {
        let bucket = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-11-27T12:00:00Z".parse().unwrap();
        let missing = retention(&bucket.path().join("none"), 1, 0);
        missing.look(now).await;
        assert_eq!(removed(&missing, "failed"), 0);
        let mut refused = retention(bucket.path(), 1, 0);
        refused.folder = Uri("gopher://bucket/team".to_owned());
        refused.look(now).await;
        assert_eq!(removed(&refused, "failed"), 1);
    }
}
