//! The rules of the house that a compiler does not check: sizes, rooms, `unsafe`, leftovers.
//!
//! An exception is named in a table here, with its reason. `ARCHITECTURE.md` says what the rooms are for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Lines of a file, without its tests.
const FILE_LINES: usize = 500;
/// Lines of a function.
const FUNCTION_LINES: usize = 70;

/// Files that may be longer.
const LONG_FILES: &[(&str, usize, &str)] = &[];

/// Functions that may be longer.
const LONG_FUNCTIONS: &[(&str, &str, usize, &str)] =
    &[("ucx-sys/src/settings.rs", "defaults", 100, "a table with one row for each setting, and why")];

/// Where `unsafe` may stand.
const UNSAFE_ROOMS: &[&str] = &["ucx-sys/", "transport/src/ucx", "transport/src/queue"];
/// Single tests that need it elsewhere.
const UNSAFE_TESTS: &[(&str, &str)] = &[("tests/two_process/peer/perish.rs", "dies of memory that nobody can read")];

/// What each room of the transport may name of the others.
const ROOMS: &[(&str, &[&str])] = &[
    ("queue", &[]),
    ("proto", &["frame", "error", "config"]),
    ("event", &["queue"]),
    ("ucx", &["backend", "event", "frame", "error", "config", "memory", "small"]),
    ("tcp", &["backend", "event", "frame", "error", "config", "framing", "proto::header", "small"]),
    ("connection", &["queue", "event", "frame", "error", "config", "stats", "dispatcher", "driver"]),
    (
        "listener",
        &[
            "queue",
            "event",
            "frame",
            "error",
            "config",
            "address",
            "connection",
            "dispatcher",
            "driver",
            "resolve",
            "tcp",
        ],
    ),
];

/// Crates that a room must not name.
const FOREIGN: &[(&str, &[&str])] = &[
    ("queue", &["mio", "ucx_sys", "rustix", "socket2", "std::net", "std::fs"]),
    ("proto", &["mio", "ucx_sys", "rustix", "socket2", "libc", "std::net", "std::fs", "std::thread", "Instant::now"]),
    ("event", &["ucx_sys", "std::net"]),
    ("tcp", &["ucx_sys"]),
    ("driver", &["ucx_sys"]),
    ("connection", &["mio", "ucx_sys", "socket2"]),
    ("listener", &["mio", "ucx_sys", "socket2"]),
];

struct Source {
    /// From the workspace's root, with `/`.
    path: String,
    text: String,
    /// The text up to the module of its tests.
    code: String,
    is_test: bool,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the tree that git would keep.
fn files() -> Vec<(String, PathBuf)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("the tree can be read").map(|e| e.expect("the tree can be read")) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == ".git" || name.starts_with("target") || name == "artifacts" {
                continue;
            }
            if entry.file_type().expect("the tree can be read").is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path());
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    let mut found: Vec<_> = found
        .into_iter()
        .map(|path| (path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned(), path))
        .collect();
    found.sort();
    found
}

fn sources() -> Vec<Source> {
    let rust =
        files().into_iter().filter(|(path, _)| path.ends_with(".rs") && !path.ends_with("ucx-sys/src/bindings.rs"));
    let all: Vec<Source> = rust
        .map(|(path, file)| {
            let text = fs::read_to_string(file).expect("sources are text");
            let end = text
                .find("\n#[cfg(test)]\nmod ")
                .filter(|at| text[at + 14..].lines().next().is_some_and(|l| l.ends_with('{')));
            let code = text[..end.unwrap_or(text.len())].to_owned();
            let is_test = path.starts_with("tests/")
                || path.contains("/tests/")
                || path.ends_with("/tests.rs")
                || path.ends_with("/models.rs");
            Source { path, text, code, is_test }
        })
        .collect();
    assert!(all.len() > 50, "only {} sources were found", all.len());
    all
}

fn fail(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test) {
        let lines = source.code.lines().count();
        let exception = LONG_FILES.iter().find(|(path, ..)| *path == source.path);
        let limit = exception.map_or(FILE_LINES, |(_, limit, _)| *limit);
        if lines > limit {
            found.push(format!("{} has {lines} lines, of {limit}", source.path));
        }
        if exception.is_some() && lines <= FILE_LINES {
            found.push(format!("{} has {lines} lines and needs no exception any more", source.path));
        }
    }
    fail("a file has one job that fits in a head; split it", &found);
}

#[test]
fn functions_are_short() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test) {
        for (name, lines) in functions(&source.code) {
            let exception = LONG_FUNCTIONS.iter().find(|(path, f, ..)| *path == source.path && *f == name);
            let limit = exception.map_or(FUNCTION_LINES, |(_, _, limit, _)| *limit);
            if lines > limit {
                found.push(format!("{}: {name} has {lines} lines, of {limit}", source.path));
            }
        }
    }
    fail("a function fits on a screen", &found);
}

