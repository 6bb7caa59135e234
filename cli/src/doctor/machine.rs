//! All that the doctor reads of the system: files below a root, limits, and the environment.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The system, or a planted one.
#[derive(Debug)]
pub(crate) struct Machine {
    root: PathBuf,
    env: BTreeMap<String, String>,
}

/// A limit of the process; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

/// Room in a file system, bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Space {
    pub(crate) total: u64,
    pub(crate) free: u64,
}

impl Machine {
    /// The system below `root`, by default the real one. The environment is that of the process.
    pub(crate) fn new(root: Option<PathBuf>) -> Self {
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        Self { root: root.unwrap_or_else(|| PathBuf::from("/")), env }
    }

    /// Where an absolute path of the system is.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text without white space around it.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        Some(String::from_utf8_lossy(&fs::read(self.path(path)).ok()?).trim().to_owned())
    }

    /// A file that holds one number.
    pub(crate) fn number(&self, path: &str) -> Option<i64> {
        self.text(path)?.parse().ok()
    }

    /// The names in a directory, sorted; numbers by value.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort_by_key(|name| (name.parse::<u64>().unwrap_or(u64::MAX), name.clone()));
        names
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A variable that is set, and not to nothing.
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The variables whose names begin with `prefix`.
    pub(crate) fn env_from<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let all = self.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        all.filter(move |(name, _)| name.starts_with(prefix))
    }

    /// A limit by its name in `/proc/self/limits`: that of the process where nothing is planted.
    pub(crate) fn limit(&self, name: &str) -> Option<Limit> {
        let planted = self.text("/proc/self/limits");
        let text = planted.or_else(|| fs::read_to_string("/proc/self/limits").ok())?;
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut words = rest.split_whitespace();
        let mut next = || match words.next()? {
            "unlimited" => Some(None),
            number => number.parse().ok().map(Some),
        };
        Some(Limit { soft: next()?, hard: next()? })
    }

    /// A line of `/proc/self/status`.
    pub(crate) fn status(&self, name: &str) -> Option<String> {
        self.text("/proc/self/status")?
            .lines()
            .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
    }

    /// Whether the process has a capability, by its number.
    pub(crate) fn has_capability(&self, number: u32) -> bool {
        let bits = self.status("CapEff").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
        bits.is_some_and(|bits| bits >> number & 1 == 1)
    }

    /// Room in the file system that holds a path.
    pub(crate) fn space(&self, path: &str) -> Option<Space> {
        let stat = rustix::fs::statvfs(self.path(path)).ok()?;
        Some(Space { total: stat.f_blocks * stat.f_frsize, free: stat.f_bavail * stat.f_frsize })
    }

    /// The processors that this process may run on.
    pub(crate) fn cpus(&self) -> Vec<usize> {
        let allowed = self.status("Cpus_allowed_list").or_else(|| self.text("/sys/devices/system/cpu/online"));
        allowed.map_or_else(Vec::new, |list| parse_list(&list))
    }

    /// The processors of a NUMA node.
    pub(crate) fn cpus_of_node(&self, node: i64) -> Vec<usize> {
        let list = self.text(&format!("/sys/devices/system/node/node{node}/cpulist"));
        list.map_or_else(Vec::new, |list| parse_list(&list))
    }

    /// Host, kernel, processors.
    pub(crate) fn describe(&self) -> String {
        let host = self.text("/proc/sys/kernel/hostname").unwrap_or_else(|| "this machine".to_owned());
        let kernel = self.text("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".to_owned());
        let info = self.text("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|l| l.strip_prefix("model name")).map(|l| l.trim_matches([' ', '\t', ':']));
        format!("{host}: Linux {kernel}, {} CPUs ({})", self.cpus().len(), model.unwrap_or("unknown"))
    }

    /// Whether the root is the system's own.
    pub(crate) fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }
}

/// `0-3,8` as numbers.
pub(crate) fn parse_list(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    };
    list.split(',').filter_map(range).flatten().take(1 << 16).collect()
}

/// A size for people: `64 KiB`, `1.5 GiB`.
pub(crate) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = (0..units.len() - 1).find(|unit| count >> (10 * unit) < 1 << 10).unwrap_or(units.len() - 1);
    let tenths = (count as f64 / (1_u64 << (10 * unit)) as f64 * 10.0).floor() / 10.0;
    format!("{tenths} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_sizes() {
        assert_eq!(parse_list("0-2,5"), [0, 1, 2, 5]);
        assert!(parse_list("").is_empty() && parse_list("x-y").is_empty());
        assert_eq!(bytes(65536), "64 KiB");
        assert_eq!(bytes(8 << 20), "8 MiB");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
        assert_eq!(bytes(1000), "1000 B");
        assert_eq!(bytes(u64::MAX), "16 EiB");
    }

    #[test]
    fn this_process_has_limits() {
        let machine = Machine::new(None);
        assert!(machine.limit("Max open files").is_some_and(|limit| limit.soft <= limit.hard.or(limit.soft)));
        assert_eq!(machine.limit("Max nonsense"), None);
        assert!(!machine.cpus().is_empty() && machine.is_real());
    }
}
