//! Memory that start-up took for a moment: given back to the system once, so that an idle agent is as small as it is.
//! Never called on the path of a connection.

// Links the allocator that the program uses, also into what does not (the tests), where the call finds nothing to do.
use mimalloc as _;

unsafe extern "C" {
    /// Source: mimalloc, include/mimalloc.h.
    fn mi_collect(force: bool);
}

/// Gives back what is free. Loading the programs parses the kernel's types, whether or not they are wanted, which takes
/// 25 MiB for some milliseconds; the allocator would keep them.
pub fn give_back() {
    // SAFETY: the function takes a plain value, and may be called at any time from any thread.
    unsafe { mi_collect(true) }
}

/// Lets go of the pages of the program that start-up has mapped: command line, loading of programs, first connections. What
/// is still needed is mapped again from the page cache as it is touched.
pub fn forget_program() {
    // Without procfs everything stays.
    for (start, end) in clean_files(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default()) {
        let start = std::ptr::without_provenance_mut(start);
        // SAFETY: the mapping is of a file, not writable and without a page of its own (which a relocation would have made):
        // the next access finds the same bytes. At worst the range was unmapped meanwhile, which is an error.
        unsafe { libc::madvise(start, end - start.addr(), libc::MADV_DONTNEED) };
    }
}

/// Ranges of files that are mapped read-only and of which no page was ever written.
fn clean_files(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some("0")) => found.extend(mapping.take()),
            (Some(range), Some(access)) if !range.ends_with(':') => {
                let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
                let is_candidate = is_file && matches!(access, "r--p" | "r-xp");
                mapping = range.split_once('-').filter(|_| is_candidate).and_then(|(start, end)| {
                    let parse = |text| usize::from_str_radix(text, 16).ok();
                    Some((parse(start)?, parse(end)?))
                });
            }
            _ => (),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_that_the_file_still_has_are_let_go() {
        let mapping = |range: &str, access: &str, path: &str, own: &str| {
            format!(
                "{range} {access} 00000000 fe:00 1 {path}\nSize: 8 kB\nRss: 8 kB\nAnonymous: {own} kB\nSwap: 0 kB\n"
            )
        };
        let smaps = [
            mapping("1000-2000", "r-xp", "/usr/bin/a", "0"),
            mapping("2000-3000", "r--p", "/usr/bin/a", "4"), // relocated
            mapping("3000-4000", "rw-p", "/usr/bin/a", "0"),
            mapping("4000-5000", "r--s", "/dev/shm/a", "0"),
            mapping("5000-6000", "r--p", "[vvar]", "0"),
            mapping("6000-7000", "r--p", "", "0"),
            mapping("7000-9000", "r--p", "/usr/lib/b", "0"),
        ];
        assert_eq!(clean_files(&smaps.concat()), [(0x1000, 0x2000), (0x7000, 0x9000)]);
    }

    #[test]
    fn the_program_is_smaller_and_still_runs() {
        let resident = || {
            let smaps = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
            let line = smaps.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap().trim().to_owned();
            line.trim_end_matches(" kB").parse::<u64>().unwrap()
        };
        // Every page of this program's own code and constants.
        for (start, end) in clean_files(&std::fs::read_to_string("/proc/self/smaps").unwrap()) {
            let start = std::ptr::without_provenance_mut(start);
            // SAFETY: only reads ahead.
            unsafe { libc::madvise(start, end - start.addr(), libc::MADV_POPULATE_READ) };
        }
        let before = resident();
        forget_program();
        assert!(resident() + 4096 < before, "{before} KiB before, {} after", resident());
    }
}