/// Names and lengths of the functions. The formatter puts a body's end under its beginning.
fn functions(code: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (first, line) in lines.iter().enumerate() {
        let word = line.trim_start();
        let Some((before, rest)) = word.split_once("fn ") else { continue };
        let qualifiers = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe", "extern", "\"C\""];
        if !before.split_whitespace().all(|w| qualifiers.contains(&w)) {
            continue;
        }
        let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
        // A required item of a trait has no body.
        if lines[first..].iter().find(|l| l.ends_with(['{', ';', '}'])).is_none_or(|l| l.ends_with(';')) {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - word.len()]);
        if let Some(more) = lines[first..].iter().position(|l| *l == end) {
            found.push((name, more + 1));
        }
    }
    found
}

#[test]
fn unsafe_stays_in_its_rooms_and_says_why() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !s.path.starts_with("tests/tidy")) {
        let allowed = UNSAFE_ROOMS.iter().any(|room| source.path.starts_with(room))
            || UNSAFE_TESTS.iter().any(|(path, _)| *path == source.path);
        let lines: Vec<&str> = source.text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            // What stands between quotes is no code.
            let code: String = line.split("//").next().unwrap_or_default().split('"').step_by(2).collect();
            let has = |word: &str| code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word);
            if !has("unsafe") {
                continue;
            }
            if !allowed {
                found.push(format!("{}:{}: not one of the rooms for unsafe", source.path, i + 1));
            }
            // The comment may stand above a statement of several lines.
            let above =
                lines[i.saturating_sub(12)..=i].iter().any(|l| l.contains("// SAFETY:") || l.contains("# Safety"));
            if code.contains("unsafe {") && !above {
                found.push(format!("{}:{}: no // SAFETY: above it", source.path, i + 1));
            }
        }
    }
    fail("unsafe code is in ucx-sys, transport::ucx and transport::queue, and each block names its invariant", &found);
}

/// The public names of the transport's root, and the module that each comes from.
fn origins(all: &[Source]) -> BTreeMap<String, String> {
    let lib = all.iter().find(|s| s.path == "transport/src/lib.rs").expect("the transport's root");
    let mut origins = BTreeMap::new();
    for statement in lib.text.split(';').filter_map(|s| s.split_once("pub use ")) {
        let Some((module, names)) = statement.1.split_once("::") else { continue };
        for name in names.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|n| !n.is_empty()) {
            origins.insert(name.to_owned(), module.to_owned());
        }
    }
    assert!(origins.contains_key("Error") && origins.contains_key("Frame"), "lib.rs is not understood: {origins:?}");
    origins
}

/// What follows each `crate::` in the code, down to two names: `{a::b, c}` counts as `a::b` and `c`.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let without_comments: String =
        code.lines().map(|l| l.split("//").next().unwrap_or_default()).fold(String::new(), |a, l| a + l + "\n");
    for (at, _) in without_comments.match_indices("crate::") {
        let rest = &without_comments[at + 7..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut item) = (1, String::new());
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if depth == 0 || (depth == 1 && c == ',') {
                    paths.insert(two_names(item.trim()));
                    item.clear();
                } else {
                    item.push(c);
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            paths.insert(two_names(rest));
        }
    }
    paths.remove("");
    paths
}

fn two_names(path: &str) -> String {
    let end = path.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(path.len());
    let names: Vec<&str> = path[..end].split("::").filter(|n| !n.is_empty()).take(2).collect();
    names.join("::")
}

/// The room of the transport that a file belongs to.
fn room(path: &str) -> Option<&str> {
    path.strip_prefix("transport/src/")?.split(['/', '.']).next()
}

#[test]
fn rooms_import_only_what_they_may() {
    let all = sources();
    let origins = origins(&all);
    let mut found = Vec::new();
    for source in all.iter().filter(|s| !s.is_test) {
        let Some((name, allowed)) = ROOMS.iter().find(|(name, _)| room(&source.path) == Some(name)) else { continue };
        for path in crate_paths(&source.code) {
            let first = path.split("::").next().unwrap_or_default();
            let module = origins.get(first).map_or(first, String::as_str);
            let fits = |a: &str| a == module || a == path;
            if module != *name && !allowed.iter().any(|a| fits(a)) {
                found.push(format!("{} names crate::{path} ({module})", source.path));
            }
        }
    }
    fail("a room may import only what the table ROOMS says", &found);
}

