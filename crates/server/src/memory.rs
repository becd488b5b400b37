//! How much memory the pod has left.

use std::path::Path;

/// Where control groups of the second and of the first version tell of the container's own memory.
const LAYOUTS: [(&str, &str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
];

/// Bytes that the container may still use, page cache that can go counted as free; `None` where nothing limits it.
pub(crate) fn left() -> Option<u64> {
    LAYOUTS
        .iter()
        .find_map(|(folder, limit, used, reclaimable)| left_in(Path::new(folder), limit, used, reclaimable))
}

fn left_in(folder: &Path, limit: &str, used: &str, reclaimable: &str) -> Option<u64> {
    let number = |file: &str| {
        std::fs::read_to_string(folder.join(file))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    // `max` is no number; the first version says a huge one.
    let limit = number(limit).filter(|limit| *limit < 1 << 60)?;
    let used = number(used)?;
    let statistics = std::fs::read_to_string(folder.join("memory.stat")).ok()?;
    let reclaimable = statistics
        .lines()
        .find_map(|line| line.strip_prefix(reclaimable)?.trim().parse::<u64>().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(reclaimable)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_read_and_page_cache_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        let left = || left_in(dir.path(), "memory.max", "memory.current", "inactive_file");
        assert_eq!(left(), None, "no control group");
        write("memory.max", "max\n");
        write("memory.current", "700\n");
        write("memory.stat", "anon 500\ninactive_file 200\nactive_file 0\n");
        assert_eq!(left(), None, "no limit");
        write("memory.max", "1000\n");
        assert_eq!(left(), Some(500));
        write("memory.current", "1300\n");
        assert_eq!(left(), Some(0));
        write("memory.max", "9223372036854771712\n");
        assert_eq!(left(), None, "the first version's way to say none");
    }
}
