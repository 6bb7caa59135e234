//! Replays the fuzzers' corpus: what was found once stays found.

#[path = "../../fuzz/src/rpc.rs"]
#[allow(unreachable_pub)]
mod checks;

use std::fs;
use std::path::Path;

#[test]
fn the_corpus_replays() {
    for (target, check) in checks::TARGETS {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let files: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(files.len() >= 5, "the corpus of {target} is missing");
        for file in files {
            println!("{}", file.display());
            let input = fs::read(&file).unwrap();
            check(&input);
            // And everything that one can make of it by cutting it off.
            (0..input.len().min(300)).for_each(|len| check(&input[..len]));
        }
    }
}