#[test]
fn rooms_name_no_foreign_crate() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|s| !s.is_test && s.path.starts_with("transport/src/")) {
        let Some((_, foreign)) = FOREIGN.iter().find(|(name, _)| room(&source.path) == Some(name)) else { continue };
        for (i, line) in source.code.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let names = |word: &&&str| {
                code.match_indices(**word).any(|(at, _)| {
                    let ident = |c: char| c.is_alphanumeric() || c == '_';
                    !code[..at].ends_with(ident) && !code[at + word.len()..].starts_with(ident)
                })
            };
            for word in foreign.iter().filter(names) {
                found.push(format!("{}:{} names {word}", source.path, i + 1));
            }
        }
    }
    for source in sources().iter().filter(|s| s.path.starts_with("transport/src/")) {
        let loom = source.code.lines().any(|l| l.split("//").next().is_some_and(|c| c.contains("loom::")));
        if loom && source.path != "transport/src/queue/primitive.rs" && !source.is_test {
            found.push(format!("{} names loom, which only queue/primitive.rs does", source.path));
        }
    }
    fail("a room must not reach around the rooms that it may import", &found);
}

#[test]
fn dependencies_point_one_way() {
    let manifest = |path: &str| fs::read_to_string(root().join(path)).expect("manifest");
    let mut found = Vec::new();
    for (path, forbidden) in [
        ("ucx-sys/Cargo.toml", &["ucrpc", "tokio", "mio"][..]),
        ("transport/Cargo.toml", &["ucrpc-rpc", "ucrpc-build", "prost"]),
        ("rpc/Cargo.toml", &["ucx-sys", "mio"]),
        ("codegen/Cargo.toml", &["ucx-sys", "ucrpc-transport"]),
        ("cli/Cargo.toml", &["ucx-sys", "ucrpc-rpc", "ucrpc-transport", "mio"]),
    ] {
        let text = manifest(path);
        let (_, dependencies) = text.split_once("\n[dependencies]").unwrap_or(("", ""));
        let names = |line: &str| line.split(['.', ' ', '=']).next().unwrap_or_default().to_owned();
        for name in dependencies.lines().map(names).filter(|name| forbidden.contains(&name.as_str())) {
            found.push(format!("{path} depends on {name}"));
        }
    }
    fail("root -> rpc -> transport -> ucx-sys", &found);
}

#[test]
fn nothing_is_left_over() {
    // Written in two halves, so that this file passes its own test.
    let words = [
        concat!("to", "do!("),
        concat!("unimpl", "emented!("),
        concat!("db", "g!("),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("TO", "DO"),
    ];
    let mut found = Vec::new();
    for source in sources() {
        for (i, line) in source.text.lines().enumerate() {
            let at = || format!("{}:{}", source.path, i + 1);
            found.extend(words.iter().filter(|w| line.contains(**w)).map(|w| format!("{} has {w}", at())));
            let ignored =
                line.trim_start().strip_prefix("#[ignore").or_else(|| line.trim_start().strip_prefix("#![ignore"));
            if ignored.is_some_and(|rest| !rest.starts_with(" = \"needs ")) {
                found.push(format!("{} ignores a test without saying what it needs", at()));
            }
        }
    }
    fail("nothing unfinished is committed, and a test is ignored only for what it needs", &found);
}

#[test]
fn no_registry_is_named() {
    let hosts = [
        concat!("crates", ".io"),
        concat!("pypi", ".org"),
        concat!("python", "hosted"),
        concat!("npm", "js"),
        concat!("proxy.go", "lang"),
    ];
    let mut found = Vec::new();
    for (path, file) in files().iter().filter(|(path, _)| !path.ends_with("Cargo.lock")) {
        let bytes = fs::read(file).expect("the tree can be read");
        let text = String::from_utf8_lossy(&bytes);
        for (i, line) in text.lines().enumerate() {
            found.extend(hosts.iter().filter(|h| line.contains(**h)).map(|h| format!("{path}:{} names {h}", i + 1)));
        }
    }
    fail("the tree names no package registry", &found);
}

#[test]
fn every_source_says_what_it_is_for() {
    let mut found = Vec::new();
    for source in sources().into_iter().filter(|s| !s.is_test) {
        let first = source.text.lines().find(|l| !l.starts_with("#![") && !l.trim().is_empty()).unwrap_or_default();
        if !first.starts_with("//!") {
            found.push(source.path);
        }
    }
    fail("a module says its job in its first line", &found);
}

#[test]
fn no_mod_rs() {
    let is_mod = |path: &&String| path.ends_with("/mod.rs") && !path.contains("/tests/");
    let found: Vec<String> = sources().iter().map(|s| &s.path).filter(is_mod).cloned().collect();
    fail("modules are foo.rs beside foo/", &found);
}

#[test]
fn the_tests_of_this_file_can_fail() {
    assert_eq!(functions("trait A {\n    fn a();\n    fn b() {\n        c\n    }\n}\n"), [("b", 3)]);
    let paths = crate_paths(
        "use crate::{Error, proto::{header, hello}, queue};\nlet x = crate::tcp::Stream::new(); // crate::no\n",
    );
    assert_eq!(paths.into_iter().collect::<Vec<_>>(), ["Error", "proto", "queue", "tcp::Stream"]);
    assert_eq!(room("transport/src/queue/list.rs"), Some("queue"));
    assert_eq!(room("transport/src/ucx.rs"), Some("ucx"));
}
